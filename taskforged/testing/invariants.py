"""What must hold after every commit, whatever happens to a run.

`Checker` follows one run as a host does: it keeps its own copy of the state by folding history, and its own books of
what is open by obeying the engine's commands. What begins, ends, is skipped or undone is compared with `rules`, which
knows them in another way than the engine. Any difference is a `Violation`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from taskforged.engine import machine
from taskforged.engine.events import Fact, HistoryEvent, fact_from_history
from taskforged.engine.machine import Outcome
from taskforged.engine.model import (
    ActivitySpec,
    ChildSpec,
    Effect,
    FanOutSpec,
    GroupSpec,
    Json,
    PublishSpec,
    Step,
    WorkflowModel,
)
from taskforged.engine.run import Run, StepRun, evolve, fold
from taskforged.engine.states import FAILED_STEPS, TERMINAL_RUNS, TERMINAL_STEPS, Kind, RunState, StepState
from taskforged.testing.books import Books, Violation
from taskforged.testing.rules import CONTAINERS, Plan

__all__ = ["Checker", "Engine", "Violation"]

Engine: TypeAlias = Callable[[WorkflowModel, Run, Sequence[Fact], int], Outcome]
"""The signature of `apply`."""

_SECOND = 1_000_000
_OPEN_STATES = (StepState.QUEUED, StepState.WAITING, StepState.RETRYING)


class Checker:
    """Follows one run.

    Args:
        model: its definition.
        event: the content of the event that started it.
        is_punctual: the host fires no timer before its time, so nothing may come too early.

    Attributes:
        history: all that was committed.
        books: what a host has open.
    """

    def __init__(self, model: WorkflowModel, *, event: Json = None, is_punctual: bool = True) -> None:
        self.history: list[HistoryEvent] = []
        self.books = Books(self.history)
        self._model = model
        self._plan = Plan(model)
        self._event = event
        self._is_punctual = is_punctual
        self._shadow = Run(event=event)
        self._signals: dict[str, deque[Json]] = {}
        self._done: list[str] = []  # steps that succeeded, in the order in which they did
        self._waiting: list[str] = []  # steps that wait for a signal, in the order in which they began to
        self._last: dict[str, HistoryEvent] = {}
        self._resolved: dict[str, int] = {}
        self._ran = 0  # microseconds that the run's timeout has counted
        self._since = 0  # it counts since then; 0: it stands still
        self._grace = 0

    # --- each commit -------------------------------------------------------------------------------------------------

    def commit(self, before: Run, facts: Sequence[Fact], outcome: Outcome, now: int) -> None:
        """Check one accepted call of `apply`. Raises `Violation`."""
        self.unchanged(before)
        self._expect(before.state not in TERMINAL_RUNS or not facts, "a run that has ended accepted a fact")
        steps_before = dict(self._shadow.steps)
        begun = 0
        for event in outcome.history:
            begun += event.step.endswith("]") and event.step not in self._shadow.steps
            self._check_event(event, now)
        self._expect(begun <= machine.PORTION * len(facts), f"one call started {begun} items")
        self._expect(self._shadow == outcome.run, "the fold of the history is not the state")
        changed = {key for key, step in self._shadow.steps.items() if steps_before.get(key) is not step}
        changed = {key for key in changed if steps_before.get(key) != self._shadow.steps[key]}
        self._expect(changed <= outcome.touched, f"touched lacks {sorted(changed - outcome.touched)}")
        self.books.enter(facts, outcome.commands)
        self._check_run()
        for key, step in self._shadow.steps.items():
            if step.state not in TERMINAL_STEPS or steps_before.get(key) is not step:
                self._check_step(key, step)
        self._check_nothing_forgotten()

    def unchanged(self, run: Run) -> None:
        """Check that a state is still what the history says: `apply` and refused facts must not touch it."""
        self._expect(run == self._shadow, "apply has changed the state that it was given")

    def restart(self) -> Run:
        """Answer the state that a host finds after a crash."""
        run = fold(self.history, event=self._event)
        self._expect(run == self._shadow, "the fold of the whole history is not the state")
        return run

    def end(self, engine: Engine) -> None:
        """Check what can be checked once, at the end: fed with its own history, the engine decides the same again."""
        run, again = Run(event=self._event), list[HistoryEvent]()
        for entry in self.history:
            fact = fact_from_history(entry)
            if fact is not None:
                outcome = engine(self._model, run, [fact], entry.at)
                run = outcome.run
                again += outcome.history
        self._expect(again == self.history, "a replay decides differently")
        self._expect(run == self.restart(), "a replay ends in another state")

    def _expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise Violation(message)

    # --- each entry --------------------------------------------------------------------------------------------------

    def _check_event(self, event: HistoryEvent, now: int) -> None:
        run = self._shadow
        self._expect(event.sequence == len(self.history) + 1, f"the history has a gap before {event.sequence}")
        self._expect(event.at == now, f"event {event.sequence} has another time than its commit")
        self._expect(run.state not in TERMINAL_RUNS, f"{event.kind} after the end of the run")
        known = run.steps.get(event.step)
        if event.step:
            self._expect(known is None or known.state not in TERMINAL_STEPS, f"{event.kind} after {event.step} ended")
            self._before_step_event(event, known)
        else:
            _RUN_CHECKS.get(event.kind, _nothing)(self, event)
        reached = set(event.body.get("skipped", ()))
        self._expect(not reached & run.steps.keys(), f"{event.kind} skips what was reached: {sorted(reached)}")
        evolve(run, event)
        self.history.append(event)
        if event.step:
            self._last[event.step] = event
            self._after_step_event(event, known)

    def _before_step_event(self, event: HistoryEvent, known: StepRun | None) -> None:
        if known is None:
            self._check_first(event)
        starts_in_pause = event.kind is Kind.STEP_STARTED and self._shadow.state is RunState.PAUSED
        self._expect(not starts_in_pause, f"{event.step} was started in a pause")
        if known is not None and event.kind is Kind.STEP_QUEUED:
            self._expect(event.attempt == known.attempt + 1, f"attempt {event.attempt} of {event.step} is out of turn")
            self._check_once(event)
        if event.kind is Kind.STEP_CANCELLED:
            is_left = isinstance(self._plan.place(event.step).step.spec, CONTAINERS)
            self._expect(is_left or self._must_stop(event.step), f"{event.step} was stopped without a reason")
        if event.kind is Kind.STEP_SUCCEEDED and "signal" in event.body:
            self._check_signal(event, known)

    def _check_once(self, event: HistoryEvent) -> None:
        """Check that what must not happen twice is executed again only when a person says so."""
        spec = self._plan.place(event.step).step.spec
        last = self._last[event.step]
        if last.kind is Kind.STEP_RESOLVED:
            self._expect(last.body["outcome"] == "retry", f"{event.step} was queued after another decision")
            self._resolved[event.step] = self._resolved.get(event.step, 0) + 1
        elif isinstance(spec, ActivitySpec) and spec.effect is Effect.ONCE:
            self._expect(False, f"{event.step} has the effect `once` and was queued again after a lost attempt")

    def _check_signal(self, event: HistoryEvent, known: StepRun | None) -> None:
        name, run = event.body["signal"], self._shadow
        waiting = [key for key in self._waiting if (run.steps[key].input or {}).get("signal") == name]
        self._expect(known is None or waiting[0] == event.step, f"{event.step} took the signal of {waiting[:1]}")
        self._expect(bool(self._signals.get(name)), f"{event.step} took a signal that nobody sent")
        taken = self._signals[name].popleft()
        self._expect(event.body["output"] == {"signal": name, **taken}, f"{event.step} took another signal")

    def _after_step_event(self, event: HistoryEvent, known: StepRun | None) -> None:
        key, step = event.step, self._shadow.steps[event.step]
        if key in self._waiting and step.state is not StepState.WAITING:
            self._waiting.remove(key)
        if known is None and step.state is StepState.WAITING and "signal" in event.body:
            self._waiting.append(key)
        if step.state is StepState.SUCCEEDED:
            self._done.append(key)
        if step.state in TERMINAL_STEPS and isinstance(self._plan.place(key).step.spec, CONTAINERS):
            self._check_container_end(event, step)

    # --- what begins -------------------------------------------------------------------------------------------------

    def _check_first(self, event: HistoryEvent) -> None:
        """Check that a step was reached when, and as, the rules say."""
        run, key = self._shadow, event.step
        place, container = self._plan.place(key), self._plan.container(key)
        outer = run.steps.get(container) if container else None
        if outer is not None and outer.state is StepState.SKIPPED:
            self._expect(event.kind is Kind.STEP_SKIPPED, f"{key} is inside {container}, which was skipped")
            return
        self._expect(run.state is RunState.RUNNING, f"{key} began in a run that is {run.state}")
        if container:
            inside = outer is not None and outer.state is StepState.RUNNING and place.case in (-1, outer.case)
            self._expect(inside, f"{key} is not in a chosen case, or not in an open group")
        self._check_phase(key, place.phase)
        verdict = self._plan.verdict(run, key)
        expected = {
            "begin": event.kind is not Kind.STEP_SKIPPED,
            "begin or skip": True,
            "skip": event.kind is Kind.STEP_SKIPPED,
            "fail": event.kind is Kind.STEP_FAILED,
            "wait": False,
        }
        self._expect(expected[verdict], f"{event.kind} {key}, but the rules say {verdict!r}")
        if key.endswith("]"):
            self._check_item(key, container)
        is_leaf = not isinstance(place.step.spec, CONTAINERS)
        if key in run.pinned and is_leaf and event.kind is not Kind.STEP_SKIPPED:
            self._expect(event.body == {"pinned": True}, f"{key} is pinned and was executed")

    def _check_phase(self, key: str, phase: str) -> None:
        run = self._shadow
        self._expect(phase == self._phase(), f"{key} of {phase} began while the run is in {self._phase() or 'none'}")
        if phase == "compensate":
            undone = self._undo_order()
            self._expect(key in undone, f"{key} began, but there is nothing to undo")
            for other in undone[: undone.index(key)]:
                known = run.steps.get(other)
                self._expect(known is not None and known.state in TERMINAL_STEPS, f"{key} began before {other} ended")
            original = run.steps[key.removesuffix(":compensate")]
            self._expect(original.state is StepState.SUCCEEDED, f"{key} began, but the step is {original.state}")

    def _phase(self) -> str:
        """Answer the phase whose steps may begin now; empty: none."""
        run = self._shadow
        if run.cancel_requested:
            return "on_cancel" if run.cancelling and not run.grace_over else ""
        if run.failing is None:
            return "main"
        if self._is_busy("main"):
            return ""
        undone = [run.steps.get(key) for key in self._undo_order()]
        if all(known is not None and known.state in TERMINAL_STEPS for known in undone):
            return "on_failure"
        return "compensate"

    def _undo_order(self) -> list[str]:
        """Answer the compensations that a failed run has to execute, in order."""
        places = [(key, self._plan.place(key)) for key in self._done]
        undone = [key for key, place in places if place.phase == "main" and place.step.compensate is not None]
        return [f"{key}:compensate" for key in reversed(undone)]

    def _is_busy(self, phase: str = "") -> bool:
        """Say whether an attempt or a sub-workflow is under way."""
        for seq, key in self._shadow.commands.items():
            step = self._shadow.steps[key]
            if step.state is not StepState.QUEUED and phase in ("", self._plan.place(key).phase):
                self._expect(step.command == seq, f"command {seq} is not that of {key}")
                return True
        return False

    def _check_item(self, key: str, fan_out: str) -> None:
        run, spec = self._shadow, self._spec_of(fan_out)
        index = int(key[key.rindex("[") + 1 : -1])
        items = self._items(fan_out)
        self._expect(index == len(items) < len(run.steps[fan_out].input), f"item {key} began out of turn")
        under_way = [item for item in items if item.state not in TERMINAL_STEPS]
        self._expect(len(under_way) < spec.max_parallel, f"item {key} began beside {len(under_way)} others")
        failures = sum(item.state in FAILED_STEPS for item in items)
        allowed = failures <= spec.max_failures or self._plan.place(fan_out).step.continue_on_error
        self._expect(allowed, f"item {key} began after {failures} failures")

    def _items(self, fan_out: str) -> list[StepRun]:
        steps, found = self._shadow.steps, list[StepRun]()
        while (item := steps.get(f"{fan_out}[{len(found)}]")) is not None:
            found.append(item)
        return found

    def _spec_of(self, fan_out: str) -> FanOutSpec:
        spec = self._plan.place(fan_out).step.spec
        assert isinstance(spec, FanOutSpec)
        return spec

    # --- what ends ---------------------------------------------------------------------------------------------------

    def _check_container_end(self, event: HistoryEvent, step: StepRun) -> None:
        key, run = event.step, self._shadow
        if step.state is StepState.CANCELLED or step.state is StepState.SKIPPED:
            return
        spec = self._plan.place(key).step.spec
        if isinstance(spec, FanOutSpec):
            if step.input is not None:
                self._check_fan_end(key, spec, step)
            return
        missing = [inner for inner in self._plan.all_inside(key) if inner not in run.steps]
        self._expect(not missing, f"{key} has ended, and nothing is known of {missing}")
        inside = self._plan.inside(key, step.case)
        if inside is None:
            return
        block, prefix = inside
        self._expect(self._plan.is_over(run, block, prefix), f"{key} has ended, and something in it is open")
        failed = self._plan.first_failed(run, block, prefix)
        is_expression = step.state is StepState.FAILED and (step.error or {}).get("code") == "expression"
        expected = StepState.SUCCEEDED if failed is None else failed
        self._expect(step.state is expected or (failed is None and is_expression), f"{key} ended as {step.state}")
        if isinstance(spec, GroupSpec) and spec.output is None and step.state is StepState.SUCCEEDED:
            gathered = {one.id: run.steps[prefix + one.id].output for one in block.steps}
            self._expect(step.output == gathered, f"{key} gathered {step.output}")

    def _check_fan_end(self, key: str, spec: FanOutSpec, step: StepRun) -> None:
        items, count = self._items(key), len(step.input)
        self._expect(all(item.state in TERMINAL_STEPS for item in items), f"{key} ended before its items")
        failures = [item.state for item in items if item.state in FAILED_STEPS]
        is_good = len(failures) <= spec.max_failures
        died = StepState.DEAD if StepState.DEAD in failures else StepState.FAILED
        self._expect(step.state is (StepState.SUCCEEDED if is_good else died), f"{key} ended as {step.state}")
        all_of_them = is_good or self._plan.place(key).step.continue_on_error
        self._expect(len(items) == count or not all_of_them, f"{key} left items out")
        outputs = [item.output for item in items] + [None] * (count - len(items))
        self._expect(step.output == outputs, f"{key} gathered {step.output}")
        self._expect(key not in self._shadow.fans, f"{key} has ended and is still counted")

    def _on_failing(self, event: HistoryEvent) -> None:
        run, model = self._shadow, self._model
        self._expect(run.failing is None, "the run failed twice")
        self._expect(not run.cancel_requested, "the run failed while it was being cancelled")
        self._expect(run.state is RunState.RUNNING, f"the run failed while it was {run.state}")
        failed = self._plan.first_failed(run, model.main, "")
        is_over = self._plan.is_over(run, model.main, "")
        if event.body["error"]["code"] == "run_timeout" and model.timeout_s and not is_over:
            is_time = self._counted(event.at) >= self._limit()
            self._expect(is_time or not self._is_punctual, "the run timed out too early")
        else:
            self._expect(is_over, "the run failed before its main steps were over")
            dead = failed is StepState.DEAD
            self._expect((event.body["to"] == RunState.DEAD) == dead, f"the run is going to be {event.body['to']}")
        unreached = set(model.main.ids()) - run.steps.keys()
        self._expect(unreached == set(event.body.get("skipped", ())), f"{unreached} were not reached")
        self._since = 0

    def _on_compensating(self, event: HistoryEvent) -> None:
        self._expect(not self._is_busy("main"), "the run is undone while attempts of it are under way")
        steps = [f"{key}:compensate" for key in event.body["steps"]]
        self._expect(steps == self._undo_order() != [], f"the run undoes {steps}, and not {self._undo_order()}")

    def _on_cancelling(self, event: HistoryEvent) -> None:
        run = self._shadow
        self._expect(run.cancel_requested and not run.cancelling, "the steps of on_cancel were not asked for")
        self._expect(bool(run.started_at) and bool(self._model.on_cancel.steps), "there is nothing for on_cancel to do")
        self._expect(not self._is_busy(), "on_cancel begins before everything has stopped")
        still = [key for key, step in run.steps.items() if step.state in _OPEN_STATES]
        self._expect(not still, f"on_cancel begins before {still} have stopped")
        self._grace = event.at + round(self._model.cancel_grace_s * _SECOND)
        self._expect(event.body["at"] == self._grace, f"the grace of on_cancel ends at {event.body['at']}")

    def _on_timer(self, event: HistoryEvent) -> None:
        run = self._shadow
        if run.state is RunState.SCHEDULED and self._is_punctual:
            self._expect(event.at >= run.run_at, "the run came before its time")
        if run.cancelling and self._is_punctual:
            self._expect(event.at >= self._grace, "the grace of on_cancel was cut short")

    def _on_started(self, event: HistoryEvent) -> None:
        run, limit = self._shadow, self._model.timeout_s
        self._expect(event.at >= run.run_at or not self._is_punctual, "the run started before its time")
        due = None if limit is None else event.at + self._limit()
        self._expect(event.body.get("timeout_at") == due, f"the run times out at {event.body.get('timeout_at')}")
        self._since = 0 if limit is None else event.at

    def _on_paused(self, event: HistoryEvent) -> None:
        self._expect(not self._shadow.cancel_requested, "a run that is being cancelled was paused")
        if self._since:
            self._ran, self._since = self._counted(event.at), 0
            left = max(self._limit() - self._ran, 1)
            self._expect(event.body.get("timeout_left") == left, f"{left} us are left of the timeout")
        else:
            self._expect("timeout_left" not in event.body, "a pause counts a timeout that is not running")

    def _on_resumed(self, event: HistoryEvent) -> None:
        counts = self._model.timeout_s is not None and self._shadow.failing is None
        due = event.at + max(self._limit() - self._ran, 1) if counts else None
        self._expect(event.body.get("timeout_at") == due, f"the run times out at {event.body.get('timeout_at')}")
        self._since = event.at if counts else 0

    def _limit(self) -> int:
        return round((self._model.timeout_s or 0.0) * _SECOND)

    def _counted(self, now: int) -> int:
        """Answer how long the run's timeout has counted; at least all but one microsecond after a late pause."""
        if not self._since:
            return self._ran
        return max(min(self._ran, self._limit() - 1) + now - self._since, self._ran)

    def _on_signal(self, event: HistoryEvent) -> None:
        signal = {"payload": event.body.get("payload"), "by": event.body.get("by", "")}
        self._signals.setdefault(event.body["signal"], deque()).append(signal)

    def _on_succeeded(self, _: HistoryEvent) -> None:
        run, main = self._shadow, self._model.main
        is_good = self._plan.first_failed(run, main, "") is None and run.failing is None
        self._expect(is_good and not run.cancel_requested, "the run succeeded, though a step failed it")
        self._expect(self._plan.is_over(run, main, ""), "the run succeeded before its steps were over")

    def _on_failed(self, event: HistoryEvent) -> None:
        run = self._shadow
        self._expect(run.failing is not None and not run.cancel_requested, f"{event.kind} without a reason")
        self._expect(event.kind == f"run.{run.failing_to.lower()}", f"{event.kind} of a run that is {run.failing_to}")
        self._expect(self._phase() == "on_failure", "the run failed before everything was undone")
        self._expect(self._plan.is_over(run, self._model.on_failure, ""), "the run failed before on_failure was over")

    def _on_cancelled(self, _: HistoryEvent) -> None:
        run = self._shadow
        self._expect(run.cancel_requested, "nobody asked to cancel")
        wanted = bool(run.started_at) and bool(self._model.on_cancel.steps)
        self._expect(run.cancelling == wanted, "the steps of on_cancel were left out")
        is_over = run.grace_over or not wanted or self._plan.is_over(run, self._model.on_cancel, "")
        self._expect(is_over, "the run is CANCELLED before on_cancel was over")

    # --- the whole ---------------------------------------------------------------------------------------------------

    def _check_run(self) -> None:
        run, is_over = self._shadow, self._shadow.state in TERMINAL_RUNS
        self._expect(run.sequence == len(self.history), "the state has another sequence than the history")
        self.books.compare(run)
        self._expect(is_over == self.books.finished, "FinishRun and the state of the run differ")
        self._expect(is_over == bool(run.ended_at), "ended_at is set in final states only")
        for seq, key in run.commands.items():
            asked = not self._must_stop(key) or self.books.was_asked(seq)
            self._expect(asked, f"command {seq} of {key} was not asked to stop")
        waiting = {name: tuple(kept) for name, kept in self._signals.items() if kept}
        self._expect(run.signals == waiting, f"signals not taken: engine {run.signals}, sent {waiting}")
        for key in self._waiting:
            name = (run.steps[key].input or {})["signal"]
            self._expect(name not in waiting, f"{key} waits for signal {name}, which is there")
        if is_over:
            self._check_end()
        elif run.state is RunState.RUNNING:
            alone = any(step.state in (StepState.NEEDS_DECISION, StepState.WAITING) for step in run.steps.values())
            waits = any(step for step in run.timers.values()) or alone
            self._expect(bool(run.commands) or waits, "the run is open and waits for nothing")

    def _check_end(self) -> None:
        run = self._shadow
        self._expect(not run.commands and not run.timers and not run.fans, "a run that has ended has something open")
        still = [key for key, step in run.steps.items() if step.state not in TERMINAL_STEPS]
        self._expect(not still, f"the run has ended, and {still} have not")
        published = set(self.books.published.values())
        for key, step in run.steps.items():
            spec = self._plan.place(key).step.spec
            is_own = step.state is StepState.SUCCEEDED and not step.pinned
            if isinstance(spec, PublishSpec):
                self._expect(is_own == (key in published), f"{key} is {step.state}; published: {key in published}")

    def _must_stop(self, key: str) -> bool:
        run, phase = self._shadow, self._plan.place(key).phase
        if run.cancel_requested:
            return phase != "on_cancel" or run.grace_over
        return run.failing is not None and phase == "main"

    def _check_step(self, key: str, step: StepRun) -> None:
        is_over = step.state in TERMINAL_STEPS
        definition = self._plan.place(key).step
        self._expect(is_over == bool(step.ended_at), f"{key} is {step.state}; ended_at is {step.ended_at}")
        self._expect(not is_over or not (step.command or step.timer), f"{key} has ended with something open")
        may_have_output = step.state is StepState.SUCCEEDED or isinstance(definition.spec, FanOutSpec) or not is_over
        self._expect(may_have_output or step.output is None, f"{key} is {step.state} and has an output")
        is_child = isinstance(definition.spec, ChildSpec)
        is_container = isinstance(definition.spec, CONTAINERS)
        has_command = step.state is StepState.QUEUED or (step.state is StepState.RUNNING and not is_container)
        has_command = has_command or (is_child and step.state is StepState.WAITING)
        self._expect(has_command == bool(step.command), f"{key} is {step.state} with command {step.command}")
        self._expect(step.state is not StepState.RETRYING or bool(step.timer), f"{key} is RETRYING without a timer")
        may_have_timer = step.state in (StepState.RETRYING, StepState.WAITING) or isinstance(
            definition.spec, FanOutSpec
        )
        self._expect(may_have_timer or not step.timer, f"{key} is {step.state} with timer {step.timer}")
        due = self.books.timers[step.timer] if step.timer else 0
        self._expect(due == step.wake_at, f"{key} wakes at another time")
        self._expect(not is_child or not step.child or step.child in self.books.born, f"{key} has an unknown child")
        self._check_budget(key, step, definition)

    def _check_budget(self, key: str, step: StepRun, definition: Step) -> None:
        budget = 1 if definition.retry is None else definition.retry.max_attempts
        spent = step.attempt - step.lost - self._resolved.get(key, 0)
        self._expect(spent <= budget, f"{key} has spent more than its attempts")
        needs_decision = step.state is StepState.NEEDS_DECISION
        self._expect(not needs_decision or bool(step.evidence), f"{key} asks for a decision without evidence")

    def _check_nothing_forgotten(self) -> None:
        """Check that whatever can begin has begun, and whatever is over has ended."""
        run, phase = self._shadow, self._phase()
        if run.state is not RunState.RUNNING:
            return
        if phase in self._plan.tops:
            self._check_block(phase, "")
        elif phase == "compensate":
            open_ones = [key for key in self._undo_order() if key in run.steps]
            is_open = bool(open_ones) and run.steps[open_ones[-1]].state not in TERMINAL_STEPS
            self._expect(is_open, "there is something to undo, and nothing undoes it")
        for key, step in run.steps.items():
            if step.state is StepState.RUNNING and self._plan.place(key).phase == phase:
                self._check_open_container(key, step)

    def _check_block(self, phase: str, prefix: str) -> None:
        block = self._plan.tops[phase]
        for step in block.steps:
            self._check_not_forgotten(prefix + step.id)
        self._expect(not self._plan.is_over(self._shadow, block, prefix), f"{phase} is over, and the run goes on")

    def _check_open_container(self, key: str, step: StepRun) -> None:
        spec = self._plan.place(key).step.spec
        if isinstance(spec, FanOutSpec):
            self._check_open_fan(key, spec, step)
        elif isinstance(spec, CONTAINERS):
            inside = self._plan.inside(key, step.case)
            self._expect(inside is not None, f"{key} chose no case and is open")
            assert inside is not None
            block, prefix = inside
            for inner in block.steps:
                self._check_not_forgotten(prefix + inner.id)
            self._expect(not self._plan.is_over(self._shadow, block, prefix), f"{key} is over and still open")

    def _check_open_fan(self, key: str, spec: FanOutSpec, step: StepRun) -> None:
        items = self._items(key)
        under_way = sum(item.state not in TERMINAL_STEPS for item in items)
        failures = sum(item.state in FAILED_STEPS for item in items)
        fan = self._shadow.fans[key]
        self._expect(fan == (len(items), under_way, failures), f"{key} counts {fan}")
        if step.timer:
            return  # it goes on in another transaction
        stops = failures > spec.max_failures and not self._plan.place(key).step.continue_on_error
        is_full = under_way >= spec.max_parallel or len(items) == len(step.input) or stops
        self._expect(is_full, f"{key} does not start its next item")
        self._expect(under_way > 0, f"{key} is over and still open")

    def _check_not_forgotten(self, key: str) -> None:
        run = self._shadow
        if key in run.steps:
            return
        block = self._plan.place(key).block
        assert block is not None
        left_out = self._plan.failed_before(run, key) and not any(step.asks_status for step in block.steps)
        self._expect(left_out or self._plan.verdict(run, key) == "wait", f"{key} could be reached and was forgotten")


def _nothing(_: Checker, __: HistoryEvent) -> None:
    """There is nothing to check."""


_RUN_CHECKS: Mapping[Kind, Callable[[Checker, HistoryEvent], None]] = {
    Kind.RUN_STARTED: Checker._on_started,  # noqa: SLF001 - a table of its own methods
    Kind.RUN_PAUSED: Checker._on_paused,  # noqa: SLF001
    Kind.RUN_RESUMED: Checker._on_resumed,  # noqa: SLF001
    Kind.RUN_SIGNALLED: Checker._on_signal,  # noqa: SLF001
    Kind.RUN_FAILING: Checker._on_failing,  # noqa: SLF001
    Kind.RUN_COMPENSATING: Checker._on_compensating,  # noqa: SLF001
    Kind.RUN_CANCELLING: Checker._on_cancelling,  # noqa: SLF001
    Kind.RUN_SUCCEEDED: Checker._on_succeeded,  # noqa: SLF001
    Kind.RUN_FAILED: Checker._on_failed,  # noqa: SLF001
    Kind.RUN_DEAD: Checker._on_failed,  # noqa: SLF001
    Kind.RUN_CANCELLED: Checker._on_cancelled,  # noqa: SLF001
    Kind.TIMER_FIRED: Checker._on_timer,  # noqa: SLF001
}
