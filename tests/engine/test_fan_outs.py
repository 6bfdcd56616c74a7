"""Fan-outs: items, keys, scopes, limits, failures, portions."""

from __future__ import annotations

from copy import deepcopy

import pytest

from taskforged.engine import machine
from taskforged.engine.advance import PORTION
from taskforged.engine.events import AttemptCompleted, CancelExecution, ClearTimer, Execute, SetTimer, Withdraw
from taskforged.engine.keys import definition_id, inner_prefix, item_key, items_of, split_item
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
from taskforged.testing.fakes import Failing, IndexBelow, Lambda, Path


def started(step, *more, **others):
    return Driver.started(workflow(step, *more), **others)


@pytest.mark.parametrize("items", [[], {}])
def test_nothing_to_do(items):
    run = started(fan_out("f", items, activity("x")), transform("b", Path("steps.f.output")))
    assert (run.states, run.step("b").output) == ({"f": "SUCCEEDED", "b": "SUCCEEDED"}, [])


def test_items_and_their_outputs_in_order():
    run = started(fan_out("f", ["x", "y"], transform("x", Lambda(lambda s: [s.resolve("item"), s.resolve("index")]))))
    assert run.step("f").output == [["x", 0], ["y", 1]]
    assert run.kinds[2:] == [
        "step.expanded f", "step.succeeded f[0]", "step.succeeded f[1]", "step.succeeded f", "run.succeeded",
    ]  # fmt: skip


def test_a_map_is_gone_through_in_the_order_of_its_keys():
    run = started(fan_out("f", {"b": 2, "a": 1}, transform("x", Path("item"))))
    assert run.step("f").output == [{"key": "a", "value": 1}, {"key": "b", "value": 2}]


@pytest.mark.parametrize(("items", "name"), [(5, "a number"), ("abc", "a text"), (None, "null"), (True, "a number")])
def test_what_is_no_list(items, name):
    run = started(fan_out("f", items, activity("x")))
    assert (run.states, run.run.failing["code"]) == ({"f": "FAILED"}, "for_each")
    assert f"needs a list or a map, and got {name}" in run.run.failing["message"]


def test_too_many_items():
    run = started(fan_out("f", [1, 2, 3], transform("x")), items_max=2)
    assert (run.states, run.state) == ({"f": "FAILED"}, RunState.FAILED)
    assert "has 3 items; the limit is 2" in run.run.failing["message"]
    assert started(fan_out("f", [1, 2], transform("x")), items_max=2).state is RunState.SUCCEEDED


def test_items_that_cannot_be_computed():
    run = started(fan_out("f", Failing(), activity("x"), continue_on_error=True))
    assert (run.states, run.state) == ({"f": "FAILED"}, RunState.SUCCEEDED)


def test_as_many_at_once_as_allowed_and_in_order():
    run = started(fan_out("f", list(range(5)), activity("x", Path("item")), max_parallel=2))
    assert [command.step for command in run.commands] == ["f[0]", "f[1]"]
    assert run.step("f[1]").input == 1
    run.complete("f[1]")
    assert [command.step for command in run.commands] == ["f[2]"]
    run.complete("f[2]")
    run.complete("f[0]", "zero")
    assert set(run.states) == {"f", *(f"f[{n}]" for n in range(5))}
    run.complete("f[4]", "four")
    run.complete("f[3]")
    assert (run.state, run.step("f").output) == (RunState.SUCCEEDED, ["zero", None, None, None, "four"])


def test_too_many_failures_start_nothing_more_but_wait_for_what_is_open():
    run = started(fan_out("f", list(range(9)), activity("x"), max_parallel=3, max_failures=1))
    run.fail("f[0]", code="first")
    assert [command.step for command in run.commands] == ["f[3]"]
    run.fail("f[2]", code="second")
    assert (run.commands, run.states["f"]) == ([], "RUNNING")
    run.complete("f[1]", 1)
    run.complete("f[3]", 3)
    assert (run.states["f"], run.state) == ("FAILED", RunState.FAILED)
    error = run.run.failing
    assert (error["code"], error["step"], error["attempts"]) == ("first", "f[0]", 1)
    assert error["message"] == "f[0] has failed (2 of 9 items failed)"
    assert error["details"] == {"items": 9, "failed": 2, "keys": ["f[0]", "f[2]"]}
    assert run.step("f").output == [None, 1, None, 3, None, None, None, None, None]


def test_failures_that_are_allowed():
    run = started(fan_out("f", [0, 1], activity("x"), max_failures=1))
    run.fail("f[0]")
    run.complete("f[1]", "one")
    assert (run.state, run.step("f").output) == (RunState.SUCCEEDED, [None, "one"])


def test_continue_on_error_goes_through_all_items():
    run = started(fan_out("f", list(range(4)), activity("x"), max_parallel=1, continue_on_error=True), transform("b"))
    for index in range(4):
        run.fail(f"f[{index}]")
    assert (run.states["f"], run.states["b"], run.state) == ("FAILED", "SUCCEEDED", RunState.SUCCEEDED)
    assert run.step("f").error["details"]["failed"] == 4


def test_the_error_of_one_item_is_its_own():
    run = started(fan_out("f", [1], fail("x", "no", code="bad")))
    assert (run.run.failing["code"], run.run.failing["message"]) == ("bad", "no")


def test_not_more_than_twenty_failed_items_are_named():
    run = started(fan_out("f", list(range(30)), fail("x"), max_failures=29, continue_on_error=True))
    assert run.state is RunState.SUCCEEDED
    run = started(fan_out("f", list(range(30)), fail("x"), max_failures=25))
    assert run.run.failing["details"]["failed"] == 26
    assert len(run.run.failing["details"]["keys"]) == 20


def test_an_item_that_died_makes_the_run_a_dead_letter():
    run = started(fan_out("f", [0, 1], activity("x", retry=RetryPolicy(max_attempts=1)), max_failures=0))
    run.fail("f[1]", retryable=False)
    run.fail("f[0]")
    assert (run.states, run.state) == ({"f": "DEAD", "f[0]": "DEAD", "f[1]": "FAILED"}, RunState.DEAD)
    run = started(fan_out("f", [0, 1], activity("x", retry=RetryPolicy(max_attempts=1))))
    run.fail("f[0]", retryable=False)
    run.fail("f[1]")
    assert run.state is RunState.DEAD


def test_skipped_items():
    run = started(fan_out("f", [7, 8, 9], activity("x", if_=IndexBelow(1)), max_parallel=1))
    run.complete("f[0]", "done")
    assert run.states == {"f": "SUCCEEDED", "f[0]": "SUCCEEDED", "f[1]": "SKIPPED", "f[2]": "SKIPPED"}
    assert run.step("f").output == ["done", None, None]


def test_retries_and_lost_attempts_of_items():
    run = started(fan_out("f", [0, 1], activity("x", retry=RetryPolicy(max_attempts=2))))
    run.fail("f[0]")
    run.lose("f[1]")
    run.fire("f[0]")
    assert run.states == {"f": "RUNNING", "f[0]": "QUEUED", "f[1]": "QUEUED"}
    run.complete("f[1]")
    run.complete("f[0]")
    assert run.state is RunState.SUCCEEDED


def test_keys():
    for key, name, prefix, items in (
        ("a", "a", "", ()),
        ("a[3]", "a[]", "a[3].", ("a[3]",)),
        ("a[3].b", "b", "a[3].", ("a[3]",)),
        ("a[3].b[10]", "b[]", "a[3].b[10].", ("a[3]", "a[3].b[10]")),
        ("a[3]:compensate", "a[]:compensate", "", ("a[3]",)),
        ("a[3].b:compensate", "b:compensate", "a[3].", ("a[3]",)),
    ):
        assert (definition_id(key), inner_prefix(key), items_of(key)) == (name, prefix, items)
    assert item_key("a[3].b", 4) == "a[3].b[4]"
    assert split_item("a[3].b[4]") == ("a[3].b", 4)


def nested():
    """Regions, and in each of them hosts; every step sees those of its own region and host."""
    inner = group(
        "hosts[]",
        transform("probe", Lambda(lambda s: [s.resolve("item"), s.resolve("index"), s.resolve("steps.pick.output")])),
        activity("send", Path("steps.probe.output")),
        output=Path("steps.send.output"),
    )
    region = group("regions[]", transform("pick", Path("item.name")), fan_out("hosts", Path("item.hosts"), inner))
    return fan_out("regions", [{"name": "eu", "hosts": ["a", "b"]}, {"name": "us", "hosts": ["c"]}], region)


def test_nested_fan_outs_and_what_their_steps_see():
    run = started(nested())
    assert run.step("regions[0].hosts[1].send").input == ["b", 1, "eu"]
    assert run.step("regions[1].hosts[0].send").input == ["c", 0, "us"]
    for key in ("regions[1].hosts[0]", "regions[0].hosts[1]", "regions[0].hosts[0]"):
        run.complete(f"{key}.send", key)
    assert run.state is RunState.SUCCEEDED
    assert run.step("regions").output == [
        {"pick": "eu", "hosts": ["regions[0].hosts[0]", "regions[0].hosts[1]"]},
        {"pick": "us", "hosts": ["regions[1].hosts[0]"]},
    ]


def test_a_failure_deep_inside_names_the_step():
    run = started(nested())
    run.fail("regions[0].hosts[1].send", code="boom")
    run.complete("regions[0].hosts[0].send")
    run.complete("regions[1].hosts[0].send")
    assert run.run.failing["step"] == "regions[0].hosts[1].send"
    assert run.run.failing["message"].endswith("(1 of 2 items failed) (1 of 2 items failed)")
    assert run.states["regions[0]"] == run.states["regions[0].hosts"] == "FAILED"
    assert run.states["regions[1]"] == "SUCCEEDED"


def test_a_group_of_an_item_that_fails_waits_for_its_own_and_stops_no_others():
    body = group("x", block=dag((activity("a"), []), (activity("b"), []), (with_(activity("c"), needs=True), ["a"])))
    run = started(fan_out("f", [0, 1], body))
    run.fail("f[0].a")
    assert run.states["f[0]"] == "RUNNING", "its other branch is open"
    run.complete("f[0].b")
    assert (run.states["f[0]"], run.states["f[0].c"], run.states["f[1]"]) == ("FAILED", "SKIPPED", "RUNNING")
    for key in ("a", "b", "c"):
        run.complete(f"f[1].{key}")
    assert (run.states["f[1]"], run.states["f"], run.state) == ("SUCCEEDED", "FAILED", RunState.FAILED)


def test_a_switch_for_each_item():
    body = switch("x", case(IndexBelow(1), activity("low")), case(None, transform("high")))
    run = started(fan_out("f", ["a", "b"], body))
    assert run.states == {
        "f": "RUNNING", "f[0]": "RUNNING", "f[0].high": "SKIPPED", "f[0].low": "QUEUED",
        "f[1]": "SUCCEEDED", "f[1].low": "SKIPPED", "f[1].high": "SUCCEEDED",
    }  # fmt: skip
    run.complete("f[0].low")
    assert run.step("f").output == [{"case": 0}, {"case": 1}]


@pytest.mark.parametrize("body", [wait("x"), child("x"), sleep("x", 5), group("x", wait("w"))])
def test_items_that_wait(body):
    run = started(fan_out("f", [0, 1], body, max_parallel=1), pins={"child": 7})
    for index in (0, 1):
        key = f"f[{index}]"
        match body.kind:
            case "workflow":
                run.end_child(key, "SUCCEEDED", index)
            case "sleep":
                run.fire(key)
            case _:
                run.signal("go", index)
    assert run.state is RunState.SUCCEEDED


def test_a_signal_goes_to_the_item_that_has_waited_longest():
    run = started(fan_out("f", [0, 1, 2], group("x", wait("w"), activity("a"))))
    run.signal("go", "first")
    assert run.states["f[0].a"] == "QUEUED"
    assert (run.step("f[0].w").output["payload"], run.states["f[1].w"]) == ("first", "WAITING")
    run.signal("go", "second")
    assert run.step("f[1].w").output["payload"] == "second"


def test_events_of_items():
    run = started(fan_out("f", [5, 6], publish("x", "a.b", Path("item"))))
    assert [command.data for command in run.commands[:2]] == [5, 6]
    assert len({output["event_id"] for output in run.step("f").output}) == 2


# --- portions --------------------------------------------------------------------------------------------------------


def test_many_pure_items_need_several_calls():
    run = started(fan_out("f", list(range(1_200)), transform("x", Path("item")), max_parallel=7), transform("b"))
    assert len(run.states) == 1 + PORTION
    assert run.commands == [SetTimer(run.run.sequence, run.now)], "due at once"
    run.fire("f")
    assert (len(run.states), run.states["f"]) == (1 + 2 * PORTION, "RUNNING")
    run.fire("f")
    assert (run.state, run.step("f").output) == (RunState.SUCCEEDED, list(range(1_200)))
    assert len(run.bodies(Kind.STEP_YIELDED)) == 2
    run.replay()


def test_exactly_one_portion_does_not_yield():
    run = started(fan_out("f", list(range(PORTION)), transform("x")))
    assert (run.state, run.bodies(Kind.STEP_YIELDED)) == (RunState.SUCCEEDED, [])


def test_nested_fan_outs_share_a_portion():
    inner = fan_out("g", list(range(30)), transform("y"))
    run = started(fan_out("f", list(range(30)), group("x", inner)))
    assert sum(key.endswith("]") for key in run.states) == PORTION
    while run.state is RunState.RUNNING:
        run.fire(next(step for step in run.run.timers.values()))
    assert run.state is RunState.SUCCEEDED


def many(body, **others):
    return fan_out("f", list(range(PORTION + 50)), body, max_parallel=PORTION + 50, **others)


def test_a_yield_that_another_fact_overtakes():
    """The result of an item comes before the timer: the rest starts with it, and the timer finds nothing to do."""
    run = started(many(activity("x")))
    seq = run.begin("f[3]")
    run.take(AttemptCompleted(seq, 3))
    assert f"f[{PORTION + 49}]" in run.states
    before = deepcopy(run.run.steps["f[4]"])
    run.fire("f")
    assert (run.commands, run.run.steps["f[4]"]) == ([], before)


def test_a_run_that_ends_with_a_yielded_fan_out():
    """Its timer goes with it, whichever way the run ends."""
    run = started(many(activity("x")))
    timer = run.step("f").timer
    run.begin("f[0]")
    run.cancel()
    assert run.commands[0] == CancelExecution(run.step("f[0]").command)
    assert sum(isinstance(command, Withdraw) for command in run.commands) == PORTION - 1
    run.stop("f[0]")
    assert (run.state, run.states["f"]) == (RunState.CANCELLED, "CANCELLED")
    assert ClearTimer(timer) in run.commands


def test_a_yield_that_fires_while_the_run_is_stopped():
    run = Driver.started(workflow(many(activity("x")), timeout_s=9))
    run.begin("f[0]")
    run.fire()
    run.fire("f")
    assert (run.commands, run.states["f"]) == ([], "RUNNING")
    run.stop("f[0]")
    assert (run.state, run.states["f"]) == (RunState.FAILED, "CANCELLED")


def test_a_fan_out_that_fails_with_a_yield_pending(monkeypatch):
    """Its timer is cleared with it, and no further item is started."""
    monkeypatch.setattr(machine, "PORTION", 2)
    run = started(fan_out("f", list(range(5)), activity("x")))
    timer = run.step("f").timer
    run.fail("f[0]")
    assert (run.step("f").timer, len(run.states)) == (timer, 3)
    run.complete("f[1]")
    assert (run.states["f"], run.state, run.commands[0]) == ("FAILED", RunState.FAILED, ClearTimer(timer))


def test_a_pause_between_two_portions():
    run = started(many(transform("x")))
    run.pause()
    run.fire("f")
    assert (len(run.states), run.commands) == (1 + PORTION, [])
    run.resume()
    assert run.state is RunState.SUCCEEDED


def test_pinned_items_are_taken_over():
    body = activity("x", effect=Effect.ONCE)
    run = started(fan_out("f", [0, 1, 2], body), pinned={"f[0]": "old", "f[2]": None, "f": "never"})
    assert run.states == {"f": "RUNNING", "f[0]": "SUCCEEDED", "f[1]": "QUEUED", "f[2]": "SUCCEEDED"}
    assert [type(command) for command in run.commands] == [Execute]
    run.complete("f[1]", "new")
    assert run.step("f").output == ["old", "new", None]
