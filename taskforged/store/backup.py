"""Copies of the database: made while it is in use, proved before they get their name.

The copy is made by SQLite's backup API on the writing connection itself, a few pages at a time, and the journal's
commits are executed between two steps. So there is no second connection whose reading would hold up checkpoints and
let the log grow, and none that a commit could force to begin again: what the writing connection changes, SQLite
carries over into the copy, which holds every commit up to its last step. (`VACUUM INTO` reads in one long transaction
and does not sync what it writes.)
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import os
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskforged.errors import CorruptStoreError, FailedPreconditionError
from taskforged.failpoints import reach
from taskforged.store.database import APPLICATION_ID
from taskforged.store.threads import Guests

__all__ = [
    "BackupError",
    "BackupFile",
    "Inspection",
    "back_up_before_upgrade",
    "backup_name",
    "copy_database",
    "copy_whole",
    "inspect_copy",
    "list_backups",
    "newest_first",
    "partial",
    "room_for",
    "seal",
    "sweep",
    "sync_folder",
    "why",
]

_PAGES = 16
"""Pages in one step: 64 KiB, which is as long as a slow disk holds up commits before anybody can look at the clock."""

_WORK_S = 0.001
"""After so much work it is the turn of others, for as long as it took."""

_SLOW_S = 0.25
_SLOW_S_MAX = 3.0
"""A step that takes longer is slow, and a copy whose slow steps took so much longer than the others is given up: a
large one may meet with a hiccup now and then."""

_TARGET_CACHE_PAGES = 32
"""What SQLite holds back of a copy, and writes at the end in one go."""

_STEPS = 100_000
"""Instructions of SQLite's machine between two looks whether a check is to end: some milliseconds."""

_NAME = re.compile(r"taskforge-(\d{8}T\d{6}Z)-(\d+)(-upgrade)?\.db", re.ASCII)
_PARTIAL = ".partial"


class BackupError(Exception):
    """A copy could not be made, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A finished backup. `at` is in microseconds; `is_upgrade`: made before a migration."""

    path: Path
    at: int
    schema: int
    is_upgrade: bool
    size: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a copy holds, after it was checked."""

    schema: int
    runs: int
    events: int
    workflows: int
    secrets: int
    newest_at: int


def backup_name(now_s: float, schema: int, *, is_upgrade: bool = False) -> str:
    """Answer the name of a backup: its time in UTC and the version of the schema."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    return f"taskforge-{stamp}-{schema}{'-upgrade' if is_upgrade else ''}.db"


def list_backups(folder: Path) -> list[BackupFile]:
    """Answer the finished backups of a folder, newest first. Only names that are ours count.

    Those of a time to come were made while the clock was wrong, and count as older than all others.
    """
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            match = _NAME.fullmatch(entry.name)
            if match is not None and entry.is_file(follow_symlinks=False):
                at = int(_epoch_s(match[1])) * 1_000_000
                size = entry.stat(follow_symlinks=False).st_size
                found.append(BackupFile(folder / entry.name, at, int(match[2]), bool(match[3]), size))
    return newest_first(found)


def newest_first(files: list[BackupFile], now_s: float | None = None) -> list[BackupFile]:
    """Answer files in order of their time; those of a time to come are last."""
    until = ((time.time() if now_s is None else now_s) + _CLOCK_STEP_S) * 1e6
    return sorted(files, key=lambda one: (one.at <= until, one.at, one.path.name), reverse=True)


_CLOCK_STEP_S = 86_400.0
"""A clock that is set right may go back a little; more than that is a time to come."""


def _epoch_s(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))


def sweep(folder: Path) -> None:
    """Remove what copies that were cut short have left."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            name = entry.name.removesuffix("-journal")
            if name.endswith(_PARTIAL) and _NAME.fullmatch(name.removesuffix(_PARTIAL).lstrip(".")):
                (folder / entry.name).unlink(missing_ok=True)


def partial(path: Path) -> Path:
    """Answer the name that a copy has while it is being made."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def room_for(folder: Path, needed: int, spare: int = 0) -> int:
    """Answer how many bytes a folder lacks for a copy of `needed` that leaves `spare` free; 0: there is room."""
    found = os.statvfs(folder)
    return max(0, needed + max(_SPARE, spare) - found.f_bavail * found.f_frsize)


_SPARE = 16 << 20


def back_up_before_upgrade(connection: sqlite3.Connection, folder: Path) -> None:
    """Make a backup of a database that is about to be migrated; keeps the newest two of this kind.

    Raises:
        FailedPreconditionError: there is no room, or the folder cannot be used. Nothing was changed.
        CorruptStoreError: the database is damaged.
    """
    schema, pages, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "page_count", "page_size")
    )
    name = folder / backup_name(time.time(), schema, is_upgrade=True)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)
        lacking = room_for(folder, pages * size)
        if lacking:
            raise _no_upgrade(f"{folder} lacks {lacking >> 20:,} MiB for it", schema)
        copy_whole(connection, partial(name))
        seal(partial(name), name)
    except BackupError as error:
        raise CorruptStoreError(f"the database cannot be upgraded: {error}. Nothing was changed") from error
    except OSError as error:
        raise _no_upgrade(f"{folder}: {why(error)}", schema) from error
    finally:
        partial(name).unlink(missing_ok=True)
    for old in [one for one in list_backups(folder) if one.is_upgrade][_UPGRADES_KEPT:]:
        old.path.unlink(missing_ok=True)


_UPGRADES_KEPT = 2


def _no_upgrade(why: str, schema: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the database has schema {schema} and must be upgraded, but it cannot be backed up before: {why}. Nothing was"
        " changed. Make room, name another folder with [backup] folder, or go without:"
        " TASKFORGE_BACKUP_BEFORE_UPGRADE=false",
        reason="NO_BACKUP_BEFORE_UPGRADE",
        metadata={"schema": str(schema)},
    )


def why(error: OSError) -> str:
    """Say what is wrong with the folder, and where the cause may be none of the disk's."""
    if error.errno == errno.EROFS:
        return f"{error.strerror}; a service may write only where ReadWritePaths= of its unit says, see docs/storage.md"
    return error.strerror or str(error)


def copy_database(connection: sqlite3.Connection, path: Path, guests: Guests) -> None:
    """Copy page by page; between two steps others may use the connection.

    Raises:
        BackupError: it was cut short, or the disk that it goes to is too slow.
        sqlite3.Error: it could not be read or written.
    """
    _copy(connection, path, _PAGES, _Pace(connection, path.parent, guests))


class _Pace:
    """Lets others in between two steps, and gives up when a slow disk would hold them up for too long."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, guests: Guests) -> None:
        self._connection = connection
        self._folder = folder
        self._guests = guests
        self._slow_s = 0.0
        self._began = time.monotonic()

    def __call__(self, _status: int, _remaining: int, _total: int) -> None:
        if self._guests.is_aborted:
            raise BackupError("the daemon is stopping")
        took_s = time.monotonic() - self._began
        if took_s < _WORK_S:
            return
        self._slow_s = self._slow_s + took_s if took_s > _SLOW_S else max(0.0, self._slow_s - took_s)
        if self._slow_s > _SLOW_S_MAX:
            raise BackupError(
                f"{self._folder} is too slow: 64 KiB took {took_s:.1f} s to write, and commits wait meanwhile;"
                " name a folder on another disk with [backup] folder"
            )
        self._guests.serve(self._connection, took_s)
        self._began = time.monotonic()


def copy_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Copy in one go, while nobody else uses the connection."""
    _copy(connection, path, -1, None)


def _copy(connection: sqlite3.Connection, path: Path, pages: int, progress: Callable[..., Any] | None) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    target = sqlite3.connect(path, isolation_level=None)
    try:
        target.execute("PRAGMA synchronous = OFF")  # synced once, when it is whole
        target.execute("PRAGMA journal_mode = OFF")
        target.execute(f"PRAGMA cache_size = {_TARGET_CACHE_PAGES}")
        connection.backup(target, pages=pages, progress=progress)
    finally:
        target.close()


def seal(copy: Path, name: Path, is_aborted: Callable[[], bool] = lambda: False) -> Inspection:
    """Sync a copy, check it, and give it its name: whatever has that name is whole.

    Raises:
        BackupError: the copy is not what it should be, or `is_aborted` said so in between.
    """
    reach("backup.copied")
    fd = os.open(copy, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    found = inspect_copy(copy, is_aborted)
    reach("backup.proved")
    copy.rename(name)
    reach("backup.named")
    sync_folder(name.parent)
    return found


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def inspect_copy(path: Path, is_aborted: Callable[[], bool] = lambda: False) -> Inspection:
    """Check a file that nobody writes to, from its first page to its last.

    Raises:
        BackupError: it is no database of ours, or damaged, or `is_aborted` said so in between.
    """
    if not path.is_file():
        raise BackupError(f"there is no file {path}")
    if path.with_name(path.name + "-wal").exists() and path.with_name(path.name + "-wal").stat().st_size:
        raise BackupError(f"{path} has a log beside it, {path.name}-wal: it is in use, or was copied by hand")
    escaped = path.as_posix().replace("?", "%3f").replace("#", "%23")
    try:
        connection = sqlite3.connect(f"file:{escaped}?mode=ro&immutable=1", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise BackupError(f"{path} cannot be opened: {error}") from error
    connection.set_progress_handler(is_aborted, _STEPS)
    try:
        return _inspect(connection, path)
    except sqlite3.Error as error:
        if is_aborted():
            raise BackupError("the daemon is stopping") from error
        raise BackupError(f"{path} is damaged: {error}") from error
    finally:
        connection.close()


def _inspect(connection: sqlite3.Connection, path: Path) -> Inspection:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise BackupError(f"{path} is not a database of Taskforge")
    faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if faults != ["ok"]:
        raise BackupError(f"{path} is damaged: {'; '.join(map(str, faults))[:300]}")
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise BackupError(f"{path} is damaged: a row of {orphan[0]} refers to one of {orphan[2]} that is not there")
    runs, events, workflows, secrets = [
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  our own names
        for table in ("runs", "events", "workflows", "secrets")
    ]
    newest = connection.execute("SELECT created_at FROM runs ORDER BY no DESC LIMIT 1").fetchone()
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    return Inspection(schema, runs, events, workflows, secrets, newest[0] if newest else 0)
