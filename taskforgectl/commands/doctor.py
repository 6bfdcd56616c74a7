"""`taskforgectl doctor`: what is wrong with a home, its daemon and its service, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.checkup import checkup
from taskforgectl.commands import status
from taskforgectl.connection import Connection
from taskforgectl.doctor.checks import LOCAL, REMOTE
from taskforgectl.doctor.model import ERROR, OK, WARNING, Check, Finding, Ground, error, warning
from taskforgectl.errors import EXIT_DENIED, EXIT_FAILED, EXIT_UNREACHABLE, CliError, NotRunningError, RemoteError
from taskforgectl.home import Home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.findings import show_findings
from taskforgectl.render.output import Item, echo_parts, show_item
from taskforgectl.render.plain import plain
from taskforgectl.service.units import gives_master_key

__all__ = ["command"]

_QUICK_S = 10
_FULL_S = 600


@click.command("doctor", cls=Verb)
@click.option("--full", is_flag=True, help="Read the whole database, for up to 10 minutes. Default: 10 seconds of it.")
@click.pass_context
def command(context: click.Context, *, full: bool) -> None:
    """Check home, permissions, disk, clock, ports, database, units and versions; say how to mend what is found.

    Changes nothing. Works with and without a running daemon. Exit code 1 when something is broken or not safe, 0 also
    when there are warnings.
    """
    settings: Settings = context.obj
    database_s = _FULL_S if full else _QUICK_S
    ground = Ground(settings, Home(settings.home))
    try:
        ground.info = _info(settings)
    except RemoteError:
        raise
    except CliError as problem:  # no token, for example: what needs none is examined
        if settings.address or problem.code != EXIT_DENIED:
            raise
        ground.locked_out = problem
    theirs = _daemons_view(ground, database_s)
    ours = _ask(REMOTE if settings.address else LOCAL, ground)
    report = _report([{**one, "remedy": settings.spell(one["remedy"])} for one in ours + theirs])
    if settings.output == "name":
        for item in report["findings"]:
            if item["severity"] != OK:
                echo_parts(item["check"])
    else:
        show_item(settings, report, key="errors", people=lambda one: show_findings(settings, one))
    context.exit(EXIT_FAILED if report["errors"] else 0)


def _info(settings: Settings) -> dict[str, Any] | None:
    try:
        return status.running(settings)
    except NotRunningError:
        return None
    except RemoteError as problem:
        if problem.code != EXIT_UNREACHABLE or settings.address:
            raise
        return None


def _daemons_view(ground: Ground, database_s: int) -> list[Item]:
    """Answer what the daemon finds, or its program where none runs."""
    if ground.info is not None:
        return _diagnose(ground.settings, database_s)
    if not ground.home.path.is_dir():
        return []
    try:
        elsewhere = ["--key-elsewhere"] if gives_master_key(ground.home.path) else []
        answer = checkup(ground.home.path, "--database-s", str(database_s), *elsewhere, limit_s=database_s + 30.0)
    except CliError as problem:
        return [_item("checkup", error(problem.message, problem.hint))]
    if answer.get("held") and ground.locked_out is None:  # a daemon has started meanwhile
        ground.info = _info(ground.settings)
        if ground.info is not None:
            return _diagnose(ground.settings, database_s)
    ground.config = {f"{one['section']}.{one['key']}": one["value"] for one in answer["settings"]}
    faults = [error(one["message"], f"mend {answer['file']}") for one in answer["problems"]]
    found = list(answer["findings"])
    if faults:
        found = [one for one in found if one["check"] != "config"]
    return [_item("config", one) for one in faults] + found


def _diagnose(settings: Settings, database_s: int) -> list[Item]:
    with Connection(settings) as connection:
        method = connection.stub(SystemServiceStub).Diagnose
        request = pb.DiagnoseRequest(database_limit=Duration(seconds=database_s))
        return [plain(one) for one in connection.ask(method, request, extra_s=database_s + 10.0).findings]


def _ask(checks: Mapping[str, Check], ground: Ground) -> list[Item]:
    return [_item(name, one) for name, check in checks.items() for one in _found(check, ground)]


def _found(check: Check, ground: Ground) -> Iterable[Finding]:
    try:
        return list(check(ground))
    except (OSError, CliError) as problem:
        remedy = problem.hint if isinstance(problem, CliError) else ""
        return [warning(f"this could not be checked: {problem}", remedy or "work as the user that owns the home")]


def _item(check: str, finding: Finding) -> Item:
    return {"check": check, **finding._asdict()}


def _report(findings: Sequence[Item]) -> dict[str, Any]:
    count = {kind: sum(one["severity"] == kind for one in findings) for kind in (ERROR, WARNING)}
    return {"errors": count[ERROR], "warnings": count[WARNING], "findings": list(findings)}
