"""A disk that is full, read-only, broken or slow: nothing acknowledged is lost, the state is clear, and it mends itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from harness import Daemon, DaemonError
from switchboard import Board, eventually, state
from telemetry.scraping import scrape

from taskforged.failpoints import VARIABLE
from taskforged.store.backup import inspect_copy

HOOK = "name: hook\non: {in: {webhook: {path: in, verify: {scheme: none}}}}\nsteps:\n  - {id: a, transform: 1}\n"
SENDERS = 8
ROOM = 1 << 20
SYNC_US = 300_000
CALLS = 100
IN_LINE = 4


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

    def turn(self, what: str, number: int = 0, *, on: bool = True) -> None:
        """Make it full, small, readonly, broken, unsynced or slow, or well again."""
        file = self.base.with_name(f"{self.base.name}.{what}")
        if on:
            file.with_suffix(".new").write_text(f"{number}\n")
            file.with_suffix(".new").rename(file)
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


async def _posts(
    board: Board, acked: set[str], refusals: list[int], stop: asyncio.Event, body: bytes = b'{"n": 1}'
) -> None:
    while not stop.is_set():
        try:
            answer = await board.post("in", body)
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


async def _until(ready: Callable[[], object], what: str, within_s: float = 30) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not ready():
                await asyncio.sleep(0.02)
    assert ready(), what


async def _all_end(board: Board, acked: set[str]) -> None:
    """All deliveries are there, and their runs succeed."""
    stored = {one.id: list(one.run_ids) for one in await _events(board)}
    assert acked <= stored.keys()
    await eventually(board.daemon.list_runs, lambda runs: all(run.HasField("end_time") for run in runs))
    states = {run.id: state(run) for run in await board.daemon.list_runs()}
    for event_id in acked:
        assert [states[run_id] for run_id in stored[event_id]] == ["SUCCEEDED"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["full", "small"])
async def test_a_full_disk_loses_nothing_and_mends_itself(sick, how: str) -> None:
    """`small`: the log has room for some hundred more, and is then cut off in the midst of a write."""
    daemon, disk = sick
    board = Board(daemon)
    acked: set[str] = set()
    refusals: list[int] = []
    stop = asyncio.Event()
    try:
        await daemon.apply(HOOK)
        body = json.dumps({"n": "x" * 2000}).encode()
        posting = [asyncio.create_task(_posts(board, acked, refusals, stop, body)) for _ in range(SENDERS)]
        await _until(lambda: len(acked) > 20, "deliveries are taken")
        disk.turn(how, (daemon.home / "taskforge.db-wal").stat().st_size + ROOM)
        await _until(lambda: len(refusals) > 100, "deliveries are refused")
        assert set(refusals) == {507}
        said = await board.refused("RESOURCE_EXHAUSTED", "StartRun", workflow="hook")
        assert "disk is full" in said
        assert len((await board("ListRuns", workflow="hook")).runs) > 0, "reading works"
        disk.turn(how, on=False)
        before = len(acked)
        await _until(lambda: len(acked) > before + 20, "deliveries are taken again, without a restart", within_s=10)
        stop.set()
        await asyncio.gather(*posting)
        print(f"{how}: {before:,} taken before, {len(refusals):,} refused, {len(acked) - before:,} taken after")
        await _all_end(board, acked)
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


async def _timed(call: Awaitable[Any], took: list[float]) -> Any:
    began = time.monotonic()
    found = await call
    took.append(time.monotonic() - began)
    return found


async def _one_after_another(board: Board, count: int) -> None:
    for _ in range(count):
        await board("StartRun", workflow="hook")


@pytest.mark.timeout(120)
async def test_a_slow_disk_is_waited_for_and_named_and_holds_no_reader_up(sick) -> None:
    """Who is told OK has waited for a sync that began after the question; all together wait for a few of them."""
    daemon, disk = sick
    board = Board(daemon)
    try:
        await daemon.apply(HOOK)
        first = (await board("StartRun", workflow="hook")).run.id
        await board.ended(first)
        commits = (await scrape(board)).value("taskforge_commits_total")
        disk.turn("slow", SYNC_US)
        took: list[float] = []
        posts = [asyncio.create_task(_timed(board.post("in"), took)) for _ in range(CALLS)]
        starts = [asyncio.create_task(_timed(board("StartRun", workflow="hook"), took)) for _ in range(CALLS)]
        line = asyncio.create_task(_one_after_another(board, IN_LINE))
        reads = 0
        while not all(one.done() for one in (*posts, *starts, line)):
            async with asyncio.timeout(20):
                assert (await board.run(first)).id == first
                async with board.http.get(f"{daemon.http}/healthz") as answer:
                    assert answer.status == 200
            reads += 1
        acked = {one.event_id for one in await asyncio.gather(*posts) if one.status == 202}
        started = [one.run.id for one in await asyncio.gather(*starts)]
        await line
        assert (len(acked), len(started)) == (CALLS, CALLS), "nobody has to be refused for so little"
        assert min(took) >= SYNC_US / 1e6, "nothing is acknowledged before it is synced"
        grown = (await scrape(board)).value("taskforge_commits_total") - commits
        assert grown < CALLS / 2, "many share a sync"
        assert reads > IN_LINE, "reading does not wait for the disk"
        assert "store.slow" in daemon.log_text()
        await asyncio.to_thread(daemon.restart)
        disk.turn("slow", on=False)
        await _all_end(board, acked)
        assert {state(await board.ended(run_id)) for run_id in started} == {"SUCCEEDED"}
        print(
            f"{2 * CALLS} calls, {SYNC_US // 1000} ms a sync: {grown:.0f} commits, {min(took):.2f} to {max(took):.2f} s"
        )
    finally:
        await board.close()


async def test_a_batch_that_fails_is_made_again_one_by_one_and_only_the_guilty_are_told() -> None:
    """Each batch fails before its commit, as a bug in one of its writes would let it."""
    made = Daemon(env={VARIABLE: "journal.written=error@1+"})
    board = Board(made)
    try:
        await asyncio.to_thread(made.start)
        await made.apply(HOOK)
        posts = [board.post("in") for _ in range(40)]
        starts = [board("StartRun", workflow="hook", request_id=f"same-{n % 10}") for n in range(40)]
        missing = [board.refused("NOT_FOUND", "StartRun", workflow="nobody") for _ in range(5)]
        answers, runs, _ = await asyncio.gather(*(asyncio.gather(*some) for some in (posts, starts, missing)))
        assert "failpoint.reached" in made.log_text()
        assert {one.status for one in answers} == {202}
        ids = {one.run.id for one in runs}
        assert len(ids) == 10
        assert {state(await board.ended(run_id)) for run_id in ids} == {"SUCCEEDED"}
        await _all_end(board, {one.event_id for one in answers})
        assert (await board("VerifyRun", run_id=min(ids))).intact
        assert await asyncio.to_thread(made.terminate) == 0
        _whole(made.home)
    finally:
        await board.close()
        await made.aclose()
