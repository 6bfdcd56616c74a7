"""Each example does what it says, on a real daemon."""

import asyncio
import json

import grpc
import pytest
from semantics.support import World
from taskforge.v1 import dead_letter_service_pb2 as dead_pb
from taskforge.v1 import event_service_pb2, event_service_pb2_grpc, run_service_pb2


async def test_release_train_publishes_when_all_is_well(world: World):
    await world.apply("release-train")
    run = await world.ended(await world.start("release-train"))
    assert run.state == "SUCCEEDED"
    assert run.states["apologise"] == "SKIPPED"
    paths = world.service.paths()
    assert set(paths) == {"/unit", "/lint", "/docs", "/publish", "/tidy"}
    assert paths[-2:] == ["/publish", "/tidy"]


async def test_release_train_with_a_warning_publishes_all_the_same(world: World):
    world.service.script("/lint", (400, {}))
    await world.apply("release-train")
    run = await world.ended(await world.start("release-train"))
    assert (run.state, run.output) == ("SUCCEEDED", {"lint": "FAILED"})
    assert world.service.bodies("/tidy") == [{"lint": "FAILED"}]


async def test_release_train_apologises_and_tidies_up_when_publishing_fails(world: World):
    world.service.script("/publish", (400, {}))
    await world.apply("release-train")
    run = await world.ended(await world.start("release-train"))
    assert run.state == "FAILED"
    assert run.error.step == "publish"
    assert (run.states["apologise"], run.states["tidy"]) == ("SUCCEEDED", "SUCCEEDED")


async def test_release_train_skips_what_needs_a_failed_check(world: World):
    world.service.script("/unit", (400, {}))
    await world.apply("release-train")
    run = await world.ended(await world.start("release-train"))
    assert run.state == "FAILED"
    assert run.states == {
        "prepare": "SUCCEEDED",
        "unit": "FAILED",
        "lint": "SUCCEEDED",
        "docs": "SUCCEEDED",
        "publish": "SKIPPED",
        "apologise": "SUCCEEDED",  # failure() looks through what was skipped
        "tidy": "SUCCEEDED",
    }


HOSTS = {"hosts": [{"name": "a", "ports": [80, 443]}, {"name": "b", "ports": []}, {"name": "c", "ports": [22]}]}


async def test_probe_hosts_answers_in_the_order_of_the_items(world: World):
    world.service.script("/probe", (200, {"open": True}))
    await world.apply("probe-hosts")
    run = await world.ended(await world.start("probe-hosts", HOSTS))
    assert run.state == "SUCCEEDED"
    assert run.output == [
        {"host": "a", "open": [True, True]},
        {"host": "b", "open": []},
        {"host": "c", "open": [True]},
    ]
    assert sorted(map(str, world.service.bodies("/probe"))) == sorted(
        map(str, [{"host": "a", "port": 80}, {"host": "a", "port": 443}, {"host": "c", "port": 22}])
    )
    assert run.steps["hosts"].item_count == run.steps["hosts"].items_ended == 3
    assert run.states["hosts[0].ports[1]"] == "SUCCEEDED"
    await world.intact(run.id)


async def test_probe_hosts_stands_one_failure_and_not_two(world: World):
    await world.apply("probe-hosts")
    world.service.script("/probe", (400, {}), (200, {"open": True}))
    one = await world.ended(
        await world.start("probe-hosts", {"hosts": [{"name": "a", "ports": [1]}, HOSTS["hosts"][1]]})
    )
    assert (one.state, one.output) == ("SUCCEEDED", [None, {"host": "b", "open": []}])
    world.service.script("/probe", (400, {}))
    many = {"hosts": [{"name": name, "ports": [1]} for name in "abcdef"]}
    two = await world.ended(await world.start("probe-hosts", many))
    assert two.state == "FAILED"
    assert two.steps["hosts"].items_failed in (2, 3), "two were at work, and none was started after the second"
    assert two.error.step == "hosts[0].ports[0]"


async def test_onboarding_starts_a_sub_workflow_and_tells_everybody(world: World):
    await world.apply("create-mailbox", "onboard-customer")
    run = await world.ended(await world.start("onboard-customer", {"customer": "ada"}, correlation_id="order-17"))
    assert run.state == "SUCCEEDED"
    assert run.output["address"] == "ada@example.net"
    child = await world.get(run.steps["mailbox"].child_run_id)
    assert (child.state, child.message.trigger) == ("SUCCEEDED", "workflow")
    assert (child.message.parent_run_id, child.message.parent_step) == (run.id, "mailbox")
    assert child.message.correlation_id == "order-17"
    events = world.daemon.stub(event_service_pb2_grpc.EventServiceStub)
    event = (await events.GetEvent(event_service_pb2.GetEventRequest(event_id=run.output["event"]))).event
    assert event.source == "internal"
    assert json.loads(event.body) == {"address": "ada@example.net", "customer": "ada"}
    await world.intact(run.id)
    await world.intact(child.id)


async def test_a_failed_sub_workflow_fails_the_step_and_names_the_run(world: World):
    world.service.script("/mailboxes", (400, {}))
    await world.apply("create-mailbox", "onboard-customer")
    run = await world.ended(await world.start("onboard-customer", {"customer": "bob"}))
    assert (run.state, run.error.code, run.error.step) == ("FAILED", "child_failed", "mailbox")
    assert json.loads(run.error.details_json)["run_id"] == run.steps["mailbox"].child_run_id


async def test_the_version_of_a_sub_workflow_is_that_of_the_parents_creation(world: World):
    await world.apply(
        "name: pin-child\nsteps:\n  - id: say\n    transform: {v: 1}\noutput: {v: 1}\n",
        "name: pin-parent\nsteps:\n  - id: nap\n    sleep: 500ms\n  - id: sub\n    workflow: pin-child\n"
        "output: ${{ steps.sub.output }}\n",
    )
    run_id = await world.start("pin-parent")
    await world.apply("name: pin-child\nsteps:\n  - id: say\n    transform: {v: 2}\noutput: {v: 2}\n")
    assert (await world.ended(run_id)).output == {"v": 1}
    assert (await world.ended(await world.start("pin-parent"))).output == {"v": 2}


async def test_deploying_waits_for_approval_and_for_a_signal(world: World):
    await world.apply("approve-deploy")
    run_id = await world.start("approve-deploy", {"tag": "v2", "patience": "10ms"})
    asking = await world.until(run_id, ask="WAITING")
    assert (asking.steps["ask"].waiting_for, asking.steps["ask"].message) == ("approval", "Deploy v2?")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.call("ApproveRun", run_id=run_id, payload_json='{"ticket": "no"}')
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await world.call("ApproveRun", run_id=run_id, payload_json='{"ticket": "OPS-7"}', comment="looks good")
    await world.call("ApproveRun", run_id=run_id, step="ask", payload_json='{"ticket": "OPS-7"}')  # again: no harm
    await world.until(run_id, healthy="WAITING")
    await world.call("SignalRun", run_id=run_id, signal="healthy", payload_json='{"seconds": 3}')
    run = await world.ended(run_id)
    assert (run.state, run.output) == ("SUCCEEDED", {"approved_by": "home", "healthy": True})
    assert world.service.bodies("/deploy") == [{"tag": "v2", "ticket": "OPS-7"}]
    assert run.output_of("healthy") == {"by": "home", "payload": {"seconds": 3}, "signal": "healthy"}
    await world.intact(run_id)


async def test_a_signal_that_comes_early_is_kept_and_an_unknown_one_refused(world: World):
    await world.apply("approve-deploy")
    run_id = await world.start("approve-deploy", {"tag": "v3", "patience": "10ms"})
    await world.call("SignalRun", run_id=run_id, signal="healthy", request_id="s1")
    await world.call("SignalRun", run_id=run_id, signal="healthy", request_id="s1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.call("SignalRun", run_id=run_id, signal="helthy")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "it knows healthy" in (refused.value.details() or "")
    await world.call("ApproveRun", run_id=run_id, payload_json='{"ticket": "OPS-8"}')
    run = await world.ended(run_id)
    assert run.state == "SUCCEEDED"
    assert (await world.kinds(run_id)).count("run.signalled") == 1


async def test_a_rejection_fails_the_run_and_says_who(world: World):
    await world.apply("approve-deploy")
    run_id = await world.start("approve-deploy", {"tag": "v4"})
    await world.until(run_id, ask="WAITING")
    await world.call("RejectRun", run_id=run_id, comment="not today")
    run = await world.ended(run_id)
    assert (run.state, run.error.code) == ("FAILED", "rejected")
    assert run.error.message == "rejected by home: not today"
    assert world.service.paths() == []


async def test_a_trip_that_cannot_be_booked_is_undone_backwards(world: World):
    world.service.script("/flights", (200, {"flight": 7}))
    world.service.script("/cars", (409, {"error": "none left"}))
    world.service.script("/flights/cancel", (503, {}), (200, {}))
    await world.apply("book-trip")
    run = await world.ended(await world.start("book-trip"))
    assert run.state == "FAILED"
    assert world.service.paths() == [
        *("/flights", "/hotels", "/cars"),
        *("/hotels/cancel", "/flights/cancel", "/flights/cancel", "/tell"),
    ]
    assert world.service.bodies("/flights/cancel")[0] == {"flight": 7}
    assert world.service.bodies("/tell")[0]["step"] == "car"
    assert run.states["flight:compensate"] == run.states["hotel:compensate"] == "SUCCEEDED"
    await world.intact(run.id)


async def test_cards_are_charged_one_after_the_other(world: World):
    await world.apply("charge-card")
    world.service.hold("/charges")
    first = await world.start("charge-card", {"cents": 1})
    second = await world.start("charge-card", {"cents": 2})
    await world.service.called("/charges")
    waiting = await world.get(second)
    assert waiting.state == "PENDING"
    assert waiting.message.concurrency_group == f"charge-{world.service.url}"
    world.service.let_go("/charges")
    assert {(await world.ended(run)).state for run in (first, second)} == {"SUCCEEDED"}
    assert world.service.bodies("/charges") == [{"cents": 1}, {"cents": 2}]


async def test_a_cancelled_charge_runs_on_cancel(world: World):
    await world.apply("charge-card")
    world.service.hold("/charges")
    run_id = await world.start("charge-card", {"cents": 3})
    await world.service.called("/charges")
    await world.call("CancelRun", run_id=run_id, reason="mistake")
    run = await world.ended(run_id)
    assert run.state == "CANCELLED"
    assert run.states == {"charge": "CANCELLED", "note": "SUCCEEDED"}
    await world.intact(run_id)


async def test_stock_that_cannot_be_pushed_is_a_dead_letter_and_its_retry_fetches_nothing_again(world: World):
    world.service.script("/stock", (200, {"apples": 3}))
    world.service.script("/shop", (503, {}))
    await world.apply("sync-inventory")
    run = await world.ended(await world.start("sync-inventory"))
    assert (run.state, run.error.step, run.error.attempts) == ("DEAD", "push", 3)
    assert run.message.priority == 7
    letter = (await world.dead.GetDeadLetter(dead_pb.GetDeadLetterRequest(run_id=run.id))).dead_letter
    assert (letter.error.code, letter.attempts) == ("http_status", 3)
    world.service.script("/shop", (200, {}))
    request = dead_pb.RetryDeadLettersRequest(run_ids=[run.id])
    (result,) = (await world.dead.RetryDeadLetters(request)).results
    retry = await world.ended(result.new_run_id)
    assert retry.state == "SUCCEEDED"
    assert retry.message.retry_of == run.id
    assert retry.steps["fetch"].pinned
    assert world.service.paths() == ["/stock", "/shop", "/shop", "/shop", "/shop"]
    (again,) = (await world.dead.RetryDeadLetters(request)).results
    assert again.new_run_id == retry.id
    assert (await world.get(run.id)).message.retried_by == retry.id
    await world.intact(retry.id)


async def test_a_failure_that_retry_if_excludes_is_not_tried_again(world: World):
    world.service.script("/shop", (403, {}))
    await world.apply("sync-inventory")
    run = await world.ended(await world.start("sync-inventory"))
    assert (run.state, run.error.attempts) == ("FAILED", 1)


async def test_a_folder_is_archived_by_a_program(world: World, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    await world.apply("archive-folder")
    run_id = await world.start("archive-folder", {"folder": str(tmp_path / "in"), "archive": str(tmp_path / "out.tar")})
    run = await world.ended(run_id)
    assert (run.state, sorted(run.output["files"])) == ("SUCCEEDED", ["./", "./a.txt"])
    assert (tmp_path / "out.tar").stat().st_size
    page = await world.call("GetRunLogs", run_id=run_id, step="pack")
    assert "./a.txt" in [entry.text for entry in page.entries if entry.stream == "stdout"]


async def test_logs_of_a_running_program_come_live(world: World):
    await world.apply(
        "name: talks\nsteps:\n  - id: talk\n    shell:\n      command: [/bin/sh, -c, 'echo one; sleep 1; echo two']\n"
    )
    run_id = await world.start("talks")
    began = asyncio.get_running_loop().time()
    seen = {}
    request = run_service_pb2.WatchRunLogsRequest(run_id=run_id)
    async for portion in world.daemon.runs.WatchRunLogs(request, timeout=20):
        for entry in portion.entries:
            if entry.stream == "stdout":
                seen[entry.text] = asyncio.get_running_loop().time() - began
    assert list(seen) == ["one", "two"]
    assert seen["two"] - seen["one"] > 0.5
