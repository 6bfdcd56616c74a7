"""What the process itself costs: start, memory, disk, and the client's start."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time

from harness import Daemon

from benchmarks import bare
from benchmarks.client import QUIET, connected, resident, serving, stop_and_measure
from benchmarks.definitions import GROUPED, HTTP, PURE
from benchmarks.load import load
from benchmarks.measure import Bench

MEGA = 1e6


async def start(b: Bench) -> None:
    """From exec to an answered GetInfo on a home that exists, and resident memory when idle."""
    daemon = Daemon(env=QUIET)
    try:
        daemon.start()  # the first one makes the home and compiles
        for _ in range(b.count(16)):
            daemon.restart()
        await asyncio.sleep(1.0)
        memory = resident(daemon.pid)
    finally:
        daemon.close()
    seconds, bytes_ = min(bare.bare_python() for _ in range(3))
    b.report("start", statistics.median(daemon.ready_s[1:]), bare=seconds, note=f"median of {len(daemon.ready_s) - 1}")
    b.report("memory", memory / MEGA, bare=bytes_ / MEGA)


async def memory(b: Bench) -> None:
    """Resident memory with 100,000 pending runs, in the daemon that took them and in the next one."""
    count = 1000 * max(2, b.count(100) - 1)  # the limit is 100,000, and the setting counts all that wait
    async with serving(GROUPED) as client:
        before = resident(client.daemon.pid)
        began = time.perf_counter()
        await load(lambda _: client.start_batch("grouped", '{"n":1}', 1000), count=count // 1000, width=2)
        seconds = time.perf_counter() - began
        await asyncio.sleep(1.0)
        taken = resident(client.daemon.pid)
        await asyncio.to_thread(stop_and_measure, client.daemon)
        await asyncio.to_thread(client.daemon.start)
        await asyncio.sleep(1.0)
        again = resident(client.daemon.pid)
        ready = client.daemon.ready_s[-1]
        async with connected(client.daemon) as later:
            waiting = await later.open_runs()
    if waiting != count:
        raise RuntimeError(f"{count} runs were started, {waiting} wait after the restart")
    _, python = bare.bare_python()
    note = f"{count:,} runs taken in {seconds:.0f} s; {before / MEGA:.0f} MB before"
    b.report("memory.pending", taken / MEGA, bare=python / MEGA, note=note)
    b.report("memory.again", again / MEGA, bare=python / MEGA, note=f"ready after {ready:.1f} s")


async def help_(b: Bench) -> None:
    """Help, from exec to the end, and the completion of a name by a daemon."""
    count = max(3, b.count(11))
    bare_ms = statistics.median(_took([sys.executable, "-c", "import click"]) for _ in range(count))
    for key, words in (("help", ("--help",)), ("help.run", ("run", "--help"))):
        command = [sys.executable, "-m", "taskforgectl", *words]
        b.report(key, statistics.median(_took(command) for _ in range(count)), bare=bare_ms)
    async with serving(PURE) as client:
        line = "taskforgectl run start "
        names = {"_TASKFORGECTL_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        environment = {**os.environ, **names, "TASKFORGE_HOME": str(client.daemon.home)}
        command = [sys.executable, "-m", "taskforgectl"]
        took = [await asyncio.to_thread(_took, command, environment) for _ in range(count)]
    b.report("completion", statistics.median(took), bare=bare_ms)


def _took(command: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3


async def disk(b: Bench) -> None:
    """Growth of the database for each finished run, full history, between two clean stops."""
    count = 1000 * max(1, b.count(3))
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        for key, workflow, definition, text in (
            ("disk.pure", "pure", PURE, '{"n":1}'),
            ("disk.http", "http", HTTP, payload),
        ):
            async with serving(definition) as client:
                daemon = client.daemon
                before = await asyncio.to_thread(stop_and_measure, daemon)
                await asyncio.to_thread(daemon.start)
                async with connected(daemon) as again:
                    await load(lambda _, a=again, w=workflow, t=text: a.start_batch(w, t, 1000), count=count // 1000)
                    await again.until_idle()
                    await again.check_all_succeeded(workflow, count)
                taken = await asyncio.to_thread(stop_and_measure, daemon) - before
            b.report(key, taken / count, note=f"{count:,} runs")
