"""`taskforgectl run logs`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import click
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.commands.run.outcome import detachable, reconnect_option
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.follow import Interruption, follow_logs
from taskforgectl.options import Settings, Verb
from taskforgectl.render.logs import log_line
from taskforgectl.render.output import echo_json_line, note, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line

__all__ = ["verbs"]

_PAGE = 1000
"""The daemon's own limit."""


@click.command("logs", cls=Verb)
@click.argument("run_id", metavar="RUN")
@click.argument("step", default="")
@click.option("--follow", is_flag=True, help="Go on until the run has ended. Ctrl-C leaves the run alone.")
@click.option("--after", metavar="CURSOR", default="", help="With --follow: begin after the entry with this cursor.")
@click.option("--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Most lines, from the beginning. Default: all.")
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
        with detachable(context, run_id, "logs --follow"):
            _follow(settings, run_id, step, after, timestamps=timestamps, reconnect_s=reconnect_s)
    elif settings.output == "table":
        _show_pages(settings, run_id, step, limit, timestamps=timestamps)
    else:
        entries = [plain(entry) for page in _pages(settings, run_id, step, limit) for entry in page]
        show_list(settings, entries, key="cursor", table=lambda _: None)


def _show_pages(settings: Settings, run_id: str, step: str, limit: int, *, timestamps: bool) -> None:
    """Show page by page: a log may be larger than the memory."""
    is_empty = True
    for page in _pages(settings, run_id, step, limit):
        for entry in page:
            is_empty = False
            click.echo(log_line(plain(entry), alone=bool(step), timestamps=timestamps))
    if is_empty:
        note(settings, "no logs; only steps with executors write some, and `run steps` tells which were reached")


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
                click.echo(f"reconnecting… ({safe_line(update.reason)})", err=True)
                continue
            for entry in update.entries:
                if settings.output == "table":
                    click.echo(log_line(plain(entry), alone=bool(step), timestamps=timestamps))
                else:
                    echo_json_line(plain(entry))


verbs = (_logs,)
