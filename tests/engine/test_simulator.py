"""Thousands of runs under the simulated host, and proof that it would notice a broken engine."""

from __future__ import annotations

import ast
import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from taskforged.engine import advance, machine
from taskforged.engine import run as run_module
from taskforged.engine.states import RUN_TRANSITIONS, STEP_TRANSITIONS, Kind, RunState, StepState
from taskforged.testing.factory import activity, case, sleep, switch, transform, workflow
from taskforged.testing.generator import random_model
from taskforged.testing.simulator import Chaos, Report, SimulationError, Simulator

RUNS = int(os.environ.get("TASKFORGE_SIMULATED_RUNS", "2000"))
FIRST = int(os.environ.get("TASKFORGE_SIMULATION_SEED", "0"))


def simulate(seed: int, **others) -> Report:
    return Simulator(random_model(Random(seed)), seed=seed, **others).run()


@pytest.mark.parametrize("part", range(4))
def test_random_runs_keep_every_promise(part, monkeypatch):
    """A failure prints its seed: `make simulate ENGINE=<seed>` gives it again."""
    seen: Counter[str] = Counter()
    if part % 2:  # small portions, so that fan-outs yield; as `make simulate` has it
        monkeypatch.setattr(machine, "PORTION", 2)
    for seed in range(FIRST + part, FIRST + RUNS, 4):
        report = simulate(seed)
        seen[report.state] += 1
        seen["crashes"] += report.crashes
        seen["refused"] += report.refused
        seen["decisions"] += report.decisions
        seen["pauses"] += report.pauses
        seen.update({event.kind.value for event in report.history})
        seen["undone"] += any(":" in event.step and event.kind is Kind.STEP_STARTED for event in report.history)
        seen["pinned"] += any("pinned" in event.body and event.step for event in report.history)
    if RUNS >= 1000:  # the mix must not dry up unnoticed
        for what in (RunState.SUCCEEDED, RunState.FAILED, RunState.DEAD, RunState.CANCELLED, "undone", "pinned"):
            assert seen[what] > RUNS / 4 / 100, seen
        assert min(seen["crashes"], seen["refused"], seen["decisions"], seen["pauses"]) > RUNS / 4 / 200, seen
        rare = {Kind.STEP_YIELDED.value: part % 2 * 2}
        assert all(seen[kind.value] >= rare.get(kind.value, 2) for kind in Kind), seen


def test_storms_of_crashes():
    chaos = Chaos(crash=0.25, stale=0.2, duplicate=0.5, retryable=0.4, cancel=0.4)
    assert sum(simulate(seed, chaos=chaos).crashes for seed in range(100)) > 330


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
    once = [simulate(seed).fingerprint() for seed in range(40)]
    assert once == [simulate(seed).fingerprint() for seed in range(40)]
    assert len(set(once)) == 40


# --- would it notice? ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One piece of one module of the engine, replaced; `old` must be there once."""

    module: ModuleType
    old: str
    new: str
    seeds: int = 1500
    portion: int = machine.PORTION


def enclosing(tree: ast.Module, line: int) -> tuple[str, ast.FunctionDef]:
    """The class (or nothing) and the function that stand around a line."""
    owners = [("", tree), *((node.name, node) for node in tree.body if isinstance(node, ast.ClassDef))]
    for owner, parent in owners:
        for node in parent.body:
            if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno:
                return owner, node
    raise AssertionError(f"line {line} is in no function")


def install(monkeypatch, mutant: Mutant) -> None:
    """Replace the one function that the mutation is in, wherever the engine refers to it."""
    source = inspect.getsource(mutant.module)
    assert source.count(mutant.old) == 1, f"the mutation must fit once: {mutant.old!r}"
    place = source.index(mutant.old)
    changed = source.replace(mutant.old, mutant.new)
    owner, function = enclosing(ast.parse(changed), source.count("\n", 0, place) + mutant.old.count("\n", 0, 1) + 1)
    space = dict(vars(mutant.module))
    exec(
        compile(ast.Module([ast.parse("from __future__ import annotations").body[0], function], []), "mutant", "exec"),
        space,
    )
    new = space[function.name]
    holder = getattr(mutant.module, owner) if owner else mutant.module
    old = getattr(holder, function.name)
    for module in (advance, machine, run_module):
        for name, value in list(vars(module).items()):
            if value is old:
                monkeypatch.setattr(module, name, new)
            elif isinstance(value, dict) and name.startswith("_") and old in value.values():
                for key in [key for key, one in value.items() if one is old]:
                    monkeypatch.setitem(value, key, new)
    if owner:
        monkeypatch.setattr(holder, function.name, new)
    monkeypatch.setattr(machine, "PORTION", mutant.portion)


MUTANTS = {
    # How facts share a portion, and outputs of groups that fail, is in `test_found`: the simulator needs too long.
    "forgets the timer of a retry": Mutant(
        machine,
        '            self.record(Kind.STEP_RETRYING, {"at": at, "delay_s": round(pause, 6)}, key)\n            self.commands.append(SetTimer(self.run.sequence, at))',
        '            self.record(Kind.STEP_RETRYING, {"at": at, "delay_s": round(pause, 6)}, key)',
    ),
    "forgets to execute after a retry": Mutant(
        machine,
        "        if retrying:\n            self.execute(key)",
        "        if False:\n            self.execute(key)",
    ),
    "forgets to execute after a crash": Mutant(machine, "attempt + 1)\n        self.execute(key)", "attempt + 1)"),
    "executes `once` again after a crash": Mutant(
        machine, "        elif _is_once(self.step_of(key)):", "        elif False:"
    ),
    "accepts a stop nobody asked for": Mutant(machine, "if not self.stopping(key):  #", "if False:  #"),
    "times out while it is cancelled": Mutant(
        machine, "elif is_running and not run.cancel_requested:  #", "elif is_running:  #"
    ),
    "retries for ever": Mutant(machine, "elif failures >= policy.max_attempts:", "elif False:"),
    "allows one attempt too many": Mutant(
        machine, "failures = known.attempt - known.lost  #", "failures = known.attempt - known.lost - 1  #"
    ),
    "decides by a changing dice": Mutant(
        machine, "pause = delay_s(policy", 'pause = __import__("random").random() + delay_s(policy'
    ),
    "changes what it was given": Mutant(machine, "_Machine(model, run.clone(), now)", "_Machine(model, run, now)"),
    "starts attempts in a pause": Mutant(
        machine, "if self.run.state is RunState.PAUSED:\n            raise", "if False:\n            raise"
    ),
    "leaves the queue alone in a pause": Mutant(
        machine, "self.commands.extend(Withdraw(seq) for seq in queued)", "pass"
    ),
    "does not ask again after a pause": Mutant(
        machine, "self.commands.extend(Execute(seq, key) for seq, key in queued)", "pass"
    ),
    "lets the timeout run on in a pause": Mutant(
        machine,
        'body["timeout_left"] = max(run.timeout_at - self.now, 1)',
        'body["timeout_left"] = max(run.timeout_at - run.started_at, 1)',
    ),
    "leaves the timeout's timer in a pause": Mutant(
        machine,
        "        self.record(Kind.RUN_PAUSED, body)\n        self.commands.extend(ClearTimer(seq) for seq in own)",
        "        self.record(Kind.RUN_PAUSED, body)",
    ),
    "forgets the timeout after a pause": Mutant(
        machine, "            self.commands.append(SetTimer(run.sequence, self.now + left))", "            pass"
    ),
    "forgets items after a pause": Mutant(machine, "        self.everything = True", "        pass", seeds=6000),
    "pauses while it is cancelled": Mutant(
        machine,
        '        if run.cancel_requested:\n            raise IllegalEventError("the run is being cancelled")',
        '        if False:\n            raise IllegalEventError("the run is being cancelled")',
    ),
    "withdraws what a pause has withdrawn": Mutant(
        machine, "self.stop_steps(is_parked=is_parked)", "self.stop_steps()"
    ),
    "stops on_cancel by a second cancel": Mutant(
        machine, "if not self.run.cancelling:  # else the steps", "if True:  # else the steps", seeds=6000
    ),
    "lets the grace pass": Mutant(
        machine, "            self.stop_steps()  # the grace", "            pass  # the grace"
    ),
    "gives a signal to the last that waits": Mutant(
        machine,
        "for key, step in self.run.steps.items():\n            if step.state is StepState.WAITING and",
        "for key, step in reversed(self.run.steps.items()):\n            if step.state is StepState.WAITING and",
        seeds=6000,
    ),
    "keeps a signal that is waited for": Mutant(
        machine, "                self.take_signal(key, fact.signal)", "                pass"
    ),
    "does not look at the item that was signalled": Mutant(
        machine, "                self.mark(key)\n                return", "                return", seeds=6000
    ),
    "does not look at the item that was answered": Mutant(
        machine,
        "        self.record(FACT_KINDS[type(fact)], fact_body(fact), key)\n        self.mark(key)\n        if known.timer:",
        "        self.record(FACT_KINDS[type(fact)], fact_body(fact), key)\n        if known.timer:",
        seeds=6000,
    ),
    "leaves the timer of an approval": Mutant(
        machine,
        "        if known.timer:\n            self.commands.append(ClearTimer(known.timer))\n        if isinstance(fact, ApproveStep):",
        "        if isinstance(fact, ApproveStep):",
    ),
    "does not look at the item whose timer fired": Mutant(
        machine,
        "        self.record(Kind.TIMER_FIRED, fact_body(fact), key, known.attempt + retrying)\n        self.mark(key)",
        "        self.record(Kind.TIMER_FIRED, fact_body(fact), key, known.attempt + retrying)",
    ),
    "counts a resolved step as succeeded always": Mutant(
        machine, '            case "failed":', '            case "perhaps":'
    ),
    "does not ask attempts to stop": Mutant(advance, "self.commands.append(CancelExecution(step.command))", "pass"),
    "does not cancel sub-workflows": Mutant(advance, "self.commands.append(CancelChild(step.command))", "pass"),
    "does not withdraw what waits": Mutant(advance, "self.commands.append(Withdraw(step.command))", "pass"),
    "leaves timers behind": Mutant(
        advance,
        "                    if step.timer:\n                        self.commands.append(ClearTimer(step.timer))",
        "                    pass",
    ),
    "leaves the run's timer behind": Mutant(
        advance,
        "        self.record(_FINAL_KIND[state], body or {})\n        self.commands.extend(ClearTimer(seq) for seq in timers)",
        "        self.record(_FINAL_KIND[state], body or {})",
    ),
    "leaves open decisions behind": Mutant(
        advance,
        "                case StepState.NEEDS_DECISION:\n                    self.record(Kind.STEP_CANCELLED, {}, key)",
        "                case StepState.NEEDS_DECISION:\n                    pass",
    ),
    "ends while attempts run": Mutant(
        advance,
        "        if self._at_work():\n            return\n        if not run.started_at",
        "        if not run.started_at",
    ),
    "handles failures while attempts run": Mutant(advance, '        elif not self._at_work("main"):', "        else:"),
    "does not undo": Mutant(advance, "if self.model.compensates and not self._compensated():", "if False:"),
    "undoes in the order of the document": Mutant(
        advance, "            done.sort(key=lambda key: run.steps[key].ended_by)\n", ""
    ),
    "undoes in the order of completion": Mutant(advance, '{"steps": done[::-1]}', '{"steps": done}'),
    "undoes everything at once": Mutant(
        advance,
        "            if known.state not in TERMINAL_STEPS:\n                return False  #",
        "            if False:\n                return False  #",
    ),
    "undoes what failed": Mutant(
        advance,
        "if known.state is not StepState.SUCCEEDED or self.step_of(key).compensate is None:",
        "if known.state not in TERMINAL_STEPS or self.step_of(key).compensate is None:",
    ),
    "undoes what handles the failure": Mutant(
        advance, 'return self.model.phases[definition_id(key)] == "main"', "return True"
    ),
    "leaves on_cancel out": Mutant(advance, "if not run.started_at or not self.model.on_cancel.steps:", "if True:"),
    "executes on_cancel of what never started": Mutant(
        advance, "if not run.started_at or not self.model.on_cancel.steps:", "if not self.model.on_cancel.steps:"
    ),
    "forgets the timer of the grace": Mutant(
        advance,
        "        self.commands.append(SetTimer(run.sequence, at))\n        self._advance_cancelled()",
        "        self._advance_cancelled()",
    ),
    "ends when the grace does, whatever runs": Mutant(
        advance,
        "                if not self._at_work():\n                    self._finish(RunState.CANCELLED)",
        "                self._finish(RunState.CANCELLED)",
    ),
    "ignores needs": Mutant(advance, "if not self._ready(step, block, prefix):", "if False:"),
    "does not look up again": Mutant(advance, "again = again or (blocked and was_open)", "again = False"),
    "starts steps after a failure": Mutant(advance, "            if has_failed or lacks:", "            if lacks:"),
    "starts steps after a skipped need": Mutant(
        advance, "            if has_failed or lacks:", "            if has_failed:"
    ),
    "skips after any skipped step": Mutant(advance, "lacks = step.needs and any(", "lacks = any("),
    "says success() after a skipped need": Mutant(
        advance, '"success__": not has_failed and not lacks', '"success__": not has_failed'
    ),
    "sees only failures right before": Mutant(
        advance,
        "has_failed = bool(failed & block.ancestors[index])",
        "has_failed = bool(failed & sum(1 << one for one in step.after))",
    ),
    "leaves out what asks for the status": Mutant(
        advance, "if failed & block.ancestors[index] and not block.asks_status:", "if failed & block.ancestors[index]:"
    ),
    "fails for what may fail": Mutant(
        advance,
        "            if known.state in FAILED_STEPS and not step.continue_on_error:\n                failed |= 1 << index\n        return failed, is_open, again",
        "            if known.state in FAILED_STEPS:\n                failed |= 1 << index\n        return failed, is_open, again",
    ),
    "forgets who was touched": Mutant(
        advance,
        "        self.record(Kind.RUN_FAILING, body)\n        self.touched.update(skipped)",
        "        self.record(Kind.RUN_FAILING, body)",
    ),
    "forgets to say that it is over": Mutant(
        advance, "        self.commands.append(FinishRun(state))\n", "        pass\n"
    ),
    "executes what is pinned": Mutant(
        advance,
        "if key in self.run.pinned and not isinstance(step.spec, (SwitchSpec, GroupSpec, FanOutSpec)):",
        "if False:",
    ),
    "starts one item too many": Mutant(advance, "fan.open >= spec.max_parallel", "fan.open > spec.max_parallel"),
    "goes on after too many failed items": Mutant(
        advance,
        "fan.open >= spec.max_parallel or fan.failed > failures_max:\n                break",
        "fan.open >= spec.max_parallel:\n                break",
    ),
    "allows one failed item too many": Mutant(
        advance, "if failures <= spec.max_failures:", "if failures <= spec.max_failures + 1:"
    ),
    "stops items where failures may be": Mutant(
        advance,
        "failures_max = count if self.step_of(key).continue_on_error else spec.max_failures",
        "failures_max = spec.max_failures",
    ),
    "never yields": Mutant(advance, "            if not self._portion:\n", "            if False:\n", portion=2),
    "forgets the timer of a yield": Mutant(
        advance,
        "            self.commands.append(SetTimer(self.run.sequence, self.now))",
        "            pass",
        portion=2,
    ),
    "leaves the timer of a yield": Mutant(
        advance,
        "        if known.timer:\n            self.commands.append(ClearTimer(known.timer))\n        if failures",
        "        if failures",
        seeds=6000,
        portion=2,
    ),
    "says FAILED of dead items": Mutant(
        advance,
        'Kind.STEP_DEAD if dead else Kind.STEP_FAILED, {"error": error, "items": count}',
        'Kind.STEP_FAILED, {"error": error, "items": count}',
    ),
    "does not take a signal that is there": Mutant(
        advance, "if spec.signal and self.run.signals.get(spec.signal):", "if False:"
    ),
    "leaves the timer of a signalled wait": Mutant(
        advance,
        "        if known is not None and known.timer:\n            self.commands.append(ClearTimer(known.timer))\n        output",
        "        output",
    ),
    "forgets the timer of a wait": Mutant(
        advance,
        '        if spec.timeout_s is not None:\n            self.commands.append(SetTimer(self.run.sequence, body["at"]))',
        "        pass",
    ),
    "does not start sub-workflows": Mutant(
        advance, "self.commands.append(StartChild(run.sequence, key, child, spec.workflow, version, value))", "pass"
    ),
    "does not publish": Mutant(advance, "self.commands.append(Publish(event_id, name, data, key))", "pass"),
    "publishes twice": Mutant(
        advance,
        "self.commands.append(Publish(event_id, name, data, key))",
        "self.commands += [Publish(event_id, name, data, key)] * 2",
    ),
    "asks for attempts in a pause": Mutant(
        advance,
        "if self.run.state is not RunState.PAUSED:\n            self.commands.append(Execute",
        "if True:\n            self.commands.append(Execute",
    ),
    "forgets what is inside a skipped switch": Mutant(
        advance,
        "        for inner in _inside(step, key):\n            self.record(Kind.STEP_SKIPPED, {}, inner)",
        "        pass",
    ),
    "forgets the other cases": Mutant(
        advance,
        '        if skipped:\n            body["skipped"] = skipped\n        self.record(Kind.STEP_BRANCHED',
        "        self.record(Kind.STEP_BRANCHED",
    ),
    "counts items wrongly": Mutant(run_module, "fan.open + is_new - is_over", "fan.open + is_new"),
    "does not count failed items": Mutant(
        run_module, "failed = fan.failed + (is_over and after in FAILED_STEPS)", "failed = fan.failed"
    ),
    "keeps a signal that was taken": Mutant(
        run_module, '            _take_signal(run, body["signal"])', "            pass"
    ),
    "keeps the command of a parked step": Mutant(
        run_module,
        "    run.commands.pop(step.command, None)  # it must never be executed again",
        "    pass  # it must never be executed again",
    ),
    "keeps the command of an ended sub-workflow": Mutant(
        run_module,
        "def _child_ended(run: Run, step: StepRun, event: HistoryEvent) -> None:\n    run.commands.pop(step.command, None)\n    step.command = 0",
        "def _child_ended(run: Run, step: StepRun, event: HistoryEvent) -> None:\n    step.command = 0",
    ),
    "keeps the run's timer in a pause": Mutant(
        run_module,
        '    run.pause_reason = event.body.get("reason", "")\n    _drop_own_timers(run)',
        '    run.pause_reason = event.body.get("reason", "")',
    ),
    "gathers outputs in another order": Mutant(
        run_module, 'for index in range(body["items"])]', 'for index in reversed(range(body["items"]))]'
    ),
    "forgets an open fan-out": Mutant(
        run_module, "    run.fans[event.step] = Fan()", "    run.fans.setdefault(event.step, Fan(next=1))"
    ),
}


SEEDS = Path(__file__).with_name("mutant_seeds.json")
"""The seed that notices each mutant: tried first, which saves CI minutes. When the generator or the simulator changes,
others will; the search finds them, and `TASKFORGE_RECORD_SEEDS=1` writes them down (one process, in any order)."""


def caught(name: str, runs: int = 1500) -> SimulationError | None:
    known: dict[str, int] = json.loads(SEEDS.read_text())
    is_recording = bool(os.environ.get("TASKFORGE_RECORD_SEEDS"))
    error = _caught(([] if is_recording or name not in known else [known[name]]), range(runs))
    if is_recording and error is not None:
        SEEDS.write_text(json.dumps({**known, name: error.seed}, indent=0, sort_keys=True) + "\n")
    return error


def _caught(*seeds: Iterable[int]) -> SimulationError | None:
    for seed in chain(*seeds):
        try:
            simulate(seed, engine=machine.apply)
        except SimulationError as error:
            return error
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_notices_an_engine_that(name, monkeypatch):
    install(monkeypatch, MUTANTS[name])
    error = caught(name, MUTANTS[name].seeds)
    assert error is not None, f"nobody noticed an engine that {name}"
    assert f"seed {error.seed}: " in str(error)
    with pytest.raises(SimulationError) as again:
        simulate(error.seed, engine=machine.apply)
    assert again.value.seed == error.seed


def test_notices_a_final_state_that_can_be_left(monkeypatch):
    row = {Kind.STEP_COMPLETED: StepState.SUCCEEDED}
    monkeypatch.setitem(STEP_TRANSITIONS, StepState.SUCCEEDED, row)
    assert caught("final state") is not None


def test_notices_a_run_that_can_be_cancelled_after_its_end(monkeypatch):
    row = {Kind.RUN_CANCEL_REQUESTED: RunState.RUNNING, Kind.RUN_CANCELLED: RunState.CANCELLED}
    monkeypatch.setitem(RUN_TRANSITIONS, RunState.SUCCEEDED, row)
    assert caught("cancelled after its end") is not None


def test_notices_a_fold_that_forgets(monkeypatch):
    monkeypatch.setitem(run_module._STEP_CHANGES, Kind.STEP_NEEDS_DECISION, run_module._nothing)
    assert caught("fold") is not None
