"""Time and identity, the two things that logic must be handed and never take by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["Clock", "new_id"]

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]


class Clock:
    """The wall clock in microseconds since 1970 (UTC), made monotonic: within a process it never runs backwards."""

    __slots__ = ("_last", "_source")

    def __init__(self, source: Callable[[], int] = time.time_ns) -> None:
        self._source = source
        self._last = 0

    def now(self) -> int:
        """Answer the present, never less than what was answered before."""
        self._last = max(self._last, self._source() // 1000)
        return self._last


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
