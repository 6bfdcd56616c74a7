"""WatchEvents has the six properties of a watch: ordered, unique, atomic, reliable, resumable, bookmarkable."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid

import grpc
import pytest
from harness import RETRYABLE, seeded
from taskforge.v1 import event_pb2
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

DEAF = (
    "name: deaf\non: {any: {event: {type: 'order.*'}, if: 'event.body.n < 0'}}\nsteps: [{id: a, transform: {x: 1}}]\n"
)
EVENTS = 300
KILLS = 3
WATCHERS = 4


def stub_of(board) -> EventServiceStub:
    return EventServiceStub(board.channel)


async def first(call) -> pb.WatchEventsResponse:
    return await asyncio.wait_for(call.read(), 20)


async def entries(call, count: int) -> list[pb.WatchEventsResponse.Entry]:
    found: list[pb.WatchEventsResponse.Entry] = []
    while len(found) < count:
        found.extend((await first(call)).entries)
    return found


async def test_events_are_seen_once_and_in_order_across_kills(daemon, own):
    """Publishers that repeat what is not answered, watchers that go away and come back, a daemon that is killed."""
    await own.apply(DEAF)
    random = seeded("watch")
    published: list[str] = []
    seen: list[list[pb.WatchEventsResponse.Entry]] = [[] for _ in range(WATCHERS)]

    async def publish(begin: int) -> None:
        for n in range(begin, EVENTS, 3):
            kind = "order.paid" if n % 2 else "nobody.asks"  # asked about later, and decided at once
            request = pb.PublishEventRequest(type=kind, data_json=f'{{"n":{n}}}', request_id=str(uuid.uuid4()))
            while True:
                try:
                    answer = await daemon.stub(EventServiceStub).PublishEvent(request, timeout=20)
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() in RETRYABLE, error
                    await asyncio.sleep(0.05)
            published.append(answer.event.id)

    async def watch(number: int) -> None:
        cursor = "0"
        while len(seen[number]) < EVENTS:
            budget = random.randint(1, 60)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.TimeoutError):
                call = daemon.stub(EventServiceStub).WatchEvents(pb.WatchEventsRequest(after_cursor=cursor), timeout=30)
                try:
                    while budget > 0 and len(seen[number]) < EVENTS:
                        portion = await asyncio.wait_for(call.read(), 5)
                        if portion is grpc.aio.EOF:
                            break
                        seen[number].extend(portion.entries)
                        cursor = portion.cursor
                        budget -= len(portion.entries)
                finally:
                    call.cancel()
            await asyncio.sleep(0.01)

    async def kill() -> None:
        for nth in range(1, KILLS + 1):
            while len(published) < EVENTS * nth / (KILLS + 1):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(daemon.restart)

    async with asyncio.timeout(100):
        await asyncio.gather(*map(publish, range(3)), *map(watch, range(WATCHERS)), kill())
    orders = [[entry.event.id for entry in one] for one in seen]
    assert all(len(set(order)) == len(order) for order in orders), "an event was sent twice"
    assert set(orders[0]) == set(published), "an event was not sent, or one that was not acknowledged as such"
    assert all(order == orders[0] for order in orders), "two watchers saw another order"
    cursors = [int(entry.cursor) for entry in seen[0]]
    assert cursors == sorted(cursors)
    assert event_pb2.Event.OUTCOME_PENDING not in {entry.event.outcome for one in seen for entry in one}


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
