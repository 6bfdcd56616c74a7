"""SIGKILL with hundreds of runs that wait behind two slots: what has not begun is not forgotten.

`TASKFORGE_TEST_SEED` repeats the instants, `TASKFORGE_TEST_CYCLES` sets how many kills (`make soak`: more).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter

import pytest
from harness import Daemon, EffectServer, seeded, wait_until_idle
from taskforge.v1 import run_pb2, run_service_pb2

CYCLES = min(int(os.environ.get("TASKFORGE_TEST_CYCLES", "3")), 20)
"""Each kill leaves fewer in line: more than so many would find none."""

QUEUED = 500
EXECUTORS = 2
LEFT = 100
"""So many must still wait at a kill for it to count."""

DEFINITION = """
name: lined-up
input: {type: object, required: [base], properties: {base: {type: string}}}
steps:
  - id: call
    http: {method: POST, url: "${{ input.base }}/slow?ms=2"}
  - id: end
    transform: {status: "${{ steps.call.output.status }}"}
"""


@pytest.mark.timeout(180 + 10 * CYCLES)
async def test_what_waits_behind_two_slots_survives(effects: EffectServer) -> None:
    chance = seeded("test_kill9_queued")
    daemon = Daemon(env={"TASKFORGE_EXECUTOR_POOL_SIZE": str(EXECUTORS)})
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        one = run_service_pb2.StartRunRequest(workflow="lined-up", input_json=json.dumps({"base": effects.url}))
        batch = run_service_pb2.BatchStartRunsRequest(requests=[one] * QUEUED)
        runs = list((await daemon.runs.BatchStartRuns(batch, timeout=30)).run_ids)
        waiting = []
        for cycle in range(CYCLES):
            await asyncio.to_thread(daemon.kill)
            waiting.append(QUEUED - len(effects.calls()))
            await asyncio.to_thread(daemon.start)
            if cycle + 1 < CYCLES:
                await asyncio.sleep(chance.uniform(0.0, 0.3))
        assert sum(count >= LEFT for count in waiting) >= min(CYCLES, 2), f"too few waited at the kills: {waiting}"
        ended = await wait_until_idle(daemon, runs, within_s=120)
        assert Counter(run.state for run in ended.values()) == {run_pb2.Run.STATE_SUCCEEDED: QUEUED}
        calls = effects.calls()
        assert calls.keys() == {f"{run_id}/call" for run_id in runs}
        per_kill = [
            sum(
                any(one.began <= kill.after <= other.began for one, other in zip(made, made[1:], strict=False))
                for made in calls.values()
            )
            for kill in daemon.kills
        ]
        repeats = sum(len(made) - 1 for made in calls.values())
        assert repeats == sum(per_kill), "a call was repeated that no kill had cut"
        assert max(per_kill) <= EXECUTORS, f"calls repeated by each kill: {per_kill}"
        print(f"{len(daemon.kills)} kills, in line at each: {waiting}; repeated by each: {per_kill}")
    finally:
        await daemon.aclose()
