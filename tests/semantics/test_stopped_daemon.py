"""A daemon that stands still for longer than anything looks for lost work: nobody takes its work, and it repeats none.

There is no time to live that could run out. The lock of the home belongs to the process, also while it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import grpc.aio
import pytest
from harness import Daemon, EffectServer, start_run, wait_until_idle
from taskforge.v1 import run_pb2, run_service_pb2

SCAN_S = 0.2
"""How often the daemon looks for work that is lost; the smallest of all its intervals that have to do with runs."""

STOPPED_S = 10 * SCAN_S
LONG_S = 600.0 if "TASKFORGE_TEST_CYCLES" in os.environ else 20 * SCAN_S
CUT_S = 3.0
"""A call that a kill is to cut: it must be at work still when all others have begun, also on a busy machine."""

EXIT_FAILED = 1
EACH = 4

DEFINITION = """
name: under-way
input: {type: object, required: [base, ms], properties: {base: {type: string}, ms: {type: integer}}}
steps:
  - id: again
    http: {method: POST, url: "${{ input.base }}/slow?ms=${{ input.ms }}"}
    timeout: 15m
    needs: []
  - id: once
    http: {method: POST, url: "${{ input.base }}/slow?ms=${{ input.ms }}"}
    timeout: 15m
    effect: once
    needs: []
"""


async def _under_way(daemon: Daemon, effects: EffectServer, lengths_s: list[float]) -> list[str]:
    """Start runs whose two calls are at work."""
    await daemon.apply(DEFINITION)
    inputs = [{"base": effects.url, "ms": round(seconds * 1000)} for seconds in lengths_s]
    runs = [await start_run(daemon, "under-way", payload) for payload in inputs]
    for _ in range(600):
        if len(effects.calls()) == 2 * len(runs):
            return runs
        await asyncio.sleep(0.02)
    raise AssertionError(f"only {len(effects.calls())} calls are at work\n{daemon.tail()}")


@pytest.mark.timeout(120 + LONG_S)
async def test_nothing_is_taken_from_a_daemon_that_stands_still(effects: EffectServer, tmp_path: Path) -> None:
    daemon = Daemon(env={"TASKFORGE_LIMITS_STUCK_SCAN": str(SCAN_S)})
    try:
        await asyncio.to_thread(daemon.start)
        # Some end while it is stopped, some later, and one takes many times as long as anybody waits between two looks.
        runs = await _under_way(daemon, effects, [STOPPED_S / 2] * EACH + [STOPPED_S * 1.5] * EACH + [LONG_S])
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            await asyncio.to_thread(_check_refused, daemon, tmp_path)
            await asyncio.sleep(STOPPED_S)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        ended = await wait_until_idle(daemon, runs, within_s=60 + LONG_S)
        assert {run.state for run in ended.values()} == {run_pb2.Run.STATE_SUCCEEDED}
        assert {key: len(made) for key, made in effects.calls().items()} == {
            f"{run_id}/{step}": 1 for run_id in runs for step in ("again", "once")
        }
        for run_id in runs:
            kinds = Counter((event.kind, event.step) for event in await daemon.history(run_id))
            for step in ("again", "once"):
                assert (kinds["step.started", step], kinds["step.completed", step]) == (1, 1), run_id
        for event in ("run.stuck", "attempt.fenced", "loop.blocked"):
            assert event not in daemon.log_text(), f"the log tells of {event}"
    finally:
        await daemon.aclose()


NAP = """
name: nap
steps:
  - id: nap
    sleep: 10ms
"""


async def test_nothing_is_taken_while_the_event_loop_stands_still(effects: EffectServer) -> None:
    blocked = {"TASKFORGE_FAILPOINTS": f"timer.due=sleep:{STOPPED_S}", "TASKFORGE_LOG_STALL": "1"}
    daemon = Daemon(env={"TASKFORGE_LIMITS_STUCK_SCAN": str(SCAN_S), **blocked})
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(NAP)
        runs = await _under_way(daemon, effects, [STOPPED_S / 2] * EACH + [STOPPED_S * 1.5] * EACH)
        runs.append(await start_run(daemon, "nap"))
        ended = await wait_until_idle(daemon, runs, within_s=60)
        assert {run.state for run in ended.values()} == {run_pb2.Run.STATE_SUCCEEDED}
        assert {len(made) for made in effects.calls().values()} == {1}
        assert "loop.blocked" in daemon.log_text(), "it did not stand still: this test has shown nothing"
        for event in ("run.stuck", "attempt.fenced"):
            assert event not in daemon.log_text(), f"the log tells of {event}"
    finally:
        await daemon.aclose()


def _check_refused(daemon: Daemon, scratch: Path) -> None:
    """A second daemon on the home of a stopped one ends by itself, and says who has it."""
    second = Daemon(daemon.home)
    second.log = scratch / "second.log"
    process = second.spawn()
    try:
        assert process.wait(30) == EXIT_FAILED
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert f"pid {daemon.pid}" in second.log_text()
    assert "Traceback" not in second.log_text()


async def test_a_copied_home_repeats_only_what_may_be_repeated(effects: EffectServer, tmp_path: Path) -> None:
    """Two daemons continue the same runs, each on its own copy: the receivers see the same keys, and `once` stays once."""
    original, copy = Daemon(), Daemon(tmp_path / "copy")
    try:
        await asyncio.to_thread(original.start)
        runs = await _under_way(original, effects, [CUT_S] * EACH)
        await asyncio.to_thread(original.kill)
        shutil.copytree(original.home, copy.home, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        await asyncio.gather(asyncio.to_thread(original.start), asyncio.to_thread(copy.start))
        for daemon in (original, copy):
            for run_id in runs:
                await _until_it_asks(daemon, run_id)
        made = {key: len(calls) for key, calls in effects.calls().items()}
        assert made.keys() == {f"{run_id}/{step}" for run_id in runs for step in ("again", "once")}
        assert {count for key, count in made.items() if key.endswith("/once")} == {1}
        assert {count for key, count in made.items() if key.endswith("/again")} == {3}, (
            "one cut, and one of each daemon"
        )
    finally:
        await original.aclose()
        await copy.aclose()


async def _until_it_asks(daemon: Daemon, run_id: str) -> None:
    """Wait until a run has done what it may, and asks about the rest."""
    wanted = {"again": run_pb2.StepRun.STATE_SUCCEEDED, "once": run_pb2.StepRun.STATE_NEEDS_DECISION}
    for _ in range(600):
        try:
            run = (await daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=10)).run
        except grpc.aio.AioRpcError as error:
            raise AssertionError(daemon.tail()) from error
        if {step.key: step.state for step in run.steps} == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{run_id} is {run.steps}\n{daemon.tail()}")
