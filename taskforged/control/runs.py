"""Runs: start, show, steer, repeat, watch, verify."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal
from taskforged.control.starting import RunRequest, Starter
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.engine.events import (
    ApproveStep,
    CancelRun,
    CreateRun,
    Fact,
    HistoryEvent,
    IllegalEventError,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
    StartChild,
)
from taskforged.engine.keys import definition_id
from taskforged.engine.lineage import pinned_outputs
from taskforged.engine.machine import replay
from taskforged.engine.model import Json, WaitSpec, WorkflowModel
from taskforged.engine.run import Run, evolve
from taskforged.engine.states import TERMINAL_RUNS, RunState, StepState
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
from taskforged.language.definition import Definition
from taskforged.store.changes import GENESIS, Home, NewRun, StoredEvent, chain_hash
from taskforged.store.events import EventStore
from taskforged.store.runs import LoadedRun, RunFilter, RunRow, RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["DEPTH_MAX", "INPUT_MAX", "RerunRequest", "RunView", "Runs", "StartRequest", "Verdict", "WatchPortion"]

INPUT_MAX = 1 << 20
"""Bytes of a run's input."""

BATCH_MAX = 1000
WATCHES_MAX = 10_000
"""Open watches: each costs a stream and some 30 KiB."""

DEPTH_MAX = 16
"""How many parents a run may have above it: a workflow that starts itself must end some day."""

WAIT_S_MAX = 300.0
_RUN_AT_MAX_S = 366 * 86_400
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
    queue: str = ""
    priority: int | None = None
    run_at: int = 0


@dataclass(frozen=True, slots=True)
class RerunRequest:
    """Which run to repeat, and how.

    Attributes:
        from_step: begin here, with the outputs of what comes before; empty: at the start.
        version: 0: the same version.
        newest: the newest version instead.
    """

    run_id: str
    from_step: str = ""
    version: int = 0
    newest: bool = False
    request_id: str = ""


class RunView(NamedTuple):
    """A run to be shown. `run` is None in lists, where only the row is known."""

    row: RunRow | None
    run: Run | None
    namespace: str
    workflow: str
    model: WorkflowModel | None
    retried_by: str = ""


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
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        runner: Runner,
        starter: Starter,
        feed: Feed,
    ) -> None:
        self._runs = RunStore(store)
        self._events = EventStore(store)
        self._store = store
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._runner = runner
        self._starter = starter
        self._feed = feed
        runner.start_child = self.start_child

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
            await self._starter.create([prepared])
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
        prepared: list[PreparedRun] = []
        try:
            for index, ((_, request), (workflow, definition, value)) in enumerate(zip(requests, checked, strict=True)):
                prepared.append(self._decide(principal, workflow, definition, request, value, index))
        except BaseException:
            self._starter.discard(prepared)
            raise
        await self._starter.create(prepared)
        return [one.run.run_id for one in prepared]

    async def _prepare(self, principal: Principal, namespace_no: int, request: StartRequest) -> PreparedRun:
        workflow, definition, value = await self._check(namespace_no, request)
        return self._decide(principal, workflow, definition, request, value)

    async def _check(self, namespace_no: int, request: StartRequest) -> tuple[LiveWorkflow, Definition, Json]:
        self._check_request(request)
        workflow = self._workflows.get(namespace_no, request.workflow)
        definition = await self._workflows.definition(workflow.no, workflow.latest)
        value = parse_json(request.input_json or "{}", where="input_json", size_max=INPUT_MAX)
        return workflow, definition, definition.input.accept(value)

    def _check_request(self, request: StartRequest) -> None:
        _check_text("request_id", request.request_id, _REQUEST_ID_MAX)
        _check_text("correlation_id", request.correlation_id, _CORRELATION_ID_MAX)
        if not request.workflow:
            raise _invalid("workflow", "is required")
        if request.priority is not None and not 0 <= request.priority <= 9:
            raise _invalid("priority", "must be from 0 to 9")
        if request.run_at > self._clock.now() + _RUN_AT_MAX_S * 1_000_000:
            raise _invalid("run_time", "must be within a year from now")

    def _decide(
        self,
        principal: Principal,
        workflow: LiveWorkflow,
        definition: Definition,
        request: StartRequest,
        value: Json,
        index: int | None = None,
    ) -> PreparedRun:
        digest = _digest(request) if request.request_id else None
        new = NewRun(workflow.namespace_no, workflow.no, None, request.request_id or None, digest)
        create = CreateRun(
            run_id="",
            namespace="",
            workflow="",
            version=workflow.latest,
            input=value,
            correlation_id=request.correlation_id,
            created_by=principal.token_id,
            run_at=request.run_at if request.run_at > self._clock.now() else 0,
        )
        wanted = RunRequest(
            workflow, workflow.latest, definition.model, new, create, queue=request.queue, priority=request.priority
        )
        try:
            return self._starter.prepare(wanted)
        except InvalidArgumentError as error:
            raise error if index is None else _at_index(error, index) from None

    async def start_child(self, parent: Home, run: Run, command: StartChild) -> None:
        """Create the run of a sub-workflow, unless it is there already. See `Runner`."""
        if run.depth + 1 >= DEPTH_MAX:
            message = f"sub-workflows may be nested {DEPTH_MAX} deep"
            raise FailedPreconditionError(message, reason="TOO_DEEP")
        workflow = self._workflows.get(parent.namespace_no, command.workflow)
        definition = await self._workflows.definition(workflow.no, command.version)
        create = CreateRun(
            run_id=command.run_id,
            namespace="",
            workflow="",
            version=command.version,
            input=definition.input.accept(command.input),
            trigger="workflow",
            correlation_id=run.correlation_id,
            created_by=run.created_by,
            parent={"run_id": run.run_id, "step": command.step, "command": command.seq},
            depth=run.depth + 1,
            held=[*run.held, run.group] if run.group else list(run.held) or None,
        )
        new = NewRun(parent.namespace_no, workflow.no, parent_no=parent.no)
        wanted = RunRequest(workflow, command.version, definition.model, new, create, priority=run.priority)
        try:
            await self._starter.create([self._starter.prepare(wanted)])
        except ConflictError:
            if await self._runs.by_id(command.run_id) is None:
                raise

    async def _repeated(self, principal: Principal, namespace_no: int, request: StartRequest, wait_s: float) -> RunView:
        """Answer the run that this request id has started before."""
        row = await self._runs.by_request(namespace_no, request.request_id) if request.request_id else None
        if row is None:
            raise ConflictError("the run could not be stored; try again")
        if row.request_digest != _digest(request):
            raise _used(request.request_id, row)
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
        retry = await self._runs.retry_of(row.no) if row.ended_at else None
        name = self._access.namespace_name(row.namespace_no)
        return RunView(row, run, name, run.workflow, model, retry[1] if retry else "")

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
        _check_text("reason", reason, _REASON_MAX)
        row = await self._row(principal, run_id)
        if not row.cancel_requested:
            await self._steer(row, CancelRun(reason, principal.name), lambda now: bool(now.cancel_requested))
        return await self.get(principal, run_id)

    async def pause(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Let a run finish what is at work and start nothing more. Idempotent.

        Raises:
            FailedPreconditionError: it is neither running nor paused, or is being cancelled.
        """
        _check_text("reason", reason, _REASON_MAX)
        row = await self._row(principal, run_id)
        if row.state != RunState.PAUSED:
            await self._steer(row, PauseRun(reason, principal.name), lambda now: now.state == RunState.PAUSED)
        return await self.get(principal, run_id)

    async def resume(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Let a paused run go on. Idempotent.

        Raises:
            FailedPreconditionError: it is neither paused nor running.
        """
        _check_text("reason", reason, _REASON_MAX)
        row = await self._row(principal, run_id)
        if row.state != RunState.RUNNING:
            await self._steer(row, ResumeRun(reason, principal.name), lambda now: now.state == RunState.RUNNING)
        return await self.get(principal, run_id)

    async def _steer(self, row: RunRow, fact: Fact, is_done: Callable[[RunRow], bool]) -> None:
        """Deliver a fact; when the run refuses it, see whether it is where the caller wants it all the same."""
        try:
            if row.ended_at is not None:
                raise _illegal(row, fact)
            await self._runner.deliver(row.no, fact)
        except FailedPreconditionError:
            now = await self._runs.by_no(row.no) or row
            if not is_done(now):
                raise _illegal(now, fact) from None

    async def signal(
        self, principal: Principal, run_id: str, name: str, payload_json: str, request_id: str
    ) -> tuple[RunView, str]:
        """Send a signal; answers the run and the step that took it, empty when it is kept for a later one.

        Raises:
            FailedPreconditionError: the workflow waits for no such signal, or the run has ended.
            InvalidArgumentError: the payload does not fit the schema.
        """
        _check_text("request_id", request_id, _REQUEST_ID_MAX)
        loaded = await self._load(principal, run_id)
        model = await self._workflows.model(loaded.row.workflow_no, loaded.row.version)
        payload = _payload(payload_json)
        waits = [step.spec for step in model.steps.values() if isinstance(step.spec, WaitSpec) and step.spec.signal]
        fitting = [spec for spec in waits if spec.signal == name]
        if not fitting:
            known = ", ".join(sorted({spec.signal for spec in waits})) or "none"
            raise FailedPreconditionError(
                f"workflow {loaded.run.workflow!r} waits for no signal {name!r}; it knows {known}",
                metadata={"run": run_id, "signal": name},
            )
        payload = _accept(fitting, payload)
        before = loaded.run.sequence
        await self._deliver(loaded.row, SignalRun(name, payload, principal.name, request_id))
        view = await self.get(principal, run_id)
        return view, await self._taken_by(loaded.row, before, name)

    async def _taken_by(self, row: RunRow, after: int, name: str) -> str:
        for stored in await self._runs.history(row.no, after, 200):
            event = stored.event
            if event.step and event.body.get("signal") == name and event.kind == "step.succeeded":
                return event.step
        return ""

    async def answer(
        self, principal: Principal, run_id: str, step: str, *, approved: bool, payload_json: str = "", comment: str = ""
    ) -> RunView:
        """Approve or reject what a step asks for; without a step the only one that asks. Idempotent.

        Raises:
            FailedPreconditionError: nothing asks, or it was answered in another way.
            InvalidArgumentError: several steps ask and none is named, or the payload does not fit the schema.
        """
        _check_text("comment", comment, _REASON_MAX)
        loaded = await self._load(principal, run_id)
        row, run = loaded
        key = step or _only_asking(run)
        known = run.steps.get(key)
        if known is not None and _is_answered(known.state, known.output, known.error, approved=approved):
            return await self.get(principal, run_id)
        if approved:
            model = await self._workflows.model(row.workflow_no, row.version)
            definition = model.steps.get(definition_id(key))
            payload = _payload(payload_json)
            if definition is not None and isinstance(definition.spec, WaitSpec):
                payload = _accept([definition.spec], payload)
            await self._deliver(row, ApproveStep(key, principal.name, payload, comment))
        else:
            await self._deliver(row, RejectStep(key, principal.name, comment))
        return await self.get(principal, run_id)

    async def resolve(
        self, principal: Principal, run_id: str, step: str, outcome: str, *, output_json: str = "", comment: str = ""
    ) -> RunView:
        """Say what became of an attempt whose effect is unknown: `succeeded`, `failed`, or `retry` it.

        Raises:
            FailedPreconditionError: the step needs no decision.
        """
        _check_text("comment", comment, _REASON_MAX)
        if output_json and outcome != "succeeded":
            raise _invalid("output_json", "is possible only for a step that succeeded")
        row = await self._row(principal, run_id)
        output = _payload(output_json, "output_json")
        await self._deliver(row, ResolveStep(step, outcome, principal.name, output, comment))
        return await self.get(principal, run_id)

    async def _deliver(self, row: RunRow, fact: Fact) -> None:
        if row.ended_at is not None:
            raise _illegal(row, fact)
        await self._runner.deliver(row.no, fact)

    # --- repeating ---------------------------------------------------------------------------------------------------

    async def retry(self, principal: Principal, run_id: str, request_id: str = "") -> RunView:
        """Start a run that tries the failed steps of another again and takes over the outputs of those that succeeded.

        A run is retried once: asked again, this answers the same retry. The run itself stays what it is.

        Raises:
            FailedPreconditionError: it has not failed, died or been cancelled.
        """
        _check_text("request_id", request_id, _REQUEST_ID_MAX)
        loaded = await self._load(principal, run_id)
        row, run = loaded
        known = await self._runs.retry_of(row.no)
        if known is not None:
            return await self.get(principal, known[1])
        if row.state not in {RunState.FAILED, RunState.DEAD, RunState.CANCELLED}:
            raise FailedPreconditionError(
                f"run {run_id} is {row.state}; only one that is FAILED, DEAD or CANCELLED can be retried",
                metadata={"run": run_id, "state": row.state},
            )
        workflow = self._live(row, run)
        definition = await self._workflows.definition(row.workflow_no, row.version)
        pinned = pinned_outputs(definition.model, definition.model, run)
        create = _again(run, principal, run.input, pinned, retry_of=run_id, attempt=run.attempt + 1)
        new = NewRun(row.namespace_no, row.workflow_no, row.event_no, retry_of_no=row.no)
        wanted = RunRequest(
            workflow, row.version, definition.model, new, create, run.event, queue=run.queue, priority=run.priority
        )
        settle = (self._clock.now(), principal.name, row.no)
        try:
            prepared = self._starter.prepare(wanted)
            await self._starter.create([prepared], lambda c: _settle_dead_letter(c, settle))
        except ConflictError:  # somebody else was faster
            known = await self._runs.retry_of(row.no)
            if known is None:
                raise
            return await self.get(principal, known[1])
        return RunView(
            None, prepared.run, self._access.namespace_name(row.namespace_no), run.workflow, definition.model
        )

    async def rerun(self, principal: Principal, request: RerunRequest) -> RunView:
        """Start a run like another, from its start or from a step on.

        Raises:
            FailedPreconditionError: the run has not ended.
            InvalidArgumentError: there is no such step, or the input does not fit the newer version.
        """
        _check_text("request_id", request.request_id, _REQUEST_ID_MAX)
        loaded = await self._load(principal, request.run_id)
        row, run = loaded
        if row.ended_at is None:
            raise FailedPreconditionError(
                f"run {row.id} is {row.state}; only one that has ended can be repeated",
                metadata={"run": row.id, "state": row.state},
            )
        workflow = self._live(row, run)
        if request.newest and request.version:
            raise _invalid("version", "and newest_version exclude each other")
        version = workflow.latest if request.newest else request.version or row.version
        before = await self._workflows.definition(row.workflow_no, row.version)
        after = await self._workflows.definition(row.workflow_no, version)
        pinned: dict[str, Json] = {}
        if request.from_step:
            try:
                pinned = pinned_outputs(before.model, after.model, run, request.from_step)
            except KeyError:
                message = f"version {version} of {run.workflow!r} has no main step {request.from_step!r}"
                raise InvalidArgumentError(message, violations=[Violation("from_step", message)]) from None
        value = run.input if after is before else after.input.accept(run.input)
        create = _again(run, principal, value, pinned, rerun_of=row.id, from_step=request.from_step)
        digest = hashlib.sha256(canonical([row.id, request.from_step, version])).digest()
        new = NewRun(
            *(row.namespace_no, row.workflow_no, row.event_no, request.request_id or None),
            request_digest=digest if request.request_id else None,
            rerun_of_no=row.no,
        )
        wanted = RunRequest(workflow, version, after.model, new, create, run.event, run.queue, run.priority)
        try:
            prepared = self._starter.prepare(wanted)
            await self._starter.create([prepared])
        except ConflictError:
            return await self._rerun_before(principal, row.namespace_no, request, digest)
        name = self._access.namespace_name(row.namespace_no)
        return RunView(None, prepared.run, name, run.workflow, after.model)

    async def _rerun_before(
        self, principal: Principal, namespace_no: int, request: RerunRequest, digest: bytes
    ) -> RunView:
        known = await self._runs.by_request(namespace_no, request.request_id) if request.request_id else None
        if known is None:
            raise ConflictError("the run could not be stored; try again")
        if known.request_digest != digest:
            raise _used(request.request_id, known)
        return await self.get(principal, known.id)

    def _live(self, row: RunRow, run: Run) -> LiveWorkflow:
        found = self._workflows.by_no(row.workflow_no)
        if found is None:
            raise FailedPreconditionError(
                f"workflow {run.workflow!r} was deleted; apply it again and start a new run",
                metadata={"workflow": run.workflow},
            )
        return found

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


_LEGAL: dict[type[Fact], str] = {
    CancelRun: "only an open run can be cancelled",
    PauseRun: "only a RUNNING run can be paused",
    ResumeRun: "only a PAUSED run can be resumed",
}


def _illegal(row: RunRow, fact: Fact) -> FailedPreconditionError:
    state = f"{row.state} and being cancelled" if row.cancel_requested and row.ended_at is None else row.state
    hint = _LEGAL.get(type(fact), "it waits for nothing any more")
    return FailedPreconditionError(f"run {row.id} is {state}; {hint}", metadata={"run": row.id, "state": row.state})


def _used(request_id: str, row: RunRow) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"request_id {request_id!r} was used for another request, which started {row.id}",
        metadata={"request_id": request_id, "run_id": row.id},
    )


def _again(run: Run, principal: Principal, value: Json, pinned: dict[str, Json], **lineage: Any) -> CreateRun:
    return CreateRun(
        run_id="",
        namespace="",
        workflow="",
        version=0,
        input=value,
        trigger=run.trigger if run.parent is None else "manual",
        event_id=run.event_id,
        correlation_id=run.correlation_id,
        created_by=principal.token_id,
        pinned=pinned or None,
        **lineage,
    )


def _settle_dead_letter(connection: Connection, row: tuple[int, str, int]) -> None:
    connection.execute(QUERIES["retry_dead_letter"], row)


def _payload(text: str, where: str = "payload_json") -> Json:
    return parse_json(text, where=where, size_max=INPUT_MAX) if text else None


def _accept(waits: Sequence[WaitSpec], payload: Json) -> Json:
    """Hold a payload against the schemas of the steps that may take it: one that fits is enough."""
    fault: InvalidArgumentError | None = None
    for spec in waits:
        if spec.contract is None:
            return payload
        try:
            return spec.contract.accept(payload)
        except InvalidArgumentError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _only_asking(run: Run) -> str:
    asking = [
        key for key, step in run.steps.items() if step.state is StepState.WAITING and "approval" in (step.input or {})
    ]
    if len(asking) == 1:
        return asking[0]
    if not asking:
        raise FailedPreconditionError(
            f"run {run.run_id} is {run.state} and waits for no approval",
            metadata={"run": run.run_id, "state": run.state.value},
        )
    message = f"is required: {', '.join(asking[:20])} wait for approval"
    raise InvalidArgumentError(f"step {message}", violations=[Violation("step", message)])


def _is_answered(state: StepState, output: Json, error: Json, *, approved: bool) -> bool:
    """Whether a step has this very answer already."""
    if approved:
        return state is StepState.SUCCEEDED and isinstance(output, dict) and output.get("approved") is True
    return state is StepState.FAILED and isinstance(error, dict) and error.get("code") == "rejected"


def _digest(request: StartRequest) -> bytes:
    parts: list[Json] = [request.workflow, request.input_json, request.correlation_id]
    if request.queue or request.priority is not None or request.run_at:
        parts.append([request.queue, request.priority, request.run_at])
    return hashlib.sha256(canonical(parts)).digest()


def _check_text(field: str, text: str, limit: int) -> None:
    if len(text) > limit or not text.isprintable():
        raise _invalid(field, f"must have at most {limit:,} printable characters")


def _invalid(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {message}", violations=[Violation(field, message)])


def _at_index(error: InvalidArgumentError, index: int) -> InvalidArgumentError:
    violations = [Violation(f"requests[{index}].{v.path}", v.message, v.line, v.column) for v in error.violations]
    return InvalidArgumentError(
        f"requests[{index}]: {error.message}", violations=violations, reason=error.reason, metadata=error.metadata
    )
