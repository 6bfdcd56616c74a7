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

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from taskforged.engine.advance import PORTION, SECOND, SLEEP_S_MAX, Advancer, expression_error
from taskforged.engine.events import (
    FACT_KINDS,
    AdmitRun,
    ApproveStep,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelRun,
    ChildEnded,
    ClearTimer,
    Command,
    CreateRun,
    Execute,
    Fact,
    HistoryEvent,
    IllegalEventError,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SetTimer,
    SignalRun,
    TimerFired,
    Withdraw,
    fact_body,
    fact_from_history,
)
from taskforged.engine.model import (
    ActivitySpec,
    Effect,
    ExpressionError,
    Json,
    OnTimeout,
    Step,
    WaitSpec,
    WorkflowModel,
)
from taskforged.engine.retry import delay_s
from taskforged.engine.run import Run, StepRun
from taskforged.engine.scope import RunScope
from taskforged.engine.states import Kind, RunState, StepState

__all__ = ["LOST_MAX", "PORTION", "SIGNALS_MAX", "Outcome", "apply", "replay"]

LOST_MAX = 10
"""How often one step may be cut by a crash before it is given up: it is then likely what crashes the daemon."""

SIGNALS_MAX = 100
"""Signals of a run that no step has taken yet."""

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


class _Machine(Advancer):
    """One call of `apply`."""

    __slots__ = ()

    # --- facts -------------------------------------------------------------------------------------------------------

    def take(self, fact: Fact) -> None:
        kind = type(fact)
        self.begin(PORTION)
        _FACTS[kind](self, fact)
        if kind not in _INERT:
            self.advance()

    def create(self, fact: CreateRun) -> None:
        self.record(Kind.RUN_CREATED, fact_body(fact))
        if fact.run_at:  # by the wall clock, which may be behind `now`
            self.record(Kind.RUN_SCHEDULED, {"at": fact.run_at})
            self.commands.append(SetTimer(self.run.sequence, fact.run_at, by_wall=True))

    def admit(self, _: AdmitRun) -> None:
        timeout = self.model.timeout_s
        if timeout is None:
            self.record(Kind.RUN_STARTED, {})
            return
        at = self.now + round(timeout * SECOND)
        self.record(Kind.RUN_STARTED, {"timeout_at": at})
        self.commands.append(SetTimer(self.run.sequence, at))

    def cancel(self, fact: CancelRun) -> None:
        is_parked = self.run.state is RunState.PAUSED
        self.record(Kind.RUN_CANCEL_REQUESTED, fact_body(fact))
        if not self.run.cancelling:  # else the steps of on_cancel are at work, and have their grace
            self.stop_steps(is_parked=is_parked)

    def pause(self, fact: PauseRun) -> None:
        run = self.run
        if run.cancel_requested:
            raise IllegalEventError("the run is being cancelled")
        body = fact_body(fact)
        own = [seq for seq, step in run.timers.items() if not step]
        if own:  # only its timeout: a pause stops the clock
            body["timeout_left"] = max(run.timeout_at - self.now, 1)
        self.record(Kind.RUN_PAUSED, body)
        self.commands.extend(ClearTimer(seq) for seq in own)
        queued = [seq for seq, key in run.commands.items() if run.steps[key].state is StepState.QUEUED]
        self.commands.extend(Withdraw(seq) for seq in queued)

    def resume(self, fact: ResumeRun) -> None:
        run = self.run
        body, left = fact_body(fact), run.timeout_left
        if left:
            body["timeout_at"] = self.now + left
        self.record(Kind.RUN_RESUMED, body)
        if left:
            self.commands.append(SetTimer(run.sequence, self.now + left))
        queued = [(seq, key) for seq, key in run.commands.items() if run.steps[key].state is StepState.QUEUED]
        self.commands.extend(Execute(seq, key) for seq, key in queued)
        self.everything = True

    def attempt_started(self, fact: AttemptStarted) -> None:
        if self.run.state is RunState.PAUSED:
            raise IllegalEventError("the run is PAUSED and starts nothing")
        self.attempt_fact(fact)

    def attempt_fact(self, fact: _AttemptFact) -> str:
        key = self.run.commands.get(fact.command)
        if key is None:
            raise IllegalEventError(f"no step waits for command {fact.command}")
        self.record(FACT_KINDS[type(fact)], fact_body(fact), key)
        self.mark(key)
        return key

    def attempt_cancelled(self, fact: AttemptCancelled) -> None:
        key = self.attempt_fact(fact)
        if not self.stopping(key):  # else its block would go on as if it had succeeded
            raise IllegalEventError(f"step {key} was not asked to stop")

    def attempt_failed(self, fact: AttemptFailed) -> None:
        key = self.attempt_fact(fact)
        if self.stopping(key):
            self.record(Kind.STEP_CANCELLED, {}, key)
            return
        step = self.step_of(key)
        if fact.is_unknown and _is_once(step):
            self._ask(key, "the attempt failed, and its effect may have happened all the same")
            return
        try:
            retryable = self._is_retryable(step, key, fact)
        except ExpressionError as error:
            self.record(Kind.STEP_FAILED, {"error": expression_error(error)}, key)
            return
        self._retry_or_give_up(step, key, fact, retryable=retryable)

    def _is_retryable(self, step: Step, key: str, fact: AttemptFailed) -> bool:
        policy = step.retry
        if policy is None or policy.condition is None:
            return fact.retryable
        error = {**fact.error, "step": key, "attempts": self.run.steps[key].attempt}
        return self.truth(policy.condition, RunScope(self.model, self.run, key, error=error), "`retry.if`", key)

    def _retry_or_give_up(self, step: Step, key: str, fact: AttemptFailed, *, retryable: bool) -> None:
        known = self.run.steps[key]
        failures = known.attempt - known.lost  # a crash of ours neither spends the budget nor lengthens the pause
        policy = step.retry
        if not retryable or policy is None:
            self.record(Kind.STEP_FAILED, {}, key)
        elif failures >= policy.max_attempts:
            self.record(Kind.STEP_DEAD, {}, key)
        else:
            pause = delay_s(policy, attempt=failures, seed=f"{self.run.run_id}/{key}")
            pause = min(max(pause, fact.retry_after_s or 0.0), SLEEP_S_MAX)
            at = self.now + round(pause * SECOND)
            self.record(Kind.STEP_RETRYING, {"at": at, "delay_s": round(pause, 6)}, key)
            self.commands.append(SetTimer(self.run.sequence, at))

    def attempt_lost(self, fact: AttemptLost) -> None:
        key = self.attempt_fact(fact)
        if self.stopping(key):
            self.record(Kind.STEP_CANCELLED, {}, key)
        elif _is_once(self.step_of(key)):
            self._ask(key, fact.reason)
        elif self.run.steps[key].lost > LOST_MAX:
            self.record(Kind.STEP_DEAD, {}, key)
        else:
            self._queue_again(key)

    def _ask(self, key: str, reason: str) -> None:
        """Park a step whose effect may have happened and must not happen twice, with what is known of it."""
        known = self.run.steps[key]
        evidence = {
            "reason": reason,
            "attempt": known.attempt,
            "idempotency_key": f"{self.run.run_id}/{key}",
            "error": known.error,
        }
        self.record(Kind.STEP_NEEDS_DECISION, {"evidence": evidence}, key)

    def _queue_again(self, key: str) -> None:
        self.record(Kind.STEP_QUEUED, {}, key, self.run.steps[key].attempt + 1)
        self.execute(key)

    def child_ended(self, fact: ChildEnded) -> None:
        run = self.run
        key = run.commands.get(fact.command)
        if key is None or not run.steps[key].child:
            raise IllegalEventError(f"no step waits for the sub-workflow of command {fact.command}")
        self.record(Kind.STEP_CHILD_ENDED, fact_body(fact), key)
        self.mark(key)
        if fact.state == RunState.SUCCEEDED:  # also while it is being stopped, as an attempt that was faster
            self.record(Kind.STEP_SUCCEEDED, {}, key)
        elif self.stopping(key):
            self.record(Kind.STEP_CANCELLED, {}, key)
        else:
            self.record(Kind.STEP_FAILED, {"error": _child_error(run.steps[key], fact)}, key)

    def timer_fired(self, fact: TimerFired) -> None:
        run = self.run
        key = run.timers.get(fact.timer)
        if key is None:
            raise IllegalEventError(f"nobody waits for timer {fact.timer}")
        if not key:
            self._own_timer_fired(fact)
            return
        known = run.steps[key]
        retrying = known.state is StepState.RETRYING
        self.record(Kind.TIMER_FIRED, fact_body(fact), key, known.attempt + retrying)
        self.mark(key)
        if retrying:
            self.execute(key)
        elif known.state is StepState.WAITING:
            self._waited(key)

    def _own_timer_fired(self, fact: TimerFired) -> None:
        run = self.run
        is_running = run.state is RunState.RUNNING
        self.record(Kind.TIMER_FIRED, fact_body(fact))
        if run.cancelling:
            self.stop_steps()  # the grace of on_cancel is over
        elif is_running and not run.cancel_requested:  # else it is being stopped already, and will be CANCELLED
            limit = self.model.timeout_s or 0.0
            message = f"the run took longer than {limit:g} s"
            self.fail_run({"code": "run_timeout", "message": message, "step": "", "attempts": 0})

    def _waited(self, key: str) -> None:
        spec = self.step_of(key).spec
        if not isinstance(spec, WaitSpec):
            self.record(Kind.STEP_SUCCEEDED, {}, key)
            return
        if spec.on_timeout is OnTimeout.CONTINUE:
            self.record(Kind.STEP_SUCCEEDED, {"output": {"timed_out": True}}, key)
            return
        what = f"signal {spec.signal!r}" if spec.signal else "approval"
        message = f"no {what} came within {spec.timeout_s or 0.0:g} s"
        self.record(Kind.STEP_FAILED, {"error": {"code": "wait_timeout", "message": message}}, key)

    def signal(self, fact: SignalRun) -> None:
        if fact.request_id in self.run.signal_ids:
            return
        if len(self.run.signals.get(fact.signal, ())) >= SIGNALS_MAX:
            raise IllegalEventError(f"{SIGNALS_MAX} signals {fact.signal!r} wait to be taken already")
        self.record(Kind.RUN_SIGNALLED, fact_body(fact))
        for key, step in self.run.steps.items():
            if step.state is StepState.WAITING and step.input and step.input.get("signal") == fact.signal:
                self.take_signal(key, fact.signal)
                self.mark(key)
                return

    def answer(self, fact: ApproveStep | RejectStep) -> None:
        key, known = fact.key, self.run.steps.get(fact.key)
        asks = known is not None and known.state is StepState.WAITING and "approval" in (known.input or {})
        if known is None or not asks:
            state = "has not been reached" if known is None else f"is {known.state}"
            raise IllegalEventError(f"step {key} waits for no approval: it {state}")
        self.record(FACT_KINDS[type(fact)], fact_body(fact), key)
        self.mark(key)
        if known.timer:
            self.commands.append(ClearTimer(known.timer))
        if isinstance(fact, ApproveStep):
            output = {"approved": True, "by": fact.by, "comment": fact.comment, "payload": fact.payload}
            self.record(Kind.STEP_SUCCEEDED, {"output": output}, key)
            return
        message = f"rejected by {fact.by or 'somebody'}" + (f": {fact.comment}" if fact.comment else "")
        error = {"code": "rejected", "message": message, "details": {"by": fact.by, "comment": fact.comment}}
        self.record(Kind.STEP_FAILED, {"error": error}, key)

    def resolve(self, fact: ResolveStep) -> None:
        key = fact.key
        if key not in self.run.steps:
            raise IllegalEventError(f"step {key} has not been reached")
        self.record(Kind.STEP_RESOLVED, fact_body(fact), key)
        self.mark(key)
        match fact.outcome:
            case "succeeded":
                self.record(Kind.STEP_SUCCEEDED, {"output": fact.output}, key)
            case "failed":
                message = fact.comment or f"{fact.by or 'somebody'} said that it has failed"
                self.record(Kind.STEP_FAILED, {"error": {"code": "resolved_failed", "message": message}}, key)
            case "retry":
                self._queue_again(key)
            case _:
                raise IllegalEventError(f"{fact.outcome!r} is no outcome")


_FACTS: Mapping[type[Any], Callable[[_Machine, Any], object]] = {
    CreateRun: _Machine.create,
    AdmitRun: _Machine.admit,
    CancelRun: _Machine.cancel,
    PauseRun: _Machine.pause,
    ResumeRun: _Machine.resume,
    SignalRun: _Machine.signal,
    ApproveStep: _Machine.answer,
    RejectStep: _Machine.answer,
    ResolveStep: _Machine.resolve,
    ChildEnded: _Machine.child_ended,
    AttemptStarted: _Machine.attempt_started,
    AttemptCompleted: _Machine.attempt_fact,
    AttemptFailed: _Machine.attempt_failed,
    AttemptLost: _Machine.attempt_lost,
    AttemptCancelled: _Machine.attempt_cancelled,
    TimerFired: _Machine.timer_fired,
}
_INERT = frozenset({AttemptStarted, CreateRun, PauseRun})
"""Facts that nothing follows from: a start, a run that is not admitted yet, a run that is to stand still."""


def _is_once(step: Step) -> bool:
    return isinstance(step.spec, ActivitySpec) and step.spec.effect is Effect.ONCE


def _root_cause(error: Mapping[str, Json]) -> tuple[str, Mapping[str, Json]]:
    """Answer the run in which a chain of failed sub-workflows begins, empty for the child itself, and its error."""
    below = ""
    while str(error.get("code", "")).startswith("child_"):
        details = error.get("details")
        inner = details.get("error") if isinstance(details, Mapping) else None
        if not isinstance(inner, Mapping):
            break
        below, error = str(details.get("run_id", "")) if isinstance(details, Mapping) else "", inner
    return below, error


def _child_error(step: StepRun, fact: ChildEnded) -> dict[str, Json]:
    """Answer the error of a step whose sub-workflow did not succeed."""
    error = fact.error or {}
    if fact.state == RunState.CANCELLED:
        code, message = "child_cancelled", f"the sub-workflow {step.child} was cancelled"
    elif fact.state:
        below, cause = _root_cause(error)
        since = f", because of {below}" if below else ""
        why = cause.get("message", "it failed")
        code, message = f"child_{fact.state.lower()}", f"the sub-workflow {step.child} is {fact.state}{since}: {why}"
    else:  # it could not be started
        code, message = error.get("code", "child_failed"), error.get("message", "the sub-workflow could not be started")
    return {
        "code": code,
        "message": message,
        "details": {"run_id": step.child, "state": fact.state, "error": fact.error},
    }
