"""The state tables as a whole: every pair is listed or refused, and nothing is left without a rule."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path as File

import pytest

from taskforged.engine import run as run_module
from taskforged.engine.events import FACT_KINDS, CreateRun, HistoryEvent, IllegalEventError
from taskforged.engine.machine import apply
from taskforged.engine.run import Run, StepRun, evolve
from taskforged.engine.states import (
    FAILED_STEPS,
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_RUNS,
    TERMINAL_STEPS,
    Kind,
    RunState,
    StepState,
)
from taskforged.testing import states_doc

STEP_KINDS = [kind for kind in Kind if kind.startswith("step.") or kind is Kind.TIMER_FIRED]
RUN_KINDS = [kind for kind in Kind if kind.startswith("run.") or kind is Kind.TIMER_FIRED]
BODY = {
    "run_id": "run_1", "namespace": "default", "workflow": "sample", "version": 1, "input": None,
    "error": {"code": "c", "message": "m"}, "to": "FAILED", "timer": 7, "at": 10, "case": 0, "epoch": 1, "reason": "",
    "signal": "go", "steps": [],
}  # fmt: skip


def body_of(kind: Kind) -> dict:
    match kind:
        case Kind.STEP_EXPANDED:
            return {"items": [1, 2]}
        case Kind.STEP_SUCCEEDED:
            return {"output": 1}
    return BODY


def step_run(state: StepState) -> Run:
    run = Run(state=RunState.RUNNING, sequence=9)
    if state is not StepState.NEW:
        run.steps["a"] = StepRun(state=state, attempt=1, command=5, timer=7)
        run.commands[5] = "a"
        run.timers[7] = "a"
    return run


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", StepState)
def test_step_pairs(state, kind):
    run = step_run(state)
    before = deepcopy(run)
    event = HistoryEvent(10, 10, kind, "a", 1, body_of(kind))
    after = STEP_TRANSITIONS[state].get(kind)
    if after is None:
        with pytest.raises(IllegalEventError, match=r"is not allowed for step a"):
            evolve(run, event)
        assert run == before
    else:
        evolve(run, event)
        assert run.steps["a"].state is after
        assert run.sequence == 10
        if after in TERMINAL_STEPS:
            assert (run.commands, run.timers, run.steps["a"].ended_at) == ({}, {}, 10)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", RunState)
def test_run_pairs(state, kind):
    run = Run(state=state, sequence=9, timers={7: ""})
    before = deepcopy(run)
    event = HistoryEvent(10, 10, kind, "", 0, BODY)
    after = RUN_TRANSITIONS[state].get(kind)
    if after is None:
        with pytest.raises(IllegalEventError, match=r"is not allowed for a run"):
            evolve(run, event)
        assert run == before
    else:
        evolve(run, event)
        assert run.state is after
        if after in TERMINAL_RUNS:
            assert (run.timers, run.ended_at) == ({}, 10)


def test_every_state_has_a_row_and_every_kind_a_change():
    assert set(RUN_TRANSITIONS) == set(RunState)
    assert set(STEP_TRANSITIONS) == set(StepState)
    assert set(run_module._STEP_CHANGES) == set(STEP_KINDS)
    nothing_to_change = {Kind.RUN_FAILED, Kind.RUN_DEAD, Kind.RUN_CANCELLED}
    assert set(run_module._RUN_CHANGES) | nothing_to_change == set(RUN_KINDS)
    assert not set(run_module._RUN_CHANGES) & nothing_to_change


def test_what_a_fact_leaves_out_is_what_a_run_begins_with():
    """Found by `run.trigger`, which was empty: history leaves out the fields that have their default value."""
    defaults = CreateRun._field_defaults
    for name, value in defaults.items():
        assert (getattr(Run(), name) or None) == (value or None), name
    assert set(defaults) == run_module._GIVEN | {"correlation_id", "held"}


def test_tables_speak_only_of_their_own_kinds():
    assert {kind for row in STEP_TRANSITIONS.values() for kind in row} == set(STEP_KINDS)
    assert {kind for row in RUN_TRANSITIONS.values() for kind in row} == set(RUN_KINDS)


def test_terminal_states_are_the_empty_rows():
    assert {state for state in RunState if RUN_TRANSITIONS[state] == {}} == TERMINAL_RUNS
    assert {state for state in StepState if STEP_TRANSITIONS[state] == {}} == TERMINAL_STEPS
    assert {RunState.SUCCEEDED, RunState.FAILED, RunState.DEAD, RunState.CANCELLED} == TERMINAL_RUNS
    assert len(TERMINAL_STEPS) == 5
    assert FAILED_STEPS < TERMINAL_STEPS


@pytest.mark.parametrize("table", [RUN_TRANSITIONS, STEP_TRANSITIONS])
def test_every_state_leads_to_an_end(table):
    for state in table:
        seen, todo = {state}, [state]
        while todo:
            new = set(table[todo.pop()].values()) - seen
            seen |= new
            todo += new
        assert any(not table[found] for found in seen), state


@pytest.mark.parametrize("state", sorted(TERMINAL_RUNS))
def test_a_run_that_has_ended_accepts_no_fact(state, some_facts, some_model):
    run = Run(state=state, sequence=9)
    for fact in some_facts:
        with pytest.raises(IllegalEventError):
            apply(some_model, run, [fact], 1)
    assert run == Run(state=state, sequence=9)


def test_the_states_page_is_up_to_date():
    page = File(__file__).parents[2] / "docs" / "states.md"
    assert page.read_text() == states_doc.states_page(), "python -m taskforged.testing.states_doc > docs/states.md"


def test_the_states_page_knows_everything():
    assert set(states_doc._RUN_MEANING) == set(RunState)
    assert set(states_doc._STEP_MEANING) == set(StepState)
    assert set(FACT_KINDS.values()) == set(states_doc._MOVERS)
    assert set(states_doc._DECIDED) | set(states_doc._MOVERS) == set(Kind)
    assert not set(states_doc._DECIDED) & set(states_doc._MOVERS)
