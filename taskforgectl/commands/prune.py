"""`taskforgectl prune`: delete now what is old enough."""

from __future__ import annotations

import click
from taskforge.v1 import storage_service_pb2 as pb
from taskforge.v1.storage_service_pb2_grpc import StorageServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.home import local_home
from taskforgectl.kinds import WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import show_details
from taskforgectl.rescue import rescue, size
from taskforgectl.times import parse_span

__all__ = ["command"]

_PATIENCE_S = 6 * 3600.0


@click.command("prune", cls=Verb)
@click.option("--dry-run", is_flag=True, help="Count what would be deleted, and delete nothing.")
@click.option("--runs-older-than", metavar="SPAN", help="Instead of [retention] runs, for example 30d.")
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Also ended runs of any age, but for the newest N of each workflow.",
)
@click.option("--workflow", type=WORKFLOW, metavar="WORKFLOW", help="This one alone, whatever it says of retention.")
@click.option("--compact", is_flag=True, help="Write the database anew, without free pages; the daemon must be down.")
@click.pass_obj
def command(
    settings: Settings, dry_run: bool, runs_older_than: str | None, keep: int | None, workflow: str, compact: bool
) -> None:
    """Delete now what is old enough and what nothing needs.

    Without options it does what the daemon does by itself every ten minutes. Workflows with a `retention:` of their
    own keep to that, unless they are named by --workflow.
    """
    if compact:
        if dry_run or runs_older_than or keep or workflow:
            raise CliError("--compact stands alone: prune first, with the daemon up", code=EXIT_USAGE)
        local_home(settings, "prune --compact")
        show_item(settings, rescue(settings, "compact"), key="database", people=_show_compact)
        return
    request = pb.PruneStorageRequest(
        dry_run=dry_run, keep=keep or 0, namespace=settings.namespace, workflow=workflow or ""
    )
    if runs_older_than:
        request.runs_older_than.FromTimedelta(parse_span(runs_older_than, "--runs-older-than"))
    with Connection(settings) as connection:
        method = connection.stub(StorageServiceStub).PruneStorage
        answer = plain(connection.tell(method, request, extra_s=_PATIENCE_S))
    show_item(settings, answer, key=lambda one: one["counts"]["runs"], people=lambda one: _show(settings, one, dry_run))


def _show(settings: Settings, answer: Item, dry_run: bool) -> None:
    counts = answer["counts"]
    if not any(int(count) for count in counts.values()):
        echo("nothing is old enough" if not dry_run else "nothing would be deleted")
        return
    echo("would be deleted:" if dry_run else "deleted:")
    names = {
        "runs": "runs, with their history",
        "events": "events",
        "rejected": "deliveries without effect",
        "deliveries": "keys of deliveries",
        "slots": "due times",
        "logs": "lines of logs",
    }
    show_details(settings, [(names[name], f"{int(count):,}") for name, count in counts.items() if int(count)])


def _show_compact(answer: Item) -> None:
    echo(f"{answer['database']}  {size(answer['before_bytes'])} before, {size(answer['after_bytes'])} now")
