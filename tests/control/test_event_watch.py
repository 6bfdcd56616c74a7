"""Watchers of events beside retention, and with nothing to see: never a silent gap, and a sign of life."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskforged.control import event_watch
from taskforged.control.event_watch import EventWatches
from taskforged.errors import OutOfRangeError, ResourceExhaustedError, UnavailableError
from taskforged.host.feed import Feed
from taskforged.store.events import EventFilter, insert_event
from taskforged.store.rows import EventRow
from taskforged.store.store import Store

ALL = EventFilter(1)
PACE_S = 0.001


class Summaries:
    """Stands for the use case that shows events: answers rows as they are."""

    async def summary(self, row: EventRow) -> Any:
        await asyncio.sleep(0)
        return row


class World:
    def __init__(self, store: Store) -> None:
        self.store, self.feed = store, Feed()
        self.watches = EventWatches(store, self.feed, Summaries())  # type: ignore[arg-type]
        self.count = 0

    async def add(self, count: int) -> None:
        """Store events of a kind that may go at any time; their positions are 1, 2, 3 and so on."""
        numbers = range(self.count + 1, self.count + count + 1)
        self.count += count
        texts = ("webhook", "p", "REJECTED", "", "", "", "", "{}", "{}")
        rows = [EventRow(no, f"evt_{no}", 1, *texts, b"", 0, "", "", "[]", 1) for no in numbers]
        await self.store.journal.execute(lambda c: [insert_event(c, row) for row in rows] and None)

    async def remove(self, *numbers: int) -> None:
        await self.store.journal.execute(
            lambda c: c.executemany("DELETE FROM events WHERE no = ?", [(no,) for no in numbers]).rowcount
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store(tmp_path / "t.db", synchronous="OFF")
    await store.start()
    made = World(store)
    yield made
    made.feed.close()
    await store.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_what_retention_takes_meanwhile_is_counted_or_refused(world: World, monkeypatch, seed: int) -> None:
    """Every position up to a cursor was sent, or counted as removed, or lies below a floor that was told."""
    chance = random.Random(seed)
    monkeypatch.setattr(event_watch, "_PORTION", 7)
    monkeypatch.setattr(event_watch, "_SPAN", 20)
    goal = 400
    told = {"removed": 0, "floors": 0, "sent": 0}

    async def watch() -> None:
        cursor = 0
        while cursor < goal:
            left = chance.randint(1, 30)
            with contextlib.suppress(OutOfRangeError):
                stream = world.watches.watch(ALL, str(cursor))
                try:
                    async for portion in stream:
                        assert int(portion.cursor) - cursor == len(portion.entries) + portion.removed
                        assert [at for at, _ in portion.entries] == [str(row.no) for _, row in portion.entries]
                        cursor = int(portion.cursor)
                        told["removed"] += portion.removed
                        told["sent"] += len(portion.entries)
                        left -= 1
                        await asyncio.sleep(PACE_S * chance.randint(0, 3))
                        if not left or cursor >= goal:
                            break
                except OutOfRangeError as error:
                    floor = int(error.metadata["oldest_cursor"])
                    assert floor > cursor, "the floor lies ahead of who is told of it"
                    told["floors"] += 1
                    cursor = floor
                    raise
                finally:
                    await stream.aclose()  # type: ignore[attr-defined]

    async def prune() -> None:
        gone = 0
        while True:
            gone += chance.randint(0, 12)
            middle = [chance.randint(1, max(1, world.count)) for _ in range(3)]
            await world.remove(*range(max(1, gone - 12), min(gone, world.count - 30)), *middle)
            await asyncio.sleep(2 * PACE_S)

    async def grow() -> None:
        while world.count < goal:
            await world.add(chance.randint(1, 20))
            await asyncio.sleep(PACE_S)

    await world.add(60)
    pruning = asyncio.create_task(prune())
    async with asyncio.timeout(60):
        await asyncio.gather(grow(), *(watch() for _ in range(4)))
    pruning.cancel()
    assert told["removed"] and told["sent"], told


async def test_a_cursor_below_the_floor_is_refused_with_the_floor(world: World) -> None:
    await world.add(20)
    await world.remove(*range(1, 11))
    with pytest.raises(OutOfRangeError) as refused:
        await anext(world.watches.watch(ALL, "4"))
    assert refused.value.metadata == {"oldest_cursor": "10"}
    stream = world.watches.watch(ALL, "10")
    assert (await anext(stream)).cursor == "10"
    assert len((await anext(stream)).entries) == 10
    await stream.aclose()  # type: ignore[attr-defined]
    await world.remove(*range(1, 21))
    with pytest.raises(OutOfRangeError) as refused:
        await anext(world.watches.watch(ALL, "10"))
    assert refused.value.metadata == {"oldest_cursor": "20"}, "all of them are gone, and the end is where it goes on"


async def test_an_idle_watch_says_that_it_lives_and_where_it_is(world: World, monkeypatch) -> None:
    monkeypatch.setattr(event_watch, "_BOOKMARK_S", 0.01)
    await world.add(5)
    stream = world.watches.watch(EventFilter(1, type="of.nobody"), "3")
    async with asyncio.timeout(20):
        cursors = [(await anext(stream)).cursor for _ in range(4)]
    assert cursors == ["3", "5", "5", "5"], "also what does not fit moves the cursor on"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_who_comes_back_is_told_at_once_where_the_newest_is(world: World) -> None:
    await world.add(5)
    stream = world.watches.watch(EventFilter(1, type="of.nobody"), "3")
    async with asyncio.timeout(10):  # long before a bookmark is due
        assert [(await anext(stream)).cursor for _ in range(2)] == ["3", "5"]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_too_many_watchers_and_a_daemon_that_stops(world: World, monkeypatch) -> None:
    stream = world.watches.watch(ALL, "")
    await anext(stream)
    monkeypatch.setattr(event_watch, "WATCHES_MAX", 1)
    with pytest.raises(ResourceExhaustedError, match="1 watches are open already"):
        await anext(world.watches.watch(ALL, ""))
    world.feed.close()
    with pytest.raises(UnavailableError, match="watch again from the last cursor"):
        await anext(stream)
