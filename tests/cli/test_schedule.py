"""The verbs of `schedule` against a fake: what they ask, what they tell, how they end."""

from __future__ import annotations

import json
import sys

import grpc
import pytest
from cli.fake import Refusal
from cli.support import Typist
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import trigger_pb2
from taskforge.v1 import trigger_service_pb2 as pb

SLOT = trigger_pb2.ScheduleSlot
EVIL = "a\x1b[31mb\u202e"


def _slot(
    due: str, local: str, outcome: int = SLOT.OUTCOME_FIRED, *, last: str = "", **fields
) -> trigger_pb2.ScheduleSlot:
    found = SLOT(local_time=local, outcome=outcome, **({"count": 1} | fields))
    found.due_time.FromJsonString(due)
    found.last_due_time.FromJsonString(last or due)
    return found


FIRED = _slot(
    "2026-03-30T01:00:00Z",
    "2026-03-30T03:00:00+02:00",
    late=Duration(seconds=2, nanos=500_000_000),
    run_ids=["run_1"],
    event_id="evt_1",
    reason=f"late {EVIL}",
)
MISSED = _slot(
    "2026-03-27T02:00:00Z",
    "2026-03-27T03:00:00+01:00",
    SLOT.OUTCOME_MISSED,
    last="2026-03-29T01:00:00Z",
    count=3,
    reason="the daemon did not run",
)


# --- slots -----------------------------------------------------------------------------------------------------------


def test_slots(call):
    call.fake.answers["ListScheduleSlots"] = lambda _: pb.ListScheduleSlotsResponse(slots=[FIRED, MISSED])
    call.fake.answers["PreviewSchedule"] = lambda _: pb.PreviewScheduleResponse(timezone="Europe/Berlin")
    arguments = ["--since", "-7d", "--until", "2030-01-01T00:00Z", "--outcome", "fired", "--outcome", "MISSED"]
    told = call("schedule", "slots", "deploy/nightly", *arguments, "-n", "ops").out
    request = call.fake.requests[0]
    assert (request.namespace, request.workflow, request.trigger) == ("ops", "deploy", "nightly")
    assert list(request.outcomes) == [SLOT.OUTCOME_FIRED, SLOT.OUTCOME_MISSED]
    assert request.HasField("since")
    assert request.until.ToJsonString() == "2030-01-01T00:00:00Z"
    assert told.startswith("DUE ")
    for part in (
        "Mon 2026-03-30 03:00:00 +02:00",
        "2.5s",
        "run_1",
        "late a[31mb",
        # the clocks went forward in between: the end is told in the offset of its own day
        "Fri 2026-03-27 03:00:00 +01:00 .. Sun 2026-03-29 03:00:00 +02:00 (3 due times)",
        "the daemon did not run",
    ):
        assert part in told, part
    assert "BACKFILL" not in told
    asked = len(call.fake.requests)
    shown = json.loads(call("schedule", "slots", "deploy", "-o", "json").out)
    assert len(call.fake.requests) == asked + 1
    assert (shown[0]["outcome"], shown[0]["late"], shown[1]["count"], shown[1]["late"]) == ("FIRED", "2.500s", 3, None)


def test_slots_of_a_trigger_that_is_no_more(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.NOT_FOUND, "no such trigger")

    call.fake.answers["ListScheduleSlots"] = lambda _: pb.ListScheduleSlotsResponse(slots=[MISSED])
    call.fake.answers["PreviewSchedule"] = refuse
    assert ".. Sun 2026-03-29 02:00:00 +01:00 (3 due times)" in call("schedule", "slots", "deploy").out
    call.fake.answers["ListScheduleSlots"] = lambda _: pb.ListScheduleSlotsResponse()
    assert call("schedule", "slots", "deploy").out.startswith("nothing was due yet")
    assert call("schedule", "slots", "deploy", "--outcome", "failed").out == "no due times fit\n"


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain(call):
    count = pb.ExplainScheduleResponse.Count
    trigger = trigger_pb2.Trigger(
        workflow="deploy",
        trigger="nightly",
        detail="0 3 * * * Europe/Berlin",
        schedule=trigger_pb2.Schedule(timezone="Europe/Berlin"),
    )
    due = trigger_pb2.DueTime(due_time=Timestamp(seconds=1_774_918_800), local_time="2026-03-31T03:00:00+02:00")
    story = pb.ExplainScheduleResponse(
        trigger=trigger,
        summary=["It fired once.", f"It missed 3{EVIL}\ndue times."],
        counts=[count(outcome=SLOT.OUTCOME_FIRED, count=1), count(outcome=SLOT.OUTCOME_MISSED, count=3000)],
        slots=[FIRED, MISSED, *[FIRED] * 30],
        waiting=2,
        next=[due],
    )
    call.fake.answers["ExplainSchedule"] = lambda _: story
    told = call("schedule", "explain", "deploy/nightly", "--since", "-30d").out
    assert (call.request.workflow, call.request.trigger, call.request.HasField("since")) == ("deploy", "nightly", True)
    assert told.startswith(
        "deploy/nightly  0 3 * * * Europe/Berlin\n"
        "It fired once.\n"
        "It missed 3a[31mb due times.\n"
        "\n"
        "OUTCOME          DUE TIMES\n"
        "FIRED            1\n"
        "MISSED           3,000\n"
        "not decided yet  2\n"
        "\n"
        "DUE "
    )
    assert ".. Sun 2026-03-29 03:00:00 +02:00 (3 due times)" in told
    assert "… and more: taskforgectl schedule slots deploy/nightly" in told
    assert "\nnext\nDUE (Europe/Berlin) " in told
    shown = json.loads(call("schedule", "explain", "deploy", "-o", "json").out)
    assert not call.request.HasField("since")
    assert list(shown) == ["trigger", "summary", "counts", "slots", "waiting", "next"]
    assert call("schedule", "explain", "deploy", "-o", "name").out == "deploy/nightly\n"


def test_explain_a_schedule_of_which_nothing_is_known(call):
    call.fake.answers["ExplainSchedule"] = lambda _: pb.ExplainScheduleResponse(
        trigger=trigger_pb2.Trigger(workflow="deploy", trigger="nightly"), summary=["Nothing was due."]
    )
    assert call("schedule", "explain", "deploy").out == "deploy/nightly\nNothing was due.\n"


# --- backfill --------------------------------------------------------------------------------------------------------


def _backfilled(call, *slots, omitted: int = 0) -> None:
    answer = pb.BackfillScheduleResponse(slots=slots, omitted=omitted)
    call.fake.answers["BackfillSchedule"] = lambda _: answer


def _begin(request) -> str:
    return getattr(request, "from").ToJsonString()


def test_backfill(call):
    fired = _slot("2026-03-28T02:00:00Z", "2026-03-28T03:00:00+01:00", run_ids=["run_1", "run_2"], backfill=True)
    _backfilled(call, fired, omitted=4)
    arguments = ["--from", "2026-03-28T00:00Z", "--to", "2026-03-29T00:00Z", "--max-parallel", "3", "--include-fired"]
    told = call("schedule", "backfill", "deploy/nightly", *arguments).out
    request = call.request
    assert (request.workflow, request.trigger, request.max_parallel) == ("deploy", "nightly", 3)
    assert (_begin(request), request.to.ToJsonString()) == ("2026-03-28T00:00:00Z", "2026-03-29T00:00:00Z")
    assert (request.include_fired, request.dry_run, bool(request.request_id)) == (True, False, True)
    for part in ("Sat 2026-03-28 03:00:00 +01:00", "FIRED", "run_1 run_2", "left out: 4"):
        assert part in told, part
    shown = json.loads(call("schedule", "backfill", "deploy", "--from", "-2d", "-o", "json").out)
    assert (shown["omitted"], shown["slots"][0]["run_ids"]) == (4, ["run_1", "run_2"])
    assert call("schedule", "backfill", "deploy", "--from", "-2d", "-o", "name").out == "run_1\nrun_2\n"
    assert not call.request.HasField("to")


def test_backfill_dry(call):
    _backfilled(call, FIRED)
    assert "would fire" in call("schedule", "backfill", "deploy", "--from", "-2d", "--dry-run").out
    assert call.request.dry_run
    told = call("schedule", "backfill", "deploy", "--from", "-2d", "--dry-run", "-o", "name").out
    assert told == "2026-03-30T01:00:00Z\n"


def test_a_backfill_that_failed_is_1(call):
    _backfilled(call, _slot("2026-03-28T02:00:00Z", EVIL, SLOT.OUTCOME_FAILED, reason=EVIL))
    told = call("schedule", "backfill", "deploy", "--from", "-2d", code=1).out
    assert "FAILED" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(("answer", "code", "calls"), [("y\n", 0, 2), ("n\n", 130, 1)])
def test_backfill_asks_on_a_terminal(call, monkeypatch, answer, code, calls):
    filtered = _slot("2026-03-28T02:00:00Z", "2026-03-28T03:00:00+01:00", SLOT.OUTCOME_FILTERED)
    _backfilled(call, filtered, FIRED)
    monkeypatch.setattr(sys, "stdin", Typist(answer))
    assert "start runs for 1 due times?" in call("schedule", "backfill", "deploy", "--from", "-2d", code=code).err
    assert [one.dry_run for one in call.fake.requests] == [True, False][:calls]
    if calls == 2:  # nothing that falls due while somebody thinks
        assert call.request.to.ToJsonString() == "2026-03-30T01:00:00.001Z"
    assert "start runs" not in call("schedule", "backfill", "deploy", "--from", "-2d", "--yes").err
    _backfilled(call, filtered)
    assert call("schedule", "backfill", "deploy", "--from", "-2d").out == "there is nothing to start\n"
    assert call.request.dry_run


def test_a_backfill_that_is_refused(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 1,000 due times")

    call.fake.answers["BackfillSchedule"] = refuse
    assert "more than 1,000" in call("schedule", "backfill", "deploy", "--from", "-2d", code=7).err


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slots", "a/b/c"], "is not WORKFLOW/TRIGGER"),
        (["slots", "a", "--outcome", "lost"], "lost"),
        (["slots", "a", "--since", "7d"], "--since '7d' is not a time"),
        (["slots", "a", "--until", "-7"], "--until '7' is not a span"),
        (["slots"], "TRIGGER"),
        (["explain", "a/"], "is not WORKFLOW/TRIGGER"),
        (["explain", "a", "--since", "x"], "--since 'x' is not a time"),
        (["backfill", "a"], "--from"),
        (["backfill", "/a", "--from", "-2d"], "is not WORKFLOW/TRIGGER"),
        (["backfill", "a", "--from", "x"], "--from 'x' is not a time"),
        (["backfill", "a", "--from", "-2d", "--to", "x"], "--to 'x' is not a time"),
        (["backfill", "a", "--from", "-2d", "--max-parallel", "0"], "0"),
    ],
)
def test_wrong_usage_asks_nobody(call, arguments, message):
    told = call("schedule", *arguments, code=2).err
    assert told.startswith("error: ")
    assert message in told
    assert not call.fake.requests
