"""Runs: start, show, steer, watch, verify. Every door that starts a run comes through here."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access, Principal
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.engine.events import AdmitRun, CancelRun, CreateRun, HistoryEvent, IllegalEventError
from taskforged.engine.machine import replay
from taskforged.engine.model import Json, WorkflowModel
from taskforged.engine.run import Run, evolve
from taskforged.engine.states import TERMINAL_RUNS, RunState
from taskforged.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    Violation,
)
from taskforged.host.feed import Feed
from taskforged.host.runner import PreparedRun, Runner
from taskforged.jsonvalue import canonical, parse_json
from taskforged.store.changes import GENESIS, NewRun, StoredEvent, chain_hash
from taskforged.store.events import EventStore
from taskforged.store.runs import LoadedRun, RunFilter, RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["INPUT_MAX", "RunView", "Runs", "StartRequest", "Verdict", "WatchPortion"]

INPUT_MAX = 1 << 20
"""Bytes of a run's input."""

BATCH_MAX = 1000
WATCHES_MAX = 10_000
"""Open watches: each costs a stream and some 30 KiB."""

WAIT_S_MAX = 300.0
_REQUEST_ID_MAX = 128
_CORRELATION_ID_MAX = 128
_REASON_MAX = 1000
_WATCH_PORTION = 100
_BOOKMARK_S = 15.0
"""An idle watch says that it is alive this often; a quarter of common proxies' idle limit."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What a caller wants started."""

    workflow: str
    input_json: str = ""
    request_id: str = ""
    correlation_id: str = ""


class RunView(NamedTuple):
    """A run to be shown. `run` is None in lists, where only the row is known."""

    row: RunRow | None
    run: Run | None
    namespace: str
    workflow: str
    model: WorkflowModel | None


class WatchPortion(NamedTuple):
    """Events with the state of the run and, where they are about one, of the step after each."""

    events: Sequence[tuple[StoredEvent, RunState, str]]
    view: RunView


class Verdict(NamedTuple):
    """What a verification found."""

    events: int
    head_hash: bytes
    faults: Sequence[str]


class Runs:
    """The runs of all namespaces."""

    def __init__(
        self, *, store: Store, clock: Clock, access: Access, workflows: Workflows, runner: Runner, feed: Feed
    ) -> None:
        self._runs = RunStore(store)
        self._events = EventStore(store)
        self._store = store
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._runner = runner
        self._feed = feed

    # --- starting ----------------------------------------------------------------------------------------------------

    async def start(self, principal: Principal, namespace_no: int, request: StartRequest, *, wait_s: float) -> RunView:
        """Start a run; with `wait_s` answer it as it stands when it has ended or the time has passed.

        Raises:
            NotFoundError: there is no such workflow.
            InvalidArgumentError: the input does not fit; nothing is stored.
            AlreadyExistsError: the request id stands for another request.
        """
        if not 0 <= wait_s <= WAIT_S_MAX:
            message = f"must be between 0 s and {WAIT_S_MAX:g} s"
            raise InvalidArgumentError(f"wait {message}", violations=[Violation("wait", message)])
        prepared = await self._prepare(principal, namespace_no, request)
        try:
            await self._runner.create([prepared])
        except ConflictError:
            return await self._repeated(principal, namespace_no, request, wait_s)
        run = prepared.run
        if wait_s and not run.ended_at:
            run = await self._runner.wait_end(prepared, wait_s) or (await self._load(principal, run.run_id)).run
        return RunView(None, run, self._access.namespace_name(namespace_no), request.workflow, prepared.entry.model)

    async def start_batch(self, principal: Principal, requests: Sequence[tuple[int, StartRequest]]) -> Sequence[str]:
        """Start many runs in one transaction and answer their ids in order: all or none.

        Raises:
            InvalidArgumentError: a request is not valid; its index is in the violation's path.
        """
        if not 1 <= len(requests) <= BATCH_MAX:
            message = f"must have 1 to {BATCH_MAX:,} entries"
            raise InvalidArgumentError(f"requests {message}", violations=[Violation("requests", message)])
        for index, (_, request) in enumerate(requests):
            if request.request_id:
                message = "request_id is not supported in a batch"
                raise InvalidArgumentError(message, violations=[Violation(f"requests[{index}].request_id", message)])
        checked = []
        for index, (namespace_no, request) in enumerate(requests):
            try:
                checked.append(await self._check(namespace_no, request))
            except InvalidArgumentError as error:
                raise _at_index(error, index) from None
        prepared = [
            self._decide(principal, workflow, model, request, value)
            for (_, request), (workflow, model, value) in zip(requests, checked, strict=True)
        ]
        await self._runner.create(prepared)
        return [one.run.run_id for one in prepared]

    async def _prepare(self, principal: Principal, namespace_no: int, request: StartRequest) -> PreparedRun:
        workflow, model, value = await self._check(namespace_no, request)
        return self._decide(principal, workflow, model, request, value)

    async def _check(self, namespace_no: int, request: StartRequest) -> tuple[LiveWorkflow, WorkflowModel, Json]:
        _check_texts(request)
        workflow = self._workflows.get(namespace_no, request.workflow)
        definition = await self._workflows.definition(workflow.no, workflow.latest)
        value = parse_json(request.input_json or "{}", where="input_json", size_max=INPUT_MAX)
        return workflow, definition.model, definition.input.accept(value)

    def _decide(
        self, principal: Principal, workflow: LiveWorkflow, model: WorkflowModel, request: StartRequest, value: Json
    ) -> PreparedRun:
        digest = _digest(request) if request.request_id else None
        new = NewRun(workflow.namespace_no, workflow.no, None, request.request_id or None, digest)
        create = CreateRun(
            run_id=new_id("run", self._clock.now()),
            namespace=self._access.namespace_name(workflow.namespace_no),
            workflow=workflow.name,
            version=workflow.latest,
            input=value,
            correlation_id=request.correlation_id,
            created_by=principal.token_id,
        )
        return self._runner.prepare(model, new, (create, AdmitRun()))

    async def _repeated(self, principal: Principal, namespace_no: int, request: StartRequest, wait_s: float) -> RunView:
        """Answer the run that this request id has started before."""
        row = await self._runs.by_request(namespace_no, request.request_id) if request.request_id else None
        if row is None:
            raise ConflictError("the run could not be stored; try again")
        if row.request_digest != _digest(request):
            raise AlreadyExistsError(
                f"request_id {request.request_id!r} was used for another request, which started {row.id}",
                metadata={"request_id": request.request_id, "run_id": row.id},
            )
        if wait_s:
            await self._wait_stored(row, wait_s)
        return await self.get(principal, row.id)

    async def _wait_stored(self, row: RunRow, wait_s: float) -> None:
        """Wait for the end of a run that somebody else started."""
        deadline = self._clock.now() + round(wait_s * 1_000_000)
        with self._feed.watch(row.no) as watch:
            while (left := deadline - self._clock.now()) > 0 and not self._feed.closed:
                known = await self._runs.by_id(row.id)
                if known is None or known.ended_at is not None:
                    return
                await watch.wait_news(left / 1_000_000)

    # --- showing -----------------------------------------------------------------------------------------------------

    async def get(self, principal: Principal, run_id: str) -> RunView:
        """Answer a run with its steps.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        return await self._view(await self._load(principal, run_id))

    async def _load(self, principal: Principal, run_id: str) -> LoadedRun:
        loaded = await self._runs.load_by_id(run_id)
        if loaded is None or not principal.sees(loaded.row.namespace_no):
            raise NotFoundError(f"there is no run {run_id!r}", metadata={"run": run_id})
        return loaded

    async def _row(self, principal: Principal, run_id: str) -> RunRow:
        row = await self._runs.by_id(run_id)
        if row is None or not principal.sees(row.namespace_no):
            raise NotFoundError(f"there is no run {run_id!r}", metadata={"run": run_id})
        return row

    async def _view(self, loaded: LoadedRun) -> RunView:
        row, run = loaded
        model = await self._workflows.model(row.workflow_no, row.version)
        return RunView(row, run, self._access.namespace_name(row.namespace_no), run.workflow, model)

    async def page(self, wanted: RunFilter, limit: int) -> Sequence[RunView]:
        """Answer up to `limit` runs, newest first."""
        rows = await self._runs.page(wanted, limit)
        names = {no: await self._workflows.stored_name(no) for no in {row.workflow_no for row in rows}}
        namespace = self._access.namespace_name(wanted.namespace_no)
        return [RunView(row, None, namespace, names[row.workflow_no], None) for row in rows]

    async def event_no(self, principal: Principal, event_id: str) -> int:
        """Answer the number of an event, for a filter.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        row = await self._events.by_id(event_id)
        if row is None or not principal.sees(row.namespace_no):
            raise NotFoundError(f"there is no event {event_id!r}", metadata={"event": event_id})
        return row.no

    async def history(
        self, principal: Principal, run_id: str, *, after: int, limit: int
    ) -> Sequence[tuple[StoredEvent, RunState, str]]:
        """Answer up to `limit` events after sequence `after`, with the states after each."""
        row = await self._row(principal, run_id)
        tracker = await self._tracker(row, after)
        return [tracker.track(stored) for stored in await self._runs.history(row.no, after, limit)]

    async def _tracker(self, row: RunRow, until: int) -> _Tracker:
        """Answer a run as it stood at sequence `until`."""
        tracker = _Tracker()
        while tracker.run.sequence < until:
            portion = await self._runs.history(row.no, tracker.run.sequence, min(1000, until - tracker.run.sequence))
            if not portion:
                break
            for stored in portion:
                tracker.track(stored)
        return tracker

    async def watch(self, principal: Principal, run_id: str, after: int) -> AsyncIterator[WatchPortion]:
        """Yield a run's history from after a sequence number until it has ended; empty portions are signs of life.

        Raises:
            InvalidArgumentError: the number lies in the future.
            UnavailableError: the daemon is stopping; ask again with the last number seen.
        """
        if self._feed.count() >= WATCHES_MAX:
            raise ResourceExhaustedError(f"{WATCHES_MAX:,} watches are open already", retry_after_s=5.0)
        row = await self._row(principal, run_id)
        if not 0 <= after <= row.sequence:
            message = f"must be between 0 and {row.sequence}, the newest sequence of the run"
            raise InvalidArgumentError(f"after_sequence {message}", violations=[Violation("after_sequence", message)])
        tracker = await self._tracker(row, after)
        name = self._access.namespace_name(row.namespace_no)
        with self._feed.watch(row.no) as watch:
            while True:
                portion = await self._runs.history(row.no, tracker.run.sequence, _WATCH_PORTION)
                events = [tracker.track(stored) for stored in portion]
                if events:
                    yield WatchPortion(events, RunView(None, tracker.run, name, tracker.run.workflow, None))
                if tracker.run.state in TERMINAL_RUNS:
                    return
                if len(portion) < _WATCH_PORTION and not await self._news(watch.wait_news(_BOOKMARK_S)):
                    yield WatchPortion((), RunView(None, tracker.run, name, tracker.run.workflow, None))

    async def _news(self, waiting: Awaitable[bool]) -> bool:
        news = await waiting
        if self._feed.closed:
            raise UnavailableError("the daemon is stopping; watch again from the last sequence seen")
        return news

    # --- steering ----------------------------------------------------------------------------------------------------

    async def cancel(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Ask a run to stop. Idempotent.

        Raises:
            FailedPreconditionError: it has ended in another way.
        """
        if len(reason) > _REASON_MAX:
            message = f"must have at most {_REASON_MAX:,} characters"
            raise InvalidArgumentError(f"reason {message}", violations=[Violation("reason", message)])
        row = await self._row(principal, run_id)
        if not row.cancel_requested:
            await self._cancel_now(row, CancelRun(reason, principal.token_id))
        return await self.get(principal, run_id)

    async def _cancel_now(self, row: RunRow, fact: CancelRun) -> None:
        try:
            if row.ended_at is not None:
                raise _ended(row)
            await self._runner.deliver(row.no, fact)
        except FailedPreconditionError:
            now = await self._runs.by_id(row.id)
            if now is None or not now.cancel_requested:
                raise _ended(now or row) from None

    # --- verifying ---------------------------------------------------------------------------------------------------

    async def verify(self, principal: Principal, run_id: str) -> Verdict:
        """Prove that the history is unbroken, that the engine decides the same again, that the projection agrees."""
        row = await self._row(principal, run_id)
        stored = await self._whole_history(row)
        faults = [*_chain_faults(stored), *await self._replay_faults(row, stored)]
        faults.extend(await self._projection_faults(row, stored))
        return Verdict(len(stored), stored[-1].hash if stored else GENESIS, faults)

    async def _whole_history(self, row: RunRow) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        while portion := await self._runs.history(row.no, len(found), min(1000, row.sequence - len(found)) or 1):
            found.extend(portion)
            if len(found) >= row.sequence:
                break
        return found

    async def _replay_faults(self, row: RunRow, stored: Sequence[StoredEvent]) -> list[str]:
        loaded = await self._runs.load(row.no)
        event = None if loaded is None else loaded.run.event
        model = await self._workflows.model(row.workflow_no, row.version)
        recorded = [one.event for one in stored]
        try:
            again = replay(model, recorded, event=event)
        except IllegalEventError as error:
            return [f"the engine refuses a recorded fact: {error}"]
        for old, new in zip(recorded, again, strict=False):
            if not _same(old, new):
                return [f"at sequence {old.sequence} the engine decides {new.kind}, recorded is {old.kind}"]
        if len(recorded) != len(again):
            return [f"the engine gives {len(again)} events, recorded are {len(recorded)}"]
        return []

    async def _projection_faults(self, row: RunRow, stored: Sequence[StoredEvent]) -> list[str]:
        if not stored:
            return ["there is no history"]
        run = Run()
        for one in stored:
            evolve(run, one.event)
        faults = []
        if (run.state.value, run.sequence, stored[-1].hash) != (row.state, row.sequence, row.head_hash):
            faults.append(
                f"the run's row says {row.state} at {row.sequence}, its history {run.state} at {run.sequence}"
            )
        now = await self._runs.by_id(row.id)
        if now is not None and now.sequence == row.sequence:
            steps = {r[0]: (r[1], r[2]) for r in await self._store.rows("steps_of_run", row.no)}
            folded = {key: (step.state.value, step.attempt) for key, step in run.steps.items()}
            faults.extend(
                f"step {key}: {steps.get(key)} is stored, {folded.get(key)} follows from history"
                for key in sorted({*steps, *folded})
                if steps.get(key) != folded.get(key)
            )
        return faults


class _Tracker:
    """Folds a history and tells the states after each event."""

    def __init__(self) -> None:
        self.run = Run()

    def track(self, stored: StoredEvent) -> tuple[StoredEvent, RunState, str]:
        evolve(self.run, stored.event)
        step = self.run.steps.get(stored.event.step)
        return stored, self.run.state, "" if step is None else step.state.value


def _same(old: HistoryEvent, new: HistoryEvent) -> bool:
    """Compare as recorded: what came back from JSON with what has not been JSON yet."""
    head = (old.sequence, old.at, old.kind, old.step, old.attempt) == (
        new.sequence,
        new.at,
        new.kind,
        new.step,
        new.attempt,
    )
    return head and canonical(old.body) == canonical(new.body)


def _chain_faults(stored: Sequence[StoredEvent]) -> list[str]:
    previous, faults = GENESIS, []
    for expected, one in enumerate(stored, start=1):
        if one.event.sequence != expected:
            faults.append(f"sequence {expected} is missing")
            break
        if chain_hash(previous, one.event, one.body) != one.hash:
            faults.append(f"the hash of sequence {expected} does not fit: the event was changed after it was recorded")
        previous = one.hash
    return faults


def _ended(row: RunRow) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"run {row.id} is {row.state}; only an open run can be cancelled", metadata={"run": row.id, "state": row.state}
    )


def _digest(request: StartRequest) -> bytes:
    return hashlib.sha256(canonical([request.workflow, request.input_json, request.correlation_id])).digest()


def _check_texts(request: StartRequest) -> None:
    for field, text, limit in (
        ("request_id", request.request_id, _REQUEST_ID_MAX),
        ("correlation_id", request.correlation_id, _CORRELATION_ID_MAX),
    ):
        if len(text) > limit or not text.isprintable():
            message = f"must have at most {limit} printable characters"
            raise InvalidArgumentError(f"{field} {message}", violations=[Violation(field, message)])
    if not request.workflow:
        raise InvalidArgumentError("workflow is required", violations=[Violation("workflow", "is required")])


def _at_index(error: InvalidArgumentError, index: int) -> InvalidArgumentError:
    violations = [Violation(f"requests[{index}].{v.path}", v.message, v.line, v.column) for v in error.violations]
    return InvalidArgumentError(
        f"requests[{index}]: {error.message}", violations=violations, reason=error.reason, metadata=error.metadata
    )
