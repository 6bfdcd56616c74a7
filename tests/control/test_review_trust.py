"""What a review of tokens, the audit and the doors has found, held against a real daemon."""

import asyncio
import contextlib
import json
import sqlite3

import grpc
import pytest
from switchboard import METHODS, eventually

from taskforged.config import load_config
from taskforged.control.settings import settings_in_force

NAP = "name: nap\nsteps:\n  - id: a\n    sleep: 1h\n"


def audited(daemon, method):
    with contextlib.closing(sqlite3.connect(f"file:{daemon.home}/taskforge.db?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT outcome, count FROM audit WHERE method = ? ORDER BY no", (method,))
        return rows.fetchall()


@contextlib.contextmanager
def held_up(daemon):
    """No commit of the daemon gets done meanwhile."""
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


async def cut(board, method, **fields):
    """Make a call whose caller does not wait."""
    stub, message = METHODS[method]
    metadata = (("authorization", f"Bearer {board.daemon.token}"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub(board.channel), method)(message(**fields), metadata=metadata, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_whose_caller_goes_away_while_it_is_written_leaves_one_row(own):
    await own.apply(NAP)
    run_id = (await own("StartRun", workflow="nap")).run.id
    before = len(audited(own.daemon, "RunService/StartRun"))
    with held_up(own.daemon):
        await cut(own, "PublishEvent", type="a.b", data_json="1", namespace="default")
        await cut(own, "CancelRun", run_id=run_id)
        await cut(own, "StartRun", workflow="nap", namespace="default")
        await asyncio.sleep(0.3)  # the daemon hears of it
    await own("StartRun", workflow="nap")  # behind all that
    assert (await own.ended(run_id)).state
    assert audited(own.daemon, "EventService/PublishEvent") == [("OK", 1)]
    assert audited(own.daemon, "RunService/CancelRun") == [("OK", 1)]
    assert audited(own.daemon, "RunService/StartRun")[before:] == [("OK", 1), ("OK", 1)]


async def test_who_waits_for_a_run_is_told_nothing_more_once_the_token_is_revoked(own):
    await own.apply(NAP)
    made = await own.token("OPERATOR")
    waiting = asyncio.create_task(own("StartRun", bearer=made.secret, workflow="nap", wait={"seconds": 25}))
    await eventually(own.runs, len)
    await own("RevokeToken", token_id=made.token.id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(waiting, 15)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [run.state for run in await own.runs()]  # it goes on: what was accepted stays
    assert audited(own.daemon, "RunService/StartRun") == [("OK", 1)]


@pytest.mark.parametrize("password", ["planted p4ss", "planted:p4ss", "planted%40p4ss"])
def test_no_part_of_a_proxys_password_is_among_the_settings(tmp_path, password):
    (tmp_path / "config.toml").write_text(f'[egress]\nproxy = "http://user:{password}@proxy.example:3128"\n')
    shown = {f"{one.section}.{one.key}": one.value for one in settings_in_force(load_config(tmp_path, None, {}))}
    assert json.loads(shown["egress.proxy"]) == "http://***@proxy.example:3128"


async def test_who_is_denied_pushes_nothing_out_of_the_audit(own):
    """A reader has no way of changing anything, and so none of filling the record of changes."""
    reader = (await own.token("VIEWER")).secret
    for _ in range(10):
        await asyncio.gather(
            *(
                own.refused("PERMISSION_DENIED", "RevokeToken", bearer=reader, token_id=f"t{index}")
                for index in range(40)
            )
        )
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    rows = audited(own.daemon, "TokenService/RevokeToken")
    assert {outcome for outcome, _ in rows} == {"PERMISSION_DENIED"}
    assert sum(count for _, count in rows) == 400
    assert 200 <= len(rows) <= 300


async def test_a_repeated_call_is_told_with_what_it_was_about_the_first_time(own):
    await own.apply(NAP)
    run_id = (await own("StartRun", workflow="nap", request_id="once")).run.id
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    headers = {"Authorization": f"Bearer {own.daemon.token}", "Content-Type": "application/cloudevents+json"}
    event_ids = []
    for _ in range(2):
        assert (await own("StartRun", workflow="nap", request_id="once")).run.id == run_id
        async with own.http.post(f"{own.daemon.http}/events/default", json=event, headers=headers) as answer:
            event_ids += (await answer.json())["event_ids"]
    assert len(event_ids) == 2
    records = (await own("ListAuditRecords")).records
    assert {one.resource for one in records if one.method == "RunService/StartRun"} == {run_id}
    assert {one.resource for one in records if one.method == "POST /events"} == set(event_ids[:1]) == set(event_ids)
