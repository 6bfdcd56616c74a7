"""Reading runs: rows of the projection, and whole runs folded from their history."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskforged.engine.model import Json
from taskforged.engine.run import Run, evolve
from taskforged.engine.states import RunState
from taskforged.store.changes import StoredEvent, history_from_row
from taskforged.store.events import EventRow, event_context
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

__all__ = ["LoadedRun", "RunFilter", "RunRow", "RunStore"]

_PAGE = 1000


class RunRow(NamedTuple):
    """A row of `runs`, with the id of the event that started it."""

    no: int
    id: str
    namespace_no: int
    workflow_no: int
    version: int
    state: str
    sequence: int
    head_hash: bytes
    cancel_requested: int
    trigger: str
    event_no: int | None
    request_id: str | None
    request_digest: bytes | None
    created_at: int
    started_at: int | None
    ended_at: int | None
    queue: str
    priority: int
    group_key: str
    group_limit: int
    run_at: int
    parent_no: int | None
    retry_of_no: int | None
    rerun_of_no: int | None
    event_id: str | None


class LoadedRun(NamedTuple):
    """A run with its state rebuilt from its history."""

    row: RunRow
    run: Run


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list. `before` is the number of the last run of the page before; 0 begins with the newest."""

    namespace_no: int
    workflow_no: int | None = None
    states: Sequence[str] = ()
    event_no: int | None = None
    before: int = 0
    workflow_name: str = ""


class RunStore:
    """Queries about runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def by_id(self, run_id: str) -> RunRow | None:
        """Answer a run's row."""
        row = await self._store.row("run_by_id", run_id)
        return None if row is None else RunRow(*row)

    async def by_no(self, no: int) -> RunRow | None:
        """Answer a run's row."""
        row = await self._store.row("run_by_no", no)
        return None if row is None else RunRow(*row)

    async def by_request(self, namespace_no: int, request_id: str) -> RunRow | None:
        """Answer the run that a request id stands for."""
        row = await self._store.row("run_by_request", namespace_no, request_id)
        return None if row is None else RunRow(*row)

    async def load(self, no: int) -> LoadedRun | None:
        """Rebuild a run from its history."""
        return await self._store.read(lambda connection: _load(connection, no))

    async def load_by_id(self, run_id: str) -> LoadedRun | None:
        """Rebuild a run from its history."""
        return await self._store.read(lambda connection: _load_by_id(connection, run_id))

    async def retry_of(self, no: int) -> tuple[int, str] | None:
        """Answer number and id of the run that retries a run."""
        row = await self._store.row("retry_of_run", no)
        return None if row is None else (row[0], row[1])

    async def id_of(self, no: int | None) -> str:
        """Answer the id of a run; empty when there is none."""
        return "" if no is None else await self._store.value("run_id_of", no) or ""

    async def history(self, no: int, after: int, limit: int) -> list[StoredEvent]:
        """Answer up to `limit` events after sequence `after`."""
        return [history_from_row(row) for row in await self._store.rows("history_after", no, after, limit)]

    async def page(self, wanted: RunFilter, limit: int) -> list[RunRow]:
        """Answer up to `limit` runs, newest first."""
        sql, parameters = _list_query(wanted, limit)
        return [RunRow(*row) for row in await self._store.read(lambda c: c.execute(sql, parameters).fetchall())]


def _load_by_id(connection: sqlite3.Connection, run_id: str) -> LoadedRun | None:
    row = connection.execute(QUERIES["run_by_id"], (run_id,)).fetchone()
    return None if row is None else _load(connection, row[0])


def _load(connection: sqlite3.Connection, no: int) -> LoadedRun | None:
    connection.execute("BEGIN")  # one snapshot for the row and its history
    try:
        row = connection.execute(QUERIES["run_by_no"], (no,)).fetchone()
        return None if row is None else _fold(connection, RunRow(*row))
    finally:
        connection.execute("COMMIT")


def _fold(connection: sqlite3.Connection, row: RunRow) -> LoadedRun:
    run = Run(event=_context_of(connection, row.event_no))
    for stored in _history(connection, row.no):
        evolve(run, stored.event)
    return LoadedRun(row, run)


def _history(connection: sqlite3.Connection, no: int) -> Iterator[StoredEvent]:
    after = 0
    while rows := connection.execute(QUERIES["history_after"], (no, after, _PAGE)).fetchall():
        yield from map(history_from_row, rows)
        after = rows[-1][0]


def _context_of(connection: sqlite3.Connection, event_no: int | None) -> Json:
    if event_no is None:
        return None
    row = connection.execute(QUERIES["event_by_no"], (event_no,)).fetchone()
    return None if row is None else event_context(EventRow(*row))


def _list_query(wanted: RunFilter, limit: int) -> tuple[str, list[Any]]:
    event_id = "(SELECT e.id FROM events e WHERE e.no = runs.event_no)"
    columns = ", ".join((*RunRow._fields[:-1], event_id))
    if wanted.states and RunState.SUCCEEDED.value not in wanted.states:
        where, parameters = _rare(wanted, limit)
    else:
        clauses, parameters = _clauses(wanted)
        if wanted.states:
            clauses.append(f"state IN ({', '.join('?' * len(wanted.states))})")
            parameters.extend(wanted.states)
        where = " AND ".join(clauses)
    sql = f"SELECT {columns} FROM runs WHERE {where} ORDER BY no DESC LIMIT ?"  # noqa: S608
    return sql, [*parameters, limit]


def _rare(wanted: RunFilter, limit: int) -> tuple[str, list[Any]]:
    """Find what has not succeeded by the index of just that, state by state: among very many runs it may be none."""
    clauses, parameters = _clauses(wanted)
    where = " AND ".join([*clauses, "state = ? AND state <> 'SUCCEEDED'"])
    one = f"SELECT no FROM (SELECT no FROM runs WHERE {where} ORDER BY no DESC LIMIT ?)"  # noqa: S608
    found = " UNION ALL ".join([one] * len(wanted.states))
    return f"no IN ({found})", [value for state in wanted.states for value in (*parameters, state, limit)]


def _clauses(wanted: RunFilter) -> tuple[list[str], list[Any]]:
    clauses = ["namespace_no = ?"]
    parameters: list[Any] = [wanted.namespace_no]
    if wanted.before:
        clauses.append("no < ?")
        parameters.append(wanted.before)
    if wanted.workflow_no is not None:
        clauses.append("workflow_no = ?")
        parameters.append(wanted.workflow_no)
    if wanted.workflow_name:
        clauses.append("workflow_no IN (SELECT w.no FROM workflows w WHERE w.name = ?)")
        parameters.append(wanted.workflow_name)
    if wanted.event_no is not None:
        clauses.append("event_no = ?")
        parameters.append(wanted.event_no)
    return clauses, parameters
