"""The webhook inbox: keep first, act in the same transaction, answer last.

Order: route, prove the sender over the raw bytes, handshake, parse, deduplicate, ask every trigger on the path for its
verdict, then commit the event, the verdicts and the runs together. A sender is told 2xx only after that commit.
Nothing that helps an attacker goes into an answer; the reasons are in the inbox.

A delivery is the same delivery when the sender's delivery id and the digest of the body are the same, or, where a
scheme has no delivery id, when its signed body is not empty and the same. The unique index decides; the memory of
recent keys only spares the common repetition a failing transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access
from taskforged.control.delivery import Delivery, Receipt
from taskforged.control.namespaces import RequestLimits
from taskforged.control.signatures import verify
from taskforged.control.starting import RunRequest, Starter
from taskforged.control.workflows import Route, Workflows
from taskforged.engine.events import CreateRun
from taskforged.engine.model import ExpressionError, Json
from taskforged.errors import (
    ConflictError,
    CorruptStoreError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TaskforgeError,
    UnavailableError,
)
from taskforged.host.runner import PreparedRun
from taskforged.jsonvalue import parse_json, to_text
from taskforged.language.definition import Definition, WebhookTrigger
from taskforged.store.changes import NewRun
from taskforged.store.events import EventRow, EventStore, event_context, insert_event, is_json
from taskforged.store.store import Store

__all__ = ["WebhookInbox"]

_log = structlog.get_logger(__name__)

BODY_MAX = 1 << 20
_KEPT_OF_REJECTED = 1024
"""Bytes of a rejected body that are kept: enough to recognise it, too little to fill a disk with."""

_RECENT_MAX = 5_000
_CREDENTIALS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token", "x-gitlab-token"}
)
_NOT_FOUND = Receipt(404, {"error": {"code": "not_found", "message": "no such path"}})
_UNAUTHORIZED = Receipt(401, {"error": {"code": "unauthorized", "message": "the sender is not proved"}})


class _Candidate(NamedTuple):
    """A trigger that listens on the path, with its compiled definition."""

    route: Route
    definition: Definition
    trigger: WebhookTrigger


class _Verdict(NamedTuple):
    """What one trigger made of an event; `input` is given when it matched."""

    candidate: _Candidate
    reason: str
    input: Json = None

    @property
    def matched(self) -> bool:
        return not self.reason


class _EventScope:
    """Trigger expressions see the event and nothing else."""

    __slots__ = ("_event",)

    def __init__(self, event: Json) -> None:
        self._event = event

    def resolve(self, name: str) -> Json:
        if name == "event":
            return self._event
        raise KeyError(name)


class WebhookInbox:
    """Receives deliveries; see `control.delivery.Inbox`."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        starter: Starter,
        secret: Callable[[int, str], Awaitable[str]],
        requests: RequestLimits,
    ) -> None:
        self._store = store
        self._events = EventStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._starter = starter
        self._secret = secret
        self._requests = requests
        self._recent: OrderedDict[tuple[int, str, bytes], asyncio.Future[Receipt]] = OrderedDict()

    async def receive(self, delivery: Delivery) -> Receipt:
        """Keep a delivery and act on it. See `control.delivery.Inbox`."""
        namespace_no = self._access.namespace_no(delivery.namespace)
        routes = [] if namespace_no is None else self._workflows.routes(namespace_no, delivery.path)
        if namespace_no is None or not routes:
            return _NOT_FOUND
        self._requests.take(namespace_no)
        candidates = [await self._candidate(route) for route in routes]
        proven, refusals = await self._prove(namespace_no, candidates, delivery)
        if not proven:
            await self._keep_rejected(namespace_no, delivery, "; ".join(sorted(set(refusals.values()))))
            return _UNAUTHORIZED
        return await self._proven(namespace_no, delivery, candidates, proven, refusals)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Record a delivery that the door refused, where its path exists."""
        namespace_no = self._access.namespace_no(delivery.namespace)
        if namespace_no is not None and self._workflows.routes(namespace_no, delivery.path):
            await self._keep_rejected(namespace_no, delivery, reason)

    async def _candidate(self, route: Route) -> _Candidate:
        definition = await self._workflows.definition(route.workflow.no, route.workflow.latest)
        trigger = definition.triggers[route.trigger_id]
        assert isinstance(trigger, WebhookTrigger)
        return _Candidate(route, definition, trigger)

    # --- proof -------------------------------------------------------------------------------------------------------

    async def _prove(
        self, namespace_no: int, candidates: Sequence[_Candidate], delivery: Delivery
    ) -> tuple[list[_Candidate], dict[int, str]]:
        """Answer the triggers whose demands are met, and by index why the others' are not."""
        proven, refusals = [], {}
        for index, candidate in enumerate(candidates):
            demand = candidate.trigger.verify
            secret = await self._secret_or_none(namespace_no, demand.secret) if demand.secret else None
            why_not = verify(demand, secret, delivery.headers, delivery.body)
            if why_not is None:
                proven.append(candidate)
            else:
                refusals[index] = why_not
        return proven, refusals

    async def _secret_or_none(self, namespace_no: int, name: str) -> str | None:
        try:
            return await self._secret(namespace_no, name)
        except NotFoundError:
            return None
        except CorruptStoreError as error:
            _log.error("webhook.secret_unreadable", secret=name, error=str(error))
            return None

    # --- a delivery whose sender is proved ---------------------------------------------------------------------------

    async def _proven(
        self,
        namespace_no: int,
        delivery: Delivery,
        candidates: Sequence[_Candidate],
        proven: Sequence[_Candidate],
        refusals: dict[int, str],
    ) -> Receipt:
        if _is_ping(proven, delivery):
            return await self._handshake(namespace_no, delivery)
        try:
            if is_json(delivery.content_type) and delivery.body:
                parse_json(delivery.body, where="body", size_max=BODY_MAX)
        except TaskforgeError as error:
            await self._keep_rejected(namespace_no, delivery, error.message)
            return Receipt(400, {"error": {"code": "invalid_json", "message": "the body is not acceptable JSON"}})
        key = _delivery_key(proven, delivery)
        if key is None:
            return await self._accept(namespace_no, delivery, candidates, proven, refusals, None)
        return await self._once(namespace_no, delivery, candidates, proven, refusals, key)

    async def _once(
        self,
        namespace_no: int,
        delivery: Delivery,
        candidates: Sequence[_Candidate],
        proven: Sequence[_Candidate],
        refusals: dict[int, str],
        key: bytes,
    ) -> Receipt:
        """Accept a delivery unless it was accepted before, or is just being."""
        place = (namespace_no, delivery.path, key)
        first = self._recent.get(place)
        if first is not None:
            await asyncio.wait([first])
            if not first.cancelled() and first.exception() is None:
                return await self._duplicate(namespace_no, delivery, key)
        answer = asyncio.ensure_future(self._accept(namespace_no, delivery, candidates, proven, refusals, key))
        self._remember(place, answer)
        try:
            return await asyncio.shield(answer)
        except ConflictError:
            self._recent.pop(place, None)
            return await self._duplicate(namespace_no, delivery, key)
        except TaskforgeError:
            self._recent.pop(place, None)
            raise

    def _remember(self, place: tuple[int, str, bytes], answer: asyncio.Future[Receipt]) -> None:
        self._recent[place] = answer
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    async def _accept(
        self,
        namespace_no: int,
        delivery: Delivery,
        candidates: Sequence[_Candidate],
        proven: Sequence[_Candidate],
        refusals: dict[int, str],
        key: bytes | None,
    ) -> Receipt:
        event = self._row(namespace_no, delivery, verification=proven[0].trigger.verify.scheme)
        context = event_context(event)
        verdicts = [
            _Verdict(candidate, refusals[index]) if index in refusals else _judge(candidate, context)
            for index, candidate in enumerate(candidates)
        ]
        prepared: dict[int, PreparedRun] = {}
        try:
            for index, verdict in enumerate(verdicts):
                if verdict.matched:
                    self._prepare(event, verdict, context, index, prepared, verdicts)
        except BaseException:
            self._starter.discard(list(prepared.values()))
            raise
        records = [_record(verdict, prepared.get(index)) for index, verdict in enumerate(verdicts)]
        outcome = "ACCEPTED" if prepared else "FILTERED"
        event = event._replace(outcome=outcome, verdicts=to_text(records))
        await self._starter.create(list(prepared.values()), lambda connection: insert_event(connection, event, key))
        runs = [one.run.run_id for one in prepared.values()]
        return Receipt(202, {"event_id": event.id, "outcome": outcome, "run_ids": runs})

    def _prepare(
        self,
        event: EventRow,
        verdict: _Verdict,
        context: Json,
        index: int,
        prepared: dict[int, PreparedRun],
        verdicts: list[_Verdict],
    ) -> None:
        """Prepare the run of a verdict; what the workflow itself refuses is a verdict, too."""
        candidate = verdict.candidate
        workflow = candidate.route.workflow
        new = NewRun(workflow.namespace_no, workflow.no, event.no)
        create = CreateRun(
            run_id=new_id("run", event.created_at),
            namespace="",
            workflow="",
            version=workflow.latest,
            input=verdict.input,
            trigger=candidate.trigger.id,
            event_id=event.id,
            correlation_id=event.id,
        )
        wanted = RunRequest(workflow, workflow.latest, candidate.definition.model, new, create, context)
        try:
            prepared[index] = self._starter.prepare(wanted)
        except (InvalidArgumentError, FailedPreconditionError) as error:
            verdicts[index] = _Verdict(candidate, error.message)

    # --- deliveries without effect -----------------------------------------------------------------------------------

    async def _duplicate(self, namespace_no: int, delivery: Delivery, key: bytes) -> Receipt:
        first = await self._events.by_delivery(namespace_no, delivery.path, key)
        if first is None:
            raise UnavailableError("the delivery could not be stored; send it again")
        no, event_id = first
        runs = await self._events.runs_of(no)
        row = self._row(namespace_no, delivery, outcome="DUPLICATE", duplicate_of=event_id, body=b"")
        await self._keep(row)
        return Receipt(200, {"event_id": event_id, "outcome": "DUPLICATE", "run_ids": runs})

    async def _handshake(self, namespace_no: int, delivery: Delivery) -> Receipt:
        row = self._row(namespace_no, delivery, outcome="HANDSHAKE", verification="github")
        await self._keep(row)
        return Receipt(200, {"event_id": row.id, "outcome": "HANDSHAKE", "run_ids": []})

    async def _keep_rejected(self, namespace_no: int, delivery: Delivery, reason: str) -> None:
        kept = delivery.body[:_KEPT_OF_REJECTED]
        await self._keep(self._row(namespace_no, delivery, outcome="REJECTED", reason=reason, body=kept))

    async def _keep(self, row: EventRow) -> None:
        await self._store.journal.execute(lambda connection: insert_event(connection, row, None))

    def _row(self, namespace_no: int, delivery: Delivery, **changes: Any) -> EventRow:
        now = self._clock.now()
        row = EventRow(
            no=self._store.next_no("events"),
            id=new_id("evt", now),
            namespace_no=namespace_no,
            source="webhook",
            path=delivery.path,
            outcome="FILTERED",
            reason="",
            verification="",
            delivery_id=delivery.headers.get("x-github-delivery", ""),
            duplicate_of="",
            headers=to_text({k: "***" if k in _CREDENTIALS else v for k, v in delivery.headers.items()}),
            query=to_text(dict(delivery.query)),
            body=delivery.body,
            body_size=len(delivery.body),
            content_type=delivery.content_type,
            remote=delivery.remote,
            verdicts="[]",
            created_at=now,
        )
        return row._replace(**changes)


def _is_ping(proven: Sequence[_Candidate], delivery: Delivery) -> bool:
    """Whether it is GitHub's test message, sent once when a webhook is configured."""
    by_github = any(candidate.trigger.verify.scheme == "github" for candidate in proven)
    return by_github and delivery.headers.get("x-github-event") == "ping"


def _delivery_key(proven: Sequence[_Candidate], delivery: Delivery) -> bytes | None:
    """Answer what a repetition of the delivery is recognised by; None when nothing is safe to go by."""
    digest = hashlib.sha256(delivery.body).digest()
    for candidate in proven:
        delivery_id = delivery.headers.get(candidate.trigger.delivery_header, "")
        if delivery_id:
            return hashlib.sha256(delivery_id.encode() + b"\0" + digest).digest()
    signed = any(candidate.trigger.verify.scheme != "none" for candidate in proven)
    return digest if signed and delivery.body else None


def _judge(candidate: _Candidate, context: Json) -> _Verdict:
    """Decide whether a trigger starts a run, and with which input. Nothing that goes wrong here loses the event."""
    scope, trigger = _EventScope(context), candidate.trigger
    try:
        if trigger.condition is not None:
            wanted = trigger.condition.evaluate(scope)
            if wanted is not True:
                return _Verdict(candidate, "`if` is false" if wanted is False else "`if` is neither true nor false")
        value = {} if trigger.input is None else trigger.input.evaluate(scope)
        return _Verdict(candidate, "", candidate.definition.input.accept(value))
    except ExpressionError as error:
        return _Verdict(candidate, f"an expression failed: {error}")
    except InvalidArgumentError as error:
        return _Verdict(candidate, f"the input does not fit: {error.message}")


def _record(verdict: _Verdict, prepared: PreparedRun | None) -> dict[str, Json]:
    return {
        "workflow": verdict.candidate.route.workflow.name,
        "version": verdict.candidate.route.workflow.latest,
        "trigger": verdict.candidate.trigger.id,
        "matched": verdict.matched,
        "reason": verdict.reason,
        "run_id": "" if prepared is None else prepared.run.run_id,
    }
