"""The wall clock of a running daemon jumps for hours and years, forth and back: nothing fires twice, nothing comes early.

All that is measured here is measured by the test's own monotonic clock, at a server that the runs call.
`TASKFORGE_TEST_CYCLES` makes it longer (`make soak`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Daemon, EffectServer, start_run, wait_until_idle
from ledger import check_ledgers
from taskforge.v1 import run_pb2, run_service_pb2
from turned import DAY_S, HOUR_S, MINUTE_S, WallClock

IS_LONG = "TASKFORGE_TEST_CYCLES" in os.environ
BETWEEN_S = 5.0 if IS_LONG else 1.2
JUMPS = (HOUR_S, -HOUR_S, 400 * DAY_S, -10 * MINUTE_S)
ROUNDS = 6 if IS_LONG else 1
PAUSE_S = 0.8
"""How long the runs pause: before they try again, in a sleep, and while they wait for a signal."""

EARLY_S = 0.05
"""What two clocks may differ by: the daemon reads its own before it hands a call to the network."""

POLICIES = {
    "all": "{policy: all, cap: 5}",
    "latest": "latest",
    "skip": "skip",
}

RETRIED = """
name: retried
input: {type: object, required: [base], properties: {base: {type: string}}}
timeout: 60s
steps:
  - id: flaky
    http: {method: POST, url: "${{ input.base }}/fail?n=2"}
    retry: {max_attempts: 3, strategy: fixed, delay: 800ms, jitter: none}
  - id: nap
    sleep: 800ms
  - id: long
    http: {method: POST, url: "${{ input.base }}/slow?ms=2000"}
    timeout: 30s
  - id: ask
    wait: {signal: never, timeout: 800ms, on_timeout: continue}
  - id: end
    http: {method: POST, url: "${{ input.base }}/echo"}
"""


def _scheduled() -> str:
    triggers = [
        f"  {misfire}-{n}: {{cron: {{schedule: '* * * * * *', seconds: true, misfire: {how}, overlap: allow}}}}"
        for misfire, how in POLICIES.items()
        for n in range(3)
    ]
    return "\n".join(["name: scheduled", "on:", *triggers, "steps: [{id: look, transform: {x: 1}}]"])


@pytest.fixture
def wall() -> Iterator[WallClock]:
    """A clock to turn."""
    with WallClock() as made:
        yield made


@pytest.mark.timeout(600)
async def test_a_clock_that_jumps_repeats_nothing_and_makes_nothing_early(
    wall: WallClock, effects: EffectServer
) -> None:
    daemon = Daemon(env=wall.env)
    runs: list[str] = []

    async def start(count: int) -> None:
        runs.extend([await start_run(daemon, "retried", {"base": effects.url}) for _ in range(count)])

    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(RETRIED)
        await daemon.apply(_scheduled())
        await start(5)
        began = time.monotonic()
        for _ in range(ROUNDS):
            for jump in JUMPS:
                await asyncio.sleep(BETWEEN_S)
                wall.turn(jump)
                await start(3)
        await asyncio.sleep(BETWEEN_S)
        wall.turn(-wall.turned_s)
        await start(3)
        ended = await wait_until_idle(daemon, runs, within_s=90)
        before = await _fired(daemon)
        await _fired_after(daemon, before)
        left_s = time.monotonic() - began
        bad = {run.id: run.error for run in ended.values() if run.state != run_pb2.Run.STATE_SUCCEEDED}
        assert not bad, f"a jump has ended runs: {bad}"
        gaps = _check_pauses(runs, effects)
        for run_id in runs:
            verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run_id), timeout=20)
            assert verdict.intact, f"{run_id}: {list(verdict.faults)}"
        assert await asyncio.to_thread(daemon.terminate) == 0
        assert "clock.jumped" in daemon.log_text()
        assert "schedule.clock_was_ahead" in daemon.log_text()
        uri = f"file:{daemon.home / 'taskforge.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            outcomes = check_ledgers(connection)
        print(f"{ROUNDS * len(JUMPS) + 1} jumps in {left_s:.0f} s; due times {dict(outcomes)}; shortest pauses {gaps}")
    finally:
        await daemon.aclose()


async def _fired(daemon: Daemon) -> int:
    return len(await daemon.list_runs(workflow="scheduled"))


async def _fired_after(daemon: Daemon, before: int) -> None:
    """The clock is right again: what is due every second fires again, and does not wait for next year."""
    for _ in range(300):
        if await _fired(daemon) >= before + len(POLICIES) * 3:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"nothing fires any more\n{daemon.tail(20)}")


def _check_pauses(runs: list[str], effects: EffectServer) -> dict[str, float]:
    """No pause was shorter than it was asked to be; answers the shortest of each kind."""
    calls = effects.calls()
    gaps: dict[str, list[float]] = {"retry": [], "sleep": [], "wait": []}
    for run_id in runs:
        flaky, long, end = (calls[f"{run_id}/{step}"] for step in ("flaky", "long", "end"))
        assert [call.status for call in flaky] == [503, 503, 200], f"{run_id}: {[call.status for call in flaky]}"
        assert (len(long), len(end)) == (1, 1), f"{run_id}: an attempt was taken for lost"
        gaps["retry"] += [later.began - one.ended for one, later in zip(flaky, flaky[1:], strict=False)]
        gaps["sleep"].append(long[0].began - flaky[-1].ended)
        gaps["wait"].append(end[0].began - long[0].ended)
    shortest: dict[str, Any] = {kind: round(min(found), 3) for kind, found in gaps.items()}
    assert all(found >= PAUSE_S - EARLY_S for found in shortest.values()), shortest
    return shortest
