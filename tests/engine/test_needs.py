"""What follows from the end of a step for those that come after it: the rules of GitHub Actions, written out."""

from __future__ import annotations

import pytest

from taskforged.engine.model import RetryPolicy
from taskforged.engine.states import RunState, StepState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import activity, case, dag, fail, fan_out, group, switch, transform, with_, workflow
from taskforged.testing.fakes import Constant, Failing, StateIs, Status

CONDITIONS = {
    "no if": None,
    "success()": Status("success"),
    "failure()": Status("failure"),
    "always()": Status("always"),
}
STEPS = {
    "succeeded": transform("a"),
    "failed": fail("a"),
    "failed, continue_on_error": fail("a", continue_on_error=True),
    "skipped": transform("a", if_=False),
}
NEEDS = """
                            no if    success()   failure()   always()
succeeded                   runs     runs        skipped     runs
failed                      skipped  skipped     runs        runs
failed, continue_on_error   runs     runs        skipped     runs
skipped                     skipped  skipped     skipped     runs
"""
CHAIN = """
                            no if    success()   failure()   always()
succeeded                   runs     runs        skipped     runs
failed                      skipped  skipped     runs        runs
failed, continue_on_error   runs     runs        skipped     runs
skipped                     runs     runs        skipped     runs
"""


def rows(table: str):
    _, *lines = table.strip("\n").splitlines()
    for line in lines:
        what, *outcomes = line[:28].strip(), *line[28:].split()
        yield from ((what, condition, outcome) for condition, outcome in zip(CONDITIONS, outcomes, strict=True))


def after(what: str, condition: str, *, needs: bool, order: int = 1):
    """The step `b` after `a`, or above it in the document."""
    a, b = STEPS[what], transform("b", "ran")
    if CONDITIONS[condition] is not None:
        b = with_(b, if_=CONDITIONS[condition])
    block = dag((a, []), (with_(b, needs=needs), ["a"]))
    if order < 0:
        block = dag((with_(b, needs=needs), ["a"]), (a, []))
    return Driver.started(workflow(main=block))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("what", "condition", "outcome"), list(rows(NEEDS)))
def test_needs(what, condition, outcome, order):
    run = after(what, condition, needs=True, order=order)
    assert run.states["b"] == {"runs": "SUCCEEDED", "skipped": "SKIPPED"}[outcome]
    assert run.state is (RunState.FAILED if what == "failed" else RunState.SUCCEEDED)


@pytest.mark.parametrize(("what", "condition", "outcome"), list(rows(CHAIN)))
def test_chain(what, condition, outcome):
    """A step without `needs` follows the one above it, whether that was skipped or not."""
    run = after(what, condition, needs=False)
    assert run.states["b"] == {"runs": "SUCCEEDED", "skipped": "SKIPPED"}[outcome]
    assert run.state is (RunState.FAILED if what == "failed" else RunState.SUCCEEDED)


@pytest.mark.parametrize(
    ("first", "second", "condition", "outcome"),
    [
        ("succeeded", "failed", "failure()", "SUCCEEDED"),
        ("succeeded", "failed", "no if", "SKIPPED"),
        ("skipped", "failed", "failure()", "SUCCEEDED"),
        ("skipped", "failed", "success()", "SKIPPED"),
        ("skipped", "succeeded", "no if", "SKIPPED"),
        ("skipped", "succeeded", "always()", "SUCCEEDED"),
        ("failed, continue_on_error", "succeeded", "success()", "SUCCEEDED"),
    ],
)
def test_two_needs(first, second, condition, outcome):
    a, z = STEPS[first], with_(STEPS[second], id="z")
    b = transform("b") if CONDITIONS[condition] is None else with_(transform("b"), if_=CONDITIONS[condition])
    run = Driver.started(workflow(main=dag((a, []), (z, []), (with_(b, needs=True), ["a", "z"]))))
    assert run.states["b"] == outcome


def needing(step, **others):
    return with_(step, needs=True, **others)


def test_a_failure_is_felt_beyond_a_step_that_ran_all_the_same():
    """As on GitHub: after `always()` the default is still `success()` of all that came before."""
    steps = [(fail("a"), []), (needing(transform("b"), if_=Status("always")), ["a"]), (needing(transform("c")), ["b"])]
    steps.append((needing(transform("d"), if_=Status("failure")), ["b"]))
    run = Driver.started(workflow(main=dag(*steps)))
    assert run.states == {"a": "FAILED", "b": "SUCCEEDED", "c": "SKIPPED", "d": "SUCCEEDED"}


def test_a_skip_is_not_felt_beyond_a_step_that_ran_all_the_same():
    """Unlike on GitHub, where it is, and is taken for a fault (actions/runner, issues 491 and 2205)."""
    a = transform("a", if_=False)
    b, c = needing(transform("b"), if_=Status("always")), needing(transform("c"))
    run = Driver.started(workflow(main=dag((a, []), (b, ["a"]), (c, ["b"]))))
    assert run.states == {"a": "SKIPPED", "b": "SUCCEEDED", "c": "SUCCEEDED"}


def test_a_skip_is_passed_on():
    a = transform("a", if_=False)
    run = Driver.started(
        workflow(main=dag((a, []), (needing(transform("b")), ["a"]), (needing(transform("c")), ["b"])))
    )
    assert set(run.states.values()) == {"SKIPPED"}
    assert run.state is RunState.SUCCEEDED


def test_always_waits_for_what_it_needs():
    model = workflow(
        main=dag((fail("a"), []), (activity("z"), []), (needing(activity("b"), if_=Status("always")), ["a", "z"]))
    )
    run = Driver.started(model)
    assert run.states == {"a": "FAILED", "z": "QUEUED"}
    run.complete("z")
    assert run.states["b"] == "QUEUED"
    run.complete("b")
    assert run.state is RunState.FAILED


def test_what_may_fail_after_a_failure_changes_nothing():
    run = Driver.started(workflow(fail("a", code="first"), with_(fail("b", code="second"), if_=Status("always"))))
    assert (run.states, run.run.failing["code"]) == ({"a": "FAILED", "b": "FAILED"}, "first")


def test_the_status_is_that_of_the_own_block():
    """Steps inside a group see its failures, not those around it; `if` of the group sees those."""
    inner = group("g", with_(transform("x"), if_=Status("success")), with_(transform("y"), if_=Status("failure")))
    run = Driver.started(workflow(fail("a"), with_(inner, if_=Status("always"))))
    assert run.states == {"a": "FAILED", "g": "SUCCEEDED", "x": "SUCCEEDED", "y": "SKIPPED"}


def test_a_condition_with_always_that_fails():
    class Wrong(Status):
        def evaluate(self, scope):
            assert scope.resolve("success__") is False
            return Failing().evaluate(scope)

    run = Driver.started(workflow(fail("a"), with_(transform("b"), if_=Wrong("always"))))
    assert run.states == {"a": "FAILED", "b": "FAILED"}


def test_functions_of_the_status_are_for_conditions_that_ask():
    with pytest.raises(KeyError):
        Driver.started(workflow(transform("a", Status("always"))))


def test_a_deep_graph_with_needs_in_any_order():
    """Fifty steps, the last one first in the document."""
    steps = [(with_(transform(f"s{n}", n), needs=True), [f"s{n + 1}"] if n < 49 else []) for n in range(50)]
    run = Driver.started(workflow(main=dag(*steps)))
    assert (run.state, len(run.states)) == (RunState.SUCCEEDED, 50)
    reached = [event.step for event in run.history if event.step]
    assert reached == [f"s{n}" for n in range(49, -1, -1)]


def test_branches_that_died_and_failed():
    """The first in the document decides between DEAD and FAILED."""
    for keys, state in (("ab", RunState.DEAD), ("ba", RunState.FAILED)):
        steps = {"a": activity("a", retry=RetryPolicy(max_attempts=1)), "b": activity("b")}
        run = Driver.started(workflow(main=dag(*((steps[key], []) for key in keys))))
        run.fail("a")
        run.fail("b")
        assert run.state is state


def test_a_failed_group_waits_for_what_is_open_in_it():
    inner = dag((activity("x"), []), (activity("y"), []), (needing(activity("z")), ["y"]))
    run = Driver.started(workflow(group("g", block=inner), transform("after")))
    run.fail("x", code="boom")
    assert run.states == {"g": "RUNNING", "x": "FAILED", "y": "QUEUED"}
    run.complete("y")
    run.complete("z")
    assert run.states == {"g": "FAILED", "x": "FAILED", "y": "SUCCEEDED", "z": "SUCCEEDED", "after": "SKIPPED"}
    assert run.run.failing["step"] == "x"


def test_the_output_of_a_group():
    plain = group("g", transform("a", 1), activity("b", if_=False), group("h", transform("c", 3)))
    run = Driver.started(workflow(plain))
    assert run.step("g").output == {"a": 1, "b": None, "h": {"c": 3}}
    assert Driver.started(workflow(group("g", transform("a", 1), output=5))).step("g").output == 5
    assert Driver.started(workflow(group("g"))).step("g").output == {}


def test_a_skipped_group_skips_what_is_inside_but_makes_no_items():
    inner = group("g", transform("a"), fan_out("f", [1], transform("x")), switch("s", case(True, transform("b"))))
    run = Driver.started(workflow(with_(inner, if_=False), transform("after", StateIs("a", StepState.SKIPPED))))
    assert run.states == {**dict.fromkeys(["g", "a", "f", "s", "b"], "SKIPPED"), "after": "SUCCEEDED"}
    assert run.step("after").output is True


def test_if_true_of_a_group():
    assert Driver.started(workflow(with_(group("g", transform("a")), if_=Constant(True)))).state is RunState.SUCCEEDED
