"""Time and identity, the two things that logic must be handed and never take by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from taskforged.ids import ENTROPY_BYTES, sortable_id

__all__ = ["Clock", "new_id"]

_STAND_STILL_US = 1_000_000


def _elapsed_ns() -> int:
    """Time that has passed on this machine, also while it slept, whoever sets its clock meanwhile."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """The wall clock in microseconds since 1970 (UTC), made monotonic: within a process it never runs backwards.

    A clock that is set back by little stands still until time has caught up. One that is set back by more goes on
    from where it was, ahead of the wall, so that retries and timers do not wait for an hour to come again. One that is
    set forward is followed at once; who measures pauses by it is told before anybody sees the new time (`watch`).
    """

    __slots__ = ("_ahead", "_elapsed", "_last", "_on_jump", "_seen", "_source")

    def __init__(self, source: Callable[[], int] = time.time_ns, elapsed: Callable[[], int] = _elapsed_ns) -> None:
        self._source = source
        self._elapsed = elapsed
        self._last = 0
        self._ahead = 0
        self._seen = 0
        self._on_jump: Callable[[int, int], bool] | None = None

    def watch(self, on_jump: Callable[[int, int], bool] | None) -> None:
        """Call this when the clock jumps forward by more than a second: with by how much, and to when.

        It answers whether it has taken note. If not, time stands still until it does.
        """
        self._on_jump = None
        self.now()
        self._seen = self._elapsed() // 1000
        self._on_jump = on_jump

    def now(self) -> int:
        """Answer the present, never less than what was answered before."""
        wall = self._source() // 1000
        if wall >= self._last:
            self._ahead = 0
        elif self._last - wall - self._ahead > _STAND_STILL_US:
            self._ahead = self._last - wall
        now = max(self._last, wall + self._ahead)
        if self._on_jump is not None:
            passed = self._elapsed() // 1000
            jump = now - self._last - (passed - self._seen)
            if jump > _STAND_STILL_US and not self._on_jump(jump, now):
                return self._last
            self._seen = passed
        self._last = now
        return now

    def wall(self) -> int:
        """Answer what the wall clock shows, also when it was set back: what due times are measured by."""
        return self._source() // 1000


def new_id(kind: str, at: int) -> str:
    """Answer an id that nobody can guess; see `sortable_id`."""
    return sortable_id(kind, at, os.urandom(ENTROPY_BYTES))
