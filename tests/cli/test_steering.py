"""The verbs of `run` that steer, decide, repeat, explain and read logs: what they ask, and what they tell."""

from __future__ import annotations

import json

import grpc
import pytest
from cli.fake import Refusal
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import graph_pb2, run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.workflow_service_pb2 import GetWorkflowGraphResponse

RUN, STEP, REASON = run_pb2.Run, run_pb2.StepRun, run_pb2.Reason


def _run(state: int = RUN.STATE_RUNNING, run_id: str = "run_1", **fields) -> run_pb2.Run:
    created = Timestamp(seconds=1_700_000_000)
    return RUN(id=run_id, workflow="deploy", version=3, state=state, create_time=created, **fields)


def _ended(run_id: str = "run_2") -> run_pb2.Run:
    run = _run(RUN.STATE_SUCCEEDED, run_id, sequence=4)
    run.end_time.FromSeconds(1_700_000_060)
    return run


# --- start -----------------------------------------------------------------------------------------------------------


def test_start_later_in_a_queue(call):
    call.fake.answers["StartRun"] = lambda request: pb.StartRunResponse(
        run=_run(RUN.STATE_SCHEDULED, run_time=request.run_time)
    )
    told = call("run", "start", "deploy", "--queue", "slow", "--priority", "0", "--at", "2030-01-31T18:00:00Z")
    assert (call.request.queue, call.request.priority, call.request.HasField("priority")) == ("slow", 0, True)
    assert call.request.run_time.ToJsonString() == "2030-01-31T18:00:00Z"
    assert told.out.startswith("run_1  SCHEDULED  starts 2030-01-31 ")


def test_start_leaves_unsaid_what_was_not_said(call):
    call.fake.answers["StartRun"] = lambda _: pb.StartRunResponse(run=_run())
    call("run", "start", "deploy")
    assert not call.request.HasField("priority")
    assert not call.request.HasField("run_time")
    assert call.request.queue == ""
    assert call.request.request_id


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "start", "x", "--priority", "10"],
        ["run", "start", "x", "--at", "soon"],
        ["run", "start", "x", "--at", "+"],
        ["run", "retry", "run_1", "--wait", "--watch"],
        ["run", "rerun", "run_1", "--version", "2", "--newest"],
        ["run", "rerun", "run_1", "--version", "0"],
        ["run", "signal", "run_1", "go", "--data", "{"],
        ["run", "signal", "run_1", "go", "--data", "NaN"],
        ["run", "signal", "run_1", "go", "--data", "@/nonexistent"],
        ["run", "signal", "run_1"],
        ["run", "approve"],
        ["run", "resolve", "run_1"],
        ["run", "resolve", "run_1", "pay"],
        ["run", "resolve", "run_1", "pay", "--as", "maybe"],
        ["run", "resolve", "run_1", "pay", "--as", "retry", "--data", "1"],
        ["run", "logs", "run_1", "--follow", "--limit", "3"],
        ["run", "logs", "run_1", "--after", "x"],
        ["run", "steps", "run_1", "--state", "bogus"],
    ],
)
def test_wrong_usage_asks_nobody(call, arguments):
    assert call(*arguments, code=2).err.startswith("error: ")
    assert not call.fake.requests


# --- steer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "method", "response", "state"),
    [
        ("pause", "PauseRun", pb.PauseRunResponse, RUN.STATE_PAUSED),
        ("resume", "ResumeRun", pb.ResumeRunResponse, RUN.STATE_RUNNING),
    ],
)
def test_pause_and_resume(call, verb, method, response, state):
    call.fake.answers[method] = lambda _: response(run=_run(state))
    told = call("run", verb, "run_1", "--reason", "window")
    assert (call.request.run_id, call.request.reason) == ("run_1", "window")
    assert told.out == f"run_1  {RUN.State.Name(state).removeprefix('STATE_')}\n"
    assert call("run", verb, "run_1", "-o", "name").out == "run_1\n"


def test_a_refusal_is_a_conflict(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "run_1 has SUCCEEDED")

    call.fake.answers["PauseRun"] = refuse
    assert "run_1 has SUCCEEDED" in call("run", "pause", "run_1", code=6).err


def test_a_limit_has_an_exit_code_of_its_own(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "ops has 100 pending runs")

    call.fake.answers["StartRun"] = refuse
    told = call("run", "start", "deploy", code=7).err
    assert "100 pending runs" in told
    assert "hint: a limit is reached" in told


def test_signal(call, tmp_path):
    call.fake.answers["SignalRun"] = lambda request: pb.SignalRunResponse(run=_run(), step=request.signal[:2])
    told = call("run", "signal", "run_1", "go", "--data", '{"n": 12345678901234567890.10}')
    assert call.request.payload_json == '{"n": 12345678901234567890.10}'  # no digit lost
    assert call.request.request_id
    assert told.out == "run_1  RUNNING  go taken by step go\n"
    (tmp_path / "data.json").write_text("[1]")
    call("run", "signal", "run_1", "go", "--data", f"@{tmp_path}/data.json", "--request-id", "r")
    assert (call.request.payload_json, call.request.request_id) == ("[1]", "r")
    call.fake.answers["SignalRun"] = lambda _: pb.SignalRunResponse(run=_run())
    assert "go kept until a step waits for it" in call("run", "signal", "run_1", "go").out
    assert json.loads(call("run", "signal", "run_1", "go", "-o", "json").out)["signal_step"] == ""


# --- decide ----------------------------------------------------------------------------------------------------------


def _approvals(call, *keys: str) -> None:
    steps = [STEP(key="nap", state=STEP.STATE_WAITING, waiting_for="timer")]
    steps += [STEP(key=key, state=STEP.STATE_WAITING, waiting_for="approval", message=f"{key}?") for key in keys]
    call.fake.answers["ListRunSteps"] = lambda _: pb.ListRunStepsResponse(steps=steps)
    call.fake.answers["ApproveRun"] = lambda _: pb.ApproveRunResponse(run=_run())
    call.fake.answers["RejectRun"] = lambda _: pb.RejectRunResponse(run=_run())


def test_approve_a_step(call):
    _approvals(call)
    told = call("run", "approve", "run_1", "gate", "--data", '"ok"', "--comment", "fine")
    (request,) = call.fake.requests
    assert (request.step, request.payload_json, request.comment) == ("gate", '"ok"', "fine")
    assert told.out == "run_1  RUNNING  gate approved\n"


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_the_only_approval_needs_no_name(call, verb):
    _approvals(call, "gate")
    assert "gate" in call("run", verb, "run_1").out
    assert list(call.fake.requests[0].states) == [STEP.STATE_WAITING]
    assert call.request.step == "gate"


def test_no_approval_and_several(call):
    _approvals(call)
    assert "taskforgectl run explain run_1" in call("run", "approve", "run_1", code=6).err
    _approvals(call, *(f"gate{n}" for n in range(12)))
    told = call("run", "reject", "run_1", code=2).err
    assert "12 steps wait for approval" in told
    assert "gate9: gate9?" in told
    assert "gate10" not in told
    assert "… and 2 more" in told


def test_resolve(call):
    call.fake.answers["ResolveRun"] = lambda _: pb.ResolveRunResponse(run=_run())
    told = call("run", "resolve", "run_1", "pay", "--as", "succeeded", "--data", '{"id": 7}', "--comment", "seen")
    request = call.request
    assert (request.step, request.outcome, request.output_json, request.comment) == (
        "pay",
        pb.RESOLUTION_SUCCEEDED,
        '{"id": 7}',
        "seen",
    )
    assert "pay resolved as succeeded" in told.out
    call("run", "resolve", "run_1", "pay", "--as", "retry")
    assert (call.request.outcome, call.request.output_json) == (pb.RESOLUTION_RETRY, "")


# --- repeat ----------------------------------------------------------------------------------------------------------


def test_retry_and_rerun(call):
    call.fake.answers["RetryRun"] = lambda _: pb.RetryRunResponse(run=_run(RUN.STATE_PENDING, "run_2"))
    call.fake.answers["RerunRun"] = lambda _: pb.RerunRunResponse(run=_run(RUN.STATE_PENDING, "run_3"))
    assert call("run", "retry", "run_1").out == "run_2  PENDING  retries run_1\n"
    assert call.request.request_id
    assert call("run", "rerun", "run_1", "--from", "build", "--newest", "-o", "name").out == "run_3\n"
    assert (call.request.from_step, call.request.newest_version, call.request.version) == ("build", True, 0)
    call("run", "rerun", "run_1", "--version", "2", "--request-id", "r")
    assert (call.request.newest_version, call.request.version, call.request.request_id) == (False, 2, "r")


@pytest.mark.parametrize("option", ["--wait", "--watch"])
def test_a_retry_can_be_waited_for(call, option):
    call.fake.answers["RetryRun"] = lambda _: pb.RetryRunResponse(run=_run(RUN.STATE_PENDING, "run_2"))
    call.fake.answers["WatchRun"] = lambda _: iter([pb.WatchRunResponse(run=_ended())])
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=_ended())
    assert "SUCCEEDED" in call("run", "retry", "run_1", option).out


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_tells_where_a_run_comes_from_and_what_it_waits_for(call):
    steps = [
        STEP(key="gate", state=STEP.STATE_WAITING, waiting_for="approval", message="Ship it?"),
        STEP(key="go", state=STEP.STATE_WAITING, waiting_for="signal", signal="go"),
        STEP(key="sub", state=STEP.STATE_WAITING, waiting_for="workflow", child_run_id="run_child"),
        STEP(key="pay", state=STEP.STATE_NEEDS_DECISION),
        STEP(key="old", state=STEP.STATE_SUCCEEDED, pinned=True),
        STEP(key="each", kind="http", state=STEP.STATE_RUNNING, item_count=900, items_ended=20, items_failed=2),
        *(STEP(key=f"each[{n}]", state=STEP.STATE_SUCCEEDED) for n in range(18)),
        *(STEP(key=f"each[{n}]", state=STEP.STATE_FAILED) for n in range(18, 58)),
    ]
    run = _run(
        RUN.STATE_PAUSED,
        queue="slow",
        priority=7,
        parent_run_id="run_p",
        parent_step="call",
        retry_of="run_0",
        retried_by="run_9",
        paused_by="ops",
        pause_reason="window",
        concurrency_group="deploy-api",
        steps=steps,
        step_count=2000,
    )
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=run)
    told = call("run", "show", "run_1").out
    for part in (
        "slow, priority 7",
        "run_p (step call)",
        "run_0",
        "run_9",
        "ops: window",
        "deploy-api",
        "for approval: Ship it?",
        "for signal go",
        "for run_child",
        "run resolve",
        "taken over",
        "20/900 items, 2 failed",
        "each[18]",
        "… and 1974 more steps: taskforgectl run steps run_1 --limit 0",
    ):
        assert part in told, part
    assert "each[0]" not in told
    assert "each[57]" not in told


def test_a_large_input_is_cut_for_people_alone(call):
    run = _run(input_json=json.dumps({"items": list(range(3000))}), output_json='{"a": [1]}')
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=run)
    told = call("run", "show", "run_1").out
    assert len(told) < 3000
    assert "-o json has all" in told
    assert json.loads(call("run", "show", "run_1", "-o", "json").out)["input"]["items"][-1] == 2999


def test_steps(call):
    def page(request):
        steps = [STEP(key=f"each[{n}]", state=STEP.STATE_DEAD) for n in range(request.page_size)]
        return pb.ListRunStepsResponse(steps=steps, next_page_token="more")

    call.fake.answers["ListRunSteps"] = page
    told = call("run", "steps", "run_1", "--prefix", "each[", "--state", "dead", "--limit", "3", "-o", "name")
    assert told.out == "each[0]\neach[1]\neach[2]\n"
    assert (call.request.key_prefix, list(call.request.states)) == ("each[", [STEP.STATE_DEAD])
    call.fake.answers["ListRunSteps"] = lambda _: pb.ListRunStepsResponse()
    assert call("run", "steps", "run_1").out == "no step was reached yet\n"


def test_explain(call):
    reasons = [
        REASON(
            kind=REASON.KIND_QUEUE,
            step="build",
            message="the queue is full",
            limit_name="queue slow: running_steps_max",
            limit=2,
            position=3,
            holders=["run_8/build", "run_9/build"],
            hint="taskforgectl queue set slow --running-steps-max 4",
        ),
        REASON(kind=REASON.KIND_APPROVAL, step="gate", message="Ship\x1b[31m it?\nnow"),
    ]
    explanation = run_pb2.Explanation(
        run_id="run_1", state=RUN.STATE_RUNNING, summary="It waits for two things.", reasons=reasons
    )
    call.fake.answers["ExplainRun"] = lambda _: pb.ExplainRunResponse(explanation=explanation)
    assert call("run", "explain", "run_1").out == (
        "run_1  RUNNING\n"
        "It waits for two things.\n"
        "\n"
        "queue build: the queue is full\n"
        "    limit queue slow: running_steps_max = 2\n"
        "    ahead 3\n"
        "    held by run_8/build, run_9/build\n"
        "    → taskforgectl queue set slow --running-steps-max 4\n"
        "\n"
        "approval gate: Ship[31m it? now\n"
    )
    shown = json.loads(call("run", "explain", "run_1", "-o", "json").out)
    assert [one["kind"] for one in shown["reasons"]] == ["QUEUE", "APPROVAL"]


# --- logs ------------------------------------------------------------------------------------------------------------


def _entry(number: int, **fields) -> run_pb2.LogEntry:
    values = {"step": "build", "attempt": 1, "stream": "stdout", "text": f"line {number}"} | fields
    return run_pb2.LogEntry(cursor=f"c{number}", time=Timestamp(seconds=number), **values)


def test_logs_page_by_page(call):
    pages = {
        "": ([_entry(0), _entry(1, stream="stderr", text="\x1b[1;31mred\x1b[0m")], "next"),
        "next": ([_entry(2)], ""),
    }
    call.fake.answers["GetRunLogs"] = lambda request: pb.GetRunLogsResponse(
        entries=pages[request.page_token][0][: request.page_size], next_page_token=pages[request.page_token][1]
    )
    assert call("run", "logs", "run_1").out == "build | line 0\nbuild ! red\nbuild | line 2\n"
    assert call("run", "logs", "run_1", "build").out == "line 0\n! red\nline 2\n"
    assert call.request.step == "build"
    assert call("run", "logs", "run_1", "--limit", "1").out == "build | line 0\n"
    shown = json.loads(call("run", "logs", "run_1", "-o", "json").out)
    assert [one["cursor"] for one in shown] == ["c0", "c1", "c2"]
    pages[""] = ([], "")
    assert call("run", "logs", "run_1").out.startswith("no logs")
    assert call("run", "logs", "run_1", "-o", "json").out == "[]\n"


def test_followed_logs_survive_a_broken_stream(call):
    def watch(request):
        if not request.after_cursor:
            yield pb.WatchRunLogsResponse(entries=[_entry(0), _entry(1)])
            yield pb.WatchRunLogsResponse()  # a bookmark
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "stopping")
        assert request.after_cursor == "c1"
        yield pb.WatchRunLogsResponse(entries=[_entry(2, attempt=2)])

    call.fake.answers["WatchRunLogs"] = watch
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=_ended("run_1"))
    told = call("run", "logs", "run_1", "--follow")
    assert told.out == "build | line 0\nbuild | line 1\nbuild (attempt 2) | line 2\n"
    assert told.err == "reconnecting… (stopping)\n"
    _steps(call, "build")
    lines = call("run", "logs", "run_1", "build", "--follow", "-o", "json").out.splitlines()
    assert [json.loads(line)["cursor"] for line in lines] == ["c0", "c1", "c2"]
    call("run", "logs", "run_1", "--follow", "--after", "c1")


def test_followed_logs_that_end_before_the_run_are_asked_for_again(call):
    states = iter([RUN.STATE_RUNNING, RUN.STATE_FAILED])
    call.fake.answers["WatchRunLogs"] = lambda request: iter(
        [] if request.after_cursor else [pb.WatchRunLogsResponse(entries=[_entry(0)])]
    )
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=_run(next(states)))
    told = call("run", "logs", "run_1", "--follow", "--timestamps")
    assert told.out.startswith("1970-01-01 ")
    assert told.out.count("\n") == 1
    assert "ended early" in told.err


def _steps(call, *keys: str) -> None:
    steps = [STEP(key=key) for key in keys]
    call.fake.answers["ListRunSteps"] = lambda _: pb.ListRunStepsResponse(steps=steps)


@pytest.mark.parametrize("more", [[], ["--follow"], ["-o", "json"]])
def test_logs_of_a_step_that_is_not_there(call, more):
    def refuse(_):
        raise Refusal(grpc.StatusCode.NOT_FOUND, "deploy has been deleted")

    nodes = [graph_pb2.Graph.Node(id="later")]
    call.fake.answers["GetRunLogs"] = lambda _: pb.GetRunLogsResponse()
    call.fake.answers["WatchRunLogs"] = lambda _: iter([])
    call.fake.answers["GetRun"] = lambda _: pb.GetRunResponse(run=_ended("run_1"))
    call.fake.answers["GetWorkflowGraph"] = lambda _: GetWorkflowGraphResponse(graph=graph_pb2.Graph(nodes=nodes))
    _steps(call, "nowhere2", "each[3].send")
    told = call("run", "logs", "run_1", "nowhere", *more, code=3).err
    assert "run_1 has no step 'nowhere'" in told
    assert "hint: `taskforgectl run steps run_1" in told
    for known in ("later", "each", "each[3]", "later[7]", "each[1].later"):
        call("run", "logs", "run_1", known, *more)
    call.fake.answers["GetWorkflowGraph"] = refuse
    call("run", "logs", "run_1", "later", *more, code=3)


def test_lost_logs_say_how_to_come_back(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "gone")

    call.fake.answers["WatchRunLogs"] = refuse
    told = call("run", "logs", "run_1", "--follow", "--reconnect-timeout", "0", code=5)
    assert "taskforgectl run logs run_1 --follow" in told.err
