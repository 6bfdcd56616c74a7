"""Recovery is idempotent: killed again and again while it works, it comes to what one that is left alone comes to.

A home full of open work is copied. One copy recovers once, undisturbed. The other is killed 0 to 500 ms after each of
many starts, before it may finish. In the end both must mean the same. `TASKFORGE_TEST_CYCLES` sets how many kills there
are (`make soak`: at least 30), `TASKFORGE_TEST_SEED` repeats them.

What may differ is only how often and when something was tried, and is left out by name in `meaning`:

- times, and the hashes of the history, which cover them;
- boots and their numbers, and with them `epoch` of an attempt;
- `sequence`, `attempt`, and in the history each attempt that was cut together with its start;
- numbers of rows, and ids of events and runs that were made after the kill: those are named by what they come from.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import random
import shutil
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, EffectServer, seeded
from kills.stage import ENVIRONMENT, Crowd, opened
from nursery import Nursery

MANY = {**ENVIRONMENT, "TASKFORGE_EXECUTOR_POOL_SIZE": "16"}
KILLS = max(7, min(100, int(os.environ.get("TASKFORGE_TEST_CYCLES", "7")) // 5))
LAST_S = 0.5
DUE_S = 3

PATIENT = """
name: patient
input: {type: object, required: [base, nap], properties: {base: {type: string}, nap: {type: string}}}
steps:
  - id: again
    http: {method: POST, url: "${{ input.base }}/status/503"}
    retry: {max_attempts: 3, strategy: fixed, delay: 400ms, jitter: none}
    continue_on_error: true
  - id: nap
    sleep: ${{ input.nap }}
  - id: many
    for_each: ${{ [1, 2, 3] }}
    steps:
      - id: below
        workflow: {name: sub, input: {n: "${{ item }}"}}
"""

DUE = """
name: due
on:
  soon:
    cron: {schedule: "* * * * * *", seconds: true, misfire: all, overlap: allow, start: "%s", end: "%s"}
steps:
  - id: tock
    transform: {tick: true}
"""


def meaning(home: Path) -> dict[str, Any]:
    """What a database says, without what may differ."""
    with opened(home) as connection:
        connection.row_factory = sqlite3.Row
        names = _Names(connection)
        return {
            "runs": Counter(names.run(row["no"]) for row in connection.execute("SELECT no FROM runs")),
            "run states": {names.run(row["no"]): row["state"] for row in connection.execute("SELECT * FROM runs")},
            "histories": {names.run(row["no"]): _history(connection, row["no"]) for row in connection.execute("SELECT no FROM runs")},
            "steps": {
                (names.run(row["run_no"]), row["key"]): row["state"] for row in connection.execute("SELECT * FROM step_runs")
            },
            "events": Counter(
                (names.event(row["no"]), row["source"], row["outcome"], len(json.loads(row["verdicts"])))
                for row in connection.execute("SELECT * FROM events")
            ),
            "due times": _rows(connection, "SELECT due_at, last_at, count, outcome FROM schedule_slots ORDER BY 1"),
            "deliveries": _rows(connection, "SELECT namespace_no, path, hex(key) FROM deliveries ORDER BY 3"),
            **{
                table: _rows(connection, f"SELECT * FROM {table} ORDER BY 1, 2")
                for table in ("commands", "timers", "children", "dead_letters", "secrets", "workflows")
            },
            "versions": _rows(connection, "SELECT workflow_no, number, content_hash FROM workflow_versions ORDER BY 1, 2"),
            "audit": _rows(connection, "SELECT method, resource, outcome, at FROM audit ORDER BY no"),
            "tokens": _rows(connection, "SELECT id, name, role, hex(hash), revoked_at FROM tokens ORDER BY no"),
        }  # fmt: skip


def _rows(connection: sqlite3.Connection, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(sql)]


def _history(connection: sqlite3.Connection, run_no: int) -> list[tuple[str, str]]:
    """Kinds and steps in order, without attempts that were cut."""
    found: list[tuple[str, str]] = []
    again: Counter[str] = Counter()
    for kind, step in connection.execute(
        "SELECT kind, step FROM history WHERE run_no = ? ORDER BY sequence", (run_no,)
    ):
        if kind == "step.attempt_lost":
            del found[len(found) - 1 - found[::-1].index(("step.started", step))]
            again[step] += 1
        elif kind == "step.queued" and again[step]:
            again[step] -= 1
        else:
            found.append((kind, step))
    # Items of a fan-out end in any order.
    return sorted(found) if any("[" in step for _, step in found) else found


class _Names:
    """Calls runs and events by what they come from: what both copies have made since has ids of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        sql = "SELECT r.*, w.name AS workflow FROM runs r JOIN workflows w ON w.no = r.workflow_no"
        self._runs = {row["no"]: row for row in connection.execute(sql)}
        waiting = connection.execute("SELECT step, body FROM history WHERE kind = 'step.waiting'")
        self._steps = {json.loads(body).get("child"): step for step, body in waiting}
        self._events = {row["no"]: row for row in connection.execute("SELECT * FROM events")}

    def run(self, no: int) -> str:
        row = self._runs[no]
        if row["parent_no"] is not None:
            return f"{row['workflow']} for {self._steps[row['id']]} of {self.run(row['parent_no'])}"
        if row["event_no"] is None:
            return str(row["id"])  # started by hand, before the kill
        return f"{row['workflow']} <- {self.event(row['event_no'])}"

    def event(self, no: int) -> str:
        row = self._events[no]
        if row["run_no"] is not None:
            return f"{row['type']} of {self.run(row['run_no'])}"
        if row["source"] == "cron":
            return f"due {json.loads(row['body'])['due_time']}"
        return str(row["id"])


async def _work(daemon: Daemon, crowd: Crowd, effects: EffectServer, chance: random.Random) -> float:
    """Open a lot, kill the daemon; answers when the last due time is."""
    begin = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=1)
    end = begin + dt.timedelta(seconds=DUE_S)
    async with crowd.board() as board:
        await board.apply(PATIENT)
        await board.apply(DUE % (begin.isoformat(), end.isoformat()))
        for _ in range(20):
            payload = {"base": effects.url, "nap": f"{chance.randint(1, 1500)}ms"}
            await board("StartRun", workflow="patient", input_json=json.dumps(payload))
        loading = asyncio.create_task(crowd.load_until_gone())
        await asyncio.sleep(chance.uniform(0.6, 1.2))
    await asyncio.to_thread(daemon.kill)
    await loading
    crowd.check("the first kill")
    return end.timestamp()


def _copy(daemon: Daemon, name: str, nursery: Nursery) -> Daemon:
    home = daemon.home.with_name(name)
    shutil.copytree(daemon.home, home, ignore=shutil.ignore_patterns("*.sock", "taskforged.json"))
    return Daemon(home, nursery=nursery, env=MANY)


@pytest.mark.timeout(300 + 6 * KILLS)
async def test_many_cut_recoveries_come_to_what_one_comes_to(effects: EffectServer) -> None:
    chance = seeded("test_kill_in_recovery")
    with Nursery() as nursery:
        daemon = Daemon(nursery=nursery, env=MANY)
        crowd = Crowd(daemon, effects, chance)
        try:
            await asyncio.to_thread(daemon.start)
            await crowd.prepare()
            until = await _work(daemon, crowd, effects, chance)
            with opened(daemon.home) as connection:
                (running,) = connection.execute("SELECT count(*) FROM commands WHERE epoch > 0").fetchone()
                (timers,) = connection.execute("SELECT count(*) FROM timers").fetchone()
            assert running, "no attempt was cut: there is little to recover"
            assert timers, "no timer waits"
            cut, alone = _copy(daemon, "cut", nursery), _copy(daemon, "alone", nursery)
            for _ in range(KILLS):
                await asyncio.to_thread(cut.start_and_kill, chance.uniform(0.0, LAST_S))
            await asyncio.sleep(max(0.0, until + 0.1 - time.time()))
            for one in (alone, cut):
                crowd.daemon = one
                await asyncio.to_thread(one.start)
                await crowd.settle()
                assert await asyncio.to_thread(one.terminate) == 0
            wanted, found = meaning(alone.home), meaning(cut.home)
            for what, value in wanted.items():
                assert found[what] == value, what
            assert wanted["due times"]
            assert set(wanted["run states"].values()) == {"SUCCEEDED"}
            print(
                f"{KILLS} recoveries cut, {running} attempts and {timers} timers to recover, {len(wanted['run states'])} runs"
            )
        finally:
            await daemon.aclose()
