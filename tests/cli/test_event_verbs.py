"""The verbs of `event` against a fake: what they ask, what they tell, how they end."""

from __future__ import annotations

import io
import json
import sys

import grpc
import pytest
from cli.fake import Refusal
from cli.support import Typist
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import event_pb2, run_pb2
from taskforge.v1 import event_service_pb2 as pb

EVENT = event_pb2.Event
EVIL = "a\x1b[31mb\u202e"


def _event(number: int = 1, outcome: int = EVENT.OUTCOME_ACCEPTED, **fields) -> event_pb2.Event:
    values = {"source": "internal", "type": "order.paid", "namespace": "default"} | fields
    return EVENT(id=f"evt_{number}", outcome=outcome, create_time=Timestamp(seconds=1_700_000_000), **values)


def _filtered() -> event_pb2.Event:
    verdict = event_pb2.Verdict(
        workflow="notify",
        version=2,
        trigger="paid",
        reason="its if was false",
        clause='event.body.total > 100 && event.body.who != "x"',
        values_json='{"event.body.total": 7, "event.body.who": "\\u001b[31mme"}',
    )
    matched = event_pb2.Verdict(
        workflow="bill",
        version=1,
        trigger="each",
        matched=True,
        run_id="run_1",
        run_ids=["run_1", "run_2", "run_3", "run_4", "run_5"],
        items=[
            event_pb2.ItemVerdict(index=0, namespace="acme", run_id="run_1"),
            event_pb2.ItemVerdict(index=1, namespace="bolt", reason="input.total: not a number"),
        ],
    )
    return _event(verdicts=[verdict, matched], run_ids=["run_1", "run_2", "run_3", "run_4", "run_5"])


# --- list and show ---------------------------------------------------------------------------------------------------


def test_list(call):
    call.fake.answers["ListEvents"] = lambda _: pb.ListEventsResponse(events=[_filtered(), _event(2, source=EVIL)])
    told = call("event", "list").out
    for part in ("EVENT", "TYPE", "SOURCE", "order.paid", "internal", "run_3 … and 2 more"):
        assert part in told, part
    assert "a[31mb" in told
    request = call.request
    assert (request.type, list(request.sources), request.workflow) == ("", [], "")
    assert not request.HasField("since")
    shown = json.loads(call("event", "list", "-o", "json").out)
    assert (shown[0]["type"], shown[0]["source"], len(shown[0]["run_ids"])) == ("order.paid", "internal", 5)
    assert call("event", "list", "-o", "name").out == "evt_1\nevt_2\n"


def test_list_filters(call):
    call.fake.answers["ListEvents"] = lambda _: pb.ListEventsResponse()
    arguments = ["--type", "run.*", "--source", "engine", "--source", "cron", "--workflow", "bill", "--path", "hook"]
    arguments += ["--since", "-7d", "--until", "2030-01-01T00:00Z", "--outcome", "pending", "--outcome", "UNMATCHED"]
    assert call("event", "list", *arguments, "-n", "ops").out == "no events fit\n"
    request = call.request
    assert (request.namespace, request.type, list(request.sources)) == ("ops", "run.*", ["engine", "cron"])
    assert (request.workflow, request.path) == ("bill", "hook")
    assert list(request.outcomes) == [EVENT.OUTCOME_PENDING, EVENT.OUTCOME_UNMATCHED]
    assert request.until.ToJsonString() == "2030-01-01T00:00:00Z"
    assert 0 < request.since.seconds < request.until.seconds
    assert "no events yet" in call("event", "list").out


def test_show(call):
    event = _filtered()
    event.MergeFrom(
        EVENT(
            publisher_run_id="run_p",
            replay_of="evt_0",
            replayed_by=["evt_8", "evt_9"],
            addressee="notify/paid",
            subject=EVIL,
            origin="/shop",
            created_by="tok_1",
            body=b"{}",
            headers={"a": "b"},
            query_json='{"q": "1"}',
        )
    )
    call.fake.answers["GetEvent"] = lambda _: pb.GetEventResponse(event=event)
    told = call("event", "show", "evt_1").out
    for part in ("run_p", "evt_0", "evt_8", "notify/paid", "a[31mb", "/shop", "tok_1", "q=1", "a: b", "order.paid"):
        assert part in told, part
    assert "notify/paid: this part of its `if` was false\n    event.body.total > 100 && " in told
    assert "event.body.total = 7\n" in told
    assert "bill/each: 2 items of its `for_each`" in told
    assert "input.total: not a number" in told
    assert "\x1b" not in told
    shown = json.loads(call("event", "show", "evt_1", "-o", "json").out)
    assert shown["verdicts"][0]["values"] == {"event.body.total": 7, "event.body.who": "\x1b[31mme"}
    assert shown["verdicts"][1]["items"][1]["namespace"] == "bolt"
    assert shown["replayed_by"] == ["evt_8", "evt_9"]


# --- why -------------------------------------------------------------------------------------------------------------


def test_a_watch_says_what_retention_took(call):
    def watch(request):
        assert request.after_cursor == "4"
        entries = [pb.WatchEventsResponse.Entry(cursor="8", event=_event(8))]
        yield pb.WatchEventsResponse(entries=entries, cursor="8", removed=1_200)
        raise Refusal(grpc.StatusCode.NOT_FOUND, "enough")

    call.fake.answers["WatchEvents"] = watch
    told = call("event", "watch", "--after", "4", "-o", "name", code=3)
    assert told.out == "evt_8\n"
    assert told.err.startswith("removed by retention, whether they would fit or not: 1,200\n")


def test_why(call):
    error = run_pb2.Error(code="http_status", message="503")
    runs = [
        run_pb2.Run(id=f"run_{n}", workflow="bill", version=1, state=run_pb2.Run.STATE_DEAD, error=error)
        for n in range(60)
    ]
    causes = [
        pb.Cause(run_id="run_p", workflow="order", event_id="evt_0", event_source="webhook"),
        pb.Cause(run_id="run_q", workflow="import"),
    ]
    call.fake.answers["ExplainEvent"] = lambda _: pb.ExplainEventResponse(
        event=_filtered(), summary=["bill started 5 runs.", f"notify did{EVIL}\nnot."], causes=causes, runs=runs
    )
    told = call("event", "why", "evt_1").out
    assert call.request.event_id == "evt_1"
    assert told.startswith(
        "evt_1  ACCEPTED\nbill started 5 runs.\nnotify dida[31mb not.\n\ncaused by, the nearest first\n"
    )
    for part in ("evt_0", "webhook", "hand", "event.body.total = 7", "DEAD", "http_status: 503", "… and 10 more"):
        assert part in told, part
    assert "run_59" not in told
    shown = json.loads(call("event", "why", "evt_1", "-o", "json").out)
    assert set(shown) == {"event", "summary", "causes", "runs"}
    assert call("event", "why", "evt_1", "-o", "name").out == "evt_1\n"


def test_why_of_what_is_not_there(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.NOT_FOUND, "there is no event evt_1")

    call.fake.answers["ExplainEvent"] = refuse
    assert "there is no event" in call("event", "why", "evt_1", code=3).err


# --- publish ---------------------------------------------------------------------------------------------------------


def test_publish(call, tmp_path):
    call.fake.answers["PublishEvent"] = lambda request: pb.PublishEventResponse(
        event=_event(3, EVENT.OUTCOME_PENDING, type=request.type)
    )
    told = call("event", "publish", "order.paid", "--data", '{"n": 1.10}', "--subject", "42", "--request-id", "r")
    assert told.out == "evt_3  order.paid  PENDING\n"
    request = call.request
    assert (request.type, request.data_json, request.subject, request.request_id) == (
        "order.paid",
        '{"n": 1.10}',  # no digit lost
        "42",
        "r",
    )
    (tmp_path / "d.json").write_text("[1]")
    call("event", "publish", "x", "--data-file", str(tmp_path / "d.json"))
    assert call.request.data_json == "[1]"
    assert call.request.request_id
    call("event", "publish", "x")
    assert call.request.data_json == ""
    assert json.loads(call("event", "publish", "x", "-o", "json").out)["outcome"] == "PENDING"


def test_publish_reads_stdin_and_says_that_nobody_listens(call, monkeypatch):
    call.fake.answers["PublishEvent"] = lambda _: pb.PublishEventResponse(event=_event(3, EVENT.OUTCOME_UNMATCHED))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    assert "no trigger asks for it" in call("event", "publish", "x", "--data-file", "-").out
    assert call.request.data_json == '{"a": 1}'


# --- replay ----------------------------------------------------------------------------------------------------------

RESULT = pb.ReplayEventsResponse.Result


def test_replay_one(call, tmp_path):
    call.fake.answers["ReplayEvent"] = lambda _: pb.ReplayEventResponse(event=_event(9, run_ids=["run_7"]))
    told = call("event", "replay", "evt_1", "--trigger", "notify/paid").out
    request = call.request
    assert (request.event_id, request.workflow, request.trigger) == ("evt_1", "notify", "paid")
    assert request.request_id
    assert not request.HasField("body")
    for part in ("evt_1", "replayed", "evt_9", "ACCEPTED", "run_7"):
        assert part in told, part
    (tmp_path / "body").write_bytes(b"\xff\x00")
    call("event", "replay", "evt_1", "--edit", str(tmp_path / "body"), "--workflow", "notify")
    assert (call.request.body, call.request.workflow, call.request.trigger) == (b"\xff\x00", "notify", "")
    call("event", "replay", "evt_1", "--workflow", "notify", "--trigger", "paid")
    assert (call.request.workflow, call.request.trigger) == ("notify", "paid")
    assert call("event", "replay", "evt_1", "-o", "name").out == "evt_9\n"
    (row,) = json.loads(call("event", "replay", "evt_1", "-o", "json").out)
    assert (row["event_id"], row["replay_id"], row["outcome"], row["error"]) == ("evt_1", "evt_9", "ACCEPTED", "")


def test_an_empty_edit_is_an_edit(call):
    call.fake.answers["ReplayEvent"] = lambda _: pb.ReplayEventResponse(event=_event(9))
    call("event", "replay", "evt_1", "--edit", "/dev/null")
    assert call.request.HasField("body")
    assert call.request.body == b""


def test_replay_of_what_cannot_be(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "it was rejected")

    call.fake.answers["ReplayEvent"] = refuse
    assert "it was rejected" in call("event", "replay", "evt_1", code=6).err


def test_replay_several(call):
    call.fake.answers["ReplayEvents"] = lambda request: pb.ReplayEventsResponse(
        results=[
            RESULT(event_id=one, replay_id=f"r_{one}", outcome=EVENT.OUTCOME_FILTERED) for one in request.event_ids
        ]
    )
    ids = [f"evt_{n}" for n in range(150)]
    rows = json.loads(call("event", "replay", *ids, ids[0], "-o", "json").out)
    assert [one["event_id"] for one in rows] == ids
    assert [len(one.event_ids) for one in call.fake.requests] == [100, 50]
    assert not call.request.HasField("filter")
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse(
        results=[RESULT(event_id="evt_1", replay_id="evt_8"), RESULT(event_id="evt_2", error=f"rejected{EVIL}")]
    )
    told = call("event", "replay", "evt_1", "evt_2", code=1).out
    assert "rejecteda[31mb" in told
    assert "failed" in told
    assert call("event", "replay", "evt_1", "evt_2", "-o", "name", code=1).out == "evt_8\n"


def test_replay_all_in_portions(call):
    answers = iter(
        [
            pb.ReplayEventsResponse(results=[RESULT(event_id="evt_1", replay_id="evt_8")], more=True),
            pb.ReplayEventsResponse(results=[RESULT(event_id="evt_2", error="no")], more=True),
        ]
    )
    call.fake.answers["ReplayEvents"] = lambda _: next(answers)
    arguments = ["--outcome", "unmatched", "--type", "order.*", "--source", "internal", "--path", "p", "--since", "-1d"]
    told = call("event", "replay", "--all", *arguments, "--workflow", "bill", "-n", "ops", code=1)
    assert "evt_8" in told.out
    first, second = call.fake.requests  # and no third: nothing of the second was replayed
    assert first == second
    assert (first.filter.namespace, first.filter.path, first.filter.type) == ("ops", "p", "order.*")
    assert (list(first.filter.outcomes), list(first.filter.sources)) == ([EVENT.OUTCOME_UNMATCHED], ["internal"])
    assert (first.workflow, first.filter.workflow, first.dry_run, list(first.event_ids)) == ("bill", "", False, [])
    assert first.filter.HasField("since")
    assert first.filter.HasField("until")  # what comes in meanwhile is left alone


def test_replay_all_until_there_is_no_more(call):
    answers = iter([True, False])
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse(
        results=[RESULT(event_id="evt_1", replay_id="evt_8")], more=next(answers)
    )
    assert call("event", "replay", "--all", "-o", "name").out == "evt_8\nevt_8\n"
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse()
    assert call("event", "replay", "--all").out == "no events fit\n"


def test_what_was_replayed_before_the_daemon_went_is_told(call):
    answers = iter([pb.ReplayEventsResponse(results=[RESULT(event_id="evt_1", replay_id="evt_8")], more=True)])

    def answer(_):
        found = next(answers, None)
        if found is None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "gone")
        return found

    call.fake.answers["ReplayEvents"] = answer
    told = call("event", "replay", "--all", code=5)
    assert "evt_8" in told.out
    assert "gone" in told.err


def test_a_dry_run_is_one_call(call):
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse(results=[RESULT(event_id="evt_1")], more=True)
    assert "would replay" in call("event", "replay", "--all", "--dry-run").out
    assert call("event", "replay", "evt_1", "--dry-run", "-o", "name").out == "evt_1\n"
    assert [(one.dry_run, list(one.event_ids)) for one in call.fake.requests] == [(True, []), (True, ["evt_1"])]


@pytest.mark.parametrize(("answer", "code", "calls"), [("y\n", 0, 2), ("n\n", 130, 1)])
def test_all_is_asked_for_on_a_terminal(call, monkeypatch, answer, code, calls):
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse(results=[RESULT(event_id="evt_1")])
    monkeypatch.setattr(sys, "stdin", Typist(answer))
    assert "replay 1 events?" in call("event", "replay", "--all", code=code).err
    assert [one.dry_run for one in call.fake.requests] == [True, False][:calls]
    assert "events?" not in call("event", "replay", "--all", "--yes").err
    call.fake.answers["ReplayEvents"] = lambda _: pb.ReplayEventsResponse()
    assert call("event", "replay", "--all").out == "no events fit\n"


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--outcome", "lost"], "lost"),
        (["list", "--source", "mars"], "mars"),
        (["list", "--since", "yesterday"], "--since 'yesterday' is not a time"),
        (["show"], "EVENT"),
        (["why"], "EVENT"),
        (["publish"], "TYPE"),
        (["publish", "x", "--data", '{"a": }'], "--data is not JSON: Expecting value: line 1 column 7"),
        (["publish", "x", "--data", "1", "--data-file", "f"], "exclude each other"),
        (["publish", "x", "--data-file", "/nonexistent"], "there is no file"),
        (["replay"], "give the events, or --all"),
        (["replay", "evt_1", "--all"], "give the events, or --all"),
        (["replay", "evt_1", "--type", "x"], "go with --all"),
        (["replay", "--all", "--edit", "f"], "--edit goes with one event"),
        (["replay", "evt_1", "evt_2", "--edit", "f"], "--edit goes with one event"),
        (["replay", "evt_1", "--edit", "/nonexistent"], "there is no file"),
        (["replay", "evt_1", "--trigger", "paid"], "--trigger needs --workflow"),
        (["replay", "evt_1", "--trigger", "a/b/c"], "is not WORKFLOW/TRIGGER"),
        (["replay", "evt_1", "--workflow", "a", "--trigger", "b/c"], "is not WORKFLOW/TRIGGER"),
        (["replay", "--all", "--outcome", "lost"], "lost"),
        (["replay", "--all", "--until", "soon"], "--until 'soon' is not a time"),
    ],
)
def test_wrong_usage_asks_nobody(call, arguments, message):
    told = call("event", *arguments, code=2).err
    assert told.startswith("error: ")
    assert message in told
    assert not call.fake.requests
