"""The webhook door with and without TLS against peers that hold it: raw sockets, one process."""

import asyncio
import contextlib
import socket
import ssl

import pytest
from remote.support import der, leaf, put, trusting

from taskforged.control.delivery import Receipt
from taskforged.tls import Certificates
from taskforged.triggers.webhook import Limits, WebhookListener

SHORT = 0.15  # seconds: the deadline that a test is about; all others stay long
HANDSHAKE = 2  # seconds: a deadline that a test is about, within which it has to finish a handshake first
GUARD = 30  # seconds: a test that has not seen its event by then has failed


class Inbox:
    def __init__(self):
        self.received, self.rejected = [], []
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def receive(self, delivery):
        self.received.append(delivery)
        self.entered.set()
        await self.gate.wait()
        return Receipt(202, {})

    async def reject(self, delivery, reason):
        self.rejected.append(reason)


class Peer:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ended(self):
        """Wait until the server has closed; answer what it sent before."""
        async with asyncio.timeout(GUARD):
            try:
                return await self.reader.read()
            except OSError:
                return b""

    async def status(self):
        async with asyncio.timeout(GUARD):
            return int((await self.reader.readline()).split()[1])


class World:
    def __init__(self, folder, tls):
        self.inbox = Inbox()
        self.pair = put(folder, leaf())
        self.tls = Certificates(*self.pair, None).http_context() if tls else None
        self.listener, self.peers = None, []

    async def listen(self, **limits):
        limits = Limits(**{"linger_s": SHORT, "idle_s": 3600, **limits})
        self.listener = WebhookListener(self.inbox, limits=limits, tls=self.tls)
        await self.listener.start()

    @property
    def port(self):
        return int(self.listener.base_url.rpartition(":")[2])

    @property
    def open(self):
        return self.listener._server._gate._open

    async def raw(self, **options):
        """A TCP connection on which nothing was said."""
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.peers.append(peer)
        return peer

    async def connect(self, **options):
        """A connection as a sender has it."""
        tls = {"ssl": trusting(), "server_hostname": "127.0.0.1"} if self.tls else {}
        return await self.raw(**tls, **options)

    async def deliver(self, **options):
        peer = await self.connect(**options)
        peer.writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
        return await peer.status()

    async def close(self):
        for peer in self.peers:
            peer.writer.transport.abort()
        if self.listener:
            await self.listener.stop(0)


POST = b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(params=["plain", "tls"])
async def world(request, tmp_path):
    made = World(tmp_path, request.param == "tls")
    yield made
    await made.close()


@pytest.fixture
async def encrypted(tmp_path):
    made = World(tmp_path, tls=True)
    yield made
    await made.close()


async def until(condition):
    async with asyncio.timeout(GUARD):
        while not condition():
            await asyncio.sleep(0.01)


async def trickle(peer, data):
    with contextlib.suppress(OSError):
        while True:
            peer.writer.write(data)
            await peer.writer.drain()
            await asyncio.sleep(SHORT / 10)


@contextlib.asynccontextmanager
async def trickling(peer, data):
    task = asyncio.create_task(trickle(peer, data))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_delivery_and_another_on_the_same_connection(world):
    await world.listen()
    assert world.listener.base_url.startswith("https://" if world.tls else "http://")
    peer = await world.connect()
    for body in (b"one", b"two"):
        peer.writer.write(POST + b"Content-Length: 3\r\n\r\n" + body)
        assert await peer.status() == 202
        await peer.reader.readuntil(b"\r\n\r\n{}")
    assert [one.body for one in world.inbox.received] == [b"one", b"two"]
    assert {one.remote for one in world.inbox.received} == {"127.0.0.1"}


async def test_a_slow_header_is_cut(world):
    await world.listen(header_s=HANDSHAKE)
    peer = await world.connect()
    peer.writer.write(POST + b"X-Slow: ")
    async with trickling(peer, b"a"):
        assert await peer.ended() == b""
    await until(lambda: world.open == 0)


async def test_a_slow_body_is_answered_408(world):
    await world.listen(body_s=SHORT)
    peer = await world.connect()
    peer.writer.write(POST + b"Content-Length: 100000\r\n\r\n")
    async with trickling(peer, b"a"):
        assert await peer.status() == 408
        await peer.ended()
    assert world.inbox.received == []


async def test_an_endless_chunked_body_is_answered_413(world):
    await world.listen(body_bytes_max=100_000)
    peer = await world.connect()
    peer.writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    async with trickling(peer, b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"):
        assert await peer.status() == 413
        await peer.ended()
    assert world.inbox.received == []


async def test_an_idle_connection_ends(world):
    await world.listen(idle_s=SHORT)
    peer = await world.connect()
    peer.writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
    assert await peer.status() == 202
    await peer.ended()
    await until(lambda: world.open == 0)


async def test_200_silent_connections_do_not_hold_up_a_delivery(world):
    await world.listen(header_s=GUARD)
    silent = [await world.raw() for _ in range(200)]
    await until(lambda: world.open == 200)
    assert await world.deliver() == 202
    assert len(silent) == 200


async def test_200_silent_connections_are_gone_after_their_time(world):
    await world.listen(header_s=HANDSHAKE)
    silent = [await world.raw() for _ in range(200)]
    assert await asyncio.gather(*(one.ended() for one in silent)) == [b""] * 200
    await until(lambda: world.open == 0)
    assert await world.deliver() == 202


async def test_one_address_cannot_take_the_places_of_others(world):
    await world.listen(connections_per_peer_max=5, header_s=GUARD)
    for _ in range(20):
        await world.raw()
    await until(lambda: world.listener._server._gate._by_peer["127.0.0.1"] >= 5)
    assert await world.deliver(local_addr=("127.0.0.2", 0)) == 202


@pytest.mark.parametrize("head", [b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate, identity\r\n"])
async def test_encodings_are_refused(world, head):
    await world.listen()
    peer = await world.connect()
    peer.writer.write(POST + head + b"Content-Length: 2\r\n\r\n{}")
    assert await peer.status() == 415


async def test_multipart_stays_bytes_and_a_web_socket_is_not_opened(world):
    await world.listen()
    body = b'--x\r\nContent-Disposition: form-data; name="a"; filename="/etc/passwd"\r\n\r\nb\r\n--x--\r\n'
    peer = await world.connect()
    head = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n" % len(body)
    peer.writer.write(POST + head + body)
    assert await peer.status() == 202
    assert world.inbox.received[0].body == body
    peer = await world.connect()
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\n"
    peer.writer.write(POST.replace(b"POST", b"GET") + upgrade + b"\r\n")
    assert await peer.status() == 405


# Under TLS, before there is HTTP


HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize("sent", [b"", HALF_HELLO, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100])
async def test_who_does_not_finish_a_handshake_is_cut_and_forgotten(encrypted, sent):
    await encrypted.listen(header_s=SHORT)
    peer = await encrypted.raw()
    peer.writer.write(sent)
    await peer.ended()
    await until(lambda: encrypted.open == 0)
    assert encrypted.inbox.received == []


async def test_a_trickling_handshake_is_cut(encrypted):
    await encrypted.listen(header_s=SHORT)
    peer = await encrypted.raw()
    peer.writer.write(HALF_HELLO)
    async with trickling(peer, b"\x00"):
        await peer.ended()
    await until(lambda: encrypted.open == 0)


async def test_silence_after_the_handshake_is_cut(encrypted):
    await encrypted.listen(header_s=HANDSHAKE)
    peer = await encrypted.connect()
    assert await peer.ended() == b""
    await until(lambda: encrypted.open == 0)


async def test_connections_count_before_their_handshake(encrypted):
    await encrypted.listen(connections_max=3, header_s=GUARD)
    silent = [await encrypted.raw() for _ in range(3)]
    await until(lambda: encrypted.open == 3)
    assert await (await encrypted.raw()).ended() == b""
    silent[0].writer.transport.abort()
    await until(lambda: encrypted.open == 2)
    assert await encrypted.deliver() == 202


async def test_many_that_break_off_leave_nothing_behind(encrypted):
    await encrypted.listen()
    for sent in (b"", HALF_HELLO) * 20:
        peer = await encrypted.raw()
        peer.writer.write(sent)
        peer.writer.transport.abort()
    await until(lambda: encrypted.open == 0 and not encrypted.listener._listening._greeting)
    assert not encrypted.listener._server._gate._by_peer
    assert await encrypted.deliver() == 202


async def test_stopping_answers_what_is_under_way_and_cuts_handshakes(encrypted):
    await encrypted.listen(header_s=GUARD)
    greeting = await encrypted.raw()
    encrypted.inbox.gate.clear()
    busy = await encrypted.connect()
    busy.writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
    await encrypted.inbox.entered.wait()
    stopping = asyncio.create_task(encrypted.listener.stop(GUARD))
    await greeting.ended()
    with pytest.raises(OSError):
        await encrypted.raw()
    encrypted.inbox.gate.set()
    assert await busy.status() == 202
    await stopping


async def test_start_again_after_a_stop(encrypted):
    await encrypted.listen()
    await encrypted.listener.stop(1)
    await encrypted.listener.start()
    assert await encrypted.deliver() == 202


async def test_a_socket_that_was_handed_over_speaks_tls_too(encrypted):
    sock = socket.create_server(("127.0.0.1", 0))
    encrypted.listener = WebhookListener(encrypted.inbox, tls=encrypted.tls)
    await encrypted.listener.start(sock)
    assert encrypted.listener.base_url == f"https://127.0.0.1:{sock.getsockname()[1]}"
    assert await encrypted.deliver() == 202


async def test_a_taken_port_is_an_error_with_tls_too(encrypted):
    await encrypted.listen()
    with pytest.raises(OSError):
        await WebhookListener(encrypted.inbox, port=encrypted.port, tls=encrypted.tls).start()


async def test_each_handshake_shows_the_certificate_in_force(encrypted):
    await encrypted.listen()
    for _ in range(3):
        new = leaf()
        put(encrypted.pair[0].parent, new)
        peer = await encrypted.connect()
        wire: ssl.SSLObject = peer.writer.get_extra_info("ssl_object")
        assert wire.getpeercert(binary_form=True) == der(new)
        assert wire.selected_alpn_protocol() is None
