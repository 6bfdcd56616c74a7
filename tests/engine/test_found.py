"""Faults that the simulator, or a reader, has found in the engine: one test each, which failed before it was mended."""

from __future__ import annotations

from taskforged.engine import machine
from taskforged.engine.events import (
    AttemptCompleted,
    FinishRun,
)
from taskforged.engine.states import RunState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    child,
    dag,
    fail,
    fan_out,
    group,
    transform,
    wait,
    with_,
    workflow,
)
from taskforged.testing.fakes import Failing, Path


def test_the_output_of_a_group_that_fails_when_its_last_step_ends():
    """The exception left `apply`."""
    run = Driver.started(workflow(group("g", activity("a"), output=Failing()), transform("b")))
    run.complete("a", 1)
    assert run.states == {"g": "FAILED", "a": "SUCCEEDED", "b": "SKIPPED"}
    assert (run.state, run.run.failing["step"], run.run.failing["code"]) == (RunState.FAILED, "g", "expression")


def test_the_output_of_a_group_that_fails_at_once():
    """Its steps, which had succeeded, were recorded as skipped."""
    run = Driver.started(workflow(group("g", transform("a", 5), output=Failing(), continue_on_error=True)))
    assert run.states == {"g": "FAILED", "a": "SUCCEEDED"}
    assert (run.step("a").output, run.state) == (5, RunState.SUCCEEDED)


def test_the_output_of_an_item_that_fails():
    run = Driver.started(workflow(fan_out("f", [1, 2], group("x", activity("a"), output=Failing()), max_failures=2)))
    run.complete("f[0].a")
    run.complete("f[1].a")
    assert (run.states["f[0]"], run.states["f"], run.state) == ("FAILED", "SUCCEEDED", RunState.SUCCEEDED)


def test_what_handles_a_failure_is_not_undone():
    """Steps of on_failure that had a compensation were undone as soon as they had succeeded."""
    steps = [with_(activity("alert"), compensate=activity("x")), transform("bye")]
    run = Driver.started(workflow(fail("a"), on_failure=steps))
    run.complete("alert")
    assert (run.states, run.state) == ({"a": "FAILED", "alert": "SUCCEEDED", "bye": "SUCCEEDED"}, RunState.FAILED)


def test_what_ended_in_one_commit_is_undone_in_reverse_order_too():
    """It was undone in the order in which it had begun."""
    steps = [(with_(activity(key), compensate=activity("x")), []) for key in "abc"]
    run = Driver.started(workflow(main=dag(*steps, (fail("d"), ["a", "b", "c"]))))
    commands = [run.begin(key) for key in "abc"]
    run.take(*(AttemptCompleted(commands[index], None) for index in (1, 2, 0)))
    assert run.run.compensating == ("a", "c", "b")


def test_a_group_is_undone_before_what_is_inside():
    inner = with_(transform("a"), compensate=transform("x"))
    run = Driver.started(workflow(group("g", inner, compensate=transform("y")), fail("b")))
    assert run.run.compensating == ("g", "a")


def test_a_second_cancel_leaves_on_cancel_alone():
    """It stopped what was queued, and asked attempts to stop whose report was then refused."""
    run = Driver.started(workflow(activity("a"), on_cancel=[activity("b"), activity("c")]))
    run.cancel()
    run.cancel()
    assert (run.states, run.commands) == ({"a": "CANCELLED", "b": "QUEUED"}, [])
    run.begin("b")
    run.cancel()
    assert (run.states["b"], run.commands) == ("RUNNING", [])
    run.complete("b")
    run.complete("c")
    assert run.commands[-1] == FinishRun(RunState.CANCELLED)


def test_a_wait_of_on_cancel_takes_its_signal():
    """A signal that came after a cancel was kept, and the step waited on."""
    run = Driver.started(workflow(activity("a"), on_cancel=[wait("w")]))
    run.cancel()
    run.signal("go", 1)
    assert (run.states["w"], run.state) == ("SUCCEEDED", RunState.CANCELLED)


def test_a_sub_workflow_that_succeeded_before_it_could_be_cancelled_is_undone():
    """It counted as cancelled, unlike an attempt in the same place, so what it had done stayed."""
    run = Driver.started(workflow(with_(child("a"), compensate=activity("x")), timeout_s=5), pins={"child": 7})
    run.fire()
    run.end_child("a", "SUCCEEDED", {"x": 1})
    assert (run.states["a"], run.step("a").output) == ("SUCCEEDED", {"x": 1})
    run.complete("a:compensate")
    assert run.state is RunState.FAILED


def test_how_facts_are_batched_does_not_move_the_portions(monkeypatch):
    """All facts of a call shared one portion, so a replay, which feeds them one by one, yielded elsewhere."""
    monkeypatch.setattr(machine, "PORTION", 4)
    fans = [fan_out(key, [0, 1, 2], transform("x", Path("item"))) for key in ("f", "g")]
    run = Driver.started(
        workflow(main=dag((activity("a"), []), (activity("b"), []), (fans[0], ["a"]), (fans[1], ["b"])))
    )
    first, second = run.begin("a"), run.begin("b")
    run.take(AttemptCompleted(first, 1), AttemptCompleted(second, 1))
    assert run.state is RunState.SUCCEEDED


def test_how_facts_are_batched_does_not_move_the_portions_of_nested_fan_outs(monkeypatch):
    """The second fact of a call looked at the items of the first once more, with a portion of its own."""
    monkeypatch.setattr(machine, "PORTION", 2)
    inner = fan_out("g", [0, 1, 2, 3, 4], activity("x"))
    run = Driver.started(workflow(fan_out("f", [0, 1], group("x", activity("a"), inner))))
    commands = [run.begin(f"f[{index}].a") for index in (0, 1)]
    run.take(*(AttemptCompleted(seq, None) for seq in commands))
    assert [key for key in run.states if ".g[" in key] == ["f[0].g[0]", "f[0].g[1]", "f[1].g[0]", "f[1].g[1]"]
    run.fire("f[0].g")
    run.fire("f[1].g")
    assert sum(".g[" in key for key in run.states) == 8
