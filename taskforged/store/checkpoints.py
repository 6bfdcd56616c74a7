"""Moves the write-ahead log into the database file: between two commits, and where its failures are seen.

Left to itself SQLite does so at the end of a commit, and tells nobody when that fails: a disk that cannot sync the file
would go unnoticed, and the next attempt, whose sync "succeeds", would cut a log that is still needed. So it is switched
off, and the journal calls this after it has answered those who waited for the commit.

How long the log is SQLite tells only when it is moved. In between it is estimated from how many rows have changed, by
what they cost the last time; where the estimate was too low the log's file grows, and that is seen at once.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from taskforged.failpoints import reach
from taskforged.meters import SHORT_S, Histogram

__all__ = ["GIVE_WAY_S", "Checkpoint", "Checkpointer"]

_PAGES = 4000
"""Pages of the log, 16 MiB, after which it is moved: rarer than SQLite's 1,000, still quick to replay at start."""

_PAGES_PRESSED = 8000
"""Beyond so many, readings that last are ended, and a checkpoint waits for the rest."""

_PAGES_MORE = _PAGES // 4
"""Where a reader stood in the way it is tried again after so many more."""

_FRAME_BYTES = 4096 + 24

_PATIENCE_MS = 50
_PATIENCE_PRESSED_MS = 1000
"""How long a checkpoint waits for readers; commits wait with it."""

GIVE_WAY_S = 0.25
"""How long a reading may take while the log is too long."""

_RETRY_S = 1.0
"""After a checkpoint that failed: the disk was full."""

_CHANGES_FIRST = 500
_CHANGES_LEAST = 50
_BUSY_TIMEOUT_MS = 5000


class Checkpoint(NamedTuple):
    """What came of one. `is_whole`: all was moved and nobody reads the log, so the next commit begins it anew."""

    is_whole: bool
    pages: int


class Checkpointer:
    """Knows when the log is to be moved. Used in the thread of the writing connection.

    Attributes:
        is_pressed: the log is too long and readers stand in the way; read by other threads.
        whole, partial, failed: how many checkpoints there were.
        durations: of those that did not fail, in seconds.
    """

    def __init__(self, wal: Path) -> None:
        """Create a checkpointer for the log at a path."""
        self._wal = wal
        self._changes = 0
        self._allowed = float(_CHANGES_FIRST)
        self._left = 0
        self._bytes_max = _PAGES * _FRAME_BYTES
        self._not_before = 0.0
        self.is_pressed = False
        self.whole = self.partial = self.failed = 0
        self.durations = Histogram(SHORT_S)

    def is_due(self, connection: sqlite3.Connection) -> bool:
        """Answer whether the log has grown enough, as far as that is known; takes two microseconds."""
        has_grown = connection.total_changes - self._changes >= self._allowed or self._size() > self._bytes_max
        return has_grown and time.monotonic() >= self._not_before

    def run(self, connection: sqlite3.Connection) -> Checkpoint:
        """Move the log; the next commit begins it anew when no reader is in the way.

        Raises:
            sqlite3.Error: the disk is full, or has failed.
        """
        return self._execute(connection, "RESTART", _PATIENCE_PRESSED_MS if self.is_pressed else _PATIENCE_MS)

    def truncate(self, connection: sqlite3.Connection) -> Checkpoint:
        """Move the log and cut its file to nothing; raises as `run` does."""
        return self._execute(connection, "TRUNCATE", 2 * _PATIENCE_MS)

    def _execute(self, connection: sqlite3.Connection, mode: str, patience_ms: int) -> Checkpoint:
        began = time.monotonic()
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        try:
            reach("checkpoint.due")
            is_busy, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            reach("checkpoint.done")
        except sqlite3.Error:
            self.failed += 1
            self._not_before = time.monotonic() + _RETRY_S
            raise
        finally:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        self.durations.observe(time.monotonic() - began)
        done = Checkpoint(not is_busy, max(pages, 0))
        self._learn(connection, done)
        return done

    def _learn(self, connection: sqlite3.Connection, done: Checkpoint) -> None:
        """Decide how many changes are allowed until the next one."""
        self.whole += done.is_whole
        self.partial += not done.is_whole
        changes = connection.total_changes - self._changes
        fresh = done.pages - self._left if done.pages > self._left else done.pages
        wanted = _PAGES if done.is_whole else _PAGES_MORE
        if changes and fresh:
            fitting = wanted * changes / fresh
            self._allowed = max(_CHANGES_LEAST, min(fitting, 4 * self._allowed))
        self._changes += changes
        self._left = 0 if done.is_whole else done.pages
        self._not_before = 0.0
        self._bytes_max = max(_PAGES * _FRAME_BYTES, self._size()) + (
            0 if done.is_whole else _PAGES_MORE * _FRAME_BYTES
        )
        self.is_pressed = not done.is_whole and done.pages > _PAGES_PRESSED

    def _size(self) -> int:
        try:
            return self._wal.stat().st_size
        except OSError:  # it is not there yet; and a commit that has succeeded must not fail by a look
            return 0
