"""SIGTERM drains: what can finish finishes, the rest stays resumable, streams are told, the exit code is 0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from harness import Daemon, EffectServer, start_run, wait_until_idle
from taskforge.v1 import event_service_pb2, run_pb2, run_service_pb2
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from watching import (
    LogCursors,
    Message,
    Record,
    event_message,
    faults,
    history_message,
    newest_cursor,
    of_history,
    ordered,
    stored_events,
    unique,
)

STOP_S = 10.0
"""How long a stop may take, running steps included."""

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


class Watch:
    """One stream of whichever kind, recorded over the stop and from where it was on."""

    def __init__(self, open_: Callable[[int], Any], parse: Callable[[Any, int], Message]) -> None:
        self.record = Record()
        self.status: grpc.StatusCode | None = None
        self.live = asyncio.Event()
        self._open = open_
        self._parse = parse

    async def follow(self, goal: int = 1 << 62) -> None:
        """Read until the stream ends, or its cursor has reached a goal."""
        session = self.record.begin(self.record.cursor)
        call = self._open(session.after)
        try:
            async for raw in call:
                session.messages.append(self._parse(raw, self.record.cursor))
                self.live.set()
                if self.record.cursor >= goal:
                    break
            self.status = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            self.status = error.code()
            assert "again from the last" in error.details(), "a stream says how to go on"
        finally:
            call.cancel()


def _watches(daemon: Daemon, run_ids: Sequence[str]) -> tuple[list[Watch], list[Watch], list[Watch]]:
    """A hundred: four of each run, three of each log, thirty of all events."""

    def of_run(run_id: str) -> Watch:
        request = lambda after: run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after)
        return Watch(lambda after: daemon.runs.WatchRun(request(after)), history_message)

    def of_log(run_id: str) -> Watch:
        cursors = LogCursors()
        request = lambda after: run_service_pb2.WatchRunLogsRequest(run_id=run_id, after_cursor=cursors.text[after])
        return Watch(lambda after: daemon.runs.WatchRunLogs(request(after)), cursors.message)

    def of_events() -> Watch:
        request = lambda after: event_service_pb2.WatchEventsRequest(after_cursor=str(after))
        return Watch(lambda after: daemon.stub(EventServiceStub).WatchEvents(request(after)), event_message)

    histories = [of_run(run_id) for run_id in run_ids for _ in range(4)]
    logs = [of_log(run_id) for run_id in run_ids for _ in range(3)]
    return histories, logs, [of_events() for _ in range(100 - len(histories) - len(logs))]


async def _publish(daemon: Daemon, count: int) -> None:
    for _ in range(count):
        request = event_service_pb2.PublishEventRequest(type="nobody.asks", data_json="1")
        await daemon.stub(EventServiceStub).PublishEvent(request, timeout=20)


async def _until_called(effects: EffectServer, count: int) -> None:
    async with asyncio.timeout(20):
        while sum(map(len, effects.calls().values())) < count:
            await asyncio.sleep(0.01)


@pytest.mark.timeout(150)
async def test_a_hundred_streams_and_twenty_steps_survive_a_stop(effects: EffectServer) -> None:
    """Ten steps finish within the grace time and are not done again, ten outlast it and are; no stream misses anything."""
    daemon = Daemon(env={"TASKFORGE_EXECUTOR_GRACE": "1.5"})
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        await _stop_and_go_on(daemon, effects)
    finally:
        await daemon.aclose()


async def _start_ten(daemon: Daemon, url: str, nap: str) -> list[str]:
    return [await start_run(daemon, "work", {"url": url, "nap": nap}) for _ in range(10)]


async def _stop_and_go_on(daemon: Daemon, effects: EffectServer) -> None:
    asleep = await _start_ten(daemon, f"{effects.url}/echo", "3500ms")
    await _publish(daemon, 5)
    histories, logs, listeners = _watches(daemon, asleep)
    watches = [*histories, *logs, *listeners]
    assert len(watches) == 100
    following = [asyncio.create_task(watch.follow()) for watch in watches]
    async with asyncio.timeout(30):
        await asyncio.gather(*(watch.live.wait() for watch in watches))
    longer = await _start_ten(daemon, f"{effects.url}/slow?ms=4000", "1ms")
    quick = await _start_ten(daemon, f"{effects.url}/slow?ms=700", "1ms")
    await _until_called(effects, 30)

    daemon.STOP_S = STOP_S  # type: ignore[misc]
    assert await asyncio.to_thread(daemon.terminate) == 0
    await asyncio.gather(*following)
    assert {watch.status for watch in watches} == {grpc.StatusCode.UNAVAILABLE}, "a stream must say why it ended"
    assert not (daemon.home / "taskforged.json").exists(), "a clean exit takes the run file away"

    await asyncio.to_thread(daemon.start)
    await _publish(daemon, 5)
    goal = await newest_cursor(daemon.stub(EventServiceStub))
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(watch.follow() for watch in (*histories, *logs)), *(one.follow(goal) for one in listeners)
        )
    assert {watch.status for watch in watches} == {grpc.StatusCode.OK}

    runs = await wait_until_idle(daemon, [*quick, *longer, *asleep], within_s=30)
    assert {run.state for run in runs.values()} == {run_pb2.Run.STATE_SUCCEEDED}
    for number, watch in enumerate(histories):
        stored = {one.sequence: of_history(one) for one in await daemon.history(asleep[number // 4])}
        assert faults(watch.record, stored) == []
        assert watch.record.cursor == max(stored)
    for watch in logs:
        assert [*ordered(watch.record, {}), *unique(watch.record, {})] == []
    assert len({tuple(entry.content for entry in watch.record.entries()) for watch in logs[:3]}) == 1
    calls = {key.partition("/")[0]: len(calls) for key, calls in effects.calls().items()}
    assert {calls[run_id] for run_id in (*quick, *asleep)} == {1}, "what could finish was cut"
    assert {calls[run_id] for run_id in longer} == {2}
    for run_id in (quick[0], longer[0]):
        verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run_id), timeout=20)
        assert verdict.intact, list(verdict.faults)
    assert await asyncio.to_thread(daemon.terminate) == 0
    published = stored_events(daemon.home)
    for watch in listeners:
        assert faults(watch.record, published) == []
        assert len(list(watch.record.entries())) == len(published) == 10


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
