"""A simulated power cut: what was acknowledged is on the disk, not merely in the page cache.

SIGKILL cannot test this, since the kernel keeps what a dead process has written. So a preloaded library copies each
file at the moment a sync of it has succeeded (`powercut.c`), and the cut puts these copies in the place of the files.
`synchronous=NORMAL` is the negative control: it must lose acknowledged runs, or the test shows nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest
from harness import Daemon, seeded
from taskforge.v1 import run_service_pb2

CUTS = 6
CONTROL_CUTS_MAX = 6
CLIENTS = 16

DEFINITION = """
name: light
steps:
  - id: one
    transform: {x: 1}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    """The library, compiled."""
    library = tmp_path_factory.mktemp("powercut") / "powercut.so"
    source = Path(__file__).with_name("powercut.c")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@dataclass(slots=True)
class Acknowledged:
    """What the clients were told."""

    runs: set[str] = field(default_factory=set)
    since_cut: int = 0

    async def load(self, daemon: Daemon) -> None:
        """Start runs until the daemon is gone."""
        await asyncio.gather(*(self._client(daemon) for _ in range(CLIENTS)))

    async def _client(self, daemon: Daemon) -> None:
        while True:
            try:
                answer = await daemon.runs.StartRun(run_service_pb2.StartRunRequest(workflow="light"), timeout=10)
            except grpc.aio.AioRpcError as error:
                assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, error
                return
            self.runs.add(answer.run.id)
            self.since_cut += 1


def _cut_power(daemon: Daemon) -> None:
    """Kill, and leave on disk only what a sync has put there."""
    daemon.kill()
    for name in ("taskforge.db", "taskforge.db-wal"):
        file = daemon.home / name
        durable = daemon.home / f"{name}.durable"
        if not file.exists():
            durable.unlink(missing_ok=True)
        elif durable.exists():
            shutil.copyfile(durable, file)
        else:
            file.write_bytes(b"")
    (daemon.home / "taskforge.db-shm").unlink(missing_ok=True)


async def _cycle(daemon: Daemon, acknowledged: Acknowledged, after_s: float) -> set[str]:
    """Load, cut, start again; answers the runs that are stored."""
    acknowledged.since_cut = 0
    loading = asyncio.create_task(acknowledged.load(daemon))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(_cut_power, daemon)
    # Calls would wait for the next daemon: this channel goes, and with it the clients.
    await daemon.disconnect()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    assert acknowledged.since_cut, "nothing was acknowledged: this cut has shown nothing"
    await asyncio.to_thread(daemon.start)
    return {run.id for run in await daemon.list_runs()}


def _daemon(shim: Path, synchronous: str) -> Daemon:
    return Daemon(env={"LD_PRELOAD": str(shim), "TASKFORGE_STORE_SYNCHRONOUS": synchronous})


@pytest.mark.timeout(120)
async def test_power_cuts_cost_nothing(shim: Path) -> None:
    chance = seeded("test_powercut")
    daemon = _daemon(shim, "FULL")
    acknowledged = Acknowledged()
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        for cut in range(CUTS):
            stored = await _cycle(daemon, acknowledged, chance.uniform(0.1, 0.7))
            assert acknowledged.runs <= stored, f"cut {cut} lost {len(acknowledged.runs - stored)} acknowledged runs"
            assert len(stored - acknowledged.runs) <= CLIENTS * (cut + 1), "stored, but neither asked for nor answered"
        for run_id in sorted(stored)[:: max(1, len(stored) // 50)]:
            verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run_id), timeout=20)
            assert verdict.intact, list(verdict.faults)
        print(f"{CUTS} cuts, {len(acknowledged.runs)} runs acknowledged, none lost")
        assert await asyncio.to_thread(daemon.terminate) == 0
    finally:
        await daemon.aclose()


@pytest.mark.timeout(120)
async def test_the_control_loses_what_it_acknowledged(shim: Path) -> None:
    chance = seeded("test_powercut control")
    for _ in range(CONTROL_CUTS_MAX):
        daemon = _daemon(shim, "NORMAL")
        acknowledged = Acknowledged()
        try:
            await asyncio.to_thread(daemon.start)
            await daemon.apply(DEFINITION)
            lost = acknowledged.runs - await _cycle(daemon, acknowledged, chance.uniform(0.3, 0.7))
        finally:
            await daemon.aclose()
        if lost:
            print(f"NORMAL lost {len(lost)} of {len(acknowledged.runs)} acknowledged runs, as it must")
            return
    pytest.fail("synchronous=NORMAL lost nothing: the simulated power cut has no teeth")
