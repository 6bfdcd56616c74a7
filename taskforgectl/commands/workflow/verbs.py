"""`taskforgectl workflow`: apply, check, show and draw definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from taskforge.v1 import workflow_service_pb2 as pb
from taskforge.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError, RemoteError, Violation
from taskforgectl.files import read_text
from taskforgectl.kinds import FILE, WORKFLOW
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, echo_text, show_item, show_list, tell_deleted
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import Column, local_time, show_details, show_table, tabled, when
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_SUFFIXES = {".yaml", ".yml"}


class _Source(NamedTuple):
    """One definition and where it came from."""

    place: str
    text: str


_files_option = click.option(
    "-f",
    "--file",
    "files",
    required=True,
    multiple=True,
    metavar="FILE|DIR|-",
    type=FILE,
    help="A definition, a folder of *.yaml and *.yml, or - for stdin. May be given several times.",
)


@click.group("workflow", cls=Noun)
def command() -> None:
    """Apply, check, show and draw workflows."""


# --- apply and validate ----------------------------------------------------------------------------------------------


@command.command("apply")
@_files_option
@click.pass_context
def apply(context: click.Context, files: Sequence[str]) -> None:
    """Store definitions as new versions. One that equals the newest version changes nothing.

    Of several files the good ones are applied, the others are told; the exit code is then that of the first failure.
    """
    settings: Settings = context.obj
    applied: list[dict[str, Any]] = []
    failed: list[RemoteError] = []
    with Connection(settings) as connection:
        stub = connection.stub(WorkflowServiceStub)
        for source in _sources(files):
            try:
                request = pb.ApplyWorkflowRequest(namespace=settings.namespace, source=source.text)
                applied.append(plain(connection.tell(stub.ApplyWorkflow, request)))
            except RemoteError as error:
                if not error.violations:
                    raise
                _tell_violations(source, error.violations)
                failed.append(error)
    _show_applied(settings, applied)
    if failed:
        context.exit(failed[0].code)


def _show_applied(settings: Settings, applied: Sequence[Item]) -> None:
    """Show what became of the definitions; always as a list, so that scripts need not count files."""
    rows = [{"name": one["workflow"]["name"], **one} for one in applied]
    show_list(settings, rows, key="name", table=_tell_applied)


def _tell_applied(rows: Sequence[Item]) -> None:
    for row in rows:
        echo(f"{row['name']}  version {row['version']['number']}  {'applied' if row['changed'] else 'unchanged'}")


@command.command("validate")
@_files_option
@click.pass_context
def validate(context: click.Context, files: Sequence[str]) -> None:
    """Check definitions like `apply` and store nothing. Exit code 2 when one is not valid."""
    settings: Settings = context.obj
    verdicts: list[dict[str, Any]] = []
    with Connection(settings) as connection:
        stub = connection.stub(WorkflowServiceStub)
        for source in _sources(files):
            request = pb.ValidateWorkflowRequest(namespace=settings.namespace, source=source.text)
            verdict = plain(connection.ask(stub.ValidateWorkflow, request))
            verdicts.append({"file": source.place, "valid": not verdict["problems"], **verdict})
            _tell_violations(source, [Violation(**one) for one in verdict["problems"]])
    show_list(settings, verdicts, key="name", table=_show_verdicts)
    if not all(one["valid"] for one in verdicts):
        context.exit(EXIT_USAGE)


def _show_verdicts(verdicts: Sequence[Item]) -> None:
    for one in verdicts:
        if one["valid"]:
            echo(f"{safe_line(one['file'])}: {safe_line(one['name'])} is valid")


def _tell_violations(source: _Source, violations: Sequence[Violation]) -> None:
    for violation in violations:
        click.echo(safe_line(violation.describe(source.place)), err=True)


def _sources(files: Sequence[str]) -> Iterator[_Source]:
    """Yield the definitions that are named.

    Raises:
        CliError: one cannot be read, or a folder has none.
    """
    for name in files:
        if name == "-":
            yield _Source("<stdin>", read_text("-"))
        elif Path(name).is_dir():
            yield from _folder(Path(name))
        else:
            yield _Source(name, read_text(name))


def _folder(path: Path) -> Iterator[_Source]:
    found = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES and one.is_file())
    if not found:
        raise CliError(f"{path} has no *.yaml or *.yml files", code=EXIT_USAGE)
    for one in found:
        yield _Source(str(one), read_text(str(one)))


# --- show ------------------------------------------------------------------------------------------------------------


@command.command("list")
@listing_options
@click.pass_obj
def list_(settings: Settings, listing: Listing) -> None:
    """List the workflows of a namespace by name."""
    request = pb.ListWorkflowsRequest(namespace=settings.namespace)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(WorkflowServiceStub).ListWorkflows, request, listing.limit)

    show_listing(settings, listing, read, key="name", table=lambda items: _show_rows(settings, items))


def _show_rows(settings: Settings, items: Sequence[Item]) -> None:
    columns = [
        Column("WORKFLOW", lambda one: one["name"]),
        Column("VERSION", lambda one: one["latest_version"]),
        Column("ACTIVE", lambda one: one["active"]),
        Column("TRIGGERS", lambda one: ", ".join(t["detail"] or t["kind"] for t in one["triggers"])),
        Column("UPDATED", lambda one: when(one["update_time"])),
        Column("DESCRIPTION", lambda one: one["description"]),
    ]
    empty = "no workflows yet; apply one with `taskforgectl workflow apply -f FILE`"
    show_table(settings, items, columns, empty=empty)


@command.command("show")
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@click.option("--version", "number", type=click.IntRange(min=1), help="Show this version's source. Default: newest.")
@click.option("--source", "source_only", is_flag=True, help="Print the YAML text and nothing else.")
@click.pass_obj
def show(settings: Settings, name: str, number: int | None, *, source_only: bool) -> None:
    """Show a workflow and the source of its newest version."""
    with Connection(settings) as connection:
        stub = connection.stub(WorkflowServiceStub)
        get = pb.GetWorkflowRequest(namespace=settings.namespace, name=name)
        get_version = pb.GetWorkflowVersionRequest(namespace=settings.namespace, name=name, number=number or 0)
        version = plain(connection.ask(stub.GetWorkflowVersion, get_version).version)
        workflow = plain(connection.ask(stub.GetWorkflow, get).workflow)
    if source_only:
        echo_text(version["source"])
        return
    item = {**workflow, "version": version["number"], "source": version["source"], "profile": version["profile"]}
    show_item(settings, item, key="name", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, item: Item) -> None:
    pairs = [
        ("name", item["name"]),
        ("namespace", item["namespace"]),
        ("description", item["description"]),
        ("active", item["active"]),
        ("latest version", item["latest_version"]),
        ("labels", ", ".join(f"{key}={value}" for key, value in item["labels"].items())),
        ("triggers", "\n".join(f"{t['id']}: {t['detail'] or t['kind']}" for t in item["triggers"])),
        ("updated", local_time(item["update_time"])),
        (f"source of v{item['version']}", item["source"].rstrip()),
    ]
    show_details(settings, pairs)


@command.command("versions")
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@listing_options
@click.pass_obj
def versions(settings: Settings, name: str, listing: Listing) -> None:
    """List the versions of a workflow, newest first."""
    request = pb.ListWorkflowVersionsRequest(namespace=settings.namespace, name=name)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(WorkflowServiceStub).ListWorkflowVersions, request, listing.limit)

    columns = [
        Column("VERSION", lambda one: one["number"]),
        Column("APPLIED", lambda one: when(one["create_time"])),
        Column("BY", lambda one: one["created_by"]),
        Column("CONTENT", lambda one: one["content_hash"][:12]),
    ]
    show_listing(
        settings,
        listing,
        read,
        key="number",
        table=tabled(settings, columns, empty="no versions"),
    )


# --- steer -----------------------------------------------------------------------------------------------------------


@command.command("activate")
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@click.pass_obj
def activate(settings: Settings, name: str) -> None:
    """Let a workflow's triggers start runs."""
    _set_active(settings, name, active=True)


@command.command("deactivate")
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@click.pass_obj
def deactivate(settings: Settings, name: str) -> None:
    """Stop a workflow's triggers. It can still be started by hand."""
    _set_active(settings, name, active=False)


def _set_active(settings: Settings, name: str, *, active: bool) -> None:
    with Connection(settings) as connection:
        method = connection.stub(WorkflowServiceStub).SetWorkflowActive
        request = pb.SetWorkflowActiveRequest(namespace=settings.namespace, name=name, active=active)
        item = plain(connection.ask(method, request).workflow)
    verb = "activated" if active else "deactivated"
    show_item(settings, item, key="name", people=lambda one: echo(f"{one['name']}  {verb}"))


@command.command("delete")
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete a workflow. Its runs and their history stay."""
    with Connection(settings) as connection:
        method = connection.stub(WorkflowServiceStub).DeleteWorkflow
        connection.tell(method, pb.DeleteWorkflowRequest(namespace=settings.namespace, name=name))
    tell_deleted(settings, name)


verbs = tuple(command.commands.values())
