"""What goes into the engine (facts), what comes out of it (history events and commands).

A fact is what happened outside. It is recorded in history under its own kind with its fields as body, so that history
can be turned back into facts and fed to the engine again. Times are integers, microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from taskforged.engine.model import PRIORITY, Json
from taskforged.engine.states import Kind, RunState

__all__ = [
    "ITEMS_MAX",
    "AdmitRun",
    "ApproveStep",
    "AttemptCancelled",
    "AttemptCompleted",
    "AttemptFailed",
    "AttemptLost",
    "AttemptStarted",
    "CancelChild",
    "CancelExecution",
    "CancelRun",
    "ChildEnded",
    "ClearTimer",
    "Command",
    "CreateRun",
    "Execute",
    "Fact",
    "FinishRun",
    "HistoryEvent",
    "IllegalEventError",
    "PauseRun",
    "Publish",
    "RejectStep",
    "ResolveStep",
    "ResumeRun",
    "SetTimer",
    "SignalRun",
    "StartChild",
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


class HistoryEvent(NamedTuple):
    """One entry of a run's history. There are very many of them, and a tuple is made in a third of the time.

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


ITEMS_MAX = 10_000
"""Items of one fan-out, where the configuration says nothing else."""


class CreateRun(NamedTuple):
    """A run was accepted. A tuple, for the same reason as `HistoryEvent`.

    Attributes:
        event_id: names the event that is visible to expressions as `event`.
        queue: lane of its activities.
        priority: 0 to 9, more is sooner.
        group: name of its concurrency group; empty for none.
        group_limit: how many runs of the group may run at the same time.
        run_at: microseconds, by the wall clock; 0: at once.
        parent: of a sub-workflow: `{"run_id", "step", "command"}`.
        depth: how many parents are above it.
        hops: how many runs are in the chain of causes before it; the events that it publishes carry it on.
        held: concurrency groups of the parents: none of them can become free before this run has ended.
        pins: the versions of the sub-workflows, by name, as they were when the run was created.
        retry_of: the run whose failed steps this one tries again.
        rerun_of: the run that this one repeats.
        from_step: where a rerun begins; empty: at the start.
        attempt: counts the runs of one chain of retries, from 1.
        pinned: outputs taken over from the earlier run, by step key.
        items_max: most items of a fan-out.
        traceparent: W3C Trace Context of what caused the run; empty: its trace begins here.
        tracestate: what goes with that.
    """

    run_id: str
    namespace: str
    workflow: str
    version: int
    input: Json
    trigger: str = "manual"
    event_id: str = ""
    correlation_id: str = ""
    created_by: str = ""
    queue: str = "default"
    priority: int = PRIORITY
    group: str = ""
    group_limit: int = 0
    run_at: int = 0
    parent: Json = None
    depth: int = 0
    hops: int = 0
    held: Json = None
    pins: Json = None
    retry_of: str = ""
    rerun_of: str = ""
    from_step: str = ""
    attempt: int = 1
    pinned: Json = None
    items_max: int = ITEMS_MAX
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class AdmitRun:
    """The run may start."""


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Somebody wants the run to stop."""

    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class PauseRun:
    """Somebody wants nothing new to be started."""

    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class ResumeRun:
    """Somebody wants the run to go on."""

    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class SignalRun:
    """Somebody sent a signal. The step that has waited longest for it takes it, else the next one that waits.

    One with a `request_id` that the run has seen before is a repetition, and ignored.
    """

    signal: str
    payload: Json = None
    by: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ApproveStep:
    """Somebody approved what step `key` asks for."""

    key: str
    by: str = ""
    payload: Json = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class RejectStep:
    """Somebody rejected what step `key` asks for."""

    key: str
    by: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ResolveStep:
    """Somebody said what became of an attempt whose effect is unknown.

    Attributes:
        key: the step.
        outcome: `succeeded`, `failed` or `retry`.
        output: of a step that succeeded.
    """

    key: str
    outcome: str
    by: str = ""
    output: Json = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """The sub-workflow that command `command` started has ended, or could not be started."""

    command: int
    state: str
    output: Json = None
    error: Json = None


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
    """The executor failed. `error` has `code`, `message` and perhaps `details`.

    `is_unknown` says that the effect may have happened all the same.
    """

    command: int
    error: Json
    retryable: bool
    retry_after_s: float | None = None
    is_unknown: bool = False


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
    | PauseRun
    | ResumeRun
    | SignalRun
    | ApproveStep
    | RejectStep
    | ResolveStep
    | ChildEnded
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
    PauseRun: Kind.RUN_PAUSED,
    ResumeRun: Kind.RUN_RESUMED,
    SignalRun: Kind.RUN_SIGNALLED,
    ApproveStep: Kind.STEP_APPROVED,
    RejectStep: Kind.STEP_REJECTED,
    ResolveStep: Kind.STEP_RESOLVED,
    ChildEnded: Kind.STEP_CHILD_ENDED,
    AttemptStarted: Kind.STEP_STARTED,
    AttemptCompleted: Kind.STEP_COMPLETED,
    AttemptFailed: Kind.STEP_ATTEMPT_FAILED,
    AttemptLost: Kind.STEP_ATTEMPT_LOST,
    AttemptCancelled: Kind.STEP_ATTEMPT_CANCELLED,
    TimerFired: Kind.TIMER_FIRED,
}
_BY_KIND = {kind: fact for fact, kind in FACT_KINDS.items()}


def _fields(fact: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Answer the names of a fact's fields with their default values; the key of a step is no part of the body."""
    if issubclass(fact, tuple):
        found = [(name, fact._field_defaults.get(name, MISSING)) for name in fact._fields]  # type: ignore[attr-defined]
    else:
        found = [(field.name, field.default) for field in fields(fact)]
    return tuple((name, default) for name, default in found if name != "key")


_FIELDS = {fact: _fields(fact) for fact in FACT_KINDS}
_KEYED = frozenset({ApproveStep, RejectStep, ResolveStep})


def fact_body(fact: Fact) -> dict[str, Json]:
    """Answer the fact's fields as a history body. Fields that have their default value are left out.

    The key of a step stands in the entry's own column.
    """
    if isinstance(fact, CreateRun):
        named = zip(_FIELDS[CreateRun], fact, strict=True)
        return {name: value for (name, default), value in named if value != default}
    return {name: value for name, default in _FIELDS[type(fact)] if (value := getattr(fact, name)) != default}


def fact_from_history(event: HistoryEvent) -> Fact | None:
    """Answer the fact that an entry records, or None when the entry is a decision of the engine.

    What the engine added to the body of a fact (when the run times out) is left out: it decides that again.
    """
    fact = _BY_KIND.get(event.kind)
    if fact is None:
        return None
    body = event.body
    values = {name: body[name] for name, _ in _FIELDS[fact] if name in body}
    if fact in _KEYED:
        values["key"] = event.step
    found: Fact = fact(**values)
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
    """Command `seq`, which no attempt has started on, is not wanted; a run that is resumed may ask for it again."""

    seq: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Wake the run with `TimerFired(seq)` at `at`, not earlier.

    Attributes:
        by_wall: it is a time that somebody named, and not the end of a pause: it comes when the wall clock shows it.
    """

    seq: int
    at: int
    by_wall: bool = False


@dataclass(frozen=True, slots=True)
class ClearTimer:
    """Nobody waits for timer `seq` any more."""

    seq: int


@dataclass(frozen=True, slots=True)
class StartChild:
    """Create run `run_id` of a sub-workflow. Its end comes back as `ChildEnded(seq)`."""

    seq: int
    step: str
    run_id: str
    workflow: str
    version: int
    input: Json


@dataclass(frozen=True, slots=True)
class CancelChild:
    """Cancel the run that command `seq` started. Its end comes back as always."""

    seq: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Store an internal event, in the transaction of this very call."""

    event_id: str
    type: str
    data: Json
    step: str


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The run is over. Always the last command of a run."""

    state: RunState


Command: TypeAlias = (
    Execute | CancelExecution | Withdraw | SetTimer | ClearTimer | StartChild | CancelChild | Publish | FinishRun
)


def rfc3339(at: int) -> str:
    """Answer a time as text, for example `2026-11-21T04:21:00.000001Z`."""
    seconds, micros = divmod(at, 1_000_000)
    # Not by strftime, for which the C library looks at the time zone's file each time.
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{micros:06d}Z"
