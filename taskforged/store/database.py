"""Opening the one database file: lock, checks, pragmas, migrations.

Whoever opens a database for writing holds an exclusive `flock` on the lock file beside it, taken before anything
else, so that two daemons can never write to one home. Only the writing connection checkpoints; all others are opened
read-only. That also keeps away SQLite's WAL-reset bug (fixed in 3.51.3), which needs two connections that write or
checkpoint at the same instant.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import structlog

from taskforged.errors import CorruptStoreError, FailedPreconditionError
from taskforged.failpoints import reach

__all__ = [
    "APPLICATION_ID",
    "HomeLock",
    "Migration",
    "connect_reader",
    "connect_writer",
    "migrate",
    "migrations",
    "schema_version",
    "split_statements",
]

_log = structlog.get_logger(__name__)

APPLICATION_ID = 0x7466_6F72
"""`tfor`, in SQLite's header, so that a file of another program is recognised."""

_CACHE_KIB = 32 * 1024

_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.02
_GIVE_WAY_S = 10.0
"""How long somebody who only looks may take to give way."""

_LOOKS = " look"


class HomeLock:
    """An exclusive lock on a home, held as long as the process lives.

    One that only looks says so in the file, and gives way when somebody else wants to work on the home: else a long
    look would keep a service from starting again until its manager gives up.
    """

    def __init__(self, path: Path, *, looks: bool = False) -> None:
        """Create a lock; `looks` is a promise to ask `is_wanted` again and again."""
        self._path = path
        self._looks = looks
        self._wish = path.with_name(f"{path.name}.wanted")
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FailedPreconditionError: another process holds it.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(fd) and (self._looks or not self._get_way(fd)):
            holder = _holder(fd).removesuffix(_LOOKS)
            os.close(fd)
            raise FailedPreconditionError(
                f"another taskforged (pid {holder or 'unknown'}) already runs on {self._path.parent};"
                " stop it with `taskforgectl down`, or use another --home",
                reason="HOME_IN_USE",
                metadata={"home": str(self._path.parent), "pid": holder},
            )
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}{_LOOKS if self._looks else ''}\n".encode())
        self._fd = fd
        if self._looks:
            self._wish.unlink(missing_ok=True)

    def _get_way(self, fd: int) -> bool:
        """Ask a holder that only looks to give way; answers whether it did, and the lock is ours."""
        if not _holder(fd).endswith(_LOOKS):
            return False
        deadline = time.monotonic() + _GIVE_WAY_S
        try:
            while time.monotonic() < deadline:
                self._wish.touch(mode=0o600)
                if _try_lock(fd):
                    return True
        finally:
            self._wish.unlink(missing_ok=True)
        return False

    def is_wanted(self) -> bool:
        """Whether somebody waits for this lock to be given back."""
        return self._wish.exists()

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _try_lock(fd: int) -> bool:
    """Take a lock; a client that just looks whether it is held has it for an instant."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


class Migration(NamedTuple):
    """One numbered step of the schema."""

    number: int
    name: str
    script: str


def migrations() -> list[Migration]:
    """Answer all migrations in order: files `NNNN_name.sql`, numbered from 1 without gaps."""
    found = []
    for file in files("taskforged.store").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text()))
    return sorted(found)


def split_statements(script: str) -> Iterator[str]:
    """Split a script at the semicolons that end statements; SQLite itself says which do."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(pending):
            yield pending.strip()
            pending = ""
    if pending.strip() and not all(line.startswith("--") for line in pending.strip().splitlines()):
        raise ValueError(f"unfinished statement: {pending.strip()[:80]}")


def connect_writer(
    path: Path, *, synchronous: str = "FULL", before_upgrade: Callable[[sqlite3.Connection], None] = lambda _: None
) -> sqlite3.Connection:
    """Open the writing connection: creates the file, checks it, brings the schema up to date.

    Args:
        path: of the file.
        synchronous: how commits are synced.
        before_upgrade: called before the first migration of a database that has something in it.

    Raises:
        CorruptStoreError: the file is damaged, of a newer schema, or not Taskforge's.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        _prepare(connection, path, synchronous, before_upgrade)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, str(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(
    connection: sqlite3.Connection, path: Path, synchronous: str, before_upgrade: Callable[[sqlite3.Connection], None]
) -> None:
    connection.execute("PRAGMA busy_timeout = 5000")
    _check_identity(connection, path)
    if 0 < schema_version(connection) < migrations()[-1].number:
        before_upgrade(connection)
        reach("upgrade.backed_up")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see store.checkpoints
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    migrate(connection)
    _check_health(connection, path)


def _check_identity(connection: sqlite3.Connection, path: Path) -> None:
    version = schema_version(connection)
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise CorruptStoreError(f"{path} is a database of another program; move it away or use another --home")
    newest = migrations()[-1].number
    if version > newest:
        raise CorruptStoreError(
            f"{path} has schema {version}, which is newer than this program's {newest};"
            " install a newer taskforged, or restore a backup",
            reason="SCHEMA_TOO_NEW",
            metadata={"schema": str(version), "supported": str(newest)},
        )


def _check_health(connection: sqlite3.Connection, path: Path) -> None:
    """Touch the root of every table: cheap, however large the file is. `doctor` checks the whole of it."""
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    missing = {"runs", "history", "commands", "timers", "events", "workflow_versions", "tokens"} - set(names)
    if missing:
        raise CorruptStoreError(f"{path} lacks the tables {', '.join(sorted(missing))}; restore a backup")
    for name in names:
        connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()  # noqa: S608  names come from the schema


def _damaged(path: Path, why: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path} cannot be used: {why}. Nothing was changed. Restore a backup, or move the file away to start afresh",
        metadata={"path": str(path), "cause": why},
    )


def schema_version(connection: sqlite3.Connection) -> int:
    """Answer the number of the newest migration applied; 0 for an empty file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations, each in a transaction together with the record that it was applied."""
    before = schema_version(connection)
    for migration in migrations():
        if migration.number > schema_version(connection):
            connection.execute("BEGIN IMMEDIATE")
            reach("migration.begun")
            try:
                for statement in split_statements(migration.script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {migration.number}")
                reach("migration.executed")
                connection.execute("COMMIT")
                reach("migration.committed")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if before:
                _log.info("store.migrated", schema=migration.number, step=migration.name)


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can neither write nor checkpoint."""
    connection = sqlite3.connect(
        f"file:{path.as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA cache_size = -16384")
    return connection
