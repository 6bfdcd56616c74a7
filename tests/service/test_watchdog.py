"""READY and STOPPING are told; the watchdog hears of progress, and only of progress."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator

import pytest
from harness import Daemon
from service.manager import Notifications

from taskforged import daemon as module
from taskforged.config import load_config
from taskforged.store.store import Store
from taskforged.systemd import ServiceManager

WATCHDOG_S = 1.0


@pytest.fixture
def heard() -> Iterator[tuple[Daemon, Notifications]]:
    daemon = Daemon(env={"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)), "TASKFORGE_EXECUTOR_GRACE": "7"})
    manager = Notifications(daemon.home.parent)
    daemon.env["NOTIFY_SOCKET"] = str(manager.path)
    try:
        daemon.start()
        yield daemon, manager
    finally:
        daemon.close()
        manager.close()


def test_a_life_in_notifications(heard: tuple[Daemon, Notifications]) -> None:
    daemon, manager = heard
    ready = manager.next()
    assert ready.startswith("READY=1\nSTATUS=")
    assert daemon.http in ready
    assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
    daemon.terminate()
    told = manager.drain()
    stopping = [one for one in told if one.startswith("STOPPING=1")]
    assert len(stopping) == 1
    assert "EXTEND_TIMEOUT_USEC=37000000" in stopping[0], "the grace of running steps, and some time beside it"


def test_a_stopped_process_is_not_alive(heard: tuple[Daemon, Notifications]) -> None:
    daemon, manager = heard
    manager.until("WATCHDOG=1")
    daemon.process.send_signal(signal.SIGSTOP)
    manager.drain()
    with pytest.raises(TimeoutError):
        manager.next(timeout_s=2 * WATCHDOG_S)
    daemon.process.send_signal(signal.SIGCONT)
    manager.until("WATCHDOG=1")


def test_a_journal_that_hangs_is_not_alive(heard: tuple[Daemon, Notifications]) -> None:
    """Somebody holds the database's lock: the loop goes round, and nothing is committed."""
    daemon, manager = heard
    manager.until("WATCHDOG=1")
    database = daemon.home / "taskforge.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        daemon.terminate(wait=False)  # the stop is recorded: a write
        deadline = time.monotonic() + 20
        while "watchdog.starved" not in daemon.log_text():
            assert time.monotonic() < deadline, daemon.tail()
            time.sleep(0.02)
        manager.drain()
        other.execute("ROLLBACK")
    assert daemon.wait() == 0


def test_without_a_manager_nothing_is_told(heard: tuple[Daemon, Notifications]) -> None:
    daemon, manager = heard
    daemon.terminate()
    manager.drain()
    del daemon.env["NOTIFY_SOCKET"], daemon.env["WATCHDOG_USEC"]
    daemon.start()
    assert manager.drain() == []
    assert daemon.terminate() == 0


def test_the_first_line_names_what_it_is_made_of(heard: tuple[Daemon, Notifications]) -> None:
    daemon, _ = heard
    log = daemon.log_text()
    for part in ('"sqlite": "3.', '"schema": ', '"python": "3.', '"tzdata": "', '"sqlite_has_wal_reset_bug": '):
        assert part in log, part


async def test_a_start_that_upgrades_a_large_database_asks_for_time(tmp_path, monkeypatch) -> None:
    told: list[str] = []
    enough = asyncio.Event()

    class Manager(ServiceManager):
        def notify(self, *lines: str) -> None:
            told.extend(lines)
            if len(told) == 3:
                enough.set()

    start = Store.start

    async def slow(store: Store) -> None:
        await asyncio.wait_for(enough.wait(), 20)
        await start(store)

    monkeypatch.setattr(module, "_PATIENCE_S", 0.04)
    monkeypatch.setattr(Store, "start", slow)
    made = module.Daemon(load_config(tmp_path, None), manager=Manager())
    async with made._store():
        count = len(told)
        assert set(told) == {"EXTEND_TIMEOUT_USEC=40000"}
        await asyncio.sleep(0.1)
        assert len(told) == count, "once it is open, nothing more is asked for"
