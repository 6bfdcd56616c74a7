"""Runs that always fail, as many as good ones, on four slots: the good ones get through, and the bad ones can be mended.

`TASKFORGE_TEST_CYCLES` (`make soak`) makes it a thousand of each.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter

import pytest
from harness import TERMINAL, Daemon, EffectServer
from taskforge.v1 import (
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
)

COUNT = 1000 if "TASKFORGE_TEST_CYCLES" in os.environ else 120
EXECUTORS = 4
ATTEMPTS = 3

GOOD = """
name: good
input: {type: object, required: [base], properties: {base: {type: string}}}
steps:
  - id: call
    http: {method: POST, url: "${{ input.base }}/slow?ms=5"}
"""

BAD = """
name: bad
input: {type: object, required: [base], properties: {base: {type: string}}}
steps:
  - id: before
    http: {method: POST, url: "${{ input.base }}/echo"}
  - id: call
    http: {method: POST, url: "${{ input.base }}/broken"}
    retry: {max_attempts: 3, strategy: exponential, delay: 50ms, max_delay: 200ms, jitter: full}
output: {status: "${{ steps.call.output.status }}"}
"""


async def _start(daemon: Daemon, effects: EffectServer, *workflows: str) -> list[str]:
    """Start as many of each, in turns."""
    text = json.dumps({"base": effects.url})
    requests = [
        run_service_pb2.StartRunRequest(workflow=workflow, input_json=text)
        for _ in range(COUNT)
        for workflow in workflows
    ]
    found: list[str] = []
    for begin in range(0, len(requests), 500):
        batch = run_service_pb2.BatchStartRunsRequest(requests=requests[begin : begin + 500])
        found += (await daemon.runs.BatchStartRuns(batch, timeout=60)).run_ids
    return found


async def _ended(daemon: Daemon, run_ids: list[str]) -> dict[str, run_pb2.Run]:
    wanted = set(run_ids)
    for _ in range(3000):
        ended = {run.id: run for run in await daemon.list_runs() if run.id in wanted and run.state in TERMINAL}
        if len(ended) == len(wanted):
            return ended
        await asyncio.sleep(0.2)
    raise AssertionError(f"{len(wanted) - len(ended)} runs have not ended\n{daemon.tail()}")


def _p99_s(runs: list[run_pb2.Run]) -> float:
    took = sorted((run.end_time.ToMicroseconds() - run.create_time.ToMicroseconds()) / 1e6 for run in runs)
    return took[len(took) * 99 // 100]


@pytest.mark.timeout(900)
async def test_bad_runs_do_not_stop_good_ones_and_can_be_mended(effects: EffectServer) -> None:
    daemon = Daemon(env={"TASKFORGE_EXECUTOR_POOL_SIZE": str(EXECUTORS)})
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(GOOD)
        await daemon.apply(BAD)
        alone = await _ended(daemon, await _start(daemon, effects, "good"))
        beside = await _ended(daemon, await _start(daemon, effects, "good", "bad"))
        good = [run for run in beside.values() if run.workflow == "good"]
        bad = {run.id: run for run in beside.values() if run.workflow == "bad"}
        assert {run.state for run in good} == {run_pb2.Run.STATE_SUCCEEDED}
        assert {run.state for run in bad.values()} == {run_pb2.Run.STATE_DEAD}
        calls = effects.calls()
        tried = Counter(len(calls[f"{run_id}/call"]) for run_id in bad)
        assert tried == {ATTEMPTS: COUNT}, f"attempts: {tried}"
        assert await _dead(daemon) == bad.keys()
        first, second = _p99_s(list(alone.values())), _p99_s(good)
        effects.mended = True
        mended = await _requeue(daemon, list(bad))
        assert not await _dead(daemon)
        await _check_mended(daemon, effects, mended)
        print(
            f"{COUNT} good runs on {EXECUTORS} slots: p99 {first:.2f} s alone, {second:.2f} s beside as many bad ones"
            f" ({second / first:.2f} times); {COUNT} dead letters, requeued, all mended"
        )
    finally:
        await daemon.aclose()


async def _dead(daemon: Daemon) -> set[str]:
    stub = daemon.stub(dead_letter_service_pb2_grpc.DeadLetterServiceStub)
    page = await stub.ListDeadLetters(dead_letter_service_pb2.ListDeadLettersRequest(page_size=1000), timeout=20)
    return {letter.run_id for letter in page.dead_letters}


async def _requeue(daemon: Daemon, run_ids: list[str]) -> dict[str, str]:
    """Retry them all, twice; answers old run ids by new ones."""
    stub = daemon.stub(dead_letter_service_pb2_grpc.DeadLetterServiceStub)
    request = dead_letter_service_pb2.RetryDeadLettersRequest(run_ids=run_ids)
    results = (await stub.RetryDeadLetters(request, timeout=120)).results
    again = (await stub.RetryDeadLetters(request, timeout=120)).results
    assert [(one.run_id, one.new_run_id, one.error) for one in results] == [
        (one.run_id, one.new_run_id, one.error) for one in again
    ], "asked again, the answer is the same"
    assert not [one for one in results if one.error]
    return {one.new_run_id: one.run_id for one in results}


async def _check_mended(daemon: Daemon, effects: EffectServer, mended: dict[str, str]) -> None:
    await _ended(daemon, list(mended))
    calls = effects.calls()
    for run_id, before in mended.items():
        run = (await daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=20)).run
        assert (run.state, run.retry_of, run.output_json) == (
            run_pb2.Run.STATE_SUCCEEDED,
            before,
            '{"status":200}',
        )
        assert [call.status for call in calls[f"{run_id}/call"]] == [200]
        assert f"{run_id}/before" not in calls, "what had succeeded is taken over and not done again"
        assert len(calls[f"{before}/before"]) == 1
