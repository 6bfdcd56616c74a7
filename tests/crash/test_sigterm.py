"""SIGTERM drains: what can finish finishes, the rest stays resumable, streams are told, the exit code is 0."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import grpc.aio
import pytest
from harness import Daemon, EffectServer, start_run, wait_until_idle
from taskforge.v1 import run_pb2, run_service_pb2

DEFINITION = """
name: work
input: {type: object, required: [url, nap], properties: {url: {type: string}, nap: {type: string}}}
steps:
  - id: call
    http: {method: POST, url: "${{ input.url }}"}
    timeout: 60s
    retry: {max_attempts: 3, delay: 50ms}
  - id: nap
    sleep: ${{ input.nap }}
  - id: after
    transform: {status: "${{ steps.call.output.status }}"}
"""


async def _watch(
    daemon: Daemon, run_id: str, after: int = 0, *, live: asyncio.Semaphore | None = None
) -> tuple[list[int], grpc.StatusCode]:
    """Follow a run to the end of the stream; answers the sequence numbers and how the stream ended.

    Releases `live` at the first portion.
    """
    seen: list[int] = []
    stream = daemon.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after))
    try:
        async for portion in stream:
            if live is not None and not seen:
                live.release()
            seen += [event.sequence for event in portion.events]
    except grpc.aio.AioRpcError as error:
        return seen, error.code()
    return seen, grpc.StatusCode.OK


async def _until_called(effects: EffectServer, count: int) -> None:
    async with asyncio.timeout(20):
        while sum(map(len, effects.calls().values())) < count:
            await asyncio.sleep(0.01)


@pytest.mark.timeout(90)
async def test_drain_finishes_what_it_can(daemon: Daemon, effects: EffectServer) -> None:
    await daemon.apply(DEFINITION)
    quick = [await start_run(daemon, "work", {"url": f"{effects.url}/slow?ms=400", "nap": "1ms"}) for _ in range(10)]
    asleep = [await start_run(daemon, "work", {"url": f"{effects.url}/echo", "nap": "2500ms"}) for _ in range(10)]
    await _until_called(effects, 20)
    live = asyncio.Semaphore(0)
    watchers = [asyncio.create_task(_watch(daemon, run_id, live=live)) for run_id in asleep]
    async with asyncio.timeout(10):
        for _ in watchers:
            await live.acquire()
    assert await asyncio.to_thread(daemon.terminate) == 0
    seen = await asyncio.gather(*watchers)
    assert {code for _, code in seen} == {grpc.StatusCode.UNAVAILABLE}, "a stream must say why it ended"
    assert not (daemon.home / "taskforged.json").exists(), "a clean exit takes the run file away"

    await asyncio.to_thread(daemon.start)
    resumed = await asyncio.gather(
        *(
            _watch(daemon, run_id, after=max(numbers, default=0))
            for run_id, (numbers, _) in zip(asleep, seen, strict=True)
        )
    )
    for (before, _), (after, code) in zip(seen, resumed, strict=True):
        assert code == grpc.StatusCode.OK, code
        assert before + after == list(range(1, len(before + after) + 1)), "a gap or a repeat across the restart"
    runs = await wait_until_idle(daemon, quick + asleep, within_s=30)
    assert {run.state for run in runs.values()} == {run_pb2.Run.STATE_SUCCEEDED}
    for run_id in quick + asleep:
        kinds = Counter(event.kind for event in await daemon.history(run_id))
        assert kinds["step.attempt_lost"] == 0, "a step that could finish within the grace time was cut"
    assert {len(calls) for calls in effects.calls().values()} == {1}, "nothing is called twice over a clean stop"


@pytest.mark.timeout(90)
async def test_what_outlasts_the_grace_time_is_done_again(effects: EffectServer) -> None:
    daemon = Daemon(env={"TASKFORGE_EXECUTOR_GRACE": "0.3"})
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        run_id = await start_run(daemon, "work", {"url": f"{effects.url}/slow?ms=3000", "nap": "1ms"})
        await _until_called(effects, 1)
        assert await asyncio.to_thread(daemon.terminate) == 0
        await asyncio.to_thread(daemon.start)
        runs = await wait_until_idle(daemon, [run_id], within_s=30)
        assert runs[run_id].state == run_pb2.Run.STATE_SUCCEEDED
        assert [key for key, calls in effects.calls().items() for _ in calls] == [f"{run_id}/call"] * 2
        verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run_id), timeout=20)
        assert verdict.intact, list(verdict.faults)
    finally:
        await daemon.aclose()


@pytest.mark.timeout(60)
async def test_a_second_signal_ends_at_once(daemon: Daemon, effects: EffectServer) -> None:
    await daemon.apply(DEFINITION)
    run_id = await start_run(daemon, "work", {"url": f"{effects.url}/slow?ms=3000", "nap": "1ms"})
    await _until_called(effects, 1)
    daemon.terminate(wait=False)
    async with asyncio.timeout(10):
        while "daemon.draining" not in daemon.log_text():
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(daemon.terminate) != 0
    await asyncio.to_thread(daemon.start)
    runs = await wait_until_idle(daemon, [run_id], within_s=40)
    assert runs[run_id].state == run_pb2.Run.STATE_SUCCEEDED
