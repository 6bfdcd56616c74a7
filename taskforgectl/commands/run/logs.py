"""`taskforgectl run logs`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import click
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub
from taskforge.v1.workflow_service_pb2 import GetWorkflowGraphRequest
from taskforge.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from taskforgectl.commands.run.outcome import detachable
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_NOT_FOUND, EXIT_UNREACHABLE, EXIT_USAGE, CliError
from taskforgectl.follow import Interruption, follow_logs
from taskforgectl.kinds import RUN, STEP
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import reconnect_option
from taskforgectl.render.logs import log_line
from taskforgectl.render.output import echo_json_line, note, show_list, tell_interruption
from taskforgectl.render.pager import paged
from taskforgectl.render.plain import plain

__all__ = ["verbs"]

_PAGE = 1000
"""The daemon's own limit."""

_INDEX = re.compile(r"\[\d+\]")
"""The item in the key of a fan-out's step: `notify[3].send`."""


@click.command("logs", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.argument("step", metavar="[STEP]", default="", type=STEP)
@click.option("--follow", is_flag=True, help="Go on until the run has ended. Ctrl-C leaves the run alone.")
@click.option("--after", metavar="CURSOR", default="", help="With --follow: begin after the entry with this cursor.")
@click.option("--timestamps", is_flag=True, help="Show when each line was written.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=0, metavar="N", help="Most lines, from the beginning. Default: all."
)
@reconnect_option
@click.pass_context
def _logs(
    context: click.Context,
    *,
    run_id: str,
    step: str,
    follow: bool,
    after: str,
    timestamps: bool,
    limit: int,
    reconnect_s: float,
) -> None:
    """Show what the steps of a run wrote, or STEP alone. With --follow and -o json one JSON object per line."""
    settings: Settings = context.obj
    if follow and limit:
        raise CliError("--follow and --limit exclude each other", code=EXIT_USAGE)
    if after and not follow:
        raise CliError("--after needs --follow", code=EXIT_USAGE)
    if follow:
        _check_before(settings, run_id, step)
        with detachable(context, run_id, "logs --follow"):
            _follow(settings, run_id, step, after, timestamps=timestamps, reconnect_s=reconnect_s)
    elif settings.output == "table":
        _show_pages(settings, run_id, step, limit, timestamps=timestamps)
    else:
        entries = [plain(entry) for page in _pages(settings, run_id, step, limit) for entry in page]
        if not entries:
            _check_step(settings, run_id, step)
        show_list(settings, entries, key="cursor", table=lambda _: None)


def _show_pages(settings: Settings, run_id: str, step: str, limit: int, *, timestamps: bool) -> None:
    """Show page by page: a log may be larger than the memory."""
    is_empty = True
    with paged(settings.pager):
        for page in _pages(settings, run_id, step, limit):
            for entry in page:
                is_empty = False
                click.echo(log_line(plain(entry), alone=bool(step), timestamps=timestamps))
    if is_empty:
        _check_step(settings, run_id, step)
        note(settings, "no logs; only steps with executors write some, and `run steps` tells which were reached")


def _check_before(settings: Settings, run_id: str, step: str) -> None:
    """Check the step before its log is followed. A daemon that is away now is waited for later."""
    try:
        _check_step(settings, run_id, step)
    except CliError as error:
        if error.code != EXIT_UNREACHABLE:
            raise


def _check_step(settings: Settings, run_id: str, step: str) -> None:
    """Refuse a step that the run neither has reached nor can reach.

    Raises:
        CliError: it is not among its steps, nor in its definition.
    """
    if not step:
        return
    with Connection(settings) as connection:
        request = pb.ListRunStepsRequest(run_id=run_id, key_prefix=step, page_size=_PAGE)
        reached = connection.ask(connection.stub(RunServiceStub).ListRunSteps, request).steps
        if any(one.key == step or one.key.startswith((f"{step}[", f"{step}.")) for one in reached):
            return
        if _INDEX.sub("", step).rpartition(".")[2] in _declared(connection, run_id):
            return
    hint = f"`taskforgectl run steps {run_id} --limit 0` shows those that it has"
    raise CliError(f"{run_id} has no step {step!r}", hint=hint, code=EXIT_NOT_FOUND)


def _declared(connection: Connection, run_id: str) -> set[str]:
    """Answer the ids of the steps that the definition of a run has; none when that has been deleted."""
    run = connection.ask(connection.stub(RunServiceStub).GetRun, pb.GetRunRequest(run_id=run_id)).run
    request = GetWorkflowGraphRequest(namespace=run.namespace, name=run.workflow, number=run.version)
    try:
        graph = connection.ask(connection.stub(WorkflowServiceStub).GetWorkflowGraph, request).graph
    except CliError as error:
        if error.code != EXIT_NOT_FOUND:
            raise
        return set()
    return {node.id for node in graph.nodes}


def _pages(settings: Settings, run_id: str, step: str, limit: int) -> Iterator[Sequence[run_pb2.LogEntry]]:
    found, token = 0, ""
    with Connection(settings) as connection:
        stub = connection.stub(RunServiceStub)
        while True:
            size = min(_PAGE, limit - found) if limit else _PAGE
            request = pb.GetRunLogsRequest(run_id=run_id, step=step, page_size=size, page_token=token)
            answer = connection.ask(stub.GetRunLogs, request)
            yield answer.entries
            found, token = found + len(answer.entries), answer.next_page_token
            if not token or (limit and found >= limit):
                return


def _follow(settings: Settings, run_id: str, step: str, after: str, *, timestamps: bool, reconnect_s: float) -> None:
    updates = follow_logs(settings, run_id, step=step, after=after, reconnect_s=reconnect_s)
    with contextlib.closing(updates):  # cancels the call, also on Ctrl-C
        for update in updates:
            if isinstance(update, Interruption):
                tell_interruption(update.reason)
                continue
            for entry in update.entries:
                if settings.output == "table":
                    click.echo(log_line(plain(entry), alone=bool(step), timestamps=timestamps))
                else:
                    echo_json_line(plain(entry))


verbs = (_logs,)
