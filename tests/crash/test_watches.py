"""Watches keep their six properties while watchers come and go and the daemon is killed: events, histories, logs."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from harness import RETRYABLE, Daemon, seeded, start_run, wait_until_idle
from nursery import Nursery
from taskforge.v1 import event_pb2, run_pb2
from taskforge.v1 import event_service_pb2 as events
from taskforge.v1 import run_service_pb2 as runs
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from watching import (
    LogCursors,
    Message,
    Record,
    Session,
    event_message,
    faults,
    history_message,
    newest_cursor,
    of_history,
    of_line,
    ordered,
    stored_events,
    unique,
)

IS_BIG = "TASKFORGE_TEST_CYCLES" in os.environ
EVENTS, WATCHERS, RECONNECTS, KILLS = (100_000, 20, 50, 20) if IS_BIG else (1_000, 6, 6, 2)
TALKERS = 3 if IS_BIG else 1
PUBLISHERS = 8

DEAF = (
    "name: deaf\non: {any: {event: {type: 'order.*'}, if: 'event.body.n < 0'}}\nsteps: [{id: a, transform: {x: 1}}]\n"
)
TALK = "name: talk\nsteps:\n" + "".join(
    f"  - {{id: nap{number}, sleep: 100ms}}\n"
    f"  - {{id: say{number}, retry: {{max_attempts: 50, delay: 10ms}},"
    f" shell: {{command: [/bin/sh, -c, 'for i in 1 2 3 4 5; do echo {number}.$i; sleep 0.02; done']}}}}\n"
    for number in range(12)
)


class Watcher:
    """Follows one thing over many streams, forgets what it has not noted, and goes on behind its last cursor."""

    def __init__(self, random_: random.Random, per_stream: int) -> None:
        self.record = Record()
        self._random = random_
        self._per_stream = per_stream

    async def follow(
        self,
        open_: Callable[[int], Any],
        parse: Callable[[Any, int], Message],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Follow until a stream ends in order, or `is_over`."""
        while not is_over():
            session = self.record.begin(self.record.cursor)
            call = open_(session.after)
            try:
                if await self._read(call, session, parse, is_over):
                    return
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                assert error.code() in RETRYABLE, error
                await asyncio.sleep(0.02)
            finally:
                call.cancel()

    async def _read(self, call: Any, session: Session, parse: Any, is_over: Callable[[], bool]) -> bool:
        """Read some of a stream; answers whether it has ended in order."""
        left = self._random.randint(1, 2 * self._per_stream)
        while left > 0 and not is_over():
            raw = await asyncio.wait_for(call.read(), 5)
            if raw is grpc.aio.EOF:
                return True
            message = parse(raw, self.record.cursor)
            if len(message.entries) > left:  # it is cut in the midst of a message, and only so much is noted
                kept = message.entries[:left]
                message = Message(kept, kept[-1].position, message.removed)
            session.messages.append(message)
            left -= max(1, len(message.entries))
        return False


async def publish(daemon: Daemon, numbers: range, acked: list[str]) -> None:
    for n in numbers:
        kind = "order.paid" if n % 2 else "nobody.asks"  # asked about later, and decided at once
        request = events.PublishEventRequest(type=kind, data_json=f'{{"n":{n}}}', request_id=str(uuid.uuid4()))
        while True:
            try:
                answer = await daemon.stub(EventServiceStub).PublishEvent(request, timeout=20)
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() in RETRYABLE, error
                await asyncio.sleep(0.05)
        acked.append(answer.event.id)


async def all_lines(daemon: Daemon, run_id: str) -> list[str]:
    found, token = [], ""
    while True:
        page = await daemon.runs.GetRunLogs(
            runs.GetRunLogsRequest(run_id=run_id, page_size=1000, page_token=token), timeout=20
        )
        found += [of_line(one) for one in page.entries]
        token = page.next_page_token
        if not token:
            return found


async def pending(daemon: Daemon) -> int:
    request = events.ListEventsRequest(outcomes=[event_pb2.Event.OUTCOME_PENDING], page_size=1)
    return len((await daemon.stub(EventServiceStub).ListEvents(request, timeout=20)).events)


@pytest.mark.timeout(7200 if IS_BIG else 150)
async def test_the_six_properties_over_kills_and_reconnects() -> None:
    chance = seeded("test_watches")
    acked: list[str] = []
    with Nursery() as nursery:
        daemon = Daemon(nursery=nursery, env={"TASKFORGE_SHELL_UNSAFE": "true"})
        try:
            await asyncio.to_thread(daemon.start)
            await daemon.apply(DEAF)
            await daemon.apply(TALK)
            await _watch_and_kill(daemon, chance, acked)
        finally:
            await daemon.aclose()


async def _watch_and_kill(daemon: Daemon, chance: random.Random, acked: list[str]) -> None:
    goal = 1 << 62
    watchers = [Watcher(chance, EVENTS // RECONNECTS) for _ in range(WATCHERS)]
    run_ids = [await start_run(daemon, "talk") for _ in range(TALKERS)]
    histories = [(run_id, Watcher(chance, 10)) for run_id in run_ids for _ in range(2)]
    logs = [(run_id, Watcher(chance, 10), LogCursors()) for run_id in run_ids for _ in range(2)]

    async def follow_events(watcher: Watcher, kind: str) -> None:
        wanted = events.EventFilter(type=kind, sources=["internal"])
        await watcher.follow(
            lambda after: daemon.stub(EventServiceStub).WatchEvents(
                events.WatchEventsRequest(filter=wanted, after_cursor=str(after))
            ),
            event_message,
            lambda: watcher.record.cursor >= goal,
        )

    async def follow_history(run_id: str, watcher: Watcher) -> None:
        request = lambda after: runs.WatchRunRequest(run_id=run_id, after_sequence=after)
        await watcher.follow(lambda after: daemon.runs.WatchRun(request(after)), history_message)

    async def follow_logs(run_id: str, watcher: Watcher, cursors: LogCursors) -> None:
        request = lambda after: runs.WatchRunLogsRequest(run_id=run_id, after_cursor=cursors.text[after])
        await watcher.follow(lambda after: daemon.runs.WatchRunLogs(request(after)), cursors.message)

    async def kill() -> None:
        for nth in range(1, KILLS + 1):
            while len(acked) < EVENTS * nth / (KILLS + 1):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(daemon.restart)

    async def work() -> None:
        nonlocal goal
        share = [range(first, EVENTS, PUBLISHERS) for first in range(PUBLISHERS)]
        await asyncio.gather(kill(), *(publish(daemon, numbers, acked) for numbers in share))
        while await pending(daemon):
            await asyncio.sleep(0.05)
        goal = await newest_cursor(daemon.stub(EventServiceStub))

    kinds = [("", "order.*")[number % 2] for number in range(WATCHERS)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work())
        for watcher, kind in zip(watchers, kinds, strict=True):
            tasks.create_task(follow_events(watcher, kind))
        for run_id, watcher in histories:
            tasks.create_task(follow_history(run_id, watcher))
        for run_id, watcher, cursors in logs:
            tasks.create_task(follow_logs(run_id, watcher, cursors))

    ended = await wait_until_idle(daemon, run_ids, within_s=30)
    assert {run.state for run in ended.values()} == {run_pb2.Run.STATE_SUCCEEDED}
    for run_id, watcher in histories:
        stored = {one.sequence: of_history(one) for one in await daemon.history(run_id)}
        assert faults(watcher.record, stored) == []
        assert watcher.record.cursor == max(stored), "it ended before the run's history did"
    for run_id, watcher, _ in logs:
        assert [*ordered(watcher.record, {}), *unique(watcher.record, {})] == []
        seen = Counter(entry.content for entry in watcher.record.entries())
        assert seen == Counter(await all_lines(daemon, run_id))
    assert await asyncio.to_thread(daemon.terminate) == 0
    stored = stored_events(daemon.home)
    assert {text.split()[0] for text in stored.values()} == set(acked), "an event was lost, or stored twice"
    for watcher, kind in zip(watchers, kinds, strict=True):
        fitting = {at: text for at, text in stored.items() if not kind or " order." in text}
        assert faults(watcher.record, fitting) == []
        assert sum(1 for _ in watcher.record.entries()) == len(fitting)
    streams = [len(watcher.record.sessions) for watcher in watchers]
    print(f"{len(stored):,} events, {WATCHERS} watchers, {min(streams)} to {max(streams)} streams each, {KILLS} kills")
