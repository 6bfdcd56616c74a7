"""A run's history and logs as they grow, across broken streams and restarts of the daemon: nothing lost or repeated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

from taskforge.v1 import event_service_pb2, run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import BROKEN, NotRunningError, RemoteError
from taskforgectl.options import Settings

__all__ = [
    "TERMINAL",
    "EventPortion",
    "Interruption",
    "LogPortion",
    "Portion",
    "follow",
    "follow_events",
    "follow_logs",
]

TERMINAL = frozenset(
    {
        run_pb2.Run.STATE_SUCCEEDED,
        run_pb2.Run.STATE_FAILED,
        run_pb2.Run.STATE_DEAD,
        run_pb2.Run.STATE_CANCELLED,
    }
)

_SAFE = "the run is safe on disk; once the daemon is back"

_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 2.0


class Portion(NamedTuple):
    """New events, oldest first, perhaps none, and the run after them."""

    events: Sequence[run_pb2.HistoryEvent]
    run: run_pb2.Run


class LogPortion(NamedTuple):
    """New entries of a log, oldest first, perhaps none."""

    entries: Sequence[run_pb2.LogEntry]


class EventPortion(NamedTuple):
    """New events, each with the cursor behind it, perhaps none, and the cursor behind everything seen so far.

    `removed` is how many were removed by retention before they could be seen.
    """

    entries: Sequence[event_service_pb2.WatchEventsResponse.Entry]
    cursor: str
    removed: int


class Interruption(NamedTuple):
    """The stream is broken; it is tried again."""

    reason: str


T = TypeVar("T")


def follow(
    settings: Settings, run_id: str, *, after: int, reconnect_s: float
) -> Generator[Portion | Interruption, None, None]:
    """Yield the history after a sequence number until the run has ended.

    Args:
        settings: where to connect. The run file is read anew each time: a new daemon may have another port.
        run_id: the run.
        after: the last sequence number already seen.
        reconnect_s: how long a broken stream may stay broken.

    Raises:
        CliError: the daemon refused, or stayed away for too long.
    """
    seen = after

    def attempt(connection: Connection) -> Generator[Portion | None, None, None]:
        nonlocal seen
        stub = connection.stub(RunServiceStub)
        request = pb.WatchRunRequest(run_id=run_id, after_sequence=seen)
        with contextlib.closing(connection.stream(stub.WatchRun, request)) as responses:
            for response in responses:
                seen = max(seen, response.run.sequence)
                yield Portion(response.events, response.run)
                if response.run.state in TERMINAL:
                    yield None
        # A watch from the last event on ends without a word. Only this tells it from a stream that was cut.
        run = connection.ask(stub.GetRun, pb.GetRunRequest(run_id=run_id)).run
        if run.state in TERMINAL and run.sequence <= seen:
            yield Portion((), run)
            yield None

    return _unbroken(settings, attempt, reconnect_s, lambda: f"{_SAFE}: taskforgectl run watch {run_id}")


def follow_logs(
    settings: Settings, run_id: str, *, step: str, after: str, reconnect_s: float
) -> Generator[LogPortion | Interruption, None, None]:
    """Yield the log entries after a cursor until the run has ended. Parameters and errors are those of `follow`.

    Args:
        settings: where to connect.
        run_id: the run.
        step: key of the only step to follow; empty: all.
        after: cursor of the last entry already seen; empty: from the beginning.
        reconnect_s: how long a broken stream may stay broken.
    """
    seen = after

    def attempt(connection: Connection) -> Generator[LogPortion | None, None, None]:
        nonlocal seen
        stub = connection.stub(RunServiceStub)
        request = pb.WatchRunLogsRequest(run_id=run_id, step=step, after_cursor=seen)
        with contextlib.closing(connection.stream(stub.WatchRunLogs, request)) as responses:
            for response in responses:
                if response.entries:
                    seen = response.entries[-1].cursor
                yield LogPortion(response.entries)
        run = connection.ask(stub.GetRun, pb.GetRunRequest(run_id=run_id)).run
        if run.state in TERMINAL:  # a stream that ends in order has sent everything
            yield None

    return _unbroken(settings, attempt, reconnect_s, lambda: f"{_SAFE}: taskforgectl run logs {run_id} --follow")


def follow_events(
    settings: Settings, wanted: event_service_pb2.EventFilter, *, after: str, reconnect_s: float
) -> Generator[EventPortion | Interruption, None, None]:
    """Yield events as they are decided, for ever. Parameters and errors are those of `follow`.

    Args:
        settings: where to connect.
        wanted: which events.
        after: the last cursor already seen; empty: from now on.
        reconnect_s: how long a broken stream may stay broken.
    """
    seen = after

    def attempt(connection: Connection) -> Generator[EventPortion | None, None, None]:
        nonlocal seen
        stub = connection.stub(EventServiceStub)
        request = event_service_pb2.WatchEventsRequest(filter=wanted, after_cursor=seen)
        with contextlib.closing(connection.stream(stub.WatchEvents, request)) as responses:
            for response in responses:
                seen = response.cursor
                yield EventPortion(response.entries, seen, response.removed)

    def hint() -> str:
        return f"once the daemon is back, go on with: taskforgectl event watch --after {seen}"

    return _unbroken(settings, attempt, reconnect_s, hint)


def _unbroken(
    settings: Settings,
    attempt: Callable[[Connection], Generator[T | None, None, None]],
    reconnect_s: float,
    hint: Callable[[], str],
) -> Generator[T | Interruption, None, None]:
    """Yield what streams bring, one after the other, until one says that all was seen.

    Args:
        settings: where to connect.
        attempt: yields what one stream brings, from where the last one stopped; None says that this was all.
        reconnect_s: how long a broken stream may stay broken.
        hint: answers how to go on later.
    """
    broken_at: float | None = None
    pause_s = _PAUSE_MIN_S
    while True:
        reason = "the stream ended early"
        try:
            with Connection(settings) as connection, contextlib.closing(attempt(connection)) as portions:
                for portion in portions:
                    if portion is None:
                        return
                    broken_at, pause_s = None, _PAUSE_MIN_S
                    yield portion
        except NotRunningError as error:
            reason = error.message
        except RemoteError as error:
            if error.status not in BROKEN:
                raise
            reason = error.message
        now = time.monotonic()
        broken_at = now if broken_at is None else broken_at
        if now - broken_at + pause_s > reconnect_s:
            raise _lost(reason, reconnect_s, hint())
        yield Interruption(reason)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)


def _lost(reason: str, reconnect_s: float, hint: str) -> RemoteError:
    error = RemoteError("UNAVAILABLE", f"lost the daemon for {reconnect_s:g} s: {reason}")
    error.hint = hint
    return error
