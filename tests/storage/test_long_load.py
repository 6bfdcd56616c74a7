"""The log stays bounded under a load that lasts, with watchers that follow and lists that are asked for all the time."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import grpc.aio
import pytest
from harness import Daemon
from nursery import Nursery
from switchboard import Board, eventually
from taskforge.v1 import event_pb2, event_service_pb2
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from telemetry.scraping import scrape

SECONDS = 600 if "TASKFORGE_TEST_CYCLES" in os.environ else 6
WATCHERS, WRITERS, READERS = 20, 24, 4
WAL_MAX = 64 << 20
OUTCOMES = ("whole", "partial", "failed")
LIGHT = "name: light\nsteps:\n  - {id: one, transform: 1}\noutput: ${{ input.pad }}\n"
PAD = "x" * 3000


class Load:
    """What goes on until the time is over, and what was seen of it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._until = time.monotonic() + SECONDS
        self.written = self.listed = self.refused = 0
        self.seen = [0] * WATCHERS
        self.largest = 0

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._until

    async def write(self, number: int) -> None:
        while self.is_on:
            if number % 2:
                await self._board("StartRun", workflow="light", input_json=json.dumps({"pad": PAD}))
            else:
                await self._board("PublishEvent", type="nobody.asks", data_json=json.dumps(PAD))
            self.written += 1

    async def read(self, number: int) -> None:
        """Ask for long lists and for what has to be searched for; being told to ask for less is an answer."""
        while self.is_on:
            try:
                if number % 2:
                    await self._board("ListRuns", page_size=1000)
                else:
                    await self._board("ListEvents", page_size=1000, type="*.asks", path="nowhere")
                self.listed += 1
            except grpc.aio.AioRpcError as error:
                assert error.code().name == "UNAVAILABLE", error
                assert "ask again, or for less" in (error.details() or ""), error
                self.refused += 1

    async def watch(self, number: int) -> None:
        decided = event_service_pb2.EventFilter(outcomes=[event_pb2.Event.OUTCOME_UNMATCHED])
        wanted = event_service_pb2.WatchEventsRequest(after_cursor="0", filter=decided)
        call = self._board.daemon.stub(EventServiceStub).WatchEvents(wanted)
        try:
            async for raw in call:
                self.seen[number] += len(raw.entries)
        finally:
            call.cancel()

    async def measure(self) -> None:
        log = self._board.daemon.home / "taskforge.db-wal"
        while self.is_on:
            self.largest = max(self.largest, log.stat().st_size)
            await asyncio.sleep(0.05)


async def checkpoints(board: Board) -> dict[str, int]:
    found = await scrape(board)
    return {one: int(found.value("taskforge_checkpoints_total", outcome=one)) for one in OUTCOMES}


@pytest.mark.timeout(SECONDS + 120)
async def test_the_log_is_bounded_beside_watchers_and_lists() -> None:
    with Nursery() as nursery:
        daemon = Daemon(nursery=nursery)
        board = Board(daemon)
        try:
            await asyncio.to_thread(daemon.start)
            await daemon.apply(LIGHT)
            load = Load(board)
            watching = [asyncio.create_task(load.watch(number)) for number in range(WATCHERS)]
            await asyncio.gather(
                load.measure(),
                *(load.write(number) for number in range(WRITERS)),
                *(load.read(number) for number in range(READERS)),
            )
            moved = await checkpoints(board)
            assert load.largest <= WAL_MAX, "the log has grown beyond its bound"
            assert moved["whole"] >= 1
            assert moved["failed"] == 0
            assert all(load.seen), "a watcher saw nothing"
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
            log = daemon.home / "taskforge.db-wal"
            await eventually(lambda: _size(log), lambda size: size == 0)
            print(
                f"{SECONDS} s: {load.written / SECONDS:,.0f} writes/s, {load.listed / SECONDS:,.0f} lists/s"
                f" ({load.refused} sent away), log at most {load.largest >> 20} MiB, checkpoints {moved}"
            )
        finally:
            await board.close()
            await daemon.aclose()


async def _size(log: Path) -> int:
    return log.stat().st_size
