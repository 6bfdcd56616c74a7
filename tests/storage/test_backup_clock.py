"""Backups while the clock jumps, the disk is nearly full, or the daemon stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import time
from types import SimpleNamespace

import pytest

from taskforged.control import backups as module
from taskforged.control.backups import Backups
from taskforged.errors import FailedPreconditionError, ResourceExhaustedError
from taskforged.store import backup
from taskforged.store.backup import BackupError, backup_name, inspect_copy, list_backups
from taskforged.store.store import Store

YEAR_S = 365 * 86_400


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "taskforge.db")
    await store.start()
    yield store
    await store.stop()


def keeper(store, folder, **more):
    return Backups(store=store, folder=folder, **{"every_s": 3600, "keep": 3, **more})


async def test_backups_of_a_time_to_come_keep_nobody_from_making_one(store, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    ahead = [folder / backup_name(time.time() + YEAR_S + day * 86_400, store.schema) for day in range(4)]
    for path in ahead:
        path.write_bytes(b"made while the clock was a year ahead")
    backups = keeper(store, folder)
    await backups.start()
    assert backups.is_due()
    await backups.create_scheduled()
    assert not backups.is_due()
    made = list_backups(folder)[0]
    assert made.path == backups.folder / made.path.name
    assert str(made.path) == backups.status.last_path, "what is newest is what was made last"
    assert inspect_copy(made.path).schema == store.schema
    assert [path.exists() for path in ahead] == [False, False, True, True], "the oldest of the others made room"


async def test_a_clock_that_is_set_back_does_not_stop_them(store, tmp_path, monkeypatch):
    backups = keeper(store, tmp_path / "backups")
    await backups.start()
    await backups.create_scheduled()
    assert not backups.is_due()
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now - 3 * YEAR_S)
    assert backups.is_due()
    await backups.create_scheduled()
    assert not backups.is_due()
    assert len(list_backups(backups.folder)) == 2


async def test_one_that_failed_is_tried_again_whatever_the_clock_says(store, tmp_path, monkeypatch):
    backups = keeper(store, tmp_path / "backups")
    (tmp_path / "backups").write_text("in the way")
    await backups.start()
    with pytest.raises(Exception, match="could not be written"):
        await backups.create_scheduled()
    assert not backups.is_due(), "not at once"
    (tmp_path / "backups").unlink()
    now, ticks = time.time(), time.monotonic()
    monkeypatch.setattr(module.time, "time", lambda: now - YEAR_S)
    monkeypatch.setattr(module.time, "monotonic", lambda: ticks + 3600)
    assert backups.is_due()


async def test_a_backup_leaves_the_room_that_new_work_needs(store, tmp_path, monkeypatch):
    spare, used = 100 << 20, (await store.measure()).used_bytes
    free = used + spare - 1
    monkeypatch.setattr(backup.os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    with pytest.raises(ResourceExhaustedError, match="lacks"):
        await keeper(store, tmp_path / "backups", spare=spare).create()
    free += 1
    await keeper(store, tmp_path / "backups", spare=spare).create()


async def test_the_check_of_a_copy_ends_when_the_daemon_stops(store, tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "_STEPS", 1)
    reached, told = asyncio.Event(), []
    loop, inspect = asyncio.get_running_loop(), backup._inspect

    def slow(connection, path):
        loop.call_soon_threadsafe(reached.set)
        try:
            while True:
                inspect(connection, path)
        except Exception as error:
            told.append(error)
            raise

    monkeypatch.setattr(backup, "_inspect", slow)
    backups = keeper(store, tmp_path / "backups")
    making = asyncio.create_task(backups.create())
    await reached.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await asyncio.wait_for(loop.shutdown_default_executor(), 30)
    assert told
    assert os.listdir(backups.folder) == []


def test_an_aborted_check_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "_STEPS", 1)
    path = tmp_path / "taskforge.db"

    async def make():
        store = Store(path)
        await store.start()
        await store.stop()

    asyncio.run(make())
    inspect_copy(path)
    with pytest.raises(BackupError, match="stopping"):
        inspect_copy(path, lambda: True)


async def test_a_folder_that_a_service_may_not_write_to_is_explained(store, tmp_path, monkeypatch):
    def read_only(_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module, "sweep", read_only)
    monkeypatch.setattr(backup, "sweep", read_only)
    with pytest.raises(FailedPreconditionError, match="ReadWritePaths="):
        await keeper(store, tmp_path / "backups").create()
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        with pytest.raises(FailedPreconditionError, match="ReadWritePaths="):
            backup.back_up_before_upgrade(connection, tmp_path / "backups")
