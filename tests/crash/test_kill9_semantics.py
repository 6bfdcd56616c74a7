"""SIGKILL in the middle of everything: every kind of step and every action on runs, with people who act at random.

After the last start every run must end, prove itself, and leave nothing behind; what must not happen twice has not.
`TASKFORGE_TEST_SEED` repeats the instants, `TASKFORGE_TEST_CYCLES` sets how many kills (`make soak`: more).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
from collections import Counter
from typing import Any

import grpc.aio
import pytest
from harness import RETRYABLE, TERMINAL, Daemon, EffectServer, seeded, start_run
from taskforge.v1 import (
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
)

CYCLES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "8"))
IN_FLIGHT = 40
PEOPLE = 4
CODES = {*RETRYABLE, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED}
"""What people are told who act at random: too late, not now, or the daemon is away."""

CHILD = """
name: child
input: {type: object, required: [base, n], properties: {base: {type: string}, n: {type: integer}}}
steps:
  - id: inside
    http: {method: POST, url: "${{ input.base }}/slow?ms=30", json: {n: "${{ input.n }}"}}
  - id: broken
    if: input.n % 7 == 0
    fail: sometimes
output: {n: "${{ input.n }}"}
"""

EVERYTHING = """
name: everything
input: {type: object, required: [base, n], properties: {base: {type: string}, n: {type: integer}}}
queue: busy
concurrency: {group: "g${{ input.n % 20 }}", limit: 4}
timeout: 10m
defaults: {retry: {max_attempts: 4, strategy: fixed, delay: 30ms, jitter: none}, timeout: 20s}
steps:
  - id: prepare
    transform: {n: "${{ input.n }}"}
  - id: left
    needs: prepare
    http: {method: POST, url: "${{ input.base }}/slow?ms=40", json: {n: 1}}
    compensate: {http: {method: POST, url: "${{ input.base }}/undo-left"}}
  - id: right
    needs: prepare
    http: {method: POST, url: "${{ input.base }}/fail?n=1", json: {n: 2}}
    compensate: {http: {method: POST, url: "${{ input.base }}/undo-right"}}
  - id: many
    needs: [left, right]
    for_each: [1, 2, 3, 4, 5]
    max_parallel: 2
    steps:
      - id: twice
        transform: {x: "${{ item * 2 }}"}
      - id: send
        http: {method: POST, url: "${{ input.base }}/echo", json: {x: "${{ steps.twice.output.x }}"}}
  - id: program
    needs: [left]
    shell: {command: [/bin/sh, -c, 'sleep 0.05; echo "$TASKFORGE_IDEMPOTENCY_KEY"']}
  - id: once
    needs: [right]
    http: {method: POST, url: "${{ input.base }}/slow?ms=50&once=1"}
    effect: once
  - id: sub
    needs: [prepare]
    workflow: {name: child, input: {base: "${{ input.base }}", n: "${{ input.n }}"}}
    continue_on_error: true
  - id: nap
    needs: [many, program]
    sleep: ${{ string(100 + input.n % 300) + "ms" }}
  - id: ask
    needs: [nap]
    wait: {approval: "Go on with ${{ input.n }}?", timeout: 5m}
  - id: word
    needs: [once]
    wait: {signal: word, timeout: 5m}
  - id: tell
    needs: [ask, word, sub]
    if: always()
    event: {type: test.told, data: {n: "${{ input.n }}"}}
  - id: last
    needs: [tell]
    if: success() || failure()
    transform: {left: "${{ steps.left.state }}", sub: "${{ steps.sub.state }}"}
  - id: sometimes
    needs: [last]
    if: input.n % 5 == 0
    http: {url: "${{ input.base }}/status/503"}
    retry: {max_attempts: 2, strategy: fixed, delay: 20ms, jitter: none}
on_failure:
  - id: alert
    http: {method: POST, url: "${{ input.base }}/alert", json: {code: "${{ error.code }}"}}
on_cancel:
  - id: tidy
    http: {method: POST, url: "${{ input.base }}/tidy"}
output: ${{ steps.last.output }}
"""


class People:
    """Act on open runs at random, as long as the test lasts; at the end they only help runs to their end."""

    def __init__(self, daemon: Daemon, chance: random.Random) -> None:
        self._daemon = daemon
        self._chance = chance
        self.helpful = False
        self.over = False
        self.acts: Counter[str] = Counter()

    async def act(self) -> None:
        while not self.over:
            try:
                for run in await self._daemon.list_runs():
                    if run.state not in TERMINAL and not self.over:
                        await self._touch(run.id)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    raise
            await asyncio.sleep(0.05)

    async def _touch(self, run_id: str) -> None:
        run = (await self._daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=10)).run
        for method, fields in self._wishes(run):
            request = getattr(run_service_pb2, f"{method}Request")(run_id=run_id, **fields)
            try:
                await getattr(self._daemon.runs, method)(request, timeout=10)
                self.acts[method] += 1
            except grpc.aio.AioRpcError as error:
                if error.code() not in CODES:
                    raise

    def _wishes(self, run: Any) -> list[tuple[str, dict[str, Any]]]:
        chance, wishes = self._chance, list[tuple[str, dict[str, Any]]]()
        if run.state == run_pb2.Run.STATE_PAUSED:
            if self.helpful or chance.random() < 0.7:
                wishes.append(("ResumeRun", {}))
        elif not self.helpful and chance.random() < 0.06:
            wishes.append(("PauseRun", {"reason": "to look"}))
        if not self.helpful and chance.random() < 0.02:
            wishes.append(("CancelRun", {"reason": "at random"}))
        for step in run.steps:
            if step.waiting_for == "approval":
                verb = "RejectRun" if not self.helpful and chance.random() < 0.1 else "ApproveRun"
                wishes.append((verb, {"step": step.key}))
            elif step.waiting_for == "signal":
                wishes.append(("SignalRun", {"signal": "word", "payload_json": "1", "request_id": f"{run.id}-word"}))
            elif step.state == run_pb2.StepRun.STATE_NEEDS_DECISION:
                wishes.append(("ResolveRun", {"step": step.key, "outcome": chance.choice([1, 2]), "comment": "random"}))
        return wishes


class Load:
    """Keeps so many runs open, and starts some later, with another priority, or by retrying a dead one."""

    def __init__(self, daemon: Daemon, effects: EffectServer, chance: random.Random) -> None:
        self._daemon = daemon
        self._effects = effects
        self._chance = chance
        self.over = False
        self.runs: dict[str, int] = {}
        self.retried = 0

    async def feed(self) -> None:
        n = 0
        while not self.over:
            try:
                open_runs = [run for run in await self._daemon.list_runs() if run.state not in TERMINAL]
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
                continue
            for _ in range(IN_FLIGHT - len(open_runs)):
                n += 1
                run_id = await start_run(self._daemon, "everything", {"base": self._effects.url, "n": n})
                self.runs[run_id] = n
            await self._retry_dead()
            await asyncio.sleep(0.1)

    async def _retry_dead(self) -> None:
        dead = self._daemon.stub(dead_letter_service_pb2_grpc.DeadLetterServiceStub)
        request = dead_letter_service_pb2.RetryDeadLettersRequest(
            filter=dead_letter_service_pb2.DeadLetterFilter(workflow="everything"), max_count=2
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            self.retried += len((await dead.RetryDeadLetters(request, timeout=10)).results)


@pytest.mark.timeout(200 + 10 * CYCLES)
async def test_kill9_in_the_middle_of_everything(effects: EffectServer) -> None:
    chance = seeded("test_kill9_semantics")
    daemon = Daemon(env={"TASKFORGE_SHELL_ALLOW": "/bin/sh", "TASKFORGE_LIMITS_STUCK_SCAN": "0.3"})
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.to_thread(daemon.start)
        queues = daemon.stub(queue_service_pb2_grpc.QueueServiceStub)
        await queues.SetQueue(queue_service_pb2.SetQueueRequest(name="busy", running_steps_max=12))
        await daemon.apply(CHILD)
        await daemon.apply(EVERYTHING)
        load, people = Load(daemon, effects, chance), People(daemon, chance)
        tasks = [asyncio.create_task(load.feed()), *(asyncio.create_task(people.act()) for _ in range(PEOPLE))]
        for cycle in range(CYCLES):
            await asyncio.sleep(chance.uniform(0.6, 1.8))
            await asyncio.to_thread(daemon.kill)
            if cycle % 3 == 2:  # a crash during recovery
                await asyncio.to_thread(daemon.start_and_kill, chance.uniform(0.2, 0.8))
            await asyncio.to_thread(daemon.start)
            for task in tasks:
                if task.done():
                    task.result()
        load.over = people.helpful = True
        await asyncio.wait_for(tasks[0], 60)
        stored = await _all_ended(daemon, people)
        people.over = True
        await asyncio.gather(*tasks)

        assert load.runs.keys() <= {run.id for run in stored}, "an acknowledged run is gone"
        states = Counter(run_pb2.Run.State.Name(run.state) for run in stored)
        children = [run for run in stored if run.workflow == "child"]
        twice = await _check(daemon, stored, effects)
        assert await asyncio.to_thread(daemon.terminate) == 0
        _check_database(daemon, len(stored))
        assert "run.stuck" not in daemon.log.read_text(), "a run that was on its way was taken for a stuck one"
        print(
            f"{len(daemon.kills)} kills, {len(stored)} runs ({len(children)} children, {load.retried} retries) {dict(states)};"
            f" people: {dict(people.acts)}; {twice} decisions asked for"
        )
        for state in ("STATE_SUCCEEDED", "STATE_FAILED", "STATE_CANCELLED"):
            assert states[state], f"no run is {state}: this test has proved little"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await daemon.aclose()


async def _all_ended(daemon: Daemon, people: People) -> list[Any]:
    for _ in range(1200):
        stored = await daemon.list_runs()
        if all(run.state in TERMINAL for run in stored):
            return stored
        await asyncio.sleep(0.1)
    stuck = [run.id for run in stored if run.state not in TERMINAL]
    told = []
    for run_id in stuck[:3]:
        request = run_service_pb2.ExplainRunRequest(run_id=run_id)
        told.append(str((await daemon.runs.ExplainRun(request, timeout=10)).explanation))
        told += [f"{event.sequence} {event.kind} {event.step}" for event in (await daemon.history(run_id))[-10:]]
    raise AssertionError(f"{len(stuck)} runs are stuck: {dict(people.acts)}\n" + "\n".join([*told, daemon.tail(20)]))


async def _check(daemon: Daemon, stored: list[Any], effects: EffectServer) -> int:
    calls, asked = effects.calls(), 0
    for run in stored:
        verdict = await daemon.runs.VerifyRun(run_service_pb2.VerifyRunRequest(run_id=run.id), timeout=20)
        assert verdict.intact, f"{run.id}: {list(verdict.faults)}"
        history = await daemon.history(run.id)
        kinds = Counter((event.kind, event.step) for event in history)
        ends = [event.kind for event in history if event.kind in _ENDS]
        assert len(ends) == 1, f"{run.id}: {ends}"
        assert history[-1].kind == ends[0], f"{run.id} went on after its end"
        asked += kinds["step.needs_decision", "once"]
        made = calls.get(f"{run.id}/once", [])
        assert len(made) <= 1, f"{run.id}: what must not happen twice has happened {len(made)} times"
        for step in ("left", "right"):
            if kinds["step.queued", f"{step}:compensate"]:
                assert kinds["step.completed", step] == 1, f"{run.id}: undone without having been done"
        told = kinds["step.succeeded", "tell"]
        assert told <= 1, f"{run.id} has told {told} times"
    return asked


_ENDS = {"run.succeeded", "run.failed", "run.dead", "run.cancelled"}


def _check_database(daemon: Daemon, runs: int) -> None:
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as connection:

        def count(what: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0])

        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for table in ("commands", "timers", "children"):
            assert count(table) == 0, f"{table} left behind"
        assert count("events WHERE type GLOB 'run.*'") == runs, "every end is one event"
        told = count(
            "history WHERE kind = 'step.succeeded' AND step = 'tell' AND CAST(body AS TEXT) NOT LIKE '%\"pinned\":true%'"
        )  # a retry takes the step over and tells nobody again
        assert count("events WHERE type = 'test.told'") == told, "each event was published once"
        dead = {row[0] for row in connection.execute("SELECT run_no FROM dead_letters")}
        assert dead == {row[0] for row in connection.execute("SELECT no FROM runs WHERE state = 'DEAD'")}
        parents = connection.execute("SELECT body FROM history WHERE kind = 'step.waiting'").fetchall()
        asked = {json.loads(body)["child"] for (body,) in parents if b'"child"' in body}
        made = {row[0] for row in connection.execute("SELECT id FROM runs WHERE parent_no IS NOT NULL")}
        assert made <= asked, "a child that no parent asked for"
