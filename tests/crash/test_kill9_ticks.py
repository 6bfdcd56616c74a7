"""SIGKILL around the instant at which many schedules are due: each due time has exactly one run.

The daemon's clock stands still but for what the test turns it by, so it becomes a full second exactly when the test says
so, and a downtime of seven seconds costs none.
`TASKFORGE_TEST_SEED` repeats the instants, `TASKFORGE_TEST_CYCLES` sets how many kills (`make soak`: more).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3

import pytest
from harness import Daemon, seeded
from ledger import SECOND, check_ledgers
from taskforge.v1 import system_service_pb2, system_service_pb2_grpc
from turned import WallClock

CYCLES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "6"))
SCHEDULES = 100
DOWN_S = (0, 0, 1, 3, 7)
"""Ticks that pass while the daemon is down; what is five seconds late has misfired."""

BEFORE_S = 0.004
"""How much before a full second the clock stands when the daemon starts: it looks again in so many seconds."""

STEPS = "steps: [{id: look, transform: {at: '${{ event.body.due_time }}'}}]"


def _definition() -> str:
    cron = "cron: {schedule: '* * * * * *', seconds: true, misfire: all, overlap: allow}"
    return "\n".join(["name: ticks", "on:", *(f"  t{n}: {{{cron}}}" for n in range(SCHEDULES)), STEPS])


@pytest.mark.timeout(120 + 15 * CYCLES)
async def test_kill9_around_the_tick() -> None:
    chance = seeded("test_kill9_ticks")
    with WallClock() as wall:
        daemon = Daemon(env=wall.env)
        daemon.READY_S = 120.0  # it settles hundreds of due times while it starts
        try:
            wall.freeze()
            wall.turn(1 - BEFORE_S - wall.now() % 1.0)
            began = round(wall.now())
            await asyncio.to_thread(daemon.start)
            await daemon.apply(_definition())
            for _ in range(CYCLES):
                wall.turn(BEFORE_S + 0.001)
                await asyncio.sleep(chance.choice([chance.uniform(0.0, 0.05), chance.uniform(0.0, 0.4)]))
                await asyncio.to_thread(daemon.kill)
                wall.turn(chance.choice(DOWN_S) + 1 - BEFORE_S - 0.001)
                await asyncio.to_thread(daemon.start)
            wall.turn(1.0)
            last = await _caught_up(daemon, wall)
            await _quiet(daemon)
            assert await asyncio.to_thread(daemon.terminate) == 0
            uri = f"file:{daemon.home / 'taskforge.db'}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                outcomes = check_ledgers(connection, faithful=True)
                runs = connection.execute("SELECT count(*), sum(state = 'SUCCEEDED') FROM runs").fetchone()
            assert runs == (outcomes["FIRED"], outcomes["FIRED"])
            assert outcomes["FIRED"] == SCHEDULES * (last - began + 1), "a ledger begins late or ends early"
            print(
                f"{len(daemon.kills)} kills, {outcomes['FIRED']} due times of {SCHEDULES} schedules;"
                f" slowest start {max(daemon.ready_s):.2f} s"
            )
        finally:
            await daemon.aclose()


async def _caught_up(daemon: Daemon, wall: WallClock) -> int:
    """Wait until every ledger is complete; answers up to when it is."""
    wanted = int(wall.now())
    uri = f"file:{daemon.home / 'taskforge.db'}?mode=ro"
    for _ in range(600):
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            (least,) = connection.execute("SELECT min(cursor) FROM triggers").fetchone()
        if least == wanted * SECOND:
            return wanted
        await asyncio.sleep(0.1)
    raise AssertionError(f"not every schedule was looked at again\n{daemon.tail(20)}")


async def _quiet(daemon: Daemon) -> None:
    system = daemon.stub(system_service_pb2_grpc.SystemServiceStub)
    for _ in range(600):
        stats = await system.GetStats(system_service_pb2.GetStatsRequest(), timeout=20)
        if not stats.open_runs:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{stats.open_runs} runs are open\n{daemon.tail(20)}")
