"""What an adapter is, and the work that each is given.

`python -m benchmarks.peers.engine NAME FOLDER URL SECONDS` sets the engine up in a scratch folder, gives it the work,
checks that every run has the right result, and prints one JSON line for each figure. `URL` answers each POST at once.
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from benchmarks.load import IN_FLIGHT, load

FAN_OUT = 1000
PAYLOAD = json.dumps({"n": 1, "text": "x" * 8000})
_GIVE_UP_S = 90.0


class Engine(abc.ABC):
    """An engine that is set up in a folder.

    Attributes:
        accepts: how it takes a run durably without waiting for it.
    """

    accepts: ClassVar[str] = ""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.stack = contextlib.AsyncExitStack()

    @abc.abstractmethod
    async def open(self) -> None:
        """Start it."""

    @abc.abstractmethod
    async def light(self, n: int) -> int:
        """One run of three light steps, n + 1 each; answers n + 3."""

    @abc.abstractmethod
    async def http(self, n: int) -> int:
        """One run of three steps that POST to `url`, in a row; answers how many answers were right."""

    @abc.abstractmethod
    async def fan(self, size: int) -> int:
        """One run of so many light steps side by side; answers how many have ended."""

    async def accept(self, n: int) -> None:
        """Take a run of one light step with 8 KB of input, durably, and do not wait for its end."""
        raise NotImplementedError

    async def completed(self) -> int | None:
        """How many runs its own store says have ended well; None when it does not say."""
        return None

    def spawn(self, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a process of the engine, which `stack` ends; its log is in the folder."""
        log = (self.folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log").open("wb")
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
        )
        self.stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def until_open(port: int, within_s: float = 180.0) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


def post(url: str, body: bytes = b'{"step": 1}') -> int:
    """POST and wait, for engines whose steps are threads; 1 when the answer is right."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.load(answer)["ok"])


async def _work(engine: Engine, seconds: float) -> None:
    async def light(n: int) -> None:
        _expect(await engine.light(n), n + 3)

    async def http(n: int) -> None:
        _expect(await engine.http(n), 3)

    async def accept(n: int) -> None:
        await engine.accept(n)

    runs = await _one("light", light, seconds)
    runs += await _one("http", http, seconds)
    runs += await _one("latency", light, seconds / 2, 1)
    with _row("fan"):
        async with asyncio.timeout(_GIVE_UP_S):
            began = time.perf_counter()
            _expect(await engine.fan(FAN_OUT), FAN_OUT)
            _say("fan", seconds=time.perf_counter() - began)
            runs += 1
    if engine.accepts:
        runs += await _one("accept", accept, seconds)
        await _drain(engine, runs)


async def _one(row: str, call: Callable[[int], Awaitable[None]], seconds: float, width: int = IN_FLIGHT) -> int:
    """Some calls to warm up, then so many seconds of load; answers how many were made."""
    with _row(row):
        async with asyncio.timeout(_GIVE_UP_S):
            warm = await load(call, count=min(10, width), width=width)
            done = await load(call, seconds=seconds, width=width)
            _say(row, per_s=done.rate, p50_ms=done.ms(0.5), p99_ms=done.ms(0.99), runs=done.count)
            return warm.count + done.count
    return 0


async def _drain(engine: Engine, runs: int) -> None:
    """Wait for runs that were taken, and hold the engine's own count against what was asked for."""
    deadline = time.monotonic() + 30
    found = await engine.completed()
    while found is not None and found < runs and time.monotonic() < deadline:
        await asyncio.sleep(0.25)
        found = await engine.completed()
    _say("completed", asked=runs, found=found)


@contextlib.contextmanager
def _row(row: str):
    try:
        yield
    except Exception as error:
        _say(row, failed=f"{type(error).__name__}: {str(error)[:300] or f'not done within {_GIVE_UP_S:.0f} s'}")


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise RuntimeError(f"a run answered {found!r} and not {wanted!r}")


def _say(row: str, **figures: object) -> None:
    print(json.dumps({"row": row, **figures}), flush=True)


async def _main(kind: type[Engine], folder: Path, url: str, seconds: float) -> None:
    engine = kind(folder, url)
    async with engine.stack:
        await engine.open()
        _say("accepts", how=engine.accepts)
        await _work(engine, seconds)


def main() -> None:
    """Let an adapter work: `ENGINE` of the module of that name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    kind = importlib.import_module(f"benchmarks.peers.{arguments.name}").ENGINE
    asyncio.run(_main(kind, arguments.folder, arguments.url, arguments.seconds))
    sys.stdout.flush()
    os._exit(0)  # engines leave threads behind that would wait for work


if __name__ == "__main__":
    main()
