"""WatchEvents: where it begins, what it filters, when it ends. Its six properties are in tests/crash/test_watches.py."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import grpc
import pytest
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub


def stub_of(board) -> EventServiceStub:
    return EventServiceStub(board.channel)


async def first(call) -> pb.WatchEventsResponse:
    return await asyncio.wait_for(call.read(), 20)


async def entries(call, count: int) -> list[pb.WatchEventsResponse.Entry]:
    found: list[pb.WatchEventsResponse.Entry] = []
    while len(found) < count:
        found.extend((await first(call)).entries)
    return found


async def test_a_watch_begins_with_a_bookmark_and_now(board):
    await board.publish("before.it")
    call = stub_of(board).WatchEvents(
        pb.WatchEventsRequest(filter=pb.EventFilter(namespace=board.namespace)), metadata=board.daemon.metadata
    )
    bookmark = await first(call)
    assert not bookmark.entries
    assert int(bookmark.cursor) > 0
    event = await board.publish("after.it")
    (entry,) = await entries(call, 1)
    assert (entry.event.id, entry.event.type) == (event.id, "after.it")
    assert not entry.event.headers and not entry.event.body
    call.cancel()


async def test_filters_and_namespaces_keep_the_rest_away(board):
    other = await board.fresh()
    here, there = board.namespace, other.namespace
    assert here != there
    start = (await first(_watch(board, ""))).cursor
    await other.publish("a.x")
    await board.publish("b.x")
    mine = await board.publish("a.x")
    call = _watch(board, start, type="a.*")
    assert [one.event.id for one in await entries(call, 1)] == [mine.id]
    call.cancel()
    confined = await board.token("VIEWER", here)
    call = stub_of(board).WatchEvents(
        pb.WatchEventsRequest(filter=pb.EventFilter(namespace=there), after_cursor=start),
        metadata=(("authorization", f"Bearer {confined.secret}"),),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}


def _watch(board, cursor: str, **filters):
    wanted = pb.EventFilter(namespace=board.namespace, **filters)
    return stub_of(board).WatchEvents(
        pb.WatchEventsRequest(filter=wanted, after_cursor=cursor), metadata=board.daemon.metadata
    )


@pytest.mark.parametrize("cursor", ["x", "-1", "99999999", "9" * 40, "²"])
async def test_cursors_that_are_none_are_refused(board, cursor):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _watch(board, cursor).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_slow_reader_gets_everything(board):
    start = (await first(_watch(board, ""))).cursor
    call = _watch(board, start)
    await first(call)
    ids = [(await board.publish("slow.one", {"n": n})).id for n in range(250)]
    await asyncio.sleep(0.3)  # nothing is read meanwhile
    assert [one.event.id for one in await entries(call, 250)] == ids
    call.cancel()


async def test_a_revoked_token_ends_its_watch(board):
    made = await board.token("VIEWER", board.namespace)
    call = stub_of(board).WatchEvents(
        pb.WatchEventsRequest(filter=pb.EventFilter(namespace=board.namespace)),
        metadata=(("authorization", f"Bearer {made.secret}"),),
    )
    await first(call)
    await board("RevokeToken", token_id=made.token.id)
    await board.publish("not.for.you")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first(call)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_what_was_removed_is_said_so(daemon, own):
    ids = [(await own.publish("old.one")).id for _ in range(10)]
    await asyncio.to_thread(daemon.terminate)
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as database, database:
        database.execute("INSERT INTO purge_until VALUES ('events', 1 << 62)")  # as retention does it
        database.execute("DELETE FROM events WHERE id IN (?, ?, ?, ?)", ids[:4])
        database.execute("DELETE FROM events WHERE id = ?", ids[6:7])  # from the middle
        database.execute("DELETE FROM purge_until")
    await daemon.disconnect()
    daemon.process = None
    await asyncio.to_thread(daemon.start)
    stub = daemon.stub(EventServiceStub)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.WatchEvents(pb.WatchEventsRequest(after_cursor="1"), timeout=20).read()
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "follow cursor 4" in refused.value.details()
    call = stub.WatchEvents(pb.WatchEventsRequest(after_cursor="4"), timeout=20)
    await first(call)
    portion = await first(call)
    assert [one.event.id for one in portion.entries] == [ids[4], ids[5], *ids[7:]]
    assert portion.removed == 1, "and what is missing from the middle is counted"
    call.cancel()
    nothing = pb.WatchEventsRequest(after_cursor="4", filter=pb.EventFilter(type="of.nobody"))
    call = stub.WatchEvents(nothing, timeout=20)
    await first(call)
    assert ((portion := await first(call)).removed, portion.cursor, list(portion.entries)) == (1, "10", [])
    call.cancel()
