"""The store as the rest of the daemon sees it: one journal to write, a few read-only connections to read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from taskforged.store.database import connect_reader, connect_writer, schema_version
from taskforged.store.journal import Journal
from taskforged.store.sql import QUERIES
from taskforged.store.threads import ConnectionThread

__all__ = ["SQLITE_VERSION", "Connection", "Row", "Store"]

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Connection: TypeAlias = sqlite3.Connection
SQLITE_VERSION = sqlite3.sqlite_version

READERS = 2
"""Read-only connections: one would let a slow list hold up a watcher; more would only compete for two cores."""


class Store:
    """Opens and closes everything that touches the database file."""

    def __init__(
        self, path: Path, *, synchronous: str = "FULL", on_failure: Callable[[BaseException], None] = lambda _: None
    ) -> None:
        """Create a closed store for the database at `path`; `on_failure`: see `Journal`."""
        self.path = path
        self._writer = ConnectionThread(lambda: connect_writer(path, synchronous=synchronous))
        self._readers = [ConnectionThread(lambda: connect_reader(path)) for _ in range(READERS)]
        self._turn = 0
        self.journal = Journal(self._writer, on_failure=on_failure)
        self.schema = 0
        self.last_no: dict[str, int] = {}

    async def start(self) -> None:
        """Open the database, migrate it, begin to commit.

        Raises:
            CorruptStoreError: the file cannot be used.
        """
        await self._writer.start()
        try:
            self.schema, self.last_no = await self._writer.run(_inspect)
            for reader in self._readers:
                await reader.start()
        except BaseException:
            await self.stop()
            raise
        await self.journal.start()

    async def stop(self) -> None:
        """Commit what waits, checkpoint, close. Idempotent."""
        await self.journal.stop()
        await asyncio.gather(*(reader.stop() for reader in self._readers))
        await self._writer.stop()

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Execute a function on a read-only connection."""
        self._turn = (self._turn + 1) % READERS
        return await self._readers[self._turn].run(function)

    async def rows(self, query: str, *parameters: Any) -> list[Row]:
        """Answer all rows of a named query."""
        return await self.read(lambda connection: connection.execute(QUERIES[query], parameters).fetchall())

    async def row(self, query: str, *parameters: Any) -> Row | None:
        """Answer the first row of a named query, or None."""
        found: Sequence[Row] = await self.rows(query, *parameters)
        return found[0] if found else None

    async def value(self, query: str, *parameters: Any) -> Any:
        """Answer the only value of a named query, or None."""
        row = await self.row(query, *parameters)
        return None if row is None else row[0]

    def next_no(self, table: str) -> int:
        """Assign the next number of a table; numbers of writes that fail are not used again."""
        self.last_no[table] += 1
        return self.last_no[table]

    def sizes(self) -> tuple[int, int]:
        """Answer the size of the database file and of its write-ahead log, in bytes."""
        return _size(self.path), _size(self.path.with_name(self.path.name + "-wal"))


def _inspect(connection: sqlite3.Connection) -> tuple[int, dict[str, int]]:
    tables = ("runs", "events", "workflows", "triggers", "tokens", "namespaces", "step_logs")
    newest = {table: f"SELECT coalesce(max(no), 0) FROM {table}" for table in tables}  # noqa: S608  constants
    return schema_version(connection), {t: connection.execute(sql).fetchone()[0] for t, sql in newest.items()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
