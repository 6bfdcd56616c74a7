"""Events: rows, and what expressions see of one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from taskforged.engine.events import rfc3339
from taskforged.engine.model import Json
from taskforged.jsonvalue import load_stored
from taskforged.store.rows import EventRow
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

__all__ = ["EventFilter", "EventRow", "EventStore", "body_value", "event_context", "insert_event", "is_json"]

WITHOUT_EFFECT_MAX = 10_000
"""How many rejected, duplicate and handshake deliveries are kept, so that strangers cannot fill the disk."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list. `before` is the number of the last event of the page before; 0 begins with the newest."""

    namespace_no: int
    outcomes: Sequence[str] = ()
    path: str = ""
    before: int = 0


def is_json(content_type: str) -> bool:
    """Whether a content type says JSON: `application/json` or a `+json` type, RFC 6839."""
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def body_value(content_type: str, body: bytes) -> Json:
    """Answer what an accepted body means: JSON, a form as a map, else text. Null when it is empty.

    Raises:
        ValueError: it says that it is JSON, and is not.
    """
    if not body:
        return None
    if is_json(content_type):
        return load_stored(body)
    text = body.decode(errors="replace")
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        return dict(parse_qsl(text, keep_blank_values=True))
    return text


def event_context(row: EventRow) -> Json:
    """Answer what expressions see as `event`."""
    return {
        "id": row.id,
        "source": row.source,
        "path": row.path,
        "headers": load_stored(row.headers),
        "query": load_stored(row.query),
        "body": body_value(row.content_type, row.body),
        "received_at": rfc3339(row.created_at),
        "type": row.type,
    }


def insert_event(connection: sqlite3.Connection, row: EventRow, delivery_key: bytes | None) -> None:
    """Insert an event and, when it had an effect, what its repetitions are recognised by."""
    connection.execute(QUERIES["insert_event"], row)
    if delivery_key is not None:
        connection.execute(QUERIES["insert_delivery"], (row.namespace_no, row.path, delivery_key, row.no))
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


_HEAVY = {"headers": "''", "query": "''", "body": "x''"}


def _list_query(wanted: EventFilter, limit: int) -> tuple[str, list[Any]]:
    clauses = ["namespace_no = ?"]
    parameters: list[Any] = [wanted.namespace_no]
    if wanted.before:
        clauses.append("no < ?")
        parameters.append(wanted.before)
    if wanted.path:
        clauses.append("path = ?")
        parameters.append(wanted.path)
    if wanted.outcomes:
        clauses.append(f"outcome IN ({', '.join('?' * len(wanted.outcomes))})")
        parameters.extend(wanted.outcomes)
    columns = ", ".join(_HEAVY.get(name, name) for name in EventRow._fields)
    sql = f"SELECT {columns} FROM events WHERE {' AND '.join(clauses)} ORDER BY no DESC LIMIT ?"  # noqa: S608
    return sql, [*parameters, limit]
