"""Drives one run by hand, fact by fact, and checks every invariant on the way. For scenarios in tests."""

from __future__ import annotations

from typing import Any

from taskforged.engine.events import (
    AdmitRun,
    ApproveStep,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelRun,
    ChildEnded,
    Command,
    Fact,
    HistoryEvent,
    IllegalEventError,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
    TimerFired,
)
from taskforged.engine.machine import apply
from taskforged.engine.model import Json, WorkflowModel
from taskforged.engine.run import Run, StepRun
from taskforged.engine.states import Kind, RunState, StepState
from taskforged.testing.factory import create_run
from taskforged.testing.invariants import Checker

__all__ = ["Driver"]

_SECOND = 1_000_000
_STEPS_TO_REPLAY = 100
"""Beyond this a replay from the beginning after every call would be slow; `Driver.replay` does it once."""


class Driver:
    """A run, its history and its clock.

    Attributes:
        run: the state after the newest fact.
        commands: what the newest call asked the host to do.
        now: microseconds; advance it with `wait`.
    """

    def __init__(
        self, model: WorkflowModel, *, data: Json = None, event: Json = None, now: int = _SECOND, **others: Any
    ) -> None:
        self.run = Run(event=event)
        self.commands: list[Command] = []
        self.now = now
        self._model = model
        self._checker = Checker(model, event=event)
        self.take(create_run(data=data, **others))

    @classmethod
    def started(cls, model: WorkflowModel, *, data: Json = None, event: Json = None, **others: Any) -> Driver:
        """Answer a driver whose run has been admitted; `others` are fields of `CreateRun`."""
        driver = cls(model, data=data, event=event, **others)
        driver.take(AdmitRun())
        return driver

    # --- facts -------------------------------------------------------------------------------------------------------

    def take(self, *facts: Fact) -> None:
        """Give facts to the engine in one call, and check everything. A refusal is raised as it is."""
        before = self.run
        try:
            outcome = apply(self._model, before, facts, self.now)
        except IllegalEventError:
            self._checker.unchanged(before)
            raise
        self._checker.commit(before, facts, outcome, self.now)
        if len(outcome.run.steps) <= _STEPS_TO_REPLAY:
            self._checker.end(apply)
        self.run, self.commands = outcome.run, outcome.commands

    def refuses(self, *facts: Fact) -> bool:
        """Say whether the engine refuses these facts; nothing has changed then."""
        try:
            self.take(*facts)
        except IllegalEventError:
            return True
        return False

    def begin(self, step: str, *, epoch: int = 1) -> int:
        """Start the attempt that a step waits for, and answer its command."""
        seq = self.step(step).command
        self.take(AttemptStarted(seq, epoch))
        return seq

    def complete(self, step: str, output: Json = None) -> None:
        """Let an activity succeed; starts its attempt first where necessary."""
        self.take(AttemptCompleted(self._running(step), output))

    def fail(
        self,
        step: str,
        *,
        code: str = "http_503",
        retryable: bool = True,
        retry_after_s: float | None = None,
        is_unknown: bool = False,
    ) -> None:
        """Let an attempt fail; starts it first where necessary."""
        error = {"code": code, "message": f"{step} has failed"}
        self.take(AttemptFailed(self._running(step), error, retryable, retry_after_s, is_unknown))

    def lose(self, step: str) -> None:
        """Let an attempt be cut by a crash; starts it first where necessary."""
        self.take(AttemptLost(self._running(step), "the daemon stopped"))

    def stop(self, step: str) -> None:
        """Let the executor report that it has stopped, as it was asked to."""
        self.take(AttemptCancelled(self.step(step).command))

    def fire(self, step: str = "") -> None:
        """Let time pass until the timer of a step is due, or that of the run; fire it."""
        seq = next(seq for seq, key in self.run.timers.items() if key == step)
        self.now = max(self.now, self._checker.books.timers[seq])
        self.take(TimerFired(seq))

    def cancel(self) -> None:
        """Ask the run to stop."""
        self.take(CancelRun(reason="enough", by="tester"))

    def pause(self) -> None:
        """Ask that nothing new is started."""
        self.take(PauseRun(reason="lunch", by="tester"))

    def resume(self) -> None:
        """Ask the run to go on."""
        self.take(ResumeRun(by="tester"))

    def signal(self, name: str = "go", payload: Json = None, *, by: str = "tester") -> None:
        """Send a signal."""
        self.take(SignalRun(name, payload, by))

    def approve(self, step: str, payload: Json = None, *, by: str = "tester", comment: str = "") -> None:
        """Approve what a step asks for."""
        self.take(ApproveStep(step, by, payload, comment))

    def reject(self, step: str, *, by: str = "tester", comment: str = "") -> None:
        """Reject what a step asks for."""
        self.take(RejectStep(step, by, comment))

    def resolve(self, step: str, outcome: str, output: Json = None, *, comment: str = "") -> None:
        """Say what became of an attempt whose effect is unknown."""
        self.take(ResolveStep(step, outcome, "tester", output, comment))

    def end_child(self, step: str, state: str = "SUCCEEDED", output: Json = None, error: Json = None) -> None:
        """Let the sub-workflow of a step end, or say with an empty state that it could not be started."""
        self.take(ChildEnded(self.step(step).command, state, output, error))

    def replay(self) -> None:
        """Check that the whole history, fed to the engine again, gives the same."""
        self._checker.end(apply)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * _SECOND)

    def _running(self, step: str) -> int:
        known = self.step(step)
        return self.begin(step) if known.state is StepState.QUEUED else known.command

    # --- what one looks at -------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.run.state

    @property
    def states(self) -> dict[str, str]:
        """The states of all steps that were reached."""
        return {key: step.state.value for key, step in self.run.steps.items()}

    @property
    def history(self) -> list[HistoryEvent]:
        """All that was recorded."""
        return self._checker.history

    @property
    def kinds(self) -> list[str]:
        """The kinds of all entries, with the step where there is one."""
        return [f"{event.kind.value} {event.step}".strip() for event in self.history]

    def step(self, key: str) -> StepRun:
        """Answer a step that was reached."""
        return self.run.steps[key]

    def bodies(self, kind: Kind) -> list[Json]:
        """Answer the bodies of all entries of a kind."""
        return [event.body for event in self.history if event.kind is kind]
