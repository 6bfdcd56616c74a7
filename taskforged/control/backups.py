"""Backups: made on demand and by the clock, proved, rotated."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from taskforged.errors import FailedPreconditionError, ResourceExhaustedError
from taskforged.store.backup import (
    BackupError,
    BackupFile,
    backup_name,
    list_backups,
    partial,
    room_for,
    seal,
    sweep,
    why,
)
from taskforged.store.store import Store

__all__ = ["BackupStatus", "Backups"]

_log = structlog.get_logger(__name__)

_RETRY_S = 600.0
"""After a scheduled backup has failed; sooner where they are made more often."""


@dataclass(slots=True)
class BackupStatus:
    """What is known of backups: of the newest good one, and of the last attempt of this daemon.

    Attributes:
        last_at: of the newest good one, in microseconds; 0: there is none.
        last_path: of that.
        last_bytes: of that.
        failed_at: when the last attempt failed; 0: it did not.
        failure: why.
        made: since the start.
        failed: since the start.
        took_s: the last good one.
    """

    last_at: int = 0
    last_path: str = ""
    last_bytes: int = 0
    failed_at: int = 0
    failure: str = ""
    made: int = 0
    failed: int = 0
    took_s: float = 0.0


class Backups:
    """Makes and lists backups in one folder."""

    def __init__(self, *, store: Store, folder: Path, every_s: int, keep: int, spare: int = 0) -> None:
        """Create the keeper; `every_s` of 0 means that none is made by the clock, `spare` is what one leaves free."""
        self._store = store
        self._folder = folder
        self._every_s = every_s
        self._keep = keep
        self._spare = spare
        self._failed_mono = 0.0
        self._turn = asyncio.Lock()
        self.status = BackupStatus()

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    @property
    def every_s(self) -> int:
        """How often one is made by itself; 0: never."""
        return self._every_s

    async def start(self) -> None:
        """Look what is there."""
        found = await asyncio.to_thread(self._look)
        if found:
            self._note(found[0])

    def _look(self) -> Sequence[BackupFile]:
        try:
            sweep(self._folder)
            return list_backups(self._folder)
        except OSError as error:
            _log.warning("backup.folder_unusable", folder=str(self._folder), error=str(error))
            return []

    def _note(self, newest: BackupFile) -> None:
        self.status.last_at, self.status.last_bytes = newest.at, newest.size
        self.status.last_path = str(newest.path)

    async def list(self) -> Sequence[BackupFile]:
        """Answer the finished backups, newest first.

        Raises:
            FailedPreconditionError: the folder cannot be read.
        """
        try:
            return await asyncio.to_thread(list_backups, self._folder)
        except OSError as error:
            raise FailedPreconditionError(f"{self._folder} cannot be read: {error.strerror or error}") from error

    def is_due(self) -> bool:
        """Whether the clock asks for one."""
        if not self._every_s:
            return False
        now = time.time()
        pause_s = min(_RETRY_S, self._every_s)
        if self.status.failed_at and time.monotonic() < self._failed_mono + pause_s:
            return False
        # One from a time to come says nothing: the clock was wrong then, or was set back since.
        return not 0.0 <= now - self.status.last_at / 1e6 < self._every_s

    async def create_scheduled(self) -> None:
        """Make the one that the clock asks for, and remove the oldest ones beyond those to keep.

        Raises:
            TaskforgeError: it failed; nothing is removed.
        """
        await self.create()
        await asyncio.to_thread(self._rotate)

    def _rotate(self) -> None:
        for old in [one for one in list_backups(self._folder) if not one.is_upgrade][self._keep :]:
            old.path.unlink(missing_ok=True)
            _log.info("backup.removed", path=str(old.path))

    async def create(self) -> BackupFile:
        """Make a backup and prove it; one that comes while another is under way waits for it.

        Raises:
            ResourceExhaustedError: there is no room for it.
            FailedPreconditionError: the folder cannot be used, or the copy is damaged.
        """
        async with self._turn:
            began = time.monotonic()
            try:
                made = await self._create()
            except asyncio.CancelledError:  # whoever asked for it has gone, or the daemon stops: no fault
                _log.info("backup.cancelled", folder=str(self._folder))
                raise
            except BaseException as error:
                self._failed_mono = time.monotonic()
                self.status.failed += 1
                self.status.failed_at, self.status.failure = time.time_ns() // 1000, str(error) or type(error).__name__
                _log.error("backup.failed", folder=str(self._folder), error=self.status.failure)
                raise
            self.status.made += 1
            self.status.took_s = time.monotonic() - began
            self.status.failed_at, self.status.failure = 0, ""
            self._note(made)
            _log.info("backup.made", path=str(made.path), bytes=made.size, took_s=round(self.status.took_s, 3))
            return made

    async def _create(self) -> BackupFile:
        used = (await self._store.measure()).used_bytes
        try:
            path = await asyncio.to_thread(self._prepare, used)
            try:
                await self._store.copy(partial(path))
                await self._seal(path)
            finally:
                partial(path).unlink(missing_ok=True)
        except BackupError as error:
            raise FailedPreconditionError(str(error), reason="BACKUP_FAILED") from error
        except OSError as error:
            raise FailedPreconditionError(
                f"a backup could not be written to {self._folder}: {why(error)}", reason="BACKUP_FAILED"
            ) from error
        return next(one for one in await self.list() if one.path == path)

    async def _seal(self, path: Path) -> None:
        """Prove a copy; a large one takes minutes, and nobody waits for that when the daemon stops."""
        over = threading.Event()
        try:
            await asyncio.to_thread(seal, partial(path), path, over.is_set)
        except asyncio.CancelledError:
            over.set()
            raise

    def _prepare(self, used: int) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(self._folder)
        lacking = room_for(self._folder, used, self._spare)
        if lacking:
            raise ResourceExhaustedError(
                f"{self._folder} lacks {lacking >> 20:,} MiB for a backup: make room, or name another folder with"
                " [backup] folder",
                reason="NO_ROOM_FOR_BACKUP",
                metadata={"folder": str(self._folder), "lacking_bytes": str(lacking)},
            )
        while (path := self._folder / backup_name(time.time(), self._store.schema)).exists():
            time.sleep(0.1)  # two in one second
        return path
