"""The verbs of `trigger` against a fake: what they ask, what they tell, how they end."""

from __future__ import annotations

import io
import json
import sys

import grpc
import pytest
from cli.fake import Refusal
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import event_pb2, run_pb2, trigger_pb2
from taskforge.v1 import run_service_pb2 as runs
from taskforge.v1 import trigger_service_pb2 as pb

TRIGGER, RUN = trigger_pb2.Trigger, run_pb2.Run
EVIL = "a\x1b[31mb\u202e"
CREATED = Timestamp(seconds=1_700_000_000)


def _trigger(**fields) -> trigger_pb2.Trigger:
    values = {"workflow": "deploy", "trigger": "github", "kind": TRIGGER.KIND_WEBHOOK, "workflow_active": True} | fields
    return TRIGGER(id="trg_1", namespace="default", version=3, create_time=CREATED, **values)


def _nightly(**fields) -> trigger_pb2.Trigger:
    schedule = trigger_pb2.Schedule(
        expression="0 3 * * *",
        timezone="Europe/Berlin",
        misfire="latest",
        misfire_window=Duration(seconds=3600),
        misfire_cap=10,
        overlap="skip",
        delay=Duration(seconds=90),
        gap="shift",
        fold="first",
        profile="cron/1",
        next_due_time=Timestamp(seconds=1_900_000_000),
    )
    detail = "0 3 * * * Europe/Berlin"
    return _trigger(trigger="nightly", kind=TRIGGER.KIND_CRON, detail=detail, schedule=schedule, **fields)


# --- list and show ---------------------------------------------------------------------------------------------------


def test_list(call):
    found = [_trigger(detail=f"POST {EVIL}"), _nightly(), _trigger(trigger="off", paused=True)]
    found.append(_trigger(trigger="dark", workflow_active=False))
    call.fake.answers["ListTriggers"] = lambda _: pb.ListTriggersResponse(triggers=found)
    told = call("trigger", "list", "--workflow", "deploy", "--kind", "cron", "--kind", "WEBHOOK", "-n", "ops").out
    request = call.request
    assert (request.namespace, request.workflow) == ("ops", "deploy")
    assert list(request.kinds) == [TRIGGER.KIND_CRON, TRIGGER.KIND_WEBHOOK]
    for part in ("deploy/github", "webhook", "active", "POST a[31mb", "PAUSED", "inactive", "2030-03-17 "):
        assert part in told, part
    assert call("trigger", "list", "-o", "name").out.splitlines()[:2] == ["deploy/github", "deploy/nightly"]
    assert list(call.request.kinds) == []
    shown = json.loads(call("trigger", "list", "-o", "json").out)
    assert (shown[0]["kind"], shown[0]["schedule"], shown[1]["schedule"]["delay"]) == ("WEBHOOK", None, "90s")
    call.fake.answers["ListTriggers"] = lambda _: pb.ListTriggersResponse()
    assert "no triggers yet" in call("trigger", "list").out
    assert call("trigger", "list", "--kind", "event").out == "no triggers fit\n"


def test_show(call):
    found = _nightly(
        paused=True,
        pause_time=CREATED,
        paused_by="tok_1",
        pause_reason=f"window {EVIL}",
        last_event_id="evt_1",
        last_fire_time=CREATED,
        applied_by="tok_2",
    )
    call.fake.answers["GetTrigger"] = lambda _: pb.GetTriggerResponse(trigger=found)
    told = call("trigger", "show", "deploy/nightly").out
    assert (call.request.workflow, call.request.trigger) == ("deploy", "nightly")
    for part in (
        "PAUSED",
        "by tok_1",
        "window a[31mb",
        "by evt_1",
        "latest, not later than 1h00m, at most 10 at once",
        "gap shift, fold first",
        "1m30s",
        "Europe/Berlin",
        "cron/1",
        "tok_2",
    ):
        assert part in told, part
    call("trigger", "show", "deploy")
    assert (call.request.workflow, call.request.trigger) == ("deploy", "")
    assert call("trigger", "show", "deploy", "-o", "name").out == "deploy/nightly\n"


def test_one_of_several_is_to_be_named(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "several triggers: a, b", {"trigger": "several triggers: a, b"})

    call.fake.answers["GetTrigger"] = refuse
    assert call("trigger", "show", "deploy", code=2).err == "error: several triggers: a, b\n"


def test_pause_and_resume(call):
    call.fake.answers["PauseTrigger"] = lambda _: pb.PauseTriggerResponse(trigger=_trigger(paused=True))
    call.fake.answers["ResumeTrigger"] = lambda _: pb.ResumeTriggerResponse(trigger=_trigger())
    assert call("trigger", "pause", "deploy/github", "--reason", "window").out == "deploy/github  PAUSED\n"
    assert (call.request.workflow, call.request.trigger, call.request.reason) == ("deploy", "github", "window")
    assert call("trigger", "resume", "deploy").out == "deploy/github  active\n"
    assert json.loads(call("trigger", "pause", "deploy", "-o", "json").out)["paused"] is True


# --- fire ------------------------------------------------------------------------------------------------------------


def _fired(*run_ids: str, **verdict) -> event_pb2.Event:
    values = {"workflow": "deploy", "version": 3, "trigger": "github", "matched": bool(run_ids), "run_ids": run_ids}
    return event_pb2.Event(
        id="evt_1",
        source="manual",
        outcome=event_pb2.Event.OUTCOME_ACCEPTED if run_ids else event_pb2.Event.OUTCOME_FILTERED,
        run_ids=run_ids,
        verdicts=[event_pb2.Verdict(**(values | verdict))],
    )


def test_fire(call, tmp_path):
    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=_fired("run_1"))
    arguments = ["--header", "X-Event=a=b", "--type", "order.paid", "--request-id", "r"]
    told = call("trigger", "fire", "deploy/github", "--payload", '{"n": 1.10}', *arguments).out
    request = call.request
    assert (request.payload_json, dict(request.headers)) == ('{"n": 1.10}', {"x-event": "a=b"})
    assert (request.type, request.request_id) == ("order.paid", "r")
    assert told.startswith("evt_1  ACCEPTED\n")
    assert "run_1" in told
    (tmp_path / "p.json").write_text("[]")
    shown = json.loads(call("trigger", "fire", "deploy", "--payload-file", str(tmp_path / "p.json"), "-o", "json").out)
    assert (shown["id"], shown["run_ids"], shown["runs"]) == ("evt_1", ["run_1"], None)
    assert call.request.payload_json == "[]"
    assert call.request.request_id
    assert call("trigger", "fire", "deploy", "-o", "name").out == "evt_1\n"
    assert call.request.payload_json == ""


def test_fire_reads_stdin(call, monkeypatch):
    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=_fired("run_1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"ä": 1}'.encode())))
    call("trigger", "fire", "deploy", "--payload-file", "-")
    assert call.request.payload_json == '{"ä": 1}'


def test_fire_that_starts_nothing_is_1(call):
    event = _fired(reason=f"no{EVIL}", clause="event.body.go", values_json='{"event.body.go": false}')
    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=event)
    told = call("trigger", "fire", "deploy", code=1).out
    assert "noa[31mb" in told
    assert "deploy/github: this part of its `if` was false\n    event.body.go\n      event.body.go = false\n" in told
    assert json.loads(call("trigger", "fire", "deploy", "--wait", "-o", "json", code=1).out)["runs"] == []


@pytest.mark.parametrize(("state", "code"), [(RUN.STATE_SUCCEEDED, 0), (RUN.STATE_DEAD, 1)])
def test_fire_and_wait(call, state, code):
    ended = {"run_1": RUN.STATE_SUCCEEDED, "run_2": state}
    asked = []

    def get(request):
        asked.append(request.run_id)
        is_running = request.run_id == "run_2" and asked.count("run_2") == 1
        now = RUN.STATE_RUNNING if is_running else ended[request.run_id]
        error = run_pb2.Error(code="timeout", message=EVIL) if now == RUN.STATE_DEAD else None
        return runs.GetRunResponse(run=RUN(id=request.run_id, workflow="deploy", version=3, state=now, error=error))

    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=_fired("run_1", "run_2"))
    call.fake.answers["GetRun"] = get
    call.fake.answers["WatchRun"] = lambda request: iter(
        [runs.WatchRunResponse(run=RUN(id=request.run_id, state=ended[request.run_id]))]
    )
    told = call("trigger", "fire", "deploy", "--wait", code=code).out
    assert "SUCCEEDED" in told
    assert ("timeout: a[31mb" in told) == (code == 1)
    shown = json.loads(call("trigger", "fire", "deploy", "--wait", "-o", "json", code=code).out)
    assert [one["id"] for one in shown["runs"]] == ["run_1", "run_2"]


def test_who_cannot_wait_knows_what_was_fired(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "needs role viewer")

    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=_fired("run_1"))
    call.fake.answers["GetRun"] = refuse
    assert (
        "has fired; what became of it: taskforgectl event why evt_1"
        in call("trigger", "fire", "deploy", "--wait", code=4).err
    )


def test_ctrl_c_leaves_the_runs_alone(call, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    call.fake.answers["FireTrigger"] = lambda _: pb.FireTriggerResponse(event=_fired("run_1"))
    monkeypatch.setattr("taskforgectl.commands.trigger.fire.get_run", interrupt)
    told = call("trigger", "fire", "deploy", "--wait", code=130).err
    assert told == "detached; come back with: taskforgectl event why evt_1\n"


# --- next ------------------------------------------------------------------------------------------------------------


def _due(due: str, local: str, *, transition: bool = True, dst: str = "", fire: str = "") -> trigger_pb2.DueTime:
    found = trigger_pb2.DueTime(local_time=local, transition=transition, dst=dst)
    found.due_time.FromJsonString(due)
    found.fire_time.FromJsonString(fire or due)
    return found


ROUND = [
    _due("2026-03-28T01:30:00Z", "2026-03-28T02:30:00+01:00", transition=False),
    _due("2026-03-29T01:00:00Z", "2026-03-29T03:00:00+02:00", dst="gap"),
    _due("2026-10-25T00:30:00Z", "2026-10-25T02:30:00+02:00", dst="fold"),
    _due("2026-10-25T01:30:00Z", "2026-10-25T02:30:00+01:00", dst="fold"),
    _due("2026-10-25T11:00:00Z", "2026-10-25T12:00:00+01:00"),
]


def test_next(call):
    call.fake.answers["PreviewSchedule"] = lambda _: pb.PreviewScheduleResponse(
        due_times=ROUND, timezone="Europe/Berlin"
    )
    told = call("trigger", "next", "deploy/nightly", "-n", "5").out
    request = call.request
    assert (request.workflow, request.trigger, request.count, request.expression) == ("deploy", "nightly", 5, "")
    assert not request.HasField("after")
    assert told == (
        "DUE (Europe/Berlin)             UTC                   NOTE\n"
        "Sat 2026-03-28 02:30:00 +01:00  2026-03-28T01:30:00Z\n"
        "Sun 2026-03-29 03:00:00 +02:00  2026-03-29T01:00:00Z  moved out of the gap\n"
        "Sun 2026-10-25 02:30:00 +02:00  2026-10-25T00:30:00Z  first of two\n"
        "Sun 2026-10-25 02:30:00 +01:00  2026-10-25T01:30:00Z  second of two\n"
        "Sun 2026-10-25 12:00:00 +01:00  2026-10-25T11:00:00Z  clocks change that day\n"
    )
    shown = json.loads(call("trigger", "next", "deploy", "-o", "json").out)
    assert call.request.count == 10
    assert shown[1] == {
        "due_time": "2026-03-29T01:00:00Z",
        "local_time": "2026-03-29T03:00:00+02:00",
        "fire_time": "2026-03-29T01:00:00Z",
        "transition": True,
        "dst": "gap",
    }


def test_next_of_an_expression(call):
    late = _due("2030-01-01T00:00:00Z", EVIL, transition=False, fire="2030-01-01T00:00:07Z")
    call.fake.answers["PreviewSchedule"] = lambda _: pb.PreviewScheduleResponse(due_times=[late], timezone=EVIL)
    arguments = ["--seconds", "--timezone", "Europe/Berlin", "--gap", "skip", "--fold", "both"]
    told = call("trigger", "next", "--cron", "0 0 3 * * *", *arguments, "--from", "2030-01-01T00:00Z").out
    request = call.request
    assert (request.expression, request.seconds, request.timezone) == ("0 0 3 * * *", True, "Europe/Berlin")
    assert (request.gap, request.fold, request.workflow) == ("skip", "both", "")
    assert request.after.ToJsonString() == "2029-12-31T23:59:59.999Z"  # what is due at --from itself is shown
    assert "DUE (a[31mb)" in told
    assert "FIRES" in told
    assert "NOTE" not in told
    call.fake.answers["PreviewSchedule"] = lambda _: pb.PreviewScheduleResponse()
    assert call("trigger", "next", "--cron", "0 0 30 2 *").out == "nothing is due from then on\n"


def test_a_bad_expression_is_told_with_its_place(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "not valid", {"expression": "field 2: 25 is not an hour"})

    call.fake.answers["PreviewSchedule"] = refuse
    assert "expression: field 2: 25 is not an hour" in call("trigger", "next", "--cron", "0 25 * * *", code=2).err


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--kind", "manual"], "manual"),
        (["show", "a/b/c"], "'a/b/c' is not WORKFLOW/TRIGGER or WORKFLOW"),
        (["show", "/b"], "is not WORKFLOW/TRIGGER"),
        (["show", ""], "is not WORKFLOW/TRIGGER"),
        (["pause", "a/"], "is not WORKFLOW/TRIGGER"),
        (["resume", "a//b"], "is not WORKFLOW/TRIGGER"),
        (["fire"], "TRIGGER"),
        (["fire", "a/"], "is not WORKFLOW/TRIGGER"),
        (["fire", "a", "--payload", '{"a": 1,}'], "--payload is not JSON: "),
        (["fire", "a", "--payload", '{"a": 1,}'], "line 1 column 9"),
        (["fire", "a", "--payload", "NaN"], "NaN is no number of JSON"),
        (["fire", "a", "--payload", "1", "--payload-file", "f"], "exclude each other"),
        (["fire", "a", "--payload-file", "/nonexistent"], "there is no file"),
        (["fire", "a", "--header", "x"], "--header 'x' is not KEY=VALUE"),
        (["fire", "a", "--header", "=x"], "is not KEY=VALUE"),
        (["next"], "give the name of a trigger, or an expression with --cron"),
        (["next", "a", "--cron", "* * * * *"], "give the name of a trigger, or an expression with --cron"),
        (["next", "a", "--seconds"], "go with --cron"),
        (["next", "a", "--timezone", "UTC"], "go with --cron"),
        (["next", "a", "-n", "0"], "0"),
        (["next", "a", "-n", "1001"], "1001"),
        (["next", "a", "--from", "soon"], "--from 'soon' is not a time"),
        (["next", "--cron", "* * * * *", "--gap", "jump"], "jump"),
        (["next", "a/b/c"], "is not WORKFLOW/TRIGGER"),
    ],
)
def test_wrong_usage_asks_nobody(call, arguments, message):
    told = call("trigger", *arguments, code=2).err
    assert told.startswith("error: ")
    assert message in told
    assert not call.fake.requests
