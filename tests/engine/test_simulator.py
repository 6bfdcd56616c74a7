"""Thousands of runs under the simulated host, and proof that it would notice a broken engine."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from random import Random
from types import ModuleType

import pytest

from taskforged.engine import machine
from taskforged.engine import run as run_module
from taskforged.engine.states import RUN_TRANSITIONS, STEP_TRANSITIONS, Kind, RunState, StepState
from taskforged.testing.factory import activity, case, sleep, switch, transform, workflow
from taskforged.testing.generator import random_model
from taskforged.testing.simulator import Chaos, Report, SimulationError, Simulator

RUNS = int(os.environ.get("TASKFORGE_SIMULATED_RUNS", "4000"))
FIRST = int(os.environ.get("TASKFORGE_SIMULATION_SEED", "0"))


def simulate(seed: int, **others) -> Report:
    return Simulator(random_model(Random(seed)), seed=seed, **others).run()


@pytest.mark.parametrize("part", range(4))
def test_random_runs_keep_every_promise(part):
    """A failure prints its seed: TASKFORGE_SIMULATION_SEED=<seed> TASKFORGE_SIMULATED_RUNS=4 gives it again."""
    seen: Counter[str] = Counter()
    for seed in range(FIRST + part, FIRST + RUNS, 4):
        report = simulate(seed)
        seen[report.state] += 1
        seen["crashes"] += report.crashes
        seen["refused"] += report.refused
        seen["decisions"] += report.decisions
    if RUNS >= 1000:  # the mix must not dry up unnoticed
        for what in (RunState.SUCCEEDED, RunState.FAILED, RunState.DEAD, RunState.CANCELLED):
            assert seen[what] > RUNS / 4 / 100, seen
        assert min(seen["crashes"], seen["refused"], seen["decisions"]) > RUNS / 4 / 200, seen


def test_storms_of_crashes():
    chaos = Chaos(crash=0.25, stale=0.2, duplicate=0.5, retryable=0.4, cancel=0.4)
    assert sum(simulate(seed, chaos=chaos).crashes for seed in range(300)) > 1000


def test_fair_weather():
    quiet = Chaos(crash=0, cancel=0, retryable=0, permanent=0, hang=0, duplicate=0, stale=0, batch=0)
    model = workflow(
        activity("build"),
        transform("version", "1.2"),
        switch("route", case(True, activity("deploy"), sleep("rest", 60))),
    )
    report = Simulator(model, seed=1, chaos=quiet).run()
    assert report.state is RunState.SUCCEEDED
    assert (report.attempts, report.crashes, report.refused >= 3) == (2, 0, True)
    assert report.elapsed_s >= 60


def test_every_step_is_given_up_at_last():
    """A daemon that always crashes under a step gives it up after LOST_MAX crashes, budget or not."""
    chaos = Chaos(crash=0.45, cancel=0, retryable=0, permanent=0, hang=1, duplicate=0, stale=0)
    states = Counter(Simulator(workflow(activity("bomb")), seed=seed, chaos=chaos).run().state for seed in range(40))
    assert states[RunState.DEAD] > 0


def test_the_same_seed_gives_the_same_run():
    for seed in range(100):
        assert simulate(seed).fingerprint() == simulate(seed).fingerprint()
    assert len({simulate(seed).fingerprint() for seed in range(100)}) == 100


# --- would it notice? ------------------------------------------------------------------------------------------------


def mutant(old: str, new: str) -> ModuleType:
    """The machine with one piece of its source replaced."""
    source = inspect.getsource(machine)
    assert source.count(old) == 1, f"the mutation must fit once: {old!r}"
    module = ModuleType("mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), module.__dict__)
    return module


MUTANTS = {
    "forgets the timer of a retry": (
        "round(pause, 6)}, step.id)\n            self.commands.append(SetTimer(self.run.sequence, at))",
        "round(pause, 6)}, step.id)",
    ),
    "forgets to execute after a retry": ("        if retrying:\n", "        if False:\n"),
    "forgets to execute after a crash": (
        "self.run.steps[step.id].attempt + 1)\n            self.commands.append(Execute(self.run.sequence, step.id))",
        "self.run.steps[step.id].attempt + 1)",
    ),
    "executes `once` again": ("spec.effect is Effect.ONCE", "spec.effect is None"),
    "does not ask attempts to stop": ("self.commands.append(CancelExecution(step.command))", "pass"),
    "does not withdraw what waits": ("self.commands.append(Withdraw(step.command))", "pass"),
    "leaves timers behind": ("                    self.commands.append(ClearTimer(step.timer))\n", ""),
    "leaves the run's timer behind": (
        "self._record(_FINAL_KIND[state], body or {})\n        self.commands.extend(ClearTimer(seq) for seq in timers)",
        "self._record(_FINAL_KIND[state], body or {})",
    ),
    "ends while attempts run": (
        "if not self._attempt_running(self.model.main) and not self._attempt_running(self.model.on_failure):",
        "if True:",
    ),
    "handles failures while attempts run": ("elif not self._attempt_running(self.model.main):", "else:"),
    "ignores needs": ("if failed or not self._ready(step, block):", "if failed:"),
    "does not look up again": ("return failed, is_open, again and not failed", "return failed, is_open, False"),
    "starts steps after a failure": (
        "failed, is_open, again = self._failed_in(block), False, True",
        'failed, is_open, again = "", False, True',
    ),
    "accepts a stop nobody asked for": ("if not self._stopping(step):  #", "if False:  #"),
    "times out while it is cancelled": (
        "            if self.run.cancel_requested:\n                return",
        "            if False:\n                return",
    ),
    "retries for ever": ("elif failures >= policy.max_attempts:", "elif False:"),
    "allows one attempt too many": (
        "failures = known.attempt - known.lost",
        "failures = known.attempt - known.lost - 1",
    ),
    "decides by a changing dice": ("pause = delay_s(", 'pause = __import__("random").random() + delay_s('),
    "changes what it was given": ("_Machine(model, run.clone(), now)", "_Machine(model, run, now)"),
    "forgets who was touched": (
        "        self._record(Kind.RUN_FAILING, body)\n        self.touched.update(skipped)",
        "        self._record(Kind.RUN_FAILING, body)",
    ),
    "forgets to say that it is over": ("        self.commands.append(FinishRun(state))\n", ""),
}


def caught(engine=machine.apply, runs: int = 1500) -> SimulationError | None:
    for seed in range(runs):
        try:
            simulate(seed, engine=engine)
        except SimulationError as error:
            return error
    return None


def test_an_unchanged_copy_passes():
    assert caught(mutant('"""One call of `apply`."""', '"""A copy."""').apply, runs=300) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_notices_a_machine_that(name):
    error = caught(mutant(*MUTANTS[name]).apply)
    assert error is not None, f"nobody noticed an engine that {name}"
    assert f"seed {error.seed}: " in str(error)
    with pytest.raises(SimulationError) as again:
        simulate(error.seed, engine=mutant(*MUTANTS[name]).apply)
    assert again.value.seed == error.seed


def test_notices_a_final_state_that_can_be_left(monkeypatch):
    row = {Kind.STEP_COMPLETED: StepState.SUCCEEDED}
    monkeypatch.setitem(STEP_TRANSITIONS, StepState.SUCCEEDED, row)
    assert caught() is not None


def test_notices_a_run_that_can_be_cancelled_after_its_end(monkeypatch):
    row = {Kind.RUN_CANCEL_REQUESTED: RunState.RUNNING, Kind.RUN_CANCELLED: RunState.CANCELLED}
    monkeypatch.setitem(RUN_TRANSITIONS, RunState.SUCCEEDED, row)
    assert caught() is not None


def test_notices_a_fold_that_forgets(monkeypatch):
    monkeypatch.setitem(run_module._STEP_CHANGES, Kind.STEP_NEEDS_DECISION, run_module._nothing)
    assert caught() is not None
