"""Schedules on a real store with a clock that a test turns: each due time is settled once, as what it is."""

import asyncio
import datetime as dt
import json
import sqlite3
import time
from collections import Counter
from zoneinfo import ZoneInfo

import pytest

from taskforged import wiring
from taskforged.clock import Clock
from taskforged.config import load_config
from taskforged.control import schedules
from taskforged.control.access import Principal, Role
from taskforged.control.delivery import Delivery
from taskforged.control.namespaces import NamespaceChange
from taskforged.control.publishing import Publication
from taskforged.control.system import Info
from taskforged.engine.events import CancelRun
from taskforged.errors import ResourceExhaustedError
from taskforged.keyring import KeySource
from taskforged.schedule import jitter_us
from taskforged.store import database
from taskforged.store.runs import RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

ROOT = Principal("tok_root", "root", Role.ADMIN, None)

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

T0 = int(dt.datetime(2026, 3, 2, 10, 0, 30, tzinfo=dt.UTC).timestamp()) * SECOND
"""Half a minute past ten on a Monday."""

QUICK = "steps: [{id: look, transform: {at: '${{ event.body.due_time }}'}}]\n"
LASTING = "steps: [{id: nap, sleep: 300d}]\n"
TAGGED = "input: {type: object, properties: {n: {type: integer}}}\n" + QUICK


class Turned:
    """The wall clock of a world: it stands still unless it is turned."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now * 1000


class World:
    """The daemon's parts without its doors. The scan runs when a test says so."""

    def __init__(self, home, now=T0):
        self.home = home
        self.time = Turned(now)
        self.clock = Clock(self.time)
        self.environment = {}
        self.boots = 0

    async def start(self):
        config = load_config(self.home, None, self.environment)
        self.store = Store(config.database, synchronous="OFF")
        await self.store.start()
        info = Info(version="0", pid=0, home=str(self.home), sqlite_version="")
        self.base = wiring._build_base(config, self.clock, self.store, info, KeySource(bytes(32), None, "a test"))
        self.host = wiring._build_host(self.base)
        self.parts = wiring._build_reactions(self.base, self.host)
        self.controls = wiring._build_controls(self.base, self.host, self.parts)
        await self.base.access.start()
        await self.base.secrets.start()
        await self.host.namespaces.start()
        await self.host.queues.start()
        await self.base.workflows.start()
        self.boots += 1
        await self.host.runner.start(self.boots)
        await self.parts.scheduler.start()
        return self

    async def stop(self):
        await self.host.runner.drain(0.0)
        await self.host.book.stop()
        await self.store.stop()

    async def restart(self):
        """Stop and start on the same database; what the process knew is forgotten, the clock's past too."""
        await self.stop()
        self.clock = Clock(self.time)
        return await self.start()

    # -- what people do

    async def apply(self, source, namespace_no=1):
        return (await self.base.workflows.apply(namespace_no, source, ROOT.token_id)).workflow

    async def cron(self, schedule, steps=QUICK, *, name="w", key="c", namespace_no=1, top="", **options):
        """Apply a workflow with one cron trigger; `rules` are lines beside `cron:`."""
        rules = options.pop("rules", {})
        trigger = {"cron": {"schedule": schedule, **{k: v for k, v in options.items() if v is not None}}, **rules}
        source = f"name: {name}\non: {json.dumps({key: trigger})}\n{top}{steps}"
        return await self.apply(source, namespace_no)

    async def found(self, name="w", key="c", namespace_no=1):
        return await self.parts.triggers.identify(namespace_no, name, key)

    async def pause(self, name="w", key="c"):
        await self.parts.triggers.pause(ROOT, await self.found(name, key), "to look")

    async def resume(self, name="w", key="c"):
        await self.parts.triggers.resume(ROOT, await self.found(name, key))

    async def set_active(self, active, name="w", namespace_no=1):
        live = self.base.workflows.get(namespace_no, name)
        await self.base.workflows.set_active(live, active=active)

    # -- what time does

    async def scan(self):
        """Look until nothing is due any more."""
        for _ in range(1000):
            self.parts.scheduler._held.clear()
            if not await self.parts.scheduler.run_once():
                return
            if self.parts.scheduler._held or not self.parts.scheduler.is_due:
                return
        raise AssertionError("there is always something due")

    async def at(self, now):
        """It becomes that late."""
        self.time.now = now
        await self.scan()

    async def after(self, micros):
        await self.at(self.time.now + micros)

    async def every(self, micros, times):
        for _ in range(times):
            await self.after(micros)

    # -- what there is

    async def rows(self, sql, *parameters):
        return await self.store.read(lambda c: c.execute(sql, parameters).fetchall())

    async def slots(self, name="w", key="c", *, made_good=False):
        """Answer the ledger of a trigger, or what is in it a second time: outcome, first due time, count, reason."""
        sql = (
            "SELECT s.outcome, s.due_at, s.count, s.reason, s.last_at FROM schedule_slots s"
            " JOIN triggers t ON t.no = s.trigger_no JOIN workflows w ON w.no = t.workflow_no"
            " WHERE w.name = ? AND t.key = ? AND (s.backfill <> 0) = ? ORDER BY s.due_at"
        )
        return [Entry(*row) for row in await self.rows(sql, name, key, made_good)]

    async def outcomes(self, name="w", key="c"):
        return [(one.outcome, one.count) for one in await self.slots(name, key)]

    async def fired(self, name="w", key="c"):
        rows = await self.slots(name, key) + await self.slots(name, key, made_good=True)
        return sorted(one.due_at for one in rows if one.outcome == "FIRED")

    async def runs(self, name="w"):
        sql = "SELECT r.no, r.state FROM runs r JOIN workflows w ON w.no = r.workflow_no WHERE w.name = ? ORDER BY r.no"
        return await self.rows(sql, name)

    async def states(self, name="w"):
        return [state for _, state in await self.runs(name)]

    async def until(self, condition):
        for _ in range(5000):
            found = await condition()
            if found:
                return found
            await asyncio.sleep(0.002)
        raise AssertionError("it never came true")

    async def settled(self):
        """Wait until all runs have ended."""

        async def look():
            return not await self.rows("SELECT 1 FROM runs WHERE ended_at IS NULL")

        await self.until(look)

    async def cancel(self, no):
        await self.host.runner.deliver(no, CancelRun("by the test"))

    async def events(self, kind):
        rows = await self.rows("SELECT body, outcome FROM events WHERE type = ? ORDER BY no", kind)
        return [(json.loads(body), outcome) for body, outcome in rows]

    async def whole(self, name="w", key="c", *, step=MINUTE):
        """Check that the ledger has no gap and no overlap; answers its first and its last due time."""
        slots = await self.slots(name, key)
        for one in slots:
            assert one.last_at - one.due_at == (one.count - 1) * step, one
        for one, following in zip(slots, slots[1:], strict=False):
            assert following.due_at - one.last_at == step, (one, following)
        return slots[0].due_at, slots[-1].last_at


class Entry(tuple):
    """A row of the ledger."""

    __slots__ = ()
    outcome, due_at, count, reason, last_at = (property(lambda self, i=i: self[i]) for i in range(5))

    def __new__(cls, *values):
        return super().__new__(cls, values)


@pytest.fixture
async def world(tmp_path):
    made = await World(tmp_path).start()
    yield made
    await made.stop()


@pytest.fixture
async def make(tmp_path):
    worlds = []

    async def build(now=T0, **environment):
        home = tmp_path / f"w{len(worlds)}"
        home.mkdir()
        made = World(home, now)
        made.environment = environment
        worlds.append(made)
        return await made.start()

    yield build
    for one in worlds:
        await one.stop()


def utc(*parts):
    return int(dt.datetime(*parts, tzinfo=dt.UTC).timestamp()) * SECOND


def minute(number):
    """So many minutes after ten, and a second, which is still on time."""
    return utc(2026, 3, 2, 10, number) + SECOND


def local(zone, micros):
    return dt.datetime.fromtimestamp(micros / SECOND, ZoneInfo(zone)).strftime("%d %H:%M%z")


# --- on time ---------------------------------------------------------------------------------------------------------


async def test_each_due_time_fires_once_and_sees_its_event(world):
    await world.cron("* * * * *")
    await world.scan()
    assert await world.slots() == []
    await world.every(20 * SECOND, 9)
    await world.settled()
    assert await world.fired() == [T0 + 30 * SECOND, T0 + 90 * SECOND, T0 + 150 * SECOND]
    assert await world.states() == ["SUCCEEDED"] * 3
    events = await world.events("schedule.due")
    assert [event["due_time"] for event, _ in events] == [f"2026-03-02T10:0{n}:00Z" for n in (1, 2, 3)]
    assert {outcome for _, outcome in events} == {"ACCEPTED"}
    assert events[0][0]["timezone"] == "UTC"


async def test_looking_again_at_the_same_instant_changes_nothing(world):
    await world.cron("* * * * *")
    await world.after(30 * SECOND)
    before = await world.slots()
    for _ in range(5):
        await world.scan()
    await world.restart()
    await world.scan()
    assert await world.slots() == before
    assert len(await world.runs()) == 1


async def test_what_is_up_to_five_seconds_late_is_on_time(world):
    await world.cron("* * * * *", misfire="skip")
    await world.after(35 * SECOND)
    await world.after(60 * SECOND + 1)
    assert [(one.outcome, one.reason) for one in await world.slots()] == [
        ("FIRED", ""),
        ("MISSED", "missed; misfire: skip"),
    ]


# --- missed ----------------------------------------------------------------------------------------------------------

YEAR = 366 * 1440


async def test_after_a_year_the_latest_fires_once_and_the_others_are_one_range(world):
    await world.cron("* * * * *")
    await world.stop()
    world.time.now += 366 * DAY
    began = time.monotonic()
    await world.start()
    await world.scan()
    print(f"{time.monotonic() - began:.2f} s")
    slots = await world.slots()
    assert [(one.outcome, one.count) for one in slots] == [("COALESCED", YEAR - 1), ("FIRED", 1)]
    assert slots[1].reason.startswith("late by 30.0 s")
    assert await world.whole() == (T0 + 30 * SECOND, T0 + 366 * DAY - 30 * SECOND)
    await world.settled()
    assert len(await world.runs()) == 1
    assert await world.events("schedule.missed") == []


async def test_after_a_year_all_fires_up_to_its_cap_in_order(world):
    await world.cron("* * * * *", misfire={"policy": "all", "cap": 100}, overlap="allow")
    await world.stop()
    world.time.now += 366 * DAY
    await world.start()
    await world.scan()
    assert await world.outcomes() == [("MISSED", YEAR - 100), *[("FIRED", 1)] * 100]
    await world.whole()
    await world.settled()
    due = [event["due_time"] for event, _ in await world.events("schedule.due")]
    assert due == sorted(due)
    assert len(set(due)) == len(await world.runs()) == 100
    assert (await world.slots())[0].reason == "more than the cap of 100"
    ((missed, outcome),) = await world.events("schedule.missed")
    assert (missed["count"], missed["first_due_time"], outcome) == (YEAR - 100, "2026-03-02T10:01:00Z", "UNMATCHED")


async def test_after_a_year_skip_fires_nothing_and_says_so(world):
    await world.cron("* * * * *", misfire="skip")
    await world.apply("name: ear\non: {m: {event: {type: schedule.missed}}}\nsteps: [{id: a, transform: 1}]\n")
    await world.stop()
    world.time.now += 366 * DAY
    await world.start()
    await world.scan()
    assert await world.outcomes() == [("MISSED", YEAR)]
    assert await world.runs() == []
    await world.parts.bus.run_once()
    ((missed, outcome),) = await world.events("schedule.missed")
    assert (missed["workflow"], missed["trigger"], missed["count"], outcome) == ("w", "c", YEAR, "ACCEPTED")
    await world.settled()
    assert await world.states("ear") == ["SUCCEEDED"]
    await world.after(30 * SECOND)
    assert (await world.outcomes())[1:] == [("FIRED", 1)]


@pytest.mark.parametrize(("missed", "dropped"), [(99, 0), (100, 0), (101, 1), (102, 2)])
async def test_never_stops_at_a_hundred_misses(world, missed, dropped):
    await world.cron("* * * * *", misfire={"policy": "all", "cap": 100}, overlap="allow")
    await world.stop()
    world.time.now += missed * MINUTE
    await world.start()
    await world.scan()
    ranges = [("MISSED", dropped)] if dropped else []
    assert await world.outcomes() == [*ranges, *[("FIRED", 1)] * (missed - dropped)]
    await world.every(MINUTE, 2)
    assert len(await world.fired()) == missed - dropped + 2
    await world.whole()


@pytest.mark.parametrize("missed", [99, 100, 101, 250, 1000, 1001])
async def test_more_than_fits_into_one_transaction_is_caught_up_in_order(world, missed):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    await world.after(missed * MINUTE)
    assert len(await world.fired()) == min(missed, 1000)
    first, last = await world.whole()
    assert (last - first) // MINUTE + 1 == missed
    numbers = await world.rows("SELECT event_no FROM schedule_slots WHERE outcome = 'FIRED' ORDER BY due_at")
    assert numbers == sorted(numbers)
    await world.settled()


async def test_a_crash_between_two_portions_loses_and_doubles_nothing(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    world.time.now += 350 * MINUTE
    assert await world.parts.scheduler.run_once() == 1
    assert len(await world.fired()) == schedules.FIRES_AT_ONCE
    await world.restart()
    await world.after(MINUTE)
    assert len(await world.fired()) == 351
    await world.whole()
    await world.settled()
    assert len(await world.runs()) == 351


async def test_what_is_older_than_the_window_is_not_caught_up(world):
    await world.cron("* * * * *", misfire={"policy": "all", "window": "10m"}, overlap="allow")
    await world.cron("* * * * *", name="l", misfire={"policy": "latest", "window": "20s"})
    await world.after(HOUR)
    slots = await world.slots()
    assert [(one.outcome, one.count) for one in slots] == [("MISSED", 50), *[("FIRED", 1)] * 10]
    assert slots[0].reason == "older than the window of 10m"
    assert await world.outcomes("l") == [("MISSED", 60)]


# --- a clock that is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfire", ["all", "latest", "skip"])
async def test_a_clock_that_jumps_never_fires_a_due_time_twice(world, misfire):
    await world.cron("* * * * *", misfire=misfire, overlap="allow")
    jumps = (MINUTE, HOUR, -HOUR, MINUTE, -10 * MINUTE, MINUTE, 2 * HOUR, -10 * MINUTE, 11 * MINUTE, MINUTE)
    for number, jump in enumerate((*jumps, 40 * DAY, -40 * DAY, *jumps)):
        await world.after(jump)
        if number % 3 == 2:
            await world.restart()
            await world.scan()
    first, last = await world.whole()
    fired = await world.fired()
    assert len(set(fired)) == len(fired)
    if misfire == "all":
        assert len(await world.slots(made_good=True)) > 60
        assert not [one for one in fired if one not in range(first, last + 1, MINUTE)]
    await world.settled()
    assert len(await world.runs()) == len(fired)


async def test_a_clock_that_is_set_back_by_little_waits_until_it_has_caught_up(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    cursors = []
    for jump in (MINUTE, -HOUR, 10 * MINUTE, 49 * MINUTE, MINUTE, 2 * MINUTE):
        await world.after(jump)
        cursors += (await world.rows("SELECT cursor FROM triggers"))[0]
    assert cursors == sorted(cursors)
    first, last = await world.whole()
    assert len(await world.fired()) == (last - first) // MINUTE + 1 == 3
    assert await world.slots(made_good=True) == []


async def _ahead_and_back(world, **policy):
    """The clock is 400 days ahead for a moment, and then right again."""
    await world.cron("* * * * *", **policy)
    await world.after(400 * DAY)
    entered = await world.slots()
    await world.after(-400 * DAY)
    return entered


async def test_a_year_ahead_and_back_again_goes_on_at_once_and_repeats_nothing(world):
    entered = await _ahead_and_back(world)
    assert [(one.outcome, one.count) for one in entered] == [("COALESCED", 400 * 1440 - 1), ("FIRED", 1)]
    await world.every(MINUTE, 3)
    await world.restart()
    await world.every(MINUTE, 3)
    assert await world.slots() == entered, "what was entered stays"
    again = await world.slots(made_good=True)
    assert [one.due_at for one in again] == [T0 + 30 * SECOND + number * MINUTE for number in range(6)]
    assert {one.outcome for one in again} == {"FIRED"}
    assert all(one.reason.startswith("entered before, when the clock was ahead") for one in again)
    story = await world.controls.ledger.explain(await world.found(), since=T0)
    assert any("The clock was ahead once" in line for line in story.summary)
    await world.settled()
    assert len(await world.runs()) == 7
    # The day comes: what fired then does not fire again, and the ledger goes on behind it.
    await world.at(T0 + 400 * DAY + 31 * SECOND)
    assert (await world.outcomes())[2:] == [("FIRED", 1)]
    await world.whole()
    story = await world.controls.ledger.explain(await world.found(), since=T0)
    assert not any("The clock was ahead once" in line for line in story.summary)


async def test_a_due_time_that_fired_when_the_clock_was_ahead_fires_once(world):
    await world.cron("0 * * * *", misfire="all", overlap="allow")
    await world.after(5 * HOUR)
    early = await world.fired()
    assert len(early) == 5
    await world.after(-5 * HOUR)
    await world.every(HOUR, 4)
    assert (await world.fired(), await world.slots(made_good=True)) == (early, [])
    await world.every(HOUR, 2)
    assert len(await world.fired()) == 6
    await world.whole(step=HOUR)


@pytest.mark.parametrize(("ahead", "count"), [(5 * HOUR, 5), (2 * HOUR, 2)])
async def test_what_did_not_fire_when_the_clock_was_ahead_fires_when_it_comes_also_the_last_of_it(world, ahead, count):
    """Up to the last one the ledger is complete, and it comes a moment later than that."""
    await world.cron("0 * * * *", misfire="skip", overlap="allow")
    await world.after(ahead)
    (missed,) = entered = await world.slots()
    assert (missed.outcome, missed.count) == ("MISSED", count)
    await world.after(-ahead)
    due = [missed.due_at + number * HOUR for number in range(count)]
    for at in due:
        await world.at(at + SECOND)
    assert [one.due_at for one in await world.slots(made_good=True)] == due
    assert await world.slots() == entered
    await world.every(HOUR, 3)
    assert await world.outcomes() == [("MISSED", count)] + [("FIRED", 1)] * 3
    assert len(await world.slots(made_good=True)) == count


async def test_a_clock_that_goes_back_in_steps_is_noticed(world):
    await world.cron("* * * * *", misfire="latest", overlap="allow")
    await world.after(2 * HOUR)
    for _ in range(7):
        world.time.now -= 10 * MINUTE
        if world.parts.scheduler.is_due:
            await world.scan()
    await world.every(MINUTE, 2)
    assert len(await world.slots(made_good=True)) == 2


async def test_where_the_ledger_is_pruned_nothing_is_repeated(world):
    """Nobody knows what fired then: better late than twice."""
    await world.cron("* * * * *")
    await world.after(400 * DAY)
    await world.store.journal.execute(lambda c: c.execute("UPDATE triggers SET slots_from = ?", (T0 + DAY,)))
    await world.after(-400 * DAY)
    await world.every(MINUTE, 4)
    assert await world.slots(made_good=True) == []
    story = await world.controls.ledger.explain(await world.found(), since=T0)
    assert any("under another id" in line for line in story.summary)
    await world.cron("* * * * *", key="d")
    await world.every(MINUTE, 4)
    assert await world.outcomes(key="d") == [("FIRED", 1)] * 4


async def test_a_schedule_that_is_changed_or_removed_after_the_clock_was_ahead(world):
    entered = await _ahead_and_back(world, misfire={"policy": "all", "cap": 3}, overlap="allow")
    await world.every(MINUTE, 2)
    world.time.now += MINUTE
    await world.cron("*/2 * * * *", misfire="all", overlap="allow")
    await world.scan()
    await world.every(MINUTE, 4)
    await world.apply("name: w\n" + QUICK)
    await world.every(MINUTE, 4)
    assert await world.slots() == entered, "what was due up to the changes had been entered before"
    again = [(one.due_at - T0 - 30 * SECOND) // MINUTE for one in await world.slots(made_good=True)]
    assert again == [0, 1, 3, 5]


async def test_a_paused_trigger_goes_on_after_the_clock_was_ahead(world):
    await world.cron("* * * * *", misfire="latest", overlap="allow")
    await world.pause()
    await world.after(400 * DAY)
    await world.resume()
    await world.scan()
    await world.pause()
    await world.after(-400 * DAY)
    await world.every(MINUTE, 3)
    assert await world.slots(made_good=True) == []
    await world.resume()
    await world.every(MINUTE, 3)
    assert len(await world.slots(made_good=True)) == 3


async def test_the_clock_is_set_back_while_a_trigger_is_paused(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    await world.after(MINUTE)
    await world.pause()
    await world.after(-HOUR)
    await world.resume()
    await world.scan()
    await world.after(HOUR + 3 * MINUTE)
    first, last = await world.whole()
    assert (first, last) == (T0 + 30 * SECOND, T0 + 4 * MINUTE - 30 * SECOND)
    assert len(await world.fired()) == 4


# --- changed ---------------------------------------------------------------------------------------------------------


async def test_a_changed_schedule_enters_what_was_due_and_begins_now(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    await world.after(MINUTE)
    world.time.now += 5 * MINUTE
    await world.cron("*/10 * * * *", misfire="all", overlap="allow")
    await world.scan()
    slots = await world.slots()
    assert [(one.outcome, one.count) for one in slots] == [("FIRED", 1), ("MISSED", 5)]
    assert slots[1].reason == "the schedule was changed"
    await world.every(MINUTE, 6)
    assert [(one.outcome, one.due_at) for one in await world.slots()][2:] == [("FIRED", utc(2026, 3, 2, 10, 10))]


async def test_a_change_while_paused_enters_the_pause_as_suppressed(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    world.time.now += 3 * MINUTE  # nobody looks
    await world.pause()
    world.time.now += 4 * MINUTE
    await world.cron("*/2 * * * *", misfire="all", overlap="allow")
    assert [(one.outcome, one.count, one.reason) for one in await world.slots()] == [
        ("MISSED", 3, "the schedule was changed"),
        ("SUPPRESSED", 4, "paused"),
    ]
    await world.after(5 * MINUTE)
    assert len(await world.slots()) == 2
    await world.resume()
    await world.scan()
    fired = await world.fired()
    assert fired == [utc(2026, 3, 2, 10, minute) for minute in (8, 10, 12)]


async def test_a_change_of_the_policy_or_of_the_steps_leaves_the_schedule_alone(world):
    await world.cron("* * * * *", misfire="skip")
    world.time.now += 3 * MINUTE
    await world.cron("* * * * *", misfire="all", overlap="allow")
    await world.scan()
    assert await world.outcomes() == [("FIRED", 1)] * 3


async def test_a_trigger_that_is_removed_and_declared_again_begins_again(world):
    await world.cron("* * * * *", misfire="all", overlap="allow")
    before = (await world.found()).trigger
    await world.after(MINUTE)
    world.time.now += 2 * MINUTE
    await world.apply("name: w\n" + QUICK)
    slots = await world.slots()
    assert [(one.outcome, one.count) for one in slots] == [("FIRED", 1), ("MISSED", 2)]
    assert slots[1].reason == "the trigger was removed"
    await world.after(10 * MINUTE)
    assert len(await world.slots()) == 2
    await world.restart()
    await world.cron("* * * * *", misfire="all", overlap="allow")
    await world.scan()
    assert len(await world.slots()) == 2
    await world.every(MINUTE, 2)
    assert (await world.found()).trigger.id == before.id
    assert await world.fired() == [T0 + 30 * SECOND, T0 + 30 * SECOND + 13 * MINUTE, T0 + 30 * SECOND + 14 * MINUTE]


async def test_a_trigger_that_becomes_another_kind_and_back_again(world):
    await world.cron("* * * * *")
    await world.after(MINUTE)
    await world.apply("name: w\non: {c: {event: {type: x.y}}}\n" + QUICK)
    await world.after(10 * MINUTE)
    assert await world.outcomes() == [("FIRED", 1)]
    await world.cron("* * * * *")
    await world.every(MINUTE, 2)
    assert await world.outcomes() == [("FIRED", 1)] * 3


async def test_a_deleted_workflow_is_not_due_any_more(world):
    workflow = await world.cron("* * * * *")
    await world.after(MINUTE)
    await world.settled()
    await world.base.workflows.delete(workflow)
    await world.after(10 * MINUTE)
    await world.restart()
    await world.after(10 * MINUTE)
    assert len(await world.runs()) == 1
    again = await world.cron("* * * * *")
    assert again.no != workflow.no
    await world.after(MINUTE)
    assert len(await world.rows("SELECT 1 FROM schedule_slots")) == 2


async def test_a_version_that_is_applied_while_a_due_time_is_decided(world):
    """The decision was made from the old schedule; it must not be written over the new one."""
    await world.cron("* * * * *", overlap="allow")
    world.time.now += MINUTE
    with_gate = Gate(world)
    scan = asyncio.create_task(world.parts.scheduler.run_once())
    await with_gate.reached()
    applied = asyncio.create_task(world.cron("0 * * * *", overlap="allow"))
    await asyncio.sleep(0.02)
    with_gate.open()
    await asyncio.gather(scan, applied)
    await world.scan()
    (row,) = await world.rows("SELECT next_at, cursor FROM triggers")
    assert row[0] == utc(2026, 3, 2, 11)
    assert sum(one.count for one in await world.slots()) == 1
    await world.at(utc(2026, 3, 2, 11))
    assert (await world.fired())[-1] == utc(2026, 3, 2, 11)


async def test_a_scan_between_the_commit_of_a_version_and_its_being_known(world):
    """The table says the new schedule is due, memory still holds the old one: nothing may be settled by it."""
    await world.cron("0 0 1 1 *", overlap="allow")
    workflows, scheduler = world.base.workflows, world.parts.scheduler
    remember = workflows._remember
    known = asyncio.Event()
    original = world.store.journal.execute

    async def execute(function):
        result = await original(function)
        world.time.now += MINUTE  # the new schedule is due at once
        await scheduler.run_once()
        known.set()
        return result

    world.store.journal.execute = execute
    try:
        await world.cron("* * * * *", overlap="allow")
    finally:
        world.store.journal.execute = original
    assert known.is_set()
    assert workflows._remember == remember
    await world.scan()
    await world.every(MINUTE, 2)
    assert len(await world.fired()) == 3


# --- paused, inactive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("skip", [("FIRED", 1), ("SUPPRESSED", 5)]),
        ("latest", [("FIRED", 1), ("SUPPRESSED", 4), ("FIRED", 1)]),
        ("all", [("FIRED", 1)] * 6),
        ({"policy": "all", "cap": 2}, [("FIRED", 1), ("SUPPRESSED", 3), ("FIRED", 1), ("FIRED", 1)]),
        ({"policy": "all", "window": "90s"}, [("FIRED", 1), ("SUPPRESSED", 3), ("FIRED", 1), ("FIRED", 1)]),
        ({"policy": "latest", "window": "10s"}, [("FIRED", 1), ("SUPPRESSED", 5)]),
    ],
)
@pytest.mark.parametrize("how", ["pause", "deactivate", "both"])
async def test_what_falls_due_in_a_pause_follows_the_policy_when_it_ends(world, misfire, expected, how):
    await world.cron("* * * * *", misfire=misfire, overlap="allow")
    await world.at(minute(1))
    if how in {"pause", "both"}:
        await world.pause()
    if how in {"deactivate", "both"}:
        await world.set_active(False)
    await world.every(MINUTE, 2)
    await world.restart()
    await world.every(MINUTE, 3)
    assert await world.outcomes() == [("FIRED", 1)]
    world.time.now += 20 * SECOND  # else the last one would be on time
    if how in {"pause", "both"}:
        await world.resume()
        await world.scan()
    if how in {"deactivate", "both"}:
        assert await world.outcomes() == [("FIRED", 1)]
        await world.set_active(True)
    await world.scan()
    assert await world.outcomes() == expected
    await world.whole()
    await world.at(minute(7))
    assert (await world.outcomes())[-1] == ("FIRED", 1)


async def test_a_pause_names_only_its_own_due_times(world):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    world.time.now += 3 * MINUTE  # nobody looks
    await world.pause()
    world.time.now += 2 * MINUTE
    await world.resume()
    world.time.now += 4 * MINUTE  # nobody looks
    await world.scan()
    assert await world.outcomes() == [("MISSED", 3), ("SUPPRESSED", 2), ("MISSED", 4)]
    await world.whole()


async def test_two_pauses_that_nobody_looked_between_are_settled_as_one(world):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    await world.pause()
    world.time.now += 2 * MINUTE
    await world.resume()
    await world.pause()
    world.time.now += 2 * MINUTE
    await world.resume()
    await world.scan()
    assert await world.outcomes() == [("SUPPRESSED", 4)]
    await world.at(minute(5))
    await world.pause()
    world.time.now += MINUTE + 20 * SECOND
    await world.resume()
    await world.scan()
    assert await world.outcomes() == [("SUPPRESSED", 4), ("FIRED", 1), ("SUPPRESSED", 1)]


async def test_a_trigger_that_is_declared_in_an_inactive_workflow_begins_when_it_is_active(world):
    await world.apply("name: w\n" + QUICK)
    await world.set_active(False)
    await world.cron("* * * * *", misfire="skip")
    await world.every(MINUTE, 3)
    assert await world.slots() == []
    await world.set_active(True)
    await world.at(minute(4))
    assert await world.outcomes() == [("SUPPRESSED", 3), ("FIRED", 1)]


async def test_a_pause_stays_over_a_change_and_a_removal(world):
    await world.cron("* * * * *", misfire="skip")
    await world.pause()
    await world.cron("*/2 * * * *", misfire="skip")
    await world.apply("name: w\n" + QUICK)
    await world.restart()
    await world.cron("* * * * *", misfire="skip")
    assert (await world.found()).trigger.paused_at is not None
    await world.every(MINUTE, 3)
    assert await world.fired() == []
    await world.resume()
    await world.at(minute(4))
    assert len(await world.fired()) == 1


class Gate:
    """Holds back the next write that settles due times, after the decision and before the journal."""

    def __init__(self, world):
        self._reactor = world.parts.reactor
        self._original = self._reactor.write
        self._open = asyncio.Event()
        self._reached = asyncio.Event()
        self._reactor.write = self._write

    async def _write(self, reactions, store=None):
        self._reached.set()
        await self._open.wait()
        return await self._original(reactions, store)

    async def reached(self):
        async with asyncio.timeout(10):
            await self._reached.wait()

    def open(self):
        self._reactor.write = self._original
        self._open.set()


@pytest.mark.parametrize("misfire", ["skip", "latest", "all"])
@pytest.mark.parametrize("how", ["pause", "deactivate", "delete", "remove"])
async def test_nothing_fires_after_a_pause_was_acknowledged(world, how, misfire):
    workflow = await world.cron("* * * * *", misfire=misfire, overlap="allow")
    world.time.now += 30 * SECOND
    gate = Gate(world)
    scan = asyncio.create_task(world.parts.scheduler.run_once())
    await gate.reached()
    match how:
        case "pause":
            await world.pause()
        case "deactivate":
            await world.set_active(False)
        case "delete":
            await world.base.workflows.delete(workflow)
        case "remove":
            await world.apply("name: w\n" + QUICK)
    gate.open()
    await scan
    await world.scan()
    assert await world.fired() == []
    assert await world.runs() == []
    assert world.host.runner.open_entries() == 0
    assert world.host.runner.admission.running() == 0
    if how == "pause":
        await world.resume()
        await world.scan()
        assert sum(one.count for one in await world.slots()) == 1
        assert len(await world.runs()) == 1, "it was on time when it could go on"


async def test_pauses_and_scans_that_meet_at_random_never_disagree(world):
    await world.cron("* * * * * *", seconds=True, misfire="all", overlap="allow")
    acknowledged = []
    over = False

    async def scan():
        while not over:
            world.time.now += SECOND
            if world.parts.scheduler.is_due:
                await world.parts.scheduler.run_once()
            await asyncio.sleep(0)

    async def pause():
        for _ in range(40):
            await world.pause()
            since = await world.rows("SELECT max(no) FROM runs")
            await asyncio.sleep(0.003)
            acknowledged.append((since, await world.rows("SELECT max(no) FROM runs")))
            await world.resume()
            await asyncio.sleep(0.003)

    scanning = asyncio.create_task(scan())
    await pause()
    over = True
    await scanning
    await world.scan()
    assert all(before == after for before, after in acknowledged)
    outcomes = Counter(one.outcome for one in await world.slots())
    assert outcomes.keys() <= {"FIRED", "MISSED", "SUPPRESSED"}, outcomes
    await world.whole(step=SECOND)
    await world.settled()


async def settle_between(world, change):
    """Let the scan look after `change` is on disk and before its caller goes on."""
    journal, scheduler = world.store.journal, world.parts.scheduler
    original = journal.execute

    async def execute(function):
        result = await original(function)
        await scheduler.run_once()
        return result

    journal.execute = execute
    try:
        await change()
    finally:
        journal.execute = original


@pytest.mark.parametrize("how", ["pause", "deactivate"])
async def test_a_scan_between_the_commit_of_a_resumption_and_its_being_known(world, how):
    """The table says it may fire, memory still says that it rests: the due time must not be lost as filtered."""
    await world.cron("* * * * *", misfire="latest", overlap="allow")
    await (world.pause() if how == "pause" else world.set_active(False))
    world.time.now += 3 * MINUTE
    await settle_between(world, world.resume if how == "pause" else lambda: world.set_active(True))
    await world.scan()
    assert await world.outcomes() == [("SUPPRESSED", 2), ("FIRED", 1)]


async def test_a_pause_and_an_activation_at_the_same_moment(world):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    await world.set_active(False)
    await world.after(MINUTE)
    await asyncio.gather(world.pause(), world.set_active(True))
    await world.every(MINUTE, 3)
    assert {one.outcome for one in await world.slots()} <= {"SUPPRESSED"}
    await world.resume()
    await world.scan()
    assert await world.outcomes() == [("SUPPRESSED", 4)]


async def test_a_resumption_and_a_deactivation_at_the_same_moment(world):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    await world.pause()
    await world.after(MINUTE)
    await asyncio.gather(world.set_active(False), world.resume())
    await world.every(MINUTE, 3)
    assert {one.outcome for one in await world.slots()} <= {"SUPPRESSED"}
    await world.set_active(True)
    await world.scan()
    assert await world.outcomes() == [("SUPPRESSED", 4)]


async def test_a_resumption_and_an_activation_at_the_same_moment(world):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    await world.pause()
    await world.set_active(False)
    await world.after(MINUTE)
    await asyncio.gather(world.set_active(True), world.resume())
    await world.at(minute(2))
    await world.at(minute(3))
    assert await world.outcomes() == [("SUPPRESSED", 1), ("FIRED", 1), ("FIRED", 1)], "it would never fire again"


@pytest.mark.parametrize("first", ["pause", "apply"])
async def test_a_pause_and_a_new_version_at_the_same_moment(world, first):
    await world.cron("* * * * *", misfire="skip", overlap="allow")
    await world.found()
    both = [world.pause(), world.cron("*/2 * * * *", misfire="skip", overlap="allow")]
    await asyncio.gather(*(both if first == "pause" else reversed(both)))
    assert (await world.found()).trigger.paused_at is not None, "the pause was acknowledged"
    await world.at(minute(2))
    await world.at(minute(4))
    assert await world.slots() == []
    await world.restart()
    assert (await world.found()).trigger.paused_at is not None


async def test_a_pause_and_a_new_path_at_the_same_moment(world):
    hook = "name: w\non: {{c: {{webhook: {{path: {}, verify: {{scheme: none}}}}}}}}\n" + QUICK.replace(
        "{", "{{"
    ).replace("}", "}}").replace("due_time", "x")
    await world.apply(hook.format("old"))
    await world.found()
    await asyncio.gather(world.apply(hook.format("new")), world.pause())
    (trigger,) = world.base.triggers.on_path(1, "new")
    assert trigger.paused_at is not None
    assert world.base.triggers.on_path(1, "old") == []


# --- overlap ---------------------------------------------------------------------------------------------------------


async def test_overlap_skip_skips_while_a_run_is_going(world):
    await world.cron("* * * * *", LASTING, overlap="skip")
    await world.every(MINUTE, 3)
    ((no, state),) = await world.runs()
    assert state == "RUNNING"
    slots = await world.slots()
    assert [one.outcome for one in slots] == ["FIRED", "SKIPPED", "SKIPPED"]
    assert "was still going" in slots[1].reason
    await world.restart()
    await world.after(MINUTE)
    assert [one.outcome for one in await world.slots()][3:] == ["SKIPPED"]
    await world.cancel(no)
    await world.after(MINUTE)
    assert [one.outcome for one in await world.slots()][4:] == ["FIRED"]
    assert await world.states() == ["CANCELLED", "RUNNING"]


async def test_overlap_skip_does_not_skip_what_is_caught_up(world):
    await world.cron("* * * * *", LASTING, overlap="skip", misfire={"policy": "all", "cap": 3})
    await world.after(5 * MINUTE)
    assert await world.outcomes() == [("MISSED", 2), *[("FIRED", 1)] * 3]
    assert await world.states() == ["RUNNING", "PENDING", "PENDING"], "they follow one another"
    await world.at(minute(6))
    assert (await world.outcomes())[-1] == ("SKIPPED", 1)


@pytest.mark.parametrize(
    ("misfire", "outcomes", "reason"),
    [
        ("latest", ["COALESCED", "COALESCED", "FIRED"], "the newest stands for all"),
        ("skip", ["FIRED", "SKIPPED", "SKIPPED"], "in the same moment"),
        ("all", ["FIRED", "FIRED", "FIRED"], ""),
    ],
)
async def test_overlap_skip_and_several_due_times_that_come_at_once(world, misfire, outcomes, reason):
    await world.cron("* * * * * *", LASTING, seconds=True, misfire=misfire, overlap="skip")
    await world.after(3 * SECOND)
    slots = await world.slots()
    assert [one.outcome for one in slots] == outcomes
    assert len(await world.runs()) == outcomes.count("FIRED")
    assert reason in slots[1].reason
    await world.after(SECOND)
    assert [one.outcome for one in await world.slots()][3:] == ["SKIPPED"]
    await world.whole(step=SECOND)


async def test_overlap_queue_lets_them_follow_one_another_up_to_a_bound(world, monkeypatch):
    monkeypatch.setattr(schedules, "WAITING_MAX", 3)
    await world.cron("* * * * *", LASTING, overlap="queue")
    await world.every(MINUTE, 6)
    assert await world.states() == ["RUNNING", "PENDING", "PENDING", "PENDING"]
    slots = await world.slots()
    assert [one.outcome for one in slots] == ["FIRED"] * 4 + ["SKIPPED"] * 2
    assert slots[-1].reason == "3 runs of this trigger wait already"
    await world.restart()
    first = (await world.runs())[0][0]
    await world.cancel(first)

    async def moved():
        return (await world.states())[1] == "RUNNING"

    await world.until(moved)
    assert await world.states() == ["CANCELLED", "RUNNING", "PENDING", "PENDING"]
    await world.after(MINUTE)
    assert len(await world.runs()) == 5


async def test_overlap_cancel_running_makes_room_for_the_newest(world):
    await world.cron("* * * * *", LASTING, overlap="cancel_running")
    await world.after(MINUTE)
    await world.after(MINUTE)

    async def taken_over():
        return await world.states() == ["CANCELLED", "RUNNING"]

    await world.until(taken_over)
    assert await world.outcomes() == [("FIRED", 1)] * 2
    await world.restart()
    await world.after(MINUTE)

    async def again():
        return await world.states() == ["CANCELLED", "CANCELLED", "RUNNING"]

    await world.until(again)


async def test_overlap_allow_lets_them_run_side_by_side(world):
    await world.cron("* * * * *", LASTING, overlap="allow")
    await world.every(MINUTE, 4)
    assert await world.states() == ["RUNNING"] * 4


async def test_a_run_that_somebody_else_started_does_not_overlap(world):
    await world.cron("* * * * *", LASTING, overlap="skip")
    found = await world.found()
    from taskforged.control.triggers import FireRequest

    await world.parts.triggers.fire(ROOT, found, FireRequest())
    assert await world.states() == ["RUNNING"]
    await world.after(MINUTE)
    assert await world.outcomes() == [("FIRED", 1)]
    assert await world.states() == ["RUNNING", "RUNNING"]


async def test_two_triggers_of_a_workflow_do_not_overlap_with_each_other(world):
    crons = {key: {"cron": {"schedule": "* * * * *", "overlap": "skip"}} for key in ("a", "b")}
    await world.apply(f"name: w\non: {json.dumps(crons)}\n{LASTING}")
    await world.every(MINUTE, 2)
    assert await world.outcomes(key="a") == await world.outcomes(key="b") == [("FIRED", 1), ("SKIPPED", 1)]


@pytest.mark.parametrize("on_limit", ["queue", "skip", "cancel_running"])
@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
async def test_the_group_of_the_workflow_decides_besides_overlap(world, overlap, on_limit):
    top = f"concurrency: {{group: mine, limit: 1, on_limit: {on_limit}}}\n"
    await world.cron("* * * * *", LASTING, overlap=overlap, top=top)
    await world.after(MINUTE)
    await world.after(MINUTE)
    states = await world.states()
    if overlap == "skip":
        assert await world.outcomes() == [("FIRED", 1), ("SKIPPED", 1)]
        assert states == ["RUNNING"]
        return
    assert await world.outcomes() == [("FIRED", 1)] * 2
    expected = {
        "queue": ["RUNNING", "PENDING"],
        "skip": ["RUNNING", "CANCELLED"],
        "cancel_running": ["CANCELLED", "RUNNING"],
    }[on_limit]

    async def look():
        return await world.states() == expected

    await world.until(look)
    assert {row[0] for row in await world.rows("SELECT group_key FROM runs")} == {"mine"}


async def test_runs_that_only_wait_are_not_read(world, monkeypatch):
    """There may be very many of them: beginning to wait, and a start that finds them, must not read each."""
    read = []
    load = RunStore.load

    async def counted(self, no):
        read.append(no)
        return await load(self, no)

    async def looked():
        names = {task.get_name() for task in asyncio.all_tasks()}
        return not any(name.startswith(("pending run", "look at pending")) for name in names)

    monkeypatch.setattr(RunStore, "load", counted)
    await world.cron("* * * * *", LASTING, overlap="allow", top="concurrency: {group: mine, limit: 1}\n")
    await world.every(MINUTE, 4)
    await world.restart()
    await world.until(looked)
    assert await world.states() == ["RUNNING", "PENDING", "PENDING", "PENDING"]
    assert read == []
    await world.cron("* * * * *", LASTING, overlap="cancel_running", name="other")
    await world.after(MINUTE)
    await world.after(MINUTE)
    await world.until(looked)
    assert read, "who may take another's place is read"


# --- start, end, jitter, H -------------------------------------------------------------------------------------------


async def test_nothing_is_due_before_the_start_nor_at_the_end(world):
    await world.cron("* * * * *", start="2026-03-02T10:03:00Z", end="2026-03-02T10:05:00Z")
    await world.every(MINUTE, 10)
    assert await world.fired() == [utc(2026, 3, 2, 10, 3), utc(2026, 3, 2, 10, 4)]
    assert await world.rows("SELECT next_at FROM triggers") == [(None,)]
    await world.restart()
    await world.after(DAY)
    assert len(await world.slots()) == 2
    await world.cron("* * * * *", start="2026-03-02T10:03:00Z")
    await world.after(MINUTE)
    assert len(await world.fired()) == 3


async def test_jitter_is_a_constant_delay_and_the_ledger_goes_by_the_due_time(world):
    delay = jitter_us("default/w/c", 40)
    assert 0 < delay < 40 * SECOND
    await world.cron("*/2 * * * *", jitter="40s", misfire="skip")
    due = utc(2026, 3, 2, 10, 2)
    await world.at(due + delay - 1)
    assert await world.slots() == []
    await world.restart()
    await world.scan()
    assert await world.slots() == []
    await world.at(due + delay)
    assert await world.fired() == [due]
    assert await world.rows("SELECT late_us FROM schedule_slots") == [(0,)]
    await world.at(due + 2 * MINUTE + delay + 5 * SECOND)
    assert await world.fired() == [due, due + 2 * MINUTE]
    await world.at(due + 4 * MINUTE + delay + 5 * SECOND + 1)
    assert (await world.outcomes())[-1] == ("MISSED", 1)
    assert len({row[0] for row in await world.rows("SELECT next_at % 120000000 FROM triggers")}) == 1


async def test_a_change_between_a_due_time_and_its_delay_enters_it(world):
    delay = jitter_us("default/w/c", 40)
    await world.cron("*/2 * * * *", jitter="40s")
    world.time.now = utc(2026, 3, 2, 10, 2) + delay // 2
    await world.scan()
    await world.cron("*/4 * * * *", jitter="40s")
    slots = await world.slots()
    assert [(one.outcome, one.due_at, one.reason) for one in slots] == [
        ("MISSED", utc(2026, 3, 2, 10, 2), "the schedule was changed")
    ]
    await world.every(30 * SECOND, 6)
    assert await world.fired() == [utc(2026, 3, 2, 10, 4)]


async def test_h_is_spread_over_namespaces_and_stays_over_restarts(world):
    names = [f"team-{number}" for number in range(12)]
    for name in names:
        record = (await world.host.namespaces.set(ROOT, name, NamespaceChange())).record
        await world.cron("H * * * *", namespace_no=record.no)
    sql = "SELECT namespace_no, next_at FROM triggers ORDER BY no"
    before = await world.rows(sql)
    assert len({at for _, at in before}) >= 6
    await world.restart()
    await world.every(MINUTE, 60)
    sql = "SELECT t.namespace_no, s.due_at FROM schedule_slots s JOIN triggers t ON t.no = s.trigger_no ORDER BY t.no"
    assert await world.rows(sql) == before


# --- when the clocks change ------------------------------------------------------------------------------------------


async def drive(world, start, hours, step=10 * MINUTE):
    world.time.now = start
    await world.scan()
    for _ in range(int(hours * HOUR / step)):
        await world.after(step)


@pytest.mark.parametrize(
    ("zone", "schedule", "options", "start", "expected"),
    [
        # The hour from 2 to 3 is left out on 29 March 2026, and comes twice on 25 October.
        ("Europe/Berlin", "30 2 * * *", {}, (2026, 3, 28, 12), ["29 03:00+0200", "30 02:30+0200"]),
        ("Europe/Berlin", "30 2 * * *", {"dst": {"gap": "skip"}}, (2026, 3, 28, 12), ["30 02:30+0200"]),
        ("Europe/Berlin", "30 2 * * *", {}, (2026, 10, 24, 12), ["25 02:30+0200", "26 02:30+0100"]),
        (
            *("Europe/Berlin", "30 2 * * *", {"dst": {"fold": "last"}}, (2026, 10, 24, 12)),
            ["25 02:30+0100", "26 02:30+0100"],
        ),
        (
            *("Europe/Berlin", "30 2 * * *", {"dst": {"fold": "both"}}, (2026, 10, 24, 12)),
            ["25 02:30+0200", "25 02:30+0100", "26 02:30+0100"],
        ),
        # Half an hour: from 2:00 to 2:30 on 4 October 2026, and back on 5 April.
        ("Australia/Lord_Howe", "10 2 * * *", {}, (2026, 10, 3, 2), ["04 02:30+1100", "05 02:10+1100"]),
        ("Australia/Lord_Howe", "40 1 * * *", {}, (2026, 4, 4, 2), ["05 01:40+1100", "06 01:40+1030"]),
    ],
)
async def test_a_fixed_time_runs_once_on_the_day_of_a_change(make, zone, schedule, options, start, expected):
    world = await make(now=utc(*start))
    await world.cron(schedule, timezone=zone, misfire="skip", **options)
    await drive(world, utc(*start), 48)
    assert [local(zone, at) for at in await world.fired()] == expected
    assert await world.outcomes() == [("FIRED", 1)] * len(expected)
    assert len(await world.runs()) == len(expected)


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("Europe/Berlin", (2026, 3, 28, 22)),
        ("Europe/Berlin", (2026, 10, 24, 22)),
        ("Australia/Lord_Howe", (2026, 10, 3, 12)),
        ("Australia/Lord_Howe", (2026, 4, 4, 12)),
    ],
)
async def test_an_interval_follows_real_time_over_a_change(make, zone, start):
    world = await make(now=utc(*start))
    await world.cron("*/10 * * * *", timezone=zone, misfire="skip", overlap="allow")
    await drive(world, utc(*start), 8)
    fired = await world.fired()
    assert fired == [utc(*start) + number * 10 * MINUTE for number in range(1, 49)]


async def test_a_machine_that_is_off_while_the_clocks_change_catches_up_each_once(make):
    world = await make(now=utc(2026, 10, 24, 12))
    await world.cron("30 2 * * *", timezone="Europe/Berlin", misfire="all", overlap="allow")
    await world.cron("30 2 * * *", name="both", timezone="Europe/Berlin", misfire="all", dst={"fold": "both"})
    await world.at(utc(2026, 10, 25, 0, 45))
    await world.restart()
    await world.at(utc(2026, 10, 26, 12))
    assert [local("Europe/Berlin", at) for at in await world.fired()] == ["25 02:30+0200", "26 02:30+0100"]
    both = [local("Europe/Berlin", at) for at in await world.fired("both")]
    assert both == ["25 02:30+0200", "25 02:30+0100", "26 02:30+0100"]


async def test_new_zone_data_plan_all_schedules_anew_and_fire_nothing(world):
    await world.cron("30 2 * * *", timezone="Europe/Berlin", misfire="skip")
    await world.cron("0 * * * *", name="p", misfire="skip")
    await world.pause("p")
    later = utc(2027, 1, 1)

    def forge(connection):
        connection.execute("UPDATE meta SET value = '1999z' WHERE key = 'tzdata'")
        connection.execute("UPDATE triggers SET next_at = ? WHERE next_at IS NOT NULL", (later,))

    await world.store.journal.execute(forge)
    await world.restart()
    await world.scan()
    assert await world.rows("SELECT next_at FROM triggers ORDER BY no") == [(utc(2026, 3, 3, 1, 30),), (None,)]
    assert await world.slots() == []
    await world.store.journal.execute(lambda c: c.execute("UPDATE triggers SET next_at = ? WHERE no = 1", (later,)))
    await world.restart()
    await world.scan()
    assert (await world.rows("SELECT next_at FROM triggers WHERE no = 1")) == [(later,)], "only when they have changed"


# --- asked and refused -----------------------------------------------------------------------------------------------


async def test_a_condition_that_is_false_is_filtered_with_its_clause(world):
    await world.cron("* * * * *", rules={"if": 'event.body.due_time == "never"'})
    await world.after(MINUTE)
    (slot,) = await world.slots()
    assert slot.outcome == "FILTERED"
    assert slot.reason.startswith("`if` is false")
    assert [outcome for _, outcome in await world.events("schedule.due")] == ["FILTERED"]
    assert await world.runs() == []


async def test_an_expression_that_fails_is_failed_with_its_reason(world):
    await world.cron("* * * * *", rules={"if": "event.body.nothing.at.all == 1"})
    await world.cron("* * * * *", TAGGED, name="x", rules={"input": {"n": "${{ event.body.due_time }}"}})
    await world.after(MINUTE)
    (slot,), (other,) = await world.slots(), await world.slots("x")
    assert (slot.outcome, other.outcome) == ("FAILED", "FAILED")
    assert slot.reason.startswith("an expression failed:")
    assert other.reason.startswith("the input does not fit:")
    await world.after(MINUTE)
    assert len(await world.slots()) == 2


async def test_one_run_for_each_namespace_and_overlap_within_it(world):
    for name in ("a", "b"):
        await world.host.namespaces.set(ROOT, name, NamespaceChange(labels={"tier": "pro"}))
    await world.cron(
        "* * * * *",
        LASTING,
        overlap="skip",
        rules={"for_each": 'namespaces.filter(n, n.labels.tier == "pro")'},
    )
    world.base.access.live_principal = lambda _: ROOT
    await world.after(MINUTE)
    assert len(await world.runs()) == 2
    first = (await world.runs())[0][0]
    await world.cancel(first)
    await world.after(MINUTE)
    slots = await world.slots()
    assert [one.outcome for one in slots] == ["FIRED", "FIRED"]
    assert "1 items were not started" in slots[1].reason
    assert await world.states() == ["CANCELLED", "RUNNING", "RUNNING"]
    await world.after(MINUTE)
    assert (await world.slots())[2].outcome == "SKIPPED"


# --- when there is no room -------------------------------------------------------------------------------------------


async def test_what_finds_no_room_is_tried_again_and_settled_once_and_holds_up_nobody(world):
    for name in ("full", "free"):
        await world.host.namespaces.set(ROOT, name, NamespaceChange())
    full, free = (world.base.access.namespace_no(name) for name in ("full", "free"))
    await world.cron("* * * * *", LASTING, name="busy", namespace_no=full, misfire="all", overlap="allow")
    await world.cron("* * * * *", name="other", namespace_no=free, overlap="allow")
    await world.host.namespaces.set(ROOT, "full", NamespaceChange(running_runs=1, pending_runs=1))
    await world.every(MINUTE, 2)
    assert await world.outcomes("busy") == [("FIRED", 1)] * 2
    for _ in range(3):
        await world.after(MINUTE)
        assert await world.outcomes("busy") == [("FIRED", 1)] * 2, "not settled"
        assert world.parts.scheduler._held
    assert await world.outcomes("other") == [("FIRED", 1)] * 5
    assert len(await world.runs("busy")) == 2
    await world.restart()
    await world.scan()
    assert await world.outcomes("busy") == [("FIRED", 1)] * 2
    await world.host.namespaces.set(ROOT, "full", NamespaceChange(running_runs=0, pending_runs=0))
    await world.scan()
    assert await world.outcomes("busy") == [("FIRED", 1)] * 5
    assert await world.whole("busy") == (T0 + 30 * SECOND, T0 + 30 * SECOND + 4 * MINUTE)
    assert len(await world.runs("busy")) == 5


async def test_a_trigger_that_is_held_back_is_looked_at_again_by_itself(world, monkeypatch):
    monkeypatch.setattr(schedules, "RETRY_S", 0.05)
    await world.cron("* * * * *", overlap="allow")
    scheduler = world.parts.scheduler
    refused = 0

    def check():
        nonlocal refused
        refused += 1
        if refused < 4:
            raise ResourceExhaustedError("no room")

    world.base.pressure.check = check
    world.time.now += MINUTE
    await world.parts.cron.start()
    try:

        async def look():
            return await world.fired()

        await world.until(look)
    finally:
        await world.parts.cron.stop()
    assert refused == 4
    assert len(await world.fired()) == 1
    assert not scheduler._held


async def test_a_trigger_that_cannot_be_decided_stops_no_other(world, monkeypatch):
    await world.cron("* * * * *", name="bad", overlap="allow")
    await world.cron("* * * * *", name="good", overlap="allow")
    original = world.parts.reactor.react

    def react(event, asked, **more):
        if asked[0].workflow.name == "bad":
            raise RuntimeError("a bug")
        return original(event, asked, **more)

    world.parts.reactor.react = react
    await world.every(MINUTE, 2)
    assert await world.outcomes("good") == [("FIRED", 1)] * 2
    assert await world.outcomes("bad") == []
    world.parts.reactor.react = original
    await world.scan()
    assert sum(one.count for one in await world.slots("bad")) == 2


async def test_events_of_a_namespace_without_room_hold_up_no_other(world, monkeypatch):
    """The same for internal events: more wait than the consumer reads at once."""
    from taskforged.control import publishing

    monkeypatch.setattr(publishing, "PORTION", 5)
    for name in ("full", "free"):
        await world.host.namespaces.set(ROOT, name, NamespaceChange())
    full, free = (world.base.access.namespace_no(name) for name in ("full", "free"))
    for number in (full, free):
        await world.apply(f"name: ear\non: {{e: {{event: {{type: x.y}}}}}}\n{LASTING}", number)
    await world.host.namespaces.set(ROOT, "full", NamespaceChange(running_runs=1, pending_runs=1))
    for _ in range(12):
        await world.parts.bus.publish(ROOT, full, Publication("x.y", "{}"))
    await world.parts.bus.publish(ROOT, free, Publication("x.y", "{}"))
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError):
            await world.parts.bus.run_once()
    rows = await world.rows("SELECT namespace_no, outcome, count(*) FROM events WHERE type = 'x.y' GROUP BY 1, 2")
    assert sorted(rows) == [(full, "ACCEPTED", 2), (full, "PENDING", 10), (free, "ACCEPTED", 1)]
    await world.host.namespaces.set(ROOT, "full", NamespaceChange(running_runs=0, pending_runs=0))
    await world.parts.bus.run_once()
    assert await world.rows("SELECT count(*) FROM runs") == [(13,)]


@pytest.mark.parametrize("how", ["pause", "deactivate"])
async def test_events_start_nothing_after_a_pause_was_acknowledged(world, how):
    """However the pause and the consumer meet: what is not written when the pause is answered is not started."""
    await world.apply(f"name: ear\non: {{e: {{event: {{type: x.y}}}}}}\n{LASTING}")
    bus = world.parts.bus
    for steps in range(40):
        await bus.publish(ROOT, 1, Publication("x.y", "{}"))
        asking = asyncio.create_task(bus.run_once())
        for _ in range(steps):
            await asyncio.sleep(0)
        await (world.pause("ear", "e") if how == "pause" else world.set_active(False, "ear"))
        before = await world.runs("ear")
        await asking
        await bus.run_once()
        assert await world.runs("ear") == before, f"after {steps} steps"
        await (world.resume("ear", "e") if how == "pause" else world.set_active(True, "ear"))
    assert await world.rows("SELECT 1 FROM events WHERE outcome = 'PENDING'") == []


@pytest.mark.parametrize("how", ["pause", "deactivate"])
async def test_a_delivery_that_is_being_proved_starts_nothing_after_a_pause_was_acknowledged(world, how):
    hook = "name: w\non: {c: {webhook: {path: p, verify: {scheme: token, secret: S}}}}\n"
    await world.apply(hook + "steps: [{id: a, transform: 1}]\n")
    await world.base.secrets.set(1, "S", "word")
    inbox = wiring._build_http(world.base, world.host, world.parts, world.controls, None)._inbox
    reached, answer = asyncio.Event(), asyncio.Event()

    async def secret(_, __):
        reached.set()
        await answer.wait()
        return "word"

    inbox._secret = secret
    headers = {"authorization": "Bearer word", "content-type": "application/json"}
    delivery = Delivery("default", "p", headers, {}, b"{}", "application/json", "127.0.0.1")
    receiving = asyncio.create_task(inbox.receive(delivery))
    async with asyncio.timeout(10):
        await reached.wait()
    await (world.pause() if how == "pause" else world.set_active(False))
    answer.set()
    receipt = await receiving
    assert receipt.status in {200, 202}, "it is kept all the same"
    assert await world.runs() == []
    ((outcome, verdicts),) = await world.rows("SELECT outcome, verdicts FROM events WHERE source = 'webhook'")
    assert outcome == "FILTERED"
    assert ("paused" if how == "pause" else "not active") in json.loads(verdicts)[0]["reason"]


# --- many ------------------------------------------------------------------------------------------------------------


class Counted:
    """Counts the statements that are executed on the database."""

    def __init__(self, world):
        self._world = world
        self.statements = []

    async def __aenter__(self):
        for thread in (self._world.store._writer, *self._world.store._readers):
            await thread.run(lambda c: c.set_trace_callback(self.statements.append))
        self.statements.clear()
        return self

    async def __aexit__(self, *_):
        for thread in (self._world.store._writer, *self._world.store._readers):
            await thread.run(lambda c: c.set_trace_callback(None))


async def test_when_nothing_is_due_nothing_is_asked(world):
    await many(world, 200)
    await world.scan()
    scheduler = world.parts.scheduler
    async with Counted(world) as counted:
        for _ in range(29):
            world.time.now += SECOND
            assert not scheduler.is_due
            assert 0 < scheduler.pause_s() <= 1.0
        assert counted.statements == []
        world.time.now += SECOND
        assert scheduler.is_due
        assert scheduler.pause_s() == 0.0
        world.time.now -= SECOND
        assert await scheduler.run_once() == 0
        assert len(counted.statements) <= 2, "a look for nothing"


async def test_the_running_scan_asks_nothing_while_nothing_is_due(world):
    await many(world, 20)
    await world.parts.cron.start()
    try:

        async def quiet():
            return not world.parts.scheduler.is_due

        await world.until(quiet)
        async with Counted(world) as counted:
            await asyncio.sleep(2.5)
            assert counted.statements == []
            world.time.now += 30 * SECOND

            async def look():
                return len(await world.runs("w0")) == 20

            await world.until(look)
    finally:
        await world.parts.cron.stop()


async def many(world, count):
    """Apply workflows with 20 cron triggers each."""
    for part in range(count // 20):
        crons = {f"c{number}": {"cron": {"schedule": "* * * * *", "overlap": "skip"}} for number in range(20)}
        await world.apply(f"name: w{part}\non: {json.dumps(crons)}\nsteps: [{{id: a, transform: 1}}]\n")


@pytest.mark.timeout(240)
async def test_a_thousand_at_once_fire_once_each(world):
    await many(world, 1000)
    await world.after(30 * SECOND)
    assert await world.rows("SELECT outcome, count(*) FROM schedule_slots GROUP BY 1") == [("FIRED", 1000)]
    assert await world.rows("SELECT count(*), count(DISTINCT trigger_no), count(DISTINCT event_no) FROM runs") == [
        (1000, 1000, 1000)
    ]
    assert world.parts.scheduler.lateness.count == 1000
    assert not world.parts.scheduler.is_due
    await world.settled()
    await world.restart()
    await world.scan()
    assert await world.rows("SELECT count(*) FROM runs") == [(1000,)]
    await world.after(MINUTE)
    assert await world.rows("SELECT outcome, count(*) FROM schedule_slots GROUP BY 1") == [("FIRED", 2000)]
    await world.settled()


def test_the_scan_goes_by_its_index(tmp_path):
    connection = database.connect_writer(tmp_path / "t.db")
    for name in ("due_triggers", "upcoming_triggers"):
        sql = QUERIES[name]
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * sql.count("?")))
        assert "triggers_due" in plan
        assert "TEMP B-TREE" not in plan
    connection.close()


def test_two_writers_of_one_due_time_cannot_both_win(tmp_path):
    connection = database.connect_writer(tmp_path / "t.db")
    connection.execute("INSERT INTO workflows VALUES (1, 'wf_1', 1, 'w', 1, 1, 1, 1, NULL, '', '', '')")
    row = (1, "trg_1", 1, 1, "c", "cron", "", 1, "cron/1", "[]", 100, 200, None)
    connection.execute(QUERIES["insert_trigger"], row)
    settle = QUERIES["settle_schedule"]
    assert connection.execute(settle, (200, 300, 1, 100)).rowcount == 1
    assert connection.execute(settle, (200, 300, 1, 100)).rowcount == 0
    slot = (1, 200, 0, 200, 1, "FIRED", 200, 0, None, "")
    connection.execute(QUERIES["insert_slot"], slot)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(QUERIES["insert_slot"], slot)
    connection.close()
