"""What must hold after every commit, whatever happens to a run.

`Checker` follows one run as a host does: it keeps its own copy of the state by folding history, and its own books of
open commands and timers by obeying the engine's commands. Any difference from what the engine says is a `Violation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from taskforged.engine.events import (
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelExecution,
    ClearTimer,
    Command,
    Execute,
    Fact,
    FinishRun,
    HistoryEvent,
    SetTimer,
    TimerFired,
    Withdraw,
    fact_from_history,
)
from taskforged.engine.machine import Outcome
from taskforged.engine.model import ActivitySpec, Block, Effect, Json, Step, SwitchSpec, WorkflowModel
from taskforged.engine.run import Run, StepRun, evolve, fold
from taskforged.engine.states import FAILED_STEPS, TERMINAL_RUNS, TERMINAL_STEPS, Kind, RunState, StepState

__all__ = ["Checker", "Engine", "Violation"]

Engine: TypeAlias = Callable[[WorkflowModel, Run, Sequence[Fact], int], Outcome]
"""The signature of `apply`."""

_BEGINNINGS = frozenset({Kind.STEP_QUEUED, Kind.STEP_WAITING, Kind.STEP_BRANCHED, Kind.STEP_SUCCEEDED})
_EXECUTE_KINDS = frozenset({Kind.STEP_QUEUED, Kind.TIMER_FIRED})
_TIMER_KINDS = frozenset({Kind.STEP_RETRYING, Kind.STEP_WAITING, Kind.RUN_STARTED})


class Violation(AssertionError):  # noqa: N818 - it is a verdict, and reads as one in a report
    """The engine has broken a promise."""


class Checker:
    """Follows one run.

    Attributes:
        history: all that was committed.
        commands: open commands, sequence to step, as a host keeps them.
        timers: open timers, sequence to due time, as a host keeps them.
    """

    def __init__(self, model: WorkflowModel, *, event: Json = None) -> None:
        self.history: list[HistoryEvent] = []
        self.commands: dict[int, str] = {}
        self.timers: dict[int, int] = {}
        self._model = model
        self._event = event
        self._shadow = Run(event=event)
        self._started: set[int] = set()
        self._asked: set[int] = set()
        self._homes: dict[str, tuple[Block, Step | None, int]] = {}
        self._main = frozenset(model.main.ids())
        self._finished = False
        self._place(model.main, None, -1)
        self._place(model.on_failure, None, -1)

    def _place(self, block: Block, parent: Step | None, case: int) -> None:
        for step in block.steps:
            self._homes[step.id] = (block, parent, case)
            if isinstance(step.spec, SwitchSpec):
                for index, branch in enumerate(step.spec.cases):
                    self._place(branch.block, step, index)

    # --- each commit -------------------------------------------------------------------------------------------------

    def commit(self, before: Run, facts: Sequence[Fact], outcome: Outcome, now: int) -> None:
        """Check one accepted call of `apply`. Raises `Violation`."""
        self.unchanged(before)
        self._expect(before.state not in TERMINAL_RUNS or not facts, "a run that has ended accepted a fact")
        steps_before = dict(self._shadow.steps)
        for event in outcome.history:
            self._check_event(event, now)
        self._expect(self._shadow == outcome.run, "the fold of the history is not the state")
        changed = {key for key, step in self._shadow.steps.items() if steps_before.get(key) != step}
        self._expect(changed <= outcome.touched, f"touched lacks {sorted(changed - outcome.touched)}")
        self._keep_books(facts, outcome.commands)
        self._check_books()
        self._check_steps()

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

    # --- parts -------------------------------------------------------------------------------------------------------

    def _expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise Violation(message)

    def _check_event(self, event: HistoryEvent, now: int) -> None:
        run = self._shadow
        self._expect(event.sequence == len(self.history) + 1, f"the history has a gap before {event.sequence}")
        self._expect(event.at == now, f"event {event.sequence} has another time than its commit")
        self._expect(run.state not in TERMINAL_RUNS, f"{event.kind} after the end of the run")
        if event.step:
            known = run.steps.get(event.step)
            self._expect(known is None or known.state not in TERMINAL_STEPS, f"{event.kind} after {event.step} ended")
            if known is None and event.kind in _BEGINNINGS:
                self._check_beginning(event)
            self._check_attempt(event, known)
        if event.kind is Kind.RUN_FAILING:
            self._expect(run.failing is None, "the run failed twice")
            self._expect(not run.cancel_requested, "the run failed while it was being cancelled")
        evolve(run, event)
        self.history.append(event)

    def _check_beginning(self, event: HistoryEvent) -> None:
        """Check that nothing stands in the way of a step that begins."""
        run, key = self._shadow, event.step
        block, parent, case = self._homes[key]
        for index in self._model.steps[key].after:
            before = run.steps.get(block.steps[index].id)
            self._expect(before is not None and before.state in TERMINAL_STEPS, f"{key} ran before what it needs")
        place = next(index for index, step in enumerate(block.steps) if step.id == key)
        for number, other in enumerate(block.steps):
            if not block.ancestors[place] >> number & 1:
                continue
            is_failed = other.id in run.steps and run.steps[other.id].state in FAILED_STEPS
            self._expect(
                not is_failed or other.continue_on_error,
                f"{key} began after {other.id}, which it depends on, had failed",
            )
        if parent is not None:
            switch = run.steps[parent.id]
            self._expect(switch.state is StepState.RUNNING and switch.case == case, f"{key} is not in the chosen case")
        self._expect(not run.cancel_requested, f"{key} began in a run that is being cancelled")
        self._expect((run.failing is None) == (key in self._main), f"{key} began in the wrong phase of the run")

    def _check_attempt(self, event: HistoryEvent, known: StepRun | None) -> None:
        spec = self._model.steps[event.step].spec
        if event.kind is not Kind.STEP_QUEUED or known is None:
            return
        self._expect(event.attempt == known.attempt + 1, f"attempt {event.attempt} of {event.step} is out of turn")
        is_once = isinstance(spec, ActivitySpec) and spec.effect is Effect.ONCE
        self._expect(not is_once, f"{event.step} has the effect `once` and was queued again after a lost attempt")

    def _keep_books(self, facts: Sequence[Fact], commands: Sequence[Command]) -> None:
        """Enter facts and commands.

        One call may start, stop and end the same thing, so the order is: what it opens, what was started, what it
        stops, what has ended.
        """
        for command in commands:
            if isinstance(command, Execute | SetTimer):
                self._open(command)
        for fact in facts:
            if isinstance(fact, AttemptStarted):
                self._expect(fact.command not in self._started, f"command {fact.command} was started twice")
                self._started.add(fact.command)
        for index, command in enumerate(commands):
            self._stop(command, is_last=index == len(commands) - 1)
        for fact in facts:
            self._close(fact)

    def _close(self, fact: Fact) -> None:
        match fact:
            case AttemptCompleted() | AttemptFailed() | AttemptLost() | AttemptCancelled():
                self._expect(fact.command in self._started, f"command {fact.command} ended without a start")
                self._expect(self.commands.pop(fact.command, None) is not None, "a result was accepted twice")
            case TimerFired(timer=seq):
                self._expect(self.timers.pop(seq, None) is not None, f"timer {seq} fired twice")
            case _:
                pass

    def _open(self, command: Execute | SetTimer) -> None:
        match command:
            case Execute(seq, step):
                event = self._event_of(seq)
                self._expect(event.kind in _EXECUTE_KINDS and event.step == step, f"{command} does not fit {event}")
                self._expect(seq not in self.commands and seq not in self._started, f"{command} came twice")
                self.commands[seq] = step
            case SetTimer(seq, at):
                event = self._event_of(seq)
                due = event.body.get("at", event.body.get("timeout_at"))
                self._expect(event.kind in _TIMER_KINDS and due == at, f"{command} does not fit {event}")
                self._expect(seq not in self.timers, f"{command} came twice")
                self.timers[seq] = at

    def _stop(self, command: Command, *, is_last: bool) -> None:
        match command:
            case Withdraw(seq):
                self._expect(seq not in self._started, f"{command}, which was started")
                self._expect(self.commands.pop(seq, None) is not None, f"{command}, which is not open")
            case CancelExecution(seq):
                self._expect(seq in self.commands and seq in self._started, f"{command}, which is not executed")
                self._asked.add(seq)
            case ClearTimer(seq):
                self._expect(self.timers.pop(seq, None) is not None, f"{command}, which is not open")
            case FinishRun(state):
                self._expect(is_last and not self._finished, "FinishRun must be the last command of all")
                self._expect(state is self._shadow.state, f"FinishRun says {state}")
                self._finished = True
            case _:
                pass

    def _event_of(self, seq: int) -> HistoryEvent:
        self._expect(0 < seq <= len(self.history), f"there is no event {seq}")
        return self.history[seq - 1]

    def _check_books(self) -> None:
        run = self._shadow
        self._expect(run.sequence == len(self.history), "the state has another sequence than the history")
        self._expect(run.commands == self.commands, f"open commands: engine {run.commands}, host {self.commands}")
        self._expect(run.timers.keys() == self.timers.keys(), f"open timers: engine {run.timers}, host {self.timers}")
        self._expect((run.state in TERMINAL_RUNS) == self._finished, "FinishRun and the state of the run differ")
        self._expect((run.state in TERMINAL_RUNS) == bool(run.ended_at), "ended_at is set in final states only")
        for seq, key in run.commands.items():
            is_stopping = run.cancel_requested or (run.failing is not None and key in self._main)
            self._expect(not is_stopping or seq in self._asked, f"command {seq} was not asked to stop")
        if self._finished:
            self._expect(not run.commands and not run.timers, "a run that has ended has something open")
        elif run.state is RunState.RUNNING:
            waits = any(step for step in run.timers.values())
            waits = waits or any(step.state is StepState.NEEDS_DECISION for step in run.steps.values())
            self._expect(bool(run.commands) or waits, "the run is open and waits for nothing")

    def _check_steps(self) -> None:
        for key, step in self._shadow.steps.items():
            is_over = step.state in TERMINAL_STEPS
            self._expect(is_over or not self._finished, f"the run has ended, and {key} is {step.state}")
            self._expect(is_over == bool(step.ended_at), f"{key} is {step.state}; ended_at is {step.ended_at}")
            self._expect(not is_over or not (step.command or step.timer), f"{key} has ended with something open")
            has_command = step.state is StepState.QUEUED or (step.state is StepState.RUNNING and step.attempt > 0)
            self._expect(has_command == bool(step.command), f"{key} is {step.state} with command {step.command}")
            has_timer = step.state in (StepState.RETRYING, StepState.WAITING)
            self._expect(has_timer == bool(step.timer), f"{key} is {step.state} with timer {step.timer}")
            self._expect(not step.timer or self.timers[step.timer] == step.wake_at, f"{key} wakes at another time")
            policy = self._model.steps[key].retry
            budget = 1 if policy is None else policy.max_attempts
            self._expect(step.attempt - step.lost <= budget, f"{key} has spent more than its attempts")
