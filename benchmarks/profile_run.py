"""Tells where the processor time of one run goes: the daemon in this process, its load client in another one.

    python -m benchmarks.profile_run                    all loads
    python -m benchmarks.profile_run start batch        some of them
    python -m benchmarks.profile_run --runs 2000 start

The functions of `STAGES` are wrapped, and each is charged with the processor time of its thread without that of wrapped
functions inside it. What is left is gRPC, asyncio and the kernel. A wrapper costs about a microsecond and is charged to
its stage, so the table is for shares; `make bench` measures the whole without wrappers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import uvloop

from taskforged.config import load_config
from taskforged.daemon import Daemon
from taskforged.logs import configure_logging

HERE = Path(__file__).resolve().parent

STAGES = {
    "authenticate, authorise": [
        "taskforged.rpc.guard:Guard._authenticate",
        "taskforged.rpc.guard:Guard._authorise",
    ],
    "audit": ["taskforged.rpc.guard:begin", "taskforged.store.audit:Entry.take", "taskforged.store.audit:Entry.settle"],
    "read the request": [
        "taskforged.rpc.runs:_wanted",
        "taskforged.control.runs:parse_json",
        "taskforged.language.input:Contract.accept",
        "taskforged.control.pressure:Pressure.check",
    ],
    "decide who, where, whether": ["taskforged.control.runs:Runs._decide", "taskforged.host.runner:Runner.prepare"],
    "engine": ["taskforged.host.runner:apply"],
    "expressions": ["taskforged.language.templates:MapTree.evaluate", "taskforged.language.expressions:_Path.evaluate"],
    "rows": ["taskforged.host.runner:build_change"],
    "rows: JSON": ["taskforged.store.changes:canonical"],
    "rows: hash chain": ["taskforged.store.changes:chain_hash"],
    "rows: end of the run": ["taskforged.store.changes:_place_end"],
    "after the commit": ["taskforged.host.runner:Runner._created", "taskforged.host.runner:Runner._on_commit"],
    "answer": ["taskforged.rpc.convert:run_to_proto"],
    "SQL: rows": ["taskforged.store.journal:write_changes", "taskforged.store.journal:_write_audit"],
    "SQL: begin, commit, sync": ["taskforged.store.journal:_commit_together"],
}
"""Plain functions; those of one stage count together."""

LOADS = {
    "start": ("StartRun, 64 in flight", 4000),
    "wait": ("StartRun that waits, 64 in flight", 3000),
    "one": ("StartRun that waits, one at a time", 800),
    "batch": ("BatchStartRuns, 1,000 a call, two in flight", 12_000),
    "chain": ("one run of 40 light steps at a time", 200),
}


@dataclass(slots=True)
class Profile:
    """What the wrapped functions took, and how often they were called."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _inside: Any = field(default_factory=threading.local)

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Answer the function with a meter around it."""
        local, seconds, calls, now = self._inside, self.seconds, self.calls, time.thread_time

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(local, "taken", 0.0)
            local.taken = 0.0
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                whole = now() - began
                seconds[stage] += whole - local.taken
                calls[stage] += 1
                local.taken = outer + whole

        return metered

    def reset(self) -> None:
        """Begin again."""
        self.seconds.clear()
        self.calls.clear()


def install(profile: Profile) -> None:
    """Wrap all functions of `STAGES`, in the modules that call them."""
    for stage, places in STAGES.items():
        for place in places:
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, name, profile.wrap(stage, getattr(owner, name)))


@contextlib.asynccontextmanager
async def serving(home: Path) -> AsyncIterator[Daemon]:
    """A daemon in this process."""
    environment = {"TASKFORGE_GRPC_LISTEN": "127.0.0.1:0", "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0"}
    daemon = Daemon(load_config(home, None, environment))
    ready = asyncio.Event()
    running = asyncio.create_task(daemon.run(lambda _: ready.set()))
    await asyncio.wait([running, asyncio.ensure_future(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield daemon
    finally:
        daemon.request_stop()
        await running


async def measure(load: str, runs: int, profile: Profile) -> None:
    """Put a load on a daemon of its own, and print what a run of it takes."""
    with tempfile.TemporaryDirectory(prefix="tf-profile-") as folder:
        home = Path(folder) / "home"
        async with serving(home) as daemon:
            client = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "benchmarks.profile_load",
                    load,
                    str(runs),
                    daemon.info.grpc[-1],
                    str(home / "token"),
                ),
                cwd=HERE.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert client.stdin is not None
            assert client.stdout is not None
            if not await client.stdout.readline():  # it is connected, and has warmed us up
                raise SystemExit("the load client has failed")
            profile.reset()
            spent, began = time.process_time(), time.perf_counter()
            client.stdin.write(b"go\n")
            took = (await client.stdout.readline()).decode().strip()
            spent, elapsed = time.process_time() - spent, time.perf_counter() - began
            report(load, runs, profile, spent, elapsed, took)
            await client.communicate()


def report(load: str, runs: int, profile: Profile, spent: float, elapsed: float, took: str) -> None:
    """Print the table of one load."""
    print(f"\n{LOADS[load][0]}: {runs / elapsed:,.0f} runs/s, {took}")
    print(f"  {'stage':<30}{'us/run':>8}{'share':>8}{'calls/run':>11}")
    for stage in STAGES:
        seconds, calls = profile.seconds[stage], profile.calls[stage]
        print(f"  {stage:<30}{seconds / runs * 1e6:8.1f}{seconds / spent:8.1%}{calls / runs:11.2f}")
    rest = spent - sum(profile.seconds.values())
    print(f"  {'gRPC, asyncio, kernel':<30}{rest / runs * 1e6:8.1f}{rest / spent:8.1%}")
    print(f"  {'in all':<30}{spent / runs * 1e6:8.1f}", flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="where the processor time of one run goes")
    parser.add_argument("loads", nargs="*", choices=[*LOADS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=0, help="how many runs; default: enough for a few seconds")
    arguments = parser.parse_args()
    configure_logging("critical", "json")
    profile = Profile()
    install(profile)
    for load in arguments.loads or LOADS:
        uvloop.run(measure(load, arguments.runs or LOADS[load][1], profile))


if __name__ == "__main__":
    main()
