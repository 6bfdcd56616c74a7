"""The examples whose triggers start them, on a real daemon: whom they start, with what, and whom not."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import urlencode

import pytest
from semantics.stage import Stage, eventually
from taskforge.v1 import (
    event_pb2,
    namespace_service_pb2,
    namespace_service_pb2_grpc,
    trigger_pb2,
    trigger_service_pb2,
)

TENANTS = {"acme": "pro", "beta": "free", "zeta": "pro"}


# --- for each tenant -------------------------------------------------------------------------------------------------


@pytest.fixture
async def tenants(stage: Stage) -> Stage:
    """Three tenants, of which two are pro, each with a secret of its own."""
    stub = stage.daemon.stub(namespace_service_pb2_grpc.NamespaceServiceStub)
    for name, plan in TENANTS.items():
        await stub.SetNamespace(namespace_service_pb2.SetNamespaceRequest(name=name, labels={"plan": plan}))
        await stage.secret("BILLING_TOKEN", f"token-of-{name}", name)
    return stage


async def runs_by_namespace(stage: Stage) -> dict[str, list[str]]:
    """The runs of the billing workflow."""
    return {
        name: [run.id for run in await stage.daemon.list_runs(namespace=name) if run.workflow == "recalculate-billing"]
        for name in (*TENANTS, "default")
    }


async def bill(stage: Stage, run_ids: list[str], before: dict[str, list[str]]) -> None:
    """These runs are exactly one for each tenant that is pro, in his namespace, with his secret."""
    ended = [await stage.ended(one) for one in run_ids]
    assert sorted((run.message.namespace, run.state) for run in ended) == [
        ("acme", "SUCCEEDED"),
        ("zeta", "SUCCEEDED"),
    ]
    after = await runs_by_namespace(stage)
    new = {name: [one for one in after[name] if one not in before[name]] for name in after}
    assert {name: len(found) for name, found in new.items()} == {"acme": 1, "beta": 0, "zeta": 1, "default": 0}
    assert sorted(new["acme"] + new["zeta"]) == sorted(run_ids)
    called = zip(stage.service.headers("/recalculate"), stage.service.bodies("/recalculate"), strict=True)
    assert sorted((headers["Authorization"], body["tenant"]) for headers, body in called) == [
        ("Bearer token-of-acme", "acme"),
        ("Bearer token-of-zeta", "zeta"),
    ]
    for run in ended:
        await stage.intact(run.id)


async def test_billing_is_recalculated_for_each_tenant_with_the_plan_pro_when_the_trigger_is_fired(tenants: Stage):
    await tenants.put("recalculate-billing")
    before = await runs_by_namespace(tenants)
    event = await tenants.fire("recalculate-billing")
    assert event.outcome == event_pb2.Event.OUTCOME_ACCEPTED
    (verdict,) = event.verdicts
    assert [(one.namespace, bool(one.run_id)) for one in verdict.items] == [("acme", True), ("zeta", True)]
    await bill(tenants, list(event.run_ids), before)


async def test_billing_is_recalculated_once_for_each_tenant_with_the_plan_pro_when_it_is_due(tenants: Stage):
    before = await runs_by_namespace(tenants)
    for lead_s in (2, 4, 8, 16):
        at = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=lead_s)
        await put_due_once(tenants, at)
        if dt.datetime.now(dt.UTC) < at:  # else the machine was too slow: the due time is older than the schedule
            break
    (slot,) = await eventually(lambda: slots_since(tenants, at), bool)
    assert (slot.outcome, slot.count) == (trigger_pb2.ScheduleSlot.OUTCOME_FIRED, 1)
    assert slot.due_time.ToDatetime(dt.UTC) == at
    await bill(tenants, list(slot.run_ids), before)
    assert {dt.datetime.fromisoformat(body["due"]) for body in tenants.service.bodies("/recalculate")} == {at}
    assert len(await slots_since(tenants, at)) == 1


async def put_due_once(stage: Stage, at: dt.datetime) -> None:
    """Apply the example, due every second of one second."""
    until = at + dt.timedelta(seconds=1)
    await stage.put(
        "recalculate-billing",
        (
            "schedule: 0 7 * * *",
            f'schedule: "* * * * * *"\n      seconds: true\n      start: {at.isoformat()}\n      end: {until.isoformat()}',
        ),
    )


async def slots_since(stage: Stage, at: dt.datetime) -> list[trigger_pb2.ScheduleSlot]:
    """The ledger from a time on."""
    request = trigger_service_pb2.ListScheduleSlotsRequest(workflow="recalculate-billing")
    request.since.FromDatetime(at)
    return list((await stage.triggers.ListScheduleSlots(request, timeout=20)).slots)


async def test_billing_is_due_at_seven_whatever_the_clocks_do(tenants: Stage):
    await tenants.put("recalculate-billing")
    request = trigger_service_pb2.PreviewScheduleRequest(workflow="recalculate-billing", count=3)
    request.after.FromDatetime(dt.datetime(2026, 3, 28))
    found = (await tenants.triggers.PreviewSchedule(request, timeout=20)).due_times
    assert [one.local_time for one in found] == [
        "2026-03-28T07:00:00+01:00",
        "2026-03-29T07:00:00+02:00",
        "2026-03-30T07:00:00+02:00",
    ]


# --- a backup --------------------------------------------------------------------------------------------------------


async def test_a_backup_is_named_after_the_local_day_and_can_be_made_again(stage: Stage, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    await stage.put("nightly-backup", ("/srv/data", str(tmp_path / "data")), ("/srv/backups", str(tmp_path)))
    for _ in range(2):
        payload = {"local_time": "2026-03-29T03:00:00+02:00"}
        (run_id,) = (await stage.fire("nightly-backup", payload)).run_ids
        run = await stage.ended(run_id)
        assert (run.state, run.output) == ("SUCCEEDED", {"archive": f"{tmp_path}/data-2026-03-29.tar.gz"})
    assert (tmp_path / "data-2026-03-29.tar.gz").stat().st_size
    request = trigger_service_pb2.GetTriggerRequest(workflow="nightly-backup")
    schedule = (await stage.triggers.GetTrigger(request, timeout=20)).trigger.schedule
    assert (schedule.misfire, schedule.misfire_window.seconds, schedule.overlap) == ("latest", 72_000, "skip")
    assert 0 <= schedule.delay.ToTimedelta().total_seconds() < 900


# --- internal events -------------------------------------------------------------------------------------------------


async def test_an_order_that_is_paid_is_shipped_and_both_are_written_down(stage: Stage):
    await stage.put("order-events")
    await stage.put("order-journal")
    event = await stage.publish("order.paid", {"order": 4711, "total": 120})
    assert event.outcome == event_pb2.Event.OUTCOME_ACCEPTED
    assert {verdict.workflow: verdict.matched for verdict in event.verdicts} == {
        "order-events": True,
        "order-journal": True,
    }
    for run_id in event.run_ids:
        assert (await stage.ended(run_id)).state == "SUCCEEDED"
    (shipped,) = await stage.listed("order.shipped")
    assert (json.loads(shipped.body), shipped.depth) == ({"order": 4711}, 1)
    assert shipped.publisher_run_id in event.run_ids
    for run_id in shipped.run_ids:
        assert (await stage.ended(run_id)).state == "SUCCEEDED"
    assert stage.service.bodies("/ship") == [{"order": 4711}]
    assert sorted(body["what"] for body in stage.service.bodies("/journal")) == ["order.paid", "order.shipped"]
    await stage.remove("order-events", "order-journal")


async def test_an_order_that_is_not_to_be_shipped_says_which_part_of_the_condition_was_false(stage: Stage):
    await stage.put("order-events", ("name: order-events", "name: order-events-strict"))
    event = await stage.publish("order.paid", {"order": 1, "total": 120, "test": True})
    (verdict,) = [one for one in event.verdicts if one.workflow == "order-events-strict"]
    assert (verdict.matched, verdict.clause) == (False, "!has(event.body.test)")
    assert stage.service.paths() == []
    await stage.remove("order-events-strict")


async def test_failures_are_told_and_an_alert_that_fails_alerts_nobody(stage: Stage):
    await stage.put("alert-on-failure", ("delay: 1s", "delay: 1ms"))
    await stage.apply("name: breaks\nsteps:\n  - {id: now, fail: it broke}\n")
    await stage.apply("name: endless\ntimeout: 100ms\nsteps:\n  - {id: nap, sleep: 1h}\n")
    for workflow in ("breaks", "endless"):
        await stage.ended(await stage.start(workflow))
    events = await stage.listed("run.failed", 2)
    for run_id in [run_id for event in events for run_id in event.run_ids]:
        assert (await stage.ended(run_id)).state == "SUCCEEDED"
    sent = {(headers["Title"], headers["Priority"]) for headers in stage.service.headers("/alerts")}
    assert sent == {("breaks FAILED", "3"), ("endless FAILED", "3")}
    texts = stage.service.texts("/alerts")
    assert any(text.startswith("now: it broke\n") for text in texts), texts
    assert any(text.startswith("the run: ") for text in texts), "a time limit has no step"

    stage.service.script("/alerts", (503, {}))
    await stage.ended(await stage.start("breaks"))
    (dead,) = await stage.listed("run.dead")
    assert json.loads(dead.body)["workflow"] == "alert-on-failure"
    assert (dead.outcome, list(dead.run_ids)) == (event_pb2.Event.OUTCOME_FILTERED, [])
    await stage.remove("alert-on-failure")


# --- webhooks --------------------------------------------------------------------------------------------------------


def signature(secret: str, text: bytes) -> str:
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def stripe(secret: str, session: str, status: str = "paid") -> tuple[bytes, dict[str, str]]:
    """What Stripe sends when a checkout is over."""
    object_ = {"payment_status": status, "client_reference_id": "4711", "amount_total": 12_050, "currency": "eur"}
    payload = {"id": session, "object": "event", "type": "checkout.session.completed", "data": {"object": object_}}
    body, at = json.dumps(payload).encode(), str(int(time.time()))
    signed = f"t={at},v1={signature(secret, at.encode() + b'.' + body)},v0=00"
    return body, {"Stripe-Signature": signed, "Content-Type": "application/json; charset=utf-8"}


async def test_a_payment_becomes_an_event_once_also_while_the_secret_changes(stage: Stage):
    await stage.secret("STRIPE_WEBHOOK_SECRET", "whsec_old")
    await stage.put("stripe-payments")
    body, headers = stripe("whsec_old", "evt_1")
    status, first = await stage.post("stripe", body, headers)
    assert (status, first["outcome"]) == (202, "ACCEPTED")
    run = await stage.ended(first["run_ids"][0])
    published = await stage.event(run.output["event"])
    assert (published.type, json.loads(published.body)) == (
        "order.paid",
        {"order": 4711, "total": 120.5, "currency": "eur"},
    )

    await stage.secret("STRIPE_WEBHOOK_SECRET_NEW", "whsec_new")
    status, again = await stage.post("stripe", *stripe("whsec_new", "evt_1"))
    assert (status, again["outcome"], again["run_ids"]) == (200, "DUPLICATE", first["run_ids"])
    status, unpaid = await stage.post("stripe", *stripe("whsec_new", "evt_2", "unpaid"))
    assert (status, unpaid["outcome"], unpaid["run_ids"]) == (202, "FILTERED", [])
    status, _ = await stage.post("stripe", *stripe("whsec_other", "evt_3"))
    assert status == 401


async def test_slack_gets_the_output_of_the_run_as_its_answer(stage: Stage):
    await stage.secret("SLACK_SIGNING_SECRET", "8f742231b10e8888abcd99yyyzzz85a5")
    await stage.put("slack-command", ("wait: 2500ms", "wait: 30s"))  # the machine may be slow
    stage.service.script("/status", (200, {"state": "up"}), (404, {}))
    answers = []
    for text in ("nas", "web"):
        fields = {"command": "/lab", "text": f" {text} ", "user_name": "ada", "trigger_id": f"1.{text}"}
        body, at = urlencode(fields).encode(), str(int(time.time()))
        signed = signature("8f742231b10e8888abcd99yyyzzz85a5", f"v0:{at}:".encode() + body)
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Slack-Request-Timestamp": at,
            "X-Slack-Signature": f"v0={signed}",
        }
        answers.append(await stage.post("slack/lab", body, headers))
    assert answers == [
        (200, {"response_type": "ephemeral", "text": "nas is up"}),
        (200, {"response_type": "ephemeral", "text": "nobody knows how web is"}),
    ]


async def test_each_alert_that_fires_is_handled_and_not_twice_at_a_time(stage: Stage):
    await stage.secret("ALERTMANAGER_TOKEN", "am-token")
    await stage.put("alertmanager")
    stage.service.hold("/services/nas/restart")

    def alert(name: str, status: str, **labels: str) -> dict[str, Any]:
        return {"status": status, "labels": {"alertname": "Down", **labels}, "fingerprint": f"fp-{name}"}

    alerts = [
        alert("nas", "firing", service="nas"),
        alert("web", "resolved", service="web"),
        alert("dns", "firing", service="dns"),
        alert("lan", "firing"),
    ]
    body = json.dumps({"version": "4", "status": "firing", "alerts": alerts}).encode()
    headers = {"Authorization": "Bearer am-token", "Content-Type": "application/json"}
    status, first = await stage.post("alertmanager", body, headers)
    assert (status, len(first["run_ids"])) == (202, 2)
    await stage.service.called("/services/nas/restart")
    status, again = await stage.post("alertmanager", body, headers)
    assert (status, len(again["run_ids"])) == (202, 2), "it is no repetition: Alertmanager reminds"
    states = {run.message.concurrency_group: run.state for run in [await stage.ended(again["run_ids"][0])]}
    assert states == {"alert-fp-nas": "CANCELLED"}
    stage.service.let_go("/services/nas/restart")
    for run_id in first["run_ids"]:
        assert (await stage.ended(run_id)).state == "SUCCEEDED"
    assert stage.service.bodies("/services/nas/restart") == [{"because": "Down"}]
    password = base64.b64encode(b"am:am-token").decode()
    assert (await stage.post("alertmanager", body, {"Authorization": f"Basic {password}"}))[0] == 401
    event = await stage.event(first["event_id"])
    assert event.headers["authorization"] == "***"
