"""Random definitions and random facts, legal and illegal, for property tests."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from taskforged.engine.events import (
    AdmitRun,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelRun,
    ChildEnded,
    Fact,
    PauseRun,
    TimerFired,
)
from taskforged.engine.run import Run
from taskforged.engine.states import RunState, StepState
from taskforged.testing.factory import create_run
from taskforged.testing.generator import random_model
from taskforged.testing.people import People

__all__ = ["facts_for", "models"]

BUSY = {"code": "http_503", "message": "busy"}
BOOM = {"code": "boom", "message": "b", "details": {"x": 1}}


def models() -> st.SearchStrategy:
    """Definitions: nested switches, activities with policies, sleeps, failures, conditions, graphs, on_failure.

    A seed, not `st.randoms`: that costs 50 ms for each definition, and shrinks no better in practice.
    """
    return st.integers(0, 2**32).map(lambda seed: random_model(Random(seed)))


def reports(seq: int) -> list[Fact]:
    return [
        AttemptCompleted(seq, {"value": 1}),
        AttemptCompleted(seq, False),
        AttemptFailed(seq, BUSY, retryable=True),
        AttemptFailed(seq, BUSY, retryable=True, retry_after_s=2.5),
        AttemptFailed(seq, BOOM, retryable=False),
        AttemptFailed(seq, BUSY, retryable=True, is_unknown=True),
        AttemptLost(seq, "crash"),
        AttemptCancelled(seq),
    ]


def plausible(run: Run) -> list[Fact]:
    if run.state is RunState.NEW:
        return [create_run(pins={"child": 7}), create_run(run_at=2_000_000)]
    if run.state is RunState.PENDING:
        return [AdmitRun()]
    found: list[Fact] = [TimerFired(seq) for seq in run.timers]
    for seq, key in run.commands.items():
        match run.steps[key].state:
            case StepState.QUEUED:
                found.append(AttemptStarted(seq, 1))
            case StepState.WAITING:
                found += [ChildEnded(seq, "SUCCEEDED", 1), ChildEnded(seq, "FAILED", None, BOOM), ChildEnded(seq, "")]
            case _:
                found += reports(seq)
    return found + People(Random(run.sequence)).awaited(run)


def facts_for(run: Run) -> st.SearchStrategy:
    """Facts about a run: mostly plausible ones, sometimes about numbers that mean nothing, or nothing any more."""
    return st.tuples(st.integers(0, 7), st.integers(0, run.sequence + 2), st.integers(0, 999)).map(
        lambda drawn: _pick(run, *drawn)
    )


def _pick(run: Run, oddity: int, number: int, index: int) -> Fact:
    found = [] if oddity == 7 else plausible(run)
    if not found:
        found = [*reports(number), AttemptStarted(number, 2), TimerFired(number), CancelRun(), AdmitRun(), create_run()]
        found += [ChildEnded(number, "DEAD"), PauseRun(), *People(Random(number)).anything(run)]
    return found[index % len(found)]
