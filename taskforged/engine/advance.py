"""What follows from a fact: the phases of a run, its blocks, its steps.

The order is fixed: the phase (main, compensations, `on_failure`, or `on_cancel`), its block from the top, steps in the
order of the document. Everything that is decided is recorded, and `evolve` changes the state by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from taskforged.engine.events import (
    CancelChild,
    CancelExecution,
    ClearTimer,
    Command,
    Execute,
    FinishRun,
    HistoryEvent,
    IllegalEventError,
    Publish,
    SetTimer,
    StartChild,
    Withdraw,
)
from taskforged.engine.keys import (
    compensation_key,
    definition_id,
    derived_id,
    inner_prefix,
    item_key,
    items_of,
    split_item,
)
from taskforged.engine.model import (
    EVENT_TYPE,
    EVENT_TYPE_MAX,
    RESERVED_TYPES,
    ActivitySpec,
    Block,
    ChildSpec,
    Expression,
    ExpressionError,
    FailSpec,
    FanOutSpec,
    GroupSpec,
    Json,
    PublishSpec,
    SleepSpec,
    Step,
    SwitchSpec,
    TransformSpec,
    WaitSpec,
    WorkflowModel,
    blocks_of,
)
from taskforged.engine.run import Run, StepRun, evolve
from taskforged.engine.scope import RunScope
from taskforged.engine.states import FAILED_STEPS, TERMINAL_RUNS, TERMINAL_STEPS, Kind, RunState, StepState

__all__ = ["OUTPUT_SIZE_MAX", "PORTION", "SECOND", "SLEEP_S_MAX", "Advancer", "expression_error"]

OUTPUT_SIZE_MAX = 1 << 20
"""Limit of one value that expressions make, in characters and nodes; the same 1 MiB as for a response body."""

SLEEP_S_MAX = 366 * 86_400
"""A sleep of more than a year is taken for a mistake in the unit."""

PORTION = 500
"""Items that one fact starts; the next ones follow in a call of their own, so that no fan-out stops the world."""

SECOND = 1_000_000
_ITEM_ERRORS_MAX = 20


class _Verdict(Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


class _Progress(NamedTuple):
    """How far a block is; `failed` is the key of the step that failed it."""

    verdict: _Verdict
    failed: str = ""


_DONE = _Progress(_Verdict.DONE)
_OPEN = _Progress(_Verdict.OPEN)


class Advancer:
    """The state of a run while it is advanced, and what that gives."""

    __slots__ = (
        "_changed",
        "_portion",
        "_scope",
        "commands",
        "everything",
        "history",
        "model",
        "now",
        "run",
        "touched",
    )

    def __init__(self, model: WorkflowModel, run: Run, now: int) -> None:
        self.model = model
        self.run = run
        self.now = now
        self.history: list[HistoryEvent] = []
        self.commands: list[Command] = []
        self.touched: set[str] = set()
        self._scope = RunScope(model, run)
        self._portion = 0  # items that may still be started
        self._changed: dict[str, set[int]] = {}  # items, by fan-out, in which something has happened
        self.everything = False

    def begin(self, portion: int) -> None:
        """Begin with a fact. Nothing is kept from the one before: how a host batches facts must decide nothing."""
        self._portion = portion
        self._changed.clear()
        self.everything = False

    # --- what follows ------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Start what can start in the present phase of the run."""
        run = self.run
        if run.state in TERMINAL_RUNS:
            raise IllegalEventError(f"the run is {run.state}")
        if run.cancel_requested:
            self._advance_cancelled()
        elif run.state is not RunState.RUNNING:
            return  # it starts nothing: not yet, or not now
        elif run.failing is None:
            self._advance_main()
        elif not self._at_work("main"):
            self._advance_failed()

    def _advance_main(self) -> None:
        progress = self._advance_block(self.model.main, "")
        if progress.verdict is _Verdict.FAILED:
            dead = self.run.steps[progress.failed].state is StepState.DEAD
            self.fail_run(self._failure_of(progress.failed), RunState.DEAD if dead else RunState.FAILED)
            self.advance()
        elif progress.verdict is _Verdict.DONE:
            self._succeed()

    def _advance_failed(self) -> None:
        """Undo what was done, one after the other, then execute `on_failure`."""
        if self.model.compensates and not self._compensated():
            return
        if self._advance_block(self.model.on_failure, "").verdict is not _Verdict.OPEN:
            self._finish(self.run.failing_to)

    def _compensated(self) -> bool:
        run = self.run
        if run.compensating is None:
            done = [key for key, known in run.steps.items() if self._can_be_undone(key, known)]
            done.sort(key=lambda key: run.steps[key].ended_by)
            if done:
                self.record(Kind.RUN_COMPENSATING, {"steps": done[::-1]})
        for key in run.compensating or ():
            step, undo = self.step_of(key).compensate, compensation_key(key)
            assert step is not None
            known = run.steps.get(undo) or self._start(step, undo, None)
            if known.state not in TERMINAL_STEPS:
                return False  # one that fails does not keep the others from being undone
        return True

    def _can_be_undone(self, key: str, known: StepRun) -> bool:
        """Whether a main step is to be undone; what handles the failure is not."""
        if known.state is not StepState.SUCCEEDED or self.step_of(key).compensate is None:
            return False
        return self.model.phases[definition_id(key)] == "main"

    def _advance_cancelled(self) -> None:
        run = self.run
        if run.cancelling:
            if run.grace_over:
                if not self._at_work():
                    self._finish(RunState.CANCELLED)
            elif self._advance_block(self.model.on_cancel, "").verdict is not _Verdict.OPEN:
                self._finish(RunState.CANCELLED)
            return
        if self._at_work():
            return
        if not run.started_at or not self.model.on_cancel.steps:
            self._finish(RunState.CANCELLED)
            return
        timers = [seq for seq, step in run.timers.items() if not step]
        at = self.now + round(self.model.cancel_grace_s * SECOND)
        self.record(Kind.RUN_CANCELLING, {"at": at})
        self.commands.extend(ClearTimer(seq) for seq in timers)
        self.commands.append(SetTimer(run.sequence, at))
        self._advance_cancelled()

    def _succeed(self) -> None:
        try:
            output = None if self.model.output is None else self._value(self.model.output, "the output")
        except ExpressionError as error:
            self.fail_run(expression_error(error))
            self.advance()
            return
        self._finish(RunState.SUCCEEDED, {"output": output})

    def _failure_of(self, key: str) -> dict[str, Json]:
        """Answer the error of a failed step as its block reports it; what contains others passes on what failed."""
        step = self.run.steps[key]
        error = step.error
        is_inside = isinstance(self.step_of(key).spec, (SwitchSpec, GroupSpec, FanOutSpec))
        inner = error if is_inside else {}
        found = {
            "code": error["code"],
            "message": error["message"],
            "step": inner.get("step", key),
            "attempts": inner.get("attempts", step.attempt),
        }
        if "details" in error:
            found["details"] = error["details"]
        return found

    def fail_run(self, error: Json, to: RunState = RunState.FAILED) -> None:
        """Leave `main`: what is open there stops, what was not reached is skipped."""
        timers = [seq for seq, step in self.run.timers.items() if not step]
        body: dict[str, Json] = {"error": error, "to": to.text}
        skipped = self._unreached(self.model.main, "")
        if skipped:
            body["skipped"] = skipped
        self.record(Kind.RUN_FAILING, body)
        self.touched.update(skipped)
        self.commands.extend(ClearTimer(seq) for seq in timers)
        self.stop_steps()

    def stop_steps(self, *, is_parked: bool = False) -> None:
        """Stop whatever is open; attempts and sub-workflows are asked, and report.

        `is_parked` says that the run was paused, so that what is queued stands in no outbox.
        """
        for key, step in list(self.run.steps.items()):
            match step.state:
                case StepState.QUEUED:
                    if not is_parked:
                        self.commands.append(Withdraw(step.command))
                    self.record(Kind.STEP_CANCELLED, {}, key)
                case StepState.WAITING if step.command:
                    self.commands.append(CancelChild(step.command))
                case StepState.RETRYING | StepState.WAITING:
                    if step.timer:
                        self.commands.append(ClearTimer(step.timer))
                    self.record(Kind.STEP_CANCELLED, {}, key)
                case StepState.NEEDS_DECISION:
                    self.record(Kind.STEP_CANCELLED, {}, key)
                case StepState.RUNNING if step.command:
                    self.commands.append(CancelExecution(step.command))

    def stopping(self, key: str) -> bool:
        """Whether this step is being stopped, so that its failure decides nothing any more."""
        run = self.run
        if not run.cancel_requested and run.failing is None:
            return False
        phase = self.model.phases[definition_id(key)]
        if run.cancel_requested:
            return run.grace_over or phase != "on_cancel"
        return phase == "main"

    def _at_work(self, phase: str = "") -> bool:
        """Whether an attempt or a sub-workflow is under way, of this phase or of any."""
        run = self.run
        for key in run.commands.values():
            is_busy = run.steps[key].state is not StepState.QUEUED
            if is_busy and (not phase or self.model.phases[definition_id(key)] == phase):
                return True
        return False

    def _finish(self, state: RunState, body: dict[str, Json] | None = None) -> None:
        timers = list(self.run.timers)
        for key, step in list(self.run.steps.items()):
            if step.state is StepState.RUNNING:  # a switch, group or fan-out that was left
                self.record(Kind.STEP_CANCELLED, {}, key)
        self.record(_FINAL_KIND[state], body or {})
        self.commands.extend(ClearTimer(seq) for seq in timers)
        self.commands.append(FinishRun(state))

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _advance_block(self, block: Block, prefix: str) -> _Progress:
        """Start what can start, in the order of the document, and say how far the block is.

        A step starts when all before it have ended. After a failure among them it is left out, unless its condition
        asks for the status; what does not depend on the failed step goes on. These are the rules of GitHub Actions.
        """
        while True:
            failed, is_open, again = self._pass_through(block, prefix)
            if not again:
                break
        if is_open:
            return _OPEN
        if failed:
            index = (failed & -failed).bit_length() - 1  # the first in the order of the document
            return _Progress(_Verdict.FAILED, prefix + block.steps[index].id)
        return _DONE

    def _pass_through(self, block: Block, prefix: str) -> tuple[int, bool, bool]:
        """Go through a block once. Answers (bit mask of the steps that failed it, is it open, is there more to start).

        There is more when a step ended on the way that one above it may have waited for.
        """
        steps = self.run.steps
        failed = self._failed_in(block, prefix)
        is_open = blocked = again = False
        for index, step in enumerate(block.steps):
            key = prefix + step.id
            known = steps.get(key)
            was_open = True
            if known is None:
                if failed & block.ancestors[index] and not block.asks_status:
                    continue  # it will be recorded as skipped when the block ends
                if not self._ready(step, block, prefix):
                    is_open = blocked = True
                    continue
                known = self._reach(step, key, block, index, failed, prefix)
            elif known.state is StepState.RUNNING:
                known = self._advance_inside(step, key)
            else:
                was_open = known.state not in TERMINAL_STEPS
            if known.state not in TERMINAL_STEPS:
                is_open = True
                continue
            again = again or (blocked and was_open)
            if known.state in FAILED_STEPS and not step.continue_on_error:
                failed |= 1 << index
        return failed, is_open, again

    def _failed_in(self, block: Block, prefix: str) -> int:
        steps, failed = self.run.steps, 0
        for index, step in enumerate(block.steps):
            known = steps.get(prefix + step.id)
            if known is not None and known.state in FAILED_STEPS and not step.continue_on_error:
                failed |= 1 << index
        return failed

    def _ready(self, step: Step, block: Block, prefix: str) -> bool:
        steps = self.run.steps
        for index in step.after:
            before = steps.get(prefix + block.steps[index].id)
            if before is None or before.state not in TERMINAL_STEPS:
                return False
        return True

    def _reach(self, step: Step, key: str, block: Block, index: int, failed: int, prefix: str) -> StepRun:
        """Start a step, or skip it for what became of the steps before it."""
        if not (failed or step.needs or step.asks_status):
            return self._start(step, key, None)
        has_failed = bool(failed & block.ancestors[index])
        lacks = step.needs and any(
            self.run.steps[prefix + block.steps[before].id].state is StepState.SKIPPED for before in step.after
        )
        if not step.asks_status:
            if has_failed or lacks:
                self._skip(step, key)
                return self.run.steps[key]
            return self._start(step, key, None)
        status = {"always__": True, "success__": not has_failed and not lacks, "failure__": has_failed}
        return self._start(step, key, status)

    def _unreached(self, block: Block, prefix: str) -> list[str]:
        return [prefix + key for key in block.ids() if prefix + key not in self.run.steps]

    # --- steps -------------------------------------------------------------------------------------------------------

    def step_of(self, key: str) -> Step:
        """Answer the definition of the step with this key."""
        return self.model.steps[definition_id(key)]

    def _scope_of(self, key: str) -> RunScope:
        return RunScope(self.model, self.run, key) if "[" in key else self._scope

    def _start(self, step: Step, key: str, status: Json) -> StepRun:
        if key in self.run.pinned and not isinstance(step.spec, (SwitchSpec, GroupSpec, FanOutSpec)):
            self.record(Kind.STEP_SUCCEEDED, {"pinned": True}, key)
            return self.run.steps[key]
        try:
            if step.condition is not None and not self._wanted(step, key, status):
                self._skip(step, key)
            else:
                _BEGINNINGS[type(step.spec)](self, key, step.spec)
        except ExpressionError as error:
            body: dict[str, Json] = {"error": expression_error(error)}
            skipped = _inside(step, key)
            if skipped:
                body["skipped"] = skipped
            self.record(Kind.STEP_FAILED, body, key)
            self.touched.update(skipped)
        return self.run.steps[key]

    def _wanted(self, step: Step, key: str, status: Json) -> bool:
        assert step.condition is not None
        scope = self._scope_of(key) if status is None else RunScope(self.model, self.run, key, status=status)
        return self.truth(step.condition, scope, "`if`", key)

    def _skip(self, step: Step, key: str) -> None:
        self.record(Kind.STEP_SKIPPED, {}, key)
        for inner in _inside(step, key):
            self.record(Kind.STEP_SKIPPED, {}, inner)

    def transform(self, key: str, spec: TransformSpec) -> None:
        """Compute the output."""
        self.record(Kind.STEP_SUCCEEDED, {"output": self._value(spec.value, "the output", key)}, key)

    def queue(self, key: str, spec: ActivitySpec) -> None:
        """Ask for the first attempt."""
        body = {"input": self._value(spec.config, "the input", key)}
        self.record(Kind.STEP_QUEUED, body, key, 1)
        self.execute(key)

    def fail(self, key: str, spec: FailSpec) -> None:
        """Fail, as the definition says."""
        text = self._value(spec.message, "the message", key)
        self.record(Kind.STEP_FAILED, {"error": {"code": spec.code, "message": str(text)}}, key)

    def enter(self, key: str, spec: GroupSpec) -> None:
        """Begin a group."""
        self.record(Kind.STEP_ENTERED, {}, key)
        self._advance_group(key, spec)

    def _advance_inside(self, step: Step, key: str) -> StepRun:
        """Go on with a step that contains others."""
        match step.spec:
            case SwitchSpec() as spec:
                self._advance_switch(key, spec)
            case GroupSpec() as spec:
                self._advance_group(key, spec)
            case FanOutSpec() as spec:
                self._advance_fan(key, spec)
        return self.run.steps[key]

    def branch(self, key: str, spec: SwitchSpec) -> None:
        """Choose the case of a switch."""
        chosen, prefix = -1, inner_prefix(key)
        for index, case in enumerate(spec.cases):
            if case.condition is None or self.truth(case.condition, self._scope_of(key), "a case", key):
                chosen = index
                break
        others = [case for index, case in enumerate(spec.cases) if index != chosen]
        skipped = [prefix + inner for case in others for inner in case.block.ids()]
        body: dict[str, Json] = {"case": chosen}
        if skipped:
            body["skipped"] = skipped
        self.record(Kind.STEP_BRANCHED, body, key)
        self.touched.update(skipped)
        self._advance_switch(key, spec)

    def _advance_switch(self, key: str, spec: SwitchSpec) -> None:
        case = self.run.steps[key].case
        progress = _DONE if case < 0 else self._advance_block(spec.cases[case].block, inner_prefix(key))
        if progress.verdict is _Verdict.DONE:
            self.record(Kind.STEP_SUCCEEDED, {"output": {"case": case}}, key)
        elif progress.verdict is _Verdict.FAILED:
            self._fail_around(key, spec.cases[case].block, progress.failed)

    def _advance_group(self, key: str, spec: GroupSpec) -> None:
        progress = self._advance_block(spec.block, inner_prefix(key))
        if progress.verdict is _Verdict.FAILED:
            self._fail_around(key, spec.block, progress.failed)
        elif progress.verdict is _Verdict.DONE:
            try:
                body = self._group_output(key, spec)
            except ExpressionError as error:
                self.record(Kind.STEP_FAILED, {"error": expression_error(error)}, key)
                return
            self.record(Kind.STEP_SUCCEEDED, body, key)

    def _group_output(self, key: str, spec: GroupSpec) -> dict[str, Json]:
        if spec.output is None:
            return {"collect": [step.id for step in spec.block.steps]}
        # Steps inside are found by their depth, so the expression is evaluated as one of theirs.
        return {"output": self._value(spec.output, "the output", key)}

    def _fail_around(self, key: str, block: Block, failed: str) -> None:
        """Fail a step because one inside it has failed."""
        body: dict[str, Json] = {"error": self._failure_of(failed)}
        skipped = self._unreached(block, inner_prefix(key))
        if skipped:
            body["skipped"] = skipped
        dead = self.run.steps[failed].state is StepState.DEAD
        self.record(Kind.STEP_DEAD if dead else Kind.STEP_FAILED, body, key)
        self.touched.update(skipped)

    # --- fan-outs ----------------------------------------------------------------------------------------------------

    def mark(self, key: str) -> None:
        """Note the items that a step belongs to: the others of their fan-outs need not be looked at."""
        for item in items_of(key):
            fan_out, index = split_item(item)
            self._changed.setdefault(fan_out, set()).add(index)

    def expand(self, key: str, spec: FanOutSpec) -> None:
        """Begin a fan-out: record its items."""
        items = self._value(spec.items, "the items", key)
        if isinstance(items, dict):
            items = [{"key": name, "value": items[name]} for name in sorted(items)]
        fault = None
        if not isinstance(items, list):
            fault = f"for_each of step {key} needs a list or a map, and got {_type_name(items)}"
        elif len(items) > self.run.items_max:
            fault = f"for_each of step {key} has {len(items):,} items; the limit is {self.run.items_max:,}"
        if fault:
            self.record(Kind.STEP_FAILED, {"error": {"code": "for_each", "message": fault}}, key)
            return
        self.record(Kind.STEP_EXPANDED, {"items": items}, key)
        self._advance_fan(key, spec)

    def _advance_fan(self, key: str, spec: FanOutSpec) -> None:
        run, body = self.run, spec.body
        for index in self._items_to_look_at(key):
            item = item_key(key, index)
            if run.steps[item].state is StepState.RUNNING:
                self._advance_inside(body, item)
        count = len(run.steps[key].input)
        failures_max = count if self.step_of(key).continue_on_error else spec.max_failures
        while True:
            fan = run.fans[key]
            if fan.next >= count or fan.open >= spec.max_parallel or fan.failed > failures_max:
                break
            if not self._portion:
                self._yield(key)
                return
            self._portion -= 1
            self._start(body, item_key(key, fan.next), None)
        if fan.open == 0 and (fan.next >= count or fan.failed > failures_max):
            self._finish_fan(key, spec, fan.failed)

    def _items_to_look_at(self, key: str) -> list[int]:
        if not self.everything:
            return sorted(self._changed.get(key, ()))
        steps, upto = self.run.steps, self.run.fans[key].next
        return [index for index in range(upto) if steps[item_key(key, index)].state not in TERMINAL_STEPS]

    def _yield(self, key: str) -> None:
        if not self.run.steps[key].timer:
            self.record(Kind.STEP_YIELDED, {"at": self.now}, key)
            self.commands.append(SetTimer(self.run.sequence, self.now))

    def _finish_fan(self, key: str, spec: FanOutSpec, failures: int) -> None:
        known = self.run.steps[key]
        count = len(known.input)
        if known.timer:
            self.commands.append(ClearTimer(known.timer))
        if failures <= spec.max_failures:
            self.record(Kind.STEP_SUCCEEDED, {"items": count}, key)
            return
        steps = self.run.steps
        items = (item_key(key, index) for index in range(count))
        failed = [item for item in items if item in steps and steps[item].state in FAILED_STEPS]
        first = self._failure_of(failed[0])
        more = f" ({failures} of {count} items failed)" if count > 1 else ""
        error = {
            **first,
            "message": f"{first['message']}{more}",
            "details": {"items": count, "failed": failures, "keys": failed[:_ITEM_ERRORS_MAX]},
        }
        dead = any(steps[item].state is StepState.DEAD for item in failed)
        self.record(Kind.STEP_DEAD if dead else Kind.STEP_FAILED, {"error": error, "items": count}, key)

    # --- waits, sub-workflows, events --------------------------------------------------------------------------------

    def sleep(self, key: str, spec: SleepSpec) -> None:
        """Wait for a time."""
        scope = self._scope_of(key)
        if spec.until is not None:
            at = spec.until.evaluate(scope)
            is_good = isinstance(at, int) and not isinstance(at, bool) and at <= self.now + SLEEP_S_MAX * SECOND
            message = f"step {key} must not sleep for more than {SLEEP_S_MAX} s"
        else:
            assert spec.duration is not None
            seconds = spec.duration.evaluate(scope)
            is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            is_good = is_number and 0 <= seconds <= SLEEP_S_MAX
            at = self.now + round(seconds * SECOND) if is_good else 0
            message = f"the duration of step {key} must be between 0 s and {SLEEP_S_MAX} s"
        if not is_good:
            self.record(Kind.STEP_FAILED, {"error": {"code": "expression", "message": message}}, key)
            return
        self.record(Kind.STEP_WAITING, {"at": at}, key)
        self.commands.append(SetTimer(self.run.sequence, at, by_wall=spec.until is not None))

    def wait(self, key: str, spec: WaitSpec) -> None:
        """Wait for a signal or an approval."""
        if spec.signal and self.run.signals.get(spec.signal):
            self.take_signal(key, spec.signal)
            return
        body: dict[str, Json] = {"signal": spec.signal}
        if not spec.signal:
            message = "" if spec.message is None else self._value(spec.message, "the message", key)
            body = {"approval": str(message)}
        if spec.timeout_s is not None:
            body["at"] = self.now + round(spec.timeout_s * SECOND)
        self.record(Kind.STEP_WAITING, body, key)
        if spec.timeout_s is not None:
            self.commands.append(SetTimer(self.run.sequence, body["at"]))

    def start_child(self, key: str, spec: ChildSpec) -> None:
        """Begin a sub-workflow; its run id is known at once."""
        run = self.run
        version = spec.version or run.pins.get(spec.workflow, 0)
        if not version:
            message = f"there was no workflow {spec.workflow!r} when the run was created"
            self.record(Kind.STEP_FAILED, {"error": {"code": "workflow_not_found", "message": message}}, key)
            return
        value = self._value(spec.input, "the input", key)
        child = derived_id("run", self.now, run.run_id, run.sequence + 1)
        body = {"workflow": spec.workflow, "version": version, "input": value, "child": child}
        self.record(Kind.STEP_WAITING, body, key)
        self.commands.append(StartChild(run.sequence, key, child, spec.workflow, version, value))

    def publish(self, key: str, spec: PublishSpec) -> None:
        """Publish an internal event; what records the step stores it, too."""
        name = self._value(spec.type, "the type", key)
        data = self._value(spec.data, "the data", key)
        if not isinstance(name, str) or not _is_event_type(name):
            message = f"{str(name)[:80]!r} cannot be the type of an event"
            self.record(Kind.STEP_FAILED, {"error": {"code": "event_type", "message": message}}, key)
            return
        event_id = derived_id("evt", self.now, self.run.run_id, self.run.sequence + 1)
        output = {"event_id": event_id, "type": name}
        self.record(Kind.STEP_SUCCEEDED, {"output": output, "data": data}, key)
        self.commands.append(Publish(event_id, name, data, key))

    def take_signal(self, key: str, name: str) -> None:
        """End a wait with the oldest signal of that name."""
        known = self.run.steps.get(key)
        if known is not None and known.timer:
            self.commands.append(ClearTimer(known.timer))
        output = {"signal": name, **self.run.signals[name][0]}
        self.record(Kind.STEP_SUCCEEDED, {"output": output, "signal": name}, key)

    def execute(self, key: str) -> None:
        """Ask for the attempt that the newest event has queued; a paused run asks when it is resumed."""
        if self.run.state is not RunState.PAUSED:
            self.commands.append(Execute(self.run.sequence, key))

    # --- helpers -----------------------------------------------------------------------------------------------------

    def record(self, kind: Kind, body: dict[str, Json], step: str = "", attempt: int | None = None) -> None:
        """Record an event and change the state by it; `attempt` is that of the step unless given."""
        if attempt is None:
            known = self.run.steps.get(step) if step else None
            attempt = 0 if known is None else known.attempt
        event = HistoryEvent(self.run.sequence + 1, self.now, kind, step, attempt, body)
        evolve(self.run, event)
        self.history.append(event)
        if step:
            self.touched.add(step)

    def _value(self, expression: Expression, what: str, key: str = "") -> Json:
        value = expression.evaluate(self._scope_of(key))
        if _weight(value, OUTPUT_SIZE_MAX) > OUTPUT_SIZE_MAX:
            raise ExpressionError(what, _owner(key), f"is larger than {OUTPUT_SIZE_MAX:,} bytes")
        return value

    def truth(self, condition: Expression, scope: RunScope, what: str, key: str) -> bool:
        """Evaluate a condition; raises ExpressionError for anything but true or false."""
        value = condition.evaluate(scope)
        if not isinstance(value, bool):
            raise ExpressionError(what, _owner(key), f"must be true or false, not {_type_name(value)}")
        return value


_BEGINNINGS: Mapping[type[Any], Callable[[Advancer, str, Any], None]] = {
    ActivitySpec: Advancer.queue,
    TransformSpec: Advancer.transform,
    SwitchSpec: Advancer.branch,
    GroupSpec: Advancer.enter,
    FanOutSpec: Advancer.expand,
    SleepSpec: Advancer.sleep,
    WaitSpec: Advancer.wait,
    ChildSpec: Advancer.start_child,
    PublishSpec: Advancer.publish,
    FailSpec: Advancer.fail,
}

_FINAL_KIND = {
    RunState.SUCCEEDED: Kind.RUN_SUCCEEDED,
    RunState.FAILED: Kind.RUN_FAILED,
    RunState.DEAD: Kind.RUN_DEAD,
    RunState.CANCELLED: Kind.RUN_CANCELLED,
}


def _inside(step: Step, key: str) -> list[str]:
    """Answer the keys of the steps inside a switch or group; none for other steps."""
    prefix = inner_prefix(key)
    return [prefix + inner for block in blocks_of(step.spec) for inner in block.ids()]


def _owner(key: str) -> str:
    return f"step {key}" if key else "the run"


def expression_error(error: ExpressionError) -> dict[str, Json]:
    """Answer the error of a step whose expression has failed."""
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
        kind = type(item)
        if kind is str:
            total += len(item) + 2
        elif kind is dict:
            total += sum(map(len, item)) + 4 * len(item) + 2
            todo.extend(item.values())
        elif kind is list:
            total += len(item) + 2
            todo.extend(item)
        else:
            total += 8
    return total


def _is_event_type(name: str) -> bool:
    is_written_well = len(name) <= EVENT_TYPE_MAX and EVENT_TYPE.fullmatch(name) is not None
    return is_written_well and not name.startswith(RESERVED_TYPES)
