"""What the verbs that begin a run have in common: leave it alone, wait for its end, or watch it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CliError
from taskforgectl.follow import TERMINAL, Interruption, Portion, follow
from taskforgectl.options import Settings
from taskforgectl.paging import reconnect_option
from taskforgectl.render.board import Board
from taskforgectl.render.output import Item, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.runs import show_whole
from taskforgectl.render.viewer import Viewer, open_viewer

__all__ = [
    "Outcome",
    "await_end",
    "conclude",
    "detachable",
    "exit_as",
    "get_run",
    "outcome_options",
    "show_run",
    "watch_run",
]

F = TypeVar("F", bound=Callable[..., Any])


class Outcome(NamedTuple):
    """What is to be seen of a new run."""

    wait: bool
    watch: bool
    reconnect_s: float


def outcome_options(function: F) -> F:
    """Add `--wait`, `--watch` and `--reconnect-timeout` to a verb, which gets them as `outcome`."""

    @click.option("--wait", is_flag=True, help="Wait for the end and show the run. Exit code 0 only if it succeeded.")
    @click.option("--watch", is_flag=True, help="Watch it live. Exit code 0 only if it succeeded.")
    @reconnect_option
    @functools.wraps(function)
    def wrapped(*args: Any, wait: bool, watch: bool, reconnect_s: float, **values: Any) -> Any:
        if wait and watch:
            raise CliError("--wait and --watch exclude each other", code=EXIT_USAGE)
        return function(*args, outcome=Outcome(wait, watch, reconnect_s), **values)

    return wrapped  # type: ignore[return-value]  # click reads the options, the signature is nobody else's


def conclude(
    context: click.Context,
    run: run_pb2.Run,
    outcome: Outcome,
    *,
    people: Callable[[Item], None],
    held: Callable[[], run_pb2.Run | None] = lambda: None,
) -> None:
    """Show of a new run what is wanted, and exit accordingly.

    Args:
        context: of the verb.
        run: as it was accepted.
        outcome: what is wanted.
        people: tells people about it when nothing more is wanted.
        held: answers the run as it ended by one call, if that can be.
    """
    settings: Settings = context.obj
    if outcome.watch:
        watch_run(context, run, after=0, reconnect_s=outcome.reconnect_s)
    elif outcome.wait:
        with detachable(context, run.id):
            ended = held()
            if ended is None or ended.state not in TERMINAL:
                ended = await_end(settings, run, outcome.reconnect_s)
            run = ended
        show_run(settings, run)
        exit_as(context, run)
    else:
        show_item(settings, plain(run), key="id", people=people)


def await_end(settings: Settings, run: run_pb2.Run, reconnect_s: float) -> run_pb2.Run:
    """Answer a run as it ended, with its steps."""
    with contextlib.closing(follow(settings, run.id, after=run.sequence, reconnect_s=reconnect_s)) as updates:
        for _ in updates:
            pass
    return get_run(settings, run.id)


def watch_run(context: click.Context, run: run_pb2.Run, *, after: int, reconnect_s: float) -> None:
    """Show what happens to a run until it ends, and exit as it did."""
    settings: Settings = context.obj
    refresh = functools.partial(get_run, settings, run.id)
    with detachable(context, run.id), open_viewer(settings, Board(run), refresh) as viewer:
        updates = follow(settings, run.id, after=after, reconnect_s=reconnect_s)
        with contextlib.closing(updates):  # cancels the call, also on Ctrl-C
            for update in updates:
                run = _show_update(viewer, run, update)
    exit_as(context, run)


def _show_update(viewer: Viewer, run: run_pb2.Run, update: Portion | Interruption) -> run_pb2.Run:
    if isinstance(update, Interruption):
        viewer.interrupted(update.reason)
        return run
    viewer.show(update.events, update.run)
    return update.run


@contextlib.contextmanager
def detachable(context: click.Context, run_id: str, verb: str = "watch") -> Iterator[None]:
    """Let Ctrl-C leave the run to itself."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"detached; come back with: taskforgectl run {verb} {run_id}", err=True)
        context.exit(EXIT_INTERRUPTED)


def exit_as(context: click.Context, run: run_pb2.Run) -> None:
    """Exit with 0 only if the run has succeeded."""
    context.exit(0 if run.state == run_pb2.Run.STATE_SUCCEEDED else EXIT_FAILED)


def get_run(settings: Settings, run_id: str) -> run_pb2.Run:
    """Answer a run with its steps."""
    with Connection(settings) as connection:
        return connection.ask(connection.stub(RunServiceStub).GetRun, pb.GetRunRequest(run_id=run_id)).run


def show_run(settings: Settings, run: run_pb2.Run) -> None:
    """Show a run with its steps."""
    show_item(settings, plain(run), key="id", people=lambda one: show_whole(settings, one))
