"""What an explanation of a run is made from, apart from the run itself, and how it is collected.

Records first: the history, rows, and the lines in which runs and steps stand. Nothing is asked twice, so an explanation
holds for one moment, though its parts may be some milliseconds apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from taskforged.engine.events import HistoryEvent
from taskforged.engine.run import Run
from taskforged.engine.states import RunState, StepState
from taskforged.host.admission import Admission, Blocker
from taskforged.host.dispatcher import CommandKey, Dispatcher, Lane
from taskforged.host.limits import Limits
from taskforged.store.runs import LoadedRun, RunStore

__all__ = ["HOLDERS_MAX", "ExplainFacts", "HistoryFacts", "LaneFacts", "PendingFacts", "collect", "scan"]

HOLDERS_MAX = 10
"""Holders that a reason names, as the contract says."""

_LOOKED_AT_MAX = 50
"""Queued steps whose place in line, and sub-workflows whose state, are looked up: more are not shown."""

_Limit: TypeAlias = Literal["paused", "queue", "namespace", "pool", ""]


class PendingFacts(NamedTuple):
    """What a pending run waits for: see `Blocker`. `holders` are ids of runs."""

    kind: Literal["group", "namespace", "none"]
    limit: int = 0
    holders: Sequence[str] = ()
    position: int = 0


class LaneFacts(NamedTuple):
    """How it stands with the lane in which the queued steps of a run wait. A limit of 0 means none.

    Attributes:
        queue: its name.
        paused: nothing of this queue is started.
        queue_limit: running steps that the queue may have.
        queue_running: running steps that it has.
        namespace_limit: running steps that the namespace may have.
        namespace_running: running steps that it has.
        pool_size: running steps that the daemon may have.
        pool_running: running steps that it has.
        positions: how many of the lane go before a step, by its key, where that is known.
        holders: who holds what `blocked_by` says, as `run_…/step`.
    """

    queue: str
    paused: bool = False
    queue_limit: int = 0
    queue_running: int = 0
    namespace_limit: int = 0
    namespace_running: int = 0
    pool_size: int = 0
    pool_running: int = 0
    positions: Mapping[str, int] = {}
    holders: Sequence[str] = ()

    @property
    def blocked_by(self) -> _Limit:
        """Answer what keeps the first in line from being started, empty when nothing does."""
        if self.paused:
            return "paused"
        if self.queue_limit and self.queue_running >= self.queue_limit:
            return "queue"
        if self.namespace_limit and self.namespace_running >= self.namespace_limit:
            return "namespace"
        if self.pool_size and self.pool_running >= self.pool_size:
            return "pool"
        return ""


@dataclass(slots=True)
class HistoryFacts:
    """What a run's state does not hold and its history does.

    Attributes:
        attempt_starts: when the newest attempt began, by key of the step.
        paused_at: when it was paused.
        cancel_at: when somebody asked it to stop; 0 for never.
        cancel_by: who; empty for the daemon itself.
        cancel_reason: why.
        grace_until: when the steps of `on_cancel` must have ended.
    """

    attempt_starts: dict[str, int] = field(default_factory=dict)
    paused_at: int = 0
    cancel_at: int = 0
    cancel_by: str = ""
    cancel_reason: str = ""
    grace_until: int = 0


@dataclass(frozen=True, slots=True)
class ExplainFacts:
    """All of it.

    Attributes:
        namespace: name of the run's namespace.
        history: what its history tells.
        pending: what it waits for, while it is PENDING.
        lane: where its queued steps wait, if it has any.
        children: state of its sub-workflows by their run's id; empty: not created yet.
        retried_by: the run that retries it; empty: none.
    """

    namespace: str = "default"
    history: HistoryFacts = field(default_factory=HistoryFacts)
    pending: PendingFacts | None = None
    lane: LaneFacts | None = None
    children: Mapping[str, str] = field(default_factory=dict)
    retried_by: str = ""


def scan(history: Iterable[HistoryEvent], found: HistoryFacts | None = None) -> HistoryFacts:
    """Gather what the history tells; `found` is what the part before it told."""
    found = found or HistoryFacts()
    for event in history:
        match event.kind.value:
            case "step.started":
                found.attempt_starts[event.step] = event.at
            case "step.completed" | "step.attempt_failed" | "step.attempt_lost" | "step.attempt_cancelled":
                found.attempt_starts.pop(event.step, None)
            case "run.paused":
                found.paused_at = event.at
            case "run.cancelling":
                found.grace_until = event.body["at"]
            case "run.cancel_requested" if not found.cancel_at:
                found.cancel_at = event.at
                found.cancel_by = event.body.get("by", "")
                found.cancel_reason = event.body.get("reason", "")
    return found


async def collect(
    runs: RunStore,
    loaded: LoadedRun,
    *,
    namespace: str,
    admission: Admission,
    dispatcher: Dispatcher,
    limits: Limits,
) -> ExplainFacts:
    """Collect the facts for a run as it was loaded."""
    row, run = loaded
    pending = None
    if run.state is RunState.PENDING:
        blocker = admission.blockers(row.no)
        pending = None if blocker is None else await _pending(runs, blocker)
    retry = await runs.retry_of(row.no) if run.ended_at else None
    return ExplainFacts(
        namespace=namespace,
        history=await _scanned(runs, row.no, run),
        pending=pending,
        lane=await _lane(runs, row.no, Lane(row.namespace_no, run.queue, run.priority), run, dispatcher, limits),
        children=await _children(runs, run),
        retried_by=retry[1] if retry else "",
    )


async def _scanned(runs: RunStore, no: int, run: Run) -> HistoryFacts:
    found, after = HistoryFacts(), 0
    if run.ended_at and not run.cancel_requested:
        return found
    while portion := await runs.history(no, after, 1000):
        scan((stored.event for stored in portion), found)
        after = portion[-1].event.sequence
    return found


async def _pending(runs: RunStore, blocker: Blocker) -> PendingFacts:
    holders = [await runs.id_of(no) for no in blocker.holders[:HOLDERS_MAX]]
    return PendingFacts(blocker.kind, blocker.limit, list(filter(None, holders)), blocker.position)


async def _lane(
    runs: RunStore, no: int, lane: Lane, run: Run, dispatcher: Dispatcher, limits: Limits
) -> LaneFacts | None:
    queued = [key for key in run.commands.values() if run.steps[key].state is StepState.QUEUED]
    if not queued:
        return None
    queue, space = limits.queue(lane.namespace_no, lane.queue), limits.namespace(lane.namespace_no)
    by_queue = dispatcher.held_by(lane.namespace_no, lane.queue)
    by_namespace = dispatcher.held_by(lane.namespace_no)
    places = {key: dispatcher.position((no, run.steps[key].command)) for key in queued[:_LOOKED_AT_MAX]}
    facts = LaneFacts(
        queue=lane.queue,
        paused=queue.paused,
        queue_limit=queue.running_steps,
        queue_running=len(by_queue),
        namespace_limit=space.running_steps,
        namespace_running=len(by_namespace),
        pool_size=dispatcher.pool_size,
        pool_running=dispatcher.running,
        positions={key: place for key, place in places.items() if place is not None},
    )
    holders: Mapping[_Limit, Sequence[CommandKey]] = {"queue": by_queue, "namespace": by_namespace}
    if facts.blocked_by == "pool":
        holders = {"pool": dispatcher.held_by()}
    named = [await _named(runs, key) for key in holders.get(facts.blocked_by, ())[:HOLDERS_MAX]]
    return facts._replace(holders=list(filter(None, named)))


async def _named(runs: RunStore, key: CommandKey) -> str:
    """Answer who a command is, `run_…/step`: its sequence is that of the event that asked for it."""
    no, sequence = key
    run_id, found = await runs.id_of(no), await runs.history(no, sequence - 1, 1)
    return f"{run_id}/{found[0].event.step}" if run_id and found else run_id


async def _children(runs: RunStore, run: Run) -> Mapping[str, str]:
    waiting = [step.child for step in run.steps.values() if step.state is StepState.WAITING and step.child]
    rows = {child: await runs.by_id(child) for child in waiting[:_LOOKED_AT_MAX]}
    return {child: "" if row is None else row.state for child, row in rows.items()}
