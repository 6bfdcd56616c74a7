"""All triggers that newest versions declare: rows with an identity of their own, and who listens where.

A row outlives versions: it keeps the pause that somebody ordered, the cursor of a schedule and its ledger. What is
needed for every delivery and event (who listens, what is paused) is held in memory and changed only after the commit
that changes it; cursors are read from the table, since only one scan needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from taskforged.clock import Clock, new_id
from taskforged.control.judging import type_matches
from taskforged.engine.model import Json
from taskforged.jsonvalue import load_stored, to_text
from taskforged.language.definition import CronTrigger, Definition, EventTrigger, Source, WebhookTrigger
from taskforged.schedule import PROFILE, Policy, Range, Schedule, jitter_us, parse_cron, plan, slots_after
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["Declaration", "LiveTrigger", "TriggerBook", "change_schedules", "next_fire", "schedule_text", "slot_row"]


@dataclass(frozen=True, slots=True)
class LiveTrigger:
    """A row of `triggers`, without what only schedules have. `removed_at`: the newest version does not declare it."""

    no: int
    id: str
    namespace_no: int
    workflow_no: int
    key: str
    kind: str
    address: str
    created_at: int
    paused_at: int | None = None
    paused_by: str = ""
    pause_reason: str = ""
    removed_at: int | None = None


class Declaration(NamedTuple):
    """What a version makes of the triggers of its workflow: `write` belongs into its transaction."""

    triggers: Sequence[LiveTrigger]
    write: Callable[[Connection], None]


class TriggerBook:
    """The triggers of all namespaces."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._by_workflow: dict[int, dict[str, LiveTrigger]] = {}
        self._paths: dict[tuple[int, str], dict[int, LiveTrigger]] = {}
        self._types: dict[int, dict[int, LiveTrigger]] = {}
        self._heard: dict[tuple[int, str], bool] = {}
        self.on_schedule: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Load all triggers."""
        for row in await self._store.rows("live_triggers"):
            self.remember(LiveTrigger(*row))

    # --- looking -----------------------------------------------------------------------------------------------------

    def of_workflow(self, workflow_no: int) -> list[LiveTrigger]:
        """Answer the triggers of a workflow by key."""
        found = self._by_workflow.get(workflow_no, {})
        return [found[key] for key in sorted(found) if found[key].removed_at is None]

    def find(self, workflow_no: int, key: str) -> LiveTrigger | None:
        """Answer a trigger."""
        found = self._by_workflow.get(workflow_no, {}).get(key)
        return None if found is None or found.removed_at is not None else found

    def on_path(self, namespace_no: int, path: str) -> list[LiveTrigger]:
        """Answer the triggers that listen on a webhook path, in a stable order."""
        found = self._paths.get((namespace_no, path), {})
        return sorted(found.values(), key=lambda one: (one.workflow_no, one.key))

    def on_type(self, namespace_no: int, name: str) -> list[LiveTrigger]:
        """Answer the triggers that ask for events of a type, in a stable order."""
        found = self._types.get(namespace_no, {}).values()
        return sorted((t for t in found if type_matches(t.address, name)), key=lambda one: (one.workflow_no, one.key))

    def listens(self, namespace_no: int, name: str) -> bool:
        """Whether a trigger of a namespace asks for events of a type. Called for every run that ends."""
        if namespace_no not in self._types:
            return False
        key = (namespace_no, name)
        heard = self._heard.get(key)
        if heard is None:
            if len(self._heard) >= _HEARD_MAX:
                self._heard.clear()
            heard = self._heard[key] = bool(self.on_type(namespace_no, name))
        return heard

    # --- changing ----------------------------------------------------------------------------------------------------

    def remember(self, trigger: LiveTrigger) -> None:
        """A trigger is so from now on."""
        self._forget(trigger)
        self._by_workflow.setdefault(trigger.workflow_no, {})[trigger.key] = trigger
        self._heard.clear()
        if trigger.removed_at is not None:
            return
        if trigger.kind == "webhook":
            self._paths.setdefault((trigger.namespace_no, trigger.address), {})[trigger.no] = trigger
        elif trigger.kind == "event":
            self._types.setdefault(trigger.namespace_no, {})[trigger.no] = trigger

    def _forget(self, trigger: LiveTrigger) -> None:
        known = self._by_workflow.get(trigger.workflow_no, {}).get(trigger.key)
        if known is None:
            return
        place = (known.namespace_no, known.address)
        self._paths.get(place, {}).pop(known.no, None)
        if not self._paths.get(place, True):
            del self._paths[place]
        self._types.get(known.namespace_no, {}).pop(known.no, None)
        if not self._types.get(known.namespace_no, True):
            del self._types[known.namespace_no]

    def forget_workflow(self, workflow_no: int) -> list[LiveTrigger]:
        """A workflow is being deleted; answers its triggers."""
        known = list(self._by_workflow.get(workflow_no, {}).values())
        for trigger in known:
            self._forget(trigger)
        self._by_workflow.pop(workflow_no, None)
        self._heard.clear()
        return known

    def declare(
        self, namespace_no: int, workflow_no: int, identity: str, definition: Definition, *, is_active: bool
    ) -> Declaration:
        """Work out what a new version makes of its triggers; nothing changes before `write` and `adopt`.

        Args:
            namespace_no: of the workflow.
            workflow_no: of the workflow.
            identity: `namespace/workflow`, what `H` and `jitter` are computed from.
            definition: the new version.
            is_active: whether the workflow is active.
        """
        now = self._clock.now()
        known = self._by_workflow.get(workflow_no, {})
        sources = definition.sources()
        triggers, work = [], []
        for key, source in sources.items():
            before = known.get(key)
            after = self._declared(namespace_no, workflow_no, key, source, before, now)
            triggers.append(after)
            work.append((before, after, source))
        gone = [t for key, t in known.items() if key not in sources and t.removed_at is None]
        triggers += [replace(trigger, removed_at=now) for trigger in gone]
        wall = self._clock.wall()

        def write(connection: Connection) -> None:
            for before, after, source in work:
                _write(connection, before, after, source, f"{identity}/{after.key}", wall, is_active=is_active)
            for trigger in gone:
                _settle(connection, trigger.no, f"{identity}/{trigger.key}", wall, "the trigger was removed")
                connection.execute(QUERIES["remove_trigger"], (now, wall, trigger.no))

        return Declaration(triggers, write)

    def retire(self, workflow_no: int, identity: str, now: int) -> Callable[[Connection], None]:
        """Answer what belongs into the transaction that deletes a workflow."""
        known = [one for one in self._by_workflow.get(workflow_no, {}).values() if one.removed_at is None]
        wall = self._clock.wall()

        def write(connection: Connection) -> None:
            for trigger in known:
                _settle(connection, trigger.no, f"{identity}/{trigger.key}", wall, "the workflow was deleted")
                connection.execute(QUERIES["remove_trigger"], (now, wall, trigger.no))

        return write

    def adopt(self, declaration: Declaration) -> None:
        """The declaration is on disk."""
        for trigger in declaration.triggers:
            self.remember(trigger)
        self.on_schedule()

    def _declared(
        self, namespace_no: int, workflow_no: int, key: str, source: Source, before: LiveTrigger | None, now: int
    ) -> LiveTrigger:
        address = _address(source)
        if before is not None:
            return replace(before, kind=source.kind, address=address, removed_at=None)
        no = self._store.next_no("triggers")
        return LiveTrigger(no, new_id("trg", now), namespace_no, workflow_no, key, source.kind, address, now)


_HEARD_MAX = 10_000


def _address(source: Source) -> str:
    match source:
        case WebhookTrigger():
            return source.path
        case EventTrigger():
            return source.type
        case CronTrigger():
            return ""


# --- in the connection's thread --------------------------------------------------------------------------------------


def schedule_text(source: Source) -> str:
    """Answer what the due times of a trigger depend on."""
    if not isinstance(source, CronTrigger):
        return ""
    parts: list[Json] = [source.expression, source.seconds, source.zone, source.gap, source.fold]
    return to_text([*parts, source.start_at, source.end_at, source.jitter_s])


def _schedule_from(text: str, identity: str) -> Schedule:
    expression, seconds, zone, gap, fold, start, end, jitter = load_stored(text)
    delay = jitter_us(identity, jitter) if jitter else 0
    return Schedule(parse_cron(expression, seconds=seconds, seed=identity), zone, gap, fold, start, end, delay)


def next_fire(schedule: Schedule, after: int) -> int | None:
    """Answer when the first due time after an instant fires."""
    found = slots_after(schedule, after, 1)
    return found[0].due_at + schedule.delay_us if found else None


def _write(
    connection: Connection,
    before: LiveTrigger | None,
    after: LiveTrigger,
    source: Source,
    identity: str,
    wall: int,
    *,
    is_active: bool,
) -> None:
    text = schedule_text(source)
    profile = PROFILE if text else ""
    is_free = is_active and after.paused_at is None
    next_at = next_fire(_schedule_from(text, identity), wall) if text and is_free else None
    suspended = wall if text and not is_free else None
    if before is None:
        row: Row = (*_identity_row(after), profile, text, wall if text else 0, next_at, suspended)
        connection.execute(QUERIES["insert_trigger"], row)
        return
    stored = connection.execute(QUERIES["schedule_of_trigger"], (after.no,)).fetchone()
    is_same = before.removed_at is None and (profile, text) == (stored[0], stored[1])
    if is_same and (before.kind, before.address) == (after.kind, after.address):
        return
    if before.removed_at is None:
        _settle(connection, after.no, identity, wall, "the schedule was changed")
    row = (after.kind, after.address, profile, text, wall, next_at, suspended, after.no)
    connection.execute(QUERIES["declare_trigger"], row)


def _identity_row(trigger: LiveTrigger) -> Row:
    return (
        *(trigger.no, trigger.id, trigger.namespace_no, trigger.workflow_no, trigger.key, trigger.kind),
        *(trigger.address, trigger.created_at),
    )


def _settle(connection: Connection, no: int, identity: str, now: int, reason: str) -> None:
    """Enter what is due under a schedule that ends into the ledger: it will never fire."""
    _, text, cursor, _, since, until, ahead_until = connection.execute(QUERIES["schedule_of_trigger"], (no,)).fetchone()
    if not text:
        return
    suspended = None if since is None else (since, until or now)
    schedule = replace(_schedule_from(text, identity), delay_us=0)
    cursor = max(cursor, ahead_until)  # up to there it has been entered, when the clock was ahead
    settled = plan(schedule, Policy("skip"), cursor=cursor, now=now, suspended=suspended, on_time_us=-1)
    last = [Range(slot.due_at, slot.due_at, 1, "MISSED", reason) for slot in settled.fire]
    for one in [*settled.ranges, *last]:
        why = reason if one.outcome == "MISSED" else one.reason
        connection.execute(QUERIES["insert_slot"], slot_row(no, one, now, why))


def slot_row(no: int, one: Range, now: int, reason: str = "") -> Row:
    """Answer the ledger's row for due times that started nothing."""
    return (no, one.first, 0, one.last, one.count, one.outcome, now, 0, None, reason or one.reason)


def change_schedules(connection: Connection, numbers: Sequence[int], wall: int, *, is_free: bool) -> None:
    """Let schedules rest, or wake them: then the scan settles what fell due meanwhile."""
    for no in numbers:
        if is_free:
            connection.execute(QUERIES["release_schedule"], (wall, wall, no))
        else:
            connection.execute(QUERIES["suspend_schedule"], (wall, no))
