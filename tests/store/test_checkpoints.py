"""The log is moved into the file between commits, stays short beside readers, and what goes wrong is not swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskforged.errors import UnavailableError
from taskforged.store import checkpoints
from taskforged.store.checkpoints import Checkpointer
from taskforged.store.inspection import Inspection
from taskforged.store.store import Store

FRAME = 4096 + 24
SPIN = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, (SELECT 1 FROM meta)"
"""Reads a table and never ends."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    failures: list[BaseException] = []
    store = Store(tmp_path / "taskforge.db", synchronous="OFF", on_failure=failures.append)
    store.failures = failures  # type: ignore[attr-defined]
    await store.start()
    await store.journal.execute(lambda c: c.execute("CREATE TABLE filler (no INTEGER PRIMARY KEY, bytes)"))
    yield store
    await store.stop()


async def fill(store: Store, mib: float, *, rows: int = 16) -> None:
    """Write so much, in commits of about 256 KiB."""
    size = (256 << 10) // rows

    def insert(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO filler (bytes) VALUES (randomblob(?))", [(size,)] * rows)

    for _ in range(int(mib * 4)):
        await store.journal.execute(insert)


def wal_pages(store: Store) -> int:
    return store.sizes()[1] // FRAME


async def test_the_log_stays_short_whatever_is_written(store: Store) -> None:
    moves = store.journal.checkpointer
    for rows in (16, 1, 256, 4):  # what a change costs is another thing each time
        await fill(store, 14, rows=rows)
    assert wal_pages(store) < 1.5 * checkpoints._PAGES
    assert 3 <= moves.whole <= 40
    assert moves.partial == moves.failed == 0


async def test_small_commits_are_not_followed_by_a_checkpoint_each(store: Store) -> None:
    for number in range(1500):
        await store.journal.execute(
            lambda c, number=number: c.execute("INSERT INTO meta VALUES (?, '')", (f"k{number}",))
        )
    moves = store.journal.checkpointer
    assert moves.whole <= 6
    assert wal_pages(store) < 1.5 * checkpoints._PAGES


async def test_who_waits_for_a_commit_does_not_wait_for_the_checkpoint(store: Store, monkeypatch) -> None:
    begun, over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    run = Checkpointer.run

    def slow(self: Checkpointer, connection: sqlite3.Connection) -> checkpoints.Checkpoint:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(over.wait(), loop).result(20)
        return run(self, connection)

    monkeypatch.setattr(Checkpointer, "run", slow)
    monkeypatch.setattr(Checkpointer, "is_due", lambda *_: True)
    async with asyncio.timeout(20):
        await store.journal.execute(lambda c: c.execute("INSERT INTO meta VALUES ('a', '')"))
        await begun.wait()
        over.set()


async def test_a_reading_that_lasts_gives_way_when_the_log_is_long(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("taskforged.store.store.READ_S_MAX", 600.0)
    with pytest.raises(UnavailableError, match="has become too long") as caught:
        async with asyncio.timeout(60):
            reading = asyncio.ensure_future(store.read(lambda c: c.execute(SPIN).fetchone()))
            try:
                await asyncio.sleep(0.05)
                while not reading.done():
                    await fill(store, 1)
            finally:
                if not reading.done():
                    reading.cancel()
            await reading
    assert caught.value.reason == "READ_GAVE_WAY"
    moves = store.journal.checkpointer
    assert moves.partial
    assert wal_pages(store) < 64 * 256, "the log is at most 64 MiB"
    before = moves.whole
    await fill(store, 24)
    assert moves.whole > before, "and short again when the reader has gone"
    assert not moves.is_pressed


async def test_a_doctors_reading_gives_way_too(store: Store) -> None:
    async with Inspection(store.path, store.must_end) as inspection, asyncio.timeout(60):
        reading = asyncio.ensure_future(inspection._ask(lambda c: c.execute(SPIN).fetchone(), 600.0))
        await asyncio.sleep(0.05)
        while not reading.done():
            await fill(store, 1)
        with pytest.raises(UnavailableError, match="the log had to be cut"):
            await reading
    assert wal_pages(store) < 64 * 256


async def test_a_reading_without_an_end_is_ended(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("taskforged.store.store.READ_S_MAX", 0.2)
    with pytest.raises(UnavailableError, match="did not answer within 0.2 s") as caught:
        await store.read(lambda c: c.execute(SPIN).fetchone())
    assert caught.value.reason == "READ_TOO_LONG"
    assert await store.read(lambda c: c.execute("SELECT count(*) FROM meta").fetchone()) is not None


async def test_readers_that_follow_each_other_without_a_pause_do_not_keep_the_log(store: Store) -> None:
    await fill(store, 4)
    over = False

    async def read() -> None:
        while not over:
            with contextlib.suppress(UnavailableError):
                await store.read(lambda c: c.execute("SELECT sum(length(bytes)) FROM filler").fetchone())

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await fill(store, 64)
    over = True
    await asyncio.gather(*readers)
    assert wal_pages(store) < 64 * 256
    assert store.journal.checkpointer.whole >= 2


@pytest.mark.parametrize(("code", "stops"), [("SQLITE_IOERR_FSYNC", True), ("SQLITE_FULL", False)])
async def test_a_disk_that_fails_in_a_checkpoint_stops_the_journal_and_a_full_one_does_not(
    store: Store, monkeypatch, code: str, stops: bool
) -> None:
    error = sqlite3.OperationalError("said by the test")
    error.sqlite_errorname = code

    tried = threading.Event()

    def broken(*_: object) -> None:
        tried.set()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_execute", broken)
        patch.setattr(Checkpointer, "is_due", lambda *_: True)
        await store.journal.execute(lambda c: c.execute("INSERT INTO meta VALUES ('a', '')"))
        async with asyncio.timeout(20):
            while not tried.is_set():
                await asyncio.sleep(0.01)
    write = store.journal.execute(lambda c: c.execute("INSERT INTO meta VALUES ('b', '')"))
    if stops:
        with pytest.raises(UnavailableError):
            await write
        assert store.failures == [error]
    else:
        await write
        assert store.failures == []
