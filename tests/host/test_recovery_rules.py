"""Every state has a rule for what a restart makes of it, and each rule is tried: a new state without one fails here."""

import asyncio
from collections import Counter

import pytest

from taskforged.engine.events import CancelRun, PauseRun, ResolveStep, ResumeRun, SignalRun
from taskforged.engine.model import ActivitySpec, Block, Effect, Jitter, RetryPolicy, Step, WaitSpec, WorkflowModel
from taskforged.engine.states import TERMINAL_RUNS, TERMINAL_STEPS, RunState, StepState
from taskforged.host.limits import NamespaceLimits
from taskforged.steps.base import Failed

from .test_runner import ONE, Constant, activity, make, until  # noqa: F401  the fixture

AGAIN = RetryPolicy(max_attempts=2, delay_s=0.3, max_delay_s=0.3, jitter=Jitter.NONE)
RETRIED = WorkflowModel("retried", Block((activity("a", retry=AGAIN), activity("b", after=(0,)))))
ASKING = WorkflowModel("asking", Block((Step("a", "wait", WaitSpec(signal="go")),)))
ONCE = WorkflowModel("once", Block((Step("a", "work", ActivitySpec("work", Constant({}), effect=Effect.ONCE)),)))
BROKEN = Failed("network", "no", retryable=True)
HOPELESS = Failed("http_status", "no", retryable=False)


async def at_work(host, model=ONE, count=1):
    """Start runs whose first step does not come back."""
    host.work.gate.clear()
    numbers = await host.run(model, count)
    await until(lambda: host.work.now == min(count, host.pool_size))
    return numbers


async def queued(host):
    return (await at_work(host, count=2))[1]


async def retrying(host):
    host.work.answers = [BROKEN]
    (no,) = await host.run(RETRIED)
    while (await host.state(no)).steps["a"].state is not StepState.RETRYING:
        await asyncio.sleep(0.002)
    return no


async def waiting(host):
    (no,) = await host.run(ASKING)
    return no


async def undecided(host):
    (no,) = await at_work(host, ONCE)
    await host.crash()
    return no


async def scheduled(host):
    (no,) = await host.run(ONE, run_at=host.clock.now() + 300_000)
    return no


async def pending(host):
    host.limits.set_namespace(1, NamespaceLimits(running_runs=1))
    return (await at_work(host, count=2))[1]


async def running(host):
    (no,) = await at_work(host)
    return no


async def paused(host):
    no = await running(host)
    await host.runner.deliver(no, PauseRun("to look", "me"))
    return no


async def opened(host, no):
    """What was at work comes back."""
    host.work.gate.set()


async def signalled(host, no):
    await host.runner.deliver(no, SignalRun("go", None))


async def decided(host, no):
    await host.runner.deliver(no, ResolveStep("a", "succeeded"))


async def resumed(host, no):
    host.work.gate.set()
    await host.runner.deliver(no, ResumeRun())


async def nothing(host, no):
    """It goes on by itself."""


RUN_RULES = {
    RunState.SCHEDULED: (scheduled, nothing, 1),
    RunState.PENDING: (pending, opened, 1),
    RunState.RUNNING: (running, opened, 2),
    RunState.PAUSED: (paused, resumed, 2),
}
STEP_RULES = {
    StepState.QUEUED: (queued, opened, 1),
    StepState.RUNNING: (running, opened, 2),
    StepState.RETRYING: (retrying, nothing, 2),
    StepState.WAITING: (waiting, signalled, 0),
    StepState.NEEDS_DECISION: (undecided, decided, 1),
}
"""How a run gets there, what lets it go on after the restart, and how often its step `a` is executed in all.

Terminal states have one rule for all: a restart changes nothing. NEW is never stored."""


def test_every_state_has_a_rule():
    assert set(RUN_RULES) | TERMINAL_RUNS | {RunState.NEW} == set(RunState)
    assert set(STEP_RULES) | TERMINAL_STEPS | {StepState.NEW} == set(StepState)
    assert not set(RUN_RULES) & TERMINAL_RUNS
    assert not set(STEP_RULES) & TERMINAL_STEPS


@pytest.mark.parametrize("state", [*RUN_RULES, *STEP_RULES])
async def test_a_restart_loses_no_run(make, state):  # noqa: F811
    arrive, go_on, executions = {**RUN_RULES, **STEP_RULES}[state]
    host = await make(pool_size=1)
    no = await arrive(host)
    before = await host.state(no)
    assert state in {before.state, *(step.state for step in before.steps.values())}
    await host.crash()
    after = await host.state(no)
    if state not in {RunState.RUNNING, StepState.RUNNING, RunState.PAUSED}:  # these are decided: what was cut is lost
        assert after.sequence == before.sequence or state in {RunState.PENDING, StepState.QUEUED}
    await go_on(host, no)
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    calls = Counter(key for key, _ in host.work.calls)
    assert calls[f"{run.run_id}/a"] == executions
    assert (await host.count("commands"), await host.count("timers")) in {(0, 0), (1, 0)}


async def failed(host):
    host.work.answers = [HOPELESS]
    return await host.run(RETRIED)


async def dead(host):
    host.work.answers = [BROKEN, BROKEN]
    return await host.run(RETRIED)


async def cancelled(host):
    no = await running(host)
    await host.runner.deliver(no, CancelRun("by the test"))
    return [no]


async def succeeded(host):
    return await host.run(ONE)


ENDS = {
    RunState.SUCCEEDED: (succeeded, {StepState.SUCCEEDED}),
    RunState.FAILED: (failed, {StepState.FAILED, StepState.SKIPPED}),
    RunState.DEAD: (dead, {StepState.DEAD, StepState.SKIPPED}),
    RunState.CANCELLED: (cancelled, {StepState.CANCELLED}),
}


def test_every_end_is_tried():
    assert set(ENDS) == TERMINAL_RUNS
    assert set().union(*(steps for _, steps in ENDS.values())) == TERMINAL_STEPS


@pytest.mark.parametrize("state", ENDS)
async def test_a_restart_changes_nothing_that_has_ended(make, state):  # noqa: F811
    arrive, steps = ENDS[state]
    host = await make()
    numbers = await arrive(host)
    (run,) = await host.ended(numbers)
    assert run.state is state
    assert {step.state for step in run.steps.values()} == steps
    calls = list(host.work.calls)
    host.work.gate.set()
    await host.crash()
    (again,) = await host.ended(numbers)
    assert (again.sequence, again.state, host.work.calls) == (run.sequence, state, calls)
    assert (await host.count("commands"), await host.count("timers")) == (0, 0)
