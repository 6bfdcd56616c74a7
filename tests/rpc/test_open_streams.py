"""Many who watch and see nothing, many who do not read, many who connect and say nothing: bounded, refused, survived."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from harness import Daemon
from switchboard import Board, eventually
from taskforge.v1 import event_service_pb2, system_service_pb2, token_pb2
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub
from telemetry.scraping import scrape

from taskforged.store.events import insert_event
from taskforged.store.rows import EventRow

IS_BIG = "TASKFORGE_TEST_CYCLES" in os.environ
PER_TOKEN = 1000 if IS_BIG else 150
TOKENS = 10 if IS_BIG else 3
EVENTS = 50_000 if IS_BIG else 5_000
DEAF = 20
SOCKETS = 10_000 if IS_BIG else 800
HTTP_MAX = 1024 if IS_BIG else 100
KIB = 1024


@pytest.fixture(scope="module")
def crowded() -> Iterator[Daemon]:
    made = Daemon(
        env={"TASKFORGE_GRPC_STREAMS_PER_TOKEN": str(PER_TOKEN), "TASKFORGE_HTTP_CONNECTIONS_MAX": str(HTTP_MAX)}
    )
    _fill(made)
    try:
        yield made.start()
    finally:
        made.close()


def _fill(daemon: Daemon) -> None:
    """Store events that a watch from the beginning has to send."""
    daemon.start()
    daemon.terminate()
    texts = ("webhook", "p" * 200, "UNMATCHED", "r" * 200, "", "", "", "{}", "{}")
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as database, database:
        (last,) = database.execute("SELECT coalesce(max(no), 0) FROM events").fetchone()
        for no in range(last + 1, last + EVENTS + 1):
            insert_event(database, EventRow(no, f"evt_{no}", 1, *texts, b"", 0, "", "", "[]", 1))


@pytest.fixture
async def board(crowded: Daemon) -> AsyncIterator[Board]:
    made = Board(crowded)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def streamers(daemon: Daemon, token: str, count: int, mode: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client process with many streams; killed at the end, if it lives."""
    program = Path(__file__).parents[1] / "streamers.py"
    command = [sys.executable, str(program), daemon.uds, token, str(count), mode]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(120):
            assert await process.stdout.readline() == f"open {count}\n".encode()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def watchers(board: Board) -> int:
    return int((await scrape(board)).value("taskforge_watchers"))


async def token(board: Board, name: str) -> str:
    return (await board("CreateToken", name=name, role=token_pb2.Token.ROLE_VIEWER)).secret


@pytest.mark.timeout(600 if IS_BIG else 120)
async def test_idle_streams_are_cheap_bounded_by_token_and_gone_with_their_client(board: Board) -> None:
    daemon = board.daemon
    await board("ListEvents")
    before = daemon.resident
    secrets = [await token(board, f"idle-{number}") for number in range(TOKENS)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(streamers(daemon, secret, PER_TOKEN, "idle")) for secret in secrets]
        assert await watchers(board) == TOKENS * PER_TOKEN
        each = (daemon.resident - before) / (TOKENS * PER_TOKEN)
        assert each < 100 * KIB, "an idle stream costs too much"
        call = EventServiceStub(board.channel).WatchEvents(
            event_service_pb2.WatchEventsRequest(), metadata=(("authorization", f"Bearer {secrets[0]}"),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"has {PER_TOKEN:,} streams open already" in (refused.value.details() or "")
        assert (await board("GetInfo")).state, "everybody else is served"
        event = await board("PublishEvent", type="nobody.asks", data_json="1")
        assert event.event.id, "and news for all of them hold nobody up"
        clients[0].send_signal(signal.SIGKILL)
        await eventually(lambda: watchers(board), lambda count: count == (TOKENS - 1) * PER_TOKEN, within_s=60)
        again = EventServiceStub(board.channel).WatchEvents(
            event_service_pb2.WatchEventsRequest(), metadata=(("authorization", f"Bearer {secrets[0]}"),)
        )
        assert (await again.read()).cursor, "the streams of a client that is gone are free again"
        again.cancel()
    await eventually(lambda: watchers(board), lambda count: count == 0, within_s=60)
    print(f"{TOKENS * PER_TOKEN:,} idle streams, {each / KIB:.0f} KiB each")


@pytest.mark.timeout(600 if IS_BIG else 120)
async def test_watchers_that_never_read_cost_no_memory_and_hold_nobody_up(board: Board) -> None:
    """Each is due megabytes. What is not read stays in the table, but for what fits into the windows of HTTP/2."""
    daemon = board.daemon
    reader = await token(board, "reader")
    before = daemon.resident
    async with streamers(daemon, await token(board, "deaf"), DEAF, "deaf"):
        call = EventServiceStub(board.channel).WatchEvents(
            event_service_pb2.WatchEventsRequest(after_cursor="0"),
            metadata=(("authorization", f"Bearer {reader}"),),
        )
        seen = 0
        async with asyncio.timeout(300 if IS_BIG else 60):
            while seen < EVENTS:
                seen += len((await call.read()).entries)
        call.cancel()
        assert await watchers(board) >= DEAF
        grown = daemon.resident - before
        assert grown < 64 << 20, "what is not read is kept in memory"
    await eventually(lambda: watchers(board), lambda count: count == 0, within_s=60)
    print(f"{DEAF} that do not read, {seen:,} events: {grown / KIB / KIB:.0f} MiB more")


@pytest.mark.timeout(120)
async def test_a_burst_of_calls_waits_and_none_is_cancelled(board: Board) -> None:
    """gRPC itself cancels calls by chance when more than 1,000 have come that nobody has looked at yet."""
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with contextlib.AsyncExitStack() as stack:
        crowd = [
            SystemServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(board.daemon.tcp, options=own)))
            for _ in range(4)
        ]
        asked = [
            crowd[number % 4].GetInfo(system_service_pb2.GetInfoRequest(), metadata=board.daemon.metadata)
            for number in range(3000)
        ]
        assert all([(await call).version for call in asked])


async def _connect(place: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    try:
        return await asyncio.open_connection(*place)
    except OSError:
        return None


@pytest.mark.timeout(300)
async def test_silent_http_connections_are_refused_closed_and_forgotten(board: Board) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(SOCKETS, soft - 200)
    host, _, port = board.daemon.http.removeprefix("http://").rpartition(":")
    before = board.daemon.resident
    pairs = []
    for _ in range(0, count, 100):
        pairs += await asyncio.gather(*(_connect((host, int(port))) for _ in range(100)))
    try:
        assert sum(pair is not None for pair in pairs) > HTTP_MAX
        grown = board.daemon.resident - before
        assert grown < 64 << 20, "silent connections cost too much"

        async def end(reader: asyncio.StreamReader) -> bytes:
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""

        async with asyncio.timeout(90):
            said = await asyncio.gather(*(end(pair[0]) for pair in pairs if pair is not None))
        refused = [one for one in said if one.startswith(b"HTTP/1.1 503 ")]
        assert refused, "one too many is told so"
        answer = await board.post("nowhere")
        assert answer.status == 404, "whoever comes next is served"
        print(f"{len(said):,} silent connections: {len(refused):,} told 503; {grown >> 20} MiB more")
    finally:
        for pair in pairs:
            if pair is not None:
                pair[1].close()
