"""What the parts cost without Taskforge, measured in the same run: the yardstick for each figure."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import quantiles

import aiohttp
import grpc.aio
from taskforge.v1 import run_service_pb2, run_service_pb2_grpc

HERE = Path(__file__).resolve().parent
IN_FLIGHT = 64


@contextlib.contextmanager
def server(kind: str) -> Iterator[int]:
    """A server process of `servers.py`; answers its port."""
    process = subprocess.Popen(
        [sys.executable, HERE / "servers.py", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values are."""
    return quantiles(values, n=1000, method="inclusive")[min(998, round(share * 1000) - 1)]


async def in_flight(
    count: int, call: Callable[[int], Awaitable[object]], width: int = IN_FLIGHT
) -> tuple[float, list[float]]:
    """Make `count` calls, `width` at a time; answers the seconds in all and of each."""
    numbers = iter(range(count))
    took: list[float] = []

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            await call(number)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(width)))
    return time.perf_counter() - began, took


def sqlite_transitions_per_s(folder: Path, batch: int, seconds: float) -> float:
    """Step transitions a second: one history row and one update each, `batch` to a commit, full fsync."""
    with contextlib.closing(sqlite3.connect(folder / f"bare-{batch}.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE history (run INTEGER, no INTEGER, body BLOB, PRIMARY KEY (run, no)) WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE runs (no INTEGER PRIMARY KEY, state INTEGER)")
        connection.executemany("INSERT INTO runs VALUES (?, 0)", [(n,) for n in range(1000)])
        body = b"x" * 160
        count = 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(batch):
                count += 1
                connection.execute("INSERT INTO history VALUES (?, ?, ?)", (count // 3, count, body))
                connection.execute("UPDATE runs SET state = ? WHERE no = ?", (count, count % 1000))
            connection.execute("COMMIT")
        return count / elapsed


async def grpc_calls(count: int, width: int = IN_FLIGHT) -> tuple[float, list[float]]:
    """Calls a second of a bare grpc.aio server, and how long each took."""
    with server("grpc") as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = run_service_pb2_grpc.RunServiceStub(channel)
            request = run_service_pb2.StartRunRequest(workflow="light", input_json='{"n":1}')
            metadata = (("authorization", "Bearer " + "x" * 60),)
            await in_flight(200, lambda _: stub.StartRun(request, metadata=metadata), width)
            elapsed, took = await in_flight(count, lambda _: stub.StartRun(request, metadata=metadata), width)
    return count / elapsed, took


async def http_requests(kind: str, count: int, body: bytes) -> tuple[float, list[float]]:
    """Requests a second of an aiohttp client to a bare server, and how long each took."""
    with server(kind) as port:
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def call(_: int) -> None:
                async with session.post(f"http://127.0.0.1:{port}/hook", data=body) as response:
                    await response.read()

            await in_flight(200, call)
            elapsed, took = await in_flight(count, call)
    return count / elapsed, took


def bare_python() -> tuple[float, int]:
    """Seconds until a Python with the daemon's libraries is up, and its resident bytes."""
    code = (
        "import asyncio, sqlite3, grpc.aio, aiohttp.web, uvloop, orjson, structlog, jsonschema_rs, yaml;"
        "from cel_expr_python import cel;"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')][0])"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, int(done.stdout) * 1024
