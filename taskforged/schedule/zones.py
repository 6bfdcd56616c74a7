"""Time zones: which local times a zone has, skips and repeats.

A zone is cut into pieces. In an ordinary piece the clock runs; each change of the UTC offset adds the local times that
are skipped (a gap) or the two passes through those that occur twice (a fold). Nothing here knows why an offset changes:
Lord Howe's 30 minutes, Troll's two hours and Apia's missing day are the same to it.
"""

from __future__ import annotations

import datetime as dt
import difflib
import zoneinfo
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from taskforged.schedule.wall import DAY_S, year_start

__all__ = ["Kind", "Piece", "ZoneError", "is_transition_day", "load_zone", "local_text", "pieces"]

_NAME_MAX = 64
_NOT_PLACES = frozenset({"localtime", "Factory", "posixrules"})
"""Names in the folder of zones that depend on the machine, or mean that none was chosen."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class ZoneError(ValueError):
    """A name that is no time zone.

    Attributes:
        message: What is wrong, with the nearest names.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Kind(IntEnum):
    """What the local times of a piece are."""

    PLAIN = 0
    FIRST = 1
    """They occur twice; this is the first pass."""
    SECOND = 2
    GAP = 3
    """They do not occur: the clock jumps over them."""


class Piece(NamedTuple):
    """Local times in [low, high); the UTC time is local - offset. A gap ends at its UTC instant, high - offset."""

    low: int
    high: int
    offset: int
    kind: Kind


class _Change(NamedTuple):
    at: int
    before: int
    after: int


@lru_cache(maxsize=1024)
def load_zone(name: str) -> ZoneInfo:
    """Answer an IANA time zone by its name, written as IANA writes it.

    Raises:
        ZoneError: There is none; the message names the nearest ones.
    """
    # By the list and not by trying: a file system that ignores case would find europe/berlin, and a path anything.
    if name not in _names():
        raise ZoneError(f"{name[:_NAME_MAX]!r} is no IANA time zone{_hint(name)}")
    try:
        return ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ZoneError(f"the data of the time zone {name!r} cannot be read: {error}") from error


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NOT_PLACES


def _hint(name: str) -> str:
    if name[:1] in {"+", "-"} or name[:4] in {"UTC+", "UTC-", "GMT+", "GMT-"}:
        return "; an offset does not know when clocks change: write for example Europe/Berlin, or UTC"
    wanted = name[:_NAME_MAX].strip().replace(" ", "_").lower()
    places = {known.lower(): known for known in sorted(_names())}
    if wanted in places:
        return f"; did you mean {places[wanted]}?"
    ends = {known.lower().rpartition("/")[2]: known for known in sorted(_names())}
    near = difflib.get_close_matches(wanted, places, n=1, cutoff=0.75)
    found = places[near[0]] if near else None
    if found is None:
        near = difflib.get_close_matches(wanted.rpartition("/")[2], ends, n=1, cutoff=0.75)
        found = ends[near[0]] if near else None
    return f"; did you mean {found}?" if found else "; write for example Europe/Berlin, or UTC"


def utc_text(due_at: int) -> str:
    """Answer a due time in UTC: `2026-11-22T02:00:00Z`. Due times fall on whole seconds; a fraction is cut off."""
    return _local(due_at, "UTC").isoformat(timespec="seconds").replace("+00:00", "Z")


def local_text(due_at: int, zone: str) -> str:
    """Answer a time as a clock of the zone shows it, with its offset: `2026-11-22T03:00:00+01:00`."""
    return _local(due_at, zone).isoformat(timespec="seconds")


def _local(due_at: int, zone: str) -> dt.datetime:
    return (_EPOCH + dt.timedelta(microseconds=due_at)).astimezone(load_zone(zone))


def is_transition_day(due_at: int, zone: str) -> bool:
    """Whether the zone's UTC offset changes on the local day of a time."""
    seconds = due_at // 1_000_000
    day = (seconds + _offset(load_zone(zone), seconds)) // DAY_S
    # A day lasts at most two days: Kwajalein repeated nearly all of one.
    for change in _changes(zone, seconds - 3 * DAY_S, seconds + 3 * DAY_S):
        low, high = sorted((change.at + change.before, change.at + change.after))
        # A gap ends on the day of its first valid instant, a fold on that of the last repeated one.
        last = high if change.after > change.before else high - 1
        if low // DAY_S <= day <= last // DAY_S:
            return True
    return False


@lru_cache(maxsize=8192)
def pieces(zone: str, year: int) -> tuple[Piece, ...]:
    """Answer the pieces of a UTC year, ascending."""
    start, end = year_start(year), year_start(year + 1)
    found: list[Piece] = []
    at = start
    offset = _offset(load_zone(zone), start)
    # Three days more, for a fold that reaches over the end of the year.
    for change in _changes(zone, start - 3 * DAY_S, end + 3 * DAY_S):
        width = change.before - change.after
        if width < 0 and start <= change.at < end:
            found += _plain(at, change.at, change.before)
            found.append(Piece(change.at + change.before, change.at + change.after, change.after, Kind.GAP))
            at = change.at
        elif width > 0:
            found += _plain(at, min(change.at - width, end), change.before)
            found += _pass(max(change.at - width, at), min(change.at, end), change.before, Kind.FIRST)
            found += _pass(max(change.at, start), min(change.at + width, end), change.after, Kind.SECOND)
            at = max(at, min(change.at + width, end))
        offset = change.after if change.at < end else offset
    return (*found, *_plain(at, end, offset))


def _plain(low: int, high: int, offset: int) -> list[Piece]:
    return _pass(low, high, offset, Kind.PLAIN)


def _pass(low: int, high: int, offset: int, kind: Kind) -> list[Piece]:
    return [Piece(low + offset, high + offset, offset, kind)] if low < high else []


def _changes(zone: str, low: int, high: int) -> list[_Change]:
    """Answer the changes of the offset in (low, high).

    One look a day misses none: no zone changed twice in less than six days since 1970 (`test_zones` holds that).
    """
    place = load_zone(zone)
    found = []
    before = _offset(place, low)
    for at in range(low + DAY_S, high + DAY_S, DAY_S):
        after = _offset(place, min(at, high))
        if after != before:
            found.append(_Change(_bisect(place, at - DAY_S, min(at, high), before), before, after))
        before = after
    return found


def _bisect(place: ZoneInfo, low: int, high: int, before: int) -> int:
    """Answer the first instant in (low, high] that no longer has the offset."""
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(place, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _offset(place: ZoneInfo, seconds: int) -> int:
    offset = dt.datetime.fromtimestamp(seconds, place).utcoffset()
    assert offset is not None
    return offset.days * DAY_S + offset.seconds
