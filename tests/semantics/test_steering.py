"""Steering, repeating and refusing, on a real daemon."""

import asyncio
import json
import time

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from semantics.support import World, definition
from taskforge.v1 import queue_service_pb2, queue_service_pb2_grpc, run_pb2, run_service_pb2

CODE = grpc.StatusCode

SLOW = """
name: {name}
{top}
input: {{type: object, properties: {{service: {{type: string}}, n: {{type: integer}}}}}}
steps:
  - id: one
    http: {{method: POST, url: "${{{{ input.service }}}}/one"}}
  - id: two
    needs: one
    http: {{method: POST, url: "${{{{ input.service }}}}/two", json: {{before: "${{{{ steps.one.output.body }}}}"}}}}
    {more}
  - id: beside
    needs: []
    transform: {{n: 1}}
output: ${{{{ steps.two.output.status }}}}
"""


def slow(name, top="", more=""):
    return SLOW.format(name=name, top=top, more=more)


async def refused(awaitable, code, *parts):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value.details()
    for part in parts:
        assert part in (caught.value.details() or "")


async def explain(world, run_id):
    return (await world.call("ExplainRun", run_id=run_id)).explanation


# --- once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "state", "calls"),
    [
        (run_service_pb2.RESOLUTION_SUCCEEDED, "SUCCEEDED", 1),
        (run_service_pb2.RESOLUTION_FAILED, "FAILED", 1),
        (run_service_pb2.RESOLUTION_RETRY, "SUCCEEDED", 2),
    ],
)
async def test_what_must_not_happen_twice_asks_after_a_crash(mortal: World, outcome, state, calls):
    await mortal.apply("charge-card")
    mortal.service.hold("/charges")
    run_id = await mortal.start("charge-card", {"cents": 5})
    await mortal.service.called("/charges")
    await mortal.crash()
    mortal.service.let_go("/charges")
    run = await mortal.until(run_id, charge="NEEDS_DECISION")
    evidence = json.loads(run.steps["charge"].evidence_json)
    assert evidence["idempotency_key"] == f"{run_id}/charge"
    told = await explain(mortal, run_id)
    assert "charge" in told.summary
    assert any("run resolve" in reason.hint for reason in told.reasons)
    await refused(mortal.call("ResolveRun", run_id=run_id, step="charge"), CODE.INVALID_ARGUMENT, "outcome")
    given = {"output_json": '{"by": "hand"}'} if outcome == run_service_pb2.RESOLUTION_SUCCEEDED else {}
    await mortal.call("ResolveRun", run_id=run_id, step="charge", outcome=outcome, **given)
    run = await mortal.ended(run_id)
    assert run.state == state
    assert mortal.service.paths().count("/charges") == calls
    if given:
        assert run.output == {"by": "hand"}
    await refused(
        mortal.call("ResolveRun", run_id=run_id, step="charge", outcome=outcome), CODE.FAILED_PRECONDITION, state
    )
    await mortal.intact(run_id)


# --- pause, resume, cancel -------------------------------------------------------------------------------------------


async def test_a_paused_run_finishes_what_is_at_work_and_starts_nothing_over_a_crash(mortal: World):
    await mortal.apply(slow("paused"))
    mortal.service.hold("/one")
    run_id = await mortal.start("paused")
    await mortal.service.called("/one")
    await mortal.call("PauseRun", run_id=run_id, reason="to look")
    await mortal.call("PauseRun", run_id=run_id, reason="again")
    mortal.service.let_go("/one")
    run = await mortal.until(run_id, one="SUCCEEDED")
    assert (run.state, run.message.paused_by, run.message.pause_reason) == ("PAUSED", "home", "to look")
    assert "paused" in (await explain(mortal, run_id)).summary
    await mortal.crash()
    assert (await mortal.get(run_id)).state == "PAUSED"
    assert "/two" not in mortal.service.paths()
    mortal.service.hold("/two")
    await mortal.call("ResumeRun", run_id=run_id)
    await mortal.call("ResumeRun", run_id=run_id)
    mortal.service.let_go("/two")
    assert (await mortal.ended(run_id)).state == "SUCCEEDED"
    await refused(mortal.call("PauseRun", run_id=run_id), CODE.FAILED_PRECONDITION, "SUCCEEDED")
    await refused(mortal.call("ResumeRun", run_id=run_id), CODE.FAILED_PRECONDITION, "SUCCEEDED")
    await mortal.intact(run_id)


async def test_a_paused_run_can_be_cancelled(world: World):
    await world.apply(slow("paused-cancelled"))
    world.service.hold("/one")
    run_id = await world.start("paused-cancelled")
    await world.service.called("/one")
    await world.call("PauseRun", run_id=run_id)
    await world.call("CancelRun", run_id=run_id)
    assert (await world.ended(run_id)).state == "CANCELLED"
    await world.intact(run_id)


# --- retry, rerun ----------------------------------------------------------------------------------------------------


async def test_a_retry_takes_over_what_succeeded_and_is_one(world: World):
    await world.apply(slow("again"))
    world.service.script("/one", (200, {"first": 1}))
    world.service.script("/two", (400, {}))
    run = await world.ended(await world.start("again"))
    assert run.state == "FAILED"
    world.service.script("/two", (200, {}))
    first = (await world.call("RetryRun", run_id=run.id)).run.id
    second = (await world.call("RetryRun", run_id=run.id)).run.id
    assert first == second
    retry = await world.ended(first)
    assert (retry.state, retry.message.retry_of) == ("SUCCEEDED", run.id)
    assert [key for key, step in retry.steps.items() if step.pinned] == ["one", "beside"]
    assert world.service.paths() == ["/one", "/two", "/two"]
    assert world.service.bodies("/two")[1] == {"before": {"first": 1}}
    await refused(world.call("RetryRun", run_id=retry.id), CODE.FAILED_PRECONDITION, "SUCCEEDED")


async def test_a_rerun_begins_where_it_is_told_with_the_version_it_is_told(world: World):
    await world.apply(slow("twice"))
    run = await world.ended(await world.start("twice"))
    from_two = (await world.call("RerunRun", run_id=run.id, from_step="two")).run.id
    rerun = await world.ended(from_two)
    assert (rerun.state, rerun.message.rerun_of, rerun.message.version) == ("SUCCEEDED", run.id, 1)
    assert [key for key, step in rerun.steps.items() if step.pinned] == ["one", "beside"]
    assert world.service.paths() == ["/one", "/two", "/two"]
    await world.apply(slow("twice", more="timeout: 9s"))
    whole = await world.ended((await world.call("RerunRun", run_id=run.id, newest_version=True)).run.id)
    assert (whole.state, whole.message.version) == ("SUCCEEDED", 2)
    assert world.service.paths()[3:] == ["/one", "/two"]
    await refused(world.call("RerunRun", run_id=run.id, from_step="nowhere"), CODE.INVALID_ARGUMENT, "nowhere")
    same = [(await world.call("RerunRun", run_id=run.id, request_id="r1")).run.id for _ in range(2)]
    assert same[0] == same[1]
    await world.ended(same[0])


# --- later, first, in turn -------------------------------------------------------------------------------------------


async def test_a_run_for_later_starts_later(world: World):
    await world.apply(slow("later"))
    at = Timestamp()
    at.FromMicroseconds(round((time.time() + 0.8) * 1e6))
    run_id = await world.start("later", run_time=at)
    waiting = await world.get(run_id)
    assert (waiting.state, waiting.message.run_time) == ("SCHEDULED", at)
    run = await world.ended(run_id)
    assert run.message.start_time.ToMicroseconds() >= at.ToMicroseconds()


async def test_a_full_group_skips(world: World):
    await world.apply(slow("skips", "concurrency: {group: skippers, limit: 1, on_limit: skip}"))
    world.service.hold("/one")
    first, second = await world.start("skips"), await world.start("skips")
    run = await world.ended(second)
    assert (run.state, run.steps) == ("CANCELLED", {})
    kinds = [(e.kind, json.loads(e.body_json)) for e in await world.daemon.history(second)]
    assert "skippers" in next(body["reason"] for kind, body in kinds if kind == "run.cancel_requested")
    world.service.let_go("/one")
    assert (await world.ended(first)).state == "SUCCEEDED"


async def test_a_full_group_makes_room_for_the_newest(world: World):
    await world.apply(slow("newest", "concurrency: {group: newest, limit: 1, on_limit: cancel_running}"))
    world.service.hold("/one")
    runs = [await world.start("newest") for _ in range(4)]
    world.service.let_go("/one")
    states = [(await world.ended(run)).state for run in runs]
    assert states == ["CANCELLED"] * 3 + ["SUCCEEDED"]


@pytest.mark.parametrize(("on_limit", "states"), [("skip", "SC"), ("cancel_running", "CS"), ("queue", "SS")])
async def test_what_a_full_group_does_to_a_later_run_is_decided_when_its_time_has_come(world: World, on_limit, states):
    name = f"timed-{on_limit}".replace("_", "-")
    await world.apply(slow(name, f"concurrency: {{group: {name}, limit: 1, on_limit: {on_limit}}}"))
    world.service.hold("/one")
    first = await world.start(name)
    await world.service.called("/one")
    at = Timestamp()
    at.FromMicroseconds(round((time.time() + 0.7) * 1e6))
    second = await world.start(name, run_time=at)
    assert ((await world.get(first)).state, (await world.get(second)).state) == ("RUNNING", "SCHEDULED")
    await asyncio.sleep(1.0)
    world.service.let_go("/one")
    assert "".join([(await world.ended(run)).state[0] for run in (first, second)]) == states


async def test_making_room_survives_a_crash(mortal: World):
    await mortal.apply(slow("room", "concurrency: {group: room, limit: 1, on_limit: cancel_running}"))
    mortal.service.hold("/one")
    runs = []
    for _ in range(3):
        runs.append(await mortal.start("room"))
        await mortal.crash()
    mortal.service.let_go("/one")
    assert [(await mortal.ended(run)).state for run in runs] == ["CANCELLED", "CANCELLED", "SUCCEEDED"]


async def test_a_retry_of_a_retry_that_never_started_takes_over_the_same(world: World):
    await world.apply(slow("chain", "concurrency: {group: chain, limit: 1}"))
    world.service.script("/two", (400, {}))
    run = await world.ended(await world.start("chain"))
    world.service.hold("/one")
    holder = await world.start("chain")
    first = (await world.call("RetryRun", run_id=run.id)).run.id
    assert (await world.get(first)).state == "PENDING"
    await world.call("CancelRun", run_id=first)
    world.service.script("/two", (200, {}))
    world.service.let_go("/one")
    await world.ended(holder)
    world.service.clear()
    second = await world.ended((await world.call("RetryRun", run_id=first)).run.id)
    assert (second.state, second.message.retry_of) == ("SUCCEEDED", first)
    assert world.service.paths() == ["/two"], "what had succeeded is not done again"


async def test_a_signal_repeated_after_the_end_is_no_error(world: World):
    await world.apply("name: lastword\nsteps:\n  - id: word\n    wait: {signal: word}\n")
    run_id = await world.start("lastword")
    for _ in range(2):
        await world.call("SignalRun", run_id=run_id, signal="word", request_id="only-once")
    assert (await world.ended(run_id)).state == "SUCCEEDED"


async def test_a_paused_queue_keeps_its_steps(world: World):
    queues = world.daemon.stub(queue_service_pb2_grpc.QueueServiceStub)
    await queues.SetQueue(queue_service_pb2.SetQueueRequest(name="still", paused=True))
    await world.apply(slow("in-queue", "queue: still\npriority: 8"))
    run_id = await world.start("in-queue")
    run = await world.until(run_id, one="QUEUED")
    assert (run.message.queue, run.message.priority) == ("still", 8)
    told = await explain(world, run_id)
    assert any(reason.kind == run_pb2.Reason.KIND_QUEUE for reason in told.reasons), told
    await queues.SetQueue(queue_service_pb2.SetQueueRequest(name="still", paused=False))
    assert (await world.ended(run_id)).state == "SUCCEEDED"


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_conflicting_settings_are_refused_when_they_are_applied(world: World):
    await world.apply(slow("conflict-a", "concurrency: {group: shared, limit: 1}"))
    await refused(
        world.apply(slow("conflict-b", "concurrency: {group: shared, limit: 2}")),
        CODE.INVALID_ARGUMENT,
        "conflict-a",
        "limit 1",
    )
    await world.apply(slow("conflict-a", "concurrency: {group: shared, limit: 2}"))
    await world.apply(slow("conflict-b", "concurrency: {group: shared, limit: 2}"))
    await refused(world.apply(slow("no-queue", "queue: nowhere")), CODE.INVALID_ARGUMENT, "nowhere", "queue set")
    await refused(world.start("conflict-a", queue="nowhere"), CODE.INVALID_ARGUMENT, "nowhere")
    await refused(world.start("conflict-a", priority=10), CODE.INVALID_ARGUMENT, "priority")


@pytest.mark.parametrize(
    ("needs", "parts"),
    [("[nobody]", ["nobody"]), ("[one]", ["itself"]), ("[three]", ["two", "three", "->"])],
)
async def test_impossible_needs_are_refused(world: World, needs, parts):
    source = definition(
        "needy",
        "  - id: one\n    transform: 1" + (f"\n    needs: {needs}" if "one" in needs else ""),
        "  - id: two\n    transform: 1" + (f"\n    needs: {needs}" if "one" not in needs else ""),
        "  - id: three\n    transform: 1",
    )
    await refused(world.apply(source), CODE.INVALID_ARGUMENT, *parts)


@pytest.mark.parametrize(
    ("value", "parts"),
    [("${{ input.n }}", ["list or a map", "number"]), ("${{ [1, 2].map(x, x) + input.many }}", ["10,001", "10,000"])],
)
async def test_a_fan_out_over_nothing_like_a_list_fails_the_step(world: World, value, parts):
    await world.apply(
        "name: badfan\nsteps:\n  - id: many\n    for_each: " + json.dumps(value) + "\n    transform: ${{ item }}\n"
    )
    run = await world.ended(await world.start("badfan", {"n": 5, "many": [0] * 9_999}))
    assert (run.state, run.error.code) == ("FAILED", "for_each")
    for part in parts:
        assert part in run.error.message


async def test_approvals_of_runs_that_do_not_wait_are_refused(world: World):
    await world.apply(slow("never-asks"))
    world.service.hold("/one")
    run_id = await world.start("never-asks")
    await refused(world.call("ApproveRun", run_id=run_id), CODE.FAILED_PRECONDITION, "waits for no approval")
    await refused(world.call("ApproveRun", run_id=run_id, step="one"), CODE.FAILED_PRECONDITION, "no approval")
    await refused(world.call("SignalRun", run_id=run_id, signal="x"), CODE.FAILED_PRECONDITION, "knows none")
    world.service.let_go("/one")
    await world.ended(run_id)
    await refused(world.call("ApproveRun", run_id=run_id), CODE.FAILED_PRECONDITION)
    await refused(world.call("ApproveRun", run_id="run_nobody"), CODE.NOT_FOUND)


async def test_a_workflow_that_starts_itself_ends(world: World):
    await world.apply("name: mirror\nsteps:\n  - id: again\n    workflow: mirror\n")
    run = await world.ended(await world.start("mirror"))
    assert (run.state, run.error.code) == ("FAILED", "child_failed")
    assert "16 deep" in run.error.message
