"""A copy to a slow disk holds commits up for a while at most, and then says why it was given up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskforged.store import backup
from taskforged.store.backup import BackupError, inspect_copy
from taskforged.store.store import Store
from taskforged.store.threads import Guests


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "taskforge.db", synchronous="OFF")
    await store.start()

    def grow(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE filler (bytes)")
        connection.executemany("INSERT INTO filler VALUES (randomblob(1048576))", [()] * 4)

    await store.journal.execute(grow)
    yield store
    await store.stop()


class SlowClock:
    """Time in which each look at the clock costs so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._ticks = itertools.count(0.0, seconds)

    def monotonic(self) -> float:
        return next(self._ticks)


@pytest.mark.parametrize(("step_s", "gives_up"), [(0.6, True), (5.0, True), (0.2, False), (0.0005, False)])
async def test_a_disk_that_is_too_slow_is_named(store: Store, tmp_path: Path, monkeypatch, step_s, gives_up) -> None:
    turns: list[float] = []
    monkeypatch.setattr(backup, "time", SlowClock(step_s))
    monkeypatch.setattr("taskforged.store.threads.Guests.serve", lambda _self, _connection, s: turns.append(s))
    if gives_up:
        with pytest.raises(BackupError, match=r"is too slow: 64 KiB took .* \[backup\] folder"):
            await store.copy(tmp_path / "copy.db")
        assert sum(turns) <= backup._SLOW_S_MAX + 2 * step_s
    else:
        await store.copy(tmp_path / "copy.db")
        inspect_copy(tmp_path / "copy.db")
        assert all(backup._WORK_S <= one <= max(step_s, backup._WORK_S) + 1e-6 for one in turns[:-1])


class Hiccups:
    """Time in which a step takes 2 ms, and one of so many 0.4 s."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._looks, self._now = 0, 0.0

    def monotonic(self) -> float:
        self._looks += 1
        self._now += 0.4 if self._looks % (2 * self._every) == 0 else 0.002  # at the begin of a step, and at its end
        return self._now


@pytest.mark.parametrize(("every", "gives_up"), [(400, False), (20, True)])
async def test_a_large_copy_is_not_given_up_for_a_hiccup_now_and_then(
    tmp_path: Path, monkeypatch, every, gives_up
) -> None:
    monkeypatch.setattr(backup, "time", Hiccups(every))
    monkeypatch.setattr(Guests, "serve", lambda *_: None)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        pace = backup._Pace(connection, tmp_path, Guests())
        with pytest.raises(BackupError) if gives_up else contextlib.nullcontext():
            for _ in range(20_000):
                pace(0, 0, 0)


async def test_commits_go_on_beside_a_copy(store: Store, tmp_path: Path) -> None:
    copying = asyncio.ensure_future(store.copy(tmp_path / "copy.db"))
    during = 0
    while not copying.done():
        await store.journal.execute(lambda c, n=during: c.execute("INSERT INTO meta VALUES (?, '')", (f"k{n}",)))
        during += not copying.done()
    await copying
    assert during > 5
    inspect_copy(tmp_path / "copy.db")
