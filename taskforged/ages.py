"""How long something is kept, as settings and definitions write it: `30d`, `12h`, `45m`, `2w`, `1y`, `forever`."""

from __future__ import annotations

import re

__all__ = ["AGE_PATTERN", "parse_age"]

AGE_PATTERN = r"^(forever|0|[1-9][0-9]{0,8}[smhdwy])$"
"""What `parse_age` reads, as a regular expression for editors."""

_AGE = re.compile(AGE_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_AGE_MAX_S = 1000 * _UNITS_S["y"]


def parse_age(text: str) -> int:
    """Answer the seconds of an age; 0 stands for ever.

    Raises:
        ValueError: it is none; the message tells how to write one.
    """
    if not _AGE.match(text):
        raise ValueError(f"{text[:40]!r} is not an age; write for example 30d, 12h, 2w, 1y or forever")
    if text in {"forever", "0"}:
        return 0
    seconds = int(text[:-1]) * _UNITS_S[text[-1]]
    if seconds > _AGE_MAX_S:
        raise ValueError(f"{text!r} is longer than 1000y; write forever")
    return seconds
