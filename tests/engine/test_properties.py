"""What holds for every definition and every sequence of facts, legal or not."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy

from engine.strategies import facts_for, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskforged.engine.events import IllegalEventError
from taskforged.engine.machine import apply, replay
from taskforged.engine.run import Run, fold
from taskforged.engine.states import TERMINAL_RUNS, TERMINAL_STEPS
from taskforged.testing.invariants import Checker
from taskforged.testing.simulator import Simulator

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
thorough = settings(max_examples=150, deadline=None, suppress_health_check=SLOW)


def drive(model, data, *, calls=40):
    """Feed random facts; yields (before, facts, outcome or None when refused, now, checker)."""
    run, now, checker = Run(), 1_000_000, Checker(model, is_punctual=False)
    for _ in range(data.draw(st.integers(1, calls), label="calls")):
        now += data.draw(st.sampled_from([0, 1, 500_000, 61_000_000]))
        facts = [data.draw(facts_for(run))]
        if data.draw(st.integers(0, 9)) == 0:
            facts.append(data.draw(facts_for(run)))
        copied = deepcopy(run)
        try:
            outcome = apply(model, run, facts, now)
        except IllegalEventError:
            outcome = None
        assert run == copied, "apply has changed its argument"
        if outcome is not None:
            checker.commit(run, facts, outcome, now)
        yield run, facts, outcome, now, checker
        if outcome is not None:
            run = outcome.run


@thorough
@given(models(), st.data())
def test_invariants(model, data):
    """Needs, phases, open commands and timers, gapless numbers, final states: see `Checker`."""
    checker = None
    for _, _, _, _, checker in drive(model, data):  # noqa: B007
        pass
    assert checker is not None
    checker.end(apply)


@thorough
@given(models(), st.data())
def test_fold_and_replay(model, data):
    for before, _, outcome, _, checker in drive(model, data):
        after = before if outcome is None else outcome.run
        assert fold(checker.history) == after
    assert replay(model, checker.history) == checker.history


@thorough
@given(models(), st.data())
def test_same_facts_same_decisions(model, data):
    for before, facts, outcome, now, _ in drive(model, data):
        again = None
        with suppress(IllegalEventError):
            again = apply(model, before.clone(), facts, now)
        assert again == outcome


@thorough
@given(models(), st.data())
def test_facts_together_or_one_by_one(model, data):
    """How a host batches facts decides nothing."""
    together, run = [], Run()
    for before, facts, outcome, now, _ in drive(model, data):
        if outcome is None:
            continue
        run, history = before, []
        for fact in facts:
            single = apply(model, run, [fact], now)
            run = single.run
            history += single.history
        assert (run, history) == (outcome.run, outcome.history)
        together += history


@thorough
@given(models(), st.data())
def test_terminal_is_final(model, data):
    for before, facts, outcome, _, _ in drive(model, data):
        if before.state in TERMINAL_RUNS:
            assert outcome is None, f"{before.state} accepted {facts}"
        elif outcome is not None:
            for key, step in before.steps.items():
                assert step.state not in TERMINAL_STEPS or outcome.run.steps[key] == step


@thorough
@given(models(), st.integers(0, 2**32))
def test_patience_ends_every_run(model, seed):
    """Whatever fails: when every command is executed and every timer fires, the run ends."""
    assert Simulator(model, seed=seed).run().state in TERMINAL_RUNS
