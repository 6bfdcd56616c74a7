"""The embedded host with slots, sub-workflows, pauses, later starts: on a real store, and over crashes."""

import asyncio

import pytest

from taskforged.clock import new_id
from taskforged.engine.events import CancelRun, CreateRun, PauseRun, ResumeRun
from taskforged.engine.model import (
    ActivitySpec,
    Block,
    ChildSpec,
    FanOutSpec,
    PublishSpec,
    RetryPolicy,
    Step,
    TransformSpec,
    WorkflowModel,
)
from taskforged.engine.states import RunState
from taskforged.errors import NotFoundError, ResourceExhaustedError, UnavailableError
from taskforged.host import children as children_module
from taskforged.host import runner as runner_module
from taskforged.host.entry import Letter
from taskforged.host.limits import NamespaceLimits, QueueLimits
from taskforged.steps.base import Failed
from taskforged.store.changes import NewRun
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

from .test_runner import ONE, THREE, Constant, activity, make, until  # noqa: F401  the fixture

SECOND = 1_000_000


def fan_out(items, body, **more):
    return WorkflowModel("fan", Block((Step("f", "work", FanOutSpec(Constant(items), body, **more)),)))


def with_children(host, model):
    """Let sub-workflows execute `model`; answers the ids that were asked for."""
    asked = []

    async def start_child(parent, run, command):
        asked.append(command.run_id)
        if command.workflow == "missing":
            raise NotFoundError("there is no workflow 'missing'")
        if await RunStore(host.store).by_id(command.run_id) is not None:
            return
        host.models[2] = model
        up = {"run_id": run.run_id, "step": command.step, "command": command.seq}
        create = CreateRun(command.run_id, "default", "child", 1, command.input, parent=up, depth=run.depth + 1)
        await host.runner.create([host.runner.prepare(model, NewRun(1, 2, parent_no=parent.no), create)])

    host.start_child = host.runner.children.start_child = start_child
    return asked


def parent(workflow="child"):
    spec = ChildSpec(workflow, 1, Constant({"x": 1}))
    return WorkflowModel("parent", Block((Step("sub", "workflow", spec), activity("after", after=(0,)))))


# --- slots -----------------------------------------------------------------------------------------------------------


async def test_runs_of_a_namespace_wait_for_its_limit_and_all_end(make):  # noqa: F811
    host = await make()
    host.limits.set_namespace(1, NamespaceLimits(running_runs=3))
    host.work.gate.clear()
    numbers = await host.run(ONE, 20)
    states = [(await host.state(no)).state for no in numbers]
    assert states.count(RunState.RUNNING) == 3
    assert states.count(RunState.PENDING) == 17
    await host.crash()
    await until(lambda: host.work.now == 3)
    assert (host.runner.admission.running(), host.runner.admission.pending()) == (3, 17)
    host.work.gate.set()
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert (host.runner.admission.running(), host.runner.admission.pending()) == (0, 0)
    assert host.work.most <= 3


async def test_a_group_runs_one_at_a_time_and_holds_up_nobody_else(make):  # noqa: F811
    host = await make()
    host.work.gate.clear()
    grouped = await host.run(ONE, 5, group="g", group_limit=1)
    others = await host.run(ONE, 5)
    await until(lambda: host.work.now == 6)
    states = [(await host.state(no)).state for no in grouped]
    assert states == [RunState.RUNNING] + [RunState.PENDING] * 4
    host.work.gate.set()
    await host.ended(others + grouped)
    ends = [(await host.state(no)).started_at for no in grouped]
    assert ends == sorted(ends)


async def test_a_pending_run_that_is_cancelled_leaves_the_line(make):  # noqa: F811
    host = await make()
    host.work.gate.clear()
    first, second, third = await host.run(ONE, 3, group="g", group_limit=1)
    await host.runner.deliver(second, CancelRun())
    assert (await host.state(second)).state is RunState.CANCELLED
    host.work.gate.set()
    await host.ended([first, third])
    assert host.runner.admission.pending() == 0


async def test_too_many_pending_runs_are_refused_and_nothing_is_stored(make):  # noqa: F811
    host = await make()
    host.limits.set_namespace(1, NamespaceLimits(running_runs=1, pending_runs=2))
    host.work.gate.clear()
    numbers = await host.run(ONE, 3)
    with pytest.raises(ResourceExhaustedError):
        await host.run(ONE)
    assert await host.count("runs") == 3
    host.work.gate.set()
    await host.ended(numbers)


async def test_a_queue_that_is_paused_starts_nothing_until_it_is_resumed(make):  # noqa: F811
    host = await make()
    host.limits.set_queue(1, "slow", QueueLimits(paused=True))
    slow, fast = await host.run(ONE, 3, queue="slow"), await host.run(ONE, 3)
    await host.ended(fast)
    assert await host.count("commands WHERE epoch = 0") == 3
    await host.crash()
    host.limits.set_queue(1, "slow", QueueLimits(paused=True))
    host.limits.set_queue(1, "slow", QueueLimits(running_steps=1))
    await host.ended(slow)
    assert host.runner.dispatcher.running == 0


async def test_one_run_of_a_quiet_namespace_does_not_wait_for_a_flood_of_another(make):  # noqa: F811
    host = await make(pool_size=4)
    await host.store.journal.execute(
        lambda c: c.execute("INSERT INTO namespaces (no, name, created_at) VALUES (2, 'b', 0)")
    )
    flood = await host.run(ONE, 500)
    before = len(host.work.calls)
    host.models[1] = ONE
    create = CreateRun(new_id("run", host.clock.now()), "b", "one", 1, {})
    prepared = host.runner.prepare(ONE, NewRun(2, 1), create)
    await host.runner.create([prepared])
    (single,) = await host.ended([prepared.no])
    done = len(host.work.calls) - before
    assert single.state is RunState.SUCCEEDED
    assert done < 450, "it was not the last"
    order = [key.split("/")[0] for key, _ in host.work.calls]
    assert order.index(prepared.run.run_id) - before <= 60
    await host.ended(flood)


# --- later, paused ---------------------------------------------------------------------------------------------------


async def test_a_scheduled_run_starts_at_its_time_also_after_a_crash(make):  # noqa: F811
    host = await make()
    at = host.clock.now() + SECOND // 2
    (no,) = await host.run(ONE, run_at=at)
    assert (await host.state(no)).state is RunState.SCHEDULED
    await host.crash()
    assert (await host.state(no)).state is RunState.SCHEDULED
    (run,) = await host.ended([no])
    assert run.started_at >= at


async def test_a_pause_keeps_queued_steps_and_the_resumption_starts_them(make):  # noqa: F811
    host = await make(pool_size=1)
    host.work.gate.clear()
    items = fan_out([1, 2, 3, 4], activity("f[]"))
    (no,) = await host.run(items)
    await until(lambda: host.work.now == 1)
    await host.runner.deliver(no, PauseRun("look", "me"))
    assert await host.count("commands") == 1, "only the one that is executed"
    host.work.gate.set()
    await until(lambda: host.work.now == 0 and len(host.work.calls) == 1)
    await asyncio.sleep(0.05)
    await host.crash()
    await asyncio.sleep(0.05)
    assert len(host.work.calls) == 1
    assert (await host.state(no)).state is RunState.PAUSED
    await host.runner.deliver(no, ResumeRun())
    (run,) = await host.ended([no])
    assert run.steps["f"].output == [{"key": f"f[{i}]"} for i in range(4)]
    assert len(host.work.calls) == 4
    assert await host.count("commands") == 0


# --- fan-outs --------------------------------------------------------------------------------------------------------


async def test_a_large_fan_out_survives_a_crash_in_its_middle(make):  # noqa: F811
    host = await make(pool_size=8)
    (no,) = await host.run(fan_out(list(range(300)), activity("f[]"), max_parallel=50))
    await until(lambda: len(host.work.calls) > 100)
    await host.crash()
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert run.steps["f"].output == [{"key": f"f[{i}]"} for i in range(300)]
    repeated = len(host.work.calls) - 300
    assert 0 <= repeated <= 8, "only what was at work is done again"


async def test_many_pure_items_are_done_in_portions(make):  # noqa: F811
    host = await make()
    body = Step("f[]", "transform", TransformSpec(Constant(7)))
    (no,) = await host.run(fan_out(list(range(1600)), body))
    (run,) = await host.ended([no])
    assert run.steps["f"].output == [7] * 1600
    kinds = await host.store.rows("history_after", no, 0, 5000)
    assert sum(row[2] == "step.yielded" for row in kinds) == 3


# --- sub-workflows, events, dead letters -----------------------------------------------------------------------------


async def test_a_sub_workflow_ends_before_its_parent_goes_on(make):  # noqa: F811
    host = await make()
    asked = with_children(host, THREE)
    (no,) = await host.run(parent())
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert asked == [run.steps["sub"].child]
    assert await host.count("children") == 0
    assert len(host.work.calls) == 4


async def test_a_crash_at_any_time_starts_a_sub_workflow_once(make):  # noqa: F811
    host = await make()
    asked = with_children(host, THREE)
    host.work.gate.clear()
    numbers = await host.run(parent(), 10)
    for _ in range(3):
        await host.crash()
        asked += with_children(host, THREE)
    host.work.gate.set()
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert await host.count("runs") == 20
    assert await host.count("children") == 0


async def test_a_child_that_ended_while_the_parent_was_not_told_is_found_after_the_crash(make):  # noqa: F811
    host = await make()
    with_children(host, THREE)
    host.work.gate.clear()
    (no,) = await host.run(parent())
    await until(lambda: host.work.now == 1)
    post = host.runner._post
    host.runner._post = lambda to, letter: None if to == no else post(to, letter)  # the news gets lost
    host.work.gate.set()
    child = (await host.state(no)).steps["sub"].child
    async with asyncio.timeout(10):
        while not (await RunStore(host.store).by_id(child)).ended_at:
            await asyncio.sleep(0.01)
    assert not (await host.state(no)).ended_at
    await host.crash()
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED


async def test_cancelling_the_parent_cancels_the_child_and_waits_for_it(make):  # noqa: F811
    host = await make()
    with_children(host, THREE)
    host.work.gate.clear()
    (no,) = await host.run(parent())
    await until(lambda: host.work.now == 1)
    child = await RunStore(host.store).by_id((await host.state(no)).steps["sub"].child)
    await host.runner.deliver(no, CancelRun("enough"))
    parent_run, child_run = await host.ended([no, child.no])
    assert parent_run.state is child_run.state is RunState.CANCELLED
    assert child_run.ended_at <= parent_run.ended_at
    assert await host.count("children") == 0


async def test_a_sub_workflow_that_cannot_be_started_fails_the_step(make):  # noqa: F811
    host = await make()
    with_children(host, THREE)
    (no,) = await host.run(parent("missing"))
    (run,) = await host.ended([no])
    assert run.state is RunState.FAILED
    assert run.failing["code"] == "workflow_not_found"


async def test_children_ride_on_their_parents_slot(make):  # noqa: F811
    host = await make()
    host.limits.set_namespace(1, NamespaceLimits(running_runs=1))
    with_children(host, THREE)
    numbers = await host.run(parent(), 5)
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert host.runner.admission.running() == 0


async def test_events_of_steps_and_of_the_end_are_stored_with_them(make):  # noqa: F811
    host = await make()
    publish = Step("tell", "event", PublishSpec(Constant("order.paid"), Constant({"cents": 5})))
    (no,) = await host.run(WorkflowModel("events", Block((publish,))))
    (run,) = await host.ended([no])
    rows = await host.store.read(lambda c: c.execute("SELECT id, type, body, source, run_no FROM events").fetchall())
    assert [row[1] for row in rows] == ["order.paid", "run.succeeded"]
    assert rows[0][0] == run.steps["tell"].output["event_id"]
    assert rows[0][2] == b'{"cents":5}'
    assert [row[3:] for row in rows] == [("internal", no), ("engine", no)]


async def test_a_run_that_dies_leaves_a_dead_letter(make):  # noqa: F811
    host = await make()
    host.work.answers = [Failed("boom", "it broke", retryable=True)] * 2
    policy = RetryPolicy(max_attempts=2, delay_s=0.01)
    model = WorkflowModel("dies", Block((Step("a", "work", ActivitySpec("work", Constant({})), retry=policy),)))
    (no,) = await host.run(model)
    (run,) = await host.ended([no])
    assert run.state is RunState.DEAD
    rows = await host.store.read(
        lambda c: c.execute("SELECT run_no, state, step, code, attempts FROM dead_letters").fetchall()
    )
    assert rows == [(no, "OPEN", "a", "boom", 2)]


async def test_a_raised_limit_starts_what_is_not_in_memory_in_portions(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runner_module, "IDLE_MAX", 10)
    monkeypatch.setattr(runner_module, "ADMIT_AT_ONCE", 8)
    host = await make()
    host.limits.set_namespace(1, NamespaceLimits(running_runs=1))
    host.work.gate.clear()
    numbers = await host.run(ONE, 200)
    await host.crash()
    host.work.gate.set()
    host.limits.set_namespace(1, NamespaceLimits())
    assert len(host.runner._loading) <= 8, "not all at once"
    runs = await host.ended(numbers)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}


# --- found in review -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [(PauseRun(), ResumeRun()), (ResumeRun(), PauseRun(), ResumeRun())])
async def test_steering_and_a_start_in_one_batch_start_the_step_once(make, facts):  # noqa: F811
    host = await make(pool_size=4)
    host.work.gate.clear()
    host.limits.set_queue(1, "default", QueueLimits(paused=True))
    (no,) = await host.run(ONE)
    if isinstance(facts[0], ResumeRun):
        await host.runner.deliver(no, PauseRun())
    entry = host.runner._entries[no]
    entry.committing = True  # a commit is under way
    host.limits.set_queue(1, "default", QueueLimits())  # the dispatcher claims by itself
    entry.mailbox.extendleft(Letter(fact) for fact in reversed(facts))
    entry.committing = False
    host.runner._pump(entry)
    await until(lambda: host.work.now == 1)
    host.work.gate.set()
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert len(host.work.calls) == 1
    assert host.runner.dispatcher.running == 0


async def test_a_bug_while_a_run_advances_tells_the_caller_and_leaks_nothing(make, monkeypatch):  # noqa: F811
    host = await make()
    host.work.gate.clear()
    (no,) = await host.run(ONE)
    monkeypatch.setattr(runner_module, "apply", lambda *_: 1 / 0)
    with pytest.raises(UnavailableError):
        await host.runner.deliver(no, PauseRun())
    monkeypatch.undo()
    host.work.gate.set()
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert host.runner.dispatcher.running == 0


async def test_one_parent_that_cannot_be_read_does_not_stop_the_recovery_of_others(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(children_module, "RELOAD_S", 0.2)
    host = await make()
    host.runner.children.start_child = lambda *_: asyncio.sleep(60)  # their children are not started in time
    numbers = await host.run(parent(), 2)
    await host.stop(0.0)
    load, failed = RunStore.load, []

    async def load_once_not(self, no):
        if no == numbers[0] and not failed:
            failed.append(no)
            raise OSError("the disk is tired")
        return await load(self, no)

    start = runner_module.Runner.start

    async def start_with_children(self, epoch):
        host.runner = self
        with_children(host, THREE)
        return await start(self, epoch)

    monkeypatch.setattr(runner_module.Runner, "start", start_with_children)
    monkeypatch.setattr(RunStore, "load", load_once_not)
    await host.start()
    await until(lambda: failed)
    await host.ended(numbers)


async def test_sub_workflows_are_recovered_also_when_their_list_gave_way_to_a_long_log(make, monkeypatch):  # noqa: F811
    monkeypatch.setattr(children_module, "RELOAD_S", 0.05)
    host = await make()
    host.runner.children.start_child = lambda *_: asyncio.sleep(60)  # the crash comes first
    (no,) = await host.run(parent())
    await host.stop(0.0)
    rows, gave_way = Store.rows, []

    async def give_way_once(self, query, *parameters):
        if query == "all_children" and not gave_way:
            gave_way.append(query)
            raise UnavailableError("the reading was ended", reason="READ_GAVE_WAY")
        return await rows(self, query, *parameters)

    monkeypatch.setattr(Store, "rows", give_way_once)
    await host.start()
    with_children(host, THREE)
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED
    assert gave_way
