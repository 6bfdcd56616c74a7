"""What a daemon refuses to start on, and how it says so: clearly, with its own exit code, without a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Daemon

EXIT_FAILED = 1
EXIT_CORRUPT = 65


def _refused(daemon: Daemon) -> tuple[int, str]:
    """Start a daemon that must refuse; answers exit code and log."""
    process = daemon.spawn()
    try:
        code = process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    log = daemon.log_text()
    assert "Traceback" not in log, log
    assert "daemon.cannot_start" in log, log
    return code, log


@pytest.fixture
def stopped() -> Iterator[Daemon]:
    """A daemon that has run and was stopped: its home has everything."""
    made = Daemon()
    try:
        made.start()
        assert made.terminate() == 0
        yield made
    finally:
        made.close()


async def test_second_daemon_on_one_home(daemon: Daemon) -> None:
    second = Daemon(daemon.home)
    second.log = daemon.home.with_name("second.log")
    code, log = await asyncio.to_thread(_refused, second)
    assert code == EXIT_FAILED
    assert f"pid {daemon.pid}" in log
    assert str(daemon.home) in log
    # The first one is unharmed: the second took nothing away, neither socket nor run file.
    assert (daemon.home / "taskforged.json").exists()
    assert await daemon.list_runs() == []


@pytest.mark.parametrize("door", ["GRPC", "HTTP"])
async def test_address_in_use(door: str) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = Daemon(env={f"TASKFORGE_{door}_LISTEN": address})
        try:
            code, log = await asyncio.to_thread(_refused, daemon)
            assert code == EXIT_FAILED
            assert address in log
            assert "in use" in log.lower() or "cannot listen" in log.lower(), log
            assert not (daemon.home / "taskforged.json").exists()
        finally:
            daemon.close()


async def test_address_of_another_daemon(daemon: Daemon) -> None:
    """Two grpc servers would share a port silently (SO_REUSEPORT)."""
    other = Daemon(env={"TASKFORGE_GRPC_LISTEN": daemon.tcp})
    try:
        code, log = await asyncio.to_thread(_refused, other)
        assert code == EXIT_FAILED
        assert daemon.tcp in log
    finally:
        other.close()


def test_stale_files_of_a_killed_daemon_do_not_matter(stopped: Daemon) -> None:
    stopped.start()
    stopped.kill()
    left = set(os.listdir(stopped.home))
    assert {"taskforged.json", "taskforged.sock", "taskforged.lock"} <= left
    stopped.start()
    assert stopped.info["boot_epoch"] == 3
    assert stopped.terminate() == 0


def test_database_of_a_newer_version(stopped: Daemon) -> None:
    database = stopped.home / "taskforge.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 9999")
    before = database.read_bytes()
    code, log = _refused(stopped)
    assert code == EXIT_CORRUPT
    assert "newer" in log
    assert database.read_bytes() == before, "what cannot be read must not be touched"


def _overwrite(database: Path) -> None:
    with database.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for offset in range(4096, size, 4096):
            file.seek(offset)
            file.write(b"\x5a" * 512)


def _replace(database: Path) -> None:
    database.write_bytes(b"this is not a database\n" * 1000)


def _other_program(database: Path) -> None:
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA application_id = 42")
        connection.execute("CREATE TABLE notes (text TEXT)")


@pytest.mark.parametrize("damage", [_overwrite, _replace, _other_program])
def test_damaged_database(stopped: Daemon, damage) -> None:
    database = stopped.home / "taskforge.db"
    for name in ("taskforge.db-wal", "taskforge.db-shm"):
        (stopped.home / name).unlink(missing_ok=True)
    damage(database)
    code, log = _refused(stopped)
    assert code == EXIT_CORRUPT, log
    assert str(database) in log


def test_lost_key(stopped: Daemon) -> None:
    (stopped.home / "master.key").write_text("not a key\n")
    code, log = _refused(stopped)
    assert code == EXIT_CORRUPT
    assert "master.key" in log
