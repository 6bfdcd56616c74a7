"""Replays: an event of the past offered again, as a new event that names the old one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from taskforged.clock import Clock, new_id
from taskforged.control.access import Principal
from taskforged.control.checks import INPUT_MAX, REQUEST_ID_MAX, check_text, invalid
from taskforged.control.events import Events, EventView, runs_of_verdicts
from taskforged.control.publishing import request_key
from taskforged.control.reactor import Asked, Reactor
from taskforged.control.trigger_book import LiveTrigger, TriggerBook
from taskforged.control.workflows import Workflows
from taskforged.engine.model import Json
from taskforged.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TaskforgeError,
)
from taskforged.jsonvalue import load_stored, parse_json
from taskforged.payload import decode
from taskforged.store.events import REQUESTS, EventFilter, EventRow, EventStore, insert_event
from taskforged.store.store import Store

__all__ = ["REPLAYS_MAX", "ReplayRequest", "Replayed", "Replays"]

REPLAYS_MAX = 1_000
"""Events of one call."""

_DEFAULT_OUTCOMES = ("ACCEPTED", "FILTERED", "UNMATCHED")


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """How to replay an event.

    Attributes:
        body: instead of its own; None: its own.
        workflow: only its triggers are asked; empty: all that listen where the event came in.
        trigger: only this one of the workflow is asked, wherever it listens.
    """

    body: bytes | None = None
    workflow: str = ""
    trigger: str = ""
    request_id: str = ""


class Replayed(NamedTuple):
    """What became of one event of many."""

    event_id: str
    replay: EventRow | None = None
    error: str = ""

    @property
    def run_ids(self) -> list[str]:
        """Answer the runs that the replay started."""
        return [] if self.replay is None else runs_of_verdicts(self.replay.verdicts)


class Replays:
    """Replays events."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        workflows: Workflows,
        book: TriggerBook,
        reactor: Reactor,
        events: Events,
        body_max: int,
    ) -> None:
        self._store = store
        self._stored = EventStore(store)
        self._clock = clock
        self._workflows = workflows
        self._book = book
        self._reactor = reactor
        self._events = events
        self._body_max = body_max

    async def replay(self, principal: Principal, event_id: str, wanted: ReplayRequest) -> EventView:
        """Offer an event again to the triggers as they are now; answers the new event.

        Raises:
            NotFoundError: there is no such event, workflow or trigger.
            FailedPreconditionError: it was refused, or its body is not kept whole.
            AlreadyExistsError: the request id stands for another replay.
        """
        check_text("request_id", wanted.request_id, REQUEST_ID_MAX)
        original = await self._events.row(principal, event_id)
        return await self._events.view(await self._replay(principal, original, wanted))

    async def replay_many(
        self, principal: Principal, event_ids: Sequence[str], wanted: ReplayRequest, *, dry_run: bool
    ) -> list[Replayed]:
        """Replay events, each like `replay`; one that cannot be does not hinder the others."""
        results = []
        for event_id in event_ids:
            try:
                original = await self._events.row(principal, event_id)
                self._check(original)
                done = None if dry_run else await self._replay(principal, original, wanted)
                results.append(Replayed(event_id, done))
            except TaskforgeError as error:
                results.append(Replayed(event_id, None, error.message))
        return results

    async def select(self, wanted: EventFilter, limit: int) -> tuple[list[str], bool]:
        """Answer up to `limit` events that fit, the oldest first, and whether there are more."""
        wanted = replace(
            wanted,
            outcomes=wanted.outcomes or _DEFAULT_OUTCOMES,
            until=wanted.until or self._clock.now(),
            originals=True,
            oldest_first=True,
        )
        found = await self._stored.page(wanted, limit + 1)
        return [row.id for row in found[:limit]], len(found) > limit

    # --- one event ---------------------------------------------------------------------------------------------------

    async def _replay(self, principal: Principal, original: EventRow, wanted: ReplayRequest) -> EventRow:
        self._check(original)
        key = request_key(f"replay\0{original.id}", wanted.request_id) if wanted.request_id else None
        event = self._again(principal, original, wanted)
        known = None if key is None else await self._before(event, key, wanted)
        if known is not None:
            return known
        triggers = self._triggers(original, wanted)
        asked = [one for one in [await self._reactor.asked(trigger) for trigger in triggers] if one is not None]
        asked = [self._reactor.again(one, self._book.find(one.workflow.no, one.trigger.key)) for one in asked]
        reaction = self._reactor.react(event, asked if wanted.trigger else _refused_again(original, asked))
        stored = reaction.event if asked else reaction.event._replace(outcome="UNMATCHED")
        if wanted.trigger and len(asked) == 1:
            stored = stored._replace(addressee=_name(asked[0]))
        try:
            await self._reactor.write([reaction], lambda c: insert_event(c, stored, key, REQUESTS))
        except ConflictError:
            known = None if key is None else await self._before(event, key, wanted)
            if known is None:
                raise
            return known
        return stored

    async def _before(self, event: EventRow, key: bytes, wanted: ReplayRequest) -> EventRow | None:
        known = await self._stored.by_delivery(event.namespace_no, REQUESTS, key)
        found = None if known is None else await self._stored.by_no(known[0])
        if found is not None and found.body != event.body:
            raise AlreadyExistsError(
                f"request_id {wanted.request_id!r} was used for another replay, {found.id}",
                metadata={"request_id": wanted.request_id, "event": found.id},
            )
        return found

    def _check(self, original: EventRow) -> None:
        if original.outcome == "DUPLICATE":
            raise FailedPreconditionError(
                f"{original.id} repeats {original.duplicate_of}, which has the body: replay that one",
                metadata={"event": original.id, "duplicate_of": original.duplicate_of},
            )
        if original.outcome == "PENDING":
            raise FailedPreconditionError(
                f"{original.id} is PENDING: its triggers are still to be asked", metadata={"event": original.id}
            )
        if original.outcome in {"REJECTED", "HANDSHAKE"} or original.body_size != len(original.body):
            raise FailedPreconditionError(
                f"{original.id} cannot be replayed: it is {original.outcome}, so it had no effect to repeat",
                metadata={"event": original.id, "outcome": original.outcome},
            )

    def _again(self, principal: Principal, original: EventRow, wanted: ReplayRequest) -> EventRow:
        now = self._clock.now()
        body = original.body if wanted.body is None else wanted.body
        limit = self._body_max if original.source == "webhook" else INPUT_MAX
        if len(body) > limit:
            raise invalid("body", f"is larger than {limit:,} bytes")
        headers = load_stored(original.headers)

        def parse(raw: bytes) -> Json:
            return parse_json(raw, where="body", size_max=limit)

        try:
            decode(headers.get("content-type", original.content_type), body, parse)
        except InvalidArgumentError as error:
            raise invalid("body", f"is not what the event's content type says: {error.message}") from None
        return original._replace(
            no=self._store.next_no("events"),
            id=new_id("evt", now),
            outcome="FILTERED",
            body=body,
            body_size=len(body),
            verdicts="[]",
            created_at=now,
            run_no=None,
            depth=0,
            replay_of=original.id,
            created_by=principal.token_id,
        )

    def _triggers(self, original: EventRow, wanted: ReplayRequest) -> list[LiveTrigger]:
        """Answer who is asked: those who listen where the event came in, or the one that is named."""
        if wanted.trigger and not wanted.workflow:
            raise invalid("trigger", "needs 'workflow'")
        namespace_no = original.namespace_no
        only = self._workflows.get(namespace_no, wanted.workflow) if wanted.workflow else None
        if only is not None and wanted.trigger:
            found = self._book.find(only.no, wanted.trigger)
            if found is None:
                raise NotFoundError(f"workflow {only.name!r} has no trigger {wanted.trigger!r}")
            return [found]
        listening = self._listening(original)
        return [one for one in listening if only is None or one.workflow_no == only.no]

    def _listening(self, original: EventRow) -> list[LiveTrigger]:
        if original.addressee:
            workflow, _, key = original.addressee.partition("/")
            try:
                found = self._book.find(self._workflows.get(original.namespace_no, workflow).no, key)
            except NotFoundError:
                return []
            return [] if found is None else [found]
        if original.source == "webhook":
            return self._book.on_path(original.namespace_no, original.path)
        return self._book.on_type(original.namespace_no, original.type)


def _refused_again(original: EventRow, asked: Sequence[Asked]) -> list[Asked]:
    """Refuse for the triggers to which the sender was not proved: other triggers of the path took the event."""
    unproved = {
        (one["workflow"], one["trigger"]): one["reason"]
        for one in load_stored(original.verdicts)
        if one.get("unproved")
    }
    reasons = [unproved.get((one.workflow.name, one.trigger.key)) for one in asked]
    return [
        one if reason is None else one._replace(refusal=reason, is_proved=False)
        for one, reason in zip(asked, reasons, strict=True)
    ]


def _name(asked: Asked) -> str:
    return f"{asked.workflow.name}/{asked.trigger.key}"
