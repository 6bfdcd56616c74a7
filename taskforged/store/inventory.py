"""Reading a whole database that nobody writes to: what `taskforged.inventory` tells and proves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from taskforged.engine.model import Json
from taskforged.errors import CorruptStoreError
from taskforged.store.changes import StoredEvent, history_from_row
from taskforged.store.database import connect_reader
from taskforged.store.events import EventRow, event_context
from taskforged.store.runs import RunRow
from taskforged.store.sql import QUERIES
from taskforged.store.store import Row

__all__ = ["Inventory"]

_FAULTS_MAX = 100


class Inventory:
    """A read-only look at a database. Use as a context manager; it blocks, and takes as long as the file is large."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            CorruptStoreError: it cannot be opened.
        """
        try:
            self._connection = connect_reader(path)
        except sqlite3.Error as error:
            raise CorruptStoreError(f"{path} cannot be opened: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def faults(self) -> list[str]:
        """Answer what SQLite itself finds wrong: pages, indexes, constraints, references."""
        try:
            broken = [str(row[0]) for row in self._connection.execute(f"PRAGMA integrity_check({_FAULTS_MAX})")]
            orphans = self._connection.execute("PRAGMA foreign_key_check").fetchmany(_FAULTS_MAX)
        except sqlite3.Error as error:
            return [f"the file cannot be read: {error}"]
        missing = [f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in orphans]
        return [one for one in broken if one != "ok"] + missing

    def rows(self, query: str, *parameters: Any) -> Iterator[Row]:
        """Yield the rows of a named query.

        Raises:
            CorruptStoreError: the file is damaged, or has another schema.
        """
        try:
            yield from self._connection.execute(QUERIES[query], parameters)
        except sqlite3.Error as error:
            raise CorruptStoreError(f"the database cannot be read: {error}") from error

    def run(self, no: int) -> RunRow:
        """Answer a run's row."""
        return RunRow(*self._one("run_by_no", no))

    def history(self, row: RunRow) -> list[StoredEvent]:
        """Answer the whole history of a run.

        Raises:
            ValueError: an event is not as the engine records them.
        """
        most = -1  # all; also those beyond the sequence that the row knows
        return [history_from_row(one) for one in self.rows("history_after", row.no, 0, most)]

    def steps(self, row: RunRow) -> Mapping[str, tuple[str, int]]:
        """Answer state and attempt by key, as the projection has them."""
        return {one[0]: (one[1], one[2]) for one in self.rows("steps_of_run", row.no)}

    def event(self, row: RunRow) -> Json:
        """Answer what the run's expressions see as `event`."""
        if row.event_no is None:
            return None
        return event_context(EventRow(*self._one("event_by_no", row.event_no)))

    def source(self, row: RunRow) -> str:
        """Answer the definition that the run executes."""
        return str(self._one("version", row.workflow_no, row.version)[3])

    def _one(self, query: str, *parameters: Any) -> Row:
        for row in self.rows(query, *parameters):
            return row
        raise CorruptStoreError(f"the database has no row for {query.replace('_', ' ')} {parameters}")
