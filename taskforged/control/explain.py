"""Why a run is where it is: one sentence, and the reasons one by one, each with the command that would change it.

Pure: from a run, its definition and the facts that were collected, see `explain_facts`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from taskforged.control.explain_facts import HOLDERS_MAX, ExplainFacts, LaneFacts
from taskforged.control.narrator import told_request
from taskforged.engine.keys import definition_id
from taskforged.engine.model import (
    ActivitySpec,
    FanOutSpec,
    GroupSpec,
    Json,
    OnTimeout,
    Step,
    SwitchSpec,
    WaitSpec,
    WorkflowModel,
)
from taskforged.engine.run import Run, StepRun
from taskforged.engine.states import FAILED_STEPS, TERMINAL_RUNS, RunState, StepState

__all__ = ["REASONS_MAX", "Explanation", "Reason", "ReasonKind", "explain"]

REASONS_MAX = 50
"""More than a person reads; what is beyond is counted."""

_TEXT_MAX = 300
_SECOND = 1_000_000


class ReasonKind(StrEnum):
    """What a run or a step waits for or does. The names are those of the contract."""

    PENDING_LIMIT = "pending_limit"
    QUEUE = "queue"
    POOL = "pool"
    TIMER = "timer"
    BACKOFF = "backoff"
    SIGNAL = "signal"
    APPROVAL = "approval"
    CHILD = "child"
    DECISION = "decision"
    PAUSED = "paused"
    SCHEDULED = "scheduled"
    EXECUTING = "executing"
    CANCELLING = "cancelling"
    CONCURRENCY = "concurrency"
    ENDED = "ended"
    STARTING = "starting"


_K = ReasonKind

_ORDER: Mapping[ReasonKind, tuple[str, str]] = {
    _K.DECISION: ("needs a decision", "need a decision"),
    _K.APPROVAL: ("waits for approval", "wait for approval"),
    _K.SIGNAL: ("waits for a signal", "wait for a signal"),
    _K.CANCELLING: ("is being stopped", "are being stopped"),
    _K.QUEUE: ("waits in its queue", "wait in their queue"),
    _K.POOL: ("waits for an executor", "wait for an executor"),
    _K.PAUSED: ("is held back", "are held back"),
    _K.BACKOFF: ("is tried again later", "are tried again later"),
    _K.CHILD: ("waits for a sub-workflow", "wait for sub-workflows"),
    _K.TIMER: ("sleeps", "sleep"),
    _K.EXECUTING: ("is being executed", "are being executed"),
    _K.STARTING: ("is about to start", "are about to start"),
}
"""Kinds of reasons of steps: first what only a person can change, last what goes on by itself. In words, for one step
and for several."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that a run, or one of its steps, waits for or does.

    Attributes:
        kind: what sort of thing.
        message: for people.
        step: key of the step; empty for the whole run.
        until: when it ends by itself, in microseconds; 0 when it does not, or nobody knows.
        limit_name: the limit that is reached; empty for none.
        limit: its value.
        position: how many are ahead in the line.
        holders: who holds what is waited for, `run_…` or `run_…/step`.
        child_run_id: the sub-workflow's run.
        hint: a command to type; empty when there is none.
    """

    kind: ReasonKind
    message: str
    step: str = ""
    until: int = 0
    limit_name: str = ""
    limit: int = 0
    position: int = 0
    holders: Sequence[str] = ()
    child_run_id: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a run is where it is.

    Attributes:
        run_id: the run.
        state: its state.
        summary: one sentence.
        reasons: the most telling first; never empty.
        checked_at: when all of this held, in microseconds.
    """

    run_id: str
    state: RunState
    summary: str
    reasons: Sequence[Reason]
    checked_at: int


def explain(run: Run, model: WorkflowModel, facts: ExplainFacts, now: int) -> Explanation:
    """Say what a run waits for, or why it ended as it did."""
    summary, reasons = _Explainer(run, model, facts, now).explain()
    return Explanation(run.run_id, run.state, summary, reasons[:REASONS_MAX], now)


class _Explainer:
    """Explains one run."""

    def __init__(self, run: Run, model: WorkflowModel, facts: ExplainFacts, now: int) -> None:
        self._run = run
        self._model = model
        self._facts = facts
        self._now = now

    def explain(self) -> tuple[str, list[Reason]]:
        """Answer the sentence and the reasons."""
        state = self._run.state
        if state in TERMINAL_RUNS:
            ended = self._ended()
            return _sentence(f"the run {ended.message}"), [ended, *self._failed_aside()]
        if state is RunState.SCHEDULED:
            return self._alone(self._scheduled())
        if state is RunState.PENDING:
            return self._alone(self._pending())
        return self._open()

    def _alone(self, reason: Reason) -> tuple[str, list[Reason]]:
        return _sentence(f"the run {reason.message}"), [reason]

    # --- before it starts --------------------------------------------------------------------------------------------

    def _scheduled(self) -> Reason:
        at = self._run.run_at
        message = f"was created for later and starts in {_span(at - self._now)}"
        return Reason(_K.SCHEDULED, message, until=at, hint=self._command("run cancel", self._run.run_id))

    def _pending(self) -> Reason:
        pending, run = self._facts.pending, self._run
        if pending is None or pending.kind == "none":
            ahead = f"; {_runs(pending.position)} go first" if pending is not None and pending.position else ""
            position = 0 if pending is None else pending.position
            return Reason(_K.STARTING, f"is about to start{ahead}", position=position)
        holders = tuple(pending.holders[:HOLDERS_MAX])
        ahead = f", and {_runs(pending.position)} {'is' if pending.position == 1 else 'are'} ahead of it"
        ahead = ahead if pending.position else ""
        if pending.kind == "group":
            message = f"waits because concurrency group {run.group} may have {_runs(pending.limit)} at a time{ahead}"
            name, kind = f"concurrency group {run.group}", _K.CONCURRENCY
            hint = self._command("run explain", holders[0]) if holders else ""
        else:
            space = self._facts.namespace
            message = f"waits because namespace {space} may have {_runs(pending.limit)} at a time{ahead}"
            name, kind = f"namespace {space}: running_runs_max", _K.PENDING_LIMIT
            hint = self._command("namespace set", space, "--running-runs-max", str(pending.limit + 1))
        return Reason(
            kind,
            message,
            limit_name=name,
            limit=pending.limit,
            position=pending.position,
            holders=holders,
            hint=hint,
        )

    # --- while it is open --------------------------------------------------------------------------------------------

    def _open(self) -> tuple[str, list[Reason]]:
        buckets: dict[ReasonKind, list[str]] = {}
        for key, step in self._run.steps.items():
            kind = self._kind_of(key, step)
            if kind is not None:
                buckets.setdefault(kind, []).append(key)
        own = list(self._own(sum(map(len, buckets.values()))))
        reasons = [*own, *self._of_steps(buckets, REASONS_MAX - len(own))]
        if not reasons:
            reasons = [Reason(_K.STARTING, "nothing is in the way; the daemon is about to go on")]
            return "Nothing is in the way of the run; the daemon is about to go on.", reasons
        return self._summary(own, buckets, reasons), reasons

    def _summary(
        self, own: Sequence[Reason], buckets: Mapping[ReasonKind, Sequence[str]], reasons: Sequence[Reason]
    ) -> str:
        counts = [_counted(kind, len(buckets[kind])) for kind in _ORDER if kind in buckets]
        if not own and len(reasons) == 1:
            return _sentence(f"step {reasons[0].step} {reasons[0].message}")
        parts = [f"the run {one.message}" for one in own[:1]]
        return _sentence("; ".join([*parts, ", ".join(counts)] if counts else parts))

    def _own(self, open_steps: int) -> Iterator[Reason]:
        """Yield what is to be said of the run as a whole."""
        run, history = self._run, self._facts.history
        if run.state is RunState.PAUSED:
            since = f" for {_span(self._now - history.paused_at)}" if history.paused_at else ""
            message = f"is paused{since}{_by(run.paused_by, run.pause_reason)}"
            yield Reason(_K.PAUSED, message, hint=self._command("run resume", run.run_id))
        elif run.cancel_requested:
            yield self._cancelling()
        elif run.failing is not None:
            yield self._failing(open_steps)

    def _cancelling(self) -> Reason:
        run, history = self._run, self._facts.history
        message = f"is being cancelled{_by(history.cancel_by, history.cancel_reason)}"
        if not run.cancelling:
            return Reason(_K.CANCELLING, f"{message}; what is at work has been asked to stop")
        if run.grace_over:
            return Reason(_K.CANCELLING, f"{message}; on_cancel took too long and has been asked to stop")
        return Reason(_K.CANCELLING, f"{message}; the steps of on_cancel are executed", until=history.grace_until)

    def _failing(self, open_steps: int) -> Reason:
        run = self._run
        message = f"has failed: {_error(run.failing)}"
        if any(self._is_stopping(key) for key in run.commands.values()):
            return Reason(_K.CANCELLING, f"{message}; what is at work has been asked to stop")
        if run.compensating is not None:
            undone = [run.steps.get(f"{key}:compensate") for key in run.compensating]
            left = sum(step is None or not step.ended_at for step in undone)
            if left:
                return Reason(_K.EXECUTING, f"{message}; {left} of {len(undone)} steps are still to be undone")
        what = "the steps of on_failure are executed" if open_steps else "the daemon is about to end it"
        return Reason(_K.EXECUTING, f"{message}; {what}")

    # --- steps -------------------------------------------------------------------------------------------------------

    def _kind_of(self, key: str, step: StepRun) -> ReasonKind | None:
        """Answer what an open step waits for; None for what has ended or only contains others."""
        match step.state:
            case StepState.QUEUED:
                return self._kind_of_queued()
            case StepState.RUNNING:
                if not step.command:
                    return None
                return _K.CANCELLING if self._is_stopping(key) else _K.EXECUTING
            case StepState.RETRYING:
                return _K.BACKOFF
            case StepState.NEEDS_DECISION:
                return _K.DECISION
            case StepState.WAITING:
                return self._kind_of_waiting(key, step)
        return None

    def _kind_of_queued(self) -> ReasonKind:
        if self._run.state is RunState.PAUSED:
            return _K.PAUSED
        lane = self._facts.lane
        return _QUEUED[lane.blocked_by] if lane is not None else _K.STARTING

    def _kind_of_waiting(self, key: str, step: StepRun) -> ReasonKind:
        if step.child:
            return _K.CANCELLING if self._is_stopping(key) else _K.CHILD
        asked = step.input if isinstance(step.input, dict) else {}
        if "signal" in asked:
            return _K.SIGNAL
        return _K.APPROVAL if "approval" in asked else _K.TIMER

    def _is_stopping(self, key: str) -> bool:
        """Whether a step has been asked to stop: as the engine has it, see `Advancer.stopping`."""
        run = self._run
        if run.steps[key].state is StepState.QUEUED:
            return False
        phase = self._model.phases.get(definition_id(key))
        if run.cancel_requested:
            return run.grace_over or phase != "on_cancel"
        return run.failing is not None and phase == "main"

    def _of_steps(self, buckets: Mapping[ReasonKind, Sequence[str]], most: int) -> Iterator[Reason]:
        """Yield the reasons of steps; of many that wait for the same only some, and how many more there are."""
        left, kinds = most, [kind for kind in _ORDER if kind in buckets]
        for number, kind in enumerate(kinds):
            keys = buckets[kind]
            after = sum(min(len(buckets[other]), 2) for other in kinds[number + 1 :])  # one, and the count of the rest
            room = max(left - after, 2)
            shown = keys if len(keys) <= room else keys[: room - 1]
            tell = _TELLERS[kind]
            yield from (tell(self, key, self._run.steps[key]) for key in shown)
            left -= len(shown)
            if len(shown) < len(keys):
                yield Reason(kind, f"and {_counted(kind, len(keys) - len(shown), 'more ')}")
                left -= 1

    def _definition(self, key: str) -> Step | None:
        return self._model.steps.get(definition_id(key))

    def _attempts_max(self, key: str) -> int:
        known = self._definition(key)
        retry = None if known is None else known.retry
        return 1 if retry is None else retry.max_attempts

    def executing(self, key: str, step: StepRun) -> Reason:
        """An attempt is under way."""
        known, began = self._definition(key), self._facts.history.attempt_starts.get(key, 0)
        most = self._attempts_max(key)
        attempt = f"attempt {step.attempt}" + (f" of {most}" if most > 1 else "")
        since = f" for {_span(self._now - began)}" if began else ""
        request = told_request(step.input)
        limit = None if known is None else known.timeout_s
        return Reason(
            _K.EXECUTING,
            f"is being executed{since}, {attempt}" + (f": {_cut(request)}" if request else ""),
            key,
            until=began + round(limit * _SECOND) if began and limit is not None else 0,
            hint=self._command("run logs", self._run.run_id, key, "--follow"),
        )

    def backoff(self, key: str, step: StepRun) -> Reason:
        """A failed attempt is followed by another."""
        message = (
            f"is tried again in {_span(step.wake_at - self._now)}: "
            f"attempt {step.attempt} of {self._attempts_max(key)} failed with {_error(step.error)}"
        )
        return Reason(_K.BACKOFF, message, key, until=step.wake_at)

    def timer(self, key: str, step: StepRun) -> Reason:
        """A sleep."""
        return Reason(_K.TIMER, f"sleeps for another {_span(step.wake_at - self._now)}", key, until=step.wake_at)

    def signal(self, key: str, step: StepRun) -> Reason:
        """A signal is waited for."""
        name = step.input["signal"]
        spec = self._wait_of(key)
        more = ("--data", "JSON") if spec is not None and spec.contract is not None else ()
        hint = self._command("run signal", self._run.run_id, name, *more)
        message = f"waits for signal {name}{self._given_up(key, step)}"
        return Reason(_K.SIGNAL, message, key, until=step.wake_at, hint=hint)

    def approval(self, key: str, step: StepRun) -> Reason:
        """Somebody's approval is waited for."""
        asked = step.input["approval"]
        message = f"waits for approval{self._given_up(key, step)}" + (f": {_cut(asked)}" if asked else "")
        hint = self._command("run approve", self._run.run_id, key)
        return Reason(_K.APPROVAL, message, key, until=step.wake_at, hint=hint)

    def _wait_of(self, key: str) -> WaitSpec | None:
        known = self._definition(key)
        return known.spec if known is not None and isinstance(known.spec, WaitSpec) else None

    def _given_up(self, key: str, step: StepRun) -> str:
        if not step.wake_at:
            return ""
        spec = self._wait_of(key)
        what = "goes on" if spec is not None and spec.on_timeout is OnTimeout.CONTINUE else "fails"
        return f" and {what} without it in {_span(step.wake_at - self._now)}"

    def child(self, key: str, step: StepRun) -> Reason:
        """A sub-workflow is waited for."""
        state = self._facts.children.get(step.child)
        what = f"sub-workflow {step.input['workflow']} v{step.input['version']}"
        if state == "":
            return Reason(_K.CHILD, f"waits for {what}, which is about to start", key, child_run_id=step.child)
        hint = self._command("run explain", step.child)
        message = f"waits for {what}" + (f", which is {state}" if state else "")
        return Reason(_K.CHILD, message, key, child_run_id=step.child, hint=hint)

    def decision(self, key: str, step: StepRun) -> Reason:
        """A person must say what happened."""
        evidence = step.evidence if isinstance(step.evidence, dict) else {}
        reason, idempotency_key = evidence.get("reason", ""), evidence.get("idempotency_key", "")
        message = f"needs a decision: the effect of attempt {step.attempt} may or may not have happened"
        message += f", for {_cut(reason)}" if reason else ""
        message += f" (its idempotency key is {idempotency_key})" if idempotency_key else ""
        message += "; find out, and say `succeeded`, `failed` or `retry`"
        hint = self._command("run resolve", self._run.run_id, key, "--as", "succeeded")
        return Reason(_K.DECISION, message, key, hint=hint)

    def stopping(self, key: str, step: StepRun) -> Reason:
        """It has been asked to stop and has not yet."""
        if step.child:
            state = self._facts.children.get(step.child) or "not known"
            message = f"is being stopped: its sub-workflow, which is {state}, has been asked to"
            hint = self._command("run explain", step.child)
            return Reason(_K.CANCELLING, message, key, child_run_id=step.child, hint=hint)
        began = self._facts.history.attempt_starts.get(key, 0)
        since = f", at work for {_span(self._now - began)}," if began else ""
        return Reason(_K.CANCELLING, f"is being stopped: attempt {step.attempt}{since} has been asked to", key)

    def paused(self, key: str, _: StepRun) -> Reason:
        """It waits for the end of the pause."""
        message = "is ready, and held back until the run is resumed"
        return Reason(_K.PAUSED, message, key, hint=self._command("run resume", self._run.run_id))

    def queued(self, key: str, _: StepRun) -> Reason:
        """It waits for a slot."""
        lane = self._facts.lane
        if lane is None:
            return Reason(_K.STARTING, "is about to be executed", key)
        position = lane.positions.get(key, 0)
        ahead = f"; {position:,} {'step is' if position == 1 else 'steps are'} ahead of it" if position else ""
        message, name, limit, hint = self._blocked(lane)
        kind = _QUEUED[lane.blocked_by]
        holders = tuple(lane.holders[:HOLDERS_MAX])
        return Reason(kind, message + ahead, key, 0, name, limit, position, holders, hint=hint)

    def _blocked(self, lane: LaneFacts) -> tuple[str, str, int, str]:
        """Answer for a lane: message, name and value of the limit, hint."""
        queue, space = lane.queue, self._facts.namespace
        there = () if space == "default" else ("-n", space)
        match lane.blocked_by:
            case "paused":
                hint = self._command("queue resume", queue, *there)
                return f"waits because queue {queue} is paused", f"queue {queue}: paused", 0, hint
            case "queue":
                limit = lane.queue_limit
                hint = self._command("queue set", queue, "--running-steps-max", str(limit + 1), *there)
                message = f"waits because queue {queue} may have {_steps(limit)} at work at a time"
                return message, f"queue {queue}: running_steps_max", limit, hint
            case "namespace":
                limit = lane.namespace_limit
                hint = self._command("namespace set", space, "--running-steps-max", str(limit + 1))
                message = f"waits because namespace {space} may have {_steps(limit)} at work at a time"
                return message, f"namespace {space}: running_steps_max", limit, hint
            case "pool":
                limit = lane.pool_size
                message = f"waits because the daemon may have {_steps(limit)} at work at a time"
                return message, "executor: pool_size", limit, ""
        return "is about to be executed", "", 0, ""

    # --- after its end -----------------------------------------------------------------------------------------------

    def _ended(self) -> Reason:
        run, history, failing = self._run, self._facts.history, self._run.failing
        took = f"after {_span(run.ended_at - (run.started_at or run.created_at))}"
        if run.state is RunState.SUCCEEDED:
            return Reason(_K.ENDED, f"succeeded {took}")
        retried_by = self._facts.retried_by
        if run.state is RunState.CANCELLED:
            message = f"was cancelled {took}{_by(history.cancel_by, history.cancel_reason)}"
        elif run.state is RunState.DEAD:
            message = f"is dead {took}, its attempts used up: {_error(failing)}"
        else:
            message = f"failed {took}: {_error(failing)}"
        message += f"; {retried_by} retries it" if retried_by else ""
        step = failing.get("step", "") if failing and run.state is not RunState.CANCELLED else ""
        hint = self._command("run show", retried_by) if retried_by else self._after_end(step)
        return Reason(_K.ENDED, message, step, hint=hint)

    def _after_end(self, step: str) -> str:
        """Answer what to do about the end: retry what ran out of attempts, else look at why it failed."""
        if self._run.state is RunState.DEAD:
            return self._command("run retry", self._run.run_id)
        return self._logs_of(step) if self._run.state is RunState.FAILED and step else ""

    def _failed_aside(self) -> Iterator[Reason]:
        """Yield what failed while the failure was handled: somebody has to clear that up by hand."""
        for key, step in self._run.steps.items():
            phase = self._model.phases.get(definition_id(key), "main")
            known = self._definition(key)
            is_inside = known is not None and isinstance(known.spec, (SwitchSpec, GroupSpec, FanOutSpec))
            if step.state in FAILED_STEPS and phase != "main" and not is_inside:
                what = "could not undo its step" if phase == "compensate" else f"failed in {phase}"
                yield Reason(_K.ENDED, f"{what}: {_error(step.error)}", key, hint=self._logs_of(key))

    def _logs_of(self, key: str) -> str:
        known = self._definition(key)
        is_activity = known is not None and isinstance(known.spec, ActivitySpec)
        return self._command("run logs", self._run.run_id, key) if is_activity else ""

    def _command(self, verb: str, *arguments: str) -> str:
        return f"taskforgectl {verb} {shlex.join(arguments)}"


_TELLERS: Mapping[ReasonKind, Callable[[_Explainer, str, StepRun], Reason]] = {
    _K.DECISION: _Explainer.decision,
    _K.APPROVAL: _Explainer.approval,
    _K.SIGNAL: _Explainer.signal,
    _K.CANCELLING: _Explainer.stopping,
    _K.QUEUE: _Explainer.queued,
    _K.POOL: _Explainer.queued,
    _K.PAUSED: _Explainer.paused,
    _K.BACKOFF: _Explainer.backoff,
    _K.CHILD: _Explainer.child,
    _K.TIMER: _Explainer.timer,
    _K.EXECUTING: _Explainer.executing,
    _K.STARTING: _Explainer.queued,
}

_QUEUED: Mapping[str, ReasonKind] = {
    "paused": _K.QUEUE,
    "queue": _K.QUEUE,
    "namespace": _K.POOL,
    "pool": _K.POOL,
    "": _K.STARTING,
}


# --- words -----------------------------------------------------------------------------------------------------------


def _counted(kind: ReasonKind, count: int, more: str = "") -> str:
    one, many = _ORDER[kind]
    return f"{count:,} {more}step {one}" if count == 1 else f"{count:,} {more}steps {many}"


def _runs(count: int) -> str:
    return f"{count:,} {'run' if count == 1 else 'runs'}"


def _steps(count: int) -> str:
    return f"{count:,} {'step' if count == 1 else 'steps'}"


def _by(who: str, why: str) -> str:
    return (f" by {who}" if who else "") + (f" ({_cut(why)})" if why else "")


def _error(error: Json) -> str:
    if not isinstance(error, dict):
        return "no reason is known"
    step, attempts = error.get("step", ""), error.get("attempts", 0)
    tries = f" after {attempts} attempts" if attempts and attempts > 1 else ""
    place = f"step {step}{tries}: " if step else ""
    return f"{place}{error.get('code', 'failed')}: {_cut(str(error.get('message', '')))}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "…", "?", "!")) else f"{text}."


def _span(micros: int) -> str:
    """Answer a duration for people: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 30 min`, `4 d 6 h`."""
    seconds = max(micros, 0) / _SECOND
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part_size, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            count, rest = whole // size, whole % size // part_size
            return f"{count} {unit} {rest} {part}" if rest else f"{count} {unit}"
    return f"{whole} s"
