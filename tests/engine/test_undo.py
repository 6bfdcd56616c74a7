"""What happens after a failure or a cancel: compensations, on_failure, on_cancel and its grace."""

from __future__ import annotations

import pytest

from taskforged.engine.events import (
    AttemptCancelled,
    CancelChild,
    CancelExecution,
    ClearTimer,
    FinishRun,
    SetTimer,
    TimerFired,
    Withdraw,
)
from taskforged.engine.model import Effect, RetryPolicy
from taskforged.engine.states import Kind, RunState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    case,
    child,
    dag,
    fail,
    fan_out,
    group,
    publish,
    sleep,
    switch,
    transform,
    wait,
    with_,
    workflow,
)
from taskforged.testing.fakes import Failing, Path

SECOND = 1_000_000


def undoable(step, config=None):
    return with_(step, compensate=activity("undo", config))


# --- compensations ---------------------------------------------------------------------------------------------------


def test_what_succeeded_is_undone_in_reverse_order_one_by_one_and_then_comes_on_failure():
    steps = [undoable(activity("a"), Path("steps.a.output")), undoable(transform("b")), activity("c"), fail("d")]
    run = Driver.started(workflow(*steps, on_failure=[activity("alert", Path("error.message"))]))
    run.complete("a", {"id": 7})
    run.complete("c")
    assert run.bodies(Kind.RUN_COMPENSATING) == [{"steps": ["b", "a"]}]
    assert {key: state for key, state in run.states.items() if ":" in key} == {"b:compensate": "QUEUED"}
    run.complete("b:compensate")
    assert run.step("a:compensate").input == {"id": 7}
    assert "alert" not in run.states
    run.complete("a:compensate")
    assert run.step("alert").input == "on purpose"
    run.complete("alert")
    assert run.state is RunState.FAILED


def test_a_success_undoes_nothing():
    run = Driver.started(workflow(undoable(transform("a"))))
    assert (run.state, run.states) == (RunState.SUCCEEDED, {"a": "SUCCEEDED"})


def test_only_what_succeeded_is_undone():
    steps = [undoable(fail("a", continue_on_error=True)), undoable(transform("b", if_=False)), undoable(activity("c"))]
    run = Driver.started(workflow(*steps, fail("d")))
    run.complete("c")
    assert run.run.compensating == ("c",)
    run.complete("c:compensate")
    assert run.state is RunState.FAILED


def test_the_order_is_that_of_completion_not_of_the_document():
    steps = [(undoable(activity(key)), []) for key in "abc"]
    run = Driver.started(workflow(main=dag(*steps, (fail("d"), ["a", "b", "c"]))))
    for key in "bca":
        run.wait(1)
        run.complete(key)
    assert run.run.compensating == ("a", "c", "b")


def test_a_compensation_that_fails_does_not_keep_the_others():
    steps = [
        undoable(activity("a")),
        with_(activity("b"), compensate=activity("undo", Failing())),
        undoable(activity("c")),
    ]
    run = Driver.started(workflow(*steps, fail("d")))
    for key in "abc":
        run.complete(key)
    run.fail("c:compensate")
    assert (run.states["b:compensate"], run.states["a:compensate"]) == ("FAILED", "QUEUED")
    run.complete("a:compensate")
    assert (run.state, run.run.failing["code"]) == (RunState.FAILED, "failed"), "why it failed stays"


def test_a_compensation_is_retried_and_survives_crashes():
    undo = activity("undo", retry=RetryPolicy(max_attempts=2), effect=Effect.ONCE)
    run = Driver.started(workflow(with_(activity("a"), compensate=undo), fail("b")))
    run.complete("a")
    run.fail("a:compensate")
    run.fire("a:compensate")
    run.lose("a:compensate")
    assert run.states["a:compensate"] == "NEEDS_DECISION"
    run.resolve("a:compensate", "succeeded")
    assert run.state is RunState.FAILED


@pytest.mark.parametrize("kind", ["sleep", "wait", "child", "publish", "transform", "fail"])
def test_compensations_of_every_kind(kind):
    undo = {
        "sleep": sleep("u", 5), "wait": wait("u"), "child": child("u", version=1), "publish": publish("u"),
        "transform": transform("u"), "fail": fail("u"),
    }[kind]  # fmt: skip
    run = Driver.started(workflow(undoable(transform("a")), with_(transform("b"), compensate=undo), fail("c")))
    match kind:
        case "sleep":
            run.fire("b:compensate")
        case "wait":
            run.signal()
        case "child":
            run.end_child("b:compensate")
    run.complete("a:compensate")
    assert run.state is RunState.FAILED


def test_items_and_steps_inside_items_are_undone():
    body = group("x", undoable(activity("a", Path("item")), Path("steps.a.output")), undoable(transform("b")))
    run = Driver.started(workflow(fan_out("f", [1, 2], with_(body, compensate=activity("undo"))), fail("z")))
    run.complete("f[1].a", "second")
    run.wait(1)
    run.complete("f[0].a", "first")
    order = ["f[0]", "f[0].b", "f[0].a", "f[1]", "f[1].b", "f[1].a"]
    assert list(run.run.compensating) == order
    for key in order:
        if key == "f[0].a":
            assert run.step("f[0].a:compensate").input == "first"
        run.complete(f"{key}:compensate")
    assert run.state is RunState.FAILED


def test_a_fan_out_as_a_whole_is_undone():
    whole = undoable(fan_out("f", [1, 2], transform("x", Path("item"))), Path("steps.f.output"))
    run = Driver.started(workflow(whole, fail("z")))
    assert run.step("f:compensate").input == [1, 2]


def test_items_of_a_fan_out_that_failed_are_undone():
    run = Driver.started(workflow(fan_out("f", [0, 1, 2], undoable(activity("x")))))
    run.complete("f[2]")
    run.fail("f[0]")
    run.complete("f[1]")
    assert run.run.compensating == ("f[1]", "f[2]")


def test_steps_of_a_chosen_case_are_undone():
    run = Driver.started(
        workflow(switch("s", case(False, undoable(transform("a"))), case(None, undoable(transform("b")))), fail("c"))
    )
    assert run.run.compensating == ("b",)


def test_after_a_timeout_what_was_done_is_undone_when_everything_has_stopped():
    model = workflow(
        main=dag((undoable(activity("a")), []), (undoable(activity("b")), []), (undoable(activity("c")), [])),
        timeout_s=5,
    )
    run = Driver.started(model)
    run.complete("a")
    run.begin("b")
    run.begin("c")
    run.fire()
    assert not run.bodies(Kind.RUN_COMPENSATING)
    run.complete("b", "just in time")
    run.stop("c")
    assert run.run.compensating == ("b", "a")


def test_cancel_during_a_compensation_stops_it_and_undoes_no_more():
    run = Driver.started(
        workflow(undoable(transform("a")), undoable(transform("b")), fail("c"), on_cancel=[activity("bye")])
    )
    seq = run.begin("b:compensate")
    run.cancel()
    assert run.commands == [CancelExecution(seq)]
    run.stop("b:compensate")
    assert run.states["bye"] == "QUEUED"
    run.complete("bye")
    assert (run.state, "a:compensate" in run.states) == (RunState.CANCELLED, False)
    assert run.run.failing["code"] == "failed", "why it had failed stays readable"


def test_a_cancel_undoes_nothing():
    run = Driver.started(workflow(undoable(transform("a")), activity("b")))
    run.cancel()
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "SUCCEEDED", "b": "CANCELLED"})


def test_what_was_taken_over_is_undone_too():
    """The host does not pin what the earlier run has undone, so what is pinned is still done."""
    run = Driver.started(workflow(undoable(activity("a"), Path("steps.a.output")), fail("b")), pinned={"a": {"id": 1}})
    assert run.step("a:compensate").input == {"id": 1}


# --- on_cancel -------------------------------------------------------------------------------------------------------


def cleaning(*steps, on_cancel=None, **others):
    others.setdefault("cancel_grace_s", 30)
    return Driver.started(workflow(*steps, on_cancel=on_cancel or [activity("clean"), transform("bye")], **others))


def test_on_cancel_comes_when_everything_has_stopped():
    run = cleaning(activity("a"), timeout_s=99)
    own = run.run.sequence - 1
    run.begin("a")
    run.cancel()
    assert run.states == {"a": "RUNNING"}
    run.stop("a")
    assert run.states == {"a": "CANCELLED", "clean": "QUEUED"}
    grace = run.run.sequence - 1
    assert run.commands[:2] == [ClearTimer(own), SetTimer(grace, run.now + 30 * SECOND)]
    assert run.refuses(TimerFired(own))
    run.complete("clean")
    assert (run.state, run.states["bye"]) == (RunState.CANCELLED, "SUCCEEDED")
    assert run.commands == [ClearTimer(grace), FinishRun(RunState.CANCELLED)]


def test_on_cancel_of_a_run_that_waits_for_nothing_running():
    run = cleaning(sleep("a", 900))
    run.cancel()
    assert run.states == {"a": "CANCELLED", "clean": "QUEUED"}


def test_what_has_not_started_cleans_nothing():
    run = Driver(workflow(activity("a"), on_cancel=[activity("clean")]))
    run.cancel()
    assert (run.state, run.states) == (RunState.CANCELLED, {})


def test_a_success_or_failure_does_not_clean():
    for step in (transform("a"), fail("a")):
        assert "clean" not in cleaning(step).states


def test_a_failure_in_on_cancel_changes_nothing():
    run = cleaning(activity("a"))
    run.cancel()
    run.fail("clean")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "CANCELLED", "clean": "FAILED"})


def test_on_cancel_retries_and_survives_a_crash():
    run = cleaning(activity("a"), on_cancel=[activity("clean", retry=RetryPolicy(max_attempts=2))])
    run.cancel()
    run.lose("clean")
    run.fail("clean")
    run.fire("clean")
    run.complete("clean")
    assert run.state is RunState.CANCELLED


def test_the_grace_ends_on_cancel():
    run = cleaning(activity("a"), on_cancel=[activity("clean"), activity("more")])
    run.cancel()
    seq = run.begin("clean")
    assert run.refuses(AttemptCancelled(seq)), "nobody asked it to"
    run.fire()
    assert (run.commands, run.state) == ([CancelExecution(seq)], RunState.RUNNING)
    run.stop("clean")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "CANCELLED", "clean": "CANCELLED"})


@pytest.mark.parametrize(("report", "state"), [("complete", "SUCCEEDED"), ("fail", "CANCELLED"), ("lose", "CANCELLED")])
def test_an_attempt_of_on_cancel_that_ends_by_itself_after_the_grace(report, state):
    run = cleaning(activity("a"), on_cancel=[activity("clean", retry=RetryPolicy(max_attempts=9)), activity("more")])
    run.cancel()
    run.begin("clean")
    run.fire()
    getattr(run, report)("clean")
    assert (run.state, run.states["clean"], "more" in run.states) == (RunState.CANCELLED, state, False)


def test_the_grace_ends_whatever_on_cancel_waits_for():
    block = [
        group(
            "g",
            block=dag(
                (activity("q"), []),
                (sleep("s", 900), []),
                (child("c", version=1), []),
                (activity("d", effect=Effect.ONCE), []),
            ),
        )
    ]
    run = cleaning(activity("a"), on_cancel=block)
    run.cancel()
    run.lose("d")
    q, s, c = run.step("q").command, run.step("s").timer, run.step("c").command
    run.fire()
    assert run.commands == [Withdraw(q), ClearTimer(s), CancelChild(c)]
    run.end_child("c", "CANCELLED")
    assert (run.state, set(run.states.values())) == (RunState.CANCELLED, {"CANCELLED"})


def test_no_grace_at_all():
    run = cleaning(activity("a"), cancel_grace_s=0)
    run.cancel()
    run.fire()
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "CANCELLED", "clean": "CANCELLED"})


def test_cancel_while_steps_need_a_decision():
    run = cleaning(activity("a", effect=Effect.ONCE))
    run.lose("a")
    evidence = run.step("a").evidence
    run.cancel()
    assert run.states == {"a": "CANCELLED", "clean": "QUEUED"}
    assert run.step("a").evidence == evidence, "what is known stays readable"


def test_on_failure_and_compensations_are_left_for_on_cancel():
    run = cleaning(fail("a"), on_failure=[activity("alert")])
    run.cancel()
    assert run.states == {"a": "FAILED", "alert": "CANCELLED", "clean": "QUEUED"}


def test_cancel_of_fan_outs_and_groups_leaves_nothing_open():
    body = group("x", activity("b"), activity("c"))
    run = cleaning(fan_out("f", [1, 2, 3], body, max_parallel=2))
    run.begin("f[0].b")
    run.cancel()
    run.complete("f[0].b", 1)
    run.complete("clean")
    assert run.states == {
        "f": "CANCELLED", "f[0]": "CANCELLED", "f[1]": "CANCELLED", "f[0].b": "SUCCEEDED", "f[1].b": "CANCELLED",
        "clean": "SUCCEEDED", "bye": "SUCCEEDED",
    }  # fmt: skip
