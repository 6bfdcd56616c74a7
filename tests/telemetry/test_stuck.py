"""Stuck runs are found, with what they lack; whatever waits for good reason is left alone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from harness import ROOT, Daemon
from switchboard import Board, eventually, state

from taskforged.clock import Clock
from taskforged.control.stuck import StuckDetector
from taskforged.engine.states import RunState, StepState
from taskforged.store.store import Store

from .scraping import scrape

RUNNING = (
    "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested,"
    " trigger, created_at) VALUES (?, ?, 1, 1, 1, 'RUNNING', 1, ?, 0, '', 1)"
)

SLEEPS = """
name: sleeps
steps:
  - {id: nap, sleep: 1h}
"""
CALLS = """
name: calls
steps:
  - id: call
    http: {url: "${{ input.url }}"}
"""
ASKS = """
name: asks
steps:
  - {id: ask, wait: {approval: "shall it go on?"}}
"""
PARENT = """
name: parent
steps:
  - {id: child, workflow: {name: asks}}
"""


@pytest.fixture
async def quick():
    daemon = Daemon(env={"TASKFORGE_LIMITS_STUCK_SCAN": "0.2"})
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        yield board
    finally:
        await board.close()
        await daemon.aclose()


async def edited(board: Board, *statements: str) -> None:
    """Edit the database of the stopped daemon, and start it again."""
    await asyncio.to_thread(board.daemon.terminate)
    with sqlite3.connect(board.daemon.home / "taskforge.db") as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
    connection.close()
    await asyncio.to_thread(board.daemon.start)


async def start(board: Board, workflow: str, **more: object) -> str:
    return str((await board("StartRun", workflow=workflow, **more)).run.id)


async def stuck(board: Board) -> dict[str, object]:
    return {one.id: one for one in (await board("ListStuckRuns", namespace="")).runs}


async def looked(board: Board, times: int = 3) -> None:
    """Wait until it has looked so many times more."""
    answer = await board("ListStuckRuns", namespace="")
    await eventually(lambda: board("ListStuckRuns", namespace=""), lambda one: one.looks >= answer.looks + times)


async def test_a_run_whose_work_was_deleted_is_found(quick, effects):
    for source in (SLEEPS, CALLS):
        await quick.apply(source)
    await quick("SetQueue", name="default", paused=True)
    nap, call = await start(quick, "sleeps"), await start(quick, "calls", input_json=json.dumps({"url": effects.url}))
    await edited(quick, "DELETE FROM timers", "DELETE FROM commands")
    found = await eventually(lambda: stuck(quick), lambda found: len(found) == 2)
    assert {one.reason for one in found.values()} == {"lost_work"}
    assert "nap (timer" in found[nap].diagnosis
    assert "call (command" in found[call].diagnosis
    assert (await scrape(quick)).value("taskforge_stuck_runs", reason="lost_work") == 2
    assert quick.daemon.log.read_text().count("run.stuck") == 2  # once each, however often it looks
    ctl = [sys.executable, "-m", "taskforgectl", "--home", str(quick.daemon.home)]
    shown = await asyncio.to_thread(
        subprocess.run, [*ctl, "run", "list", "--stuck", "-o", "json"], capture_output=True, text=True, cwd=ROOT
    )
    assert {one["id"] for one in json.loads(shown.stdout)} == {nap, call}
    findings = (await quick("Diagnose")).findings
    assert any(one.check == "runs" and nap in one.message for one in findings)
    for run_id in (nap, call):  # what is lost must not keep anybody from ending them
        await quick("CancelRun", run_id=run_id)
        assert state(await quick.ended(run_id)) == "CANCELLED"
    await looked(quick)
    assert await stuck(quick) == {}


async def test_a_look_reads_a_bounded_number_of_histories(tmp_path):
    store = Store(tmp_path / "taskforge.db")
    await store.start()
    try:
        rows = [(no, f"run_{no}", b"h" * 32) for no in range(1, 1001)]
        await store.journal.execute(lambda c: c.executemany(RUNNING, rows))
        read: list[int] = []

        class Runs:
            async def load(self, no):
                read.append(no)
                ask = SimpleNamespace(state=StepState.WAITING, input={"approval": "?"})
                run = SimpleNamespace(state=RunState.RUNNING, commands={}, timers={}, steps={"ask": ask})
                return SimpleNamespace(run=run)

        runner = SimpleNamespace(is_busy=lambda _: False, epoch=1, executes=lambda *_: True)
        detector = StuckDetector(store=store, clock=Clock(), runner=runner, pause_s=1.0)
        detector._runs = Runs()
        await detector.look()
        assert len(read) == 200
        for _ in range(5):
            await detector.look()
        assert sorted(read) == list(range(1, 1001)), "the others have their turn, and each is read once"
        assert detector.found == {}
    finally:
        await store.stop()


async def test_a_found_run_that_goes_on_is_forgotten(quick):
    await quick.apply(SLEEPS)
    nap = await start(quick, "sleeps")
    await edited(quick, "DELETE FROM timers")
    await eventually(lambda: stuck(quick), lambda found: nap in found)
    (sequence,) = (int(found.diagnosis.rsplit(" ", 1)[1].rstrip(")")) for found in (await stuck(quick)).values())
    await edited(quick, f"INSERT INTO timers SELECT no, {sequence}, 1, NULL FROM runs")
    assert state(await quick.ended(nap)) == "SUCCEEDED"
    await looked(quick)
    assert await stuck(quick) == {}
    assert (await scrape(quick)).total("taskforge_stuck_runs") == 0


async def test_a_scheduled_run_without_its_timer_is_found(quick):
    await quick.apply(ASKS)
    run = await start(quick, "asks", run_time=_tomorrow())
    await edited(quick, "DELETE FROM timers")
    found = await eventually(lambda: stuck(quick), lambda found: run in found)
    assert found[run].reason == "no_timer"


async def test_who_waits_for_good_reason_is_not_stuck(quick, effects):
    for source in (SLEEPS, CALLS, ASKS, PARENT):
        await quick.apply(source)
    await quick("SetNamespace", name="default", running_runs_max=5)
    for workflow in ("sleeps", "asks", "parent"):
        await start(quick, workflow)
    await start(quick, "asks", run_time=_tomorrow())
    paused = await start(quick, "sleeps")
    await quick("PauseRun", run_id=paused)
    await start(quick, "calls", input_json=json.dumps({"url": f"{effects.url}/slow?ms=60000"}))
    pending = [await start(quick, "sleeps") for _ in range(20)]
    assert state(await quick.run(pending[-1])) == "PENDING"
    await looked(quick)
    assert await stuck(quick) == {}
    await quick.restart()
    await looked(quick)
    assert await stuck(quick) == {}
    assert "run.stuck" not in quick.daemon.log.read_text()
    assert (await scrape(quick)).total("taskforge_overdue_items") == 0


async def test_a_confined_caller_sees_its_own(quick):
    other = await quick.fresh()
    for board in (quick, other):
        await board.apply(SLEEPS)
        await start(board, "sleeps")
    await edited(quick, "DELETE FROM timers")
    await eventually(lambda: stuck(quick), lambda found: len(found) == 2)
    token = (await other.token("VIEWER")).secret
    seen = (await other("ListStuckRuns", namespace="", bearer=token)).runs
    assert [one.namespace for one in seen] == [other.namespace]
    await other.refused("PERMISSION_DENIED", "ListStuckRuns", namespace="default", bearer=token)


async def test_an_event_that_nobody_gets_to_is_overdue(quick):
    await quick.apply("name: hears\non:\n  it: {event: {type: a.b}}\nsteps:\n  - {id: shape, transform: {ok: true}}\n")
    await quick.apply(ASKS)
    await quick("SetNamespace", name="default", pending_runs_max=1, running_runs_max=1)
    for _ in range(2):
        await start(quick, "asks")  # one runs, one waits: there is no room for what the event wants
    await quick("PublishEvent", type="a.b")
    await asyncio.to_thread(quick.daemon.terminate)
    connection = sqlite3.connect(quick.daemon.home / "taskforge.db")
    connection.execute("DROP TRIGGER events_keep_their_content")
    assert connection.execute("UPDATE events SET created_at = 1 WHERE outcome = 'PENDING'").rowcount == 1
    connection.commit()
    connection.close()
    await asyncio.to_thread(quick.daemon.start)
    await eventually(lambda: scrape(quick), lambda one: one.value("taskforge_overdue_items", kind="event") == 1)
    assert "work.overdue" in quick.daemon.log.read_text()


def _tomorrow() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    stamp.seconds += 86_400
    return stamp
