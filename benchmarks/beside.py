"""What goes on beside the runs: schedules, watchers, pruning, backups."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine

from benchmarks import bare, fill
from benchmarks.client import Client, processor_s, serving
from benchmarks.definitions import HTTP, cron
from benchmarks.load import Load, load, percentile
from benchmarks.measure import Bench

_WATCHED_PER_S = 20
"""Runs, so about 200 history events a second."""


async def schedules(b: Bench) -> None:
    """What cron triggers cost while nothing is due, and how late they fire when all are due at one second."""
    total = 100 * b.count(100)
    async with serving(*(cron(n, 100, "0 0 0 1 1 *") for n in range(total // 100))) as client:
        await asyncio.sleep(1.0)
        before, began = processor_s(client.daemon.pid), time.perf_counter()
        await asyncio.sleep(b.seconds(8) + 2)
        busy = (processor_s(client.daemon.pid) - before) / (time.perf_counter() - began)
    b.report("cron.idle", 100 * busy, note=f"{total:,} triggers")
    count = total // 2
    due = time.gmtime(time.time() + 8 + count / 250)
    expression = f"{due.tm_sec} {due.tm_min} {due.tm_hour} * * *"
    async with serving(*(cron(n, 100, expression) for n in range(count // 100))) as client:
        while (await client.stats()).fired_slots < count:
            await asyncio.sleep(0.2)
        stats = await client.stats()
    note = f"{count:,} triggers, median {stats.lateness_p50_ms:,.0f} ms of the last 1,024"
    b.report("cron.due", stats.lateness_max_ms / 1000, note=note)


async def watchers(b: Bench) -> None:
    """Runs of 3 HTTP steps, each watched to its end: what watching costs, and how late a history event comes."""
    lags: list[float] = []
    with bare.server("echo") as port:
        text = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(HTTP) as client:

            async def watched(_: int) -> list[float]:
                run = await client.start("http", text, wait=False)
                return await client.watch(run.id)

            await load(lambda _: client.start("http", text, wait=True), count=64)
            alone = await load(lambda _: client.start("http", text, wait=True), seconds=b.seconds(4))
            beside = await load(watched, seconds=b.seconds(4))
            paced = []
            for n in range(b.count(100)):
                paced.append(asyncio.create_task(watched(n)))
                await asyncio.sleep(1 / _WATCHED_PER_S)
            for lags_of_run in await asyncio.gather(*paced):
                lags += lags_of_run
            await client.check_all_succeeded("http", 64 + alone.count + beside.count + len(paced))
    b.report("watch", 3 * beside.rate, bare=3 * alone.rate)
    b.report("watch.lag", percentile(lags, 0.5) * 1e3, note=f"{len(lags):,} events")
    b.report("watch.lag.p99", percentile(lags, 0.99) * 1e3)


async def prune(b: Bench) -> None:
    """StartRun, one at a time, beside the pruning of 30,000 runs and beside a backup of them."""
    old = 1000 * b.count(30)
    home = b.folder / "prune"
    await fill.fill(home, old)
    async with serving(home=home) as client:
        alone = await _starts_while(client, asyncio.sleep(b.seconds(6)))
        copying = await _starts_while(client, client.back_up())
        pruning = await _starts_while(client, client.prune("pure", 1))
    fill.remove(home)
    b.report("backup.p99", copying.ms(0.99), bare=alone.ms(0.99), note=f"{old:,} runs in {copying.elapsed:.1f} s")
    b.report("prune.p99", pruning.ms(0.99), bare=alone.ms(0.99), note=f"worst {pruning.ms(1):.0f} ms")
    b.report("prune", old / pruning.elapsed, note=f"{old:,} runs in {pruning.elapsed:.1f} s")


async def _starts_while(client: Client, work: Coroutine[object, object, None]) -> Load:
    """How long StartRun takes, one call at a time, until something else is done."""
    task = asyncio.create_task(work)
    done = Load()
    began = time.perf_counter()
    while not task.done():
        at = time.perf_counter()
        await client.start("pure", '{"n":1}', wait=False)
        done.took.append(time.perf_counter() - at)
    await task
    done.elapsed = time.perf_counter() - began
    return done
