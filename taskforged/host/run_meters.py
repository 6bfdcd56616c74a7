"""What is counted of runs and attempts, from the history as it is committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from taskforged.engine.events import HistoryEvent
from taskforged.engine.keys import definition_id
from taskforged.engine.model import WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.states import Kind
from taskforged.meters import LONG_S, Counts, Histograms

__all__ = ["NAMES", "RunMeters"]

NAMES = 100
"""Namespaces with their workflows or queues that are named where nothing else is said."""

_KINDS_MAX = 64
"""There are fewer kinds of steps, each with five outcomes."""


class RunMeters:
    """Counters since the start.

    Attributes:
        created: runs by namespace and workflow.
        ended: runs by namespace, workflow and state.
        durations: seconds from start to end of runs, by namespace and queue.
        waits: seconds that steps waited for their first slot, by namespace and queue.
        attempts: by kind of step and outcome.
        attempt_durations: seconds of attempts by kind of step.
        retries: attempts that are to be repeated, by kind of step.
    """

    __slots__ = ("attempt_durations", "attempts", "created", "durations", "ended", "retries", "waits")

    def __init__(self, names: int = NAMES) -> None:
        """Create counters; `names` bounds how many namespaces with their workflows or queues are told apart."""
        self.created = Counts(names)
        self.ended = Counts(4 * names)
        self.durations = Histograms(LONG_S, names)
        self.waits = Histograms(LONG_S, names)
        self.attempts = Counts(_KINDS_MAX)
        self.attempt_durations = Histograms(LONG_S, _KINDS_MAX)
        self.retries = Counts(_KINDS_MAX)

    def record(self, run: Run, model: WorkflowModel, history: Sequence[HistoryEvent]) -> None:
        """Count what was committed; `run` is the state after it."""
        for event in history:
            count = _COUNTED.get(event.kind)
            if count is not None:
                count(self, run, model, event)

    def attempted(self, kind: str, outcome: str, seconds: float) -> None:
        """Count an attempt that has ended here."""
        self.attempts.add((kind, outcome))
        self.attempt_durations.observe((kind,), seconds)


def _created(meters: RunMeters, run: Run, _: WorkflowModel, __: HistoryEvent) -> None:
    meters.created.add((run.namespace, run.workflow))


def _ended(meters: RunMeters, run: Run, _: WorkflowModel, event: HistoryEvent) -> None:
    meters.ended.add((run.namespace, run.workflow, run.state.text))
    if run.started_at:
        meters.durations.observe((run.namespace, run.queue), (event.at - run.started_at) / 1_000_000)


def _started(meters: RunMeters, run: Run, _: WorkflowModel, event: HistoryEvent) -> None:
    if event.attempt == 1:  # when a later one was due is not known any more
        meters.waits.observe((run.namespace, run.queue), (event.at - run.steps[event.step].started_at) / 1_000_000)


def _retrying(meters: RunMeters, _: Run, model: WorkflowModel, event: HistoryEvent) -> None:
    meters.retries.add((model.steps[definition_id(event.step)].kind,))


def _lost(meters: RunMeters, _: Run, model: WorkflowModel, event: HistoryEvent) -> None:
    meters.attempts.add((model.steps[definition_id(event.step)].kind, "lost"))


_COUNTED: Mapping[Kind, Callable[[RunMeters, Run, WorkflowModel, HistoryEvent], None]] = {
    Kind.RUN_CREATED: _created,
    Kind.RUN_SUCCEEDED: _ended,
    Kind.RUN_FAILED: _ended,
    Kind.RUN_DEAD: _ended,
    Kind.RUN_CANCELLED: _ended,
    Kind.STEP_STARTED: _started,
    Kind.STEP_RETRYING: _retrying,
    Kind.STEP_ATTEMPT_LOST: _lost,
}
