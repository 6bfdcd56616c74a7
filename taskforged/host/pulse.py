"""Whether the daemon makes progress: how late its event loop is, and how long the journal has been at one commit.

The loop is asked to do nothing ten times a second, and how late it does that is its lag. A thread beside it watches the
beats: when they stop, it logs where in the code the loop stands, which nobody could tell afterwards.

A process that was stopped and continued, or starved of the interpreter's lock, is not blocked in a place of ours. The
watching thread notices that it was late itself, and then says nothing of a place.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from taskforged.meters import SHORT_S, Histogram

__all__ = ["BEAT_S", "Pulse"]

_log = structlog.get_logger(__name__)

BEAT_S = 0.1
"""Between two beats: rare enough to cost nothing, often enough to see what a person would feel."""

LATE_S = 0.25
"""A lag worth a line in the log."""

QUIET_S = 10.0
"""Between two such lines; those left out are counted in the next one."""

_FRAMES_MAX = 40


class Pulse:
    """Watches the loop that it is started on.

    Args:
        commit_began: when the commit under way began, by `time.monotonic`; 0.0: there is none.
        stall_s: how long the loop may stand still before its place is logged; 0: for ever.
    """

    def __init__(self, commit_began: Callable[[], float], *, stall_s: float) -> None:
        self._commit_began = commit_began
        self._stall_s = stall_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._last_beat = 0.0
        self._logged_at = -QUIET_S
        self._unlogged = 0
        self.lag = Histogram(SHORT_S)
        self.last_lag_s = 0.0
        self.stalls = 0

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to beat on the running loop. Idempotent."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._last_beat = time.monotonic()
        self._handle = self._loop.call_later(BEAT_S, self._beat, self._last_beat + BEAT_S)
        if self._stall_s:
            self._over.clear()
            watch = threading.Thread(
                target=self._watch, args=(threading.get_ident(),), name="taskforged-pulse", daemon=True
            )
            watch.start()
            self._thread = watch

    def stop(self) -> None:
        """End. Idempotent."""
        self._over.set()
        if self._handle is not None:
            self._handle.cancel()
        if self._thread is not None:
            self._thread.join()
        self._loop = self._handle = self._thread = None

    # --- questions, from any thread ----------------------------------------------------------------------------------

    def loop_silence_s(self) -> float:
        """How long ago the loop last made progress; about BEAT_S at most when all is well."""
        return time.monotonic() - self._last_beat if self._loop is not None else 0.0

    def journal_silence_s(self) -> float:
        """How long the commit under way has taken so far; 0.0 when there is none."""
        began = self._commit_began()
        return time.monotonic() - began if began else 0.0

    def is_alive(self, within_s: float) -> bool:
        """Whether loop and journal have both made progress within so many seconds: what a watchdog wants to know."""
        return max(self.loop_silence_s(), self.journal_silence_s()) < within_s

    # --- on the loop -------------------------------------------------------------------------------------------------

    def _beat(self, due: float) -> None:
        now = time.monotonic()
        lag = max(0.0, now - due)
        self._last_beat = now
        self.last_lag_s = lag
        self.lag.observe(lag)
        if lag >= LATE_S:
            self._warn(now, lag)
        assert self._loop is not None
        self._handle = self._loop.call_later(BEAT_S, self._beat, now + BEAT_S)

    def _warn(self, now: float, lag: float) -> None:
        if now - self._logged_at < QUIET_S:
            self._unlogged += 1
            return
        _log.warning("loop.lagged", lag_s=round(lag, 3), others_since_last_line=self._unlogged)
        self._logged_at, self._unlogged = now, 0

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _watch(self, loop_thread: int) -> None:
        pause = min(1.0, self._stall_s / 4)
        told = 0.0
        while not self._over.is_set():
            asleep_at = time.monotonic()
            if self._over.wait(pause):
                return
            now = time.monotonic()
            beat = self._last_beat
            was_frozen = now - asleep_at > pause + self._stall_s / 2
            if now - beat - BEAT_S < self._stall_s or beat == told or was_frozen:
                continue
            told = beat
            self.stalls += 1
            _log.error("loop.blocked", blocked_s=round(now - beat, 3), stack=_stack_of(loop_thread))


def _stack_of(thread: int) -> list[str]:
    """Where a thread stands: file, line and function, outermost first, without any values."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001  the documented way to see another thread
    if frame is None:
        return []
    return [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_stack(frame)[-_FRAMES_MAX:]]
