"""The ledger of schedules: looking into it, explaining it, and making good what it says was missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from taskforged.clock import Clock
from taskforged.control.access import Principal
from taskforged.control.checks import REQUEST_ID_MAX, check_text, invalid
from taskforged.control.publishing import request_key
from taskforged.control.reactor import Asked, Group, Reaction, Reactor
from taskforged.control.schedules import AHEAD_US, due_event
from taskforged.control.triggers import Identified, Triggers, TriggerView
from taskforged.errors import ConflictError, InvalidArgumentError, NotFoundError, Violation
from taskforged.language.definition import CronTrigger
from taskforged.schedule import (
    CronError,
    Schedule,
    Slot,
    ZoneError,
    count_slots,
    load_zone,
    local_text,
    parse_cron,
    slots_after,
    utc_text,
)
from taskforged.store.events import REQUESTS, insert_event
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["Backfill", "BackfillRequest", "Ledger", "PreviewRequest", "ScheduleStory", "SlotFilter", "SlotRow"]

BACKFILL_MAX = 1_000
PREVIEW_MAX = 1_000
_SHOWN = 200
_HORIZON_US = 200 * 366 * 86_400_000_000
"""How far a preview looks: a schedule of one day in four years would otherwise be followed for millennia."""


class SlotRow(NamedTuple):
    """A row of the ledger, with the verdicts of its event."""

    due_at: int
    backfill: int
    last_at: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    outcome: str
    settled_at: int
    late_us: int
    event_id: str
    reason: str
    verdicts: str


@dataclass(frozen=True, slots=True)
class SlotFilter:
    """Which entries to list. `before` is due time and backfill of the last entry of the page before."""

    trigger_no: int
    since: int = 0
    until: int = 0
    outcomes: Sequence[str] = ()
    before: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """A schedule that belongs to no trigger."""

    expression: str
    seconds: bool = False
    zone: str = "UTC"
    gap: str = "shift"
    fold: str = "first"


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """Which due times of the past to start."""

    since: int
    until: int
    max_parallel: int = 0
    include_fired: bool = False
    dry_run: bool = False
    request_id: str = ""


class Backfill(NamedTuple):
    """What a backfill has started, or would."""

    slots: Sequence[SlotRow]
    omitted: int


class ScheduleStory(NamedTuple):
    """What became of the due times of a trigger, and what happens next."""

    view: TriggerView
    summary: Sequence[str]
    counts: Mapping[str, int]
    slots: Sequence[SlotRow]
    waiting: int
    following: Sequence[Slot]


class Ledger:
    """Use cases about schedules."""

    def __init__(self, *, store: Store, clock: Clock, triggers: Triggers, reactor: Reactor) -> None:
        self._store = store
        self._clock = clock
        self._triggers = triggers
        self._reactor = reactor

    # --- looking -----------------------------------------------------------------------------------------------------

    def preview(self, wanted: PreviewRequest, *, after: int, count: int) -> tuple[Schedule, list[Slot]]:
        """Answer the due times of an expression.

        Raises:
            InvalidArgumentError: the expression or the zone cannot be.
        """
        try:
            load_zone(wanted.zone)
            cron = parse_cron(wanted.expression, seconds=wanted.seconds, seed="preview")
        except ZoneError as error:
            raise invalid("timezone", str(error)) from None
        except CronError as error:
            message = f"{error.message} (character {error.offset + 1})"
            raise InvalidArgumentError(
                f"expression: {message}", violations=[Violation("expression", message)]
            ) from None
        for name, value, known in (("gap", wanted.gap, _GAPS), ("fold", wanted.fold, _FOLDS)):
            if value not in known:
                raise invalid(name, f"must be one of {', '.join(known)}")
        schedule = Schedule(cron, wanted.zone, wanted.gap, wanted.fold)
        return schedule, self.next(schedule, after=after, count=count)

    def next(self, schedule: Schedule, *, after: int, count: int) -> list[Slot]:
        """Answer due times later than `after` (0: now)."""
        if not 0 <= count <= PREVIEW_MAX:
            raise invalid("count", f"must be from 1 to {PREVIEW_MAX:,}")
        after = max(after, 0) or self._clock.wall()
        horizon = after + _HORIZON_US
        bounded = replace(schedule, end_at=min(schedule.end_at or horizon, horizon))
        return slots_after(bounded, after, count or 10)

    async def slots(self, wanted: SlotFilter, limit: int) -> list[SlotRow]:
        """Answer up to `limit` entries, newest first."""
        clauses, parameters = ["s.trigger_no = ?"], list[Any]([wanted.trigger_no])
        if wanted.since:
            clauses.append("s.last_at >= ?")
            parameters.append(wanted.since)
        if wanted.until:
            clauses.append("s.due_at < ?")
            parameters.append(wanted.until)
        if wanted.before is not None:
            clauses.append("(s.due_at, s.backfill) < (?, ?)")
            parameters.extend(wanted.before)
        if wanted.outcomes:
            clauses.append(f"s.outcome IN ({', '.join('?' * len(wanted.outcomes))})")
            parameters.extend(wanted.outcomes)
        sql = (
            "SELECT s.due_at, s.backfill, s.last_at, s.count, s.outcome, s.settled_at, s.late_us,"  # noqa: S608
            " coalesce(e.id, ''), s.reason, coalesce(e.verdicts, '[]') FROM schedule_slots s"
            f" LEFT JOIN events e ON e.no = s.event_no WHERE {' AND '.join(clauses)}"
            " ORDER BY s.due_at DESC, s.backfill DESC LIMIT ?"
        )
        rows = await self._store.read(lambda c: c.execute(sql, [*parameters, limit]).fetchall())
        return [SlotRow(*row) for row in rows]

    async def explain(self, found: Identified, *, since: int) -> ScheduleStory:
        """Answer what became of the due times since an instant, and what happens next."""
        view = await self._triggers.view(found)
        assert view.row is not None
        schedule, now = found.schedule(), self._clock.wall()
        since = since or now - 7 * 86_400_000_000
        counts = {row[0]: row[1] for row in await self._store.rows("slot_counts", found.trigger.no, since)}
        slots = await self.slots(SlotFilter(found.trigger.no, since=since), _SHOWN)
        waiting = count_slots(schedule, view.row.cursor, now - schedule.delay_us) if view.row.cursor < now else 0
        following = slots_after(schedule, max(view.row.cursor, now), 3)
        story = ScheduleStory(view, (), counts, slots, waiting, following)
        return story._replace(summary=_summary(story, schedule, since, now))

    # --- backfilling -------------------------------------------------------------------------------------------------

    async def backfill(self, principal: Principal, found: Identified, wanted: BackfillRequest) -> Backfill:
        """Start runs for due times of the past: all in one transaction.

        Raises:
            InvalidArgumentError: the range is empty, lies in the future, or has too many due times.
        """
        check_text("request_id", wanted.request_id, REQUEST_ID_MAX)
        schedule = found.schedule()
        slots, omitted = await self._missing(found, schedule, wanted)
        if wanted.dry_run:
            return Backfill([_planned(slot) for slot in slots], omitted)
        asked = await self._reactor.asked(found.trigger)
        if asked is None:
            raise NotFoundError(f"trigger {found.identity!r} was removed just now")
        asked = asked._replace(refusal="")
        group = _group(asked, wanted, slots)
        reactions: list[Reaction] = []
        try:
            for slot in slots:
                number = self._store.next_no("events")
                event = due_event(number, self._clock.now(), asked, schedule, slot)
                event = event._replace(created_by=principal.token_id)
                reactions.append(self._reactor.react(event, [asked], group=group))
                _check_runs(reactions)
        except BaseException:
            self._reactor.discard(reactions)
            raise
        rows = [
            _backfilled(slot, reaction, self._clock.wall()) for slot, reaction in zip(slots, reactions, strict=True)
        ]
        key = request_key(f"backfill\0{found.identity}", wanted.request_id) if wanted.request_id else None
        try:
            await self._reactor.write(reactions, lambda c: _store(c, found, reactions, rows, key))
        except ConflictError:
            if key is None:
                raise
            return Backfill([], len(slots) + omitted)  # the first call has started them
        return Backfill(rows, omitted)

    async def _missing(self, found: Identified, schedule: Schedule, wanted: BackfillRequest) -> tuple[list[Slot], int]:
        now = self._clock.wall()
        until = wanted.until or now
        if not wanted.since or wanted.since >= until:
            raise invalid("from", "must be earlier than 'to'")
        if until > now:
            raise invalid("to", "must not lie in the future: what is due then starts by itself")
        count = count_slots(schedule, wanted.since - 1, until - 1)
        if count > BACKFILL_MAX:
            raise invalid("from", f"to 'to' there are {count:,} due times; one call starts at most {BACKFILL_MAX:,}")
        slots = slots_after(schedule, wanted.since - 1, count) if count else []
        if wanted.include_fired:
            return slots, 0
        known_from = await self._store.value("slots_from", found.trigger.no) or 0
        if wanted.since < known_from:
            raise invalid(
                "from",
                f"must not be earlier than {utc_text(known_from)}: the ledger of before is pruned, so nobody knows what"
                " fired then; include_fired starts everything",
            )
        rows = await self._store.rows("fired_slots", found.trigger.no, wanted.since, until)
        fired = {row[0] for row in rows}
        missing = [slot for slot in slots if slot.due_at not in fired]
        return missing, len(slots) - len(missing)


def _check_runs(reactions: Sequence[Reaction]) -> None:
    if sum(len(one.prepared) for one in reactions) > BACKFILL_MAX:
        raise invalid("from", f"to 'to' would start more than {BACKFILL_MAX:,} runs; take a shorter time")


_GAPS = ("shift", "skip")
_FOLDS = ("first", "last", "both")


def _group(asked: Asked, wanted: BackfillRequest, slots: Sequence[Slot]) -> Group:
    if not 0 <= wanted.max_parallel <= BACKFILL_MAX:
        raise invalid("max_parallel", f"must be from 1 to {BACKFILL_MAX:,}")
    if wanted.max_parallel and asked.definition.model.concurrency is not None:
        raise invalid("max_parallel", "is decided by the workflow's own concurrency group; leave it out")
    first = utc_text(slots[0].due_at) if slots else ""
    return Group(f"backfill {asked.workflow.name}/{asked.trigger.key} {first}", wanted.max_parallel or 1)


def _planned(slot: Slot) -> SlotRow:
    return SlotRow(slot.due_at, 1, slot.due_at, 1, "FIRED", 0, 0, "", "", "[]")


def _backfilled(slot: Slot, reaction: Reaction, now: int) -> SlotRow:
    event = reaction.event
    outcome, reason = "FIRED", "backfilled"
    if not reaction.prepared:
        judgement = reaction.judgements[0]
        reason = reaction.refusals[0] if reaction.refusals else judgement.reason
        outcome = "FAILED" if judgement.is_fault or reaction.refusals else "FILTERED"
    return SlotRow(slot.due_at, event.no, slot.due_at, 1, outcome, now, 0, event.id, reason, event.verdicts)


def _store(
    connection: Connection,
    found: Identified,
    reactions: Sequence[Reaction],
    rows: Sequence[SlotRow],
    key: bytes | None,
) -> None:
    for reaction, row in zip(reactions, rows, strict=True):
        event = reaction.event
        insert_event(connection, event, key, REQUESTS)
        key = None
        values = (*(found.trigger.no, row.due_at, event.no, row.last_at, 1, row.outcome), row.settled_at, 0, event.no)
        connection.execute(QUERIES["insert_slot"], (*values, row.reason))


# --- in sentences ----------------------------------------------------------------------------------------------------


def _summary(story: ScheduleStory, schedule: Schedule, since: int, now: int) -> list[str]:
    view, row = story.view, story.view.row
    assert row is not None
    trigger, workflow = view.found.trigger, view.found.workflow
    source = view.found.source
    assert isinstance(source, CronTrigger)
    lines = [f"Since {local_text(since, schedule.zone)}: {_counted(story.counts)}."]
    if trigger.paused_at is not None:
        why = f" ({trigger.pause_reason})" if trigger.pause_reason else ""
        lines.append(f"It is paused since {local_text(trigger.paused_at, schedule.zone)} by {trigger.paused_by}{why}.")
    elif not workflow.active:
        lines.append(f"Workflow {workflow.name!r} is not active: nothing fires.")
    if story.waiting and (trigger.paused_at is not None or not workflow.active):
        policy = source.policy.misfire
        lines.append(f"{_times(story.waiting)} passed meanwhile; when it goes on, `misfire: {policy}` decides on them.")
    elif story.waiting:
        lines.append(f"{_times(story.waiting)} passed that cannot be settled yet; the daemon's log says why.")
    if row.ahead_until > max(row.cursor, now):
        lines.append(
            f"The clock was ahead once: due times up to {local_text(row.ahead_until, schedule.zone)} were entered then."
            " Those that fired do not fire again; the others do when they come."
        )
    if row.cursor > now + AHEAD_US:
        lines.append(
            f"The clock was ahead once: due times up to {local_text(row.cursor, schedule.zone)} count as settled, and"
            " nothing fires before, since the ledger is pruned and nobody knows what fired. Declare the trigger under"
            " another id to begin anew; `schedule backfill` starts what is missing."
        )
    elif row.cursor > now + 1_000_000:
        lines.append(
            f"The clock was set back: nothing fires before {local_text(row.cursor, schedule.zone)}, up to when"
            " everything is settled."
        )
    lines += _trouble(story, schedule)
    if story.following:
        lines.append(f"Next due: {local_text(story.following[0].due_at, schedule.zone)}.")
    else:
        lines.append("Nothing is due any more.")
    return lines


def _trouble(story: ScheduleStory, schedule: Schedule) -> list[str]:
    """Say of each outcome that is no success what was last."""
    lines = []
    for outcome in ("FAILED", "MISSED", "SKIPPED", "SUPPRESSED", "COALESCED"):
        last = next((one for one in story.slots if one.outcome == outcome), None)
        if last is not None:
            when = local_text(last.last_at, schedule.zone)
            lines.append(f"Last {_WORDS[outcome]}: {when}: {last.reason}.")
    return lines


_WORDS = {
    "FIRED": "fired",
    "COALESCED": "coalesced",
    "SKIPPED": "skipped",
    "MISSED": "missed",
    "SUPPRESSED": "suppressed",
    "FILTERED": "filtered",
    "FAILED": "failed",
}


def _counted(counts: Mapping[str, int]) -> str:
    parts = [f"{counts[name]:,} {word}" for name, word in _WORDS.items() if counts.get(name)]
    return ", ".join(parts) or "nothing was due"


def _times(count: int) -> str:
    return "1 due time has" if count == 1 else f"{count:,} due times have"
