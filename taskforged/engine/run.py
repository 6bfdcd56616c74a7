"""The state of one run, and `evolve`, the only code that changes it.

`evolve` takes one history event. The machine uses it while it decides, recovery uses it to rebuild a run from its
history: so a fold of the history is the state, by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import NamedTuple

from taskforged.engine.events import ITEMS_MAX, HistoryEvent, IllegalEventError
from taskforged.engine.keys import inner_prefix, item_key, split_item
from taskforged.engine.model import PRIORITY, Json
from taskforged.engine.states import (
    FAILED_STEPS,
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_RUNS,
    Kind,
    RunState,
    StepState,
)

__all__ = ["Fan", "Run", "StepRun", "evolve", "fold"]


class Fan(NamedTuple):
    """How far a fan-out is.

    Attributes:
        next: index of the first item that was not started.
        open: how many items are under way.
        failed: how many items have failed.
    """

    next: int = 0
    open: int = 0
    failed: int = 0


@dataclass(slots=True)
class StepRun:
    """One step of a run.

    Attributes:
        state: where it stands.
        attempt: number of the newest attempt; 0 before the first and for kinds without attempts.
        lost: how many attempts were cut by a crash.
        input: resolved input of an activity, secrets as references; the items of a fan-out; what a `wait` waits for,
            `{"signal"}` or `{"approval"}`; a sub-workflow's `{"workflow", "version", "input"}`.
        output: JSON, once it has succeeded.
        error: `{"code", "message", …}` of the newest failure.
        command: sequence of the command that asks for the current attempt; 0 for none.
        timer: sequence of the timer it waits for; 0 for none.
        epoch: boot epoch of the executor of the current attempt.
        case: index of the chosen case of a switch; -1 for none.
        started_at: when it was reached.
        ended_at: when it became terminal; 0 before.
        ended_by: sequence of the entry by which it did: what ended in one commit has an order, too.
        wake_at: when its timer is due; 0 for none.
        child: run id of its sub-workflow.
        pinned: its output was taken over from an earlier run.
        evidence: what is known of an attempt whose effect is not.
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
    ended_by: int = 0
    wake_at: int = 0
    child: str = ""
    pinned: bool = False
    evidence: Json = None


@dataclass(slots=True)
class Run:
    """One run. `steps` holds the steps that were reached, in the order in which they were. See also `CreateRun`.

    Attributes:
        failing: why the run is failing, from `run.failing` on; the final error.
        failing_to: the final state that `failing` leads to.
        compensating: steps to be undone, in this order; None before that is known.
        cancelling: everything has stopped, and the steps of `on_cancel` are executed.
        grace_over: they took too long.
        timeout_at: when the run times out; 0 for never.
        timeout_left: what was left of that when the run was paused, in microseconds.
        paused_by: who paused it; only while it is paused.
        commands: open commands, sequence to step: attempts and sub-workflows.
        timers: open timers, sequence to step; the empty step is the run itself: its start, its timeout, or the grace
            of `on_cancel`.
        fans: how far each open fan-out is.
        signals: signals that no step has taken yet, by name, the oldest first.
        signal_ids: request ids of signals, so that none counts twice.
        event: content of the event that started the run, as expressions see it. It is immutable and stored once
            outside the history, which names it by `event_id`.
    """

    state: RunState = RunState.NEW
    sequence: int = 0
    run_id: str = ""
    namespace: str = ""
    workflow: str = ""
    version: int = 0
    trigger: str = "manual"
    event_id: str = ""
    correlation_id: str = ""
    created_by: str = ""
    queue: str = "default"
    priority: int = PRIORITY
    group: str = ""
    group_limit: int = 0
    run_at: int = 0
    parent: Json = None
    depth: int = 0
    hops: int = 0
    held: tuple[str, ...] = ()
    pins: Mapping[str, int] = field(default_factory=dict)
    retry_of: str = ""
    rerun_of: str = ""
    from_step: str = ""
    attempt: int = 1
    pinned: Mapping[str, Json] = field(default_factory=dict)
    items_max: int = ITEMS_MAX
    traceparent: str = ""
    tracestate: str = ""
    input: Json = None
    output: Json = None
    failing: Json = None
    failing_to: RunState = RunState.FAILED
    compensating: tuple[str, ...] | None = None
    cancel_requested: bool = False
    cancelling: bool = False
    grace_over: bool = False
    timeout_at: int = 0
    timeout_left: int = 0
    paused_by: str = ""
    pause_reason: str = ""
    created_at: int = 0
    started_at: int = 0
    ended_at: int = 0
    steps: dict[str, StepRun] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    timers: dict[int, str] = field(default_factory=dict)
    fans: dict[str, Fan] = field(default_factory=dict)
    signals: dict[str, tuple[Json, ...]] = field(default_factory=dict)
    signal_ids: frozenset[str] = frozenset()
    event: Json = None

    def clone(self) -> Run:
        """Answer a copy that can be changed through `evolve` without changing this one."""
        twin = Run(*_run_values(self))
        twin.steps = dict(self.steps)
        twin.commands = dict(self.commands)
        twin.timers = dict(self.timers)
        twin.fans = dict(self.fans)
        twin.signals = dict(self.signals)
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
        _close_step(run, step, event)
    run.steps[event.step] = step
    if event.step[-1] == "]" and (before is None or step.ended_at):
        _count_item(run, event.step, is_new=before is None, after=after, is_over=bool(step.ended_at))


def _close_step(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.ended_at = event.at
    step.ended_by = event.sequence
    if step.command:
        run.commands.pop(step.command, None)
        step.command = 0
    if step.timer:
        run.timers.pop(step.timer, None)
        step.timer = step.wake_at = 0
    if run.fans:
        run.fans.pop(event.step, None)


def _count_item(run: Run, key: str, *, is_new: bool, after: StepState, is_over: bool) -> None:
    fan_out, index = split_item(key)
    fan = run.fans.get(fan_out)
    if fan is not None:  # it may have been left already, when the run is being stopped
        failed = fan.failed + (is_over and after in FAILED_STEPS)
        run.fans[fan_out] = Fan(max(fan.next, index + 1), fan.open + is_new - is_over, failed)


def _mark_skipped(run: Run, event: HistoryEvent) -> None:
    for key in event.body.get("skipped", ()):
        skipped = StepRun(state=StepState.SKIPPED, started_at=event.at, ended_at=event.at, ended_by=event.sequence)
        run.steps[key] = skipped


# --- what each kind changes besides the state ------------------------------------------------------------------------


def _created(run: Run, event: HistoryEvent) -> None:
    body = event.body
    run.run_id = body["run_id"]
    run.namespace = body["namespace"]
    run.workflow = body["workflow"]
    run.version = body["version"]
    run.input = body["input"]
    run.created_at = event.at
    run.correlation_id = body.get("correlation_id", "") or run.run_id
    for name, value in body.items():
        if name in _GIVEN:
            setattr(run, name, value)
    if "held" in body:
        run.held = tuple(body["held"])


_GIVEN = frozenset({"trigger", "event_id", "created_by", "queue", "priority", "group", "group_limit", "run_at"}) | {
    *("parent", "depth", "hops", "pins", "retry_of", "rerun_of", "from_step", "attempt", "pinned", "items_max"),
    *("traceparent", "tracestate"),
}
"""Fields of `CreateRun` that are those of `Run`. What has its default value is not recorded."""


def _scheduled(run: Run, event: HistoryEvent) -> None:
    run.timers[event.sequence] = ""


def _started(run: Run, event: HistoryEvent) -> None:
    run.started_at = event.at
    _limit_time(run, event)


def _limit_time(run: Run, event: HistoryEvent) -> None:
    if "timeout_at" in event.body:
        run.timers[event.sequence] = ""
        run.timeout_at = event.body["timeout_at"]


def _run_timer_fired(run: Run, event: HistoryEvent) -> None:
    run.timers.pop(event.body["timer"], None)
    run.grace_over = run.cancelling


def _cancel_requested(run: Run, _: HistoryEvent) -> None:
    run.cancel_requested = True
    run.paused_by = run.pause_reason = ""


def _cancelling(run: Run, event: HistoryEvent) -> None:
    run.cancelling = True
    _drop_own_timers(run)
    run.timers[event.sequence] = ""
    _mark_skipped(run, event)


def _drop_own_timers(run: Run) -> None:
    for seq in [seq for seq, step in run.timers.items() if not step]:
        del run.timers[seq]


def _paused(run: Run, event: HistoryEvent) -> None:
    run.timeout_left = event.body.get("timeout_left", 0)
    run.paused_by = event.body.get("by", "")
    run.pause_reason = event.body.get("reason", "")
    _drop_own_timers(run)


def _resumed(run: Run, event: HistoryEvent) -> None:
    run.timeout_left = 0
    run.paused_by = run.pause_reason = ""
    _limit_time(run, event)


def _signalled(run: Run, event: HistoryEvent) -> None:
    name = event.body["signal"]
    signal = {"payload": event.body.get("payload"), "by": event.body.get("by", "")}
    run.signals[name] = (*run.signals.get(name, ()), signal)
    if "request_id" in event.body:
        run.signal_ids |= {event.body["request_id"]}


def _failing(run: Run, event: HistoryEvent) -> None:
    run.failing = event.body["error"]
    run.failing_to = RunState(event.body["to"])
    _drop_own_timers(run)  # the run's timeout does not cover what follows
    _mark_skipped(run, event)


def _compensating(run: Run, event: HistoryEvent) -> None:
    run.compensating = tuple(event.body["steps"])


def _succeeded(run: Run, event: HistoryEvent) -> None:
    run.output = event.body.get("output")


_RUN_CHANGES: Mapping[Kind, Callable[[Run, HistoryEvent], None]] = {
    Kind.RUN_CREATED: _created,
    Kind.RUN_SCHEDULED: _scheduled,
    Kind.RUN_STARTED: _started,
    Kind.RUN_PAUSED: _paused,
    Kind.RUN_RESUMED: _resumed,
    Kind.RUN_SIGNALLED: _signalled,
    Kind.TIMER_FIRED: _run_timer_fired,
    Kind.RUN_CANCEL_REQUESTED: _cancel_requested,
    Kind.RUN_CANCELLING: _cancelling,
    Kind.RUN_FAILING: _failing,
    Kind.RUN_COMPENSATING: _compensating,
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


def _step_succeeded(run: Run, step: StepRun, event: HistoryEvent) -> None:
    body = event.body
    step.error = None
    if "output" in body:
        step.output = body["output"]
        if "signal" in body:
            _take_signal(run, body["signal"])
    elif "pinned" in body:
        step.pinned = True
        step.output = run.pinned.get(event.step)
    else:
        _gather(run, step, event)


def _take_signal(run: Run, name: str) -> None:
    """Take the oldest signal of a name."""
    rest = run.signals[name][1:]
    if rest:
        run.signals[name] = rest
    else:
        del run.signals[name]


def _gather(run: Run, step: StepRun, event: HistoryEvent) -> None:
    """Make the output of what contains other steps from theirs, so that history does not hold them twice."""
    body = event.body
    if "items" in body:
        step.output = [_output_of(run, item_key(event.step, index)) for index in range(body["items"])]
    elif "collect" in body:
        prefix = inner_prefix(event.step)
        step.output = {name: _output_of(run, prefix + name) for name in body["collect"]}


def _output_of(run: Run, key: str) -> Json:
    step = run.steps.get(key)
    return None if step is None else step.output


def _attempt_failed(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.error = event.body["error"]


def _attempt_lost(_: Run, step: StepRun, event: HistoryEvent) -> None:
    step.lost += 1
    step.error = {"code": "lost", "message": event.body["reason"]}


def _needs_decision(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.commands.pop(step.command, None)  # it must never be executed again
    step.command = 0
    step.evidence = event.body.get("evidence")


def _resolved(_: Run, step: StepRun, __: HistoryEvent) -> None:
    step.evidence = None


def _retrying(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.commands.pop(step.command, None)
    step.command = 0
    _set_timer(run, step, event)


def _set_timer(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.timer = event.sequence
    step.wake_at = event.body["at"]
    run.timers[event.sequence] = event.step


def _waiting(run: Run, step: StepRun, event: HistoryEvent) -> None:
    body = event.body
    if "at" in body:
        _set_timer(run, step, event)
    if "child" in body:
        step.child = body["child"]
        step.command = event.sequence
        run.commands[event.sequence] = event.step
    step.input = {name: body[name] for name in _WAITED_FOR if name in body} or None


_WAITED_FOR = ("signal", "approval", "workflow", "version", "input")


def _child_ended(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.commands.pop(step.command, None)
    step.command = 0
    if event.body.get("state") == RunState.SUCCEEDED:  # what failed half-way has none
        step.output = event.body.get("output")


def _step_timer_fired(run: Run, step: StepRun, event: HistoryEvent) -> None:
    run.timers.pop(step.timer, None)
    step.timer = step.wake_at = 0
    if step.state is StepState.QUEUED:
        _queue(run, step, event)


def _branched(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.case = event.body["case"]
    _mark_skipped(run, event)


def _expanded(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.input = event.body["items"]
    run.fans[event.step] = Fan()


def _failed(run: Run, step: StepRun, event: HistoryEvent) -> None:
    step.error = event.body.get("error", step.error)
    step.output = None
    _gather(run, step, event)
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
    Kind.STEP_RESOLVED: _resolved,
    Kind.STEP_APPROVED: _nothing,
    Kind.STEP_REJECTED: _nothing,
    Kind.STEP_CHILD_ENDED: _child_ended,
    Kind.STEP_BRANCHED: _branched,
    Kind.STEP_ENTERED: _nothing,
    Kind.STEP_EXPANDED: _expanded,
    Kind.STEP_YIELDED: _set_timer,
    Kind.STEP_SUCCEEDED: _step_succeeded,
    Kind.STEP_FAILED: _failed,
    Kind.STEP_DEAD: _failed,
    Kind.STEP_SKIPPED: _nothing,
    Kind.STEP_CANCELLED: _nothing,
    Kind.TIMER_FIRED: _step_timer_fired,
}
