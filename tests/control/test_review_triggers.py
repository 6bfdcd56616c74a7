"""What a review of the triggers found: each of these failed before it was mended."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp
from switchboard import eventually, hex_mac, state
from taskforge.v1 import trigger_pb2

SIGNED = """
name: {name}
on:
  hook:
    webhook: {{path: shared, verify: {{scheme: hmac, secret: {secret}, header: X-Sig}}}}
steps:
  - {{id: a, transform: {{n: 1}}}}
"""
BOSS = """
name: boss
on:
  go:
    event: {{type: go}}
    for_each: namespaces.filter(n, n.labels.plan == "{plan}")
steps:
  - {{id: part, workflow: {{name: part}}}}
"""
TICK = """
name: tick
on:
  each: {{cron: {{schedule: "{schedule}", seconds: true, overlap: cancel_running}}{more}}}
steps:
  - {{id: a, sleep: 200ms}}
"""


async def test_a_sub_workflow_runs_for_a_tenant_only_when_its_author_may(board):
    plan = f"pro-{board.namespace}"
    await board.fresh(plan=plan)
    await board.apply(BOSS.format(plan=plan))
    confined = (await board.token("OPERATOR")).secret
    await board.apply("name: part\nsteps:\n  - {id: a, transform: 1}\n", bearer=confined)
    event = await board.publish("go")
    (run_id,) = event.runs
    run = await board.ended(run_id)
    assert state(run) == "FAILED"
    assert "may not use" in run.error.message
    await board.apply("name: part\nsteps:\n  - {id: a, transform: 1}\n")  # somebody who may vouches for it
    (run_id,) = (await board.publish("go")).runs
    assert state(await board.ended(run_id)) == "SUCCEEDED"


async def test_two_senders_with_the_same_body_are_two(board):
    for name in ("one", "two"):
        await board.secret(name.upper(), f"secret of {name}")
        await board.apply(SIGNED.format(name=name, secret=name.upper()))
    body, answers = b'{"tick":1}', []
    for name in ("one", "two", "one", "two"):
        headers = {"X-Sig": hex_mac(f"secret of {name}", body), "Content-Type": "application/json"}
        answers.append(await board.post("shared", body, headers))
    assert [(one.status, one.body["outcome"]) for one in answers] == [(202, "ACCEPTED")] * 2 + [(200, "DUPLICATE")] * 2
    assert answers[0].body["run_ids"] == answers[2].body["run_ids"]
    assert {run.workflow for run in await board.runs()} == {"one", "two"}


async def test_a_backfill_is_not_cancelled_by_what_the_schedule_says_of_overlaps(board):
    await board.apply(TICK.format(schedule="0 * * * * *", more=""))
    now = int(time.time()) // 60 * 60
    done = await board(
        "BackfillSchedule", workflow="tick", **{"from": Timestamp(seconds=now - 300), "to": Timestamp(seconds=now)}
    )
    assert len(done.slots) == 5
    runs = [await board.ended(slot.run_ids[0]) for slot in done.slots]
    assert [state(run) for run in runs] == ["SUCCEEDED"] * 5


async def test_items_of_one_due_time_do_not_cancel_each_other(board):
    await board.apply(TICK.format(schedule="*/4 * * * * *", more=", for_each: [a, b, c]"))
    fired = trigger_pb2.ScheduleSlot.OUTCOME_FIRED

    async def slots():
        return list((await board("ListScheduleSlots", workflow="tick", outcomes=[fired])).slots)

    (slot, *_) = await eventually(slots, lambda found: found)
    runs = [await board.ended(one) for one in slot.run_ids]
    assert [state(run) for run in runs] == ["SUCCEEDED"] * 3


async def test_a_viewer_does_not_see_what_led_here_from_elsewhere(board):
    plan = f"pro-{board.namespace}"
    tenant = await board.fresh(plan=plan)
    await board.apply(BOSS.format(plan=plan).replace("type: go", "type: project.secret"))
    await board.apply("name: part\nsteps:\n  - {id: a, event: {type: tenant.done}}\n")
    await board.publish("project.secret")

    async def told():
        return await tenant.listed(type="tenant.done")

    (event,) = await eventually(told, lambda found: found)
    viewer = (await tenant.token("VIEWER")).secret
    story = await tenant("ExplainEvent", event_id=event.id, bearer=viewer)
    assert story.causes
    assert {(one.event_id, one.event_type) for one in story.causes} == {("", "")}
    whole = await tenant("ExplainEvent", event_id=event.id)
    assert "project.secret" in {one.event_type for one in whole.causes}


async def test_runs_of_others_workflows_are_found_by_name_and_names_are_not_told(board):
    plan = f"pro-{board.namespace}"
    tenant = await board.fresh(plan=plan)
    await board.apply(BOSS.format(plan=plan))
    await board.apply("name: part\nsteps:\n  - {id: a, transform: 1}\n")
    await board.apply("name: hidden\nsteps:\n  - {id: a, transform: 1}\n")
    await board.publish("go")
    assert {run.workflow for run in await tenant.runs(workflow="boss")} == {"boss"}
    viewer = (await tenant.token("VIEWER")).secret
    told = {await tenant.refused("NOT_FOUND", "ListRuns", workflow=name, bearer=viewer) for name in ("hidden", "none")}
    assert len({text.replace("hidden", "none") for text in told}) == 1


async def test_a_repeated_fire_without_payload_is_another_call(board):
    await board.apply("name: w\non: {got: {event: {type: go}}}\nsteps:\n  - {id: a, transform: 1}\n")
    await board.fire("w", {"secret": 1}, request_id="r1")
    assert "another call" in await board.refused("ALREADY_EXISTS", "FireTrigger", workflow="w", request_id="r1")


async def test_strangers_do_not_use_up_the_requests_of_a_namespace(own):
    await own.secret("ONE", "secret of one")
    await own.apply(SIGNED.format(name="one", secret="ONE"))
    await own("SetNamespace", name="default", requests_per_second=2)
    body = b'{"tick":1}'
    forged = {"X-Sig": "00", "Content-Type": "application/json"}
    assert {(await own.post("shared", body, forged)).status for _ in range(10)} == {401}
    good = {"X-Sig": hex_mac("secret of one", body), "Content-Type": "application/json"}
    assert (await own.post("shared", body, good)).status == 202
