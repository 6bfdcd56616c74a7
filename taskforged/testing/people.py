"""Those who act on a run from outside, sensibly or not."""

from __future__ import annotations

from random import Random

from taskforged.engine.events import (
    AdmitRun,
    ApproveStep,
    CancelRun,
    CreateRun,
    Fact,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
)
from taskforged.engine.run import Run
from taskforged.engine.states import TERMINAL_RUNS, RunState, StepState
from taskforged.testing.generator import SIGNALS

__all__ = ["People"]

_OUTCOMES = ("succeeded", "failed", "retry")


class People:
    """Draws what somebody does to a run."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def awaited(self, run: Run) -> list[Fact]:
        """Answer what a run waits for that only a person can give; nothing when it waits for none."""
        if run.state is RunState.PAUSED:
            return [ResumeRun("", "me")]
        if run.state is not RunState.RUNNING:
            return []
        found: list[Fact] = []
        for key, step in run.steps.items():
            if step.state is StepState.NEEDS_DECISION:
                found.append(ResolveStep(key, self._rng.choice(_OUTCOMES), "me", {"value": "seen"}))
            elif step.state is StepState.WAITING and "approval" in (step.input or {}):
                found.append(self._rng.choice((ApproveStep(key, "me"), RejectStep(key, "me", "no"))))
            elif step.state is StepState.WAITING and "signal" in (step.input or {}):
                found.append(SignalRun(step.input["signal"], {"value": self._rng.randint(0, 9)}, "me"))
        return found

    def anything(self, run: Run) -> list[Fact]:
        """Answer what somebody might try, about any step."""
        key = self._rng.choice([*run.steps, "nowhere"])
        return [
            PauseRun("", "me"),
            ResumeRun("", "me"),
            SignalRun(self._rng.choice(SIGNALS), {"value": self._rng.randint(0, 9)}),
            ApproveStep(key, "me", {"value": 1}),
            RejectStep(key, "me"),
            ResolveStep(key, self._rng.choice((*_OUTCOMES, "perhaps")), "me"),
        ]

    def makes_sense(self, run: Run, fact: Fact) -> bool:
        """Say whether the engine has to accept this; of facts that no person gives: no."""
        step = run.steps.get(getattr(fact, "key", ""))
        match fact:
            case CreateRun():
                return run.state is RunState.NEW
            case AdmitRun():
                return run.state is RunState.PENDING
            case CancelRun() | SignalRun():
                return run.state is not RunState.NEW and run.state not in TERMINAL_RUNS
            case PauseRun():
                return run.state is RunState.RUNNING and not run.cancel_requested
            case ResumeRun():
                return run.state is RunState.PAUSED
            case ResolveStep():
                decides = step is not None and step.state is StepState.NEEDS_DECISION
                return decides and fact.outcome in _OUTCOMES
            case ApproveStep() | RejectStep():
                waits = step is not None and step.state is StepState.WAITING
                return waits and step is not None and "approval" in (step.input or {})
        return False
