"""SIGKILL at each failpoint: nothing acknowledged is lost there, and the next daemon finishes what was begun.

Each life of a daemon is under load and has one failpoint armed, which a provocation makes it reach. After it the
database is held against what the clients were told; then a daemon without a plan lets all runs end, and some are
verified. `TASKFORGE_TEST_CYCLES` sets how many kills each failpoint gets (`make soak`), `TASKFORGE_TEST_SEED` repeats
the order and the visits. Those of upgrades are in `test_upgrade_kills.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable

import grpc.aio
import pytest
from harness import RETRYABLE, Daemon, EffectServer, seeded
from kills.stage import ENVIRONMENT, UPGRADE_POINTS, Crowd
from nursery import Nursery
from switchboard import Board

from taskforged.failpoints import FAILPOINTS, VARIABLE

CYCLES = max(1, int(os.environ.get("TASKFORGE_TEST_CYCLES", "1")) // 40)
LANES = 3


async def _load(_: Board) -> None:
    """The load alone comes by."""


async def _tick(board: Board) -> None:
    await board("SetWorkflowActive", name="tick", active=True)


async def _rotate(board: Board) -> None:
    await board("RotateMasterKey")


async def _back_up(board: Board) -> None:
    await board("CreateBackup")


async def _prune(board: Board) -> None:
    await board("PruneStorage", keep=1, workflow="hooked")


async def _refuse(board: Board) -> None:
    await board("SetSecret", name="not a name", value="x")


async def _stop(board: Board) -> None:
    os.kill(board.daemon.pid, signal.SIGTERM)


PROVOKE: dict[str, Callable[[Board], Awaitable[None]]] = {
    **{name: _load for name in FAILPOINTS if name.startswith(("journal.", "run.", "attempt.", "timer.", "child."))},
    **{name: _load for name in FAILPOINTS if name.startswith(("inbox.", "event.", "secret.", "start."))},
    **{name: _tick for name in FAILPOINTS if name.startswith("schedule.")},
    **{name: _rotate for name in FAILPOINTS if name.startswith("key.")},
    **{name: _back_up for name in FAILPOINTS if name.startswith("backup.")},
    **{name: _prune for name in FAILPOINTS if name.startswith("prune.")},
    **{name: _stop for name in FAILPOINTS if name.startswith("stop.")},
    "audit.written": _refuse,
}
IDLE = ("checkpoint.due", "checkpoint.done")
"""Reached when nothing is written for a while."""


def test_every_failpoint_has_its_kill() -> None:
    assert sorted([*PROVOKE, *IDLE, *UPGRADE_POINTS]) == sorted(FAILPOINTS)


async def _provoke(name: str, crowd: Crowd) -> None:
    """Make the daemon reach a failpoint while it is under load; it may die in the middle of the call."""
    async with crowd.board() as board:
        try:
            await PROVOKE[name](board)
        except grpc.aio.AioRpcError as error:
            assert error.code() in {*RETRYABLE, grpc.StatusCode.INVALID_ARGUMENT}, error


async def _die_at(name: str, visit: int, crowd: Crowd) -> None:
    """One life with a failpoint, from its start to its end there."""
    daemon = crowd.daemon
    daemon.env[VARIABLE] = f"{name}=kill@{visit}"
    log = len(daemon.log_text())
    if name.startswith("start."):
        code = await asyncio.to_thread(_end_of_start, daemon)
    else:
        is_ready = await crowd.appear()  # it comes by at some places before that
        async with asyncio.TaskGroup() as group:
            load = group.create_task(crowd.load_until_gone(clients=2 if is_ready and name not in IDLE else 0))
            if is_ready and name not in IDLE:
                await asyncio.sleep(crowd.chance.uniform(0.0, 0.1))
                await _provoke(name, crowd)
        code = load.result()
    said = [json.loads(line) for line in daemon.log_text()[log:].splitlines() if "failpoint.reached" in line]
    assert code == -signal.SIGKILL, f"{name}: exit code {code}\n{daemon.tail(20)}"
    assert [one["name"] for one in said] == [name], daemon.tail(20)
    assert "Traceback" not in daemon.log_text()[log:], daemon.tail(40)


def _end_of_start(daemon: Daemon) -> int:
    try:
        return daemon.spawn().wait(Daemon.READY_S)
    finally:
        daemon.close_process()


async def _live_on(crowd: Crowd, where: str, kills: int) -> None:
    """A daemon without a plan finishes everything; the database is sound."""
    daemon = crowd.daemon
    crowd.check(where)
    daemon.env.pop(VARIABLE)
    await asyncio.to_thread(daemon.start)
    async with crowd.board() as board:
        await board("SetWorkflowActive", name="tick", active=False)
        backups = await board("ListBackups")
        assert all(one.size_bytes for one in backups.backups)
    await crowd.settle()
    await asyncio.to_thread(daemon.kill)
    crowd.check_database(where, kills=kills)


async def _lane(names: list[str], nursery: Nursery, effects: EffectServer, chance: random.Random) -> None:
    daemon = Daemon(nursery=nursery, env=ENVIRONMENT)
    crowd = Crowd(daemon, effects, chance)
    try:
        await asyncio.to_thread(daemon.start)
        await crowd.prepare()
        await asyncio.to_thread(daemon.kill)
        for kills, name in enumerate(names, start=1):
            where = f"kill {kills}, at {name}, after {names[max(0, kills - 4) : kills - 1]}"
            often = PROVOKE.get(name) is _load and not name.startswith("start.")
            await _die_at(name, chance.randint(1, 4) if often else 1, crowd)
            await _live_on(crowd, where, kills)
    finally:
        with contextlib.suppress(AssertionError):
            await daemon.aclose()


@pytest.mark.timeout(300 + 300 * CYCLES)
async def test_a_kill_at_each_failpoint_costs_nothing(effects: EffectServer) -> None:
    chance = seeded("test_failpoint_kills")
    names = [*PROVOKE, *IDLE] * CYCLES
    chance.shuffle(names)
    with Nursery() as nursery:
        async with asyncio.TaskGroup() as group:
            for lane in range(LANES):
                mine = random.Random(chance.getrandbits(32))
                group.create_task(_lane(names[lane::LANES], nursery, effects, mine))
    print(f"{len(names)} kills at {len(set(names))} failpoints")
