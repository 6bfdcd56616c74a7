"""Triggers as people see them: list, pause, resume, fire by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access, Principal
from taskforged.control.checks import INPUT_MAX, REASON_MAX, REQUEST_ID_MAX, check_text, invalid
from taskforged.control.publishing import request_key
from taskforged.control.reactor import Reactor
from taskforged.control.schedules import DUE
from taskforged.control.trigger_book import LiveTrigger, TriggerBook, change_schedules
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.engine.model import EVENT_TYPE, EVENT_TYPE_MAX, Json
from taskforged.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    TaskforgeError,
    Violation,
)
from taskforged.jsonvalue import parse_json, to_text
from taskforged.language.definition import CronTrigger, EventTrigger, Source
from taskforged.schedule import Schedule, local_text, slots_after, utc_text
from taskforged.store.events import REQUESTS, EventRow, EventStore, insert_event
from taskforged.store.rows import internal_event
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["FireRequest", "Identified", "ScheduleRow", "TriggerView", "Triggers"]

_HEADERS_MAX = 100
_HEADER_MAX = 8192


class ScheduleRow(NamedTuple):
    """What the table knows of a schedule."""

    profile: str
    schedule: str
    cursor: int
    next_at: int | None
    suspended_from: int | None
    suspended_until: int | None
    ahead_until: int


class Identified(NamedTuple):
    """A trigger that was named, with what declares it."""

    trigger: LiveTrigger
    workflow: LiveWorkflow
    source: Source
    identity: str

    def schedule(self) -> Schedule:
        """Answer the schedule of a cron trigger."""
        assert isinstance(self.source, CronTrigger)
        return self.source.schedule(self.identity)


class TriggerView(NamedTuple):
    """A trigger to be shown."""

    found: Identified
    namespace: str
    last_event_id: str = ""
    last_fire_at: int = 0
    row: ScheduleRow | None = None
    next_due_at: int = 0


@dataclass(frozen=True, slots=True)
class FireRequest:
    """What a trigger that is fired by hand shall see."""

    payload_json: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = ""
    request_id: str = ""


class Triggers:
    """Use cases about triggers."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        book: TriggerBook,
        reactor: Reactor,
        on_published: Callable[[], None],
    ) -> None:
        """Create the use cases; `on_published` is called after an event was stored whose triggers must be asked."""
        self._store = store
        self._events = EventStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._book = book
        self._reactor = reactor
        self._on_published = on_published

    # --- looking -----------------------------------------------------------------------------------------------------

    async def identify(self, namespace_no: int, workflow: str, key: str, kinds: Sequence[str] = ()) -> Identified:
        """Answer the trigger that is meant; without a key the only one of these kinds.

        Raises:
            NotFoundError: there is none.
            InvalidArgumentError: several fit.
        """
        if not workflow:
            raise invalid("workflow", "is required")
        live = self._workflows.get(namespace_no, workflow)
        fitting = [t for t in self._book.of_workflow(live.no) if not kinds or t.kind in kinds]
        named = [t for t in fitting if t.key == key] if key else fitting
        if not named:
            raise NotFoundError(_none_fits(live.name, key, self._book.of_workflow(live.no), kinds))
        if len(named) > 1:
            names = ", ".join(f"{live.name}/{one.key}" for one in named)
            message = f"workflow {live.name!r} has several triggers that fit; say which one: {names}"
            raise InvalidArgumentError(message, violations=[Violation("trigger", message)])
        return await self._identified(named[0], live)

    async def _identified(self, trigger: LiveTrigger, live: LiveWorkflow) -> Identified:
        definition = await self._workflows.definition(live.no, live.latest)
        source = definition.sources().get(trigger.key)
        if source is None:
            raise ConflictError(f"workflow {live.name!r} is being changed; ask again")
        identity = f"{self._access.namespace_name(live.namespace_no)}/{live.name}/{trigger.key}"
        return Identified(trigger, live, source, identity)

    def page(
        self, namespace_no: int, *, workflow: str, kinds: Sequence[str], after: tuple[str, str], limit: int
    ) -> list[tuple[LiveWorkflow, LiveTrigger]]:
        """Answer up to `limit` triggers whose workflow and key sort behind `after`."""
        names = self._workflows.page(namespace_no, after="", limit=1 << 31)
        found = [
            (one, trigger)
            for one in names
            if (not workflow or one.name == workflow) and one.name >= after[0]
            for trigger in self._book.of_workflow(one.no)
            if (not kinds or trigger.kind in kinds) and (one.name, trigger.key) > after
        ]
        return found[:limit]

    async def view(self, found: Identified) -> TriggerView:
        """Answer a trigger to be shown."""
        trigger = found.trigger
        row, next_due_at = None, 0
        if trigger.kind == "cron":
            row = ScheduleRow(*(await self._store.row("schedule_of_trigger", trigger.no) or ()))
            following = slots_after(found.schedule(), max(row.cursor, self._clock.wall()), 1)
            next_due_at = following[0].due_at if following else 0
        last = await self._store.row("last_run_of_trigger", trigger.workflow_no, trigger.key)
        event_id, at = (last[0] or "", last[1]) if last is not None else ("", 0)
        return TriggerView(found, self._access.namespace_name(trigger.namespace_no), event_id, at, row, next_due_at)

    async def view_listed(self, workflow: LiveWorkflow, trigger: LiveTrigger) -> TriggerView | None:
        """Answer a trigger of a page to be shown; None when it is being changed or removed just now."""
        try:
            return await self.view(await self._identified(trigger, workflow))
        except ConflictError:
            return None

    # --- pausing -----------------------------------------------------------------------------------------------------

    async def pause(self, principal: Principal, found: Identified, reason: str) -> Identified:
        """Let a trigger start nothing. Idempotent: the first pause stands."""
        check_text("reason", reason, REASON_MAX)
        async with self._workflows.changing:
            trigger = self._still(found)
            if trigger.paused_at is None:
                now = self._clock.now()
                changed = replace(trigger, paused_at=now, paused_by=principal.token_id, pause_reason=reason)
                self._book.remember(changed)  # before the commit: what is decided from here on may be written behind it
                try:
                    await self._change(found, changed, principal, "trigger.paused", is_free=False)
                except TaskforgeError:
                    self._book.remember(trigger)
                    raise
                return found._replace(trigger=changed)
        return found._replace(trigger=trigger)

    async def resume(self, principal: Principal, found: Identified) -> Identified:
        """End a pause. Idempotent. What fell due meanwhile is settled by the next scan, at once."""
        async with self._workflows.changing:
            trigger = self._still(found)
            if trigger.paused_at is not None:
                changed = replace(trigger, paused_at=None, paused_by="", pause_reason="")
                await self._change(found, changed, principal, "trigger.resumed", is_free=True)
                return found._replace(trigger=changed)
        return found._replace(trigger=trigger)

    def _still(self, found: Identified) -> LiveTrigger:
        trigger = self._book.find(found.workflow.no, found.trigger.key)
        if trigger is None:
            raise NotFoundError(f"trigger {found.identity!r} was removed just now")
        return trigger

    async def _change(
        self, found: Identified, changed: LiveTrigger, principal: Principal, name: str, *, is_free: bool
    ) -> None:
        news = self._news(found, changed, principal, name)
        live = self._workflows.by_no(changed.workflow_no)
        is_active = live is not None and live.active
        wall = self._clock.wall()

        def write(connection: Connection) -> None:
            if is_free:
                connection.execute(QUERIES["resume_trigger"], (changed.no,))
            else:
                row = (changed.paused_at, changed.paused_by, changed.pause_reason, changed.no)
                connection.execute(QUERIES["pause_trigger"], row)
            if is_active or not is_free:
                change_schedules(connection, [changed.no] if changed.kind == "cron" else [], wall, is_free=is_free)
            insert_event(connection, news, None)

        await self._store.journal.execute(write)
        self._book.remember(changed)
        self._book.on_schedule()
        self._on_published()

    def _news(self, found: Identified, changed: LiveTrigger, principal: Principal, name: str) -> EventRow:
        data: dict[str, Json] = {
            "workflow": found.workflow.name,
            "trigger": changed.key,
            "by": principal.token_id,
            "reason": changed.pause_reason,
        }
        now, namespace_no = self._clock.now(), changed.namespace_no
        return internal_event(
            *(self._store.next_no("events"), new_id("evt", now), namespace_no, name, data, now),
            source="engine",
            outcome="PENDING" if self._book.listens(namespace_no, name) else "UNMATCHED",
            created_by=principal.token_id,
        )

    # --- firing ------------------------------------------------------------------------------------------------------

    async def fire(self, principal: Principal, found: Identified, wanted: FireRequest) -> EventRow:
        """Ask a trigger by hand, also a paused one; answers the event, or that of the first call with its request id.

        Raises:
            InvalidArgumentError: the payload is no JSON, or a header cannot be.
            AlreadyExistsError: the request id stands for another call.
        """
        check_text("request_id", wanted.request_id, REQUEST_ID_MAX)
        event = self._fired(principal, found, wanted)
        asked = await self._reactor.asked(found.trigger)
        if asked is None:
            raise NotFoundError(f"trigger {found.identity!r} was removed just now")
        key = request_key(f"fire\0{found.identity}", wanted.request_id) if wanted.request_id else None
        if key is not None:
            known = await self._fired_before(event, key, wanted)
            if known is not None:
                return known
        reaction = self._reactor.react(event, [asked._replace(refusal="")])
        stored = reaction.event
        try:
            await self._reactor.write([reaction], lambda c: insert_event(c, stored, key, REQUESTS))
        except ConflictError:
            known = None if key is None else await self._fired_before(event, key, wanted)
            if known is None:
                raise
            return known
        return stored

    async def _fired_before(self, event: EventRow, key: bytes, wanted: FireRequest) -> EventRow | None:
        known = await self._events.by_delivery(event.namespace_no, REQUESTS, key)
        found = None if known is None else await self._events.by_no(known[0])
        if found is None:
            return None
        is_other = (found.type, found.headers) != (event.type, event.headers)
        # Without a payload a cron trigger gets the time, which is another one now.
        is_now = found.source == "manual" and event.type == DUE and not wanted.payload_json
        if is_other or (found.body != event.body and not is_now):
            raise AlreadyExistsError(
                f"request_id {wanted.request_id!r} was used for another call, which made {found.id}",
                metadata={"request_id": wanted.request_id, "event": found.id},
            )
        return found

    def _fired(self, principal: Principal, found: Identified, wanted: FireRequest) -> EventRow:
        trigger, source = found.trigger, found.source
        now = self._clock.now()
        body: Json = None
        if wanted.payload_json:
            body = parse_json(wanted.payload_json, where="payload_json", size_max=INPUT_MAX)
        elif isinstance(source, CronTrigger):
            due = {"due_time": utc_text(now), "local_time": local_text(now, source.zone), "timezone": source.zone}
            body = {**due, "schedule": source.expression}
        row = internal_event(
            *(
                self._store.next_no("events"),
                new_id("evt", now),
                trigger.namespace_no,
                _type_of(source, wanted),
                body,
                now,
            ),
            source="manual",
            outcome="FILTERED",
            created_by=principal.token_id,
        )
        headers = {**_headers(wanted.headers), "content-type": "application/json"}
        path = trigger.address if trigger.kind == "webhook" else ""
        return row._replace(headers=to_text(headers), path=path, addressee=f"{found.workflow.name}/{trigger.key}")


def _type_of(source: Source, wanted: FireRequest) -> str:
    if isinstance(source, CronTrigger) and not wanted.type:
        return DUE
    if isinstance(source, EventTrigger):
        if wanted.type and (len(wanted.type) > EVENT_TYPE_MAX or not EVENT_TYPE.fullmatch(wanted.type)):
            raise invalid("type", f"{wanted.type[:80]!r} is no type of an event; write for example order.paid")
        return wanted.type or ("" if "*" in source.type else source.type)
    if wanted.type:
        raise invalid("type", "is possible only for a trigger on events")
    return ""


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    if len(headers) > _HEADERS_MAX:
        raise invalid("headers", f"may have at most {_HEADERS_MAX} entries")
    for name, value in headers.items():
        if not name or name != name.lower() or len(name) > 100:
            raise invalid("headers", f"{name[:100]!r} is no name of a header in lower case")
        check_text(f"headers[{name}]", value, _HEADER_MAX)
    return dict(headers)


def _none_fits(workflow: str, key: str, known: Sequence[LiveTrigger], kinds: Sequence[str]) -> str:
    there = ", ".join(f"{one.key} ({one.kind})" for one in known) or "none but manual"
    kind = f"{' or '.join(kinds)} " if kinds else ""
    wanted = f"{kind}trigger {key!r}" if key else f"{kind}trigger"
    return f"workflow {workflow!r} has no {wanted}; it has {there}"
