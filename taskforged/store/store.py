"""The store as the rest of the daemon sees it: one journal to write, a few read-only connections to read."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from taskforged.errors import UnavailableError
from taskforged.store.backup import BackupError, copy_database
from taskforged.store.checkpoints import GIVE_WAY_S, Checkpointer
from taskforged.store.database import connect_reader, connect_writer, schema_version
from taskforged.store.journal import Journal
from taskforged.store.sql import QUERIES
from taskforged.store.threads import ConnectionThread

__all__ = ["SQLITE_VERSION", "Connection", "Pages", "Row", "Store", "count_pages"]

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Connection: TypeAlias = sqlite3.Connection
SQLITE_VERSION = sqlite3.sqlite_version


READ_S_MAX = 5.0
"""How long one reading may take: while it lasts, the log cannot be cut and grows."""

_READ_STEPS = 200_000
"""Instructions of SQLite's machine between two looks at the clock: some milliseconds."""


class Pages(NamedTuple):
    """What a database file consists of. `can_shrink`: it gives free pages back without being rewritten."""

    page_size: int
    pages: int
    free_pages: int
    can_shrink: bool

    @property
    def used_bytes(self) -> int:
        """What is in use."""
        return (self.pages - self.free_pages) * self.page_size


READERS = 2
"""Read-only connections: one would let a slow list hold up a watcher; more would only compete for two cores."""


class Store:
    """Opens and closes everything that touches the database file."""

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "FULL",
        on_failure: Callable[[BaseException], None] = lambda _: None,
        before_upgrade: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> None:
        """Create a closed store for the database at `path`; see `Journal` and `connect_writer`."""
        self.path = path
        self._writer = ConnectionThread(
            lambda: connect_writer(path, synchronous=synchronous, before_upgrade=before_upgrade)
        )
        self._readers = [ConnectionThread(lambda: connect_reader(path)) for _ in range(READERS)]
        self._turn = 0
        self._wal = path.with_name(path.name + "-wal")
        self._checkpointer = Checkpointer(self._wal)
        self.journal = Journal(self._writer, self._checkpointer, on_failure=on_failure)
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
        """Execute a function on a read-only connection.

        Raises:
            UnavailableError: it took longer than `READ_S_MAX`, or than `GIVE_WAY_S` while the log is too long.
        """
        self._turn = (self._turn + 1) % READERS
        return await self._readers[self._turn].run(lambda connection: self._bounded(connection, function))

    def _bounded(self, connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        began = time.monotonic()
        connection.set_progress_handler(lambda: self.must_end(began, READ_S_MAX), _READ_STEPS)
        try:
            return function(connection)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
                raise
            if time.monotonic() < began + READ_S_MAX:
                why = "the reading was ended, since the log of the database has become too long while it lasted"
                raise UnavailableError(f"{why}; ask again, or for less", reason="READ_GAVE_WAY") from error
            raise UnavailableError(
                f"the database did not answer within {READ_S_MAX:g} s; ask for less", reason="READ_TOO_LONG"
            ) from error
        finally:
            connection.set_progress_handler(None, 0)

    def must_end(self, began: float, within_s: float) -> bool:
        """Answer whether a reading has lasted too long, so that the log can be moved and cut; for any thread."""
        return time.monotonic() > began + (GIVE_WAY_S if self._checkpointer.is_pressed else within_s)

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

    async def copy(self, path: Path) -> None:
        """Copy the database while it is in use; see `store.backup`.

        Raises:
            BackupError: it could not be read or written.
        """
        try:
            await self._writer.run_long(lambda connection, guests: copy_database(connection, path, guests))
        except sqlite3.Error as error:
            raise BackupError(f"{path.parent} could not be written: {error}") from error

    async def measure(self) -> Pages:
        """Answer what the file consists of just now, its log included."""
        return Pages(*await self.read(count_pages))

    def table_sizes(self, within_s: float) -> dict[str, int]:
        """Answer what each table and its indexes take, counted page by page on a connection of its own. Blocks.

        Empty when it would take longer, or when this SQLite cannot count.
        """
        began = time.monotonic()
        connection = connect_reader(self.path)
        try:
            connection.set_progress_handler(lambda: self.must_end(began, within_s), 10_000)
            return dict(connection.execute(QUERIES["table_sizes"]).fetchall())
        except sqlite3.Error:
            return {}
        finally:
            connection.close()

    async def checkpoint(self) -> bool:
        """Move the log into the file and cut it to nothing; False when a reader was in the way."""
        return (await self.journal.outside(self._checkpointer.truncate)).is_whole

    async def shrink(self, pages: int) -> float:
        """Give up to `pages` free pages back to the disk; answers for how many seconds nobody else could write."""

        def shrink(connection: sqlite3.Connection) -> float:
            began = time.monotonic()
            # It answers a row without columns for each page, and `execute` stops at the first of these.
            connection.executescript(f"PRAGMA incremental_vacuum({pages:d})")
            return time.monotonic() - began

        return await self.journal.outside(shrink)

    def sizes(self) -> tuple[int, int]:
        """Answer the size of the database file and of its write-ahead log, in bytes."""
        return _size(self.path), _size(self._wal)


def count_pages(connection: sqlite3.Connection) -> tuple[int, int, int, bool]:
    """Answer the fields of `Pages`."""
    names = ("page_size", "page_count", "freelist_count", "auto_vacuum")
    size, count, free, vacuum = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    return size, count, free, vacuum == _INCREMENTAL


_INCREMENTAL = 2


def _inspect(connection: sqlite3.Connection) -> tuple[int, dict[str, int]]:
    tables = ("runs", "events", "workflows", "triggers", "tokens", "namespaces", "step_logs")
    newest = {table: f"SELECT coalesce(max(no), 0) FROM {table}" for table in tables}  # noqa: S608  constants
    return schema_version(connection), {
        table: max(connection.execute(sql).fetchone()[0], _pruned_no(connection, table))
        for table, sql in newest.items()
    }


def _pruned_no(connection: sqlite3.Connection, table: str) -> int:
    """Answer the largest number that pruning has seen in a table: the row itself may be gone."""
    row = connection.execute(QUERIES["meta"], (f"last_no.{table}",)).fetchone()
    return 0 if row is None else int(row[0])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
