"""Pause and resume, decisions about unknown effects, and outputs that are taken over."""

from __future__ import annotations

import pytest

from taskforged.engine.events import (
    AdmitRun,
    AttemptCompleted,
    AttemptStarted,
    CancelExecution,
    ClearTimer,
    Execute,
    FinishRun,
    PauseRun,
    ResolveStep,
    ResumeRun,
    SetTimer,
    Withdraw,
)
from taskforged.engine.model import Effect, RetryPolicy
from taskforged.engine.states import Kind, RunState, StepState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    approval,
    case,
    child,
    dag,
    fail,
    fan_out,
    group,
    sleep,
    switch,
    transform,
    wait,
    with_,
    workflow,
)
from taskforged.testing.fakes import Path

SECOND = 1_000_000


def started(*steps, **others):
    return Driver.started(workflow(*steps, **others), pins={"child": 7})


# --- pause -----------------------------------------------------------------------------------------------------------


def test_a_pause_withdraws_what_is_queued_and_a_resume_asks_for_it_again():
    run = started(activity("a"), activity("b"))
    seq = run.step("a").command
    run.pause()
    assert (run.state, run.commands, run.states) == (RunState.PAUSED, [Withdraw(seq)], {"a": "QUEUED"})
    assert (run.run.paused_by, run.run.pause_reason) == ("tester", "lunch")
    assert run.refuses(AttemptStarted(seq, 1))
    run.resume()
    assert (run.state, run.commands) == (RunState.RUNNING, [Execute(seq, "a")])
    assert (run.run.paused_by, run.run.pause_reason) == ("", "")
    run.complete("a")
    run.complete("b")
    assert run.state is RunState.SUCCEEDED


def test_what_runs_ends_in_a_pause_and_nothing_follows():
    run = started(activity("a"), transform("b"), activity("c"))
    run.begin("a")
    run.pause()
    assert run.commands == []
    run.complete("a", 1)
    assert (run.state, run.states, run.commands) == (RunState.PAUSED, {"a": "SUCCEEDED"}, [])
    run.resume()
    assert run.states == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "QUEUED"}


def test_the_last_step_ends_in_a_pause():
    run = started(activity("a"))
    run.begin("a")
    run.pause()
    run.complete("a")
    assert run.state is RunState.PAUSED
    run.resume()
    assert (run.state, run.commands[-1]) == (RunState.SUCCEEDED, FinishRun(RunState.SUCCEEDED))


def test_a_failure_in_a_pause_is_handled_afterwards():
    run = started(activity("a"), on_failure=[activity("alert")])
    run.begin("a")
    run.pause()
    run.fail("a")
    assert (run.state, run.states, run.run.failing) == (RunState.PAUSED, {"a": "FAILED"}, None)
    run.resume()
    assert run.states == {"a": "FAILED", "alert": "QUEUED"}


def test_an_attempt_that_is_lost_in_a_pause_waits_for_the_resume():
    run = started(activity("a"))
    run.begin("a")
    run.pause()
    run.lose("a")
    assert (run.states, run.commands) == ({"a": "QUEUED"}, [])
    run.resume()
    assert run.commands == [Execute(run.step("a").command, "a")]
    run.complete("a")
    assert run.state is RunState.SUCCEEDED


def test_timers_fire_in_a_pause_and_what_they_wake_waits():
    model = workflow(
        main=dag(
            (activity("r", retry=RetryPolicy(max_attempts=2)), []),
            (sleep("s", 5), []),
            (wait("w", timeout_s=5), []),
            (activity("z"), ["s"]),
        )
    )
    run = Driver.started(model)
    run.fail("r")
    run.pause()
    for key in "rsw":
        run.fire(key)
        assert run.commands == []
    assert run.states == {"r": "QUEUED", "s": "SUCCEEDED", "w": "FAILED"}
    run.resume()
    assert run.commands == [Execute(run.step("r").command, "r"), Execute(run.step("z").command, "z")]


def test_a_retry_that_is_decided_in_a_pause():
    run = started(activity("a", retry=RetryPolicy(max_attempts=2)))
    run.begin("a")
    run.pause()
    run.fail("a")
    assert (run.states, run.commands) == ({"a": "RETRYING"}, [SetTimer(run.step("a").timer, run.step("a").wake_at)])
    run.resume()
    assert run.commands == []
    run.fire("a")
    run.complete("a")
    assert run.state is RunState.SUCCEEDED


def test_signals_approvals_and_children_in_a_pause():
    steps = [(wait("w"), []), (approval("p"), []), (child("c"), []), (activity("z"), ["w", "p", "c"])]
    run = Driver.started(workflow(main=dag(*steps)), pins={"child": 7})
    run.pause()
    run.signal()
    run.approve("p")
    run.end_child("c")
    assert (run.state, run.states) == (RunState.PAUSED, dict.fromkeys("wpc", "SUCCEEDED"))
    run.resume()
    assert run.states["z"] == "QUEUED"


def test_items_that_ended_in_a_pause_go_on_afterwards():
    run = started(fan_out("f", [0, 1, 2], group("x", activity("a"), activity("b")), max_parallel=2))
    for index in (0, 1):
        run.begin(f"f[{index}].a")
    run.pause()
    for index in (0, 1):
        run.complete(f"f[{index}].a")
    run.resume()
    assert [command.step for command in run.commands] == ["f[0].b", "f[1].b"]
    run.complete("f[1].b")
    assert run.states["f[2].a"] == "QUEUED"


@pytest.mark.parametrize("phase", ["compensate", "on_failure"])
def test_a_pause_after_the_failure(phase):
    undo = with_(transform("a"), compensate=activity("u")) if phase == "compensate" else transform("a")
    run = started(undo, fail("b"), on_failure=[activity("alert"), activity("more")])
    key = "a:compensate" if phase == "compensate" else "alert"
    seq = run.begin(key)
    run.pause()
    run.take(AttemptCompleted(seq, None))
    assert "more" not in run.states
    run.resume()
    assert run.states["alert" if phase == "compensate" else "more"] == "QUEUED"


def test_a_pause_while_attempts_of_a_failed_run_stop():
    run = started(activity("a"), on_failure=[activity("alert")], timeout_s=5)
    run.begin("a")
    run.fire()
    run.pause()
    run.stop("a")
    assert (run.state, run.states) == (RunState.PAUSED, {"a": "CANCELLED"})
    run.resume()
    assert (run.commands, run.states["alert"]) == ([Execute(run.step("alert").command, "alert")], "QUEUED")


def test_the_clock_of_the_timeout_stands_still():
    run = started(activity("a"), timeout_s=60)
    first = run.run.sequence - 1
    run.wait(40)
    run.pause()
    assert run.commands == [ClearTimer(first), Withdraw(run.step("a").command)]
    assert run.bodies(Kind.RUN_PAUSED)[0]["timeout_left"] == 20 * SECOND
    run.wait(1_000)
    run.resume()
    assert run.commands[0] == SetTimer(run.run.sequence, run.now + 20 * SECOND)
    run.wait(5)
    run.pause()
    run.wait(1_000)
    run.resume()
    assert run.commands[0] == SetTimer(run.run.sequence, run.now + 15 * SECOND)
    run.fire()
    assert (run.run.failing["code"], run.states) == ("run_timeout", {"a": "CANCELLED"})


def test_a_pause_when_the_timeout_is_due_already():
    run = started(activity("a"), timeout_s=60)
    run.wait(61)
    run.pause()
    run.resume()
    assert run.commands[0] == SetTimer(run.run.sequence, run.now + 1)


def test_a_timeout_after_a_pause_with_an_open_sub_workflow():
    run = started(child("a"), timeout_s=60)
    run.pause()
    run.wait(100)
    run.resume()
    run.fire()
    run.end_child("a", "CANCELLED")
    assert (run.state, run.states) == (RunState.FAILED, {"a": "CANCELLED"})


def test_cancel_in_a_pause():
    run = started(activity("a"), on_cancel=[activity("clean")], timeout_s=60)
    run.pause()
    run.cancel()
    assert run.commands[:1] != [Withdraw(run.step("a").command)], "it was withdrawn by the pause"
    assert (run.state, run.states) == (RunState.RUNNING, {"a": "CANCELLED", "clean": "QUEUED"})
    assert (run.run.paused_by, run.run.pause_reason) == ("", "")
    run.complete("clean")
    assert run.state is RunState.CANCELLED


def test_cancel_in_a_pause_with_a_running_attempt():
    run = started(activity("a"))
    seq = run.begin("a")
    run.pause()
    run.cancel()
    assert run.commands == [CancelExecution(seq)]
    run.stop("a")
    assert run.state is RunState.CANCELLED


def test_where_a_pause_or_resume_makes_no_sense():
    run = Driver(workflow(activity("a")))
    assert run.refuses(PauseRun())
    assert run.refuses(ResumeRun())
    run.take(AdmitRun())
    assert run.refuses(ResumeRun())
    run.pause()
    assert run.refuses(PauseRun())
    run.resume()
    run.begin("a")
    run.cancel()
    assert run.refuses(PauseRun()), "it is being cancelled"
    run.stop("a")
    assert run.refuses(PauseRun())
    assert run.refuses(ResumeRun())


def test_pause_and_resume_in_one_call():
    run = started(activity("a"))
    seq = run.step("a").command
    run.take(PauseRun(), ResumeRun())
    assert run.commands == [Withdraw(seq), Execute(seq, "a")]
    run.take(AttemptStarted(seq, 1), PauseRun(), AttemptCompleted(seq, 1), ResumeRun())
    assert run.state is RunState.SUCCEEDED


# --- decisions -------------------------------------------------------------------------------------------------------


def parked(*steps, **others):
    run = started(activity("a", {"x": 1}, effect=Effect.ONCE, **others), *steps)
    run.lose("a")
    assert run.states == {"a": "NEEDS_DECISION"}
    return run


def test_the_evidence():
    assert parked().step("a").evidence == {
        "reason": "the daemon stopped",
        "attempt": 1,
        "idempotency_key": "run_1/a",
        "error": {"code": "lost", "message": "the daemon stopped"},
    }


def test_a_failure_whose_effect_is_unknown_asks_too():
    run = started(activity("a", effect=Effect.ONCE, retry=RetryPolicy(max_attempts=5)))
    run.fail("a", is_unknown=True)
    assert run.states == {"a": "NEEDS_DECISION"}
    assert run.step("a").evidence["error"]["code"] == "http_503"
    run = started(activity("a", effect=Effect.IDEMPOTENT, retry=RetryPolicy(max_attempts=5)))
    run.fail("a", is_unknown=True)
    assert run.states == {"a": "RETRYING"}


def test_it_succeeded():
    run = parked(transform("b", Path("steps.a.output")))
    run.resolve("a", "succeeded", {"id": 5}, comment="seen in the shop")
    assert (run.state, run.step("b").output, run.step("a").evidence) == (RunState.SUCCEEDED, {"id": 5}, None)
    assert run.kinds[6:8] == ["step.resolved a", "step.succeeded a"]
    assert run.step("a").error is None


@pytest.mark.parametrize(("comment", "message"), [("not there", "not there"), ("", "tester said that it has failed")])
def test_it_failed(comment, message):
    run = parked(retry=RetryPolicy(max_attempts=5))
    run.resolve("a", "failed", comment=comment)
    assert (run.state, run.states) == (RunState.FAILED, {"a": "FAILED"})
    assert (run.run.failing["code"], run.run.failing["message"]) == ("resolved_failed", message)


def test_try_again():
    run = parked()
    run.resolve("a", "retry")
    step = run.step("a")
    assert (step.state, step.attempt, step.input, run.commands) == (
        StepState.QUEUED,
        2,
        {"x": 1},
        [Execute(step.command, "a")],
    )
    run.lose("a")
    assert run.states == {"a": "NEEDS_DECISION"}, "each time again"
    run.resolve("a", "retry")
    run.complete("a")
    assert (run.state, run.step("a").attempt) == (RunState.SUCCEEDED, 3)


def test_decisions_that_make_no_sense():
    run = parked(activity("b"))
    assert run.refuses(ResolveStep("a", "perhaps"))
    assert run.refuses(ResolveStep("b", "retry"))
    run.resolve("a", "retry")
    assert run.refuses(ResolveStep("a", "failed")), "it is queued"
    run.begin("a")
    assert run.refuses(ResolveStep("a", "failed")), "it runs"
    run.complete("a")
    assert run.refuses(ResolveStep("a", "failed"))


@pytest.mark.parametrize(("outcome", "state"), [("succeeded", "SUCCEEDED"), ("failed", "FAILED"), ("retry", "QUEUED")])
def test_a_decision_in_a_pause(outcome, state):
    run = parked(activity("b"))
    run.pause()
    run.resolve("a", outcome)
    assert (run.states, run.commands) == ({"a": state}, [])
    run.resume()
    assert run.states.get("b") == {"SUCCEEDED": "QUEUED", "FAILED": "SKIPPED", "QUEUED": None}[state]


def test_others_go_on_while_one_waits_for_a_decision():
    run = Driver.started(workflow(main=dag((activity("a", effect=Effect.ONCE), []), (activity("b"), []))))
    run.lose("a")
    run.complete("b")
    assert run.state is RunState.RUNNING
    run.resolve("a", "succeeded")
    assert run.state is RunState.SUCCEEDED


def test_a_timeout_ends_the_waiting_for_a_decision():
    run = started(activity("a", effect=Effect.ONCE), timeout_s=60)
    run.lose("a")
    run.fire()
    assert (run.state, run.states) == (RunState.FAILED, {"a": "CANCELLED"})
    assert run.refuses(ResolveStep("a", "retry"))


def test_a_decision_about_an_item():
    run = started(fan_out("f", [0, 1], group("x", activity("a", effect=Effect.ONCE), activity("b"))))
    run.lose("f[0].a")
    run.resolve("f[0].a", "succeeded", 1)
    assert run.states["f[0].b"] == "QUEUED"


# --- outputs that are taken over -------------------------------------------------------------------------------------


def test_what_is_pinned_is_not_executed():
    steps = [
        activity("a"),
        sleep("s", 5),
        wait("w"),
        child("c"),
        transform("t"),
        fail("f"),
        activity("b", Path("steps.a.output")),
    ]
    run = Driver.started(workflow(*steps), pinned={key: {"old": key} for key in "aswctf"}, pins={"child": 7})
    assert run.states == {**dict.fromkeys("aswctf", "SUCCEEDED"), "b": "QUEUED"}
    assert all(run.step(key).pinned for key in "aswctf")
    assert (run.step("a").attempt, run.step("b").input, run.step("b").pinned) == (0, {"old": "a"}, False)
    assert [type(command) for command in run.commands] == [Execute]
    assert run.bodies(Kind.STEP_SUCCEEDED) == [{"pinned": True}] * 6, "the outputs stand in the first entry"


def test_what_contains_others_is_gone_through_again():
    steps = [group("g", activity("a"), activity("b")), switch("s", case(True, activity("c")))]
    run = Driver.started(workflow(*steps), pinned={"g": 1, "a": 2, "s": 3})
    assert run.states == {"g": "RUNNING", "a": "SUCCEEDED", "b": "QUEUED"}
    run.complete("b", 5)
    assert (run.step("g").output, run.states["c"]) == ({"a": 2, "b": 5}, "QUEUED")


def test_what_is_pinned_is_skipped_all_the_same_for_what_came_before():
    run = Driver.started(
        workflow(main=dag((fail("a"), []), (with_(activity("b"), needs=True), ["a"]))), pinned={"b": 1}
    )
    assert run.states == {"a": "FAILED", "b": "SKIPPED"}


def test_the_condition_of_what_is_pinned_is_not_asked():
    assert Driver.started(workflow(activity("a", if_=False)), pinned={"a": 1}).step("a").output == 1


def test_a_retry_of_a_retry_keeps_what_is_pinned():
    run = Driver.started(workflow(activity("a"), activity("b")), pinned={"a": None}, attempt=3, retry_of="run_0")
    assert (run.states, run.step("a").output) == ({"a": "SUCCEEDED", "b": "QUEUED"}, None)
    assert (run.run.attempt, run.run.retry_of) == (3, "run_0")
