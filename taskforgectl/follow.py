"""A run's history as it grows, across broken streams and restarts of the daemon: nothing lost, nothing repeated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import CliError, NotRunningError, RemoteError
from taskforgectl.options import Settings

__all__ = ["TERMINAL", "Interruption", "Portion", "follow"]

TERMINAL = frozenset(
    {
        run_pb2.Run.STATE_SUCCEEDED,
        run_pb2.Run.STATE_FAILED,
        run_pb2.Run.STATE_DEAD,
        run_pb2.Run.STATE_CANCELLED,
    }
)

_BROKEN = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"})
"""How a stream ends whose daemon is killed, stops or hangs. Anything else is an answer."""

_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 2.0


class Portion(NamedTuple):
    """New events, oldest first, perhaps none, and the run after them."""

    events: Sequence[run_pb2.HistoryEvent]
    run: run_pb2.Run


class Interruption(NamedTuple):
    """The stream is broken; it is tried again."""

    reason: str


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
    broken_at: float | None = None
    pause_s = _PAUSE_MIN_S
    while True:
        try:
            with contextlib.closing(_stream(settings, run_id, after)) as portions:
                for portion in portions:
                    broken_at, pause_s = None, _PAUSE_MIN_S
                    after = max(after, portion.run.sequence)
                    yield portion
                    if portion.run.state in TERMINAL:
                        return
            reason = "the stream ended early"
        except NotRunningError as error:
            reason = error.message
        except RemoteError as error:
            if error.status not in _BROKEN:
                raise
            reason = error.message
        now = time.monotonic()
        broken_at = now if broken_at is None else broken_at
        if now - broken_at + pause_s > reconnect_s:
            raise _lost(run_id, reason, reconnect_s)
        yield Interruption(reason)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)


def _stream(settings: Settings, run_id: str, after: int) -> Generator[Portion, None, None]:
    with Connection(settings) as connection:
        stub = connection.stub(RunServiceStub)
        request = pb.WatchRunRequest(run_id=run_id, after_sequence=after)
        with contextlib.closing(connection.stream(stub.WatchRun, request)) as responses:
            for response in responses:
                yield Portion(response.events, response.run)
        # A watch from the last event on ends without a word. Only this tells it from a stream that was cut.
        run = connection.ask(stub.GetRun, pb.GetRunRequest(run_id=run_id)).run
        if run.state in TERMINAL and run.sequence <= after:
            yield Portion((), run)


def _lost(run_id: str, reason: str, reconnect_s: float) -> CliError:
    error = RemoteError("UNAVAILABLE", f"lost the daemon for {reconnect_s:g} s: {reason}")
    error.hint = f"the run is safe on disk; once the daemon is back: taskforgectl run watch {run_id}"
    return error
