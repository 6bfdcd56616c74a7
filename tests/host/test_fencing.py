"""A result that comes late, or is written from a state of the past, changes nothing: the lock of the home is not asked here.

An attempt belongs to the boot epoch that claimed its command; the next boot decides about it. There is no time to live:
nothing takes work away because it takes long, or because the daemon stood still meanwhile.
"""

import asyncio
import random
import time
from collections import Counter

import pytest
from structlog.testing import capture_logs

from taskforged.control.stuck import StuckDetector
from taskforged.engine.model import Block, Jitter, RetryPolicy, SleepSpec, Step, WorkflowModel
from taskforged.engine.states import RunState
from taskforged.errors import ConflictError
from taskforged.host import runner as runner_module
from taskforged.steps.base import Failed, Succeeded

from .test_runner import ONE, THREE, Constant, Host, activity, make, until  # noqa: F401  the fixture

QUICK = RetryPolicy(max_attempts=5, delay_s=0.01, max_delay_s=0.01, jitter=Jitter.NONE)
RETRIED = WorkflowModel("retried", Block((activity("a", retry=QUICK), activity("b", after=(0,), retry=QUICK))))
NAPS = WorkflowModel("naps", Block((Step("n", "sleep", SleepSpec(duration=Constant(0.01))), activity("a", after=(0,)))))


async def dump(host):
    """Everything that is stored."""

    def read(connection):
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}

    return await host.store.read(read)


async def kinds_of(host, no):
    rows = await host.store.read(
        lambda c: c.execute("SELECT kind, step FROM history WHERE run_no = ? ORDER BY sequence", (no,)).fetchall()
    )
    return Counter(rows)


async def take_over(first, hosts):
    """Start a second host on the same file, as if the first were dead."""
    first.runner.dispatcher.close()
    second = Host(first.path, first.pool_size)
    second.epoch, second.models = first.epoch, first.models
    hosts.append(second)
    return await second.start()


@pytest.fixture
async def seconds():
    """Further hosts, which are stopped at the end."""
    made = []
    yield made
    for one in made:
        await one.stop()


@pytest.mark.parametrize(
    "late", [Succeeded({"late": True}), Failed("network", "no", retryable=True), Failed("x", "no", retryable=False)]
)
async def test_a_late_result_of_another_boot_is_fenced(make, seconds, monkeypatch, late):  # noqa: F811
    monkeypatch.setattr(runner_module, "RETRY_S", 0.01)
    first = await make()
    first.work.gate.clear()
    (no,) = await first.run(RETRIED)
    await until(lambda: first.work.now == 1)
    second = await take_over(first, seconds)
    assert second.lost == 1
    (run,) = await second.ended([no])
    before = await dump(second)
    first.work.answers = [late]
    with capture_logs() as logs:
        first.work.gate.set()
        await until(lambda: any(line["event"] == "attempt.fenced" for line in logs))
    assert await dump(second) == before
    assert run.state is RunState.SUCCEEDED
    assert (await kinds_of(second, no))["step.completed", "a"] == 1
    assert {key for key, _ in first.work.calls + second.work.calls if key.endswith("/a")} == {f"{run.run_id}/a"}


@pytest.mark.parametrize("seed", range(8))
async def test_late_results_at_any_moment_record_one_completion(make, seconds, monkeypatch, seed):  # noqa: F811
    monkeypatch.setattr(runner_module, "RETRY_S", 0.01)
    chance = random.Random(seed)
    first = await make(pool_size=chance.choice([2, 6, 64]))
    first.work.gate.clear()
    model = chance.choice([ONE, THREE, RETRIED])
    numbers = await first.run(model, chance.randint(1, 12))
    await until(lambda: first.work.now >= min(len(numbers), first.pool_size))
    first.work.answers = [
        chance.choice([Succeeded({"late": True}), Failed("network", "no", retryable=True)])
        for _ in range(first.work.now)
    ]
    second = await take_over(first, seconds)
    late = asyncio.get_running_loop().call_later(chance.uniform(0.0, 0.1), first.work.gate.set)
    runs = await second.ended(numbers)
    late.cancel()
    first.work.gate.set()
    await until(lambda: not first.work.now)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    for no in numbers:
        kinds = await kinds_of(second, no)
        assert kinds["run.succeeded", ""] == 1
        for step in model.steps:
            assert kinds["step.completed", step] == 1, (step, kinds)
            assert (
                kinds["step.started", step] == 1 + kinds["step.attempt_lost", step] + kinds["step.attempt_failed", step]
            )
    assert (await second.count("commands"), await second.count("timers")) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
async def test_a_write_that_was_computed_from_the_past_changes_nothing(make, seed):  # noqa: F811
    """Every write that is made, made again at any later time: refused, and not one row is different."""
    chance = random.Random(seed)
    host = await make(pool_size=4)
    real, made, checks = host.store.journal.submit, [], []

    def submit(write):
        if write.changes:
            made.append(write)
            if len(made) % 3 == 0:
                checks.append(real(chance.choice(made[:-1])))
        return real(write)

    host.store.journal.submit = submit
    for model in (ONE, THREE, RETRIED, NAPS):
        host.work.answers = [Failed("network", "no", retryable=True)] if model is RETRIED else []
        await host.ended(await host.run(model, 3))
    assert len(checks) > 5
    assert all(isinstance(error, ConflictError) for error in await asyncio.gather(*checks, return_exceptions=True))
    before = await dump(host)
    for write in made:
        with pytest.raises(ConflictError):
            await real(write)
    assert await dump(host) == before


async def test_a_loop_that_stands_still_loses_no_work(make):  # noqa: F811
    host = await make()
    stuck = StuckDetector(store=host.store, clock=host.clock, runner=host.runner, pause_s=0.05)
    await stuck.start()
    try:
        host.work.gate.clear()
        numbers = await host.run(THREE, 5)
        await until(lambda: host.work.now == 5)
        for _ in range(4):
            time.sleep(0.25)  # noqa: ASYNC251  the loop stands still for several scans
            await asyncio.sleep(0.06)
        host.work.gate.set()
        runs = await host.ended(numbers)
        assert {run.state for run in runs} == {RunState.SUCCEEDED}
        assert Counter(attempt for _, attempt in host.work.calls) == {1: 15}
        assert not stuck.found
    finally:
        await stuck.stop()
