"""Signals, approvals, sleeps until a time, sub-workflows, and events."""

from __future__ import annotations

import pytest

from taskforged.engine.events import (
    AdmitRun,
    ApproveStep,
    AttemptCompleted,
    AttemptStarted,
    CancelChild,
    ChildEnded,
    ClearTimer,
    FinishRun,
    Publish,
    RejectStep,
    SetTimer,
    SignalRun,
    StartChild,
    TimerFired,
)
from taskforged.engine.keys import derived_id
from taskforged.engine.machine import SIGNALS_MAX
from taskforged.engine.model import OnTimeout
from taskforged.engine.states import Kind, RunState, StepState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    approval,
    child,
    dag,
    fan_out,
    publish,
    sleep_until,
    transform,
    wait,
    with_,
    workflow,
)
from taskforged.testing.fakes import Failing, Path

SECOND = 1_000_000
YEAR = 366 * 86_400 * SECOND


def started(*steps, **others):
    return Driver.started(workflow(*steps), pins={"child": 7}, **others)


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_after_the_wait_began():
    run = started(wait("w"), transform("b", Path("steps.w.output")))
    assert (run.states, run.commands, run.step("w").input) == ({"w": "WAITING"}, [], {"signal": "go"})
    run.signal("other")
    assert run.states == {"w": "WAITING"}
    run.signal("go", {"x": 1})
    assert run.state is RunState.SUCCEEDED
    assert run.step("b").output == {"signal": "go", "payload": {"x": 1}, "by": "tester"}


@pytest.mark.parametrize("early", ["SCHEDULED", "PENDING", "RUNNING"])
def test_a_signal_before_the_wait(early):
    run = Driver(workflow(activity("a"), wait("w")), run_at=9 * SECOND if early == "SCHEDULED" else 0)
    if early != "RUNNING":
        assert run.state == early
        run.signal("go", 1)
    if early == "SCHEDULED":
        run.fire()
    run.take(AdmitRun())
    if early == "RUNNING":
        run.signal("go", 1)
    run.complete("a")
    assert (run.state, run.step("w").output["payload"], run.run.signals) == (RunState.SUCCEEDED, 1, {})
    assert "step.waiting w" not in run.kinds


def test_two_signals_are_taken_one_by_one_the_oldest_first():
    run = started(activity("a"), wait("v"), wait("w"), wait("x"))
    run.signal("go", 1)
    run.signal("go", 2)
    run.complete("a")
    assert (run.step("v").output["payload"], run.step("w").output["payload"]) == (1, 2)
    assert (run.states["x"], run.run.signals) == ("WAITING", {})


def test_one_signal_wakes_one_step():
    run = Driver.started(workflow(main=dag((wait("v"), []), (wait("w"), []))))
    run.signal()
    assert run.states == {"v": "SUCCEEDED", "w": "WAITING"}
    run.signal()
    assert run.state is RunState.SUCCEEDED


def test_the_step_that_has_waited_longest_takes_it():
    """Not the first in the document."""
    run = Driver.started(workflow(main=dag((wait("v"), ["a"]), (activity("a"), []), (wait("w"), []))))
    run.complete("a")
    run.signal()
    assert run.states == {"a": "SUCCEEDED", "w": "SUCCEEDED", "v": "WAITING"}


@pytest.mark.parametrize("on_timeout", OnTimeout)
def test_a_wait_that_times_out(on_timeout):
    run = started(wait("w", timeout_s=5, on_timeout=on_timeout), transform("b", Path("steps.w.output")))
    timer = run.step("w").timer
    assert run.commands == [SetTimer(timer, run.now + 5 * SECOND)]
    run.fire("w")
    if on_timeout is OnTimeout.CONTINUE:
        assert (run.state, run.step("b").output) == (RunState.SUCCEEDED, {"timed_out": True})
    else:
        assert (run.run.failing["code"], run.state) == ("wait_timeout", RunState.FAILED)
        assert run.run.failing["message"] == "no signal 'go' came within 5 s"
    assert run.refuses(SignalRun("go"))


def test_the_timer_of_a_wait_goes_with_the_signal():
    run = started(wait("w", timeout_s=5), activity("b"))
    timer = run.step("w").timer
    run.signal()
    assert run.commands[0] == ClearTimer(timer)
    assert run.refuses(TimerFired(timer))


def test_a_signal_after_the_timeout_is_kept():
    run = started(wait("w", timeout_s=5, on_timeout=OnTimeout.CONTINUE), activity("b"), wait("x"))
    run.fire("w")
    run.signal()
    run.complete("b")
    assert run.state is RunState.SUCCEEDED


def test_signals_are_bounded_by_name():
    run = started(activity("a"))
    for number in range(SIGNALS_MAX):
        run.signal("go", number)
    assert run.refuses(SignalRun("go"))
    run.signal("stop")


def test_a_repeated_signal_counts_once():
    run = started(activity("a"), wait("v"), wait("w"))
    run.take(SignalRun("go", 1, "me", "req_1"))
    run.take(SignalRun("go", 1, "me", "req_1"))
    assert len(run.bodies(Kind.RUN_SIGNALLED)) == 1
    run.take(SignalRun("go", 2, "me", "req_2"))
    run.complete("a")
    assert run.state is RunState.SUCCEEDED


def test_no_signal_for_a_run_that_has_ended():
    run = started(transform("a"))
    assert run.refuses(SignalRun("go"))


# --- approvals -------------------------------------------------------------------------------------------------------


def test_an_approval():
    run = started(approval("w", Path("input.what")), transform("b", Path("steps.w.output")), data={"what": "Deploy?"})
    assert (run.step("w").input, run.commands) == ({"approval": "Deploy?"}, [])
    run.approve("w", {"ticket": 5}, by="ann", comment="fine")
    assert run.state is RunState.SUCCEEDED
    assert run.step("b").output == {"approved": True, "by": "ann", "comment": "fine", "payload": {"ticket": 5}}
    assert run.kinds[3:5] == ["step.approved w", "step.succeeded w"]


@pytest.mark.parametrize(("comment", "message"), [("not today", "rejected by ann: not today"), ("", "rejected by ann")])
def test_a_rejection(comment, message):
    run = started(approval("w"), activity("b"))
    run.reject("w", by="ann", comment=comment)
    assert (run.state, run.states) == (RunState.FAILED, {"w": "FAILED", "b": "SKIPPED"})
    assert (run.run.failing["code"], run.run.failing["message"]) == ("rejected", message)
    assert run.run.failing["details"] == {"by": "ann", "comment": comment}


def test_a_rejection_of_what_may_fail():
    run = started(with_(approval("w"), continue_on_error=True), transform("b", Path("steps.w.error.code")))
    run.reject("w")
    assert (run.state, run.step("b").output) == (RunState.SUCCEEDED, "rejected")


@pytest.mark.parametrize("on_timeout", OnTimeout)
def test_an_approval_that_times_out(on_timeout):
    run = started(approval("w", timeout_s=60, on_timeout=on_timeout))
    run.fire("w")
    assert run.state is (RunState.FAILED if on_timeout is OnTimeout.FAIL else RunState.SUCCEEDED)
    assert run.refuses(ApproveStep("w", "late"))
    if on_timeout is OnTimeout.FAIL:
        assert run.run.failing["message"] == "no approval came within 60 s"


def test_an_approval_before_its_timeout():
    run = started(approval("w", timeout_s=60), activity("b"))
    timer = run.step("w").timer
    run.approve("w")
    assert run.commands[0] == ClearTimer(timer)
    run = started(approval("w", timeout_s=60))
    run.reject("w")
    assert (run.commands[0], run.state) == (ClearTimer(run.run.sequence - 4), RunState.FAILED)


def test_only_what_asks_can_be_approved():
    run = started(wait("w"), approval("x"))
    for key in ("w", "x", "nowhere"):
        assert run.refuses(ApproveStep(key, "me"))
        assert run.refuses(RejectStep(key, "me"))
    run.signal()
    run.approve("x")
    assert run.refuses(RejectStep("x", "me")), "twice"


def test_one_item_is_approved():
    run = started(fan_out("f", ["a", "b"], approval("x", Path("item"))))
    assert run.step("f[1]").input == {"approval": "b"}
    run.approve("f[1]")
    run.reject("f[0]")
    assert (run.states, run.state) == ({"f": "FAILED", "f[0]": "FAILED", "f[1]": "SUCCEEDED"}, RunState.FAILED)


def test_a_message_that_cannot_be_computed():
    run = started(approval("w", Failing()))
    assert (run.states, run.run.failing["code"]) == ({"w": "FAILED"}, "expression")


# --- sleep until, start later ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "good"), [(5 * SECOND, 1), (0, 1), (SECOND + YEAR, 1), (SECOND + YEAR + 1, 0), (True, 0)]
)
def test_sleep_until(at, good):
    run = started(sleep_until("a", at))
    if good:
        assert run.commands == [SetTimer(run.run.sequence, at, by_wall=True)]
        run.fire("a")
        assert run.state is RunState.SUCCEEDED
    else:
        assert (run.states, run.run.failing["code"]) == ({"a": "FAILED"}, "expression")


def test_a_run_for_a_later_time():
    run = Driver(workflow(activity("a")), run_at=61 * SECOND)
    assert (run.state, run.commands) == (RunState.SCHEDULED, [SetTimer(2, 61 * SECOND, by_wall=True)])
    assert run.refuses(AdmitRun())
    run.fire()
    assert (run.state, run.now, run.commands) == (RunState.PENDING, 61 * SECOND, [])
    run.take(AdmitRun())
    assert run.states == {"a": "QUEUED"}


def test_a_run_for_no_time_waits_for_its_turn():
    assert Driver(workflow()).state is RunState.PENDING


@pytest.mark.parametrize("run_at", [1, SECOND])
def test_whether_a_time_has_come_says_the_clock_on_the_wall(run_at):
    run = Driver(workflow(), run_at=run_at)
    assert (run.state, run.commands) == (RunState.SCHEDULED, [SetTimer(2, run_at, by_wall=True)])
    run.fire()
    assert run.state is RunState.PENDING


def test_cancel_before_its_time():
    run = Driver(workflow(activity("a"), on_cancel=[activity("b")]), run_at=61 * SECOND)
    run.cancel()
    assert (run.state, run.commands) == (RunState.CANCELLED, [ClearTimer(2), FinishRun(RunState.CANCELLED)])
    assert run.states == {}, "what never started has nothing to clean up"


# --- sub-workflows ---------------------------------------------------------------------------------------------------


def test_a_sub_workflow():
    run = started(child("a", value=Path("input")), transform("b", Path("steps.a.output")), data={"x": 1})
    step, seq = run.step("a"), run.run.sequence
    assert run.commands == [StartChild(seq, "a", step.child, "child", 7, {"x": 1})]
    assert step.child == derived_id("run", run.now, "run_1", seq)
    assert (step.state, step.input) == (StepState.WAITING, {"workflow": "child", "version": 7, "input": {"x": 1}})
    run.end_child("a", "SUCCEEDED", {"y": 2})
    assert (run.state, run.step("b").output) == (RunState.SUCCEEDED, {"y": 2})
    assert run.kinds[3:5] == ["step.child_ended a", "step.succeeded a"]


def test_ids_of_sub_workflows_sort_by_time_and_differ():
    found = [derived_id("run", at, "run_1", seq) for at in (1, 999, 1_000, 1_001, 10**16) for seq in (1, 2)]
    assert len(set(found)) == len(found)
    assert [one[:12] for one in found] == sorted(one[:12] for one in found)
    assert {len(one) for one in found} == {30}


def test_a_version_that_is_named_beats_the_pinned_one():
    run = started(child("a", version=3))
    assert run.commands[0].version == 3


@pytest.mark.parametrize("pins", [None, {"other": 1}])
def test_a_workflow_that_did_not_exist_when_the_run_was_created(pins):
    run = Driver.started(workflow(child("a", "child")), pins=pins)
    assert (run.states, run.run.failing["code"]) == ({"a": "FAILED"}, "workflow_not_found")
    assert "'child'" in run.run.failing["message"]


@pytest.mark.parametrize(
    ("state", "code"), [("FAILED", "child_failed"), ("DEAD", "child_dead"), ("CANCELLED", "child_cancelled")]
)
def test_a_sub_workflow_that_does_not_succeed(state, code):
    run = started(child("a"))
    name, error = run.step("a").child, {"code": "http_404", "message": "gone"}
    run.end_child("a", state, "half", error)
    assert run.step("a").output is None
    assert (run.states, run.state, run.run.failing["code"]) == ({"a": "FAILED"}, RunState.FAILED, code)
    assert run.run.failing["details"] == {"run_id": name, "state": state, "error": error}
    assert name in run.run.failing["message"]
    assert ("gone" in run.run.failing["message"]) == (state != "CANCELLED")


def test_a_sub_workflow_that_could_not_be_started():
    run = started(child("a"))
    run.end_child("a", "", None, {"code": "too_deep", "message": "nested too deeply"})
    assert (run.run.failing["code"], run.run.failing["message"]) == ("too_deep", "nested too deeply")


def test_only_its_end_closes_a_sub_workflow():
    run = started(activity("z"), child("a"))
    assert run.refuses(ChildEnded(run.step("z").command, "SUCCEEDED")), "an attempt is no sub-workflow"
    run.complete("z")
    seq = run.step("a").command
    for fact in (AttemptStarted(seq, 1), AttemptCompleted(seq, 1), TimerFired(seq), SignalRun("go")):
        assert run.refuses(fact) or isinstance(fact, SignalRun)
    run.end_child("a")
    assert run.refuses(ChildEnded(seq, "SUCCEEDED"))


def test_a_cancelled_parent_waits_for_its_sub_workflow():
    run = started(child("a"), activity("b"))
    seq = run.step("a").command
    run.cancel()
    assert (run.commands, run.states, run.state) == ([CancelChild(seq)], {"a": "WAITING"}, RunState.RUNNING)
    run.end_child("a", "CANCELLED")
    assert (run.states, run.state) == ({"a": "CANCELLED"}, RunState.CANCELLED)


@pytest.mark.parametrize(("ended", "state"), [("SUCCEEDED", "SUCCEEDED"), ("FAILED", "CANCELLED"), ("", "CANCELLED")])
def test_a_sub_workflow_that_ends_by_itself_after_a_cancel(ended, state):
    run = started(child("a"))
    run.cancel()
    run.end_child("a", ended, "out")
    assert (run.states, run.state) == ({"a": state}, RunState.CANCELLED)
    assert run.step("a").output == ("out" if state == "SUCCEEDED" else None)


def test_a_timeout_waits_for_the_sub_workflow_too():
    run = Driver.started(workflow(child("a", version=1), on_failure=[activity("alert")], timeout_s=5))
    seq = run.step("a").command
    run.fire()
    assert (run.commands, run.states) == ([CancelChild(seq)], {"a": "WAITING"})
    run.end_child("a", "CANCELLED")
    assert run.states == {"a": "CANCELLED", "alert": "QUEUED"}


def test_sub_workflows_of_items():
    run = started(fan_out("f", [1, 2, 3], child("x", value=Path("item")), max_parallel=2, max_failures=1))
    assert [command.input for command in run.commands] == [1, 2]
    run.end_child("f[0]", "FAILED")
    run.end_child("f[2]", "SUCCEEDED", "three")
    run.end_child("f[1]", "SUCCEEDED", "two")
    assert (run.state, run.step("f").output) == (RunState.SUCCEEDED, [None, "two", "three"])


def test_an_input_that_cannot_be_computed():
    assert started(child("a", value=Failing())).run.failing["code"] == "expression"


# --- events ----------------------------------------------------------------------------------------------------------


def test_an_event():
    run = started(publish("a", "order.paid", {"id": 5}), transform("b", Path("steps.a.output")))
    event_id = derived_id("evt", run.now, "run_1", 3)
    assert run.commands[0] == Publish(event_id, "order.paid", {"id": 5}, "a")
    assert run.step("b").output == {"event_id": event_id, "type": "order.paid"}


@pytest.mark.parametrize("name", ["", "run.failed", "trigger.x", "taskforge.x", "x" * 201, 5, None])
def test_types_that_no_event_may_have(name):
    run = started(publish("a", name))
    assert (run.states, run.run.failing["code"]) == ({"a": "FAILED"}, "event_type")
    assert not any(isinstance(command, Publish) for command in run.commands)


@pytest.mark.parametrize("name", ["x", "runs.x", "x" * 200])
def test_types_that_an_event_may_have(name):
    assert started(publish("a", name)).state is RunState.SUCCEEDED


def test_a_pinned_event_is_not_published_again():
    run = started(publish("a"), activity("b"), pinned={"a": {"event_id": "evt_old", "type": "order.paid"}})
    assert (run.step("a").output["event_id"], run.step("a").pinned) == ("evt_old", True)
    assert not any(isinstance(command, Publish) for command in run.commands)
