"""Starting runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal
from taskforged.control.checks import INPUT_MAX, REQUEST_ID_MAX, check_text, invalid, used
from taskforged.control.pressure import Pressure
from taskforged.control.starting import RunRequest, Starter
from taskforged.control.views import RunView, RunViews
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.correlation import CORRELATION_ID_MAX, NO_TRACE, Trace, parent_of, step_span
from taskforged.engine.events import (
    CreateRun,
    StartChild,
)
from taskforged.engine.model import Json
from taskforged.engine.run import Run
from taskforged.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    TaskforgeError,
    Violation,
)
from taskforged.host.entry import PreparedRun
from taskforged.host.feed import Feed
from taskforged.host.limits import PRIORITY_MAX
from taskforged.host.runner import Runner
from taskforged.jsonvalue import canonical, parse_json
from taskforged.language.definition import Definition
from taskforged.store.audit import about
from taskforged.store.changes import Home, NewRun
from taskforged.store.runs import RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["BATCH_MAX", "DEPTH_MAX", "WAIT_S_MAX", "Runs", "StartRequest"]

BATCH_MAX = 1000

DEPTH_MAX = 16
"""How many parents a run may have above it: a workflow that starts itself must end some day."""

WAIT_S_MAX = 300.0

_RUN_AT_MAX_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What a caller wants started. `trace` came with the call; a repetition of the call may come with another."""

    workflow: str
    input_json: str = ""
    request_id: str = ""
    correlation_id: str = ""
    queue: str = ""
    priority: int | None = None
    run_at: int = 0
    trace: Trace = NO_TRACE


class Runs:
    """Starts runs."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        runner: Runner,
        starter: Starter,
        views: RunViews,
        feed: Feed,
        pressure: Pressure,
    ) -> None:
        self._runs = RunStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._runner = runner
        self._starter = starter
        self._views = views
        self._feed = feed
        self._pressure = pressure
        runner.children.start_child = self.start_child

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
        try:
            self._pressure.check()
            prepared = await self._prepare(principal, namespace_no, request)
            about("run", prepared.run.run_id)
            await self._starter.create([prepared])
        except TaskforgeError as error:
            # Whoever repeats a call gets what it has started, whatever has become of limits and contracts since then.
            return await self._repeated(principal, namespace_no, request, wait_s, error)
        run = prepared.run
        if wait_s and not run.ended_at:
            run = await self._runner.wait_end(prepared, wait_s) or (await self._views.load(principal, run.run_id)).run
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
        self._pressure.check()
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
        about("run", f"{prepared[0].run.run_id}+{len(prepared) - 1}")
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
        check_text("request_id", request.request_id, REQUEST_ID_MAX)
        check_text("correlation_id", request.correlation_id, CORRELATION_ID_MAX)
        if not request.workflow:
            raise invalid("workflow", "is required")
        if request.priority is not None and not 0 <= request.priority <= PRIORITY_MAX:
            raise invalid("priority", f"must be from 0 to {PRIORITY_MAX}")
        if request.run_at > self._clock.wall() + _RUN_AT_MAX_S * 1_000_000:
            raise invalid("run_time", "must be within a year from now")

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
            correlation_id=request.correlation_id or request.trace.correlation_id,
            traceparent=request.trace.traceparent,
            tracestate=request.trace.tracestate,
            created_by=principal.token_id,
            run_at=request.run_at if request.run_at > self._clock.wall() else 0,
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
        home = self._workflows.by_no(parent.workflow_no)  # a run for another tenant finds what its author wrote
        namespace_no = parent.namespace_no if home is None else home.namespace_no
        workflow = self._workflows.get(namespace_no, command.workflow)
        if parent.namespace_no != workflow.namespace_no:
            await self._check_author(workflow, command.version, parent.namespace_no)
        definition = await self._workflows.definition(workflow.no, command.version)
        create = CreateRun(
            run_id=command.run_id,
            namespace="",
            workflow="",
            version=command.version,
            input=definition.input.accept(command.input),
            trigger="workflow",
            correlation_id=run.correlation_id,
            traceparent=parent_of(run.run_id, run.traceparent, step_span(run.run_id, command.step)),
            tracestate=run.tracestate,
            created_by=run.created_by,
            parent={"run_id": run.run_id, "step": command.step, "command": command.seq},
            depth=run.depth + 1,
            hops=run.hops,
            held=[*run.held, run.group] if run.group else list(run.held) or None,
        )
        new = NewRun(parent.namespace_no, workflow.no, parent_no=parent.no)
        wanted = RunRequest(workflow, command.version, definition.model, new, create, priority=run.priority)
        try:
            await self._starter.create([self._starter.prepare(wanted)])
        except ConflictError:
            if await self._runs.by_id(command.run_id) is None:
                raise

    async def _check_author(self, workflow: LiveWorkflow, number: int, namespace_no: int) -> None:
        """See that whoever wrote a version may use the namespace in which it shall run, with that one's secrets.

        Raises:
            FailedPreconditionError: neither the token that stored it may, nor the one that applied it last.
        """
        version = await self._workflows.version(workflow, number)
        vouched = number == workflow.latest and self._access.live_principal(workflow.applied_by) is not None
        authors = [version.created_by, *([workflow.applied_by] if vouched else [])]
        if not any(self._access.reaches(author, namespace_no) for author in authors):
            name = self._access.namespace_name(namespace_no)
            raise FailedPreconditionError(
                f"version {number} of workflow {workflow.name!r} was applied by a token that may not use {name!r}",
                reason="AUTHOR_CONFINED",
                metadata={"workflow": workflow.name, "namespace": name},
            )

    async def _repeated(
        self, principal: Principal, namespace_no: int, request: StartRequest, wait_s: float, refusal: TaskforgeError
    ) -> RunView:
        """Answer the run that this request id has started before; without one, what was refused stays refused."""
        is_usable = 0 < len(request.request_id) <= REQUEST_ID_MAX
        row = await self._runs.by_request(namespace_no, request.request_id) if is_usable else None
        if row is None and isinstance(refusal, ConflictError):
            raise ConflictError("the run could not be stored; try again") from refusal
        if row is None:
            raise refusal
        if row.request_digest != _digest(request):
            raise used(request.request_id, row)
        about("run", row.id)
        if wait_s:
            await self._wait_stored(row, wait_s)
        return await self._views.get(principal, row.id)

    async def _wait_stored(self, row: RunRow, wait_s: float) -> None:
        """Wait for the end of a run that somebody else started."""
        deadline = time.monotonic() + wait_s
        with self._feed.watch(row.no) as watch:
            while (left := deadline - time.monotonic()) > 0 and not self._feed.closed:
                known = await self._runs.by_id(row.id)
                if known is None or known.ended_at is not None:
                    return
                await watch.wait_news(left)


def _digest(request: StartRequest) -> bytes:
    parts: list[Json] = [request.workflow, request.input_json, request.correlation_id]
    if request.queue or request.priority is not None or request.run_at:
        parts.append([request.queue, request.priority, request.run_at])
    return hashlib.sha256(canonical(parts)).digest()


def _at_index(error: InvalidArgumentError, index: int) -> InvalidArgumentError:
    violations = [Violation(f"requests[{index}].{v.path}", v.message, v.line, v.column) for v in error.violations]
    return InvalidArgumentError(
        f"requests[{index}]: {error.message}", violations=violations, reason=error.reason, metadata=error.metadata
    )
