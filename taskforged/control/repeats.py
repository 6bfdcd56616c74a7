"""Repeating runs: retry what failed, or run again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal
from taskforged.control.checks import REQUEST_ID_MAX, check_text, invalid, used
from taskforged.control.pressure import Pressure
from taskforged.control.starting import RunRequest, Starter
from taskforged.control.views import RunView, RunViews
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.correlation import parent_of, run_span
from taskforged.engine.events import (
    CreateRun,
)
from taskforged.engine.lineage import pinned_outputs
from taskforged.engine.model import Json
from taskforged.engine.run import Run
from taskforged.engine.states import RunState
from taskforged.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Violation,
)
from taskforged.jsonvalue import canonical
from taskforged.store.changes import NewRun
from taskforged.store.runs import RunRow, RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["Repeats", "RerunRequest"]


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


class Repeats:
    """Starts runs that repeat others."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        starter: Starter,
        views: RunViews,
        pressure: Pressure,
    ) -> None:
        self._runs = RunStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._starter = starter
        self._views = views
        self._pressure = pressure

    # --- repeating ---------------------------------------------------------------------------------------------------

    async def retry(self, principal: Principal, run_id: str, request_id: str = "") -> RunView:
        """Start a run that tries the failed steps of another again and takes over the outputs of those that succeeded.

        A run is retried once: asked again, this answers the same retry. The run itself stays what it is.

        Raises:
            FailedPreconditionError: it has not failed, died or been cancelled.
        """
        check_text("request_id", request_id, REQUEST_ID_MAX)
        loaded = await self._views.load(principal, run_id)
        row, run = loaded
        known = await self._runs.retry_of(row.no)
        if known is not None:
            return await self._views.get(principal, known[1])
        if row.state not in {RunState.FAILED, RunState.DEAD, RunState.CANCELLED}:
            raise FailedPreconditionError(
                f"run {run_id} is {row.state}; only one that is FAILED, DEAD or CANCELLED can be retried",
                metadata={"run": run_id, "state": row.state},
            )
        self._pressure.check()
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
            return await self._views.get(principal, known[1])
        return RunView(
            None, prepared.run, self._access.namespace_name(row.namespace_no), run.workflow, definition.model
        )

    async def rerun(self, principal: Principal, request: RerunRequest) -> RunView:
        """Start a run like another, from its start or from a step on.

        Raises:
            FailedPreconditionError: the run has not ended.
            InvalidArgumentError: there is no such step, or the input does not fit the newer version.
        """
        check_text("request_id", request.request_id, REQUEST_ID_MAX)
        loaded = await self._views.load(principal, request.run_id)
        row, run = loaded
        if row.ended_at is None:
            raise FailedPreconditionError(
                f"run {row.id} is {row.state}; only one that has ended can be repeated",
                metadata={"run": row.id, "state": row.state},
            )
        self._pressure.check()
        workflow = self._live(row, run)
        if request.newest and request.version:
            raise invalid("version", "and newest_version exclude each other")
        version = workflow.latest if request.newest else request.version or row.version
        if version > workflow.latest:
            raise NotFoundError(
                f"workflow {workflow.name!r} has no version {version}; the newest is {workflow.latest}",
                metadata={"workflow": workflow.name, "version": str(version)},
            )
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
            raise used(request.request_id, known)
        return await self._views.get(principal, known.id)

    def _live(self, row: RunRow, run: Run) -> LiveWorkflow:
        found = self._workflows.by_no(row.workflow_no)
        if found is None:
            raise FailedPreconditionError(
                f"workflow {run.workflow!r} was deleted; apply it again and start a new run",
                metadata={"workflow": run.workflow},
            )
        return found


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
        traceparent=parent_of(run.run_id, run.traceparent, run_span(run.run_id)),
        tracestate=run.tracestate,
        created_by=principal.token_id,
        pinned=pinned or None,
        **lineage,
    )


def _settle_dead_letter(connection: Connection, row: tuple[int, str, int]) -> None:
    connection.execute(QUERIES["retry_dead_letter"], row)
