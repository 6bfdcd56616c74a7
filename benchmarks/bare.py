"""What the parts cost without Taskforge, measured in the same run: the yardstick for each figure."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import grpc.aio
from harness import github_payload
from taskforge.v1 import run_service_pb2, run_service_pb2_grpc

from benchmarks.load import IN_FLIGHT, Load, load

HERE = Path(__file__).resolve().parent

REFERENCE = {"grpc": 4600.0, "http": 14_000.0, "sqlite 1": 5000.0}
"""Operations a second on the machine for which section 7 of the design sets its budgets."""


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


async def rate(kind: str, folder: Path, seconds: float) -> float:
    """Operations a second: `grpc`, `http`, `echo`, or `sqlite N` with N transitions to a commit."""
    if kind.startswith("sqlite "):
        return sqlite_transitions_per_s(folder, int(kind.split()[1]), seconds)
    return (await (grpc_calls(seconds) if kind == "grpc" else http_requests(kind, seconds))).rate


def sqlite_transitions_per_s(folder: Path, batch: int, seconds: float) -> float:
    """Step transitions a second: one history row and one update each, `batch` to a commit, full fsync."""
    file = folder / f"bare-{batch}.db"
    file.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
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


async def grpc_calls(seconds: float, width: int = IN_FLIGHT) -> Load:
    """Unary calls to a bare grpc.aio server."""
    with server("grpc") as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = run_service_pb2_grpc.RunServiceStub(channel)
            request = run_service_pb2.StartRunRequest(workflow="light", input_json='{"n":1}')
            metadata = (("authorization", "Bearer " + "x" * 60),)

            async def call(_: int) -> None:
                await stub.StartRun(request, metadata=metadata)

            await load(call, count=200, width=width)
            return await load(call, seconds=seconds, width=width)


async def http_requests(kind: str, seconds: float) -> Load:
    """Requests of an aiohttp client to a bare server: a webhook's 8 KB to `http`, little to `echo`."""
    body = github_payload() if kind == "http" else b'{"step": 1}'
    with server(kind) as port:
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def call(_: int) -> None:
                async with session.post(f"http://127.0.0.1:{port}/hook", data=body) as response:
                    await response.read()

            await load(call, count=200)
            return await load(call, seconds=seconds)


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
