"""How figures move as something grows: stored runs, waiting runs, items of a fan-out, calls in flight."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from taskforge.v1 import run_pb2

from benchmarks import bare, fill
from benchmarks.client import Client, Meter, connected, resident, serving, stop_and_measure
from benchmarks.definitions import FAN_LIGHT, GROUPED, HTTP, PURE
from benchmarks.load import load
from benchmarks.measure import Bench

MEGA = 1e6
_STORED = (0, 10_000, 100_000, 1_000_000)
_BACKLOG = (0, 1_000, 10_000, 90_000)
_FAN_OUT = (10, 100, 1_000, 10_000)
_IN_FLIGHT = (1, 4, 16, 64, 256, 1024)
_CONNECTIONS = 4
"""A connection carries at most 1,000 calls at once."""
_DEEP = 100
"""Pages of 1,000 runs that are turned before a page is deep."""


async def stored(b: Bench) -> None:
    """Finished runs in the store, 0 to 1,000,000: throughput, lists, one run, history pages, start, memory, disk."""
    sizes = [int(size * b.share) for size in _STORED]
    homes = await _homes(b, sizes)
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(3 if b.share == 1 else 1):  # in turns, so that a noisy moment does not fall on one size
        for size, home in homes.items():
            for metric, value in (await _throughput(b, home)).items():
                found[metric][size].append(value)
    for size, home in homes.items():
        for metric, value in (await _reads(b, home, size)).items():
            found[metric][size].append(value)
    for metric, by_size in found.items():
        for size, values in by_size.items():
            b.point("stored", size, metric, median(values), _UNITS[metric])
    _report(b, {metric: [median(values) for values in by_size.values()] for metric, by_size in found.items()})
    for home in homes.values():
        fill.remove(home)


_UNITS = {
    "StartRun": "steps/s",
    "BatchStartRuns": "steps/s",
    "daemon": "processor ms for a run",
    "first page": "ms",
    "failed runs": "ms",
    "deep page": "ms",
    "one run": "ms",
    "history": "ms",
    "start": "s",
    "memory": "MB",
    "disk": "MB",
}


def _report(b: Bench, of: dict[str, list[float]]) -> None:
    """The figures at the largest size, beside those of the empty store."""
    shares = [100 * of[metric][-1] / of[metric][0] for metric in ("StartRun", "BatchStartRuns")]
    b.report("stored", min(shares), note=f"StartRun {shares[0]:.0f} %, BatchStartRuns {shares[1]:.0f} %")
    for key, metric in (
        ("stored.start", "start"),
        ("stored.memory", "memory"),
        ("stored.list", "first page"),
        ("stored.filtered", "failed runs"),
        ("stored.deep", "deep page"),
        ("stored.show", "one run"),
        ("stored.history", "history"),
    ):
        b.report(key, of[metric][-1], bare=of[metric][0])


async def _homes(b: Bench, sizes: list[int]) -> dict[int, Path]:
    origin = b.folder / "seed"
    await fill.seed(origin, b.count(fill.SEED))
    homes: dict[int, Path] = {}
    for size in sizes:
        homes[size] = b.folder / f"stored-{size}"
        if size:
            await asyncio.to_thread(shutil.copytree, origin, homes[size])
            await asyncio.to_thread(fill.multiply, homes[size], size)
        else:
            await fill.seed(homes[size], 0)
        print(f"  a home with {size:,} runs is made", flush=True)
    fill.remove(origin)
    return homes


async def _throughput(b: Bench, home: Path) -> dict[str, float]:
    """Steps a second on this home, and how long its daemon took to start."""
    async with serving(home=home) as client:
        await load(lambda _: client.start("pure", '{"n":1}', wait=True), count=100)
        meter = Meter(client.daemon)
        one = await load(lambda _: client.start("pure", '{"n":1}', wait=True), seconds=b.seconds(5))
        processor, _ = meter.per(one.count)
        many = await load(_batch_to_end(client), seconds=b.seconds(5), width=1)
        return {
            "StartRun": 3 * one.rate,
            "BatchStartRuns": 3000 * many.rate,
            "daemon": processor,
            "start": client.daemon.ready_s[-1],
        }


def _batch_to_end(client: Client) -> Callable[[int], Awaitable[None]]:
    async def call(_: int) -> None:
        await client.start_batch("pure", '{"n":1}', 1000)
        await client.until_idle()

    return call


async def _reads(b: Bench, home: Path, size: int) -> dict[str, float]:
    """What reading takes, one call at a time, and what the home takes."""
    async with serving(home=home) as client:
        await asyncio.sleep(1.0)
        memory = resident(client.daemon.pid)
        ids = [run.id for run in (await client.list_page(size=1000)).runs]
        token = ""
        for _ in range(min(_DEEP, size // 2000)):
            page = await client.list_page(token, 1000)
            token = page.next_page_token
            ids += [page.runs[0].id]
        chosen = random.Random(1).choices(ids, k=b.count(200))
        found = {
            "first page": await _p50(chosen, lambda _: client.list_page()),
            "failed runs": await _p50(chosen, lambda _: client.list_page(states=[run_pb2.Run.STATE_FAILED])),
            "deep page": await _p50(chosen, lambda _: client.list_page(token)),
            "one run": await _p50(chosen, client.show),
            "history": await _p50(chosen, client.history),
            "memory": memory / MEGA,
        }
        disk = await asyncio.to_thread(stop_and_measure, client.daemon)
        return found | {"disk": disk / MEGA}


async def _p50(ids: list[str], call: Callable[[str], Awaitable[object]]) -> float:
    return (await load(lambda n: call(ids[n]), count=len(ids), width=1)).ms(0.5)


async def backlog(b: Bench) -> None:
    """Runs that wait for a slot, 0 to 90,000: what others get beside them, memory, and the start after a stop."""
    async with serving(PURE, GROUPED) as first:
        daemon, waiting = first.daemon, 0
        for size in _BACKLOG:
            async with connected(daemon) as client:
                batches = max(1, b.count(size // 1000)) if size else 0
                await load(lambda _: client.start_batch("grouped", '{"n":1}', 1000), count=batches - waiting, width=2)
                waiting = batches
                meter = Meter(daemon)
                one = await load(lambda _: client.start("pure", '{"n":1}', wait=True), seconds=b.seconds(4))
                processor, _ = meter.per(one.count)
                memory = resident(daemon.pid)
                await asyncio.to_thread(stop_and_measure, daemon)
                await asyncio.to_thread(daemon.start)
            b.point("backlog", 1000 * waiting, "StartRun", 3 * one.rate, "steps/s")
            b.point("backlog", 1000 * waiting, "daemon", processor, "processor ms for a run")
            b.point("backlog", 1000 * waiting, "StartRun p50", one.ms(0.5), "ms")
            b.point("backlog", 1000 * waiting, "memory", memory / MEGA, "MB")
            b.point("backlog", 1000 * waiting, "start", daemon.ready_s[-1], "s")


async def fan_out(b: Bench) -> None:
    """Items of one fan-out, 10 to 10,000: milliseconds for each item, from StartRun to the end of the run."""
    async with serving(FAN_LIGHT) as client:
        for size in _FAN_OUT:
            text = json.dumps({"items": list(range(size))})
            start = functools.partial(client.start, "fan", text, wait=True)
            await start()
            took = await load(lambda _, start=start: start(), count=max(2, b.count(5000 // size)), width=1)
            b.point("fan-out", size, "an item", took.ms(0.5) / size, "ms")
            b.point("fan-out", size, "a run", took.ms(0.5), "ms")


async def concurrency(b: Bench) -> None:
    """Calls in flight, 1 to 1,024 over 4 connections: runs a second and how long each takes, pure and HTTP steps."""
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(PURE, HTTP) as client, AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(connected(client.daemon)) for _ in range(_CONNECTIONS)]
            for workflow, text in (("pure", '{"n":1}'), ("http", payload)):

                async def start(n: int, workflow: str = workflow, text: str = text) -> None:
                    await crowd[n % _CONNECTIONS].start(workflow, text, wait=True)

                await load(start, count=100)
                for width in _IN_FLIGHT:
                    done = await load(start, seconds=b.seconds(4), width=width)
                    b.point("concurrency", width, f"{workflow} steps", 3 * done.rate, "steps/s")
                    b.point("concurrency", width, f"{workflow} p50", done.ms(0.5), "ms")
                    b.point("concurrency", width, f"{workflow} p99", done.ms(0.99), "ms")
