"""The scan for due times: what is due fires or is entered into the ledger as what it is, each due time exactly once.

The table is the truth: a trigger's cursor says up to where its ledger is complete, and moves in the transaction that
writes the ledger, the event of each due time and its runs, guarded by the cursor that the decision was made from. So
a crash at any instant leaves either all of it or nothing, and a clock that is set back finds nothing to do again.

A clock that was ahead for long, and is set right, would find nothing to do for just as long. So a cursor that is ahead
by more than an hour is set back, and `ahead_until` remembers where it was. Up to there every due time is in the ledger
already; one that fired never fires again, and one that did not is made good when it comes, as by a backfill.
"""

from __future__ import annotations

import asyncio
import time
import zoneinfo
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import structlog

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access
from taskforged.control.reactor import Asked, Group, Reaction, Reactor
from taskforged.control.starting import CRON_GROUP
from taskforged.control.trigger_book import TriggerBook, schedule_text, slot_row
from taskforged.engine.model import Json
from taskforged.errors import ConflictError, ResourceExhaustedError, TaskforgeError, UnavailableError
from taskforged.failpoints import reach
from taskforged.language.definition import CronTrigger
from taskforged.meters import LONG_S, Histogram
from taskforged.schedule import Plan, Range, Schedule, Slot, local_text, plan, utc_text
from taskforged.store.events import EventRow, insert_event
from taskforged.store.rows import internal_event
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["DUE", "Lateness", "Scheduler", "due_event", "group_of", "zone_data_version"]

_log = structlog.get_logger(__name__)

DUE = "schedule.due"
"""Type of the event of a due time."""

MISSED = "schedule.missed"

PORTION = 250
"""Triggers of one round of the scan: bounds memory when very many are due at the same second."""

FIRES_AT_ONCE = 100
"""Due times of one trigger in one transaction; more follow in the next."""

RUNS_AT_ONCE = 1_000
"""Runs that due times of one trigger start in one transaction, at most those of one due time more."""

ON_TIME_US = 5_000_000
"""What is later than this was missed, and the misfire policy decides about it."""

WAITING_MAX = 100
"""Runs of one trigger that `overlap: queue` lets wait."""

RETRY_S, RETRY_S_MAX = 1.0, 60.0
"""Pause before a trigger is tried again that could not be settled; for what is no matter of room it doubles each time,
up to the second figure."""

AHEAD_US = 3_600_000_000
"""A clock that is set back by more was wrong before: schedules do not wait until it has caught up."""

LOOK_AGAIN_S = 1.0
"""How soon a wall clock that was set forward is noticed. Costs one comparison."""

_BATCH_S = 0.02
"""Time that a round spends before it lets others have the loop."""


_TZDATA = "tzdata"


def zone_data_version() -> str:
    """Answer which release of the time zone database is in use, for example `2026a`."""
    for folder in zoneinfo.TZPATH:
        try:
            with Path(folder, "tzdata.zi").open(encoding="ascii") as file:
                return file.readline(100).removeprefix("# version ").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return f"tzdata {version('tzdata')}"


class Lateness:
    """How late due times fired: the last 1,024."""

    def __init__(self) -> None:
        self.count = 0
        self.histogram = Histogram(LONG_S)
        self._last: deque[int] = deque(maxlen=1024)

    def add(self, late_us: int) -> None:
        """A due time has fired."""
        self.count += 1
        self.histogram.observe(late_us / 1_000_000)
        self._last.append(late_us)

    def figures_ms(self) -> tuple[float, float]:
        """Answer median and maximum, in milliseconds."""
        known = sorted(self._last)
        return (known[len(known) // 2] / 1000, known[-1] / 1000) if known else (0.0, 0.0)


class _Due(NamedTuple):
    """A row of the scan."""

    no: int
    workflow_no: int
    key: str
    cursor: int
    next_at: int
    suspended_from: int | None
    suspended_until: int | None
    schedule: str
    ahead_until: int


class _Busy(NamedTuple):
    """The runs of a trigger that are going, by namespace: stored ones, and those of this very settlement.

    Attributes:
        reasons: why runs were not started for that.
    """

    stored: Mapping[int, Sequence[str]]
    fresh: dict[int, list[str]]
    reasons: set[str]


class _Settlement(NamedTuple):
    """What one trigger's due times lead to, decided and not yet written."""

    due: _Due
    reactions: Sequence[Reaction]
    slots: Sequence[Row]
    news: Sequence[EventRow]
    cursor: int
    next_at: int | None
    late_us: Sequence[int]


class Scheduler:
    """Settles due times."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        triggers: TriggerBook,
        reactor: Reactor,
    ) -> None:
        self._store = store
        self._clock = clock
        self._access = access
        self._triggers = triggers
        self._reactor = reactor
        self._held: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._next_at: int | None = None
        self._stale = True
        self._newest = 0
        self.lateness = Lateness()
        self.on_published: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Plan all schedules anew when the time zone data is not that of the last start: a zone may have new rules."""
        await self._begin_again()
        release = await asyncio.to_thread(zone_data_version)
        if await self._store.value("meta", _TZDATA) == release:
            return
        wall = self._clock.wall()

        def replan(connection: Connection) -> None:
            connection.execute(QUERIES["replan_schedules"], (wall,))
            connection.execute(QUERIES["set_meta"], (_TZDATA, release))

        await self._store.journal.execute(replan)

    async def _begin_again(self) -> None:
        """Plan anew what was settled by a clock that was ahead."""
        self._newest = wall = self._clock.wall()

        def begin(connection: Connection) -> int:
            return connection.execute(QUERIES["begin_schedules_again"], {"wall": wall, "ahead": AHEAD_US}).rowcount

        count = await self._store.journal.execute(begin)
        if count:
            _log.warning("schedule.clock_was_ahead", triggers_begun_again=count)

    def _is_set_back(self) -> bool:
        """Whether the clock has gone back, in one step or in several."""
        wall = self._clock.wall()
        self._newest = max(self._newest, wall)
        return self._newest - wall > AHEAD_US

    def look_again(self) -> None:
        """The table of triggers has changed: what is due next is not known any more."""
        self._stale = True

    @property
    def is_due(self) -> bool:
        """Whether there is something to do. Cheap: called every second."""
        if self._stale or self._is_set_back() or (self._next_at is not None and self._next_at <= self._clock.wall()):
            return True
        return bool(self._held) and min(self._held.values()) <= time.monotonic()

    def pause_s(self) -> float:
        """Answer how long to sleep at most."""
        left = LOOK_AGAIN_S
        if self._next_at is not None:
            left = min(left, max(0.0, (self._next_at - self._clock.wall()) / 1_000_000))
        return left

    async def run_once(self) -> int:
        """Settle everything that is due; answers how many triggers were looked at."""
        self._stale = False
        if self._is_set_back():
            await self._begin_again()
        self._held = {no: until for no, until in self._held.items() if until > time.monotonic()}
        after, count = (0, 0), 0
        while True:
            rows = [_Due(*row) for row in await self._store.rows("due_triggers", self._clock.wall(), *after, PORTION)]
            due = [row for row in rows if row.no not in self._held]
            await self._settle_all(due)
            count += len(due)
            if len(rows) < PORTION:
                break
            after = (rows[-1].next_at, rows[-1].no)
        self._next_at = await self._upcoming()
        return count

    async def _upcoming(self) -> int | None:
        """Answer when the next trigger that is not held back is due."""
        for next_at, no in await self._store.rows("upcoming_triggers", len(self._held) + 1):
            if no not in self._held:
                return int(next_at)
        return None

    async def _settle_all(self, due: Sequence[_Due]) -> None:
        """Decide one after the other, in order of their times; write together."""
        writes, started = [], time.monotonic()
        for row in due:
            settlement = await self._decide_safely(row)
            if settlement is not None:
                writes.append(asyncio.ensure_future(self._write_safely(settlement)))
            if time.monotonic() - started > _BATCH_S:
                await asyncio.sleep(0)
                started = time.monotonic()
        await asyncio.gather(*writes)

    async def _decide_safely(self, due: _Due) -> _Settlement | None:
        try:
            return await self._decide(due)
        except (ResourceExhaustedError, UnavailableError) as error:  # of the moment: there will be room again
            _log.warning("schedule.not_settled", trigger_no=due.no, error=error.message)
            self._hold(due, RETRY_S)
            return None
        except TaskforgeError as error:
            _log.warning("schedule.not_settled", trigger_no=due.no, error=error.message)
        except Exception as error:  # noqa: BLE001  task boundary: one bad trigger must not stop all schedules
            _log.error("schedule.not_settled", trigger_no=due.no, exc_info=error)
        self._hold(due)
        return None

    async def _write_safely(self, settlement: _Settlement) -> None:
        try:
            reach("schedule.planned")
            await self._reactor.write(settlement.reactions, lambda connection: _store(connection, settlement))
            reach("schedule.settled")
        except ConflictError as error:  # changed, paused or removed just now
            _log.info("schedule.changed_meanwhile", trigger_no=settlement.due.no, why=error.message)
            self._hold(settlement.due)
        except TaskforgeError as error:
            _log.warning("schedule.not_written", trigger_no=settlement.due.no, error=error.message)
            self._hold(settlement.due, RETRY_S)
        else:
            self._pauses.pop(settlement.due.no, None)
            for late in settlement.late_us:
                self.lateness.add(late)
            if any(row.outcome == "PENDING" for row in settlement.news):
                self.on_published()

    def _hold(self, due: _Due, pause_s: float = 0.0) -> None:
        """Leave a trigger alone for a while: so long, or longer each time."""
        if not pause_s:
            pause_s = min(2 * self._pauses.get(due.no, RETRY_S / 2), RETRY_S_MAX)
            self._pauses[due.no] = pause_s
        self._held[due.no] = time.monotonic() + pause_s

    # --- one trigger -------------------------------------------------------------------------------------------------

    async def _decide(self, due: _Due) -> _Settlement | None:
        trigger = self._triggers.find(due.workflow_no, due.key)
        asked = None if trigger is None else await self._reactor.asked(trigger)
        if trigger is None or asked is None or not isinstance(asked.source, CronTrigger):
            self._hold(due)  # another version is being applied
            return None
        if asked.refusal or schedule_text(asked.source) != due.schedule:
            self._hold(due)  # the table knows already what memory does not: a resumption, a new schedule
            return None
        schedule = asked.source.schedule(self._identity(asked))
        now = self._clock.wall()
        since, until = due.suspended_from, due.suspended_until
        suspended = None if since is None else (since, until if until is not None else now)
        planned = plan(
            schedule, asked.source.policy, cursor=due.cursor, now=now, suspended=suspended, on_time_us=ON_TIME_US
        )
        planned = _coalesced(planned, asked.source)
        if due.cursor < due.ahead_until:
            planned = await self._not_fired(due, planned, now - schedule.delay_us)
        return await self._fire(due, asked, asked.source, schedule, _portion(planned, schedule, now), now)

    async def _not_fired(self, due: _Due, planned: Plan, newest: int) -> Plan:
        """Leave of a plan what did not fire when it was entered by a clock that was ahead: the rest is in the ledger.

        Once all of that has passed only what is on time comes still. What follows it is for the next scan, at once.
        """
        until = min(planned.cursor, due.ahead_until)
        since = due.cursor if newest <= due.ahead_until else newest - ON_TIME_US
        fired = {row[0] for row in await self._store.rows("fired_slots", due.no, since, until + 1)}
        fire = [one for one in planned.fire if since <= one.due_at <= until and one.due_at not in fired]
        return Plan(fire, [], until, planned.next_at if until == planned.cursor else due.next_at)

    def _identity(self, asked: Asked) -> str:
        namespace = self._access.namespace_name(asked.workflow.namespace_no)
        return f"{namespace}/{asked.workflow.name}/{asked.trigger.key}"

    async def _fire(
        self, due: _Due, asked: Asked, source: CronTrigger, schedule: Schedule, planned: Plan, now: int
    ) -> _Settlement:
        stored = await self._open_runs(due.no) if planned.fire and source.overlap != "allow" else {}
        busy = _Busy(stored, {}, set())
        reactions: list[Reaction] = []
        slots = [slot_row(due.no, one, now) for one in planned.ranges]
        late: list[int] = []
        try:
            for slot in planned.fire:
                late_us = now - slot.due_at - schedule.delay_us
                reaction = self._ask(asked, source, schedule, slot, late_us, busy)
                reactions.append(reaction)
                outcome, reason = _outcome(reaction, late_us, busy.reasons)
                backfill = 0
                if slot.due_at <= due.ahead_until:
                    backfill, reason = reaction.event.no, "; ".join(filter(None, [_ENTERED, reason]))
                row = (due.no, slot.due_at, backfill, slot.due_at, 1, outcome, now, late_us, reaction.event.no, reason)
                slots.append(row)
                if outcome == "FIRED":
                    late.append(late_us)
                if sum(len(one.prepared) for one in reactions) >= RUNS_AT_ONCE and slot is not planned.fire[-1]:
                    planned = _until(planned, slot, schedule, now)
                    break
        except BaseException:
            self._reactor.discard(reactions)
            raise
        news = self._news(asked, planned)
        return _Settlement(due, reactions, slots, news, planned.cursor, planned.next_at, late)

    def _ask(
        self,
        asked: Asked,
        source: CronTrigger,
        schedule: Schedule,
        slot: Slot,
        late_us: int,
        busy: _Busy,
    ) -> Reaction:
        is_caught_up = late_us > ON_TIME_US and source.policy.misfire == "all"
        stored, fresh = busy.stored, busy.fresh

        def skip(namespace_no: int) -> str:
            going = stored.get(namespace_no, [])
            reason = ""
            if source.overlap == "skip" and going and not is_caught_up:
                reason = f"run {going[0]} of this trigger was still going"
            elif source.overlap == "skip" and namespace_no in fresh and source.policy.misfire != "all":
                reason = f"run {fresh[namespace_no][0]} of this trigger was started in the same moment"
            elif source.overlap == "queue" and len(going) + len(fresh.get(namespace_no, ())) > WAITING_MAX:
                reason = f"{WAITING_MAX} runs of this trigger wait already"
            if reason:
                busy.reasons.add(reason)
            return reason

        event = due_event(self._store.next_no("events"), self._clock.now(), asked, schedule, slot)
        reaction = self._reactor.react(
            event, [asked], group=group_of(asked, source), schedule_no=asked.trigger.no, skip=skip
        )
        if source.overlap != "allow":
            for run in reaction.prepared:
                fresh.setdefault(run.entry.home.namespace_no, []).append(run.run.run_id)
        return reaction

    async def _open_runs(self, trigger_no: int) -> dict[int, list[str]]:
        """Answer the open runs of a trigger by namespace: for one with `for_each` each tenant overlaps with itself."""
        found: dict[int, list[str]] = {}
        for namespace_no, run_id in await self._store.rows("open_runs_of_trigger", trigger_no):
            found.setdefault(namespace_no, []).append(run_id)
        return found

    def _news(self, asked: Asked, planned: Plan) -> list[EventRow]:
        """Due times that were missed are an event that others can react to."""
        counts: Counter[str] = Counter()
        for one in planned.ranges:
            counts[one.outcome] += one.count
        if not counts["MISSED"]:
            return []
        missed = [one for one in planned.ranges if one.outcome == "MISSED"]
        data: dict[str, Json] = {
            "workflow": asked.workflow.name,
            "trigger": asked.trigger.key,
            "count": counts["MISSED"],
            "first_due_time": utc_text(missed[0].first),
            "last_due_time": utc_text(missed[-1].last),
            "reason": missed[0].reason,
        }
        namespace_no = asked.workflow.namespace_no
        no, at = self._store.next_no("events"), self._clock.now()
        outcome = "PENDING" if self._triggers.listens(namespace_no, MISSED) else "UNMATCHED"
        return [
            internal_event(*(no, new_id("evt", at), namespace_no, MISSED, data, at), source="engine", outcome=outcome)
        ]


_ENTERED = "entered before, when the clock was ahead"


def _coalesced(planned: Plan, source: CronTrigger) -> Plan:
    """Leave the newest of several due times that came at once, where only one of them could start a run anyway."""
    if source.policy.misfire != "latest" or source.overlap != "skip" or len(planned.fire) < 2:
        return planned
    reason = "several were due at once, and the newest stands for all"
    older = [Range(one.due_at, one.due_at, 1, "COALESCED", reason) for one in planned.fire[:-1]]
    return planned._replace(fire=planned.fire[-1:], ranges=[*planned.ranges, *older])


def _portion(planned: Plan, schedule: Schedule, now: int) -> Plan:
    """Take so much of a plan as fits into one transaction; the scan comes back at once for the rest."""
    if len(planned.fire) <= FIRES_AT_ONCE:
        return planned
    return _until(planned, planned.fire[FIRES_AT_ONCE - 1], schedule, now)


def _until(planned: Plan, last: Slot, schedule: Schedule, now: int) -> Plan:
    """Answer the part of a plan that ends with a slot; the scan goes on behind it at once."""
    fire = [one for one in planned.fire if one.due_at <= last.due_at]
    return Plan(fire, planned.ranges, last.due_at, min(now, last.due_at + schedule.delay_us + 1))


def _store(connection: Connection, settlement: _Settlement) -> None:
    due = settlement.due
    moved = connection.execute(
        QUERIES["settle_schedule"], (settlement.cursor, settlement.next_at, due.no, due.cursor)
    ).rowcount
    if moved != 1:
        raise ConflictError("the schedule was settled or changed by somebody else")
    for reaction in settlement.reactions:
        insert_event(connection, reaction.event, None)
    for row in settlement.news:
        insert_event(connection, row, None)
    connection.executemany(QUERIES["insert_slot"], settlement.slots)


def _outcome(reaction: Reaction, late_us: int, overlaps: Collection[str]) -> tuple[str, str]:
    """Answer what the ledger says of a due time whose trigger was asked."""
    judgement = reaction.judgements[0]
    reasons = reaction.refusals
    if reaction.prepared:
        late = f"late by {late_us / 1_000_000:.1f} s" if late_us > ON_TIME_US else ""
        partly = f"{len(reasons)} items were not started, the first: {reasons[0]}" if reasons else ""
        return "FIRED", "; ".join(filter(None, [late, partly]))
    if reasons and all(reason in overlaps for reason in reasons):
        return "SKIPPED", reasons[0]
    if judgement.is_fault or reasons:
        return "FAILED", reasons[0] if reasons else judgement.reason
    return "FILTERED", judgement.reason


def group_of(asked: Asked, source: CronTrigger) -> Group | None:
    """Answer the group of a trigger's runs: with any overlap policy but `allow` they follow one another."""
    if source.overlap == "allow":
        return None
    return Group(f"{CRON_GROUP}{asked.workflow.name}/{asked.trigger.key}")


def due_event(no: int, at: int, asked: Asked, schedule: Schedule, slot: Slot) -> EventRow:
    """Answer the event of a due time."""
    data: dict[str, Json] = {
        "due_time": utc_text(slot.due_at),
        "local_time": local_text(slot.due_at, schedule.zone),
        "timezone": schedule.zone,
        "schedule": schedule.cron.expression,
    }
    row = internal_event(
        *(no, new_id("evt", at), asked.workflow.namespace_no, DUE, data, at), source="cron", outcome="PENDING"
    )
    return row._replace(addressee=f"{asked.workflow.name}/{asked.trigger.key}")
