"""What goes into the engine (facts), what comes out of it (history events and commands).

A fact is what happened outside. It is recorded in history under its own kind with its fields as body, so that history
can be turned back into facts and fed to the engine again. Times are integers, microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeAlias

from taskforged.engine.model import Json
from taskforged.engine.states import Kind, RunState

__all__ = [
    "AdmitRun",
    "AttemptCancelled",
    "AttemptCompleted",
    "AttemptFailed",
    "AttemptLost",
    "AttemptStarted",
    "CancelExecution",
    "CancelRun",
    "ClearTimer",
    "Command",
    "CreateRun",
    "Execute",
    "Fact",
    "FinishRun",
    "HistoryEvent",
    "IllegalEventError",
    "SetTimer",
    "TimerFired",
    "Withdraw",
    "fact_body",
    "fact_from_history",
    "rfc3339",
]


class IllegalEventError(Exception):
    """The event is not allowed in the present state. Nothing has changed.

    From a host this means that the event is stale (a result that nobody waits for any more): drop it.
    """


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One entry of a run's history.

    Attributes:
        sequence: counts from 1 within the run.
        at: when it was recorded.
        kind: what happened.
        step: key of the step it is about; empty for the run itself.
        attempt: the attempt it is about; 0 for none.
        body: the rest, JSON.
    """

    sequence: int
    at: int
    kind: Kind
    step: str
    attempt: int
    body: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class CreateRun:
    """A run was accepted. `event_id` names the event that is visible to expressions as `event`."""

    run_id: str
    namespace: str
    workflow: str
    version: int
    input: Json
    trigger: str = "manual"
    event_id: str = ""
    correlation_id: str = ""
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class AdmitRun:
    """The run may start."""


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Somebody wants the run to stop."""

    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An executor of boot `epoch` takes the command; recorded before any effect."""

    command: int
    epoch: int


@dataclass(frozen=True, slots=True)
class AttemptCompleted:
    """The executor is done; the step has succeeded."""

    command: int
    output: Json


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The executor failed. `error` has `code`, `message` and perhaps `details`."""

    command: int
    error: Json
    retryable: bool
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """The executor is gone, and whether its effect happened is not known."""

    command: int
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptCancelled:
    """The executor has stopped because it was asked to; illegal when the engine did not ask."""

    command: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of a timer has come."""

    timer: int


Fact: TypeAlias = (
    CreateRun
    | AdmitRun
    | CancelRun
    | AttemptStarted
    | AttemptCompleted
    | AttemptFailed
    | AttemptLost
    | AttemptCancelled
    | TimerFired
)

FACT_KINDS: Mapping[type[Any], Kind] = {
    CreateRun: Kind.RUN_CREATED,
    AdmitRun: Kind.RUN_STARTED,
    CancelRun: Kind.RUN_CANCEL_REQUESTED,
    AttemptStarted: Kind.STEP_STARTED,
    AttemptCompleted: Kind.STEP_COMPLETED,
    AttemptFailed: Kind.STEP_ATTEMPT_FAILED,
    AttemptLost: Kind.STEP_ATTEMPT_LOST,
    AttemptCancelled: Kind.STEP_ATTEMPT_CANCELLED,
    TimerFired: Kind.TIMER_FIRED,
}
_BY_KIND = {kind: fact for fact, kind in FACT_KINDS.items()}
_FIELDS = {fact: tuple((field.name, field.default) for field in fields(fact)) for fact in FACT_KINDS}


def fact_body(fact: Fact) -> dict[str, Json]:
    """Answer the fact's fields as a history body. Fields that have their default value are left out."""
    return {name: value for name, default in _FIELDS[type(fact)] if (value := getattr(fact, name)) != default}


def fact_from_history(event: HistoryEvent) -> Fact | None:
    """Answer the fact that an entry records, or None when the entry is a decision of the engine.

    What the engine added to the body of a fact (when the run times out) is left out: it decides that again.
    """
    fact = _BY_KIND.get(event.kind)
    if fact is None:
        return None
    body = event.body
    found: Fact = fact(**{name: body[name] for name, _ in _FIELDS[fact] if name in body})
    return found


@dataclass(frozen=True, slots=True)
class Execute:
    """Execute an attempt of a step. `(run_id, seq)` identifies it for ever."""

    seq: int
    step: str


@dataclass(frozen=True, slots=True)
class CancelExecution:
    """Stop the attempt that executes command `seq`. Its owner reports how it ended."""

    seq: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Command `seq`, which no attempt has started on, is no longer wanted."""

    seq: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Wake the run with `TimerFired(seq)` at `at`, not earlier."""

    seq: int
    at: int


@dataclass(frozen=True, slots=True)
class ClearTimer:
    """Nobody waits for timer `seq` any more."""

    seq: int


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The run is over. Always the last command of a run."""

    state: RunState


Command: TypeAlias = Execute | CancelExecution | Withdraw | SetTimer | ClearTimer | FinishRun


def rfc3339(at: int) -> str:
    """Answer a time as text, for example `2026-11-21T04:21:00.000001Z`."""
    seconds, micros = divmod(at, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"
