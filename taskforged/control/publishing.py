"""Internal events: published by clients, asked about by a consumer that nothing can make forget one.

An event is stored first (by a client's call, by a step, by the end of a run), as PENDING when some trigger asks for its
type. The consumer asks the triggers in the order of the events' numbers, and writes outcome, verdicts and runs in one
transaction, guarded by PENDING: what a crash cuts is found again in the table, and nothing is done twice.
"""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from taskforged.clock import Clock, new_id
from taskforged.control.access import Principal
from taskforged.control.checks import INPUT_MAX, REQUEST_ID_MAX, check_text, invalid
from taskforged.control.pressure import Pressure
from taskforged.control.reactor import Reaction, Reactor
from taskforged.control.trigger_book import TriggerBook
from taskforged.correlation import NO_TRACE, Trace, headers_of
from taskforged.engine.model import Json
from taskforged.errors import AlreadyExistsError, ConflictError, TaskforgeError
from taskforged.failpoints import reach
from taskforged.jsonvalue import canonical, parse_json, to_text
from taskforged.language.kinds import event_type_fault
from taskforged.store.audit import about
from taskforged.store.events import CLOUD_EVENTS, REQUESTS, EventRow, EventStore, insert_event
from taskforged.store.rows import internal_event
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["EventBus", "Publication", "request_key"]

_log = structlog.get_logger(__name__)

SUBJECT_MAX = 1024
PORTION = 50
"""Events that are read at once: each may have a megabyte."""

RETRY_S = 1.0


def request_key(kind: str, request_id: str) -> bytes:
    """Answer what the repetition of a call is recognised by."""
    return hashlib.sha256(f"{kind}\0{request_id}".encode()).digest()


class Publication:
    """An event to publish, checked.

    Raises:
        InvalidArgumentError: the type or the data cannot be.
    """

    def __init__(
        self,
        name: str,
        data_json: str,
        *,
        subject: str = "",
        origin: str = "",
        foreign_id: str = "",
        where: str = "",
        trace: Trace = NO_TRACE,
    ) -> None:
        """Check an event; `where` is the path of the message that holds it, for what is said of a fault."""
        fault = event_type_fault(name)
        if fault:
            raise invalid(f"{where}type", fault)
        check_text(f"{where}subject", subject, SUBJECT_MAX)
        self.name = name
        self.data: Json = parse_json(data_json, where=f"{where}data_json", size_max=INPUT_MAX) if data_json else None
        self.subject = subject
        self.origin = origin
        self.foreign_id = foreign_id
        self.trace = trace


class EventBus:
    """Publishes internal events and asks the triggers that want them."""

    def __init__(
        self, *, store: Store, clock: Clock, triggers: TriggerBook, reactor: Reactor, pressure: Pressure
    ) -> None:
        self._store = store
        self._events = EventStore(store)
        self._clock = clock
        self._triggers = triggers
        self._reactor = reactor
        self._pressure = pressure
        self._wake = asyncio.Event()
        self._wake.set()

    def wake(self) -> None:
        """An event was stored whose triggers have to be asked."""
        self._wake.set()

    # --- publishing --------------------------------------------------------------------------------------------------

    async def publish(
        self, principal: Principal, namespace_no: int, wanted: Publication, *, request_id: str = ""
    ) -> EventRow:
        """Store an event; answers it, or the one that the same request id stored before.

        Raises:
            AlreadyExistsError: the request id stands for another event.
        """
        check_text("request_id", request_id, REQUEST_ID_MAX)
        self._pressure.check()
        row = self._row(principal, namespace_no, wanted)
        key = request_key("publish", request_id) if request_id else None
        return await self._store_once(row, REQUESTS, key, request_id)

    async def publish_foreign(self, principal: Principal, namespace_no: int, wanted: Publication) -> EventRow:
        """Store a CloudEvent; one with the same `source` and `id` is the same event, as its specification says."""
        self._pressure.check()
        key = hashlib.sha256(canonical([wanted.origin, wanted.foreign_id])).digest()
        return await self._store_once(self._row(principal, namespace_no, wanted), CLOUD_EVENTS, key, "")

    def _row(self, principal: Principal, namespace_no: int, wanted: Publication) -> EventRow:
        now = self._clock.now()
        row = internal_event(
            *(self._store.next_no("events"), new_id("evt", now), namespace_no, wanted.name, wanted.data, now),
            source="internal",
            outcome="PENDING" if self._triggers.listens(namespace_no, wanted.name) else "UNMATCHED",
            created_by=principal.token_id,
            subject=wanted.subject,
            headers=to_text(headers_of(wanted.trace)),
        )
        return row._replace(origin=wanted.origin, delivery_id=wanted.foreign_id)

    async def _store_once(self, row: EventRow, place: str, key: bytes | None, request_id: str) -> EventRow:
        about("event", row.id)
        try:
            await self._store.journal.execute(lambda c: insert_event(c, row, key, place))
        except ConflictError:
            known = await self._events.by_delivery(row.namespace_no, place, key or b"")
            found = None if known is None else await self._events.by_no(known[0])
            if found is None:
                raise
            if request_id and (found.type, found.body, found.subject) != (row.type, row.body, row.subject):
                raise AlreadyExistsError(
                    f"request_id {request_id!r} was used for another event, {found.id}",
                    metadata={"request_id": request_id, "event": found.id},
                ) from None
            about("event", found.id)
            return found
        self._wake.set()
        return row

    # --- asking ------------------------------------------------------------------------------------------------------

    async def wait_news(self) -> None:
        """Wait until there may be something to do."""
        await self._wake.wait()

    async def run_once(self) -> None:
        """Ask the triggers of all events that wait.

        Raises:
            TaskforgeError: something could not be decided or written; it waits still.
        """
        self._wake.clear()
        after = 0
        full: set[int] = set()
        failure: BaseException | None = None
        while rows := await self._store.rows("pending_events", after, to_text(sorted(full)), PORTION):
            events = [EventRow(*row) for row in rows]
            # One event of a namespace without room is enough to know it: the others wait unread, and hold up nobody.
            begun = [(event, await self._begin(event)) for event in events if event.namespace_no not in full]
            results = await asyncio.gather(*(future for _, future in begun), return_exceptions=True)
            for (event, _), error in zip(begun, results, strict=True):
                if isinstance(error, BaseException):
                    failure = error
                    full.add(event.namespace_no)
            after = events[-1].no
            if len(rows) < PORTION:
                break
        if failure is not None:
            self._wake.set()
            raise failure

    async def _begin(self, event: EventRow) -> asyncio.Future[None]:
        """Decide an event now, in its order; answers the future of its being written."""
        try:
            reaction = await self._ask(event)
        except TaskforgeError as error:  # for example too many runs wait
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        except Exception as error:  # noqa: BLE001  a bug must not make one event hold up all others for ever
            _log.error("event.not_asked", event=event.id, exc_info=error)
            verdict = {"workflow": "", "version": 0, "trigger": "", "matched": False, "run_id": "", "reason": _BUG}
            reaction = Reaction(event._replace(outcome="FILTERED", verdicts=to_text([verdict])), [], [], [])
        return asyncio.ensure_future(self._write(reaction))

    async def _ask(self, event: EventRow) -> Reaction:
        found = [await self._reactor.asked(one) for one in self._triggers.on_type(event.namespace_no, event.type)]
        asked = [one for one in found if one is not None]
        now = [self._reactor.again(one, self._triggers.find(one.workflow.no, one.trigger.key)) for one in asked]
        reaction = self._reactor.react(event, now)
        if reaction.judgements:
            return reaction
        return reaction._replace(event=reaction.event._replace(outcome="UNMATCHED"))

    async def _write(self, reaction: Reaction) -> None:
        try:
            reach("event.judged")
            await self._reactor.write([reaction], lambda connection: _decide(connection, reaction.event))
            reach("event.decided")
        except ConflictError:
            _log.info("event.decided_before", event=reaction.event.id)


_BUG = "an internal error; the daemon's log has the details"


def _decide(connection: Connection, event: EventRow) -> None:
    moved = connection.execute(QUERIES["decide_event"], (event.outcome, event.verdicts, event.no)).rowcount
    if moved != 1:
        raise ConflictError(f"event {event.id} was decided before")
