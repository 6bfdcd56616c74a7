"""The engine: facts in, history and commands out. No clock, no random numbers, no I/O.

`apply` records each fact as a history event, lets `evolve` change the state by it, and then decides what follows,
again by recording events. So every change of the state is in the history, and feeding the recorded facts to `apply`
once more must give the same history; `replay` does just that.

The order is fixed: facts in the order given; after each fact its own consequence (retry, requeue, …), then the blocks
from the top, steps in the order of the document. Expressions of pure steps are evaluated on the way, so a chain of
pure steps costs one call, and a host commits it once.

Total: a fact that the tables do not allow raises `IllegalEventError`; the caller's state is never changed, because
the machine works on a clone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

from taskforged.engine.events import (
    FACT_KINDS,
    AdmitRun,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelExecution,
    CancelRun,
    ClearTimer,
    Command,
    CreateRun,
    Execute,
    Fact,
    FinishRun,
    HistoryEvent,
    IllegalEventError,
    SetTimer,
    TimerFired,
    Withdraw,
    fact_body,
    fact_from_history,
    rfc3339,
)
from taskforged.engine.model import (
    ActivitySpec,
    Block,
    Effect,
    Expression,
    ExpressionError,
    FailSpec,
    Json,
    SleepSpec,
    Step,
    SwitchSpec,
    TransformSpec,
    WorkflowModel,
)
from taskforged.engine.retry import delay_s
from taskforged.engine.run import Run, StepRun, evolve
from taskforged.engine.states import FAILED_STEPS, TERMINAL_RUNS, TERMINAL_STEPS, Kind, RunState, StepState

__all__ = ["LOST_MAX", "OUTPUT_SIZE_MAX", "SLEEP_S_MAX", "Outcome", "apply", "replay"]

LOST_MAX = 10
"""How often one step may be cut by a crash before it is given up: it is then likely what crashes the daemon."""

OUTPUT_SIZE_MAX = 1 << 20
"""Limit of one value that expressions make, in characters and nodes; the same 1 MiB as for a response body."""

SLEEP_S_MAX = 366 * 86_400
"""A sleep of more than a year is taken for a mistake in the unit."""

_SECOND = 1_000_000
_AttemptFact: TypeAlias = AttemptStarted | AttemptCompleted | AttemptFailed | AttemptLost | AttemptCancelled


class Outcome(NamedTuple):
    """What a call of `apply` gives.

    Attributes:
        run: the new state.
        history: the events recorded, in order.
        commands: what the host has to do once these events are on disk, in order. A later fact of the same call may
            have ended what an earlier one opened or asked to stop, so a command may name what is no longer open.
        touched: keys of the steps whose state changed.
    """

    run: Run
    history: list[HistoryEvent]
    commands: list[Command]
    touched: set[str]


def apply(model: WorkflowModel, run: Run, facts: Sequence[Fact], now: int) -> Outcome:
    """Advance a run by facts.

    Args:
        model: the definition that the run executes.
        run: its state; `Run()` before `CreateRun`. It is not changed.
        facts: what happened, in order.
        now: microseconds since 1970 in UTC; the time that all events of this call are recorded with.

    Raises:
        IllegalEventError: a fact is not allowed in the state it finds. Nothing has changed.
    """
    machine = _Machine(model, run.clone(), now)
    for fact in facts:
        machine.take(fact)
    return Outcome(machine.run, machine.history, machine.commands, machine.touched)


def replay(model: WorkflowModel, history: Iterable[HistoryEvent], *, event: Json = None) -> list[HistoryEvent]:
    """Feed the facts of a history to the engine again, with the recorded times, and answer the history it gives.

    Equal to `history` when the engine decides as it did. Raises `IllegalEventError` when it does not even accept a
    recorded fact.
    """
    run = Run(event=event)
    again: list[HistoryEvent] = []
    for entry in history:
        fact = fact_from_history(entry)
        if fact is not None:
            outcome = apply(model, run, [fact], entry.at)
            run = outcome.run
            again.extend(outcome.history)
    return again


class _Verdict(Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


class _Progress(NamedTuple):
    """How far a block is; `failed` is the step that failed it."""

    verdict: _Verdict
    failed: str = ""


class _Scope:
    """What expressions see. `error` is given in on_failure and retry conditions."""

    __slots__ = ("_error", "_run")

    def __init__(self, run: Run, error: Json = None) -> None:
        self._run = run
        self._error = error

    def resolve(self, name: str) -> Json:
        if name.startswith("steps."):
            return self._step(name)
        match name:
            case "input":
                return self._run.input
            case "event":
                return self._run.event
            case "run":
                return self._run_context()
            case "workflow":
                return {"name": self._run.workflow, "version": self._run.version}
            case "error":
                return self._error if self._error is not None else self._run.failing
        raise KeyError(name)

    def _step(self, name: str) -> Json:
        _, key, field = name.split(".")
        step = self._run.steps.get(key)
        match field:
            case "output":
                return None if step is None else step.output
            case "error":
                return None if step is None else step.error
            case "state":
                return StepState.SKIPPED.value if step is None else step.state.value
        raise KeyError(name)

    def _run_context(self) -> Json:
        run = self._run
        return {
            "id": run.run_id,
            "namespace": run.namespace,
            "correlation_id": run.correlation_id,
            "trigger": run.trigger,
            "started_at": rfc3339(run.started_at),
        }


class _Machine:
    """One call of `apply`."""

    __slots__ = ("_scope", "commands", "history", "model", "now", "run", "touched")

    def __init__(self, model: WorkflowModel, run: Run, now: int) -> None:
        self.model = model
        self.run = run
        self.now = now
        self.history: list[HistoryEvent] = []
        self.commands: list[Command] = []
        self.touched: set[str] = set()
        self._scope = _Scope(run)

    # --- facts -------------------------------------------------------------------------------------------------------

    def take(self, fact: Fact) -> None:
        match fact:
            case AttemptStarted():
                self._attempt_fact(fact)
                return  # nothing follows from a start
            case CreateRun():
                self._record(Kind.RUN_CREATED, fact_body(fact))
                return  # nothing happens before it is admitted
            case AdmitRun():
                self._admit()
            case AttemptCompleted():
                self._attempt_fact(fact)
            case AttemptCancelled():
                self._attempt_cancelled(fact)
            case AttemptFailed():
                self._attempt_failed(fact)
            case AttemptLost():
                self._attempt_lost(fact)
            case TimerFired():
                self._timer_fired(fact)
            case CancelRun():
                self._record(Kind.RUN_CANCEL_REQUESTED, fact_body(fact))
                self._stop_steps()
        self._advance()

    def _admit(self) -> None:
        timeout = self.model.timeout_s
        if timeout is None:
            self._record(Kind.RUN_STARTED, {})
            return
        at = self.now + round(timeout * _SECOND)
        self._record(Kind.RUN_STARTED, {"timeout_at": at})
        self.commands.append(SetTimer(self.run.sequence, at))

    def _attempt_fact(self, fact: _AttemptFact) -> Step:
        key = self.run.commands.get(fact.command)
        if key is None:
            raise IllegalEventError(f"no step waits for command {fact.command}")
        self._record(FACT_KINDS[type(fact)], fact_body(fact), key)
        return self.model.steps[key]

    def _attempt_cancelled(self, fact: AttemptCancelled) -> None:
        step = self._attempt_fact(fact)
        if not self._stopping(step):  # else its block would go on as if it had succeeded
            raise IllegalEventError(f"step {step.id} was not asked to stop")

    def _attempt_failed(self, fact: AttemptFailed) -> None:
        step = self._attempt_fact(fact)
        if self._stopping(step):
            self._record(Kind.STEP_CANCELLED, {}, step.id)
            return
        try:
            retryable = self._is_retryable(step, fact)
        except ExpressionError as error:
            self._record(Kind.STEP_FAILED, {"error": _expression_error(error)}, step.id)
            return
        self._retry_or_give_up(step, fact, retryable=retryable)

    def _is_retryable(self, step: Step, fact: AttemptFailed) -> bool:
        policy = step.retry
        if policy is None or policy.condition is None:
            return fact.retryable
        error = {**fact.error, "step": step.id, "attempts": self.run.steps[step.id].attempt}
        return self._truth(policy.condition, _Scope(self.run, error), "`retry.if`", step)

    def _retry_or_give_up(self, step: Step, fact: AttemptFailed, *, retryable: bool) -> None:
        known = self.run.steps[step.id]
        failures = known.attempt - known.lost  # a crash of ours neither spends the budget nor lengthens the pause
        policy = step.retry
        if not retryable or policy is None:
            self._record(Kind.STEP_FAILED, {}, step.id)
        elif failures >= policy.max_attempts:
            self._record(Kind.STEP_DEAD, {}, step.id)
        else:
            pause = delay_s(policy, attempt=failures, seed=f"{self.run.run_id}/{step.id}")
            pause = min(max(pause, fact.retry_after_s or 0.0), SLEEP_S_MAX)
            at = self.now + round(pause * _SECOND)
            self._record(Kind.STEP_RETRYING, {"at": at, "delay_s": round(pause, 6)}, step.id)
            self.commands.append(SetTimer(self.run.sequence, at))

    def _attempt_lost(self, fact: AttemptLost) -> None:
        step = self._attempt_fact(fact)
        spec = step.spec
        if self._stopping(step):
            self._record(Kind.STEP_CANCELLED, {}, step.id)
        elif isinstance(spec, ActivitySpec) and spec.effect is Effect.ONCE:
            self._record(Kind.STEP_NEEDS_DECISION, {}, step.id)
        elif self.run.steps[step.id].lost > LOST_MAX:
            self._record(Kind.STEP_DEAD, {}, step.id)
        else:
            self._record(Kind.STEP_QUEUED, {}, step.id, self.run.steps[step.id].attempt + 1)
            self.commands.append(Execute(self.run.sequence, step.id))

    def _timer_fired(self, fact: TimerFired) -> None:
        key = self.run.timers.get(fact.timer)
        if key is None:
            raise IllegalEventError(f"nobody waits for timer {fact.timer}")
        if not key:
            self._record(Kind.TIMER_FIRED, fact_body(fact))
            if self.run.cancel_requested:
                return  # it is being stopped already, and will be CANCELLED
            limit = self.model.timeout_s or 0.0
            self._fail_run({"code": "run_timeout", "message": f"the run took longer than {limit:g} s"})
            return
        retrying = self.run.steps[key].state is StepState.RETRYING
        self._record(Kind.TIMER_FIRED, fact_body(fact), key, self.run.steps[key].attempt + retrying)
        if retrying:
            self.commands.append(Execute(self.run.sequence, key))

    # --- what follows ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        run = self.run
        if run.state in TERMINAL_RUNS:
            raise IllegalEventError(f"the run is {run.state}")
        if run.cancel_requested:
            self._finish_when_quiet(RunState.CANCELLED)
        elif run.failing is None:
            self._advance_main()
        elif not self._attempt_running(self.model.main):
            self._advance_on_failure()

    def _advance_main(self) -> None:
        progress = self._advance_block(self.model.main)
        if progress.verdict is _Verdict.FAILED:
            dead = self.run.steps[progress.failed].state is StepState.DEAD
            self._fail_run(self._failure_of(progress.failed), RunState.DEAD if dead else RunState.FAILED)
            self._advance()
        elif progress.verdict is _Verdict.DONE:
            self._succeed()

    def _advance_on_failure(self) -> None:
        if self._advance_block(self.model.on_failure).verdict is not _Verdict.OPEN:
            self._finish(self.run.failing_to)

    def _succeed(self) -> None:
        try:
            output = None if self.model.output is None else self._value(self.model.output, "the output")
        except ExpressionError as error:
            self._fail_run(_expression_error(error))
            self._advance()
            return
        self._finish(RunState.SUCCEEDED, {"output": output})

    def _failure_of(self, key: str) -> dict[str, Json]:
        """Answer the error of a failed step as its block reports it; a switch passes on what failed inside it."""
        step = self.run.steps[key]
        error = step.error
        inner = error if isinstance(self.model.steps[key].spec, SwitchSpec) else {}
        found = {
            "code": error["code"],
            "message": error["message"],
            "step": inner.get("step", key),
            "attempts": inner.get("attempts", step.attempt),
        }
        if "details" in error:
            found["details"] = error["details"]
        return found

    def _fail_run(self, error: Json, to: RunState = RunState.FAILED) -> None:
        """Leave `main`: what is open there stops, what was not reached is skipped."""
        timers = [seq for seq, step in self.run.timers.items() if not step]
        body: dict[str, Json] = {"error": error, "to": to.value}
        skipped = self._unreached(self.model.main)
        if skipped:
            body["skipped"] = skipped
        self._record(Kind.RUN_FAILING, body)
        self.touched.update(skipped)
        self.commands.extend(ClearTimer(seq) for seq in timers)
        self._stop_steps()

    def _stop_steps(self) -> None:
        """Stop whatever is open; running attempts are asked, and report."""
        for key, step in list(self.run.steps.items()):
            match step.state:
                case StepState.QUEUED:
                    self.commands.append(Withdraw(step.command))
                    self._record(Kind.STEP_CANCELLED, {}, key)
                case StepState.RETRYING | StepState.WAITING:
                    self.commands.append(ClearTimer(step.timer))
                    self._record(Kind.STEP_CANCELLED, {}, key)
                case StepState.NEEDS_DECISION:
                    self._record(Kind.STEP_CANCELLED, {}, key)
                case StepState.RUNNING if step.command:
                    self.commands.append(CancelExecution(step.command))

    def _stopping(self, step: Step) -> bool:
        """Whether this step is being stopped, so that its failure decides nothing any more."""
        return self.run.cancel_requested or (self.run.failing is not None and _contains(self.model.main, step.id))

    def _finish_when_quiet(self, state: RunState) -> None:
        if not self._attempt_running(self.model.main) and not self._attempt_running(self.model.on_failure):
            for key, step in list(self.run.steps.items()):
                if step.state is StepState.RUNNING:  # a switch whose steps have stopped
                    self._record(Kind.STEP_CANCELLED, {}, key)
            self._finish(state)

    def _finish(self, state: RunState, body: dict[str, Json] | None = None) -> None:
        timers = list(self.run.timers)
        for key, step in list(self.run.steps.items()):
            if step.state is StepState.RUNNING:  # a switch that was left when the run timed out
                self._record(Kind.STEP_CANCELLED, {}, key)
        self._record(_FINAL_KIND[state], body or {})
        self.commands.extend(ClearTimer(seq) for seq in timers)
        self.commands.append(FinishRun(state))

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _advance_block(self, block: Block) -> _Progress:
        """Start what can start, in the order of the document, and say how far the block is.

        Once a step has failed, nothing more is started, wherever it stands; what is open is waited for.
        """
        failed, is_open, again = self._failed_in(block), False, True
        while again:
            failed, is_open, again = self._pass_through(block, failed)
        if failed:
            return _Progress(_Verdict.OPEN if self._any_open(block) else _Verdict.FAILED, failed)
        return _Progress(_Verdict.OPEN if is_open else _Verdict.DONE)

    def _pass_through(self, block: Block, failed: str) -> tuple[str, bool, bool]:
        """Go through a block once. Answers (what failed it, is it open, is there more to start).

        There is more when a step ended on the way that one above it may have waited for.
        """
        is_open = blocked = again = False
        for step in block.steps:
            known = self.run.steps.get(step.id)
            was_open = known is None or known.state not in TERMINAL_STEPS
            if known is None:
                if failed or not self._ready(step, block):
                    is_open = blocked = True
                    continue
                known = self._start(step)
            elif known.state is StepState.RUNNING and isinstance(step.spec, SwitchSpec):
                known = self._advance_switch(step, step.spec)
            if known.state not in TERMINAL_STEPS:
                is_open = True
                continue
            again = again or (blocked and was_open)
            if known.state in FAILED_STEPS and not step.continue_on_error:
                failed = failed or step.id
        return failed, is_open, again and not failed

    def _failed_in(self, block: Block) -> str:
        for step in block.steps:
            known = self.run.steps.get(step.id)
            if known is not None and known.state in FAILED_STEPS and not step.continue_on_error:
                return step.id
        return ""

    def _ready(self, step: Step, block: Block) -> bool:
        steps = self.run.steps
        for index in step.after:
            before = steps.get(block.steps[index].id)
            if before is None or before.state not in TERMINAL_STEPS:
                return False
        return True

    def _any_open(self, block: Block) -> bool:
        found = (self.run.steps.get(step.id) for step in block.steps)
        return any(step is not None and step.state not in TERMINAL_STEPS for step in found)

    def _attempt_running(self, block: Block) -> bool:
        found = (self.run.steps.get(key) for key in block.ids())
        return any(step is not None and step.state is StepState.RUNNING and step.command for step in found)

    def _unreached(self, block: Block) -> list[str]:
        return [key for key in block.ids() if key not in self.run.steps]

    # --- steps -------------------------------------------------------------------------------------------------------

    def _start(self, step: Step) -> StepRun:
        try:
            if step.condition is not None and not self._truth(step.condition, self._scope, "`if`", step):
                self._skip(step)
            else:
                self._begin(step)
        except ExpressionError as error:
            body: dict[str, Json] = {"error": _expression_error(error)}
            skipped = _inside(step)
            if skipped:
                body["skipped"] = skipped
            self._record(Kind.STEP_FAILED, body, step.id)
            self.touched.update(skipped)
        return self.run.steps[step.id]

    def _skip(self, step: Step) -> None:
        self._record(Kind.STEP_SKIPPED, {}, step.id)
        for key in _inside(step):
            self._record(Kind.STEP_SKIPPED, {}, key)

    def _begin(self, step: Step) -> None:
        match step.spec:
            case TransformSpec(value):
                self._record(Kind.STEP_SUCCEEDED, {"output": self._value(value, "the output", step)}, step.id)
            case ActivitySpec(config=config):
                body = {"input": self._value(config, "the input", step)}
                self._record(Kind.STEP_QUEUED, body, step.id, 1)
                self.commands.append(Execute(self.run.sequence, step.id))
            case SwitchSpec() as spec:
                self._branch(step, spec)
            case SleepSpec(duration):
                self._sleep(step, duration)
            case FailSpec(message, code):
                text = self._value(message, "the message", step)
                self._record(Kind.STEP_FAILED, {"error": {"code": code, "message": str(text)}}, step.id)

    def _branch(self, step: Step, spec: SwitchSpec) -> None:
        chosen = -1
        for index, case in enumerate(spec.cases):
            if case.condition is None or self._truth(case.condition, self._scope, "a case", step):
                chosen = index
                break
        skipped = [key for index, case in enumerate(spec.cases) if index != chosen for key in case.block.ids()]
        body: dict[str, Json] = {"case": chosen}
        if skipped:
            body["skipped"] = skipped
        self._record(Kind.STEP_BRANCHED, body, step.id)
        self.touched.update(skipped)
        self._advance_switch(step, spec)

    def _advance_switch(self, step: Step, spec: SwitchSpec) -> StepRun:
        case = self.run.steps[step.id].case
        progress = _Progress(_Verdict.DONE) if case < 0 else self._advance_block(spec.cases[case].block)
        if progress.verdict is _Verdict.DONE:
            self._record(Kind.STEP_SUCCEEDED, {"output": {"case": case}}, step.id)
        elif progress.verdict is _Verdict.FAILED:
            self._fail_switch(step, spec.cases[case].block, progress.failed)
        return self.run.steps[step.id]

    def _fail_switch(self, step: Step, block: Block, failed: str) -> None:
        body: dict[str, Json] = {"error": self._failure_of(failed)}
        skipped = self._unreached(block)
        if skipped:
            body["skipped"] = skipped
        dead = self.run.steps[failed].state is StepState.DEAD
        self._record(Kind.STEP_DEAD if dead else Kind.STEP_FAILED, body, step.id)
        self.touched.update(skipped)

    def _sleep(self, step: Step, duration: Expression) -> None:
        seconds = duration.evaluate(self._scope)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= SLEEP_S_MAX:
            message = f"the duration of step {step.id} must be between 0 s and {SLEEP_S_MAX} s"
            self._record(Kind.STEP_FAILED, {"error": {"code": "expression", "message": message}}, step.id)
            return
        at = self.now + round(seconds * _SECOND)
        self._record(Kind.STEP_WAITING, {"at": at}, step.id)
        self.commands.append(SetTimer(self.run.sequence, at))

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _record(self, kind: Kind, body: dict[str, Json], step: str = "", attempt: int | None = None) -> None:
        if attempt is None:
            known = self.run.steps.get(step) if step else None
            attempt = 0 if known is None else known.attempt
        event = HistoryEvent(self.run.sequence + 1, self.now, kind, step, attempt, body)
        evolve(self.run, event)
        self.history.append(event)
        if step:
            self.touched.add(step)

    def _value(self, expression: Expression, what: str, step: Step | None = None) -> Json:
        value = expression.evaluate(self._scope)
        if _weight(value, OUTPUT_SIZE_MAX) > OUTPUT_SIZE_MAX:
            raise ExpressionError(what, _owner(step), f"is larger than {OUTPUT_SIZE_MAX:,} bytes")
        return value

    def _truth(self, condition: Expression, scope: _Scope, what: str, step: Step) -> bool:
        value = condition.evaluate(scope)
        if not isinstance(value, bool):
            raise ExpressionError(what, _owner(step), f"must be true or false, not {_type_name(value)}")
        return value


def _owner(step: Step | None) -> str:
    return "the run" if step is None else f"step {step.id}"


_FINAL_KIND = {
    RunState.SUCCEEDED: Kind.RUN_SUCCEEDED,
    RunState.FAILED: Kind.RUN_FAILED,
    RunState.DEAD: Kind.RUN_DEAD,
    RunState.CANCELLED: Kind.RUN_CANCELLED,
}


def _inside(step: Step) -> list[str]:
    """Answer the ids of the steps in the cases of a switch; none for other steps."""
    return Block((step,)).ids()[1:]


def _contains(block: Block, key: str) -> bool:
    return key in block.ids()


def _expression_error(error: ExpressionError) -> dict[str, Json]:
    return {
        "code": "expression",
        "message": str(error),
        "details": {"expression": error.source, "position": error.position, "reason": error.reason},
    }


def _type_name(value: Json) -> str:
    match value:
        case None:
            return "null"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
    return "a map"


def _weight(value: Json, limit: int) -> int:
    """Answer roughly the size of a value as JSON; stops counting beyond `limit`."""
    total, todo = 0, [value]
    while todo and total <= limit:
        item = todo.pop()
        if isinstance(item, str):
            total += len(item) + 2
        elif isinstance(item, dict):
            total += sum(len(key) + 4 for key in item) + 2
            todo.extend(item.values())
        elif isinstance(item, list):
            total += len(item) + 2
            todo.extend(item)
        else:
            total += 8
    return total
