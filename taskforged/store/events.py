"""Events: rows, and what expressions see of one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskforged.engine.events import rfc3339
from taskforged.engine.model import Json
from taskforged.jsonvalue import load_stored
from taskforged.payload import decode
from taskforged.store.rows import EventRow
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

__all__ = [
    "CLOUD_EVENTS",
    "REQUESTS",
    "EventFilter",
    "EventRow",
    "EventStore",
    "FeedPart",
    "event_context",
    "insert_event",
]

WITHOUT_EFFECT_MAX = 10_000
"""How many rejected, duplicate and handshake deliveries are kept, so that strangers cannot fill the disk."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list.

    Attributes:
        namespace_no: of the events.
        outcomes: any of these; empty: all.
        path: of a webhook; empty: all.
        type: may contain `*`; empty: all.
        sources: any of these; empty: all but `engine`, unless a type is given.
        workflow: one of its triggers was asked; empty: all.
        since: received then or later, in microseconds; 0: all.
        until: received earlier; 0: all.
        originals: no replays, and nothing that has been replayed.
        before: number of the last event of the page before; 0 begins with the newest.
        after: with `oldest_first`: number of the last event of the page before.
        oldest_first: the other way round.
    """

    namespace_no: int
    outcomes: Sequence[str] = ()
    path: str = ""
    before: int = 0
    type: str = ""
    sources: Sequence[str] = ()
    workflow: str = ""
    since: int = 0
    until: int = 0
    originals: bool = False
    after: int = 0
    oldest_first: bool = False


class FeedPart(NamedTuple):
    """Events with their positions, up to which position was looked, and how many up to there are there no more."""

    rows: Sequence[tuple[int, EventRow]]
    end: int
    removed: int


def event_context(row: EventRow, read: tuple[Json, str] | None = None) -> Json:
    """Answer what expressions see as `event`; `read` is what `payload.decode` has said of the body already."""
    headers = load_stored(row.headers)
    body, encoding = read or decode(headers.get("content-type", row.content_type), row.body, load_stored)
    return {
        "id": row.id,
        "source": row.source,
        "path": row.path,
        "headers": headers,
        "query": load_stored(row.query),
        "body": body,
        "encoding": encoding,
        "received_at": rfc3339(row.created_at),
        "type": row.type,
        "subject": row.subject,
        "origin": row.origin,
        "due_time": body.get("due_time") if isinstance(body, dict) and row.source in _DUE_SOURCES else None,
    }


_DUE_SOURCES = frozenset({"cron", "manual"})


REQUESTS = "\0request"
"""Place in which request ids are remembered among the deliveries; no path of a URL can be like it."""

CLOUD_EVENTS = "\0cloudevent"
"""The same for CloudEvents."""


def insert_event(
    connection: sqlite3.Connection, row: EventRow, delivery_key: bytes | None = None, place: str | None = None
) -> None:
    """Insert an event and, when it had an effect, what its repetitions are recognised by, in a place or its path."""
    connection.execute(QUERIES["insert_event"], row)
    if delivery_key is not None:
        connection.execute(
            QUERIES["insert_delivery"], (row.namespace_no, row.path if place is None else place, delivery_key, row.no)
        )
    if row.outcome in {"REJECTED", "DUPLICATE", "HANDSHAKE"} and row.no % 100 == 0:
        connection.execute(QUERIES["prune_events_without_effect"], (WITHOUT_EFFECT_MAX,))


class EventStore:
    """Queries about events."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def by_id(self, event_id: str) -> EventRow | None:
        """Answer an event."""
        row = await self._store.row("event_by_id", event_id)
        return None if row is None else EventRow(*row)

    async def by_no(self, no: int) -> EventRow | None:
        """Answer an event."""
        row = await self._store.row("event_by_no", no)
        return None if row is None else EventRow(*row)

    async def by_delivery(self, namespace_no: int, path: str, key: bytes) -> tuple[int, str] | None:
        """Answer number and id of the event that a delivery repeats."""
        row = await self._store.row("delivery", namespace_no, path, key)
        return None if row is None else (row[0], row[1])

    async def runs_of(self, no: int) -> list[str]:
        """Answer the ids of the runs that an event started, at most 1,000."""
        return [row[0] for row in await self._store.rows("runs_of_event", no)]

    async def page(self, wanted: EventFilter, limit: int) -> list[EventRow]:
        """Answer up to `limit` events, newest first, without headers, query and body."""
        sql, parameters = _list_query(wanted, limit)
        return [EventRow(*row) for row in await self._store.read(lambda c: c.execute(sql, parameters).fetchall())]

    async def feed(self, wanted: EventFilter, after: int, until: int, limit: int) -> FeedPart:
        """Answer up to `limit` events at positions of the feed, in its order, without headers, query and body."""
        sql, parameters = _feed_query(wanted, after, until, limit)

        def read(connection: sqlite3.Connection) -> FeedPart:
            connection.execute("BEGIN")
            try:
                rows = connection.execute(sql, parameters).fetchall()
                end = rows[-1][0] if len(rows) == limit else until
                (removed,) = connection.execute(QUERIES["removed_from_feed"], (after, end)).fetchone()
            finally:
                connection.execute("COMMIT")
            return FeedPart([(row[0], EventRow(*row[1:])) for row in rows], end, removed)

        return await self._store.read(read)


_HEAVY = {"headers": "''", "query": "''", "body": "x''"}

_COLUMNS = ", ".join(_HEAVY.get(name, name) for name in EventRow._fields)


def _list_query(wanted: EventFilter, limit: int) -> tuple[str, list[Any]]:
    clauses, parameters = _clauses(wanted)
    order = "" if wanted.oldest_first else " DESC"
    sql = f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(clauses)} ORDER BY no{order} LIMIT ?"  # noqa: S608
    return sql, [*parameters, limit]


def _feed_query(wanted: EventFilter, after: int, until: int, limit: int) -> tuple[str, list[Any]]:
    clauses, parameters = _clauses(wanted)
    sql = (
        f"SELECT position, {_COLUMNS} FROM event_feed CROSS JOIN events ON no = event_no "  # noqa: S608
        f"WHERE position > ? AND position <= ? AND {' AND '.join(clauses)} ORDER BY position LIMIT ?"
    )
    return sql, [after, until, *parameters, limit]


def _clauses(wanted: EventFilter) -> tuple[list[str], list[Any]]:
    clauses: list[str] = []
    parameters: list[Any] = []

    def add(clause: str, *values: Any) -> None:
        clauses.append(clause)
        parameters.extend(values)

    add("namespace_no = ?", wanted.namespace_no)
    if wanted.sources:
        add(f"source IN ({', '.join('?' * len(wanted.sources))})", *wanted.sources)
    elif not wanted.type:
        add("source <> 'engine'")
    if wanted.outcomes:
        add(f"outcome IN ({', '.join('?' * len(wanted.outcomes))})", *wanted.outcomes)
    if wanted.originals:
        add(
            "replay_of = '' AND NOT EXISTS (SELECT 1 FROM events r WHERE r.replay_of = events.id AND r.replay_of <> '')"
        )
    for clause, value in _plain_clauses(wanted):
        if value:
            add(clause, value)
    return clauses, parameters


def _plain_clauses(wanted: EventFilter) -> list[tuple[str, Any]]:
    """Answer clauses with one value each; those whose value is empty or 0 are not wanted."""
    is_pattern = "*" in wanted.type
    glob = "".join(f"[{one}]" if one in "[]?" else one for one in wanted.type)
    return [
        ("no < ?", wanted.before),
        ("no > ?", wanted.after),
        ("path = ?", wanted.path),
        ("type GLOB ?" if is_pattern else "type = ?", glob if is_pattern else wanted.type),
        ("EXISTS (SELECT 1 FROM json_each(verdicts) v WHERE v.value ->> 'workflow' = ?)", wanted.workflow),
        ("created_at >= ?", wanted.since),
        ("created_at < ?", wanted.until),
    ]
