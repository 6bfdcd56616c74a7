"""The one form of ids: they sort by time."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["ENTROPY_BYTES", "sortable_id"]

ENTROPY_BYTES = 9
"""How many bytes an id takes besides its time; of the last one the two lowest bits are left out."""

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]
_MILLIS = (1 << 48) - 1


def sortable_id(kind: str, at: int, entropy: bytes) -> str:
    """Answer `<kind>_` and 26 lower-case Crockford base32 characters that sort by time.

    Layout of UUID version 7 (RFC 9562): 48 bits of milliseconds, then 80 bits of which 74 are random there; here the
    version bits carry microseconds and the rest is `entropy`, because nothing outside parses the id.

    Args:
        kind: `run`, `evt`, `wf`, …
        at: microseconds since 1970.
        entropy: `ENTROPY_BYTES`, random or a hash.
    """
    millis, micros = divmod(at, 1000)
    number = int.from_bytes(entropy, "big") >> 2
    rest = [_PAIRS[number >> shift & 1023] for shift in (60, 50, 40, 30, 20, 10, 0)]
    return f"{kind}_{_beginning(millis & _MILLIS)}{_PAIRS[micros]}{''.join(rest)}"


@lru_cache(maxsize=64)
def _beginning(millis: int) -> str:
    """Answer the ten characters of the milliseconds, which many ids share."""
    return "".join([_PAIRS[millis >> shift & 1023] for shift in (40, 30, 20, 10, 0)])
