"""Points in time and spans from the command line."""

from __future__ import annotations

import datetime as dt
import re

from google.protobuf.timestamp_pb2 import Timestamp

from taskforgectl.errors import EXIT_USAGE, CliError

__all__ = ["parse_span", "parse_time"]

_PART = re.compile(r"([0-9]{1,9})(ms|[smhdw])")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN_MAX_S = 10 * 366 * 86_400


def parse_span(text: str, option: str) -> dt.timedelta:
    """Answer a span, written as in definitions: `500ms`, `30s`, `1h30m`, and `2d`, `4w` as well.

    Raises:
        CliError: it is none, or is longer than ten years.
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise _wrong(option, text, "a span", "for example 30s, 90m, 1h30m, 2d")
    seconds = sum(int(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds > _SPAN_MAX_S:
        raise _wrong(option, text, "a span of at most ten years", "for example 30s, 90m, 1h30m, 2d")
    return dt.timedelta(seconds=seconds)


def parse_time(text: str, option: str, now: dt.datetime) -> Timestamp:
    """Answer a point in time: ISO 8601, local unless it names a zone, or `+SPAN` from now, or `-SPAN` before now.

    Args:
        text: what was typed.
        option: where, for the message.
        now: the present, with a zone.

    Raises:
        CliError: it is none of these.
    """
    stamp = Timestamp()
    if text[:1] in {"+", "-"}:
        span = parse_span(text[1:], option)
        stamp.FromDatetime(now + span if text[0] == "+" else now - span)
        return stamp
    try:
        stamp.FromDatetime(dt.datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError, OSError):
        hint = "for example 2030-01-31T18:00 (local), 2030-01-31T18:00Z, +90m from now, -2d before now"
        raise _wrong(option, text, "a time", hint) from None
    return stamp


def _wrong(option: str, text: str, kind: str, hint: str) -> CliError:
    return CliError(f"{option} {text!r} is not {kind}", hint=hint, code=EXIT_USAGE)
