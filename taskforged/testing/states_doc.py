"""Prints `docs/states.md` from the tables: `python -m taskforged.testing.states_doc > docs/states.md`.

A test compares the file with what this module makes, so the page cannot drift from the code.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import groupby
from typing import TypeVar

from taskforged.engine.states import RUN_TRANSITIONS, STEP_TRANSITIONS, Kind, RunState, StepState

__all__ = ["states_page"]

_S = TypeVar("_S", RunState, StepState)

_HEAD = """\
# States

<!-- Made by `python -m taskforged.testing.states_doc > docs/states.md`. Do not edit: a test compares. -->

Every transition of runs and steps, printed from `taskforged/engine/states.py`. A transition is caused by an entry of
the run's history. What is not listed is refused and changes nothing; a terminal state is final.

Some facts leave a step where it is for the length of one decision, for example `step.attempt_failed` or
`step.approved`: the next entry of the same transaction says what follows.

An entry is either a *fact* (it came in from outside: an executor, a timer, a person) or a *decision* (the engine
derived it from the facts, and derives it again when the history is replayed).
"""

_RUN_MEANING: Mapping[RunState, str] = {
    RunState.NEW: "before its first entry; never stored",
    RunState.SCHEDULED: "starts at a later time",
    RunState.PENDING: "accepted, waits for a slot",
    RunState.RUNNING: (
        "its steps are executed; also while it is being cancelled, while it is undone, and during `on_failure` "
        "and `on_cancel`"
    ),
    RunState.PAUSED: "starts nothing new until it is resumed; its timeout stands still, other timers do not",
    RunState.SUCCEEDED: "all steps are done",
    RunState.FAILED: "a step failed in a way that no retry mends, or the run took too long",
    RunState.DEAD: "a retry budget ran out: it is a dead letter",
    RunState.CANCELLED: "somebody stopped it",
}

_STEP_MEANING: Mapping[StepState, str] = {
    StepState.NEW: "not reached yet; never stored",
    StepState.QUEUED: "waits for an executor",
    StepState.RUNNING: "an attempt is executed; or a switch, group or fan-out whose steps are under way",
    StepState.RETRYING: "backs off until its next attempt",
    StepState.WAITING: "waits for a time, a signal, an approval or the end of a sub-workflow",
    StepState.NEEDS_DECISION: "its effect may or may not have happened, and must not happen twice: a person decides",
    StepState.SUCCEEDED: "done, and has an output",
    StepState.FAILED: "failed in a way that no retry mends",
    StepState.DEAD: "failed, and its retry budget is spent",
    StepState.SKIPPED: "its condition was false, what it needs was skipped or has failed, or it was not reached",
    StepState.CANCELLED: "stopped before its end",
}

_MOVERS: Mapping[Kind, str] = {
    Kind.RUN_CREATED: "whoever starts it: a client, a webhook, a schedule, an event, a parent run",
    Kind.RUN_STARTED: "the host, when there is a slot",
    Kind.RUN_PAUSED: "a person",
    Kind.RUN_RESUMED: "a person",
    Kind.RUN_CANCEL_REQUESTED: "a person, a concurrency rule, or its parent",
    Kind.RUN_SIGNALLED: "whoever sends the signal",
    Kind.STEP_STARTED: "the executor that takes the attempt",
    Kind.STEP_COMPLETED: "the executor",
    Kind.STEP_ATTEMPT_FAILED: "the executor",
    Kind.STEP_ATTEMPT_LOST: "the host, after a crash or an expired lease",
    Kind.STEP_ATTEMPT_CANCELLED: "the executor, when it was asked to stop",
    Kind.STEP_APPROVED: "a person",
    Kind.STEP_REJECTED: "a person",
    Kind.STEP_CHILD_ENDED: "the host, when the sub-workflow has ended or cannot be started",
    Kind.STEP_RESOLVED: "a person",
    Kind.TIMER_FIRED: "the host's timers",
}

_DECIDED: Mapping[Kind, str] = {
    Kind.RUN_SCHEDULED: "it was created for a later time",
    Kind.RUN_CANCELLING: "everything has stopped; the steps of `on_cancel` follow",
    Kind.RUN_FAILING: "the main steps are over or have to stop; compensations and `on_failure` follow",
    Kind.RUN_COMPENSATING: "these steps are undone, in this order",
    Kind.RUN_SUCCEEDED: "all steps are over, and none has failed the run",
    Kind.RUN_FAILED: "it is over: a step failed, or the run took too long",
    Kind.RUN_DEAD: "it is over: a retry budget ran out",
    Kind.RUN_CANCELLED: "everything has stopped, and `on_cancel` is over",
    Kind.STEP_QUEUED: "an attempt is asked for: the first, or one more after a crash or a person's decision",
    Kind.STEP_RETRYING: "the attempt failed, and the policy allows another",
    Kind.STEP_WAITING: "it waits for a time, a signal, an approval, or its sub-workflow",
    Kind.STEP_NEEDS_DECISION: "the effect of the attempt is unknown and must not happen twice",
    Kind.STEP_BRANCHED: "a switch has chosen its case",
    Kind.STEP_ENTERED: "a group begins",
    Kind.STEP_EXPANDED: "a fan-out begins, with these items",
    Kind.STEP_YIELDED: "a fan-out has started many items, and goes on in a transaction of its own",
    Kind.STEP_SUCCEEDED: "it is done",
    Kind.STEP_FAILED: "it has failed in a way that no retry mends",
    Kind.STEP_DEAD: "it has failed, and its retry budget is spent",
    Kind.STEP_SKIPPED: "its condition is false, or what it needs was skipped or has failed",
    Kind.STEP_CANCELLED: "it was stopped",
}


def states_page() -> str:
    """Answer the whole page."""
    parts = [
        _HEAD,
        "## Runs\n",
        _diagram(RUN_TRANSITIONS, RunState.NEW),
        _meanings(_RUN_MEANING, RUN_TRANSITIONS),
        _transitions(RUN_TRANSITIONS),
        "## Steps\n",
        _diagram(STEP_TRANSITIONS, StepState.NEW),
        _meanings(_STEP_MEANING, STEP_TRANSITIONS),
        _transitions(STEP_TRANSITIONS),
        "## Who moves it\n",
        _movers(),
    ]
    return "\n".join(parts)


def _diagram(table: Mapping[_S, Mapping[Kind, _S]], first: _S) -> str:
    lines: list[str] = ["```mermaid", "stateDiagram-v2"]
    for state, row in table.items():
        source = "[*]" if state is first else state.value
        arrows = sorted(((after.value, kind.value) for kind, after in row.items()), key=lambda arrow: arrow[0])
        for after, kinds in groupby(arrows, key=lambda arrow: arrow[0]):
            lines.append(f"    {source} --> {after}: {', '.join(kind for _, kind in kinds)}")
        if not row:
            lines.append(f"    {source} --> [*]")
    return "\n".join([*lines, "```", ""])


def _meanings(meanings: Mapping[_S, str], table: Mapping[_S, Mapping[Kind, _S]]) -> str:
    rows: list[str] = [f"| `{state}` | {meanings[state]} | {'' if row else 'yes'} |" for state, row in table.items()]
    return "\n".join(["| state | meaning | final |", "|---|---|---|", *rows, ""])


def _transitions(table: Mapping[_S, Mapping[Kind, _S]]) -> str:
    rows: list[str] = [
        f"| `{state}` | `{kind}` | `{after}` |" for state, row in table.items() for kind, after in row.items()
    ]
    return "\n".join(["| from | entry | to |", "|---|---|---|", *rows, ""])


def _movers() -> str:
    rows: list[str] = [
        f"| `{kind}` | fact | {_MOVERS[kind]} |" if kind in _MOVERS else f"| `{kind}` | decision | {_DECIDED[kind]} |"
        for kind in Kind
    ]
    return "\n".join(["| entry | sort | who, or why |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(states_page())
