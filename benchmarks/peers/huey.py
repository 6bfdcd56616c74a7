"""Huey over SQLite: a queue of tasks; a pipeline of three tasks stands for a run."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huey import SqliteHuey

from benchmarks.peers.engine import PAYLOAD, Engine, post

queue = SqliteHuey("bench", filename=os.environ.get("BENCH_HUEY", "/nonexistent/huey.db"), create_tables=False)


@queue.task()
def plus_one(n: int) -> int:
    return n + 1


@queue.task()
def send(before: int) -> int:
    return before + post(os.environ["BENCH_URL"])


@queue.task()
def take(n: int, text: str) -> None:
    """Nothing is kept of it but that it is gone from the queue."""


class Huey(Engine):
    """A consumer process with 16 threads; the client waits for results in threads."""

    accepts = "enqueue in the process, returns after the row is stored"

    async def open(self) -> None:
        file = self.folder / "huey.db"
        environment = {"BENCH_HUEY": str(file), "BENCH_URL": self.url, "PYTHONPATH": str(Path.cwd())}
        queue.storage.filename = str(file)
        queue.storage.initialize_schema()
        consumer = Path(sys.executable).with_name("huey_consumer")
        options = ["-w", "16", "-n", "-d", "0.001", "-m", "0.01"]
        self.spawn([sys.executable, str(consumer), "benchmarks.peers.huey.queue", *options], **environment)
        self._threads = ThreadPoolExecutor(64)
        self.stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)

    async def _in_thread(self, work, *args: object) -> int:
        return int(await asyncio.get_running_loop().run_in_executor(self._threads, work, *args))

    async def light(self, n: int) -> int:
        return await self._in_thread(_pipeline, plus_one.s(n).then(plus_one).then(plus_one))

    async def http(self, n: int) -> int:  # noqa: ARG002
        return await self._in_thread(_pipeline, send.s(0).then(send).then(send))

    async def fan(self, size: int) -> int:
        return await self._in_thread(_fan, size)

    async def accept(self, n: int) -> None:
        await self._in_thread(_take, n)


def _pipeline(tasks: object) -> int:
    return queue.enqueue(tasks).get(blocking=True, timeout=60, backoff=1.0, max_delay=0.005)[-1]


def _fan(size: int) -> int:
    results = [plus_one(n) for n in range(size)]
    return len([one.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.005) for one in results])


def _take(n: int) -> int:
    take(n, PAYLOAD)
    return n


ENGINE = Huey
