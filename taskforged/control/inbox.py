"""The webhook inbox: keep first, act in the same transaction, answer last.

Order: route, prove the sender over the raw bytes, count, parse, handshake, deduplicate, ask every trigger on the path
for its verdict, then commit the event, the verdicts and the runs together. A sender is told 2xx only after that commit.
Nothing that helps an attacker goes into an answer; the reasons are in the inbox.

What makes a delivery the same delivery is in `providers`. The unique index decides; the memory of recent keys only
spares the common repetition a failing transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access
from taskforged.control.buckets import Bucket
from taskforged.control.delivery import Delivery, Receipt
from taskforged.control.namespaces import RequestLimits
from taskforged.control.pressure import Pressure
from taskforged.control.providers import DeliveryId, credentials, delivery_id, delivery_key, handshake
from taskforged.control.reactor import Asked, Reactor
from taskforged.control.signatures import verify
from taskforged.control.trigger_book import TriggerBook
from taskforged.engine.model import Json
from taskforged.engine.run import Run
from taskforged.engine.states import RunState
from taskforged.errors import (
    ConflictError,
    CorruptStoreError,
    NotFoundError,
    ResourceExhaustedError,
    TaskforgeError,
    UnavailableError,
)
from taskforged.failpoints import reach
from taskforged.host.entry import PreparedRun
from taskforged.host.runner import Runner
from taskforged.jsonvalue import load_stored, parse_json, to_text
from taskforged.language.definition import Rate, WebhookTrigger
from taskforged.meters import DoorMeters
from taskforged.payload import decode
from taskforged.store.events import EventRow, EventStore, insert_event
from taskforged.store.journal import outlive
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

__all__ = ["WebhookInbox"]

_log = structlog.get_logger(__name__)

_KEPT_OF_REJECTED = 1024
"""Bytes of a rejected body that are kept: enough to recognise it, too little to fill a disk with."""

_REJECTED_PER_S = 50.0
"""Rejected deliveries that are kept a second: a flood must not keep the disk busy. The log has the others."""

_WAITING_MAX = 256
"""Senders that wait for the end of a run at once; one more is answered at once."""

_RECENT_MAX = 5_000
_RATES_MAX = 10_000
_CREDENTIALS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token", "x-gitlab-token"}
)
_NOT_FOUND = Receipt(404, {"error": {"code": "not_found", "message": "there is nothing here"}})
_UNAUTHORIZED = Receipt(401, {"error": {"code": "unauthorized", "message": "the sender is not proved"}})


class _Proven(NamedTuple):
    """A delivery whose sender is proved to at least one trigger.

    Attributes:
        asked: all triggers on the path; those to which the sender is not proved have a refusal.
        scheme: by which the sender was proved.
        value: what the body means.
        encoding: how that is written, see `payload.decode`.
        sent: the sender's id of the delivery.
        key: what a repetition is recognised by; None: by nothing.
        wait_s: how long the sender wants to wait for the run; 0: not at all.
    """

    namespace_no: int
    delivery: Delivery
    asked: Sequence[Asked]
    scheme: str
    value: Json
    encoding: str
    sent: DeliveryId
    key: bytes | None
    wait_s: float


class _Accepted(NamedTuple):
    """A stored delivery: what its sender is told, and the run that he may wait for."""

    receipt: Receipt
    awaited: PreparedRun | None = None


class WebhookInbox:
    """Receives deliveries; see `control.delivery.Inbox`."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        triggers: TriggerBook,
        reactor: Reactor,
        runner: Runner,
        secret: Callable[[int, str], Awaitable[str]],
        requests: RequestLimits,
        pressure: Pressure,
        meters: DoorMeters,
        body_max: int,
    ) -> None:
        """Create an inbox; `secret` looks up a secret by namespace number and name."""
        self._store = store
        self._events = EventStore(store)
        self._runs = RunStore(store)
        self._clock = clock
        self._access = access
        self._triggers = triggers
        self._reactor = reactor
        self._runner = runner
        self._secret = secret
        self._requests = requests
        self._pressure = pressure
        self._meters = meters
        self._body_max = body_max
        self._recent: OrderedDict[tuple[int, str, bytes], asyncio.Future[_Accepted]] = OrderedDict()
        self._rates: OrderedDict[tuple[int, str], Bucket] = OrderedDict()
        self._rejected = Bucket(_REJECTED_PER_S, 4 * _REJECTED_PER_S, time.monotonic())
        self._waiting = 0

    async def receive(self, delivery: Delivery) -> Receipt:
        """Keep a delivery and act on it. See `control.delivery.Inbox`."""
        namespace_no = self._access.namespace_no(delivery.namespace)
        asked = [] if namespace_no is None else await self._asked(namespace_no, delivery.path)
        if namespace_no is None or not asked:
            return _NOT_FOUND
        self._pressure.check()
        asked, is_proven = await self._prove(namespace_no, asked, delivery)
        if not is_proven:
            await self._keep_rejected(namespace_no, delivery, asked, "; ".join(sorted({one.refusal for one in asked})))
            return _UNAUTHORIZED
        self._requests.take(namespace_no)  # not before: a stranger must not use up what is the namespace's
        await self._count(namespace_no, delivery, asked)
        try:
            proven = self._read(namespace_no, delivery, asked)
        except TaskforgeError as error:
            await self._keep_rejected(namespace_no, delivery, asked, error.message)
            return Receipt(400, {"error": {"code": "invalid_body", "message": "the body is not what it says it is"}})
        answer = handshake(proven.scheme, delivery.headers, proven.value)
        if answer is not None:
            return await self._handshake(proven, answer)
        return await (self._once(proven, proven.key) if proven.key is not None else self._first(proven))

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Record a delivery that the door refused, where its path exists."""
        namespace_no = self._access.namespace_no(delivery.namespace)
        asked = [] if namespace_no is None else await self._asked(namespace_no, delivery.path)
        if namespace_no is not None and asked:
            await self._keep_rejected(namespace_no, delivery, asked, reason)

    async def _asked(self, namespace_no: int, path: str) -> list[Asked]:
        found = [await self._reactor.asked(one) for one in self._triggers.on_path(namespace_no, path)]
        return [one for one in found if one is not None]

    # --- proof -------------------------------------------------------------------------------------------------------

    async def _prove(self, namespace_no: int, asked: Sequence[Asked], delivery: Delivery) -> tuple[list[Asked], bool]:
        """Answer the triggers, with a refusal where the sender is not proved, and whether he is to any of them."""
        found, is_proven = [], False
        now_s = self._clock.wall() / 1_000_000
        for one in asked:
            demand = _hook(one).verify
            secrets = [await self._secret_or_none(namespace_no, name) for name in demand.secrets]
            refusal = verify(demand, secrets, delivery.headers, delivery.query, delivery.body, now_s)
            is_proven = is_proven or refusal is None
            found.append(
                one if refusal is None else one._replace(refusal=f"{refusal.code}: {refusal.reason}", is_proved=False)
            )
        return found, is_proven

    async def _secret_or_none(self, namespace_no: int, name: str) -> str | None:
        try:
            return await self._secret(namespace_no, name)
        except NotFoundError:
            return None
        except CorruptStoreError as error:
            _log.error("webhook.secret_unreadable", secret=name, error=str(error))
            return None

    async def _count(self, namespace_no: int, delivery: Delivery, asked: Sequence[Asked]) -> None:
        """Count a delivery for its path; only proved ones, so that a stranger cannot use up what is the sender's.

        Raises:
            ResourceExhaustedError: there were too many.
        """
        rates = [rate for one in asked if (rate := _hook(one).rate) is not None]
        if not rates:
            return
        strictest = min(rates, key=lambda rate: rate.count / rate.per_s)
        wait_s = self._bucket((namespace_no, delivery.path), strictest).take(time.monotonic())
        if wait_s:
            reason = f"more than {strictest.count} deliveries in {strictest.per_s:g} s"
            await self._keep_rejected(namespace_no, delivery, asked, reason)
            raise ResourceExhaustedError("too many deliveries", reason="RATE_LIMITED", retry_after_s=wait_s)

    def _bucket(self, place: tuple[int, str], rate: Rate) -> Bucket:
        known = self._rates.get(place)
        per_s = rate.count / rate.per_s
        if known is None or (known.rate, known.size) != (per_s, float(rate.count)):
            known = self._rates[place] = Bucket(per_s, float(rate.count), time.monotonic())
            if len(self._rates) > _RATES_MAX:
                self._rates.popitem(last=False)
        return known

    # --- a delivery whose sender is proved ---------------------------------------------------------------------------

    def _read(self, namespace_no: int, delivery: Delivery, asked: Sequence[Asked]) -> _Proven:
        """Answer what the delivery says.

        Raises:
            InvalidArgumentError: the body is not what its content type says.
        """

        def parse(body: bytes) -> Json:
            return parse_json(body, where="body", size_max=self._body_max)

        content_type = delivery.headers.get("content-type", delivery.content_type)
        value, encoding = decode(content_type, delivery.body, parse)
        # Who signs comes first: what a stranger may choose must not decide what counts as a repetition.
        hooks = sorted((_hook(one) for one in asked if one.is_proved), key=lambda hook: hook.verify.scheme == "none")
        first = hooks[0]
        sent, key = DeliveryId("", is_covered=False), None
        for hook in hooks:
            sent = delivery_id(hook.verify, delivery.headers, hook.delivery_header, value)
            key = delivery_key(hook.verify, sent, delivery.body)
            if key is not None:  # the deliveries of another sender on the same path are others
                key = hashlib.sha256(repr((hook.verify.scheme, hook.verify.secrets)).encode() + key).digest()
                break
        wait_s = max((hook.wait_s or 0.0 for hook in hooks), default=0.0)
        return _Proven(namespace_no, delivery, asked, first.verify.scheme, value, encoding, sent, key, wait_s)

    async def _first(self, proven: _Proven) -> Receipt:
        return await self._finish(proven, await self._accept(proven))

    async def _once(self, proven: _Proven, key: bytes) -> Receipt:
        """Accept a delivery unless it was accepted before, or is just being."""
        place = (proven.namespace_no, proven.delivery.path, key)
        first = self._recent.get(place)
        if first is not None:
            await asyncio.wait([first])
            if not first.cancelled() and first.exception() is None:
                return await self._duplicate(proven, key)
        answer = asyncio.ensure_future(self._accept(proven))
        self._remember(place, answer)
        try:
            accepted = await outlive(answer)
        except ConflictError:
            self._recent.pop(place, None)
            return await self._duplicate(proven, key)
        except TaskforgeError:
            self._recent.pop(place, None)
            raise
        return await self._finish(proven, accepted)

    def _remember(self, place: tuple[int, str, bytes], answer: asyncio.Future[_Accepted]) -> None:
        self._recent[place] = answer
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    async def _accept(self, proven: _Proven) -> _Accepted:
        event = self._row(proven.namespace_no, proven.delivery, proven.asked, verification=proven.scheme)
        event = event._replace(delivery_id=proven.sent.text)
        asked = [
            self._reactor.again(one, self._triggers.find(one.workflow.no, one.trigger.key)) for one in proven.asked
        ]
        reaction = self._reactor.react(event, asked, read=(proven.value, proven.encoding))
        stored = reaction.event
        reach("inbox.judged")
        await self._reactor.write([reaction], lambda connection: insert_event(connection, stored, proven.key))
        reach("inbox.stored")
        self._meters.webhooks.add((stored.outcome.lower(),))
        self._meters.acks.observe(time.monotonic() - proven.delivery.arrived_s)
        receipt = Receipt(202, {"event_id": event.id, "outcome": stored.outcome, "run_ids": reaction.run_ids})
        waiting = {(one.workflow.no, one.trigger.key) for one in _waiting(proven)}
        awaited = (p for p in reaction.prepared if (p.entry.home.workflow_no, p.run.trigger) in waiting)
        return _Accepted(receipt, next(awaited, None))

    # --- answers that wait -------------------------------------------------------------------------------------------

    async def _finish(self, proven: _Proven, accepted: _Accepted) -> Receipt:
        """Answer at once, or with what the run has come to when it has ended in time."""
        if accepted.awaited is None or self._waiting >= _WAITING_MAX:
            return accepted.receipt
        self._waiting += 1
        try:
            run = await self._runner.wait_end(accepted.awaited, proven.wait_s)
        except UnavailableError:  # the daemon is stopping: the delivery is safe, so this is no failure
            run = None
        finally:
            self._waiting -= 1
        return accepted.receipt if run is None else _outcome_of(run)

    # --- deliveries without effect -----------------------------------------------------------------------------------

    async def _duplicate(self, proven: _Proven, key: bytes) -> Receipt:
        delivery, namespace_no = proven.delivery, proven.namespace_no
        first = await self._events.by_delivery(namespace_no, delivery.path, key)
        if first is None:
            raise UnavailableError("the delivery could not be stored; send it again")
        no, event_id = first
        runs = await self._events.runs_of(no)
        self._meters.webhooks.add(("duplicate",))
        row = self._row(namespace_no, delivery, proven.asked, outcome="DUPLICATE", duplicate_of=event_id, body=b"")
        await self._keep(row._replace(delivery_id=proven.sent.text))
        if proven.wait_s and runs:
            awaited = await self._awaited_before(no, proven)
            if awaited is not None and awaited.ended_at:
                return _outcome_of(awaited)
        return Receipt(200, {"event_id": event_id, "outcome": "DUPLICATE", "run_ids": runs})

    async def _awaited_before(self, no: int, proven: _Proven) -> Run | None:
        """Answer the run that the first delivery waited for: another trigger's output is not for this sender."""
        first = await self._events.by_no(no)
        waiting = {(one.workflow.name, one.trigger.key) for one in _waiting(proven)}
        for verdict in [] if first is None else load_stored(first.verdicts):
            if verdict["run_id"] and (verdict["workflow"], verdict["trigger"]) in waiting:
                loaded = await self._runs.load_by_id(verdict["run_id"])
                return None if loaded is None else loaded.run
        return None

    async def _handshake(self, proven: _Proven, answer: Any) -> Receipt:
        self._meters.webhooks.add(("handshake",))
        row = self._row(
            proven.namespace_no, proven.delivery, proven.asked, outcome="HANDSHAKE", verification=proven.scheme
        )
        await self._keep(row)
        return Receipt(200, answer or {"event_id": row.id, "outcome": "HANDSHAKE", "run_ids": []})

    async def _keep_rejected(self, namespace_no: int, delivery: Delivery, asked: Sequence[Asked], reason: str) -> None:
        self._meters.webhooks.add(("rejected",))
        if self._rejected.take(time.monotonic()):
            _log.warning("webhook.rejected", path=delivery.path, remote=delivery.remote, reason=reason, kept=False)
            return
        kept = delivery.body[:_KEPT_OF_REJECTED]
        await self._keep(self._row(namespace_no, delivery, asked, outcome="REJECTED", reason=reason, body=kept))

    async def _keep(self, row: EventRow) -> None:
        await self._store.journal.execute(lambda connection: insert_event(connection, row, None))

    def _row(self, namespace_no: int, delivery: Delivery, asked: Sequence[Asked], **changes: Any) -> EventRow:
        now = self._clock.now()
        hidden = _hidden(asked)
        row = EventRow(
            no=self._store.next_no("events"),
            id=new_id("evt", now),
            namespace_no=namespace_no,
            source="webhook",
            path=delivery.path,
            outcome="FILTERED",
            reason="",
            verification="",
            delivery_id="",
            duplicate_of="",
            headers=to_text({k: "***" if k in hidden else v for k, v in delivery.headers.items()}),
            query=to_text({k: "***" if k in hidden else v for k, v in delivery.query.items()}),
            body=delivery.body,
            body_size=len(delivery.body),
            content_type=delivery.content_type,
            remote=delivery.remote,
            verdicts="[]",
            created_at=now,
        )
        return row._replace(**changes)


def _hook(asked: Asked) -> WebhookTrigger:
    assert isinstance(asked.source, WebhookTrigger)
    return asked.source


def _waiting(proven: _Proven) -> list[Asked]:
    """Answer the triggers for whose run the sender waits."""
    return [one for one in proven.asked if _hook(one).wait_s and one.is_proved]


def _hidden(asked: Sequence[Asked]) -> frozenset[str]:
    """Answer the headers and parameters that hold a credential itself, and not a signature made with it."""
    return _CREDENTIALS.union(*(credentials(_hook(one).verify) for one in asked))


def _outcome_of(run: Run) -> Receipt:
    """Answer what a sender who waits is told of a run that has ended. Why one failed is not for strangers."""
    headers = {"X-Taskforge-Run": run.run_id, "X-Taskforge-Event": run.event_id}
    if run.state is RunState.SUCCEEDED:
        return Receipt(200, run.output, headers)
    error = {"code": "run_failed", "message": "the run did not succeed"}
    return Receipt(500, {"error": error, "run_id": run.run_id, "state": run.state.value}, headers)
