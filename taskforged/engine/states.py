"""The states of runs and steps and every transition between them: all of it is in this file, and nothing else is.

A transition is caused by a history event. The tables answer "may this event happen in this state, and what is the
state then?"; the machine decides which event to record, `evolve` looks the outcome up here. A pair that is not listed
is illegal: the event is refused and nothing changes. Terminal states are written as empty rows, and `TERMINAL_*` is
derived from that, so it cannot drift.

Two rules that a table of single steps cannot show:

* A run ends only when no attempt of its steps is running. A cancelled or failed run first asks the executors to stop
  (`CancelExecution`); the owner of an attempt reports how it ended, and that report is what moves the step.
* Some facts leave a step where it is for the length of one decision: the next event of the same transaction says what
  follows. So do `step.attempt_failed` and `step.attempt_lost` (then `step.retrying`, `step.queued`, `step.failed`, …),
  and on a waiting step `timer.fired`, `step.child_ended`, `step.approved` and `step.rejected`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = [
    "FAILED_STEPS",
    "RUN_TRANSITIONS",
    "STEP_TRANSITIONS",
    "TERMINAL_RUNS",
    "TERMINAL_STEPS",
    "Kind",
    "RunState",
    "StepState",
]


class _Name(StrEnum):
    """A StrEnum for hot code: it hashes as the string that it is, and `text` is that string. Enum's own are slow."""

    __hash__ = str.__hash__

    text: str

    def __init__(self, value: str) -> None:
        self.text = value


class RunState(_Name):
    """Where a run stands. NEW is before its first event and never stored."""

    NEW = "NEW"
    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"


class StepState(_Name):
    """Where a step stands. NEW is a step that has not been reached and is never stored."""

    NEW = "NEW"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    WAITING = "WAITING"
    NEEDS_DECISION = "NEEDS_DECISION"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    DEAD = "DEAD"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"


class Kind(_Name):
    """The kinds of history events.

    Facts came in from outside: run.created, run.started, run.cancel_requested, run.paused, run.resumed, run.signalled,
    step.started, step.completed, step.attempt_*, step.approved, step.rejected, step.child_ended, step.resolved,
    timer.fired. All others are decisions, which the engine makes again when it is fed with the facts.
    """

    RUN_CREATED = "run.created"
    RUN_SCHEDULED = "run.scheduled"
    RUN_STARTED = "run.started"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
    RUN_CANCEL_REQUESTED = "run.cancel_requested"
    RUN_CANCELLING = "run.cancelling"
    RUN_SIGNALLED = "run.signalled"
    RUN_FAILING = "run.failing"
    RUN_COMPENSATING = "run.compensating"
    RUN_SUCCEEDED = "run.succeeded"
    RUN_FAILED = "run.failed"
    RUN_DEAD = "run.dead"
    RUN_CANCELLED = "run.cancelled"
    STEP_QUEUED = "step.queued"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    STEP_ATTEMPT_FAILED = "step.attempt_failed"
    STEP_ATTEMPT_LOST = "step.attempt_lost"
    STEP_ATTEMPT_CANCELLED = "step.attempt_cancelled"
    STEP_RETRYING = "step.retrying"
    STEP_WAITING = "step.waiting"
    STEP_NEEDS_DECISION = "step.needs_decision"
    STEP_RESOLVED = "step.resolved"
    STEP_APPROVED = "step.approved"
    STEP_REJECTED = "step.rejected"
    STEP_CHILD_ENDED = "step.child_ended"
    STEP_BRANCHED = "step.branched"
    STEP_ENTERED = "step.entered"
    STEP_EXPANDED = "step.expanded"
    STEP_YIELDED = "step.yielded"
    STEP_SUCCEEDED = "step.succeeded"
    STEP_FAILED = "step.failed"
    STEP_DEAD = "step.dead"
    STEP_SKIPPED = "step.skipped"
    STEP_CANCELLED = "step.cancelled"
    TIMER_FIRED = "timer.fired"


_R, _S, _K = RunState, StepState, Kind

RUN_TRANSITIONS: Mapping[RunState, Mapping[Kind, RunState]] = {
    _R.NEW: {_K.RUN_CREATED: _R.PENDING},
    _R.SCHEDULED: {
        _K.TIMER_FIRED: _R.PENDING,  # its time has come
        _K.RUN_SIGNALLED: _R.SCHEDULED,  # kept for a `wait`
        _K.RUN_CANCEL_REQUESTED: _R.SCHEDULED,
        _K.RUN_CANCELLED: _R.CANCELLED,
    },
    _R.PENDING: {
        _K.RUN_SCHEDULED: _R.SCHEDULED,  # it was created for a later time
        _K.RUN_STARTED: _R.RUNNING,  # the host had a slot for it
        _K.RUN_SIGNALLED: _R.PENDING,
        _K.RUN_CANCEL_REQUESTED: _R.PENDING,
        _K.RUN_CANCELLED: _R.CANCELLED,
    },
    _R.RUNNING: {
        _K.RUN_PAUSED: _R.PAUSED,
        _K.RUN_SIGNALLED: _R.RUNNING,
        _K.RUN_CANCEL_REQUESTED: _R.RUNNING,  # we ask, the owners of the attempts report
        _K.RUN_CANCELLING: _R.RUNNING,  # everything has stopped, the steps of on_cancel follow
        _K.RUN_FAILING: _R.RUNNING,  # the main steps are over, those of on_failure follow
        _K.RUN_COMPENSATING: _R.RUNNING,  # what was done is undone first
        _K.TIMER_FIRED: _R.RUNNING,  # the run's own timeout, or the grace of on_cancel is over
        _K.RUN_SUCCEEDED: _R.SUCCEEDED,
        _K.RUN_FAILED: _R.FAILED,
        _K.RUN_DEAD: _R.DEAD,
        _K.RUN_CANCELLED: _R.CANCELLED,
    },
    _R.PAUSED: {
        _K.RUN_RESUMED: _R.RUNNING,
        _K.RUN_SIGNALLED: _R.PAUSED,
        _K.RUN_CANCEL_REQUESTED: _R.RUNNING,
    },
    _R.SUCCEEDED: {},
    _R.FAILED: {},
    _R.DEAD: {},
    _R.CANCELLED: {},
}

STEP_TRANSITIONS: Mapping[StepState, Mapping[Kind, StepState]] = {
    _S.NEW: {
        _K.STEP_QUEUED: _S.QUEUED,
        _K.STEP_WAITING: _S.WAITING,
        _K.STEP_BRANCHED: _S.RUNNING,
        _K.STEP_ENTERED: _S.RUNNING,
        _K.STEP_EXPANDED: _S.RUNNING,
        _K.STEP_SUCCEEDED: _S.SUCCEEDED,  # pure steps are decided in one go; so is what was taken over
        _K.STEP_FAILED: _S.FAILED,  # an expression failed, or `fail`
        _K.STEP_SKIPPED: _S.SKIPPED,
    },
    _S.QUEUED: {
        _K.STEP_STARTED: _S.RUNNING,
        _K.STEP_CANCELLED: _S.CANCELLED,
    },
    _S.RUNNING: {
        _K.STEP_COMPLETED: _S.SUCCEEDED,
        _K.STEP_ATTEMPT_FAILED: _S.RUNNING,  # the decision follows
        _K.STEP_ATTEMPT_LOST: _S.RUNNING,  # the decision follows
        _K.STEP_ATTEMPT_CANCELLED: _S.CANCELLED,
        _K.STEP_QUEUED: _S.QUEUED,  # again, after a lost attempt or a person's decision
        _K.STEP_RETRYING: _S.RETRYING,
        _K.STEP_NEEDS_DECISION: _S.NEEDS_DECISION,
        _K.STEP_YIELDED: _S.RUNNING,  # a fan-out goes on with the next items in another transaction
        _K.TIMER_FIRED: _S.RUNNING,  # a fan-out goes on
        _K.STEP_SUCCEEDED: _S.SUCCEEDED,  # what contains other steps: a switch, a group, a fan-out
        _K.STEP_FAILED: _S.FAILED,
        _K.STEP_DEAD: _S.DEAD,
        _K.STEP_CANCELLED: _S.CANCELLED,
    },
    _S.RETRYING: {
        _K.TIMER_FIRED: _S.QUEUED,
        _K.STEP_CANCELLED: _S.CANCELLED,
    },
    _S.WAITING: {
        _K.TIMER_FIRED: _S.WAITING,  # the decision follows
        _K.STEP_APPROVED: _S.WAITING,  # the decision follows
        _K.STEP_REJECTED: _S.WAITING,  # the decision follows
        _K.STEP_CHILD_ENDED: _S.WAITING,  # the decision follows
        _K.STEP_SUCCEEDED: _S.SUCCEEDED,
        _K.STEP_FAILED: _S.FAILED,
        _K.STEP_CANCELLED: _S.CANCELLED,
    },
    _S.NEEDS_DECISION: {
        _K.STEP_RESOLVED: _S.RUNNING,  # a person said what happened; the decision follows
        _K.STEP_CANCELLED: _S.CANCELLED,
    },
    _S.SUCCEEDED: {},
    _S.FAILED: {},
    _S.DEAD: {},
    _S.SKIPPED: {},
    _S.CANCELLED: {},
}

TERMINAL_RUNS = frozenset(state for state, row in RUN_TRANSITIONS.items() if not row)
TERMINAL_STEPS = frozenset(state for state, row in STEP_TRANSITIONS.items() if not row)
FAILED_STEPS = frozenset({StepState.FAILED, StepState.DEAD})
