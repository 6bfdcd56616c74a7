"""What a torture sees while the daemon lives: what is gone, what has changed its end, what stands still."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from taskforge.v1 import run_pb2, run_service_pb2, system_service_pb2

from taskforgectl.torture import looks
from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.load import Load
from taskforgectl.torture.looks import Looker
from taskforgectl.torture.plan import Plan, Round
from taskforgectl.torture.wire import RefusedError


class FakeWire:
    """A daemon that holds these runs and events, and counts so much."""

    def __init__(self) -> None:
        self.runs: dict[str, run_pb2.Run] = {}
        self.events: set[str] = set()
        self.stats: dict[str, int] = {}

    def put(self, run_id: str, state: str, sequence: int = 9) -> None:
        self.runs[run_id] = run_pb2.Run(id=run_id, state=f"STATE_{state}", sequence=sequence, workflow="quick")

    async def pages(self, method: str, field: str, /, *, namespace: str, **_: Any) -> Any:
        for run in self.runs.values() if namespace == "default" else ():
            yield run

    async def insist(self, method: str, /, **fields: Any) -> Any:
        return await self.once(method, **fields)

    async def once(self, method: str, /, **fields: Any) -> Any:
        if method == "GetEvent" and fields["event_id"] not in self.events:
            raise RefusedError("NOT_FOUND", "there is no such event")
        if method == "GetStats":
            return system_service_pb2.GetStatsResponse(**self.stats)
        if method == "ListStuckRuns":
            return system_service_pb2.ListStuckRunsResponse()
        if method == "ExplainRun":
            return run_service_pb2.ExplainRunResponse(explanation=run_pb2.Explanation(summary="waits for nothing"))
        return None


class World:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "driver.jsonl"
        self.ledger = Ledger(self.path)
        self.wire: Any = FakeWire()
        sender: Any = None
        self.load = Load(Plan(Round(1, 10)), self.wire, sender, self.ledger, 1.0)
        self.calls = 0
        self.looker = Looker(self.wire, self.load, self.ledger, lambda: self.calls)

    def violations(self) -> list[str]:
        self.ledger.flush()
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [f"{one['check']}: {one['message']}" for one in entries if one["what"] == "violation"]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    with made.ledger:
        yield made


async def test_what_is_there_after_a_restart_is_no_violation(world):
    world.wire.put("run_1", "RUNNING")
    world.wire.put("run_2", "SUCCEEDED")
    world.wire.events = {"evt_1"}
    world.load.fresh_runs, world.load.fresh_events = {"run_1", "run_2"}, {"evt_1", ""}
    await world.looker.after_restart()
    await world.looker.after_restart()
    assert world.violations() == []
    assert world.looker.ended == {"run_2": ("SUCCEEDED", 9)}


async def test_what_is_gone_after_a_restart(world):
    world.load.fresh_runs, world.load.fresh_events = {"run_1"}, {"evt_1"}
    await world.looker.after_restart()
    assert world.violations() == [
        "runs: run_1 was acknowledged and is gone after a restart",
        "publications: evt_1 was acknowledged and is gone after a restart",
    ]


async def test_an_end_that_changed_over_a_restart(world):
    for number in range(4):
        world.wire.put(f"run_{number}", "SUCCEEDED")
    await world.looker.after_restart()
    world.wire.put("run_3", "FAILED")
    await world.looker.after_restart()
    assert world.violations() == ["final: run_3 had ended as SUCCEEDED at 9, and is FAILED at 9"]


async def test_a_daemon_that_does_not_answer_is_not_asked_for_ever(world, monkeypatch):
    monkeypatch.setattr(looks, "STUCK_S", 0.01)
    monkeypatch.setattr(world.wire, "once", lambda *_, **__: asyncio.Event().wait())
    world.wire.put("run_1", "RUNNING")
    async with asyncio.timeout(20):
        assert list(await world.looker.tell_open()) == []


@pytest.mark.parametrize(("state", "sequence"), [("RUNNING", 9), ("SUCCEEDED", 10), ("FAILED", 9)])
async def test_an_end_that_changes(world, state, sequence):
    world.wire.put("run_1", "SUCCEEDED")
    await world.looker.note_ends()
    world.wire.put("run_1", state, sequence)
    await world.looker.note_ends()
    assert world.violations() == [f"final: run_1 had ended as SUCCEEDED at 9, and is {state} at {sequence}"]


async def test_nothing_goes_on(world, monkeypatch):
    monkeypatch.setattr(looks, "STUCK_S", 0.0)
    world.wire.stats = {"open_runs": 3}
    assert not await world.looker.is_quiet()
    before = world.looker.moved_at
    assert not await world.looker.is_quiet()
    assert world.looker.moved_at == before
    assert world.looker.stands_still
    world.calls += 1
    assert not await world.looker.is_quiet()
    assert world.looker.moved_at > before
    monkeypatch.setattr(looks, "STUCK_S", 60.0)
    assert not world.looker.stands_still
