"""The state of one run, and `evolve`, the only code that changes it.

`evolve` takes one history event. The machine uses it while it decides, recovery uses it to rebuild a run from its
history: so a fold of the history is the state, by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter

from taskforged.engine.events import HistoryEvent, IllegalEventError
from taskforged.engine.model import Json
from taskforged.engine.states import (
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_RUNS,
    Kind,
    RunState,
    StepState,
)

__all__ = ["Run", "StepRun", "evolve", "fold"]


@dataclass(slots=True)
class StepRun:
    """One step of a run.

    Attributes:
        state: where it stands.
        attempt: number of the newest attempt; 0 before the first and for kinds without attempts.
        lost: how many attempts were cut by a crash.
        input: resolved input of an activity, secrets as references.
        output: JSON, once it has succeeded.
        error: `{"code", "message", …}` of the newest failure.
        command: sequence of the command that asks for the current attempt; 0 for none.
        timer: sequence of the timer it waits for; 0 for none.
        epoch: boot epoch of the executor of the current attempt.
        case: index of the chosen case of a switch; -1 for none.
        started_at: when it was reached.
        ended_at: when it became terminal; 0 before.
        wake_at: when its timer is due; 0 for none.
    """

    state: StepState = StepState.NEW
    attempt: int = 0
    lost: int = 0
    input: Json = None
    output: Json = None
    error: Json = None
    command: int = 0
    timer: int = 0
    epoch: int = 0
    case: int = -1
    started_at: int = 0
    ended_at: int = 0
    wake_at: int = 0


@dataclass(slots=True)
class Run:
    """One run. `steps` holds the steps that were reached, in the order in which they were.

    Attributes:
        failing: why the run is failing, from `run.failing` on; the final error.
        failing_to: the final state that `failing` leads to.
        commands: open commands, sequence to step.
        timers: open timers, sequence to step; the empty step is the run's own timeout.
        event: content of the event that started the run, as expressions see it. It is immutable and stored once
            outside the history, which names it by `event_id`.
    """

    state: RunState = RunState.NEW
    sequence: int = 0
    run_id: str = ""
    namespace: str = ""
    workflow: str = ""
    version: int = 0
    trigger: str = ""
    event_id: str = ""
    correlation_id: str = ""
    created_by: str = ""
    input: Json = None
    output: Json = None
    failing: Json = None
    failing_to: RunState = RunState.FAILED
    cancel_requested: bool = False
    created_at: int = 0
    started_at: int = 0
    ended_at: int = 0
    steps: dict[str, StepRun] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    timers: dict[int, str] = field(default_factory=dict)
    event: Json = None

    def clone(self) -> Run:
        """Answer a copy that can be changed through `evolve` without changing this one."""
        twin = Run(*_run_values(self))
        twin.steps = dict(self.steps)
        twin.commands = dict(self.commands)
        twin.timers = dict(self.timers)
        return twin


_run_values = attrgetter(*(one.name for one in fields(Run)))
_step_values = attrgetter(*(one.name for one in fields(StepRun)))
# copy.copy goes through the pickle protocol, which takes five times as long.


def evolve(run: Run, event: HistoryEvent) -> None:
    """Change `run` by one history event.

    `StepRun`s are replaced, not changed, so clones may share them.

    Raises:
        IllegalEventError: the tables do not allow it; `run` is unchanged.
    """
    if event.step:
        _evolve_step(run, event)
    else:
        _evolve_run(run, event)
    run.sequence = event.sequence


def fold(events: Iterable[HistoryEvent], *, event: Json = None) -> Run:
    """Rebuild a run from its history. `event` is the content named by its `event_id`."""
    run = Run(event=event)
    for entry in events:
        evolve(run, entry)
    return run


def _evolve_run(run: Run, event: HistoryEvent) -> None:
    after = RUN_TRANSITIONS[run.state].get(event.kind)
    if after is None:
        raise IllegalEventError(f"{event.kind} is not allowed for a run that is {run.state}")
    run.state = after
    change = _RUN_CHANGES.get(event.kind)
    if change is not None:
        change(run, event)
    if after in TERMINAL_RUNS:
        run.ended_at = event.at
        run.timers.clear()


def _evolve_step(run: Run, event: HistoryEvent) -> None:
    before = run.steps.get(event.step)
    state = StepState.NEW if before is None else before.state
    after = STEP_TRANSITIONS[state].get(event.kind)
    if after is None:
        raise IllegalEventError(f"{event.kind} is not allowed for step {event.step}, which is {state}")
    step = StepRun(started_at=event.at) if before is None else StepRun(*_step_values(before))
    step.state = after
    step.attempt = event.attempt
    _STEP_CHANGES[event.kind](run, step, event)
    if not STEP_TRANSITIONS[after]:
        _close_step(run, step, event.at)
    run.steps[event.step] = step


def _close_step(run: Run, step: StepRun, at: int) -> None:
    step.ended_at = at
    run.commands.pop(step.command, None)
    run.timers.pop(step.timer, None)
    step.command = step.timer = step.wake_at = 0


def _mark_skipped(run: Run, event: HistoryEvent) -> None:
    for key in event.body.get("skipped", ()):
        run.steps[key] = StepRun(state=StepState.SKIPPED, started_at=event.at, ended_at=event.at)


# --- what each kind changes besides the state ------------------------------------------------------------------------


def _created(run: Run, event: HistoryEvent) -> None:
    body = event.body
    run.run_id = body["run_id"]
    run.namespace = body["namespace"]
    run.workflow = body["workflow"]
    run.version = body["version"]
    run.input = body["input"]
    run.trigger = body.get("trigger", "manual")
    run.event_id = body.get("event_id", "")
    run.correlation_id = body.get("correlation_id", "") or run.run_id
    run.created_by = body.get("created_by", "")
    run.created_at = event.at


def _started(run: Run, event: HistoryEvent) -> None:
    run.started_at = event.at
    if "timeout_at" in event.body:
        run.timers[event.sequence] = ""


def _run_timer_fired(run: Run, event: HistoryEvent) -> None:
    run.timers.pop(event.body["timer"], None)


def _cancel_requested(run: Run, _: HistoryEvent) -> None:
    run.cancel_requested = True


def _failing(run: Run, event: HistoryEvent) -> None:
    run.failing = event.body["error"]
    run.failing_to = RunState(event.body["to"])
    for seq in [seq for seq, step in run.timers.items() if not step]:
        del run.timers[seq]  # the run's timeout does not cover on_failure
    _mark_skipped(run, event)


def _succeeded(run: Run, event: HistoryEvent) -> None:
    run.output = event.body.get("output")


_RUN_CHANGES: Mapping[Kind, Callable[[Run, HistoryEvent], None]] = {
    Kind.RUN_CREATED: _created,
    Kind.RUN_STARTED: _started,
    Kind.TIMER_FIRED: _run_timer_fired,
    Kind.RUN_CANCEL_REQUESTED: _cancel_requested,
    Kind.RUN_FAILING: _failing,
    Kind.RUN_SUCCEEDED: _succeeded,
}


def _queue(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.commands.pop(step.command, None)  # a lost attempt's
    if "input" in event.body:
        step.input = event.body["input"]
    step.command = event.sequence
    run.commands[event.sequence] = event.step


def _attempt_started(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.epoch = event.body["epoch"]


def _completed(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.output = event.body.get("output")
    step.error = None


def _attempt_failed(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.error = event.body["error"]


def _attempt_lost(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.lost += 1
    step.error = {"code": "lost", "message": event.body["reason"]}


def _needs_decision(run: Run, step: StepRun, _: HistoryEvent) -> None:
    run.commands.pop(step.command, None)  # it must never be executed again
    step.command = 0


def _retrying(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.commands.pop(step.command, None)
    step.command = 0
    _waiting(run, step, event)


def _waiting(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.timer = event.sequence
    step.wake_at = event.body["at"]
    run.timers[event.sequence] = event.step


def _step_timer_fired(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.timers.pop(step.timer, None)
    step.timer = step.wake_at = 0
    if step.state is StepState.QUEUED:
        _queue(run, step, event)


def _branched(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.case = event.body["case"]
    _mark_skipped(run, event)


def _failed(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.error = event.body.get("error", step.error)
    _mark_skipped(run, event)


def _nothing(_: Run, __: StepRun, ___: HistoryEvent) -> None:
    """The state says it all."""


_STEP_CHANGES: Mapping[Kind, Callable[[Run, StepRun, HistoryEvent], None]] = {
    Kind.STEP_QUEUED: _queue,
    Kind.STEP_STARTED: _attempt_started,
    Kind.STEP_COMPLETED: _completed,
    Kind.STEP_ATTEMPT_FAILED: _attempt_failed,
    Kind.STEP_ATTEMPT_LOST: _attempt_lost,
    Kind.STEP_ATTEMPT_CANCELLED: _nothing,
    Kind.STEP_RETRYING: _retrying,
    Kind.STEP_WAITING: _waiting,
    Kind.STEP_NEEDS_DECISION: _needs_decision,
    Kind.STEP_RESOLVED: _nothing,
    Kind.STEP_BRANCHED: _branched,
    Kind.STEP_SUCCEEDED: _completed,
    Kind.STEP_FAILED: _failed,
    Kind.STEP_DEAD: _failed,
    Kind.STEP_SKIPPED: _nothing,
    Kind.STEP_CANCELLED: _nothing,
    Kind.TIMER_FIRED: _step_timer_fired,
}
