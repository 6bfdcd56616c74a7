"""Due times, and what became of them, for people."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence

from taskforgectl.options import Settings
from taskforgectl.render.output import Item
from taskforgectl.render.tables import Column, few, filled, lasting, show_table

__all__ = ["due_time_note", "show_due_times", "show_slots", "zoned"]

_FORM = "%a %Y-%m-%d %H:%M:%S"


# --- times -----------------------------------------------------------------------------------------------------------


def zoned(stamp: str) -> str:
    """Answer an RFC 3339 time in its own zone, with weekday and offset; what is none as it is."""
    time = _time(stamp)
    return stamp if time is None else f"{time.strftime(_FORM)} {time.replace(microsecond=0).isoformat()[19:]}"


def _utc(stamp: str) -> str:
    """Answer an RFC 3339 time in UTC to the second; what is none as it is."""
    time = _time(stamp)
    return stamp if time is None else time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(stamp: str) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _zone(name: str) -> dt.tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):  # unknown here, or a name that is no file's
        return None


# --- due times -------------------------------------------------------------------------------------------------------


def show_due_times(settings: Settings, due_times: Sequence[Item], zone: str, *, empty: str) -> None:
    """Show due times in their own zone and in UTC, with what the clocks do to them."""
    columns = [
        Column(f"DUE ({zone})" if zone else "DUE", lambda one: zoned(one["local_time"])),
        Column("UTC", lambda one: _utc(one["due_time"])),
        Column("FIRES", _fires),
        Column("NOTE", lambda one: due_time_note(one, zone)),
    ]
    show_table(settings, due_times, filled(columns, due_times, columns[0].title, "UTC"), empty=empty)


def _fires(due_time: Item) -> str:
    """Answer when it fires where that is later than it is due."""
    fires = due_time.get("fire_time")
    return _utc(fires) if fires and fires != due_time["due_time"] else ""


def due_time_note(due_time: Item, zone: str) -> str:
    """Answer what the clocks do to a due time; empty on ordinary days."""
    if due_time.get("dst") == "gap":
        return "moved out of the gap"
    if due_time.get("dst") == "fold":
        return _turn(due_time["local_time"], zone)
    return "clocks change that day" if due_time.get("transition") else ""


def _turn(local: str, zone: str) -> str:
    """Answer which one it is of a local time that the clock shows twice."""
    time, known = _time(local), _zone(zone)
    if time is None or known is None:
        return "one of two"
    is_first = time.replace(tzinfo=known, fold=0).utcoffset() == time.utcoffset()
    return "first of two" if is_first else "second of two"


# --- slots -----------------------------------------------------------------------------------------------------------


def show_slots(settings: Settings, slots: Sequence[Item], zone: str, *, empty: str) -> None:
    """Show entries of the ledger. `zone` is the schedule's; without it a range ends in the offset that it begins in."""
    columns = [
        Column("DUE", lambda one: _due(one, zone)),
        Column("OUTCOME", lambda one: one["outcome"]),
        Column("LATE", lambda one: lasting(one["late"])),
        Column("BACKFILL", lambda one: "yes" if one["backfill"] else ""),
        Column("RUNS", lambda one: few(one["run_ids"])),
        Column("REASON", lambda one: one["reason"]),
    ]
    show_table(settings, slots, filled(columns, slots, "DUE", "OUTCOME"), empty=empty)


def _due(slot: Item, zone: str) -> str:
    first = zoned(slot["local_time"])
    if slot["count"] <= 1:
        return first
    last = _time(slot["last_due_time"] or "")
    begin = _time(slot["local_time"])
    place = _zone(zone) or (begin.tzinfo if begin else dt.UTC)
    end = zoned(last.astimezone(place).isoformat()) if last else ""
    return f"{first} .. {end} ({slot['count']:,} due times)"
