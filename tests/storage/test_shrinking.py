"""The care of a large file: it shrinks in slices that are short, and is counted once for all who ask."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from taskforged.clock import Clock
from taskforged.control import storage as module
from taskforged.control.backups import Backups
from taskforged.control.pressure import Pressure
from taskforged.control.retention import Keep, Pruner, RunRule
from taskforged.control.storage import Storage
from taskforged.host.feed import Feed
from taskforged.store.store import Pages, Store

PAGE_S = 0.004
"""What a page of a file of some gigabytes takes: the list of its free pages is looked through for each."""


class Slow(Store):
    """A store whose free pages leave slowly."""

    def __init__(self, path) -> None:
        super().__init__(path)
        self.free = 3000
        self.slices: list[int] = []

    async def measure(self) -> Pages:
        return Pages(4096, 1000 + self.free, self.free, can_shrink=True)

    async def shrink(self, pages: int) -> float:
        self.slices.append(pages)
        self.free -= pages
        return pages * PAGE_S


@pytest.fixture
def storage(tmp_path):
    store, clock = Slow(tmp_path / "taskforge.db"), Clock()
    return Storage(
        store=store,
        clock=clock,
        pressure=Pressure(tmp_path, free_mib=0),
        pruner=Pruner(store=store, clock=clock, feed=Feed(), keep=Keep(RunRule(0, 0))),
        backups=Backups(store=store, folder=tmp_path / "backups", every_s=0, keep=1),
    )


async def test_a_slice_has_as_many_pages_as_its_time_allows(storage, monkeypatch):
    slept: list[float] = []
    wait = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await wait(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    await storage._shrink()
    store = storage._store
    assert store.slices[0] == 64, "nothing is known yet"
    assert set(store.slices[1:]) == {1}, "a page takes nearly all the time of a slice"
    assert store.free == 256, "what is kept for what is written next"
    assert all(pause >= 2 * pages * PAGE_S for pause, pages in zip(slept, store.slices, strict=False))
    assert storage.state.pages_given_back == 3000 - 256


async def test_shrinking_makes_way_for_backups_and_retention(storage, monkeypatch):
    monkeypatch.setattr(module, "_SHRINK_TURN_S", 0.0)
    await storage._shrink()
    assert len(storage._store.slices) == 1


async def test_a_file_that_does_not_shrink_is_left_alone(storage, monkeypatch):
    async def nothing(_: int) -> float:
        storage._store.slices.append(0)
        return time.get_clock_info("monotonic").resolution

    monkeypatch.setattr(storage._store, "shrink", nothing)
    await storage._shrink()
    assert len(storage._store.slices) == 1


async def test_tables_are_counted_once_for_all_who_ask(storage, monkeypatch):
    counted: list[float] = []
    may_end = threading.Event()

    def count(_: float) -> dict[str, int]:
        counted.append(time.monotonic())
        assert may_end.wait(20)
        return {"runs": len(counted)}

    monkeypatch.setattr(storage._store, "table_sizes", count)
    asking = [asyncio.create_task(storage.view()) for _ in range(30)]
    while not counted:
        await asyncio.sleep(0)
    asking[0].cancel()  # a caller that goes away takes nothing from the others
    may_end.set()
    views = await asyncio.gather(*asking[1:])
    assert {view.tables["runs"] for view in views} == {1}
    monkeypatch.setattr(storage, "_count_again", 0.0)
    assert (await storage.view()).tables == {"runs": 2}
