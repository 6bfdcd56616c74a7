"""Retention with a daemon: what goes, what stays, what is told of it, and what it leaves undisturbed."""

from __future__ import annotations

import asyncio
import sqlite3

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from harness import Daemon
from switchboard import Board
from taskforge.v1 import run_service_pb2, run_service_pb2_grpc
from telemetry.scraping import fetch

from taskforged.clock import Clock
from taskforged.control.retention import Keep, Pruner, RunRule
from taskforged.host.feed import Feed
from taskforged.store.store import Store

LIGHT = "name: light\n{retention}steps:\n  - {{id: one, transform: 1}}\n"
PAST = 400 * 86_400 * 1_000_000


async def age(daemon: Daemon) -> None:
    """Let everything that has happened so far have happened a year ago: with the daemon down, by its tables."""
    await asyncio.to_thread(daemon.terminate)
    connection = sqlite3.connect(daemon.home / "taskforge.db", isolation_level=None)
    try:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE runs SET created_at = created_at - ?1, ended_at = ended_at - ?1", (PAST,))
        connection.execute("UPDATE events SET created_at = created_at - ?", (PAST,))
        connection.execute("UPDATE step_logs SET at = at - ?", (PAST,))
        for _, sql in triggers:
            connection.execute(sql)
    finally:
        connection.close()
    await asyncio.to_thread(daemon.start)


async def start(board: Board, workflow: str = "light", count: int = 1) -> list[str]:
    return [(await board("StartRun", workflow=workflow, wait=Duration(seconds=10))).run.id for _ in range(count)]


async def listed(board: Board, workflow: str = "light") -> list[str]:
    return [one.id for one in (await board("ListRuns", workflow=workflow, page_size=1000)).runs]


async def test_age_count_and_what_a_workflow_says_itself(own: Board) -> None:
    await own.daemon.apply(LIGHT.format(retention=""))
    await own.daemon.apply(LIGHT.format(retention="retention: {age: forever}\n").replace("light", "kept"))
    await own.daemon.apply(LIGHT.format(retention="retention: {count: 2}\n").replace("light", "few"))
    old, kept = await start(own, count=3), await start(own, "kept", 3)
    await age(own.daemon)
    new, few = await start(own, count=2), await start(own, "few", 5)
    counts = (await own("PruneStorage", dry_run=True)).counts
    assert counts.runs == 3 + 3
    assert len(await listed(own)) == 5, "a dry run deletes nothing"
    done = (await own("PruneStorage")).counts
    assert (done.runs, done.events >= 6) == (6, True)
    assert set(await listed(own)) == set(new)
    assert set(await listed(own, "kept")) == set(kept)
    assert set(await listed(own, "few")) == set(few[3:])
    page = await own("ListRuns", workflow="light")
    assert page.pruned == 3
    assert page.pruned_until.seconds > 0
    said = await own.refused("NOT_FOUND", "GetRun", run_id=old[0])
    assert "have been pruned" in said
    for run_id in (*kept, *new):
        assert (await own("VerifyRun", run_id=run_id)).intact
    assert (await own("PruneStorage", workflow="kept", runs_older_than=Duration(seconds=3600))).counts.runs == 3
    assert (await own("PruneStorage", keep=1)).counts.runs == 1, "of light; few says two itself"


async def test_what_is_needed_stays_and_goes_when_it_is_not(own: Board) -> None:
    child = "name: child\nsteps:\n  - {id: one, transform: 1}\n"
    parent = "name: parent\nsteps:\n  - {id: sub, workflow: {name: child}}\n  - {id: hold, wait: {signal: go}}\n"
    dying = "name: dying\nsteps:\n  - {id: f, http: {url: 'http://127.0.0.1:9/'}, retry: {max_attempts: 1}}\n"
    for source in (child, parent, dying):
        await own.daemon.apply(source)
    run_id = (await own("StartRun", workflow="parent")).run.id
    dead = (await start(own, "dying"))[0]
    async with asyncio.timeout(20):
        while not await listed(own, "child") or (await own("GetRun", run_id=dead)).run.end_time.seconds == 0:
            await asyncio.sleep(0.05)
    await age(own.daemon)
    await own("PruneStorage")
    assert await listed(own, "parent") == [run_id]
    assert len(await listed(own, "child")) == 1, "its parent is open"
    letters = (await own("ListDeadLetters")).dead_letters
    assert [one.run_id for one in letters] == ([dead] if letters else [])
    await own("SignalRun", run_id=run_id, signal="go")
    if letters:
        assert await listed(own, "dying") == [dead]
        await own("DiscardDeadLetters", run_ids=[dead], reason="seen")
    async with asyncio.timeout(20):
        while (await own("GetRun", run_id=run_id)).run.end_time.seconds == 0:
            await asyncio.sleep(0.05)
    await own("PruneStorage")
    assert await listed(own, "child") == []
    assert await listed(own, "dying") == []
    assert await listed(own, "parent") == [run_id], "it ended just now"


async def test_counts_forget_no_request_that_may_be_repeated(tmp_path):
    """A caller without an answer asks again: the run that it started must still be known."""
    store, clock = Store(tmp_path / "taskforge.db"), Clock()
    await store.start()
    try:
        now = clock.now()
        rows = [
            (no, f"run_{no}", f"ask-{no}" if no % 2 else None, now - age_s * 1_000_000)
            for no, age_s in ((1, 7200), (2, 7200), (3, 9), (4, 9), (5, 9))
        ]

        def fill(connection):
            connection.execute(
                "INSERT INTO workflows (no, id, namespace_no, name, active, latest, created_at, updated_at)"
                " VALUES (1, 'wf', 1, 'w', 1, 1, 1, 1)"
            )
            for no, run_id, request, ended in rows:
                digest = None if request is None else b"d"
                connection.execute(
                    "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash,"
                    " cancel_requested, trigger, request_id, request_digest, created_at, ended_at)"
                    " VALUES (?, ?, 1, 1, 1, 'SUCCEEDED', 1, zeroblob(32), 0, 'manual', ?, ?, ?, ?)",
                    (no, run_id, request, digest, ended, ended),
                )

        await store.journal.execute(fill)
        pruner = Pruner(store=store, clock=clock, feed=Feed(), keep=Keep(RunRule(0, 1)))
        await pruner.run(repeat_s=3600)
        assert await numbers(store) == [3, 5], "3 ended a moment ago, and 5 is the newest"
        await pruner.run()
        assert await numbers(store) == [5], "whoever prunes by hand means it"
    finally:
        await store.stop()


async def numbers(store):
    return await store.read(lambda c: [row[0] for row in c.execute("SELECT no FROM runs ORDER BY no")])


async def test_a_watch_that_comes_back_is_told_and_never_sees_a_gap(own: Board) -> None:
    await own.daemon.apply(LIGHT.format(retention=""))
    run_id = (await start(own))[0]
    await age(own.daemon)
    await own("PruneStorage")
    call = run_service_pb2_grpc.RunServiceStub(own.channel).WatchRun(
        run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=1),
        metadata=(("authorization", f"Bearer {own.daemon.token}"),),
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pytest.fail("there is nothing to be seen")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "pruned" in (caught.value.details() or "")


@pytest.mark.timeout(180)
async def test_the_file_shrinks_and_new_work_waits_for_its_budget() -> None:
    """40 MiB of runs in a budget of 30: refused, pruned, taken again, and the file is small."""
    daemon = Daemon(env={"TASKFORGE_STORE_MAX_MIB": "30", "TASKFORGE_RETENTION_EVENTS": "1m"})
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply("name: wide\nsteps:\n  - {id: one, transform: '${{ input.pad }}'}\n")
        await daemon.apply("name: hold\nsteps:\n  - {id: w, wait: {signal: go}}\noutput: done\n")
        await daemon.apply(
            "name: door\non: {in: {webhook: {path: in, verify: {scheme: none}}}}\nsteps: [{id: a, transform: 1}]\n"
        )
        open_run = (await board("StartRun", workflow="hold")).run.id
        pad = '{"pad": "' + "x" * 100_000 + '"}'
        refused = ""
        async with asyncio.timeout(90):
            while not refused:
                try:
                    await board("StartRun", workflow="wide", input_json=pad)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
                    refused = error.details() or ""
        assert "max_mib" in refused
        assert "the database is full" in (await fetch(board, "/readyz"))[2]
        answer = await board.post("in")
        assert (answer.status, answer.headers["Retry-After"]) == (507, "30")
        ended = (await listed(board, "wide"))[0]
        await board.refused("RESOURCE_EXHAUSTED", "RerunRun", run_id=ended)
        assert (await board("GetStorage")).refuses_new_work == "STORE_FULL"
        await board("SignalRun", run_id=open_run, signal="go")
        assert await board.output(open_run) == "done", "what runs goes on"
        large = (await board("GetStorage")).database_bytes
        await board("PruneStorage", workflow="wide", keep=1)
        async with asyncio.timeout(60):
            while (await board("GetStorage")).database_bytes > large // 5:
                await asyncio.sleep(0.2)
            while (await board.post("in")).status != 202:
                await asyncio.sleep(0.2)
            while (daemon.home / "taskforge.db").stat().st_size > large // 5:
                await asyncio.sleep(0.2)
        assert (await board("StartRun", workflow="hold")).run.id
        assert (await board("GetStorage")).refuses_new_work == ""
    finally:
        await board.close()
        await daemon.aclose()
