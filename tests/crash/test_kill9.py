"""SIGKILL at random instants, many times over: nothing acknowledged is lost, nothing done is done again.

`TASKFORGE_TEST_SEED` repeats the instants, `TASKFORGE_TEST_CYCLES` sets how many kills (`make soak`: 200).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from collections import Counter
from typing import Any

import grpc.aio
import pytest
from harness import Call, Daemon, EffectServer, Kill, seeded, start_run, wait_until_idle
from taskforge.v1 import run_pb2, run_service_pb2, system_service_pb2, system_service_pb2_grpc

CYCLES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "20"))
IN_FLIGHT = 180
IN_FLIGHT_MIN = 50
EXECUTORS = 64
"""What `[executor] pool_size` is."""
CLIENTS = 12

DEFINITION = """
name: mixed
input:
  type: object
  required: [base, n, nap]
  properties: {base: {type: string}, n: {type: integer}, nap: {type: string}}
steps:
  - id: prepare
    transform: {n: "${{ input.n }}", even: "${{ input.n % 2 == 0 }}"}
  - id: first
    http: {method: POST, url: "${{ input.base }}/slow?ms=60", json: {n: "${{ steps.prepare.output.n }}"}}
    timeout: 20s
    retry: {max_attempts: 5, strategy: fixed, delay: 30ms, jitter: none}
  - id: nap
    sleep: ${{ input.nap }}
  - id: route
    switch:
      - if: steps.prepare.output.even
        steps:
          - id: flaky
            http: {method: POST, url: "${{ input.base }}/fail?n=2", json: {n: "${{ input.n }}"}}
            retry: {max_attempts: 5, strategy: exponential, delay: 20ms, max_delay: 200ms, jitter: full}
      - steps:
          - id: plain
            http: {method: POST, url: "${{ input.base }}/echo", json: {n: "${{ input.n }}"}}
  - id: total
    transform: {n: "${{ steps.prepare.output.n }}", status: "${{ steps.first.output.status }}"}
output: ${{ steps.total.output }}
"""


class Load:
    """Clients that keep many runs open and repeat each StartRun until it is answered."""

    def __init__(self, daemon: Daemon, effects: EffectServer, chance: random.Random) -> None:
        self._daemon = daemon
        self._effects = effects
        self._chance = chance
        self._count = 0
        self._room = asyncio.Semaphore(0)
        self._over = False
        self.full = asyncio.Event()
        self.inputs: dict[str, int] = {}
        """The acknowledged runs, with their `n`."""

    async def run(self) -> None:
        """Feed until `finish`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())
            group.create_task(self._measure())

    def finish(self) -> None:
        """Start no more; requests under way are still repeated until they are answered."""
        self._over = True
        for _ in range(CLIENTS):
            self._room.release()

    async def _client(self) -> None:
        while True:
            await self._room.acquire()
            if self._over:
                return
            self._count += 1
            n = self._count
            payload = {"base": self._effects.url, "n": n, "nap": f"{self._chance.randint(300, 2200)}ms"}
            run_id = await start_run(self._daemon, "mixed", payload)
            assert run_id not in self.inputs, f"{run_id} answered two requests"
            self.inputs[run_id] = n

    async def _measure(self) -> None:
        system = self._daemon.stub(system_service_pb2_grpc.SystemServiceStub)
        while not self._over:
            with contextlib.suppress(grpc.aio.AioRpcError):
                stats = await system.GetStats(system_service_pb2.GetStatsRequest(), timeout=2)
                if stats.open_runs >= IN_FLIGHT_MIN * 2:
                    self.full.set()
                waiting = self._room._value
                for _ in range(min(40, IN_FLIGHT - stats.open_runs - waiting)):
                    self._room.release()
            await asyncio.sleep(0.02)


@pytest.mark.timeout(150 + 6 * CYCLES)
async def test_kill9_costs_nothing(effects: EffectServer) -> None:
    chance = seeded("test_kill9")
    daemon = Daemon()
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        load = Load(daemon, effects, chance)
        feeding = asyncio.create_task(load.run())
        ended_before: dict[str, tuple[int, int]] = {}
        await asyncio.wait_for(load.full.wait(), 30)
        for cycle in range(CYCLES):
            await asyncio.sleep(chance.uniform(0.05, 0.8))
            if cycle % 5 == 4:
                ended_before |= await _ended(daemon)
            await asyncio.to_thread(daemon.kill)
            if cycle % 4 == 3:  # a crash during recovery
                await asyncio.to_thread(daemon.start_and_kill, chance.uniform(0.0, 0.8))
            await asyncio.to_thread(daemon.start)
            if feeding.done():
                feeding.result()
        load.finish()
        await asyncio.wait_for(feeding, 60)
        runs = await wait_until_idle(daemon, load.inputs, within_s=60)

        stored = await daemon.list_runs()
        assert {run.id for run in stored} == load.inputs.keys(), "a run that nobody asked for, or a lost one"
        _check_in_flight(daemon.kills, stored)
        for run_id, (state, sequence) in ended_before.items():
            assert (runs[run_id].state, runs[run_id].sequence) == (state, sequence), f"{run_id} went on after its end"
        calls = effects.calls()
        lost = await _check_runs(daemon, load.inputs, calls)
        repeats = _repeats(daemon.kills, calls)
        assert await asyncio.to_thread(daemon.terminate) == 0
        _check_database(daemon)
        print(
            f"{len(daemon.kills)} kills, {len(stored)} runs, {sum(map(len, calls.values()))} HTTP calls of"
            f" {len(calls)} keys, {lost} attempts cut, calls repeated because of each kill: {repeats};"
            f" slowest start {max(daemon.ready_s):.2f} s"
        )
        assert lost, "no attempt was cut: this test has proved nothing"
    finally:
        await daemon.aclose()


def _repeats(kills: list[Kill], calls: dict[str, list[Call]]) -> list[int]:
    """Answer how many calls were made again after each kill: no more than there are slots for steps at work."""
    pairs = [(one, later) for made in calls.values() for one, later in zip(made, made[1:], strict=False)]
    cut = [(one, later) for one, later in pairs if one.status != 503]
    repeats = [sum(one.began <= kill.after and later.began > kill.after for one, later in cut) for kill in kills]
    assert max(repeats) <= EXECUTORS, f"calls repeated because of each kill: {repeats}"
    return repeats


async def _ended(daemon: Daemon) -> dict[str, tuple[int, int]]:
    try:
        return {
            run.id: (run.state, run.sequence) for run in await daemon.list_runs(states=[run_pb2.Run.STATE_SUCCEEDED])
        }
    except grpc.aio.AioRpcError:
        return {}


def _check_in_flight(kills: list[Kill], runs: list[Any]) -> None:
    spans = [(run.create_time.ToMicroseconds() / 1e6, run.end_time.ToMicroseconds() / 1e6) for run in runs]
    open_at_kill = [sum(created < kill.wall_before < ended for created, ended in spans) for kill in kills]
    print(f"runs in flight at each kill: {open_at_kill}")
    # Half of them: how many are open depends on what else the machine does, and the test must have teeth, not a clock.
    assert sum(count >= IN_FLIGHT_MIN for count in open_at_kill) >= 0.5 * CYCLES, open_at_kill


async def _check_runs(daemon: Daemon, inputs: dict[str, int], calls: dict[str, list[Call]]) -> int:
    """Check each run with its history and its effects; answers how many attempts the kills cut."""
    lost = 0
    pending = list(inputs.items())
    keys: set[str] = set()

    async def check() -> None:
        nonlocal lost
        while pending:
            run_id, n = pending.pop()
            run = (await daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=20)).run
            assert run.state == run_pb2.Run.STATE_SUCCEEDED, f"{run_id}: {run.state} {run.error}"
            assert run.output_json == f'{{"n":{n},"status":200}}', run.output_json
            verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run_id), timeout=20)
            assert verdict.intact, f"{run_id}: {list(verdict.faults)}"
            history = await daemon.history(run_id)
            branch = "flaky" if n % 2 == 0 else "plain"
            _check_once(run_id, history, branch)
            for step in ("first", branch):
                key = f"{run_id}/{step}"
                keys.add(key)
                lost += _check_effects(key, [e for e in history if e.step == step], calls.get(key, []), daemon.kills)

    await asyncio.gather(*(check() for _ in range(8)))
    assert set(calls) == keys, "calls under a key that no step has"
    return lost


def _check_once(run_id: str, history: list[Any], branch: str) -> None:
    assert [event.sequence for event in history] == list(range(1, len(history) + 1)), run_id
    seen = Counter((event.kind, event.step) for event in history)
    for once in (
        ("run.created", ""),
        ("run.started", ""),
        ("step.succeeded", "prepare"),
        ("step.waiting", "nap"),
        ("step.branched", "route"),
        ("step.succeeded", "total"),
        ("run.succeeded", ""),
    ):
        assert seen[once] == 1, f"{run_id}: {once} {seen[once]} times"
    other = "plain" if branch == "flaky" else "flaky"
    assert not any(event.step == other and event.kind == "step.started" for event in history), (
        f"{run_id}: both branches"
    )


def _check_effects(key: str, history: list[Any], calls: list[Call], kills: list[Kill]) -> int:
    """Each call belongs to an attempt; a repeat needs a recorded failure or a kill between the two calls."""
    kinds = Counter(event.kind for event in history)
    lost, failed = kinds["step.attempt_lost"], kinds["step.attempt_failed"]
    assert kinds["step.started"] == 1 + lost + failed, f"{key}: {kinds}"
    assert 1 <= len(calls) <= 1 + lost + failed, f"{key}: {len(calls)} calls, {lost} lost, {failed} failed"
    assert calls[-1].status == 200, f"{key}: succeeded without a successful call"
    for one, next_one in zip(calls, calls[1:], strict=False):
        cut = any(kill.after >= one.began and kill.before <= next_one.began for kill in kills)
        assert cut or one.status == 503, f"{key}: called again without a reason"
    started = [event.create_time.ToMicroseconds() / 1e6 for event in history if event.kind == "step.started"]
    for event in history:
        if event.kind == "step.attempt_lost":
            at = event.create_time.ToMicroseconds() / 1e6
            begun = max(time for time in started if time <= at)
            assert any(begun <= kill.wall_after and kill.wall_before <= at for kill in kills), f"{key}: lost, no kill"
    in_flight = sum(
        any(call.began <= kill.after and (call.ended or kill.after) >= kill.before for call in calls) for kill in kills
    )
    assert len([call for call in calls if call.status != 503]) <= 1 + max(in_flight, lost), f"{key}: too many calls"
    return lost


def _check_database(daemon: Daemon) -> None:
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for table in ("commands", "timers"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), f"{table} left behind"
        boots = connection.execute("SELECT count(*) FROM boots").fetchone()[0]
        assert boots >= CYCLES + 1
