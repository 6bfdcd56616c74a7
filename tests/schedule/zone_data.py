"""The offset changes of every zone, found without the code under test."""

from __future__ import annotations

import datetime as dt
import functools
import importlib.resources
import pathlib
import struct
import zoneinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

DAY_S = 86_400
NAMES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})


class Change(NamedTuple):
    at: int
    before: int
    after: int

    @property
    def local(self):
        """The local time of day at which it happens."""
        return (self.at + self.before) % DAY_S

    @property
    def width(self):
        return self.after - self.before


def utc(text):
    return int(dt.datetime.fromisoformat(text).timestamp())


def offset(zone, at):
    return int(dt.datetime.fromtimestamp(at, zone).utcoffset().total_seconds())


def changes(name, low, high):
    """Looks each three days, and halves."""
    zone, found = ZoneInfo(name), []
    before = offset(zone, low)
    for end in range(low + 3 * DAY_S, high, 3 * DAY_S):
        after = offset(zone, end)
        if after != before:
            start, stop = end - 3 * DAY_S, end
            while stop - start > 1:
                middle = (start + stop) // 2
                start, stop = (middle, stop) if offset(zone, middle) == before else (start, middle)
            found.append(Change(stop, before, after))
        before = after
    return found


@functools.cache
def ten_years():
    """Each distinct change of 2020 to 2030, with one of the zones that have it."""
    found = {}
    for name in NAMES:
        for change in changes(name, utc("2020-01-01T00:00:00+00:00"), utc("2030-01-01T00:00:00+00:00")):
            found.setdefault(change, name)
    return found


@functools.cache
def shapes():
    """One change for each (local time, offset before, offset after): the rules see no other difference."""
    found = {}
    for change, name in ten_years().items():
        found.setdefault((change.local, change.before, change.after), (change, name))
    return [*found.values()]


def stored_changes(name):
    """The changes that are written in the zone's file; what follows its last one is a yearly rule."""
    data = _file(name)
    _, _, _, times, types, chars = header = struct.unpack(">6l", data[20:44])
    second = 44 + times * 5 + types * 6 + chars + header[2] * 8 + header[1] + header[0]
    times = struct.unpack(">l", data[second + 32 : second + 36])[0]
    at = second + 44
    instants = struct.unpack(f">{times}q", data[at : at + 8 * times])
    kinds = data[at + 8 * times : at + 9 * times]
    table = at + 9 * times
    offsets = [struct.unpack(">l", data[table + 6 * kind : table + 6 * kind + 4])[0] for kind in kinds]
    return [
        Change(when, before, after)
        for when, before, after in zip(instants[1:], offsets, offsets[1:], strict=False)
        if before != after
    ]


def _file(name):
    for folder in zoneinfo.TZPATH:
        if (path := pathlib.Path(folder, name)).is_file():
            return path.read_bytes()
    return importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
