"""Faults that a review found in the host: each test failed before its fix."""

import asyncio

import pytest
from host.test_runner import ONE, Constant, activity, make, until  # noqa: F401  `make` is a fixture

from taskforged.engine.events import CancelRun
from taskforged.engine.model import Block, SleepSpec, Step, WorkflowModel
from taskforged.engine.states import RunState
from taskforged.errors import FailedPreconditionError, ResourceExhaustedError
from taskforged.host import runner as runner_module
from taskforged.host import timers as timers_module

NAP = Step("nap", "sleep", SleepSpec(Constant(300)))


async def test_many_commands_that_were_withdrawn_while_they_waited_cost_no_recursion(make):  # noqa: F811
    host = await make(pool_size=1)
    host.work.gate.clear()
    (first,) = await host.run(ONE)
    await until(lambda: host.work.now == 1)
    timed = WorkflowModel("timed", Block((activity("a"),)), on_failure=Block((NAP,)), timeout_s=0.05)
    numbers = await host.run(timed, 400)
    host.models[1] = ONE
    (last,) = await host.run(ONE)
    for _ in range(400):
        if await host.count("commands") == 2:
            break
        await asyncio.sleep(0.02)
    assert await host.count("commands") == 2, "the timeout has withdrawn all but the first and the last"
    host.work.gate.set()
    runs = await host.ended([first, last])
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    for no in numbers[::40]:
        await asyncio.wait_for(host.runner.deliver(no, CancelRun()), 2.0)


async def test_a_wide_run_that_fails_with_most_of_it_waiting_costs_no_recursion(make):  # noqa: F811
    host = await make(pool_size=1)
    wide = WorkflowModel(
        "wide", Block(tuple(activity(f"s{n}") for n in range(700))), on_failure=Block((NAP,)), timeout_s=0.3
    )
    host.work.gate.clear()
    (no,) = await host.run(wide)
    await until(lambda: host.work.now == 1)
    await until(lambda: host.work.now == 0)
    host.work.gate.set()
    await asyncio.wait_for(host.runner.deliver(no, CancelRun()), 5.0)
    (run,) = await host.ended([no])
    assert run.state is RunState.CANCELLED
    assert host.runner.dispatcher.running == 0


async def test_a_full_disk_is_not_hammered_by_what_waits_for_a_slot(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runner_module, "RETRY_S", 0.05)
    host = await make(pool_size=1)
    host.work.gate.clear()
    numbers = await host.run(ONE, 2)
    await until(lambda: host.work.now == 1)
    submit, tried = host.store.journal.submit, []

    def full(write):
        tried.append(write)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(ResourceExhaustedError("the disk is full"))
        return future

    monkeypatch.setattr(host.store.journal, "submit", full)
    host.work.gate.set()
    await asyncio.sleep(0.3)
    assert len(tried) < 30, "one try for each pause and run"
    monkeypatch.setattr(host.store.journal, "submit", submit)
    await host.ended(numbers)
    assert host.runner.dispatcher.running == 0


async def test_a_run_that_cannot_be_loaded_holds_no_slot_and_comes_back(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runner_module, "RELOAD_S", 0.05, raising=False)
    host = await make(pool_size=1)
    host.work.gate.clear()
    blocker, queued = await host.run(ONE, 2)
    await host.crash()
    good, host.model = host.model, None  # no definition can be read: not callable
    host.work.gate.set()
    await asyncio.sleep(0.1)
    host.model = good
    await host.crash() if host.lost else None
    await host.ended([queued, blocker])
    assert host.runner.dispatcher.running == 0


async def test_timers_of_runs_that_cannot_be_loaded_do_not_block_the_others(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(timers_module, "PORTION", 2)
    monkeypatch.setattr(runner_module, "IDLE_MAX", 0)
    host = await make()
    nap = WorkflowModel("nap", Block((Step("rest", "sleep", SleepSpec(Constant(0.3))),)))
    broken = await host.run(nap, 3)
    (good,) = await host.run(nap)
    load = host.runner._runs.load

    async def fail_some(no):
        if no in broken:
            raise ValueError("the definition can no longer be compiled")
        return await load(no)

    monkeypatch.setattr(host.runner._runs, "load", fail_some)
    (run,) = await host.ended([good])
    assert run.state is RunState.SUCCEEDED


async def test_a_result_that_arrives_while_its_run_is_written_survives_the_drain(make):  # noqa: F811
    host = await make()
    both = WorkflowModel("both", Block((activity("a"), activity("b"))))
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    execute = host.work.execute

    async def one_by_one(task):
        await gates[task.step_key].wait()
        return await execute(task)

    host.work.execute = one_by_one
    (no,) = await host.run(both)
    entry = host.runner._entries[no]
    gates["a"].set()
    async with asyncio.timeout(10):
        while not entry.committing:
            await asyncio.sleep(0)
    gates["b"].set()
    drain = asyncio.ensure_future(host.stop(5.0))
    await drain
    await host.start()
    assert host.lost == 0, "both had finished within the grace"
    await host.ended([no])


async def test_an_attempt_whose_start_is_being_written_gets_its_grace(make):  # noqa: F811
    host = await make()
    started = asyncio.ensure_future(host.run(ONE))
    await asyncio.sleep(0)
    assert host.runner.dispatcher.running == 1
    await asyncio.gather(started, host.runner.drain(5.0))
    (no,) = started.result()
    await host.crash()
    assert host.lost == 0
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert len(host.work.calls) == 1


async def test_a_run_that_was_changed_behind_its_back_is_read_again_and_keeps_its_attempts(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runner_module, "RETRY_S", 0.02)
    host = await make()
    host.work.gate.clear()
    (no,) = await host.run(ONE)
    await until(lambda: host.work.now == 1)
    entry = host.runner._entries[no]
    stale = entry.run.clone()
    stale.sequence -= 1
    entry.run = stale
    with pytest.raises(Exception, match="faster"):
        await host.runner.deliver(no, CancelRun())
    for _ in range(100):
        try:
            await asyncio.wait_for(host.runner.deliver(no, CancelRun()), 2.0)
        except FailedPreconditionError:
            break
        except Exception:  # noqa: BLE001, S110  it is still being read again
            pass
        else:
            break
    (run,) = await host.ended([no])
    assert run.state is RunState.CANCELLED, "the request reached the attempt that was under way"
    assert host.runner.open_entries() == 0
