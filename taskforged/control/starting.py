"""How a run comes into being, whoever wants it: a client, a webhook, a parent run, a retry.

One place decides what belongs to a new run besides its input: queue and priority, the concurrency group, the versions
of its sub-workflows; and what becomes of it when the group is full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from taskforged.clock import Clock, new_id
from taskforged.control.access import Access
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.engine.events import CancelRun, CreateRun
from taskforged.engine.model import ExpressionError, Json, OnLimit, WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.scope import RunScope
from taskforged.engine.states import RunState
from taskforged.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, Violation
from taskforged.host.entry import PreparedRun
from taskforged.host.runner import Runner
from taskforged.language.definition import CronTrigger, Definition
from taskforged.store.changes import NewRun
from taskforged.store.runs import RunStore
from taskforged.store.store import Connection, Store

__all__ = ["CRON_GROUP", "GROUP_MAX", "RunRequest", "Starter"]

T = TypeVar("T")

GROUP_MAX = 200
"""Characters of the name of a concurrency group."""

CRON_GROUP = "cron "
"""How the group begins that a cron trigger puts its runs into."""

_SUPERSEDED = "a newer run of its concurrency group has taken its place"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run that somebody wants, checked.

    Attributes:
        create: what is known, with the input held against the contract; the id, unless it is given, and the names,
            queue, priority, group and pins are filled in.
        event: what expressions see as `event`.
        queue: empty: as the definition says.
        priority: None: as the definition says.
    """

    workflow: LiveWorkflow
    version: int
    model: WorkflowModel
    new: NewRun
    create: CreateRun
    event: Json = None
    queue: str = ""
    priority: int | None = None


class Starter:
    """Prepares and creates runs."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        workflows: Workflows,
        runner: Runner,
        items_max: int,
        queue_exists: Callable[[int, str], bool],
    ) -> None:
        """Create a starter; `items_max` limits fan-outs, `queue_exists` knows the queues of a namespace."""
        self._runs = RunStore(store)
        self._clock = clock
        self._access = access
        self._workflows = workflows
        self._runner = runner
        self._items_max = items_max
        self._queue_exists = queue_exists
        runner.asks_pending, runner.on_pending = may_give_way, self.decide_pending

    def prepare(self, request: RunRequest) -> PreparedRun:
        """Decide a run. It must be given to `create`, or to the runner's `discard`.

        Raises:
            InvalidArgumentError: there is no such queue, or the concurrency group cannot be told.
            ResourceExhaustedError: too many runs wait already.
        """
        create = self._complete(request)
        skip = ""
        concurrency = request.model.concurrency
        is_skipping = concurrency is not None and concurrency.on_limit is OnLimit.SKIP and not create.run_at
        if is_skipping and self._is_full(request.new.namespace_no, create.group, create.group_limit):
            skip = _full(create.group, create.group_limit)
        return self._runner.prepare(request.model, request.new, create, request.event, skip=skip)

    def discard(self, prepared: Sequence[PreparedRun]) -> None:
        """Forget prepared runs that will not be written."""
        self._runner.discard(prepared)

    async def create(
        self, prepared: Sequence[PreparedRun], function: Callable[[Connection], T] | None = None
    ) -> T | None:
        """Write prepared runs in one transaction; see `Runner.create`."""
        return await self._runner.create(prepared, function)

    async def decide_pending(self, no: int) -> None:
        """Do what a definition says about a run that waits while its concurrency group is full.

        The runner asks whenever a run begins to wait that `may_give_way`, also after its time has come or a crash.
        """
        loaded = await self._runs.load(no)
        if loaded is None or loaded.run.state is not RunState.PENDING or loaded.run.cancel_requested:
            return
        row, run = loaded
        on_limit = _on_limit(await self._workflows.definition(row.workflow_no, row.version), run)
        if on_limit is OnLimit.CANCEL_RUNNING:
            # Runs of one due time do not take each other's place: they are the items of one `for_each`.
            kin = row.event_no if run.group.startswith(CRON_GROUP) else None
            await self._make_room(no, row.namespace_no, run, kin)
        elif on_limit is OnLimit.SKIP:
            running, _ = self._runner.admission.group_members(row.namespace_no, run.group)
            if len(running) >= run.group_limit and no not in running:
                await self._cancel(no, _full(run.group, run.group_limit))

    def _complete(self, request: RunRequest) -> CreateRun:
        model, create = request.model, request.create
        queue = request.queue or model.queue
        is_elsewhere = request.new.namespace_no != request.workflow.namespace_no  # apply has looked at home
        if (request.queue or is_elsewhere) and not self._queue_exists(request.new.namespace_no, queue):
            where = f" in {self._access.namespace_name(request.new.namespace_no)!r}" if is_elsewhere else ""
            message = f"there is no queue {queue!r}{where}; `taskforgectl queue set {queue}` creates it"
            raise InvalidArgumentError(message, violations=[Violation("queue", message)])
        create = create._replace(
            run_id=create.run_id or new_id("run", self._clock.now()),
            namespace=self._access.namespace_name(request.new.namespace_no),
            workflow=request.workflow.name,
            version=request.version,
            queue=queue,
            priority=model.priority if request.priority is None else request.priority,
            pins=self._pins(request) or None,
            items_max=self._items_max,
        )
        if model.concurrency is None:
            return create  # its trigger may have put it into a group of its own
        return create._replace(group=self._group(request, create), group_limit=model.concurrency.limit)

    def _pins(self, request: RunRequest) -> dict[str, int]:
        """Answer the newest versions of the sub-workflows that the definition names without one."""
        found = {}
        for name in sorted(request.model.children):
            try:
                found[name] = self._workflows.get(request.workflow.namespace_no, name).latest
            except NotFoundError:  # the step that needs it will say so
                continue
        return found

    def _group(self, request: RunRequest, create: CreateRun) -> str:
        concurrency = request.model.concurrency
        assert concurrency is not None
        run = Run(
            run_id=create.run_id,
            namespace=create.namespace,
            workflow=create.workflow,
            version=create.version,
            trigger=create.trigger,
            correlation_id=create.correlation_id or create.run_id,
            queue=create.queue,
            priority=create.priority,
            attempt=create.attempt,
            parent=create.parent,
            input=create.input,
            event=request.event,
            created_at=self._clock.now(),
        )
        try:
            group = concurrency.group.evaluate(RunScope(request.model, run))
        except ExpressionError as error:
            raise InvalidArgumentError(f"the concurrency group cannot be told: {error}") from None
        if not isinstance(group, str) or not group or len(group) > GROUP_MAX:
            raise InvalidArgumentError(f"the concurrency group must be a text of 1 to {GROUP_MAX} characters")
        if group in (create.held or ()):
            raise FailedPreconditionError(
                f"a parent of this run holds its concurrency group {group!r}: it would wait for ever",
                reason="CONCURRENCY_DEADLOCK",
            )
        return group

    def _is_full(self, namespace_no: int, group: str, limit: int) -> bool:
        return self._runner.admission.group_size(namespace_no, group) >= limit

    async def _make_room(self, new: int, namespace_no: int, run: Run, kin: int | None) -> None:
        """Cancel what stands in the way of a new run: who waits before it, and the oldest of those that run."""
        running, waiting = self._runner.admission.group_members(namespace_no, run.group)
        older = [no for no in running if no < new]
        spare = max(0, len(running) - (new in running) - (run.group_limit - 1))
        for no in (*(no for no in waiting if no < new), *older[:spare]):
            await self._cancel(no, _SUPERSEDED, kin)

    async def _cancel(self, no: int, reason: str, kin: int | None = None) -> None:
        """Cancel a run, unless event `kin` has started it."""
        row = await self._runs.by_no(no)
        if row is None or row.ended_at is not None or row.cancel_requested:
            return
        if kin is not None and row.event_no == kin:
            return
        with contextlib.suppress(FailedPreconditionError):  # it has ended meanwhile
            await self._runner.deliver(no, CancelRun(reason))


def may_give_way(model: WorkflowModel, group: str) -> bool:
    """Answer whether anything but waiting may become of a run whose group is full: there may be very many."""
    if model.concurrency is not None:
        return model.concurrency.on_limit is not OnLimit.QUEUE
    return group.startswith(CRON_GROUP)


def _on_limit(definition: Definition, run: Run) -> OnLimit:
    """Answer what becomes of a run whose group is full: its workflow says so, or else its cron trigger."""
    if definition.model.concurrency is not None:
        return definition.model.concurrency.on_limit
    trigger = definition.triggers.get(run.trigger)
    by_schedule = run.group.startswith(CRON_GROUP)  # and not by a backfill, which has a group of its own
    is_taking_over = by_schedule and isinstance(trigger, CronTrigger) and trigger.overlap == OnLimit.CANCEL_RUNNING
    return OnLimit.CANCEL_RUNNING if is_taking_over else OnLimit.QUEUE


def _full(group: str, limit: int) -> str:
    return f"skipped: concurrency group {group!r} is full ({limit})"
