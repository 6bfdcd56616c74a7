"""The journal: group commit, isolation of neighbours, cancellation, failures of the disk."""

import asyncio
import sqlite3

import pytest

from taskforged.errors import ConflictError, NotFoundError, ResourceExhaustedError, UnavailableError
from taskforged.store.changes import RunChange
from taskforged.store.journal import Write
from taskforged.store.store import Store


@pytest.fixture
async def store(tmp_path):
    failures = []
    store = Store(tmp_path / "taskforge.db", on_failure=failures.append)
    store.failures = failures
    await store.start()
    yield store
    await store.stop()


def put(key, value="v"):
    return lambda connection: connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value)).rowcount


async def keys(store):
    return [row[0] for row in await store.read(lambda c: c.execute("SELECT key FROM meta ORDER BY key").fetchall())]


async def test_writes_that_wait_share_one_commit(store):
    before = store.journal.stats.commits
    futures = [store.journal.submit(Write(function=put(f"k{i:03}"))) for i in range(200)]
    assert await asyncio.gather(*futures) == [1] * 200
    assert store.journal.stats.commits - before == 1
    assert len(await keys(store)) == 200


async def test_a_failing_write_reaches_only_its_own_caller(store):
    await store.journal.execute(put("taken"))

    def refuse(connection):
        connection.execute("INSERT INTO meta VALUES ('trace', 'v')")
        raise NotFoundError("no")

    futures = [
        store.journal.submit(Write(function=put("a"))),
        store.journal.submit(Write(function=put("taken"))),
        store.journal.submit(Write(function=refuse)),
        store.journal.submit(Write(function=put("b"))),
    ]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[0] == results[3] == 1
    assert isinstance(results[1], ConflictError)
    assert isinstance(results[2], NotFoundError)
    assert await keys(store) == ["a", "b", "taken"]


async def test_a_stale_guard_undoes_its_own_write_and_nothing_else(store):
    stale = RunChange(update=("RUNNING", 2, bytes(32), 0, 1, None, 77, 1))
    futures = [
        store.journal.submit(Write(function=put("mine"), changes=[stale])),
        store.journal.submit(Write(function=put("other"))),
    ]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[0], ConflictError)
    assert await keys(store) == ["other"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_caller_leaves_no_transaction_open(store, turns):
    task = asyncio.ensure_future(store.journal.execute(put("x")))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store.journal.execute(put("y"))
    assert not await store._writer.run(lambda c: c.in_transaction)
    stored = await keys(store)
    assert "y" in stored and (task.cancelled() or "x" in stored)


async def test_a_cancelled_reader_leaves_its_connection_usable(store):
    for turns in range(4):
        task = asyncio.ensure_future(store.read(lambda c: c.execute("SELECT count(*) FROM runs").fetchone()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert await keys(store) == []


async def test_stop_commits_what_was_handed_in(tmp_path):
    store = Store(tmp_path / "taskforge.db")
    await store.start()
    futures = [store.journal.submit(Write(function=put(f"k{i}"))) for i in range(50)]
    await store.stop()
    assert [f.result() for f in futures] == [1] * 50
    with pytest.raises(UnavailableError):
        await store.journal.execute(put("late"))
    check = sqlite3.connect(tmp_path / "taskforge.db")
    assert check.execute("SELECT count(*) FROM meta").fetchone()[0] == 50
    check.close()


async def test_a_full_disk_fails_the_write_and_heals(store):
    """`max_page_count` makes SQLite itself answer SQLITE_FULL, as a full disk does."""
    await store._writer.run(lambda c: c.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(ResourceExhaustedError, match="disk is full") as caught:
        await store.journal.execute(put("big", "x" * 5_000_000))
    assert caught.value.reason == "DISK_FULL"
    assert store.failures == []
    await store._writer.run(lambda c: c.execute("PRAGMA max_page_count = 1000000"))
    await store.journal.execute(put("small"))
    assert await keys(store) == ["small"]


async def test_an_io_error_stops_the_journal_for_good(store):
    def broken(connection):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    with pytest.raises(UnavailableError):
        await store.journal.execute(broken)
    assert len(store.failures) == 1
    with pytest.raises(UnavailableError):
        await store.journal.execute(put("after"))


async def test_too_many_waiting_writes_are_refused(store, monkeypatch):
    monkeypatch.setattr("taskforged.store.journal.WAITING_MAX", 3)
    futures = [store.journal.submit(Write(function=put(f"k{i}"))) for i in range(5)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[:3] == [1, 1, 1]
    assert all(isinstance(r, ResourceExhaustedError) for r in results[3:])


async def test_the_proxy_still_has_what_whole_transactions_need(store):
    """aiosqlite's `_execute` and `_conn` are private; if they go, this says so before anything else does."""
    import aiosqlite

    assert asyncio.iscoroutinefunction(aiosqlite.Connection._execute)
    assert isinstance(aiosqlite.Connection._conn, property)
