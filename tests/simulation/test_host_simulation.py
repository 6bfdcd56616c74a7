"""The real host in simulated worlds: every promise is kept, and a seed replays commit by commit.

`make simulate` plays many more worlds; a failure names the command that plays its world again.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from simulation.campaign import HOST, simulate
from simulation.virtual import Crash, Disk, Faults, Time, VirtualLoop, bury, ruled
from simulation.world import World

WORLDS = int(os.environ.get("TASKFORGE_SIMULATED_WORLDS", "32"))
FIRST = int(os.environ.get("TASKFORGE_SIMULATION_SEED", "0"))
PARTS = 4


@pytest.fixture(autouse=True)
def silence():
    with capture_logs():
        yield
    gc.collect()  # what has crashed is full of cycles; its remains belong to this test and to no later one


@pytest.mark.parametrize("part", range(PARTS))
def test_worlds_keep_every_promise(part):
    tally = simulate(HOST, range(FIRST + part, FIRST + WORLDS, PARTS))
    assert not tally.failures, "\n".join(
        f"{reason}\n  again: make simulate HOST={n}" for _, n, reason in tally.failures
    )
    if WORLDS >= 32:  # the mix must not dry up unnoticed
        assert tally.crashes >= WORLDS // PARTS // 2
        assert tally.runs >= 4 * WORLDS // PARTS
        for what in ("ended SUCCEEDED", "ended FAILED", "ended CANCELLED", "fenced", "event ACCEPTED"):
            assert tally.seen[what], what


CODE = "from simulation.world import World; print([World(seed).run().digest for seed in (3, 8)])"


def test_a_seed_replays_commit_by_commit_in_any_process():
    here = [World(seed).run().digest for seed in (3, 8)]
    assert here == [World(seed).run().digest for seed in (3, 8)]
    assert here[0] != here[1]
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(here)


def test_time_is_virtual_and_comes_back():
    import asyncio
    import time
    from random import Random

    before, clock = time.monotonic(), Time()
    loop = VirtualLoop(clock)
    with ruled(clock, Random(1)):
        began = time.time_ns()
        loop.run_until_complete(asyncio.sleep(86_400))
        assert time.time_ns() - began == 86_400 * 10**9
    bury(loop)
    assert time.monotonic() - before < 60


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_a_commit_keeps_or_loses_it_whole(seed):
    """The sixth visit of the writer is cut: before it, nothing of it is on disk; behind it, all of it is."""
    from random import Random

    from taskforged.store.store import Store

    clock, disk = Time(), Disk()
    faults = Faults(Random(seed), crash_in=3)
    done = []

    async def write():
        with disk.serving(faults):
            store = Store(Path("nowhere"))
        await store.start()
        for number in range(10):
            await store.journal.execute(
                lambda c, n=number: c.execute("INSERT INTO meta (key, value) VALUES (?, '')", (f"k{n}",))
            )
            done.append(number)

    loop = VirtualLoop(clock)
    with ruled(clock, Random(seed)), pytest.raises(Crash):
        loop.run_until_complete(write())
    bury(loop)
    stored = disk.value("SELECT count(*) FROM meta WHERE key LIKE 'k%'")
    assert len(done) <= stored <= len(done) + 1
    assert disk.commits >= stored
