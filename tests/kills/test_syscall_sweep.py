"""SIGKILL at the N-th sync, and at the N-th write, of a daemon under load: recovery is right from each of them.

Random instants find what takes long, and the interesting ones are short. So a preloaded library counts the calls that
put something on the disk, and ends the process just before, just after or, of a write, in the midst of the N-th
(`killat.c`). After each life the database is held against what the clients were told. `TASKFORGE_TEST_CYCLES` sets how
many lives there are (`make soak`: every N up to 200), `TASKFORGE_TEST_SEED` repeats them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Daemon, EffectServer, seeded
from kills.stage import ENVIRONMENT, Crowd, compiled
from nursery import Nursery

LIVES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "8"))
SYNCS = 200
WRITES = 2000
SETTLE_EVERY = 4
FRESH_SYNCS = 40
"""A new home has its first daemon ready after fewer."""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where processes get the library."""
    with Nursery({"LD_PRELOAD": str(compiled("killat", tmp_path_factory.mktemp("killat")))}) as made:
        yield made


def _spread(last: int, lives: int, chance: random.Random) -> list[int]:
    """So many numbers up to the last, one of each stretch, in random order."""
    found = [chance.randint(last * n // lives + 1, last * (n + 1) // lives) for n in range(min(lives, last))]
    chance.shuffle(found)
    return found


async def _sweep(crowd: Crowd, plans: list[str]) -> None:
    daemon = crowd.daemon
    started = 0
    for number, plan in enumerate(plans, start=1):
        daemon.env["KILLAT"] = plan
        ready = await crowd.appear()
        started += ready
        code = await crowd.load_until_gone(clients=2 if ready else 0)
        assert code == -signal.SIGKILL, f"{plan}: exit code {code}\n{daemon.tail(20)}"
        crowd.check(plan)
        if number % SETTLE_EVERY == 0 or number == len(plans):
            del daemon.env["KILLAT"]
            await asyncio.to_thread(daemon.start)
            await crowd.settle()
            await asyncio.to_thread(daemon.kill)
            crowd.check_database(f"after {plans[:number]}", kills=2 * number)
    assert started >= len(plans) / 2, "most lives ended before the clients could do anything"
    assert "Traceback" not in daemon.log_text()
    print(f"{len(plans)} lives, {started} of them became ready; {crowd.count} acknowledged")


@pytest.mark.timeout(300 + 10 * LIVES)
async def test_a_kill_at_the_nth_sync_costs_nothing(nursery: Nursery, effects: EffectServer) -> None:
    chance = seeded("test_syscall_sweep syncs")
    plans = [f"sync:{n}:{chance.choice(['before', 'after'])}" for n in _spread(SYNCS, min(LIVES, SYNCS), chance)]
    await _swept(nursery, effects, chance, plans)


@pytest.mark.timeout(300 + 10 * LIVES)
async def test_a_kill_at_the_nth_write_costs_nothing(nursery: Nursery, effects: EffectServer) -> None:
    chance = seeded("test_syscall_sweep writes")
    numbers = _spread(WRITES, max(4, LIVES // 2), chance)
    await _swept(nursery, effects, chance, [f"write:{n}:{chance.choice(['before', 'half', 'after'])}" for n in numbers])


async def _swept(nursery: Nursery, effects: EffectServer, chance: random.Random, plans: list[str]) -> None:
    daemon = Daemon(nursery=nursery, env=ENVIRONMENT)
    crowd = Crowd(daemon, effects, chance)
    try:
        await asyncio.to_thread(daemon.start)
        await crowd.prepare()
        await asyncio.to_thread(daemon.kill)
        await _sweep(crowd, plans)
    finally:
        await daemon.aclose()


@pytest.mark.timeout(300 + 6 * LIVES)
def test_a_kill_at_the_nth_sync_of_a_new_home_leaves_one_that_starts(nursery: Nursery, tmp_path: Path) -> None:
    chance = seeded("test_syscall_sweep new homes")
    cut = 0
    for n in _spread(FRESH_SYNCS, max(4, min(LIVES // 2, FRESH_SYNCS)), chance):
        daemon = Daemon(tmp_path / f"home{n}", nursery=nursery, env={"KILLAT": f"sync:{n}:before"})
        try:
            cut += not daemon.appear()
            daemon.kill()
            del daemon.env["KILLAT"]
            daemon.start()
            assert daemon.terminate() == 0, f"after a kill at sync {n}:\n{daemon.tail(20)}"
        finally:
            daemon.close()
    assert cut, "no home was cut while it was made"
