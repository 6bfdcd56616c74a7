"""Time and identity, the two things that logic must be handed and never take by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["Clock", "new_id"]

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]


_STAND_STILL_US = 1_000_000


class Clock:
    """The wall clock in microseconds since 1970 (UTC), made monotonic: within a process it never runs backwards.

    A clock that is set back by little stands still until time has caught up. One that is set back by more goes on
    from where it was, ahead of the wall, so that retries and timers do not wait for an hour to come again.
    """

    __slots__ = ("_ahead", "_last", "_source")

    def __init__(self, source: Callable[[], int] = time.time_ns) -> None:
        self._source = source
        self._last = 0
        self._ahead = 0

    def now(self) -> int:
        """Answer the present, never less than what was answered before."""
        wall = self._source() // 1000
        if wall >= self._last:
            self._ahead = 0
        elif self._last - wall - self._ahead > _STAND_STILL_US:
            self._ahead = self._last - wall
        self._last = max(self._last, wall + self._ahead)
        return self._last

    def wall(self) -> int:
        """Answer what the wall clock shows, also when it was set back: what due times are measured by."""
        return self._source() // 1000


def new_id(kind: str, at: int) -> str:
    """Answer `<kind>_` and 26 lower-case Crockford base32 characters that sort by time.

    Layout of UUID version 7 (RFC 9562): 48 bits of milliseconds, then 80 bits of which 74 are random there; here the
    version bits carry microseconds and the rest is random, because nothing outside parses the id.

    Args:
        kind: `run`, `evt`, `wf`, …
        at: microseconds since 1970.
    """
    millis, micros = divmod(at, 1000)
    number = (millis & (1 << 48) - 1) << 80 | micros << 70 | int.from_bytes(os.urandom(9), "big") >> 2
    return f"{kind}_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
