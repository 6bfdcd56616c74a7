"""The embedded host on a real store, with executors that the test holds in its hand."""

import asyncio
from collections import Counter

import pytest

from taskforged.clock import Clock, new_id
from taskforged.engine.events import CancelRun, CreateRun
from taskforged.engine.model import ActivitySpec, Block, RetryPolicy, SleepSpec, Step, TransformSpec, WorkflowModel
from taskforged.engine.states import RunState
from taskforged.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from taskforged.host import dispatcher as dispatcher_module
from taskforged.host import runner as runner_module
from taskforged.host.feed import Feed
from taskforged.host.limits import Limits
from taskforged.host.runner import Runner
from taskforged.host.timers import Timers
from taskforged.steps.base import Failed, Succeeded
from taskforged.store.changes import NewRun
from taskforged.store.runs import RunStore
from taskforged.store.store import Store


class Constant:
    def __init__(self, value):
        self.value = value

    def evaluate(self, scope):
        return self.value


class Work:
    """An executor that answers when the gate is open, and remembers."""

    name = "work"

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = []
        self.now = self.most = 0
        self.answers = []

    async def execute(self, task):
        self.calls.append((task.idempotency_key, task.attempt))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            return self.answers.pop(0) if self.answers else Succeeded({"key": task.step_key})
        finally:
            self.now -= 1

    async def close(self):
        pass


def activity(step_id, **more):
    return Step(step_id, "work", ActivitySpec("work", Constant({})), **more)


ONE = WorkflowModel("one", Block((activity("a"),)))
THREE = WorkflowModel("three", Block((activity("a"), activity("b", after=(0,)), activity("c", after=(1,)))))


class NoLogs:
    """For attempts that say nothing."""

    def logger(self, run_no, step_key, attempt):
        return lambda stream, text: None

    def has_lines(self, run_no, step_key, attempt):
        return False

    def end(self, run_no, step_key, attempt):
        pass


class Host:
    """A runner with what it needs; `crash` leaves it as a SIGKILL would, and starts another on the same file."""

    def __init__(self, path, pool_size):
        self.path, self.pool_size, self.epoch = path, pool_size, 0
        self.work = Work()
        self.models = {}
        self.make_clock = Clock
        self.start_child = None
        self.limits = Limits()  # as after a start, when they have been read from the store

    async def start(self):
        self.epoch += 1
        self.store = Store(self.path)
        await self.store.start()
        self.feed, self.clock = Feed(), self.make_clock()
        self.runner = Runner(
            store=self.store,
            clock=self.clock,
            feed=self.feed,
            models=self,
            executors={"work": self.work},
            secret=None,
            logs=NoLogs(),
            limits=self.limits,
            pool_size=self.pool_size,
        )
        if self.start_child is not None:  # recovery may need it at once
            self.runner.children.start_child = self.start_child
        self.timers = Timers(store=self.store, clock=self.clock, runner=self.runner)
        self.lost = await self.runner.start(self.epoch)
        await self.timers.start()
        return self

    async def model(self, workflow_no, version):
        return self.models[workflow_no]

    async def run(self, model, count=1, **create):
        self.models[1] = model
        prepared = [
            self.runner.prepare(
                model,
                NewRun(1, 1),
                CreateRun(new_id("run", self.clock.now()), "default", model.name, 1, {}, **create),
            )
            for _ in range(count)
        ]
        await self.runner.create(prepared)
        return [one.no for one in prepared]

    async def stop(self, grace_s=1.0):
        await self.timers.stop()
        await self.runner.drain(grace_s)
        await self.store.stop()

    async def crash(self):
        await self.stop(grace_s=0.0)
        await self.start()

    async def state(self, no):
        return (await RunStore(self.store).load(no)).run

    async def ended(self, numbers):
        for _ in range(2000):
            runs = [await self.state(no) for no in numbers]
            if all(run.ended_at for run in runs) and not any(self.runner.is_busy(no) for no in numbers):
                return runs
            await asyncio.sleep(0.005)
        raise AssertionError([(run.state, {k: s.state for k, s in run.steps.items()}) for run in runs])

    async def count(self, table):
        return await self.store.read(lambda c: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture
async def make(tmp_path):
    hosts = []

    async def build(pool_size=64):
        host = Host(tmp_path / f"{len(hosts)}.db", pool_size)
        hosts.append(host)
        return await host.start()

    yield build
    for host in hosts:
        await host.stop()


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came true")


async def test_a_chain_of_activities_ends_and_leaves_no_slot_command_or_timer(make):
    host = await make()
    numbers = await host.run(THREE, 20)
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert len(host.work.calls) == 60
    assert host.runner.dispatcher.running == 0
    assert (await host.count("commands"), await host.count("timers")) == (0, 0)
    assert host.runner.open_entries() == 0


async def test_never_more_attempts_than_slots_and_none_is_forgotten(make):
    host = await make(pool_size=5)
    host.work.gate.clear()
    numbers = await host.run(THREE, 60)
    await until(lambda: host.work.now == 5)
    assert await host.count("commands") == 60
    host.work.gate.set()
    await host.ended(numbers)
    assert host.work.most == 5
    assert Counter(host.work.calls).most_common(1)[0][1] == 1
    assert host.runner.dispatcher.running == 0


async def test_a_backlog_longer_than_the_window_is_worked_off_oldest_first(make, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "WINDOW", 4)
    host = await make(pool_size=2)
    host.work.gate.clear()
    numbers = []
    for _ in range(10):
        numbers += await host.run(ONE, 5)
    host.work.gate.set()
    await host.ended(numbers)
    assert len(host.work.calls) == len(set(host.work.calls)) == 50


async def test_a_crash_repeats_only_what_was_cut_with_the_same_key(make):
    host = await make(pool_size=3)
    host.work.gate.clear()
    numbers = await host.run(THREE, 8)
    await until(lambda: host.work.now == 3)
    cut = {key for key, _ in host.work.calls}
    await host.crash()
    assert host.lost == 3
    host.work.gate.set()
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    attempts = Counter(key for key, _ in host.work.calls)
    assert {key for key, count in attempts.items() if count > 1} == cut
    assert max(attempts.values()) == 2
    assert max(attempt for _, attempt in host.work.calls) == 2


async def test_a_crash_during_recovery_is_recovered_from(make):
    host = await make(pool_size=4)
    host.work.gate.clear()
    numbers = await host.run(THREE, 4)
    await until(lambda: host.work.now == 4)
    for _ in range(5):
        await host.crash()
        await until(lambda: host.work.now == 4)
    host.work.gate.set()
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert {run.steps["a"].lost for run in runs} == {5}


async def test_a_step_that_is_cut_again_and_again_is_given_up(make):
    host = await make()
    host.work.gate.clear()
    numbers = await host.run(ONE)
    for _ in range(12):
        await until(lambda: host.work.now == 1 or host.runner.open_entries() == 0)
        await host.crash()
    (run,) = await host.ended(numbers)
    assert run.state is RunState.DEAD
    assert run.failing["code"] == "lost"


async def test_a_full_disk_keeps_the_result_until_there_is_space(make, monkeypatch):
    monkeypatch.setattr(runner_module, "RETRY_S", 0.02)
    host = await make()
    host.work.gate.clear()
    (no,) = await host.run(ONE)
    await until(lambda: host.work.now == 1)
    pages = await host.store._writer.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await host.store._writer.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}"))
    host.work.answers = [Succeeded({"big": "x" * 200_000})]
    host.work.gate.set()
    await until(lambda: host.work.now == 0)
    await asyncio.sleep(0.1)
    assert (await host.state(no)).state is RunState.RUNNING
    with pytest.raises(ResourceExhaustedError):
        await host.run(WorkflowModel("big", Block((Step("t", "transform", TransformSpec(Constant("y" * 500_000))),))))
    await host.store._writer.run(lambda c: c.execute("PRAGMA max_page_count = 1000000"))
    host.models[1] = ONE
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert len(host.work.calls) == 1, "the effect was not repeated"


async def test_retries_wait_for_their_time_and_survive_a_crash(make):
    policy = RetryPolicy(max_attempts=3, delay_s=0.05, max_delay_s=0.05)
    host = await make()
    host.work.answers = [Failed("network", "no", retryable=True), Failed("network", "no", retryable=True)]
    (no,) = await host.run(WorkflowModel("retry", Block((activity("a", retry=policy),))))
    await until(lambda: len(host.work.calls) >= 1)
    await host.crash()
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert [attempt for _, attempt in host.work.calls] == sorted(attempt for _, attempt in host.work.calls)


async def test_an_executor_with_a_bug_fails_its_step_and_not_the_daemon(make):
    host = await make()

    async def broken(task):
        raise ZeroDivisionError("secret text")

    host.work.execute = broken
    (run,) = await host.ended(await host.run(ONE))
    assert run.state is RunState.FAILED
    assert run.failing["code"] == "internal"
    assert "secret text" not in str(run.failing)


async def test_cancel_stops_what_runs_and_withdraws_what_waits(make):
    host = await make(pool_size=1)
    host.work.gate.clear()
    first, second = await host.run(ONE, 2)
    await until(lambda: host.work.now == 1)
    await host.runner.deliver(second, CancelRun())
    await host.runner.deliver(first, CancelRun())
    runs = await host.ended([first, second])
    assert {run.state for run in runs} == {RunState.CANCELLED}
    assert len(host.work.calls) == 1
    assert (await host.count("commands"), host.runner.dispatcher.running) == (0, 0)
    with pytest.raises(FailedPreconditionError):
        await host.runner.deliver(first, CancelRun())
    with pytest.raises(NotFoundError):
        await host.runner.deliver(999, CancelRun())


async def test_idle_runs_leave_memory_and_come_back_for_their_timers(make, monkeypatch):
    monkeypatch.setattr(runner_module, "IDLE_MAX", 2)
    host = await make()
    nap = WorkflowModel("nap", Block((Step("rest", "sleep", SleepSpec(Constant(0.3))), activity("a", after=(0,)))))
    numbers = await host.run(nap, 50)
    assert host.runner.open_entries() <= 3
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}


async def test_a_cancelled_starter_leaves_a_run_that_goes_on(make):
    for turns in range(6):
        host = await make()
        task = asyncio.ensure_future(host.run(ONE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.02)
        stored = await host.store.read(lambda c: [row[0] for row in c.execute("SELECT no FROM runs").fetchall()])
        assert all(run.state is RunState.SUCCEEDED for run in await host.ended(stored))


async def test_a_drain_lets_work_finish_and_starts_nothing_new(make):
    host = await make(pool_size=1)
    host.work.gate.clear()
    numbers = await host.run(THREE, 2)
    await until(lambda: host.work.now == 1)
    drain = asyncio.ensure_future(host.runner.drain(5.0))
    await asyncio.sleep(0)
    host.work.gate.set()
    await drain
    assert len(host.work.calls) == 1
    await host.crash()
    assert host.lost == 0, "what finished within the grace was recorded"
    await host.ended(numbers)
    assert len(host.work.calls) == len(set(host.work.calls)) == 6
