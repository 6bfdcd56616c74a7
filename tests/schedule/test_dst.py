"""Clock changes: every change of ten years against cronsim, and named ones as vectors.

Where we differ from cronsim 2.8, and why we are right (also in docs/cron.md):

1. Interval jobs at a change that is no whole hour, or not on a full hour (Lord Howe 30 minutes, Casey at 00:01, Chatham
   at 03:45): cronsim steps through hours by 3600 s from the beginning of one, so that it enters the next hour in its
   middle and misses what lies before; on `* 3 * * *` in Chatham it never returns. We give those slots, and the
   definition by every minute agrees with us.
2. Six fields: cronsim applies no rule for fixed times. We do: seconds change nothing about what 02:30 means.
3. A gap that ends within a minute (Monrovia 1972, 00:44:30): cronsim takes the next full minute, we the first instant.
"""

import datetime as dt
import itertools
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from schedule.zone_data import DAY_S, shapes, ten_years, utc

from taskforged.schedule import Schedule, count_slots, load_zone, local_text, parse_cron, slots_after, slots_before

US = 1_000_000
FIXED = ["30 2 * * *", "0 0 * * *", "15,45 1-3 * * *", "0 0,12 * * *", "30 23 * * SUN", "0-59/10 0-23/2 * * *"]
INTERVALS = [
    "*/20 * * * *",
    "30 * * * *",
    "0 */2 * * *",
    "0 */3 * * *",
    "*/30 0-3 * * *",
    "17 */6 * * SUN",
    "*/10 2 * * *",
    "* 3 * * *",
]


def ours(schedule, low, high):
    """The due times in (low, high], in seconds."""
    slots = slots_before(schedule, low * US, high * US, 100_000)
    assert all(slot.due_at % US == 0 for slot in slots)
    return [slot.due_at // US for slot in slots]


def cronsim(expression, name, low, high):
    moments = (
        int(moment.timestamp()) for moment in CronSim(expression, dt.datetime.fromtimestamp(low, ZoneInfo(name)))
    )
    return list(itertools.takewhile(lambda at: at <= high, moments))


@pytest.mark.parametrize("expression", FIXED)
def test_fixed_times_as_cronsim_in_every_change(expression):
    cron = parse_cron(expression)
    assert cron.fixed_time
    for change, name in ten_years().items():
        low, high = change.at - DAY_S, change.at + DAY_S
        wanted = cronsim(expression, name, low, high)
        assert ours(Schedule(cron, name), low, high) == wanted, (name, change)
        assert count_slots(Schedule(cron, name), low * US, high * US) == len(wanted), (name, change)


@pytest.mark.parametrize("expression", INTERVALS)
def test_intervals_as_cronsim_in_every_shape_of_change(expression):
    cron = parse_cron(expression)
    assert not cron.fixed_time
    for change, name in shapes():
        low, high = change.at - DAY_S, change.at + DAY_S
        if expression == "* 3 * * *" and change.local == 13_500:
            continue  # cronsim would not return
        found, theirs = ours(Schedule(cron, name), low, high), cronsim(expression, name, low, high)
        if change.width % 3600 == 0 and change.local % 3600 == 0:
            assert found == theirs, (name, change)
        else:
            assert set(found) >= set(theirs), (name, change)  # difference 1


def test_intervals_by_definition():
    """Every minute of which the local time matches, and no other; the fields are those that cronsim reads."""
    crons = [(parse_cron(text), CronSim(text, dt.datetime(2026, 1, 1))) for text in INTERVALS]
    for change, name in shapes():
        low, high = change.at - 12 * 3600, change.at + 12 * 3600
        minutes = [
            (at, dt.datetime.fromtimestamp(at, ZoneInfo(name))) for at in range(low - low % 60 + 60, high + 1, 60)
        ]
        for cron, theirs in crons:
            wanted = [
                at
                for at, local in minutes
                if local.minute in theirs.minutes and local.hour in theirs.hours and theirs.match_day(local)
            ]
            assert ours(Schedule(cron, name), low, high) == wanted, (name, change)


def test_options_relate_in_every_shape_of_change():
    """`both` is `first` and `last`; `skip` is `shift` without what was moved."""
    cron = parse_cron("0-59/10 0-23 * * *")
    for change, name in shapes():
        low, high = change.at - DAY_S, change.at + DAY_S
        get = lambda **options: slots_before(Schedule(cron, name, **options), low * US, high * US, 10_000)
        first, last, both = get(fold="first"), get(fold="last"), get(fold="both")
        assert sorted({*first, *last}) == both
        twice = {slot for slot in first if slot.dst == "fold"}
        assert {slot.due_at - change.width * US for slot in twice} == {
            slot.due_at for slot in last if slot.dst == "fold"
        }
        assert len(twice) == max(-change.width, 0) // 600
        assert get(gap="skip") == [slot for slot in first if slot.dst != "gap"]
        assert all(slot.due_at == change.at * US for slot in first if slot.dst == "gap")


def test_a_change_on_the_border_of_a_span_is_counted_once():
    for expression in ("0-59/10 0-23 * * *", "*/10 * * * *"):
        cron = parse_cron(expression)
        for change, name in shapes():
            schedule = Schedule(cron, name)
            low, at, high = (change.at + more for more in (-14_400, 0, 14_400))
            slots = ours(schedule, low, high)
            for border in (at - 1, at, at + 1, at - abs(change.width), at + abs(change.width)):
                assert ours(schedule, low, border) == [slot for slot in slots if slot <= border]
                assert ours(schedule, border, high) == [slot for slot in slots if slot > border]
                parts = (low, border), (border, high)
                assert sum(count_slots(schedule, a * US, b * US) for a, b in parts) == len(slots)


# name, expression, options, the local times from midnight UTC of a day on, with what the clocks did.
NAMED = [
    ("Europe/Berlin", "30 2 * * *", {}, "2026-03-28", ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00 gap", "2026-03-30T02:30:00+02:00"]),
    ("Europe/Berlin", "30 2 * * *", {"gap": "skip"}, "2026-03-28", ["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00"]),
    ("Europe/Berlin", "30 2,3 * * *", {}, "2026-03-29", ["2026-03-29T03:00:00+02:00 gap", "2026-03-29T03:30:00+02:00"]),
    ("Europe/Berlin", "0 2,3 * * *", {}, "2026-03-29", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]),
    ("Europe/Berlin", "0,30 2 * * *", {}, "2026-03-29", ["2026-03-29T03:00:00+02:00 gap", "2026-03-30T02:00:00+02:00"]),
    ("Europe/Berlin", "*/30 2 * * *", {}, "2026-03-29", ["2026-03-30T02:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
    ("Europe/Berlin", "0 */2 * * *", {}, "2026-03-29", ["2026-03-29T04:00:00+02:00", "2026-03-29T06:00:00+02:00"]),
    ("Europe/Berlin", "30 2 * * *", {}, "2026-10-25", ["2026-10-25T02:30:00+02:00 fold", "2026-10-26T02:30:00+01:00"]),
    ("Europe/Berlin", "30 2 * * *", {"fold": "last"}, "2026-10-25", ["2026-10-25T02:30:00+01:00 fold", "2026-10-26T02:30:00+01:00"]),
    ("Europe/Berlin", "30 2 * * *", {"fold": "both"}, "2026-10-25", ["2026-10-25T02:30:00+02:00 fold", "2026-10-25T02:30:00+01:00 fold", "2026-10-26T02:30:00+01:00"]),
    ("Europe/Berlin", "30 * * * *", {}, "2026-10-25", ["2026-10-25T02:30:00+02:00 fold", "2026-10-25T02:30:00+01:00 fold", "2026-10-25T03:30:00+01:00"]),
    ("Europe/Berlin", "30 * * * *", {"gap": "skip", "fold": "last"}, "2026-10-25", ["2026-10-25T02:30:00+02:00 fold", "2026-10-25T02:30:00+01:00 fold", "2026-10-25T03:30:00+01:00"]),
    ("Australia/Lord_Howe", "15 2 * * *", {}, "2026-10-03", ["2026-10-04T02:30:00+11:00 gap", "2026-10-05T02:15:00+11:00"]),
    ("Australia/Lord_Howe", "45 1 * * *", {}, "2026-04-04", ["2026-04-05T01:45:00+11:00 fold", "2026-04-06T01:45:00+10:30"]),
    ("Australia/Lord_Howe", "15 1 * * *", {}, "2026-04-04", ["2026-04-05T01:15:00+11:00", "2026-04-06T01:15:00+10:30"]),
    ("Antarctica/Troll", "30 1 * * *", {}, "2026-03-29", ["2026-03-29T03:00:00+02:00 gap", "2026-03-30T01:30:00+02:00"]),
    ("Antarctica/Troll", "30 1,2 * * *", {}, "2026-10-24", ["2026-10-24T02:30:00+02:00", "2026-10-25T01:30:00+02:00 fold", "2026-10-25T02:30:00+02:00 fold", "2026-10-26T01:30:00+00:00"]),
    ("Pacific/Apia", "0 9 * * *", {}, "2011-12-29", ["2011-12-29T09:00:00-10:00", "2011-12-31T00:00:00+14:00 gap", "2011-12-31T09:00:00+14:00"]),
    ("Pacific/Apia", "0 9 * * *", {"gap": "skip"}, "2011-12-29", ["2011-12-29T09:00:00-10:00", "2011-12-31T09:00:00+14:00"]),
    ("Pacific/Apia", "0 0,9 * * *", {}, "2011-12-30", ["2011-12-31T00:00:00+14:00", "2011-12-31T09:00:00+14:00"]),
    ("Pacific/Apia", "0 */12 * * *", {}, "2011-12-30", ["2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"]),
    ("Pacific/Kwajalein", "0 6 21 8 *", {}, "1993-08-19", ["1993-08-22T00:00:00+12:00 gap", "1994-08-21T06:00:00+12:00"]),
    ("Africa/Monrovia", "30 0 * * *", {}, "1972-01-06", ["1972-01-06T00:30:00-00:44:30", "1972-01-07T00:44:30+00:00 gap", "1972-01-08T00:30:00+00:00"]),
    ("Africa/Monrovia", "*/30 * * * *", {}, "1972-01-07", ["1972-01-06T23:30:00-00:44:30", "1972-01-07T01:00:00+00:00", "1972-01-07T01:30:00+00:00"]),
    ("America/Sao_Paulo", "0 0 * * *", {}, "2018-11-03", ["2018-11-03T00:00:00-03:00", "2018-11-04T01:00:00-02:00 gap", "2018-11-05T00:00:00-02:00"]),
    ("Asia/Pyongyang", "45 23 * * *", {}, "2018-05-03", ["2018-05-03T23:45:00+08:30", "2018-05-05T00:00:00+09:00 gap", "2018-05-05T23:45:00+09:00"]),
    ("Europe/Dublin", "30 1 * * *", {}, "2026-10-25", ["2026-10-25T01:30:00+01:00 fold", "2026-10-26T01:30:00+00:00"]),
    ("America/New_York", "0 0 1 1 *", {}, "2026-02-01", ["2027-01-01T00:00:00-05:00", "2028-01-01T00:00:00-05:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "expression", "options", "day", "wanted"), NAMED)
def test_named(zone, expression, options, day, wanted):
    schedule = Schedule(parse_cron(expression), zone, **options)
    slots = slots_after(schedule, utc(f"{day}T00:00:00+00:00") * US - 1, len(wanted))
    assert [f"{local_text(slot.due_at, zone)} {slot.dst}".strip() for slot in slots] == wanted


def test_seconds_follow_the_same_rules():
    """Difference 2: cronsim leaves 02:30:15 inside the gap out of its rules, and gives it twice in the fold."""
    for expression, plain in (("15 30 2 * * *", "30 2 * * *"), ("15 */30 2 * * *", "*/30 2 * * *")):
        with_seconds, without = parse_cron(expression, seconds=True), parse_cron(plain)
        for change, name in shapes():
            low, high = change.at - DAY_S, change.at + DAY_S
            get = lambda cron, more: slots_before(Schedule(cron, name), (low + more) * US, (high + more) * US, 1000)
            moved = [
                slot if slot.dst == "gap" else slot._replace(due_at=slot.due_at + 15 * US) for slot in get(without, 0)
            ]
            assert get(with_seconds, 15) == moved
    every = Schedule(parse_cron("* 30 2 * * *", seconds=True), "Europe/Berlin")
    slots = slots_after(every, utc("2026-03-29T00:00:00+00:00") * US, 2)
    assert [local_text(slot.due_at, "Europe/Berlin") for slot in slots] == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_zone_without_changes_has_the_slots_of_a_plain_clock():
    cron = parse_cron("17 3 * * MON")
    utc_slots = slots_after(Schedule(cron), 0, 100)
    shifted = slots_after(Schedule(cron, "Etc/GMT-3"), -3 * 3600 * US, 100)
    assert [slot.due_at - 3 * 3600 * US for slot in utc_slots] == [slot.due_at for slot in shifted]
    assert load_zone("Etc/GMT-3")
