"""The audit: exactly one row for each call that changes something or tries to, in the change's own transaction."""

import asyncio
import contextlib
import sqlite3
import time

import aiohttp
import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from harness import Daemon
from switchboard import METHODS, Board
from taskforge.v1 import token_pb2

from taskforged.clock import Clock
from taskforged.control.access import Principal, Role
from taskforged.control.audit import Audit, AuditFilter
from taskforged.errors import CANONICAL, TaskforgeError
from taskforged.rpc.errors import CODES
from taskforged.rpc.guard import MUTATIONS, NEEDS, READS
from taskforged.store.audit import CURRENT
from taskforged.store.journal import Write
from taskforged.store.store import Store

HELLO = "name: hello\nsteps:\n  - id: a\n    transform: {x: '${{ 1 }}'}\n"
NAP = "name: nap\nsteps:\n  - id: a\n    sleep: 1h\n"
READING = ("Get", "List", "Watch", "Validate", "Preview", "Explain", "Verify", "Diagnose")


def stored(daemon, where="1"):
    path = f"file:{daemon.home}/taskforge.db?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(f"SELECT * FROM audit WHERE {where} ORDER BY no")]


def test_every_method_is_a_read_or_a_mutation_as_its_name_says():
    for name, need in NEEDS.items():
        verb = name.rpartition("/")[2]
        if name.startswith("/taskforge.v1."):
            assert verb.startswith(READING) != (name in MUTATIONS), name
            assert (need in {None, Role.VIEWER} or name in READS) != (name in MUTATIONS), name


def test_outcomes_are_the_canonical_codes():
    assert {cls: code.name for cls, code in CODES.items()} == CANONICAL
    assert set(TaskforgeError.__subclasses__()) <= set(CANONICAL), "an error without a code"


async def test_each_mutation_leaves_one_row_when_it_is_denied_and_when_it_fails(own):
    """Every mutating method of the descriptors, with an empty request: as one who may not, and as one who may."""
    worker = (await own.token("WORKER", None)).secret
    viewer = (await own.token("VIEWER", None)).secret
    before = len(stored(own.daemon))
    expected = []
    for name in sorted(MUTATIONS):
        _, message = METHODS[name.rpartition("/")[2]]
        for bearer in (worker, viewer, own.daemon.token):
            expected.append((name.removeprefix("/taskforge.v1."), await code_of(own, name, message, bearer)))
    rows = stored(own.daemon)[before:]
    assert [(row["method"], row["outcome"]) for row in rows] == expected
    assert {outcome for _, outcome in expected} >= {"PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND", "OK"}
    assert {row["remote"] for row in rows} == {"unix"}
    assert {row["role"] for row in rows} == {"worker", "viewer", "admin"}


async def code_of(board, name, message, bearer):
    method = message.DESCRIPTOR.file.pool.FindMethodByName(name[1:].replace("/", "."))
    call = board.channel.unary_unary(
        name,
        request_serializer=message.SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        await call(message(), metadata=(("authorization", f"Bearer {bearer}"),), timeout=30)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_what_succeeds_tells_who_and_what(own):
    await own.apply(HELLO)
    await own.apply(NAP)
    await own("SetSecret", name="API_TOKEN", value="planted-secret-value")
    made = await own.token("TRIGGER")
    run = (await own("StartRun", bearer=made.secret, workflow="nap", request_id="req-1")).run
    await own("StartRun", bearer=made.secret, workflow="nap", request_id="req-1")
    await own("CancelRun", run_id=run.id, reason="planted-reason")
    await own("PauseRun", run_id=(await own("StartRun", workflow="nap")).run.id)
    await own("BatchStartRuns", requests=[{"workflow": "hello"}, {"workflow": "hello"}])
    await own("RevokeToken", token_id=made.token.id)
    await own("RevokeToken", token_id=made.token.id)
    rows = stored(own.daemon)
    told = [(row["method"].partition("/")[2], row["resource_type"], row["resource"]) for row in rows]
    assert told[:5] == [
        ("ApplyWorkflow", "workflow", "hello"),
        ("ApplyWorkflow", "workflow", "nap"),
        ("SetSecret", "secret", "API_TOKEN"),
        ("CreateToken", "token", made.token.id),
        ("StartRun", "run", run.id),
    ]
    assert [one[0] for one in told[5:]] == [
        *("StartRun", "CancelRun", "StartRun", "PauseRun", "BatchStartRuns", "RevokeToken", "RevokeToken")
    ]
    assert {row["outcome"] for row in rows} == {"OK"}
    assert {row["namespace_no"] for row in rows} == {1}
    assert (rows[4]["token_id"], rows[4]["token_name"], rows[4]["role"]) == (made.token.id, made.token.name, "trigger")
    assert [row["request_id"] for row in rows[4:6]] == ["req-1", "req-1"]
    assert "planted" not in str(rows)


async def test_a_refusal_never_repeats_what_was_given(own):
    await own.apply(
        "name: typed\ninput: {type: object, properties: {a: {type: integer}}}\nsteps: []\n".replace(
            "[]", "[{id: a, sleep: 1s}]"
        )
    )
    await own.refused("INVALID_ARGUMENT", "StartRun", workflow="typed", input_json='{"a": "planted-payload"}')
    await own.refused("INVALID_ARGUMENT", "SetSecret", name="planted-name", value="planted-value")
    await own.refused("NOT_FOUND", "StartRun", workflow="missing")
    rows = stored(own.daemon)
    assert "planted" not in str(rows)
    assert [row["outcome"] for row in rows[1:]] == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND"]
    assert "missing" in rows[-1]["message"]


async def test_the_gateway_for_events_leaves_a_row_too(own):
    trigger, viewer = (await own.token("TRIGGER")).secret, (await own.token("VIEWER")).secret
    url = f"{own.daemon.http}/events/default"
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    before = len(stored(own.daemon))
    for bearer, body, url_, status in (
        (trigger, event, url, 202),
        (trigger, event, url, 202),
        (trigger, {"no": "event"}, url, 400),
        (viewer, event, url, 403),
        (own.daemon.token, event, f"{own.daemon.http}/events/nowhere", 404),
    ):
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/cloudevents+json"}
        async with own.http.post(url_, json=body, headers=headers) as answer:
            assert answer.status == status
    rows = stored(own.daemon)[before:]
    assert [row["outcome"] for row in rows] == ["OK", "OK", "INVALID_ARGUMENT", "PERMISSION_DENIED", "NOT_FOUND"]
    assert {row["method"] for row in rows} == {"POST /events"}
    assert rows[0]["resource"].startswith("evt_")
    assert rows[0]["remote"] == "127.0.0.1"


async def test_reads_and_webhooks_leave_none(own):
    await own.apply(HELLO)
    before = len(stored(own.daemon))
    await own("ListRuns")
    await own("ListTokens")
    await own("ListAuditRecords")
    assert (await own.post("anything")).status == 404
    assert len(stored(own.daemon)) == before


async def test_it_is_append_only(own):
    await own.apply(HELLO)
    assert own.daemon.terminate() == 0
    with contextlib.closing(sqlite3.connect(own.daemon.home / "taskforge.db")) as database:
        for sql in (
            "UPDATE audit SET outcome = 'NOT_FOUND'",
            "DELETE FROM audit",
            "UPDATE audit_floor SET no = -1",
            "DELETE FROM audit_floor",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="audit"):
                database.execute(sql)


async def test_failed_authentications_are_counted_by_peer_and_minute():
    daemon = Daemon()
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        bad = "tfk_aaaaaaaaaaaa_" + "A" * 43
        codes = [
            await code_of(board, "/taskforge.v1.RunService/StartRun", METHODS["StartRun"][1], bad) for _ in range(60)
        ]
        assert codes[:20] == ["UNAUTHENTICATED"] * 20
        assert codes.count("RESOURCE_EXHAUSTED") >= 30
        await board.apply(HELLO)  # who has a valid token does not wait for others
        assert daemon.terminate() == 0
        rows = stored(daemon, "method = 'Authenticate'")
        assert 1 <= len(rows) <= 3
        assert sum(row["count"] for row in rows) == 60
        assert {(row["remote"], row["outcome"], row["token_id"]) for row in rows} == {("unix", "UNAUTHENTICATED", "")}
    finally:
        await board.close()
        await daemon.aclose()


async def test_too_many_failures_are_told_when_to_come_again(own):
    async with aiohttp.ClientSession() as session:
        statuses = []
        for _ in range(40):
            async with session.get(
                f"{own.daemon.http}/events/default", headers={"Authorization": "Bearer x"}
            ) as answer:
                statuses.append(answer.status)
                retry_after = answer.headers.get("Retry-After")
    assert statuses[:20] == [401] * 20
    assert statuses[-1] == 429
    assert int(retry_after) >= 1
    headers = {"Authorization": f"Bearer {own.daemon.token}"}
    async with own.http.get(f"{own.daemon.http}/events/default", headers=headers) as answer:
        assert answer.status == 200


async def test_the_list_and_its_filters(own):
    other = await own.fresh()
    start = time.time()
    await own.apply(HELLO)
    await other.apply(HELLO)
    trigger = await own.token("TRIGGER")
    for _ in range(3):
        await own("StartRun", bearer=trigger.secret, workflow="hello")
    await own.refused("PERMISSION_DENIED", "ApplyWorkflow", bearer=trigger.secret, source=HELLO)

    async def listed(**filters):
        return (await own("ListAuditRecords", **{"namespace": "", **filters})).records

    everything = await listed()
    assert [one.sequence for one in everything] == sorted((one.sequence for one in everything), reverse=True)
    assert everything[0].outcome == "PERMISSION_DENIED"
    assert everything[0].namespace == "default"
    assert {one.method for one in await listed(namespace=other.namespace)} == {
        *("NamespaceService/SetNamespace", "WorkflowService/ApplyWorkflow")
    }
    assert len(await listed(method="StartRun")) == 3
    assert len(await listed(method="RunService/")) == 3
    assert len(await listed(method="Start_un")) == 0
    assert len(await listed(token=trigger.token.id)) == len(await listed(token=trigger.token.name)) == 4
    assert len(await listed(outcome="permission_denied")) == 1
    until = {"seconds": int(start) - 60}
    assert (len(await listed(until=until)), len(await listed(since=until))) == (0, len(everything))
    first = await own("ListAuditRecords", namespace="", page_size=2)
    second = await own("ListAuditRecords", namespace="", page_size=2, page_token=first.next_page_token)
    assert [*first.records, *second.records] == list(everything[:4])
    confined = (await own("CreateToken", name="c", role=token_pb2.Token.ROLE_ADMIN, namespace=other.namespace)).secret
    seen = (await own("ListAuditRecords", bearer=confined, namespace="")).records
    assert {one.namespace for one in seen} == {other.namespace}
    await own.refused("PERMISSION_DENIED", "ListAuditRecords", bearer=confined, namespace="default")


async def test_a_change_and_its_row_are_both_there_or_neither(daemon):
    """kill -9 while runs start: each run has its row, each row its run."""
    board = Board(daemon)
    try:
        await board.apply(HELLO)

        async def start():
            with contextlib.suppress(grpc.aio.AioRpcError):
                while True:
                    await board("StartRun", workflow="hello")

        starters = [asyncio.create_task(start()) for _ in range(8)]
        while len(stored(daemon, "method = 'RunService/StartRun'")) < 20:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(daemon.kill)
        for starter in starters:
            starter.cancel()
        await asyncio.gather(*starters, return_exceptions=True)
        rows = {row["resource"] for row in stored(daemon, "method = 'RunService/StartRun'")}
        with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as database:
            runs = {row[0] for row in database.execute("SELECT id FROM runs")}
        assert rows == runs
        assert len(rows) >= 20
    finally:
        await board.close()


async def test_old_and_surplus_rows_are_pruned_from_the_old_end(tmp_path):
    now = [1_000 * 86_400 * 1_000_000_000]
    store = Store(tmp_path / "taskforge.db")
    await store.start()
    try:
        clock = Clock(lambda: now[0])
        audit = Audit(store, clock, keep_days=10, keep_rows=1000)
        admin = Principal("t", "root", Role.ADMIN, None)
        for days, count in ((0, 3000), (5, 2500), (7, 500)):
            now[0] = (1_000 + days) * 86_400 * 1_000_000_000
            rows = [audit.begin(admin, "unix", "M").row() for _ in range(count)]
            CURRENT.set(None)
            await store.journal.submit(Write(audit=rows))
        assert await audit.prune() == 5000
        assert await audit.prune() == 0
        assert [one.no for one in await audit.page(AuditFilter(), 5000)] == list(range(6000, 5000, -1))
        now[0] = 1_016 * 86_400 * 1_000_000_000
        assert await audit.prune() == 500
        assert {one.row.at for one in await audit.page(AuditFilter(), 5000)} == {1_007 * 86_400 * 1_000_000}
    finally:
        await store.stop()
