"""What one step forward of one run writes: rows, computed on the event loop, written by the journal.

A `RunChange` is plain rows, so that a batch of a thousand runs is a handful of `executemany` calls. History, the
projections, the outbox and the timers of a run change in one transaction or not at all.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from taskforged.correlation import Trace, headers_of, parent_of, run_span
from taskforged.engine.events import (
    CancelChild,
    ClearTimer,
    Command,
    Execute,
    FinishRun,
    HistoryEvent,
    Publish,
    SetTimer,
    StartChild,
    Withdraw,
)
from taskforged.engine.keys import derived_id
from taskforged.engine.model import Json
from taskforged.engine.run import Run, StepRun
from taskforged.engine.states import Kind, RunState
from taskforged.jsonvalue import canonical, load_stored, to_text
from taskforged.store.rows import EventRow, internal_event
from taskforged.store.sql import QUERIES, insert_rows

__all__ = [
    "GENESIS",
    "Home",
    "NewRun",
    "News",
    "RunChange",
    "StaleWriteError",
    "StoredEvent",
    "build_change",
    "chain_hash",
    "history_from_row",
    "write_changes",
]

GENESIS = bytes(32)
"""What the first event of a run is chained to."""

Row: TypeAlias = tuple[Any, ...]


class StaleWriteError(Exception):
    """A guarded update found no row: the state it was computed from is no longer the present one."""


class NewRun(NamedTuple):
    """What is known of a run when it is created and never changes, apart from what its history says.

    `trigger_no` is the cron trigger of which a due time started it.
    """

    namespace_no: int
    workflow_no: int
    event_no: int | None = None
    request_id: str | None = None
    request_digest: bytes | None = None
    parent_no: int | None = None
    retry_of_no: int | None = None
    rerun_of_no: int | None = None
    trigger_no: int | None = None


class Home(NamedTuple):
    """Where a run belongs."""

    no: int
    namespace_no: int
    workflow_no: int


class News(NamedTuple):
    """What is needed to store the events that a run publishes.

    Attributes:
        next_no: assigns numbers of events.
        listens: whether a trigger of a namespace asks for events of a type.
    """

    next_no: Callable[[], int]
    listens: Callable[[int, str], bool]


class StoredEvent(NamedTuple):
    """A history event with its place in the chain."""

    event: HistoryEvent
    body: bytes
    hash: bytes


@dataclass(slots=True)
class RunChange:
    """Rows of one run. At most one of `insert` and `update` is given."""

    insert: Row | None = None
    update: Row | None = None
    history: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    commands: list[Row] = field(default_factory=list)
    claims: list[Row] = field(default_factory=list)
    finished_commands: list[Row] = field(default_factory=list)
    timers: list[Row] = field(default_factory=list)
    cleared_timers: list[Row] = field(default_factory=list)
    unwanted_commands: list[Row] = field(default_factory=list)
    unwanted_timers: list[Row] = field(default_factory=list)
    children: list[Row] = field(default_factory=list)
    cancelled_children: list[Row] = field(default_factory=list)
    ended_children: list[Row] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    dead_letter: Row | None = None
    head_hash: bytes = GENESIS


def chain_hash(previous: bytes, event: HistoryEvent, body: bytes) -> bytes:
    """Answer SHA-256 over the previous hash and everything that is recorded of the event."""
    head = f"{event.sequence}|{event.at}|{event.kind.text}|{event.step}|{event.attempt}|"
    return hashlib.sha256(b"".join((previous, head.encode(), body))).digest()


def history_from_row(row: Row) -> StoredEvent:
    """Turn `sequence, at, kind, step, attempt, body, hash` into an event."""
    sequence, at, kind, step, attempt, body, digest = row
    return StoredEvent(HistoryEvent(sequence, at, Kind(kind), step, attempt, load_stored(body)), body, digest)


def build_change(
    home: Home,
    run: Run,
    history: Sequence[HistoryEvent],
    commands: Sequence[Command],
    touched: Iterable[str],
    *,
    head_hash: bytes,
    new: NewRun | None,
    claims: dict[int, int],
    news: News,
) -> RunChange:
    """Compute the rows for an outcome of the engine.

    Args:
        home: where the run belongs.
        run: its state after the events.
        history: the events, not empty.
        commands: what the engine asks for.
        touched: keys of the steps that changed.
        head_hash: hash of the event before the first of these.
        new: given when the run is created by this change.
        claims: commands that are claimed within this change, sequence to epoch.
        news: for the events that the run publishes.
    """
    rows: list[Row] = []
    no = home.no
    change = RunChange(head_hash=_chain(no, history, head_hash, rows), history=rows)
    ended_at = run.ended_at or None
    started_at = run.started_at or None
    if new is not None:
        change.insert = (
            *(no, run.run_id, new.namespace_no, new.workflow_no, run.version, run.state.text, run.sequence),
            *(change.head_hash, int(run.cancel_requested), run.trigger, new.event_no, new.request_id),
            *(new.request_digest, run.created_at, started_at, ended_at, run.queue, run.priority, run.group),
            *(run.group_limit, run.run_at, new.parent_no, new.retry_of_no, new.rerun_of_no, new.trigger_no),
        )
    else:
        guard = history[0].sequence - 1
        change.update = (
            *(run.state.text, run.sequence, change.head_hash, int(run.cancel_requested), started_at, ended_at),
            *(no, guard),
        )
    change.steps = [_step_row(no, key, run.steps[key]) for key in touched]
    _place_commands(home, run, change, history, commands, claims, news)
    return change


def _chain(no: int, history: Sequence[HistoryEvent], head: bytes, rows: list[Row]) -> bytes:
    for event in history:
        body = canonical(event.body)
        head = chain_hash(head, event, body)
        rows.append((no, event.sequence, event.at, event.kind.text, event.step, event.attempt, body, head))
    return head


def _step_row(no: int, key: str, step: StepRun) -> Row:
    return (no, key, step.state.text, step.attempt, step.started_at, step.ended_at or None, step.wake_at or None)


_COMMAND_DONE = frozenset(
    {Kind.STEP_COMPLETED, Kind.STEP_ATTEMPT_FAILED, Kind.STEP_ATTEMPT_LOST, Kind.STEP_ATTEMPT_CANCELLED}
)


def _place_commands(
    home: Home,
    run: Run,
    change: RunChange,
    history: Sequence[HistoryEvent],
    commands: Sequence[Command],
    claims: dict[int, int],
    news: News,
) -> None:
    no = home.no
    done = _place_ends(no, change, history)
    _place_outbox(home, run, change, done, commands, dict(claims))
    for command in commands:
        match command:
            case FinishRun(state):
                _place_end(home, run, change, state, news)
            case SetTimer(seq, at, by_wall):
                change.timers.append((no, seq, at, None if by_wall else history[-1].at))
            case ClearTimer(seq):
                change.unwanted_timers.append((no, seq))
            case StartChild(seq, _, run_id, workflow, version):
                change.children.append((no, seq, run_id, workflow, version))
            case CancelChild(seq):
                change.cancelled_children.append((no, seq))
            case Publish(event_id, name, data):
                change.events.append(_publish(home, run, news, event_id, name, data, history[-1].at, "internal"))


def _place_ends(no: int, change: RunChange, history: Sequence[HistoryEvent]) -> set[int]:
    """Clear what has come to its end: timers and sub-workflows; answers the commands that were done."""
    done, fired = set[int](), set[int]()
    for event in history:
        kind = event.kind
        if kind in _COMMAND_DONE:
            done.add(event.body["command"])
        elif kind is Kind.TIMER_FIRED:
            fired.add(event.body["timer"])
        elif kind is Kind.STEP_CHILD_ENDED:
            change.ended_children.append((no, event.body["command"]))
    change.cleared_timers = [(no, seq) for seq in sorted(fired)]
    return done


def _place_outbox(
    home: Home,
    run: Run,
    change: RunChange,
    done: set[int],
    commands: Sequence[Command],
    claims: dict[int, int],
) -> None:
    no, queued = home.no, dict[int, int]()
    withdrawn: set[int] = set()
    for command in commands:
        match command:
            case Execute(seq) if seq in done or seq in withdrawn:
                done.discard(seq)  # withdrawn and asked for again: its row never went
                withdrawn.discard(seq)
            case Execute(seq):
                queued[seq] = claims.pop(seq, 0)
            case Withdraw(seq) if seq in queued:
                del queued[seq]
            case Withdraw(seq):
                withdrawn.add(seq)
    lane = (home.namespace_no, run.queue, run.priority)
    change.commands = [(no, seq, epoch, *lane) for seq, epoch in queued.items()]
    change.claims = [(epoch, no, seq) for seq, epoch in claims.items()]
    change.finished_commands = [(no, seq) for seq in sorted(done)]
    change.unwanted_commands = [(no, seq) for seq in sorted(withdrawn - done)]


def _place_end(home: Home, run: Run, change: RunChange, state: RunState, news: News) -> None:
    """The end of a run is an event that others can react to; a dead one is a dead letter, too."""
    data: dict[str, Json] = {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "version": run.version,
        "state": state.text,
        "trigger": run.trigger,
        "correlation_id": run.correlation_id,
    }
    if state in (RunState.FAILED, RunState.DEAD):
        data["error"] = {"step": "", "attempts": 0, **(run.failing or {})}
    event_id = derived_id("evt", run.ended_at, run.run_id, run.sequence)
    name = f"run.{state.text.lower()}"
    change.events.append(_publish(home, run, news, event_id, name, data, run.ended_at, "engine"))
    if state is RunState.DEAD:
        error = run.failing or {}
        where = (home.no, home.namespace_no, home.workflow_no, error.get("step", ""), error.get("code", ""))
        change.dead_letter = (*where, to_text(error), error.get("attempts", 0), run.ended_at)


def _publish(home: Home, run: Run, news: News, event_id: str, name: str, data: Json, at: int, source: str) -> EventRow:
    outcome = "PENDING" if news.listens(home.namespace_no, name) else "UNMATCHED"
    return internal_event(
        *(news.next_no(), event_id, home.namespace_no, name, data, at),
        source=source,
        outcome=outcome,
        run_no=home.no,
        depth=run.hops,
        headers=to_text(headers_of(_trace_of(run))) if outcome == "PENDING" else "{}",
    )


def _trace_of(run: Run) -> Trace:
    parent = parent_of(run.run_id, run.traceparent, run_span(run.run_id))
    return Trace(run.correlation_id, parent, run.tracestate)


def write_changes(connection: sqlite3.Connection, changes: Sequence[RunChange]) -> None:
    """Write the rows of many runs, table by table.

    Raises:
        StaleWriteError: a guard did not hold; the caller rolls back.
    """
    if not changes:
        return
    _many(connection, "insert_run", [change.insert for change in changes if change.insert is not None])
    _many(connection, "update_run", [change.update for change in changes if change.update is not None])
    _many(connection, "insert_history", [row for change in changes for row in change.history])
    _many(connection, "save_step", [row for change in changes for row in change.steps])
    _many(connection, "insert_command", [row for change in changes for row in change.commands])
    _many(connection, "claim_command", [row for change in changes for row in change.claims])
    _many(connection, "delete_command", [row for change in changes for row in change.finished_commands])
    _drop(connection, "delete_command", [row for change in changes for row in change.unwanted_commands])
    _many(connection, "insert_timer", [row for change in changes for row in change.timers])
    _many(connection, "delete_timer", [row for change in changes for row in change.cleared_timers])
    _drop(connection, "delete_timer", [row for change in changes for row in change.unwanted_timers])
    _many(connection, "insert_child", [row for change in changes for row in change.children])
    _many(connection, "cancel_child", [row for change in changes for row in change.cancelled_children])
    _many(connection, "delete_child", [row for change in changes for row in change.ended_children])
    _many(connection, "insert_event", [row for change in changes for row in change.events])
    _many(connection, "insert_dead_letter", [c.dead_letter for c in changes if c.dead_letter is not None])


_GUARDED = frozenset({"update_run", "claim_command", "delete_command", "delete_timer", "cancel_child", "delete_child"})


def _many(connection: sqlite3.Connection, query: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    if query not in _GUARDED:
        insert_rows(connection, query, rows)
        return
    moved = connection.executemany(QUERIES[query], rows).rowcount
    if moved != len(rows):
        raise StaleWriteError(f"{query} moved {moved} of {len(rows)} rows")


def _drop(connection: sqlite3.Connection, query: str, rows: Sequence[Row]) -> None:
    """Delete what a run does not want any more. A row that is lost already must not keep the run from being ended."""
    if rows:
        connection.executemany(QUERIES[query], rows)
