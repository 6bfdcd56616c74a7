"""Deleting what nobody needs any more: functions of the writing connection, each a small write of its own.

What may go is said by the views `prunable_runs` and `prunable_events`, and the triggers of the schema hold everybody to
it, this module included. A run goes by being named in `purge`: that removes its row at once, and opens its history for
deletion in pieces, so that a run of a hundred thousand events stalls nobody and a crash in between leaves no half run
that anybody could see.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from taskforged.failpoints import reach
from taskforged.store.sql import QUERIES

__all__ = [
    "LOGS_ARE_GONE",
    "Slice",
    "finish_leaving",
    "forget_deliveries",
    "purge_events",
    "purge_logs",
    "purge_runs",
    "purge_slots",
    "remember_numbers",
]

_LEAVING_AT_ONCE = 20

LOGS_ARE_GONE = "what steps have said before was removed by retention"
"""Stands in the log of a run where lines are missing."""


@dataclass(slots=True)
class Slice:
    """What one write deleted.

    Attributes:
        things: runs, events and so on.
        rows: of all tables.
        used: how many of the numbers handed in were looked at; the rest waits for the next slice.
        is_cut: the last run has left, and the rest of it is still there.
        seconds: how long the writing connection was busy with it.
    """

    things: int = 0
    rows: int = 0
    used: int = 0
    is_cut: bool = False
    seconds: float = 0.0


def purge_runs(connection: sqlite3.Connection, numbers: Sequence[int], budget: int) -> Slice:
    """Delete runs with all that belongs to them, until `budget` rows are gone; skips those that are needed."""
    began, done = time.monotonic(), Slice()
    remember_numbers(connection, "runs")
    for no in numbers:
        if done.rows >= budget:
            break
        done.used += 1
        row = connection.execute(QUERIES["prunable_run"], (no,)).fetchone()
        if row is None:
            continue
        connection.execute(QUERIES["purge_run"], (no,))
        reach("prune.run_gone")
        namespace_no, workflow_no, created_at = row
        connection.execute(QUERIES["add_pruned"], ("runs", namespace_no, workflow_no, 1, created_at))
        done.things += 1
        done.rows += 1 + _empty(connection, no, budget - done.rows, done)
    done.seconds = time.monotonic() - began
    return done


def finish_leaving(connection: sqlite3.Connection, budget: int) -> Slice:
    """Go on with runs that have left and whose rest is still there; `used` counts them."""
    began, done = time.monotonic(), Slice()
    for (no,) in connection.execute(QUERIES["leaving_runs"], (_LEAVING_AT_ONCE,)).fetchall():
        if done.rows >= budget:
            break
        done.used += 1
        done.rows += _empty(connection, no, budget - done.rows, done)
    done.seconds = time.monotonic() - began
    return done


def _empty(connection: sqlite3.Connection, no: int, budget: int, done: Slice) -> int:
    """Delete up to `budget` rows of a run that has left, and its name when nothing is left of it; answers how many."""
    left = max(budget, 1)
    first = connection.execute(QUERIES["history_from"], (no,)).fetchone()[0]
    if first is not None:
        left -= connection.execute(QUERIES["purge_history"], (no, first + left)).rowcount
    if left > 0:
        left -= connection.execute(QUERIES["purge_steps"], (no, no, left)).rowcount
    if left > 0:
        left -= connection.execute(QUERIES["purge_logs"], (no, left)).rowcount
    done.is_cut = left <= 0
    if not done.is_cut:
        connection.execute(QUERIES["purge_is_over"], (no,))
    return max(budget, 1) - left


def forget_deliveries(connection: sqlite3.Connection, keys: Sequence[tuple[int, str, bytes]]) -> Slice:
    """Forget what repetitions of old deliveries are recognised by."""
    began = time.monotonic()
    gone = connection.executemany(QUERIES["forget_delivery"], keys).rowcount
    return Slice(gone, gone, len(keys), seconds=time.monotonic() - began)


def purge_events(
    connection: sqlite3.Connection, events: Sequence[tuple[int, int, str, int]], until: int, budget: int
) -> Slice:
    """Delete events (number, namespace, outcome, time) of before `until`, until `budget` of them are gone."""
    began, done = time.monotonic(), Slice()
    remember_numbers(connection, "events")
    connection.execute(QUERIES["open_window"], ("events", until))
    for no, namespace_no, _, created_at in events[:budget]:
        done.used += 1
        if connection.execute(QUERIES["prunable_event"], (no,)).fetchone() is None:
            continue
        connection.execute(QUERIES["delete_event"], (no,))
        connection.execute(QUERIES["add_pruned"], ("events", namespace_no, 0, 1, created_at))
        done.things += 1
    connection.execute(QUERIES["close_window"], ("events",))
    done.rows, done.seconds = done.things, time.monotonic() - began
    return done


def purge_slots(connection: sqlite3.Connection, trigger_no: int, until: int) -> Slice:
    """Delete up to 500 settled due times of a trigger that are older than `until`."""
    began = time.monotonic()
    rows = connection.execute(QUERIES["old_slots"], (trigger_no, until, until)).fetchall()
    if rows:
        connection.execute(QUERIES["open_window"], ("slots", until))
        connection.executemany(QUERIES["delete_slot"], [(trigger_no, due_at, backfill) for due_at, backfill, _ in rows])
        connection.execute(QUERIES["slots_are_gone"], (max(row[2] for row in rows) + 1, trigger_no))
        connection.execute(QUERIES["close_window"], ("slots",))
    return Slice(len(rows), len(rows), len(rows), seconds=time.monotonic() - began)


def purge_logs(connection: sqlite3.Connection, numbers: Sequence[int]) -> Slice:
    """Delete lines of step logs. Of each run that is still there the last of them stays, and says so from now on."""
    began = time.monotonic()
    remember_numbers(connection, "step_logs")
    last: dict[int, int] = {}
    for no in sorted(numbers):
        run = connection.execute(QUERIES["run_of_log"], (no,)).fetchone()
        if run is not None:
            last[run[0]] = no
    kept = set(last.values())
    connection.executemany(QUERIES["delete_log_mark"], list(last.items()))
    connection.executemany(QUERIES["mark_log"], [(LOGS_ARE_GONE, no) for no in kept])
    connection.executemany(QUERIES["delete_log"], [(no,) for no in numbers if no not in kept])
    return Slice(len(numbers), len(numbers), len(numbers), seconds=time.monotonic() - began)


def remember_numbers(connection: sqlite3.Connection, table: str) -> None:
    """Note the largest number that a table ever gave out, before its row may go: numbers are never given twice."""
    largest = connection.execute(f"SELECT max(no) FROM {table}").fetchone()[0]  # noqa: S608  our own names
    if largest is not None:
        known = connection.execute(QUERIES["meta"], (f"last_no.{table}",)).fetchone()
        if known is None or int(known[0]) < largest:
            connection.execute(QUERIES["set_meta"], (f"last_no.{table}", str(largest)))
