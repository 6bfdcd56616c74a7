"""The due times of a schedule: each UTC instant once, whatever the clocks do.

Fixed-time jobs (neither minute nor hour starts with `*`) mean a time of day: what a gap skips runs at the first instant
after it, what a fold repeats runs once. All others mean an interval and follow real time. These are the rules of
Debian's cron; `docs/cron.md` has them as a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from taskforged.schedule import wall
from taskforged.schedule.cron import Cron
from taskforged.schedule.zones import Kind, Piece, pieces

__all__ = ["HORIZON_YEARS", "Schedule", "Slot", "count_slots", "jitter_us", "slots_after", "slots_before"]

SECOND_US = 1_000_000

HORIZON_YEARS = 60
"""How long a search goes on without a slot. The rarest day, a 29 February on a given weekday, is 40 years apart."""

_YEAR_END = 3000
"""Where time ends: what a clock far in the future may cost stays bounded."""

_TIME_END = wall.year_start(_YEAR_END)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a trigger is due.

    Attributes:
        cron: The local times.
        zone: The IANA time zone in which they are local.
        gap: A fixed time that the clocks jump over: `shift` to the first instant after it, or `skip`.
        fold: A fixed time that occurs twice: `first`, `last`, `both`.
        start_at: First possible due time, microseconds since 1970 UTC; 0: no bound.
        end_at: What is due from here on is not; 0: no bound.
        delay_us: Constant pause between the due time and the time at which it fires.
    """

    cron: Cron
    zone: str = "UTC"
    gap: str = "shift"
    fold: str = "first"
    start_at: int = 0
    end_at: int = 0
    delay_us: int = 0

    def __post_init__(self) -> None:
        if self.gap not in {"shift", "skip"} or self.fold not in {"first", "last", "both"} or self.delay_us < 0:
            raise ValueError("gap is shift or skip, fold is first, last or both, delay_us is not negative")


class Slot(NamedTuple):
    """One due time; `dst` says what the clocks did: `gap` (moved out of one), `fold` (the local time occurs twice)."""

    due_at: int
    dst: str


def slots_after(schedule: Schedule, after: int, limit: int) -> list[Slot]:
    """Answer the next slots with due_at > after, ascending; fewer than `limit` if there are no more."""
    low, high = _window(schedule, after, None)
    return list(islice(_walk(schedule, low, high, backwards=False), max(limit, 0)))


def slots_before(schedule: Schedule, after: int, until: int, limit: int) -> list[Slot]:
    """Answer the newest slots with after < due_at <= until, ascending."""
    low, high = _window(schedule, after, until)
    return list(islice(_walk(schedule, low, high, backwards=True), max(limit, 0)))[::-1]


def count_slots(schedule: Schedule, after: int, until: int) -> int:
    """Answer how many slots have after < due_at <= until, by arithmetic over days."""
    low, high = _window(schedule, after, until)
    return sum(_count(schedule, *part) for year in _years(low, high) for part in _parts(schedule, year, low, high))


def jitter_us(identity: str, jitter_s: float) -> int:
    """Answer the delay of a trigger, 0 <= delay < jitter: a hash, so that it is the same for each slot and machine."""
    draw = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    return draw * max(round(jitter_s * SECOND_US), 0) >> 64


def _window(schedule: Schedule, after: int, until: int | None) -> tuple[int, int]:
    """Answer the whole seconds [low, high) in which slots may lie."""
    low = max(after // SECOND_US + 1, -(-schedule.start_at // SECOND_US), 0)
    high = _TIME_END if until is None else min(until // SECOND_US + 1, _TIME_END)
    if schedule.end_at:
        high = min(high, -(-schedule.end_at // SECOND_US))
    return low, high


def _years(low: int, high: int) -> range:
    return range(wall.year_of(low), wall.year_of(high - 1) + 1) if low < high else range(0)


def _walk(schedule: Schedule, low: int, high: int, *, backwards: bool) -> Iterator[Slot]:
    years = _years(low, high)
    empty = 0
    for year in reversed(years) if backwards else years:
        empty += 1
        for slot in _walk_year(schedule, year, low, high, backwards=backwards):
            empty = 0
            yield slot
        if empty > HORIZON_YEARS:
            return


def _walk_year(schedule: Schedule, year: int, low: int, high: int, *, backwards: bool) -> Iterator[Slot]:
    parts = _parts(schedule, year, low, high)
    for piece, first, last in reversed(parts) if backwards else parts:
        if piece.kind is Kind.GAP:
            if _count(schedule, piece, first, last):
                yield Slot((piece.high - piece.offset) * SECOND_US, "gap")
            continue
        dst = "" if piece.kind is Kind.PLAIN else "fold"
        for local in wall.walk(schedule.cron, first, last, backwards=backwards):
            yield Slot((local - piece.offset) * SECOND_US, dst)


def _count(schedule: Schedule, piece: Piece, first: int, last: int) -> int:
    """Answer how many slots the local times [first, last) of a piece give."""
    if piece.kind is not Kind.GAP:
        return wall.count(schedule.cron, first, last)
    # Whatever the gap skips is due at one instant; if that has a slot of its own, it is the same slot.
    own = wall.count(schedule.cron, last, last + 1)
    return int(not own and wall.count(schedule.cron, first, last) > 0)


def _parts(schedule: Schedule, year: int, low: int, high: int) -> list[tuple[Piece, int, int]]:
    """Answer the pieces of a UTC year that have slots, each with its local times within the UTC times [low, high)."""
    found = []
    dropped = _dropped(schedule)
    for piece in pieces(schedule.zone, year):
        if piece.kind in dropped:
            continue
        if piece.kind is Kind.GAP:
            if low <= piece.high - piece.offset < high:
                found.append((piece, piece.low, piece.high))
            continue
        first, last = max(piece.low, low + piece.offset), min(piece.high, high + piece.offset)
        if first < last:
            found.append((piece, first, last))
    return found


def _dropped(schedule: Schedule) -> tuple[Kind, ...]:
    """Answer the kinds of pieces that give no slots."""
    if not schedule.cron.fixed_time:
        return (Kind.GAP,)
    gap = (Kind.GAP,) if schedule.gap == "skip" else ()
    fold = {"first": (Kind.SECOND,), "last": (Kind.FIRST,), "both": ()}[schedule.fold]
    return (*gap, *fold)
