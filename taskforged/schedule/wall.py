"""The local times that an expression matches, on a clock that never changes. No zones here.

A local time is a number: the seconds since 1970-01-01T00:00 as the clock on the wall shows them. Counting is
arithmetic over months and days, so that a year of every second costs as much as a year of every hour.
"""

from __future__ import annotations

import calendar
import datetime as dt
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

from taskforged.schedule.cron import Cron, month_kind

__all__ = ["DAY_S", "count", "walk", "year_of", "year_start"]

DAY_S = 86_400
_EPOCH = dt.date(1970, 1, 1).toordinal()


def year_of(seconds: int) -> int:
    """Answer the year of a local time."""
    return dt.date.fromordinal(seconds // DAY_S + _EPOCH).year


def year_start(year: int) -> int:
    """Answer the first second of a year."""
    return (dt.date(year, 1, 1).toordinal() - _EPOCH) * DAY_S


def count(cron: Cron, low: int, high: int) -> int:
    """Answer how many matching local times lie in [low, high)."""
    if low >= high:
        return 0
    low_day, low_second = divmod(low, DAY_S)
    high_day, high_second = divmod(high, DAY_S)
    each = len(cron.hours) * len(cron.minutes) * len(cron.seconds)
    found = _count_days(cron, low_day, high_day) * each
    if high_second and _count_days(cron, high_day, high_day + 1):
        found += _count_before(cron, high_second)
    if low_second and _count_days(cron, low_day, low_day + 1):
        found -= _count_before(cron, low_second)
    return found


def walk(cron: Cron, low: int, high: int, *, backwards: bool = False) -> Iterator[int]:
    """Yield the matching local times in [low, high), ascending or descending."""
    if low >= high:
        return
    for day in _walk_days(cron, low // DAY_S, (high - 1) // DAY_S + 1, backwards=backwards):
        start = day * DAY_S
        for second in _walk_seconds(cron, max(low - start, 0), min(high - start, DAY_S), backwards=backwards):
            yield start + second


def _count_before(cron: Cron, second: int) -> int:
    """Answer how many matching times of a day lie before its `second`."""
    hour, rest = divmod(second, 3600)
    minute, second = divmod(rest, 60)
    found = bisect_left(cron.hours, hour) * len(cron.minutes) * len(cron.seconds)
    if hour in cron.hours:
        found += bisect_left(cron.minutes, minute) * len(cron.seconds)
        if minute in cron.minutes:
            found += bisect_left(cron.seconds, second)
    return found


def _walk_seconds(cron: Cron, low: int, high: int, *, backwards: bool) -> Iterator[int]:
    """Yield the matching seconds of a day in [low, high)."""
    for hour in _within(cron.hours, low // 3600, (high - 1) // 3600, backwards=backwards):
        start = hour * 3600
        for minute in _within(cron.minutes, (low - start) // 60, (high - 1 - start) // 60, backwards=backwards):
            base = start + minute * 60
            for second in _within(cron.seconds, low - base, high - 1 - base, backwards=backwards):
                yield base + second


def _within(values: tuple[int, ...], low: int, high: int, *, backwards: bool) -> tuple[int, ...]:
    """Answer the values in [low, high]."""
    found = values[bisect_left(values, low) : bisect_left(values, high + 1)]
    return found[::-1] if backwards else found


def _count_days(cron: Cron, low: int, high: int) -> int:
    """Answer how many matching days lie in [low, high), counted from 1970-01-01."""
    return sum(len(days) for _, days in _months(cron, low, high, backwards=False))


def _walk_days(cron: Cron, low: int, high: int, *, backwards: bool) -> Iterator[int]:
    for before, days in _months(cron, low, high, backwards=backwards):
        for day in reversed(days) if backwards else days:
            yield before + day


def _months(cron: Cron, low: int, high: int, *, backwards: bool) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the day before each month and the matching days of the month that lie in [low, high)."""
    if low >= high:
        return
    first, last = (dt.date.fromordinal(day + _EPOCH) for day in (low, high - 1))
    numbers = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    for number in reversed(numbers) if backwards else numbers:
        if number % 12 + 1 not in cron.months:
            continue
        before, kind = _year(number // 12)[number % 12]
        days = cron.days[kind]
        if before + 1 < low or before + 31 >= high:
            days = _within(days, low - before, high - 1 - before, backwards=False)
        if days:
            yield before, days


@lru_cache(maxsize=1024)
def _year(year: int) -> tuple[tuple[int, int], ...]:
    """Answer for each month of a year the day before it, and its kind."""
    found = []
    for month in range(1, 13):
        weekday, length = calendar.monthrange(year, month)
        found.append((dt.date(year, month, 1).toordinal() - _EPOCH - 1, month_kind(length, (weekday + 1) % 7)))
    return tuple(found)
