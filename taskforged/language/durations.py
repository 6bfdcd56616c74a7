"""Durations as people write them: `500ms`, `30s`, `1h30m`, `2d`, or ISO 8601 (`PT1H30M`); and times in RFC 3339."""

from __future__ import annotations

import datetime as dt
import re

__all__ = ["DURATION_MAX_S", "DURATION_PATTERN", "INSTANT_PATTERN", "parse_duration", "parse_instant"]

DURATION_MAX_S = 366 * 86_400.0
"""Longest duration: a leap year. Longer waits are schedules, and floats stay exact to the millisecond below it."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIMPLE = r"(?:\d{1,9}d)?(?:\d{1,9}h)?(?:\d{1,9}m(?!s))?(?:\d{1,9}(?:\.\d{1,3})?s)?(?:\d{1,9}ms)?"
_ISO = r"P(?=[\dT])(?:\d{1,9}D)?(?:T(?=\d)(?:\d{1,9}H)?(?:\d{1,9}M)?(?:\d{1,9}(?:\.\d{1,3})?S)?)?"

DURATION_PATTERN = rf"^(?:(?=\d){_SIMPLE}|{_ISO})$"
"""What `parse_duration` reads, as a regular expression for editors."""

_DURATION = re.compile(DURATION_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])", re.ASCII)


def parse_duration(text: str) -> float:
    """Answer the seconds of a duration.

    Raises:
        ValueError: it is none, or longer than `DURATION_MAX_S`; the message tells how to write one.
    """
    if not _DURATION.match(text):
        raise ValueError(f"{text[:40]!r} is not a duration; write for example 500ms, 30s, 1h30m, 2d or PT1H30M")
    parts = _PART.findall(text.lower())
    seconds = round(sum(float(number) * _UNITS_S[unit] for number, unit in parts), 3)
    if seconds > DURATION_MAX_S:
        raise ValueError(f"{text!r} is longer than 366d")
    return seconds


INSTANT_PATTERN = r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$"
"""What `parse_instant` reads, as a regular expression for editors."""

_INSTANT = re.compile(INSTANT_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def parse_instant(text: str) -> int:
    """Answer the microseconds since 1970 of a time in RFC 3339; what is finer is cut off.

    Raises:
        ValueError: it is none, or lies before 1970; the message tells how to write one.
    """
    wrong = f"{text[:40]!r} is no time with its offset; write for example 2026-12-24T18:00:00Z or …T18:00:00+01:00"
    found = _INSTANT.match(text)
    if found is None:
        raise ValueError(wrong)
    fraction = found[1] or ""
    plain = text.upper().replace(fraction, "").replace("Z", "+00:00")
    try:
        micros = (dt.datetime.fromisoformat(plain) - _EPOCH) // dt.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(wrong) from None
    if micros < 0:
        raise ValueError(f"{text!r} lies before 1970")
    return micros + int(fraction[1:7].ljust(6, "0"))
