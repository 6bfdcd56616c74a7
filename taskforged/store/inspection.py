"""A look at the database file: a read-only connection in a thread of its own, so that nothing else waits for it.

Every question has a time limit, and gives way where the log of a running daemon has become too long while it lasts: a
long read holds up checkpoints, and a check of a large file can take minutes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from taskforged.errors import CorruptStoreError, UnavailableError
from taskforged.store.database import APPLICATION_ID, connect_reader, migrations, schema_version
from taskforged.store.sql import QUERIES
from taskforged.store.store import Pages, Row, count_pages
from taskforged.store.threads import ConnectionThread

__all__ = ["Inspection", "Integrity"]

T = TypeVar("T")

_STEPS = 10_000
"""Instructions of SQLite's machine between two looks at the clock: about a millisecond."""

_FAULTS_MAX = 20


class Integrity(NamedTuple):
    """What a check of the whole file has found. `unread` are the tables that its time did not reach."""

    faults: Sequence[str]
    unread: Sequence[str]


class Inspection:
    """Reads one database file. Use as an asynchronous context manager."""

    def __init__(self, path: Path, must_end: Callable[[float, float], bool] | None = None) -> None:
        """Create a closed one; `must_end` is `Store.must_end` where a daemon is at work on the file."""
        self._must_end = must_end or _is_late
        self._thread = ConnectionThread(lambda: connect_reader(path))
        self._path = path

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            CorruptStoreError: it cannot be opened.
        """
        try:
            await self._thread.start()
        except sqlite3.Error as error:
            raise CorruptStoreError(f"{self._path} cannot be opened: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._thread.stop()

    async def rows(self, query: str, *parameters: object, limit_s: float = 2.0) -> list[Row]:
        """Answer all rows of a named query.

        Raises:
            CorruptStoreError: the file is damaged, or has another schema.
            UnavailableError: it takes longer than `limit_s`.
        """
        return await self._ask(lambda c: c.execute(QUERIES[query], parameters).fetchall(), limit_s)

    async def schema(self) -> tuple[int, int, bool]:
        """Answer the file's schema, this program's, and whether the file is Taskforge's at all."""

        def ask(connection: sqlite3.Connection) -> tuple[int, int, bool]:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            return schema_version(connection), migrations()[-1].number, application == APPLICATION_ID

        return await self._ask(ask, 2.0)

    async def pages(self) -> Pages:
        """Answer what the file consists of."""
        return Pages(*await self._ask(count_pages, 2.0))

    async def integrity(self, limit_s: float) -> Integrity:
        """Check pages, indexes, constraints and references, one table after the other."""
        deadline = time.monotonic() + limit_s
        tables = await self._ask(_tables, 2.0)
        faults: list[str] = []
        for index, table in enumerate(tables):
            if len(faults) >= _FAULTS_MAX:
                return Integrity(faults[:_FAULTS_MAX], tables[index:])
            try:
                faults += await self._ask(lambda c, t=table: _check(c, t), deadline - time.monotonic())  # type: ignore[misc]
            except UnavailableError:
                return Integrity(faults, tables[index:])
        return Integrity(faults, ())

    async def _ask(self, function: Callable[[sqlite3.Connection], T], limit_s: float) -> T:
        began = time.monotonic()

        def ask(connection: sqlite3.Connection) -> T:
            connection.set_progress_handler(lambda: self._must_end(began, limit_s), _STEPS)
            try:
                return function(connection)
            finally:
                connection.set_progress_handler(None, 0)

        try:
            return await self._thread.run(ask)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_INTERRUPT":
                raise UnavailableError(f"it takes longer than {limit_s:.0f} s, or the log had to be cut") from error
            raise CorruptStoreError(f"{self._path} cannot be read: {error}") from error
        except sqlite3.Error as error:
            raise CorruptStoreError(f"{self._path} cannot be read: {error}") from error


def _is_late(began: float, within_s: float) -> bool:
    return time.monotonic() > began + within_s


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return sorted(row[0] for row in found)


def _check(connection: sqlite3.Connection, table: str) -> list[str]:
    """Answer what is wrong with a table and its indexes."""
    quoted = table.replace("'", "''")
    faults = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check('{quoted}')") if row[0] != "ok"]
    orphans = connection.execute(f"PRAGMA foreign_key_check('{quoted}')").fetchmany(_FAULTS_MAX)
    return faults + [f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in orphans]
