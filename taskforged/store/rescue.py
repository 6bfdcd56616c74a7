"""What is done to a database file while nobody uses it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from taskforged.store.backup import BackupError
from taskforged.store.database import APPLICATION_ID, schema_version

__all__ = ["compact", "fold_log", "key_of"]

_KEY_SINCE = 4
"""The first schema that knows which key its secrets are encrypted with."""


def key_of(copy: Path) -> tuple[str, int]:
    """Answer the id of the master key of a file that nobody writes to, as far as it says, and how many secrets it has.

    Raises:
        BackupError: it cannot be read.
    """
    escaped = copy.as_posix().replace("?", "%3f").replace("#", "%23")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{escaped}?mode=ro&immutable=1", uri=True)) as connection:
            count = connection.execute("SELECT count(*) FROM secrets").fetchone()[0]
            if schema_version(connection) < _KEY_SINCE:
                return "", count
            row = connection.execute("SELECT id FROM master_key").fetchone()
            return (row[0] if row else ""), count
    except sqlite3.Error as error:
        raise BackupError(f"{copy} cannot be read: {error}") from error


def fold_log(path: Path) -> None:
    """Move the log of a database into it, so that it is one file. A damaged one is left as it is."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_open(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def compact(path: Path) -> None:
    """Write a database anew without its free pages; from then on it gives them back by itself.

    Raises:
        BackupError: it is not ours, or could not be read or written.
    """
    try:
        with contextlib.closing(_open(path)) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise BackupError(f"{path} is not a database of Taskforge")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{path} could not be written anew: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA synchronous = FULL")
    return connection
