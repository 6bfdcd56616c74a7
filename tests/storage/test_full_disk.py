"""A disk that is full, read-only or broken: nothing acknowledged is lost, the state is clear, and it mends itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import grpc
import pytest
from harness import Daemon, DaemonError
from switchboard import Board

from taskforged.store.backup import inspect_copy

HOOK = "name: hook\non: {in: {webhook: {path: in, verify: {scheme: none}}}}\nsteps:\n  - {id: a, transform: 1}\n"


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    """The library, compiled."""
    library = tmp_path_factory.mktemp("fulldisk") / "fulldisk.so"
    source = Path(__file__).with_name("fulldisk.c")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


class Disk:
    """Says how the disk is."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def turn(self, what: str, *, on: bool = True) -> None:
        """Make it full, readonly, broken or unsynced, or well again."""
        file = self.base.with_name(f"{self.base.name}.{what}")
        if on:
            file.touch()
        else:
            file.unlink()


@pytest.fixture
def sick(shim: Path, tmp_path: Path) -> Iterator[tuple[Daemon, Disk]]:
    base = tmp_path / "disk"
    made = Daemon(env={"LD_PRELOAD": str(shim), "FULLDISK": str(base)})
    try:
        yield made.start(), Disk(base)
    finally:
        made.close()


async def _posts(board: Board, acked: set[str], refusals: list[int], stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        try:
            answer = await board.post("in", json.dumps({"n": number}).encode())
        except aiohttp.ClientError:
            return
        if answer.status == 202:
            acked.add(answer.event_id)
        else:
            refusals.append(answer.status)
        await asyncio.sleep(0.005)


def _whole(home: Path) -> None:
    """The database is one file after a clean stop: look at all of it."""
    assert inspect_copy(home / "taskforge.db").runs > 0


async def _until(ready, what: str) -> None:
    async with asyncio.timeout(30):
        while not ready():
            await asyncio.sleep(0.02)
    assert ready(), what


@pytest.mark.timeout(120)
async def test_a_full_disk_loses_nothing_and_mends_itself(sick) -> None:
    daemon, disk = sick
    board = Board(daemon)
    acked: set[str] = set()
    refusals: list[int] = []
    stop = asyncio.Event()
    try:
        await daemon.apply(HOOK)
        posting = asyncio.create_task(_posts(board, acked, refusals, stop))
        await _until(lambda: len(acked) > 20, "deliveries are taken")
        disk.turn("full")
        await _until(lambda: len(refusals) > 20, "deliveries are refused")
        assert set(refusals) == {507}
        said = await board.refused("RESOURCE_EXHAUSTED", "StartRun", workflow="hook")
        assert "disk is full" in said
        assert len((await board("ListRuns", workflow="hook")).runs) > 0, "reading works"
        disk.turn("full", on=False)
        before = len(acked)
        await _until(lambda: len(acked) > before + 20, "deliveries are taken again, without a restart")
        stop.set()
        await posting
        stored = {one.id for one in await _events(board)}
        assert acked <= stored
        assert await asyncio.to_thread(daemon.terminate) == 0
        _whole(daemon.home)
    finally:
        await board.close()


async def _events(board: Board) -> list:
    found, token = [], ""
    while True:
        page = await board("ListEvents", page_size=1000, page_token=token)
        found += page.events
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["broken", "readonly", "unsynced"])
async def test_a_disk_that_fails_stops_the_daemon_and_costs_nothing(sick, fault: str) -> None:
    """`unsynced` is seen by checkpoints alone: the log can be synced, the database file cannot."""
    daemon, disk = sick
    board = Board(daemon)
    acked: set[str] = set()
    stop = asyncio.Event()
    try:
        await daemon.apply(HOOK)
        posting = asyncio.create_task(_posts(board, acked, [], stop))
        await _until(lambda: len(acked) > 20, "deliveries are taken")
        disk.turn(fault)
        assert await asyncio.to_thread(daemon.wait) == 74
        stop.set()
        await posting
        assert "store.write_failed" in daemon.log_text()
        if fault != "unsynced":  # a start is no checkpoint
            with pytest.raises(DaemonError, match="before it was ready"):
                await asyncio.to_thread(daemon.start)
            assert "cannot_start" in daemon.tail(5) or "write_failed" in daemon.tail(5)
        disk.turn(fault, on=False)
        await asyncio.to_thread(daemon.start)
        assert acked <= {one.id for one in await _events(board)}
        assert await asyncio.to_thread(daemon.terminate) == 0
        _whole(daemon.home)
    except grpc.RpcError as error:
        pytest.fail(f"{error}\n{daemon.tail()}")
    finally:
        await board.close()
