"""Each construct and each corner, one short story at a time. `Driver` checks all invariants at every step."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest

from taskforged.engine.advance import OUTPUT_SIZE_MAX, SLEEP_S_MAX
from taskforged.engine.events import (
    AdmitRun,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelExecution,
    CancelRun,
    ChildEnded,
    ClearTimer,
    Execute,
    FinishRun,
    HistoryEvent,
    IllegalEventError,
    ResolveStep,
    SetTimer,
    SignalRun,
    TimerFired,
    Withdraw,
    fact_body,
    fact_from_history,
)
from taskforged.engine.machine import LOST_MAX, apply, replay
from taskforged.engine.model import Backoff, Effect, Jitter, RetryPolicy
from taskforged.engine.retry import delay_s
from taskforged.engine.run import Run, fold
from taskforged.engine.states import Kind, RunState, StepState
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    case,
    create_run,
    dag,
    fail,
    sleep,
    switch,
    transform,
    workflow,
)
from taskforged.testing.fakes import Constant, Failing, Lambda, Path, StateIs

SECOND = 1_000_000


def policy(attempts=3, **others):
    return RetryPolicy(max_attempts=attempts, **{"jitter": Jitter.NONE, **others})


# --- creation, admission ---------------------------------------------------------------------------------------------


def test_a_created_run_waits_for_admission():
    run = Driver(workflow(transform("a", 1)))
    assert (run.state, run.commands, run.states) == (RunState.PENDING, [], {})
    assert run.run.correlation_id == "run_1"
    run.take(AdmitRun())
    assert run.state is RunState.SUCCEEDED
    assert run.kinds == ["run.created", "run.started", "step.succeeded a", "run.succeeded"]
    assert run.commands == [FinishRun(RunState.SUCCEEDED)]


def test_creation_and_admission_in_one_call_as_in_two():
    model = workflow(transform("a", 1), activity("b"))
    both = apply(model, Run(), [create_run(), AdmitRun()], SECOND)
    assert both.history == Driver.started(model).history


def test_a_workflow_without_steps_succeeds():
    assert Driver.started(workflow()).state is RunState.SUCCEEDED


def test_nothing_twice_and_nothing_early(some_facts):
    model = workflow(activity("a"))
    run = Driver(model)
    for fact in some_facts[3:-1]:
        assert run.refuses(fact)
    assert run.refuses(create_run())
    run.take(AdmitRun())
    assert run.refuses(AdmitRun())
    for fact in some_facts[1:]:
        with pytest.raises(IllegalEventError):
            apply(model, Run(), [fact], SECOND)


def test_a_refused_fact_takes_the_whole_call_with_it():
    run = Driver.started(workflow(activity("a"), activity("b")))
    seq = run.step("a").command
    before = deepcopy(run.run)
    assert run.refuses(AttemptStarted(seq, 1), AttemptCompleted(seq, 1), AttemptCompleted(seq, 1))
    assert run.run == before


def test_what_expressions_see():
    seen = {}

    def look(scope):
        seen.update({name: scope.resolve(name) for name in ("input", "event", "run", "workflow", "error")})
        seen["later"] = [scope.resolve(f"steps.later.{field}") for field in ("output", "error", "state")]
        with pytest.raises(KeyError):
            scope.resolve("secrets")
        with pytest.raises(KeyError):
            scope.resolve("steps.a.color")

    Driver.started(workflow(transform("a", Lambda(look)), transform("later")), data={"x": 1}, event={"body": 2})
    assert seen["input"] == {"x": 1}
    assert seen["event"] == {"body": 2}
    assert seen["workflow"] == {"name": "sample", "version": 1}
    assert seen["run"] == {
        "id": "run_1",
        "namespace": "default",
        "correlation_id": "run_1",
        "trigger": "manual",
        "started_at": "1970-01-01T00:00:01.000000Z",
        "queue": "default",
        "priority": 5,
        "attempt": 1,
        "parent": None,
    }
    assert seen["error"] is None
    assert seen["later"] == [None, None, "SKIPPED"]


# --- pure steps ------------------------------------------------------------------------------------------------------


def test_a_chain_of_transforms_is_one_commit():
    steps = [transform("s0", 1)]
    steps += [
        transform(f"s{n}", Lambda(lambda scope, n=n: scope.resolve(f"steps.s{n - 1}.output") + 1)) for n in range(1, 40)
    ]
    outcome = apply(workflow(*steps, output=Path("steps.s39.output")), Run(), [create_run(), AdmitRun()], SECOND)
    assert outcome.run.output == 40
    assert outcome.commands == [FinishRun(RunState.SUCCEEDED)]
    assert outcome.touched == {f"s{n}" for n in range(40)}


def test_if_false_skips():
    run = Driver.started(workflow(activity("a", if_=False), transform("b", Path("steps.a.state"))))
    assert run.states == {"a": "SKIPPED", "b": "SUCCEEDED"}
    assert run.step("b").output == "SKIPPED"
    assert run.state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("value", "name"), [("yes", "a text"), (1, "a number"), (None, "null"), ([], "a list"), ({}, "a map")]
)
def test_if_must_be_a_boolean(value, name):
    run = Driver.started(workflow(activity("a", if_=Constant(value))))
    assert run.states == {"a": "FAILED"}
    assert run.run.failing["code"] == "expression"
    assert f"must be true or false, not {name}" in run.run.failing["message"]


@pytest.mark.parametrize(
    "step",
    [
        activity("a", Failing()),
        activity("a", if_=Failing()),
        transform("a", Failing()),
        sleep("a", Failing()),
        fail("a", Failing()),
        switch("a", case(Failing())),
    ],
)
def test_a_failing_expression_fails_its_step(step):
    run = Driver.started(workflow(step, transform("b")))
    assert run.states == {"a": "FAILED", "b": "SKIPPED"}
    assert run.state is RunState.FAILED
    error = run.run.failing
    assert (error["code"], error["step"], error["details"]["reason"]) == ("expression", "a", "division by zero")


def test_output_too_large():
    fits, large = "x" * (OUTPUT_SIZE_MAX - 2), "x" * (OUTPUT_SIZE_MAX - 1)
    assert Driver.started(workflow(transform("a", fits))).state is RunState.SUCCEEDED
    for step in (transform("a", large), activity("a", large), fail("a", large), transform("a", {large: 1})):
        run = Driver.started(workflow(step))
        assert run.state is RunState.FAILED
        assert "is larger than 1,048,576 bytes" in run.run.failing["message"]
    assert Driver.started(workflow(transform("a", [0] * OUTPUT_SIZE_MAX))).state is RunState.FAILED
    assert Driver.started(workflow(output=large)).state is RunState.FAILED


def test_the_output_of_the_run():
    run = Driver.started(workflow(activity("a"), output=Path("steps.a.output.x")))
    run.complete("a", {"x": 5})
    assert (run.state, run.run.output) == (RunState.SUCCEEDED, 5)


def test_a_failing_output_fails_the_run_and_on_failure_sees_it():
    run = Driver.started(
        workflow(transform("a"), output=Failing(), on_failure=[transform("alert", Path("error.code"))])
    )
    assert run.state is RunState.FAILED
    assert run.step("alert").output == "expression"
    assert run.run.output is None


def test_fail():
    run = Driver.started(workflow(fail("a", Path("input.why"), code="too_late"), activity("b")), data={"why": "noon"})
    assert run.state is RunState.FAILED
    assert run.run.failing == {"code": "too_late", "message": "noon", "step": "a", "attempts": 0}
    assert run.states == {"a": "FAILED", "b": "SKIPPED"}


# --- activities and retries ------------------------------------------------------------------------------------------


def test_an_activity():
    run = Driver.started(workflow(activity("a", {"url": "x"})))
    seq = run.run.sequence
    assert run.commands == [Execute(seq, "a")]
    assert run.step("a").input == {"url": "x"}
    run.begin("a", epoch=7)
    assert (run.step("a").state, run.step("a").epoch, run.commands) == (StepState.RUNNING, 7, [])
    run.complete("a", {"status": 200})
    assert (run.state, run.step("a").output, run.step("a").attempt) == (RunState.SUCCEEDED, {"status": 200}, 1)


def test_no_policy_means_one_attempt():
    run = Driver.started(workflow(activity("a")))
    run.fail("a", retryable=True)
    assert (run.states, run.state) == ({"a": "FAILED"}, RunState.FAILED)


@pytest.mark.parametrize(
    ("strategy", "pauses"),
    [(Backoff.FIXED, [2, 2, 2]), (Backoff.LINEAR, [2, 4, 6]), (Backoff.EXPONENTIAL, [2, 4, 8])],
)
def test_retries(strategy, pauses):
    run = Driver.started(workflow(activity("a", retry=policy(4, strategy=strategy, delay_s=2.0))))
    for number, pause in enumerate(pauses, 1):
        run.fail("a")
        step = run.step("a")
        assert (step.state, step.attempt, step.command) == (StepState.RETRYING, number, 0)
        assert run.commands == [SetTimer(step.timer, run.now + pause * SECOND)]
        run.fire("a")
        step = run.step("a")
        assert (step.state, step.attempt, step.error["code"]) == (StepState.QUEUED, number + 1, "http_503")
        assert run.commands == [Execute(step.command, "a")]
    run.complete("a", "at last")
    assert (run.state, run.step("a").error) == (RunState.SUCCEEDED, None)


@pytest.mark.parametrize("jitter", [Jitter.FULL, Jitter.EQUAL])
def test_jitter(jitter):
    spread = policy(delay_s=8.0, strategy=Backoff.FIXED, jitter=jitter)
    run = Driver.started(workflow(activity("a", retry=spread)))
    run.fail("a")
    expected = delay_s(spread, attempt=1, seed="run_1/a")
    assert run.step("a").wake_at == run.now + round(expected * SECOND)
    assert 0 < expected < 8


def test_budget_exhausted_is_dead():
    run = Driver.started(workflow(activity("a", retry=policy(2))))
    run.fail("a")
    run.fire("a")
    run.fail("a", code="http_500")
    assert (run.states, run.state) == ({"a": "DEAD"}, RunState.DEAD)
    assert run.run.failing == {"code": "http_500", "message": "a has failed", "step": "a", "attempts": 2}


def test_a_policy_of_one_attempt_is_dead_at_once():
    run = Driver.started(workflow(activity("a", retry=policy(1))))
    run.fail("a")
    assert run.state is RunState.DEAD


def test_a_permanent_failure_is_not_retried():
    run = Driver.started(workflow(activity("a", retry=policy(5))))
    run.fail("a", retryable=False)
    assert (run.states, run.state) == ({"a": "FAILED"}, RunState.FAILED)


@pytest.mark.parametrize(
    ("after", "pause"),
    [
        (None, 1),
        (0.5, 1),
        (-3.0, 1),
        (math.nan, 1),
        (30.0, 30),
        (900.0, 900),
        (1e300, SLEEP_S_MAX),
        (math.inf, SLEEP_S_MAX),
    ],
)
def test_retry_after(after, pause):
    """The server's wish counts beyond `max_delay`, but never shortens the pause and never overflows the clock."""
    model = workflow(activity("a", retry=policy(delay_s=1.0)))
    history = apply(model, Run(), [create_run(), AdmitRun()], SECOND)
    seq = history.run.steps["a"].command
    fact = AttemptFailed(seq, {"code": "http_429", "message": "slow down"}, retryable=True, retry_after_s=after)
    outcome = apply(model, history.run, [AttemptStarted(seq, 1), fact], SECOND)
    assert outcome.run.steps["a"].wake_at == SECOND + pause * SECOND


def test_retry_if_decides_in_place_of_the_executor():
    def only_404(scope):
        error = scope.resolve("error")
        assert error["step"] == "a"
        assert error["attempts"] == 1
        return error["code"] == "http_404"

    model = workflow(activity("a", retry=policy(condition=Lambda(only_404))))
    run = Driver.started(model)
    run.fail("a", code="http_404", retryable=False)
    assert run.states == {"a": "RETRYING"}
    run = Driver.started(model)
    run.fail("a", code="http_503", retryable=True)
    assert run.states == {"a": "FAILED"}


@pytest.mark.parametrize("condition", [Failing(), Constant("yes")])
def test_retry_if_that_fails(condition):
    run = Driver.started(workflow(activity("a", retry=policy(condition=condition))))
    run.fail("a")
    assert (run.states, run.run.failing["code"]) == ({"a": "FAILED"}, "expression")


def test_an_executor_cannot_blame_another_step():
    run = Driver.started(workflow(activity("a")))
    seq = run.begin("a")
    run.take(AttemptFailed(seq, {"code": "c", "message": "m", "step": "b", "attempts": 9}, retryable=False))
    assert run.run.failing == {"code": "c", "message": "m", "step": "a", "attempts": 1}


# --- stale facts -----------------------------------------------------------------------------------------------------


def test_stale_facts_are_refused():
    run = Driver.started(workflow(activity("a", retry=policy(5)), activity("b")))
    first = run.step("a").command
    assert run.refuses(AttemptCompleted(first, 1)), "not started yet"
    assert run.refuses(AttemptFailed(first, {}, retryable=True)), "not started yet"
    assert run.refuses(AttemptLost(first, "crash")), "not started yet"
    run.begin("a")
    assert run.refuses(AttemptStarted(first, 2)), "another has taken it"
    run.fail("a")
    timer = run.step("a").timer
    assert run.refuses(AttemptCompleted(first, 1))
    assert run.refuses(AttemptStarted(first, 1))
    assert run.refuses(TimerFired(first)), "a command is no timer"
    run.fire("a")
    assert run.refuses(TimerFired(timer))
    second = run.begin("a")
    assert second != first
    assert run.refuses(AttemptCompleted(first, "late result of the first attempt"))
    run.complete("a", 1)
    for fact in (
        AttemptCompleted(second, 2),
        AttemptFailed(second, {}, True),
        AttemptLost(second, ""),
        AttemptCancelled(second),
    ):
        assert run.refuses(fact)
    assert run.step("a").output == 1


def test_a_cancellation_that_nobody_asked_for_is_refused():
    """Else the block would go on with its next step as if this one had succeeded."""
    run = Driver.started(workflow(activity("a"), activity("b")))
    run.begin("a")
    assert run.refuses(AttemptCancelled(run.step("a").command))
    assert run.states == {"a": "RUNNING"}


# --- lost attempts ---------------------------------------------------------------------------------------------------


def test_a_lost_attempt_is_executed_again_and_costs_no_budget():
    run = Driver.started(workflow(activity("a", {"k": 1}, retry=policy(2, delay_s=4.0))))
    first = run.step("a").command
    run.lose("a")
    step = run.step("a")
    assert (step.state, step.attempt, step.lost, step.input) == (StepState.QUEUED, 2, 1, {"k": 1})
    assert run.commands == [Execute(step.command, "a")]
    assert run.refuses(AttemptCompleted(first, "late"))
    run.fail("a")
    assert (run.states, run.step("a").wake_at) == ({"a": "RETRYING"}, run.now + 4 * SECOND)
    run.fire("a")
    run.fail("a")
    assert (run.state, run.step("a").attempt) == (RunState.DEAD, 3)


def test_a_step_that_always_crashes_is_given_up():
    run = Driver.started(workflow(activity("a"), activity("b", continue_on_error=True)))
    for _ in range(LOST_MAX):
        run.lose("a")
        assert run.states == {"a": "QUEUED"}
    run.lose("a")
    assert (run.step("a").state, run.state) == (StepState.DEAD, RunState.DEAD)
    assert run.run.failing["code"] == "lost"


def test_effect_once_needs_a_decision():
    run = Driver.started(workflow(activity("a", effect=Effect.ONCE)))
    seq = run.begin("a")
    run.lose("a")
    assert (run.states, run.state, run.commands) == ({"a": "NEEDS_DECISION"}, RunState.RUNNING, [])
    assert run.run.commands == {}, "a recovering host must find nothing to execute"
    assert run.step("a").error == {"code": "lost", "message": "the daemon stopped"}
    for fact in (AttemptCompleted(seq, 1), AttemptFailed(seq, {}, True), AttemptLost(seq, ""), AttemptStarted(seq, 2)):
        assert run.refuses(fact)
    run.cancel()
    assert (run.states, run.state) == ({"a": "CANCELLED"}, RunState.CANCELLED)


def test_effect_once_is_retried_when_it_is_known_to_have_failed():
    run = Driver.started(workflow(activity("a", effect=Effect.ONCE, retry=policy(2))))
    run.fail("a")
    run.fire("a")
    run.lose("a")
    assert run.states == {"a": "NEEDS_DECISION"}


def test_several_lost_attempts_are_decided_in_one_call():
    model = workflow(main=dag((activity("a"), []), (activity("b", effect=Effect.ONCE), []), (activity("c"), [])))
    run = Driver.started(model)
    first, second = run.begin("a"), run.begin("b")
    run.take(AttemptLost(first, "crash"), AttemptLost(second, "crash"))
    assert run.states == {"a": "QUEUED", "b": "NEEDS_DECISION", "c": "QUEUED"}


# --- continue_on_error -----------------------------------------------------------------------------------------------


def test_continue_on_error():
    run = Driver.started(workflow(activity("a", continue_on_error=True), transform("b", Path("steps.a.error.code"))))
    run.fail("a")
    assert (run.states, run.state) == ({"a": "FAILED", "b": "SUCCEEDED"}, RunState.SUCCEEDED)
    assert run.step("b").output == "http_503"


def test_continue_on_error_also_when_dead_and_for_expressions():
    run = Driver.started(
        workflow(
            activity("a", retry=policy(1), continue_on_error=True), transform("b", Failing(), continue_on_error=True)
        )
    )
    run.fail("a")
    assert (run.states, run.state) == ({"a": "DEAD", "b": "FAILED"}, RunState.SUCCEEDED)


# --- switches --------------------------------------------------------------------------------------------------------


def route(value):
    return workflow(
        switch(
            "route",
            case(Constant(value == "one"), activity("one"), transform("one_more")),
            case(Constant(value == "two"), activity("two")),
            case(None, activity("other")),
        ),
        transform("after", Path("steps.route.output.case")),
    )


@pytest.mark.parametrize(("value", "chosen", "index"), [("one", "one", 0), ("two", "two", 1), ("", "other", 2)])
def test_switch(value, chosen, index):
    run = Driver.started(route(value))
    assert run.states[chosen] == "QUEUED"
    run.complete(chosen)
    assert run.state is RunState.SUCCEEDED
    assert run.step("after").output == index
    skipped = {"one", "one_more", "two", "other"} - {chosen} - ({"one_more"} if chosen == "one" else set())
    assert {key for key, state in run.states.items() if state == "SKIPPED"} == skipped


def test_switch_without_a_match_or_without_steps():
    run = Driver.started(workflow(switch("a", case(False, activity("b"))), switch("c"), switch("d", case(True))))
    assert run.states == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED", "d": "SUCCEEDED"}
    assert [run.step(key).output for key in "acd"] == [{"case": -1}, {"case": -1}, {"case": 0}]


def test_conditions_after_the_chosen_case_are_not_evaluated():
    assert Driver.started(workflow(switch("a", case(True), case(Failing())))).state is RunState.SUCCEEDED


def test_a_skipped_switch_skips_what_is_inside():
    inner = switch("inner", case(True, activity("deep")))
    run = Driver.started(workflow(switch("outer", case(None, inner, activity("b")), if_=False)))
    assert run.states == dict.fromkeys(["outer", "inner", "deep", "b"], "SKIPPED")


@pytest.mark.parametrize("how", ["if", "case"])
def test_a_switch_that_fails_in_an_expression_skips_what_is_inside(how):
    cases = case(Failing() if how == "case" else True, switch("inner", case(True, activity("deep"))))
    step = switch("outer", cases, if_=Failing() if how == "if" else None, continue_on_error=True)
    run = Driver.started(workflow(step))
    assert run.states == {"outer": "FAILED", "inner": "SKIPPED", "deep": "SKIPPED"}
    assert run.state is RunState.SUCCEEDED


def nested(*, outer_continues=False, inner_continues=False, retry=None):
    inner = switch(
        "inner", case(True, activity("deep", retry=retry), activity("next")), continue_on_error=inner_continues
    )
    outer = switch("outer", case(True, inner, transform("rest")), continue_on_error=outer_continues)
    return workflow(outer, transform("last"))


def test_nested_switches():
    run = Driver.started(nested())
    assert run.states == {"outer": "RUNNING", "inner": "RUNNING", "deep": "QUEUED"}
    run.complete("deep")
    run.complete("next")
    assert set(run.states.values()) == {"SUCCEEDED"}
    assert run.state is RunState.SUCCEEDED


def test_a_failure_inside_a_switch_fails_every_level():
    run = Driver.started(nested())
    run.fail("deep", code="boom")
    assert run.states == {
        "outer": "FAILED", "inner": "FAILED", "deep": "FAILED", "next": "SKIPPED", "rest": "SKIPPED", "last": "SKIPPED",
    }  # fmt: skip
    assert run.run.failing == {"code": "boom", "message": "deep has failed", "step": "deep", "attempts": 1}
    assert run.state is RunState.FAILED


def test_death_inside_a_switch():
    run = Driver.started(nested(retry=policy(1)))
    run.fail("deep")
    assert (run.states["outer"], run.states["inner"], run.states["deep"]) == ("DEAD", "DEAD", "DEAD")
    assert run.state is RunState.DEAD


def test_continue_on_error_of_a_switch():
    run = Driver.started(nested(inner_continues=True))
    run.fail("deep")
    assert run.states == {
        "outer": "SUCCEEDED", "inner": "FAILED", "deep": "FAILED", "next": "SKIPPED", "rest": "SUCCEEDED",
        "last": "SUCCEEDED",
    }  # fmt: skip
    assert run.state is RunState.SUCCEEDED
    run = Driver.started(nested(outer_continues=True))
    run.fail("deep")
    assert (run.states["outer"], run.states["last"], run.state) == ("FAILED", "SUCCEEDED", RunState.SUCCEEDED)


# --- sleep -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.25, 5, SLEEP_S_MAX])
def test_sleep(seconds):
    run = Driver.started(workflow(sleep("a", seconds), transform("b")))
    step = run.step("a")
    assert (step.state, step.wake_at) == (StepState.WAITING, run.now + round(seconds * SECOND))
    assert run.commands == [SetTimer(step.timer, step.wake_at)]
    run.fire("a")
    assert run.kinds[3:5] == ["timer.fired a", "step.succeeded a"]
    assert (run.state, run.states) == (RunState.SUCCEEDED, {"a": "SUCCEEDED", "b": "SUCCEEDED"})
    assert (run.step("a").attempt, run.step("a").output, run.step("a").wake_at) == (0, None, 0)


@pytest.mark.parametrize("seconds", [-1, -0.001, SLEEP_S_MAX + 1, 10**30, math.inf, math.nan, True, "5", None, [], {}])
def test_sleep_that_makes_no_sense(seconds):
    run = Driver.started(workflow(sleep("a", Constant(seconds))))
    assert (run.state, run.run.failing["code"]) == (RunState.FAILED, "expression")


# --- order -----------------------------------------------------------------------------------------------------------


def test_a_graph_starts_what_it_can_in_the_order_of_the_document():
    model = workflow(
        main=dag((activity("a"), []), (activity("b"), []), (activity("c"), ["a", "b"]), (activity("d"), ["b"]))
    )
    run = Driver.started(model)
    assert [command.step for command in run.commands] == ["a", "b"]
    run.complete("b")
    assert run.states == {"a": "QUEUED", "b": "SUCCEEDED", "d": "QUEUED"}
    run.complete("a")
    run.complete("c")
    run.complete("d")
    assert run.state is RunState.SUCCEEDED


def test_a_step_may_need_one_that_stands_below_it():
    """Found in review: the first version left such a run open for ever when the one below was pure."""
    model = workflow(
        main=dag(
            (transform("a", Path("steps.b.output")), ["b"]),
            (transform("b", Path("steps.c.output")), ["c"]),
            (transform("c", 5), []),
        )
    )
    run = Driver.started(model)
    assert (run.state, run.step("a").output) == (RunState.SUCCEEDED, 5)
    inner = dag((transform("x"), ["y"]), (transform("y"), []))
    step = switch("s", case(True))
    step = type(step)(step.id, step.kind, type(step.spec)((type(step.spec.cases[0])(None, inner),)))
    assert Driver.started(workflow(step)).state is RunState.SUCCEEDED


def test_what_was_skipped_or_failed_on_purpose_is_over_too():
    main = dag((activity("a", if_=False), []), (fail("b", continue_on_error=True), []), (transform("c"), ["a", "b"]))
    assert Driver.started(workflow(main=main)).state is RunState.SUCCEEDED


def test_after_a_failure_what_does_not_depend_on_it_goes_on():
    """Until DAGs came, nothing was started any more; these are the rules of GitHub Actions."""
    model = workflow(main=dag((activity("a"), []), (activity("b"), ["a"]), (activity("c"), []), (activity("d"), ["c"])))
    run = Driver.started(model)
    run.fail("c")
    assert (run.state, run.states) == (RunState.RUNNING, {"a": "QUEUED", "c": "FAILED"})
    run.complete("a", 1)
    assert run.states == {"a": "SUCCEEDED", "c": "FAILED", "b": "QUEUED"}
    run.complete("b", 1)
    assert run.states == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "FAILED", "d": "SKIPPED"}
    assert (run.state, run.run.failing["step"]) == (RunState.FAILED, "c")


def test_the_first_failure_in_the_document_is_the_error():
    model = workflow(main=dag((activity("a", retry=policy(1)), []), (activity("b"), [])))
    run = Driver.started(model)
    run.fail("b", code="second")
    run.fail("a", code="first")
    assert (run.state, run.run.failing["step"]) == (RunState.DEAD, "a")


# --- on_failure ------------------------------------------------------------------------------------------------------


def test_on_failure_sees_the_error():
    run = Driver.started(
        workflow(activity("a"), on_failure=[activity("alert", Path("error")), transform("bye", Path("steps.a.state"))])
    )
    run.fail("a", code="boom", retryable=False)
    assert run.step("alert").input == {"code": "boom", "message": "a has failed", "step": "a", "attempts": 1}
    assert run.state is RunState.RUNNING
    run.complete("alert")
    assert (run.state, run.step("bye").output) == (RunState.FAILED, "FAILED")


def test_on_failure_is_not_touched_by_success():
    run = Driver.started(workflow(transform("a"), on_failure=[activity("alert")]))
    assert (run.state, run.states) == (RunState.SUCCEEDED, {"a": "SUCCEEDED"})


def test_on_failure_that_fails_itself_changes_nothing():
    run = Driver.started(workflow(activity("a", retry=policy(1)), on_failure=[activity("alert"), activity("more")]))
    run.fail("a", code="boom")
    run.fail("alert", code="worse")
    assert run.state is RunState.DEAD
    assert run.run.failing["code"] == "boom"
    assert run.states == {"a": "DEAD", "alert": "FAILED"}


def test_on_failure_retries_sleeps_and_branches():
    steps = [
        activity("alert", retry=policy(2)),
        sleep("pause", 5),
        switch("route", case(StateIs("a", StepState.FAILED), activity("undo"))),
    ]
    run = Driver.started(workflow(fail("a"), on_failure=steps, timeout_s=1))
    run.fail("alert")
    run.fire("alert")
    run.complete("alert")
    run.fire("pause")
    run.lose("undo")
    run.complete("undo")
    assert run.state is RunState.FAILED


# --- run timeout -----------------------------------------------------------------------------------------------------


def test_the_timer_of_the_run_is_cleared_at_its_end():
    run = Driver.started(workflow(activity("a"), timeout_s=60))
    timer = run.run.sequence - 1
    assert run.commands == [SetTimer(timer, run.now + 60 * SECOND), Execute(timer + 1, "a")]
    run.complete("a")
    assert run.commands == [ClearTimer(timer), FinishRun(RunState.SUCCEEDED)]
    assert run.refuses(TimerFired(timer))


def test_timeout_while_an_attempt_runs():
    run = Driver.started(
        workflow(activity("a"), activity("b"), on_failure=[activity("alert", Path("error.code"))], timeout_s=60)
    )
    seq = run.begin("a")
    run.fire()
    assert run.commands == [CancelExecution(seq)]
    assert (run.state, run.states) == (RunState.RUNNING, {"a": "RUNNING", "b": "SKIPPED"})
    run.stop("a")
    assert run.states == {"a": "CANCELLED", "b": "SKIPPED", "alert": "QUEUED"}
    assert run.step("alert").input == "run_timeout"
    run.complete("alert")
    assert run.state is RunState.FAILED
    limit = {"code": "run_timeout", "message": "the run took longer than 60 s", "step": "", "attempts": 0}
    assert run.run.failing == limit


@pytest.mark.parametrize(("report", "state"), [("complete", "SUCCEEDED"), ("fail", "CANCELLED"), ("lose", "CANCELLED")])
def test_an_attempt_that_ends_by_itself_after_the_timeout(report, state):
    run = Driver.started(workflow(activity("a", retry=policy(5), effect=Effect.ONCE), activity("b"), timeout_s=60))
    run.begin("a")
    run.fire()
    getattr(run, report)("a")
    assert (run.states, run.state) == ({"a": state, "b": "SKIPPED"}, RunState.FAILED)


def test_timeout_while_nothing_runs():
    model = workflow(
        main=dag((sleep("a", 900), []), (activity("b"), []), (activity("c", retry=policy(delay_s=50.0)), []), (activity("d", effect=Effect.ONCE), []), (activity("e"), ["b"])),
        timeout_s=10,
    )  # fmt: skip
    run = Driver.started(model)
    run.fail("c")
    run.lose("d")
    timers = [run.step("a").timer, run.step("c").timer]
    waiting = run.step("b").command
    run.fire()
    assert run.commands == [ClearTimer(timers[0]), Withdraw(waiting), ClearTimer(timers[1]), FinishRun(RunState.FAILED)]
    assert run.states == {"a": "CANCELLED", "b": "CANCELLED", "c": "CANCELLED", "d": "CANCELLED", "e": "SKIPPED"}


def test_timeout_inside_switches():
    run = Driver.started(workflow(switch("s", case(True, sleep("a", 900), transform("b"))), timeout_s=10))
    run.fire()
    assert (run.states, run.state) == ({"s": "CANCELLED", "a": "CANCELLED", "b": "SKIPPED"}, RunState.FAILED)


def test_timeout_while_it_is_cancelled():
    """Found in review: the history said `run.failing` of a run that was being cancelled."""
    run = Driver.started(workflow(activity("a"), on_failure=[activity("alert")], timeout_s=60))
    run.begin("a")
    run.cancel()
    run.fire()
    assert (run.state, run.commands) == (RunState.RUNNING, [])
    run.stop("a")
    assert (run.state, run.run.failing, run.states) == (RunState.CANCELLED, None, {"a": "CANCELLED"})


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_cancel_while_pending():
    run = Driver(workflow(activity("a")))
    run.cancel()
    assert (run.state, run.commands) == (RunState.CANCELLED, [FinishRun(RunState.CANCELLED)])
    assert run.refuses(AdmitRun())
    assert run.refuses(CancelRun())


def test_cancel_what_only_waits():
    model = workflow(
        main=dag(
            (sleep("a", 900), []), (activity("b"), []), (activity("c", retry=policy()), []), (transform("d"), ["a"])
        ),
        timeout_s=99,
    )
    run = Driver.started(model)
    run.fail("c")
    a, b, c = run.step("a").timer, run.step("b").command, run.step("c").timer
    run.cancel()
    assert run.commands == [ClearTimer(a), Withdraw(b), ClearTimer(c), ClearTimer(2), FinishRun(RunState.CANCELLED)]
    assert run.states == {"a": "CANCELLED", "b": "CANCELLED", "c": "CANCELLED"}
    for fact in (TimerFired(a), TimerFired(c), TimerFired(2), AttemptStarted(b, 1)):
        assert run.refuses(fact)


@pytest.mark.parametrize(
    ("report", "state"),
    [("stop", "CANCELLED"), ("complete", "SUCCEEDED"), ("fail", "CANCELLED"), ("lose", "CANCELLED")],
)
def test_cancel_waits_for_the_report_of_a_running_attempt(report, state):
    run = Driver.started(workflow(activity("a", retry=policy()), activity("b"), on_failure=[activity("alert")]))
    seq = run.begin("a")
    run.cancel()
    assert (run.state, run.states, run.commands) == (RunState.RUNNING, {"a": "RUNNING"}, [CancelExecution(seq)])
    getattr(run, report)("a")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": state})
    assert run.commands == [FinishRun(RunState.CANCELLED)]


def test_cancel_waits_for_all_of_them():
    run = Driver.started(workflow(switch("s", case(True, activity("x"))), main=None))
    run.begin("x")
    run.cancel()
    run.cancel()
    run.stop("x")
    assert (run.state, run.states) == (RunState.CANCELLED, {"s": "CANCELLED", "x": "CANCELLED"})
    run = Driver.started(workflow(main=dag((activity("a"), []), (activity("b"), []))))
    run.begin("a")
    run.begin("b")
    run.cancel()
    run.complete("b", 1)
    assert run.state is RunState.RUNNING
    run.stop("a")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "CANCELLED", "b": "SUCCEEDED"})


def test_cancel_during_on_failure():
    run = Driver.started(workflow(fail("a"), on_failure=[activity("alert"), activity("more")]))
    run.begin("alert")
    run.cancel()
    run.stop("alert")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "FAILED", "alert": "CANCELLED"})
    assert run.run.failing["code"] == "failed", "why it failed stays readable"


def test_cancel_between_a_timeout_and_the_report():
    run = Driver.started(workflow(activity("a"), on_failure=[activity("alert")], timeout_s=5))
    run.begin("a")
    run.fire()
    run.cancel()
    run.stop("a")
    assert (run.state, run.states) == (RunState.CANCELLED, {"a": "CANCELLED"})


def test_the_reason_of_a_cancel_is_recorded():
    run = Driver.started(workflow(activity("a")))
    run.cancel()
    assert run.bodies(Kind.RUN_CANCEL_REQUESTED) == [{"reason": "enough", "by": "tester"}]


# --- facts, history, state -------------------------------------------------------------------------------------------


def test_facts_survive_history(some_facts):
    from taskforged.engine.events import FACT_KINDS

    facts = [
        *some_facts,
        create_run(data={"x": 0}, trigger="cron", event_id="evt_1", correlation_id="c", created_by="me"),
    ]
    facts += [CancelRun("why", "who"), AttemptFailed(1, {"code": "c"}, False, 0.0), AttemptCompleted(1, False)]
    facts += [ChildEnded(4, "SUCCEEDED", 0), SignalRun("go", False), ResolveStep("a", "succeeded", "me", [], "seen")]
    for fact in facts:
        event = HistoryEvent(1, 1, FACT_KINDS[type(fact)], getattr(fact, "key", ""), 0, fact_body(fact))
        assert fact_from_history(event) == fact
    assert {type(fact) for fact in facts} == set(FACT_KINDS)
    assert fact_from_history(HistoryEvent(1, 1, Kind.STEP_QUEUED, "a", 1, {})) is None


def test_replay_of_a_run_with_a_timeout():
    """Found in review: `run.started` has more in its body than the fact, and replay raised TypeError."""
    run = Driver.started(workflow(activity("a"), timeout_s=5))
    run.begin("a")
    run.fire()
    run.stop("a")
    assert replay(workflow(activity("a"), timeout_s=5), run.history) == run.history


def test_replay_tells_that_the_engine_decides_differently():
    run = Driver.started(workflow(activity("a", 1)))
    run.complete("a")
    assert replay(workflow(activity("a", 2)), run.history) != run.history
    with pytest.raises(IllegalEventError):
        replay(workflow(transform("a")), run.history)


def test_clones_are_independent():
    run = Driver.started(workflow(activity("a"), sleep("b", 3))).run
    copied, twin = deepcopy(run), run.clone()
    assert twin == run
    twin.steps.clear()
    twin.commands.clear()
    twin.timers[9] = ""
    twin.state = RunState.DEAD
    assert run == copied


def test_two_futures_of_one_state_do_not_meet():
    model = workflow(activity("a", retry=policy()), activity("b"))
    base = Driver.started(model)
    base.begin("a")
    seq, before = base.step("a").command, deepcopy(base.run)
    good = apply(model, base.run, [AttemptCompleted(seq, 1)], 5)
    bad = apply(model, base.run, [AttemptFailed(seq, {"code": "c", "message": "m"}, True)], 5)
    assert base.run == before
    assert (good.run.steps["a"].state, bad.run.steps["a"].state) == (StepState.SUCCEEDED, StepState.RETRYING)


def test_fold_needs_the_content_of_the_event():
    run = Driver.started(workflow(transform("a", Path("event.body"))), event={"body": 1})
    assert fold(run.history, event={"body": 1}) == run.run
    assert fold(run.history) != run.run
