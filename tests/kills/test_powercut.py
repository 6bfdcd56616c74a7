"""A simulated power cut: what was acknowledged is on the disk, not merely in the page cache.

SIGKILL cannot test this, since the kernel keeps what a dead process has written. So a preloaded library copies each
file at the moment a sync of it has succeeded (`powercut.c`), and the cut leaves these copies and, mostly, some of what
was written since: any blocks of a log, half a checkpoint, names that no sync of a folder has made safe (`power.py`).
`synchronous=NORMAL` is the negative control: it must lose what was acknowledged, or the test shows nothing.
`TASKFORGE_TEST_CYCLES` sets how many cuts there are (`make soak`: 50), `TASKFORGE_TEST_SEED` repeats them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import Daemon, EffectServer, seeded
from kills.power import Power, torn
from kills.stage import ENVIRONMENT, Crowd, compiled
from nursery import Nursery

CUTS = max(6, min(50, int(os.environ.get("TASKFORGE_TEST_CYCLES", "6"))))
CONTROL_CUTS_MAX = 6
CHECKPOINT_PAGES = 12
"""A checkpoint of a life writes at least so many."""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where daemons get the libraries."""
    folder = tmp_path_factory.mktemp("powercut")
    with Nursery({"LD_PRELOAD": f"{compiled('killat', folder)}:{compiled('powercut', folder)}"}) as made:
        yield made


@contextlib.asynccontextmanager
async def _powered(
    nursery: Nursery, crowd_of: EffectServer, chance: random.Random, synchronous: str
) -> AsyncIterator[tuple[Crowd, Power]]:
    """A home with definitions, on a machine whose power can be cut."""
    daemon = Daemon(nursery=nursery, env={**ENVIRONMENT, "TASKFORGE_STORE_SYNCHRONOUS": synchronous})
    crowd, power = Crowd(daemon, crowd_of, chance), Power(daemon.home)
    try:
        await asyncio.to_thread(daemon.start)
        await crowd.prepare()
        assert await asyncio.to_thread(daemon.terminate) == 0
        daemon.env |= power.env
        yield crowd, power
    finally:
        await daemon.aclose()


async def _life(crowd: Crowd, after_s: float, *, in_checkpoint: bool = False) -> None:
    """Load, and a sudden end: anywhere, or in the middle of the checkpoint with which a stop ends."""
    daemon = crowd.daemon
    daemon.env.pop("KILLAT", None)
    if in_checkpoint:
        when = crowd.chance.choice(["before", "half", "after"])
        daemon.env["KILLAT"] = f"base:{crowd.chance.randint(1, CHECKPOINT_PAGES)}:{when}"
    await asyncio.to_thread(daemon.start)
    loading = asyncio.create_task(crowd.load_until_gone())
    await crowd.more(20)
    await asyncio.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):  # dead already: there was another checkpoint
        os.kill(daemon.pid, signal.SIGTERM if in_checkpoint else signal.SIGKILL)
    assert await loading == -signal.SIGKILL, daemon.tail(20)


@pytest.mark.timeout(300 + 15 * CUTS)
async def test_power_cuts_cost_nothing(nursery: Nursery, effects: EffectServer) -> None:
    chance = seeded("test_powercut")
    async with _powered(nursery, effects, chance, "FULL") as (crowd, power):
        for cut in range(CUTS):
            power.on()
            in_checkpoint = cut % 3 == 1
            await _life(crowd, chance.uniform(0.0, 0.4), in_checkpoint=in_checkpoint)
            luck = None if cut % 3 == 0 else chance
            left = power.cut(luck)
            crowd.check(f"cut {cut}{' in a checkpoint' if in_checkpoint else ''}; torn: {left or 'nothing'}")
        crowd.daemon.env.pop("KILLAT", None)
        await asyncio.to_thread(crowd.daemon.start)
        await crowd.settle()
        async with crowd.board() as board:
            await board("RotateMasterKey")  # opens every secret
        await asyncio.to_thread(crowd.daemon.kill)
        crowd.check_database(f"after {CUTS} cuts", kills=CUTS)
        print(f"{CUTS} cuts, acknowledged and kept: { {kind: len(ids) for kind, ids in crowd.acked.items()} }")


@pytest.mark.timeout(300)
async def test_the_control_loses_what_it_acknowledged(nursery: Nursery, effects: EffectServer) -> None:
    chance = seeded("test_powercut control")
    for _ in range(CONTROL_CUTS_MAX):
        async with _powered(nursery, effects, chance, "NORMAL") as (crowd, power):
            power.on()
            await _life(crowd, chance.uniform(0.1, 0.4))
            power.cut()
            try:
                crowd.check("NORMAL")
            except AssertionError as error:
                assert "are lost" in str(error), error
                print(f"as it must: {str(error)[:120]}")
                return
    pytest.fail("synchronous=NORMAL lost nothing: the simulated power cut has no teeth")


@pytest.mark.parametrize("sync_folder", [False, True])
def test_the_cut_takes_what_was_not_synced(tmp_path: Path, sync_folder: bool) -> None:
    """The model itself: a name is safe when its folder was synced, a content when its file was."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "old").write_bytes(b"old")
    power = Power(home)
    power.on()
    program = (
        "import os; os.chdir(os.environ['POWERCUT_HOME'])\n"
        "for name in ('synced', 'not'):\n"
        "    with open(name, 'wb') as file:\n"
        "        file.write(b'new'); file.flush()\n"
        "        if name == 'synced': os.fsync(file.fileno())\n"
        "os.rename('synced', 'old')\n"
        f"if {sync_folder}: os.fsync(os.open('.', os.O_RDONLY))\n"
    )
    environment = {**power.env, "LD_PRELOAD": str(compiled("powercut", tmp_path))}
    subprocess.run([sys.executable, "-S", "-c", program], env=environment, check=True, timeout=60)
    power.cut()
    found = {path.name: path.read_bytes() for path in home.iterdir()}
    assert found == ({"old": b"new", "not": b""} if sync_folder else {"old": b"old"})


def test_torn_content_is_a_mixture_of_old_and_new() -> None:
    chance = seeded("test_powercut torn")
    old, new = b"o" * 20_000, b"n" * 50_000
    seen = set()
    for _ in range(200):
        found = torn(old, new, chance)
        assert len(old) <= len(found) <= len(new)
        assert set(found) <= set(b"on\0")
        seen |= set(found)
    assert seen == set(b"on\0")
    assert torn(old, old, chance) == old
