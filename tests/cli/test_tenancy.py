"""Dead letters, queues and namespaces: what the commands ask, and what they tell."""

from __future__ import annotations

import json
import sys

import grpc
import pytest
from cli.fake import Refusal
from cli.support import Typist
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import dead_letter_pb2, namespace_pb2, queue_pb2, run_pb2
from taskforge.v1 import dead_letter_service_pb2 as dead
from taskforge.v1 import namespace_service_pb2 as namespaces
from taskforge.v1 import queue_service_pb2 as queues

LETTER = dead_letter_pb2.DeadLetter


def _letter(number: int = 1, **fields) -> dead_letter_pb2.DeadLetter:
    error = run_pb2.Error(code="http_status", message="503", step="send", attempts=5)
    return LETTER(
        run_id=f"run_{number}",
        workflow="notify",
        version=2,
        state=LETTER.STATE_OPEN,
        error=error,
        attempts=5,
        create_time=Timestamp(seconds=1_700_000_000),
        **fields,
    )


# --- dead letters ----------------------------------------------------------------------------------------------------


def test_list_dead_letters(call):
    call.fake.answers["ListDeadLetters"] = lambda _: dead.ListDeadLettersResponse(dead_letters=[_letter()])
    told = call("dead", "list", "--workflow", "notify", "--step", "send", "--code", "http_status", "-n", "ops").out
    request = call.request
    assert (request.namespace, request.workflow, request.step, request.error_code, list(request.states)) == (
        "ops",
        "notify",
        "send",
        "http_status",
        [],
    )
    assert "run_1" in told
    assert "http_status: 503" in told
    call("dead", "list", "--state", "any")
    assert sorted(call.request.states) == [1, 2, 3]
    call("dead", "list", "--state", "discarded")
    assert list(call.request.states) == [LETTER.STATE_DISCARDED]
    call.fake.answers["ListDeadLetters"] = lambda _: dead.ListDeadLettersResponse()
    assert call("dead", "list").out == "no open dead letters; --state any shows settled ones\n"


def test_show_a_dead_letter(call):
    steps = [run_pb2.StepRun(key="send", state=run_pb2.StepRun.STATE_DEAD)]
    call.fake.answers["GetDeadLetter"] = lambda _: dead.GetDeadLetterResponse(
        dead_letter=_letter(settled_by="ops", retry_run_id="run_7"), run=run_pb2.Run(id="run_1", steps=steps)
    )
    told = call("dead", "show", "run_1").out
    assert "run_7" in told
    assert "send" in told
    shown = json.loads(call("dead", "show", "run_1", "-o", "json").out)
    assert (shown["state"], shown["run"]["steps"][0]["key"]) == ("OPEN", "send")


def test_retry_named_dead_letters(call):
    result = dead.RetryDeadLettersResponse.Result
    results = [result(run_id="run_1", new_run_id="run_8"), result(run_id="run_2", error="it has been discarded")]
    call.fake.answers["RetryDeadLetters"] = lambda _: dead.RetryDeadLettersResponse(results=results)
    told = call("dead", "retry", "run_1", "run_2", code=1).out
    assert list(call.request.run_ids) == ["run_1", "run_2"]
    assert not call.request.HasField("filter")
    assert "run_8" in told
    assert "it has been discarded" in told


def test_all_dead_letters_go_in_portions(call):
    result = dead.DiscardDeadLettersResponse.Result
    answers = iter(
        [
            dead.DiscardDeadLettersResponse(results=[result(run_id="run_1")], more=True),
            dead.DiscardDeadLettersResponse(results=[result(run_id="run_2")], more=True),
            dead.DiscardDeadLettersResponse(results=[result(run_id="run_3", error="no")], more=True),
        ]
    )
    call.fake.answers["DiscardDeadLetters"] = lambda _: next(answers)
    told = call(
        "dead", "discard", "--all", "--before", "-2d", "--code", "timeout", "--reason", "old", "-o", "name", code=1
    )
    assert told.out == "run_1\nrun_2\nrun_3\n"  # and no fourth call: nothing of the third was settled
    request = call.request
    assert (request.filter.error_code, request.reason, request.dry_run) == ("timeout", "old", False)
    assert request.filter.HasField("before")


def test_a_dry_run_is_one_call(call):
    result = dead.RetryDeadLettersResponse.Result(run_id="run_1")
    call.fake.answers["RetryDeadLetters"] = lambda _: dead.RetryDeadLettersResponse(results=[result], more=True)
    assert "would retry" in call("dead", "retry", "--all", "--dry-run").out
    assert len(call.fake.requests) == 1
    assert call.request.dry_run
    assert call.request.filter.HasField("before")  # what dies anew meanwhile is left alone


@pytest.mark.parametrize(("answer", "code", "calls"), [("y\n", 0, 2), ("n\n", 130, 1)])
def test_all_is_asked_for_on_a_terminal(call, monkeypatch, answer, code, calls):
    result = dead.RetryDeadLettersResponse.Result(run_id="run_1")
    call.fake.answers["RetryDeadLetters"] = lambda _: dead.RetryDeadLettersResponse(results=[result])
    monkeypatch.setattr(sys, "stdin", Typist(answer))
    told = call("dead", "retry", "--all", code=code)
    assert "retry 1 dead letters?" in told.err
    assert [one.dry_run for one in call.fake.requests] == [True, False][:calls]
    assert "dead letters?" not in call("dead", "retry", "--all", "--yes").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["dead", "retry"],
        ["dead", "retry", "run_1", "--all"],
        ["dead", "discard", "run_1", "--step", "x"],
        ["dead", "retry", "--all", "--before", "yesterday"],
        ["queue", "set", "q", "--priority", "10"],
        ["queue", "set", "q", "--running-steps-max", "-1"],
        ["namespace", "set", "n", "--weight", "0"],
        ["namespace", "set", "n", "--label", "x"],
    ],
)
def test_wrong_usage_asks_nobody(call, arguments):
    assert call(*arguments, code=2).err.startswith("error: ")
    assert not call.fake.requests


# --- queues ----------------------------------------------------------------------------------------------------------


def test_queues(call):
    queue = queue_pb2.Queue(name="slow", namespace="ops", priority=3, running_steps_max=4, paused=True, waiting=7)
    call.fake.answers["ListQueues"] = lambda _: queues.ListQueuesResponse(queues=[queue, queue_pb2.Queue(name="x")])
    call.fake.answers["GetQueue"] = lambda _: queues.GetQueueResponse(queue=queue)
    call.fake.answers["SetQueue"] = lambda _: queues.SetQueueResponse(queue=queue)
    call.fake.answers["DeleteQueue"] = lambda _: queues.DeleteQueueResponse()
    told = call("queue", "list").out
    assert "PAUSED" in told
    assert "no limit" in told
    assert "PAUSED" in call("queue", "show", "slow").out
    assert call("queue", "set", "slow", "--running-steps-max", "0").out == "slow  set\n"
    assert [field.name for field, _ in call.request.ListFields()] == ["name", "running_steps_max"]
    assert call("queue", "pause", "slow").out == "slow  paused\n"
    assert (call.request.paused, call.request.HasField("priority")) == (True, False)
    call("queue", "resume", "slow")
    assert (call.request.HasField("paused"), call.request.paused) == (True, False)
    assert call("queue", "delete", "slow", "-n", "ops").out == "slow  deleted\n"
    assert (call.request.namespace, call.request.name) == ("ops", "slow")


# --- namespaces ------------------------------------------------------------------------------------------------------


def test_namespaces(call):
    namespace = namespace_pb2.Namespace(
        name="ops", labels={"team": "a"}, weight=2.5, running_steps=1, running_steps_max=8, pending_runs=3
    )
    call.fake.answers["ListNamespaces"] = lambda _: namespaces.ListNamespacesResponse(namespaces=[namespace])
    call.fake.answers["GetNamespace"] = lambda _: namespaces.GetNamespaceResponse(namespace=namespace)
    call.fake.answers["SetNamespace"] = lambda _: namespaces.SetNamespaceResponse(namespace=namespace)
    told = call("namespace", "list").out
    for part in ("ops", "2.5", "1/8", "team=a", "no limit"):
        assert part in told, part
    told = call("namespace", "show", "ops").out
    assert "1 of at most 8" in told
    assert "3, no limit" in told
    call(
        "namespace", "set", "ops", "--label", "team=b", "--label", "old=", "--weight", "0.5", "--running-runs-max", "0"
    )
    request = call.request
    assert (dict(request.labels), request.replace_labels, request.weight) == ({"team": "b", "old": ""}, False, 0.5)
    assert request.HasField("running_runs_max")
    assert not request.HasField("pending_runs_max")


def test_a_namespace_that_is_used_is_a_conflict(call):
    def refuse(_):
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "ops has 3 workflows")

    call.fake.answers["DeleteNamespace"] = refuse
    assert "ops has 3 workflows" in call("namespace", "delete", "ops", code=6).err
