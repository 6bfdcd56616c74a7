"""The webhook door against real sockets: what it accepts, what it refuses, and that no peer can hold it."""

import asyncio
import json
import socket

import pytest

from taskforged.control.delivery import Page, Receipt
from taskforged.errors import ResourceExhaustedError, UnavailableError
from taskforged.meters import Counts
from taskforged.triggers.webhook import Limits, WebhookListener

SHORT = 0.15  # seconds: the deadline that a test is about; all others stay long
GUARD = 20  # seconds: a test that has not seen its event by then has failed


class Inbox:
    def __init__(self):
        self.received, self.rejected = [], []
        self.answer = Receipt(202, {"event": "evt_1"})
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.finished = asyncio.Event()

    async def receive(self, delivery):
        self.received.append(delivery)
        self.entered.set()
        await self.gate.wait()
        self.finished.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def reject(self, delivery, reason):
        self.rejected.append((delivery, reason))


class Peer:
    """A client that can misbehave."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, listener):
        host, port = listener.base_url.removeprefix("http://").rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, data):
        self.writer.write(data)

    async def answer(self):
        async with asyncio.timeout(GUARD):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return int(status.split()[1]), headers, json.loads(body) if body else None

    async def closed(self):
        """Wait until the server has closed; answer what it sent before."""
        async with asyncio.timeout(GUARD):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self):
        self.writer.transport.abort()


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
async def world(inbox):
    """Makes listeners and peers, and ends them."""
    world = World(inbox)
    yield world
    for peer in world.peers:
        peer.close()
    for listener in world.listeners:
        await listener.stop(0)


class ProbePages:
    def serves(self, path):
        return path in {"/healthz", "/readyz"}

    async def show(self, path, headers, remote):
        if path == "/readyz":
            raise RuntimeError("a bug")
        return Page(201, json.dumps([path, headers["x-some"], remote]).encode(), "application/json; version=1")


class World:
    def __init__(self, inbox):
        self.inbox, self.listeners, self.peers = inbox, [], []

    async def listen(self, sock=None, **options):
        limits = {name: options.pop(name) for name in list(options) if name in Limits.__slots__}
        listener = WebhookListener(
            self.inbox,
            limits=Limits(**{"linger_s": SHORT, "idle_s": 3600, **limits}),
            **{"probes": ProbePages(), **options},
        )
        await listener.start(sock)
        self.listeners.append(listener)
        return listener

    async def connect(self, listener):
        self.peers.append(await Peer.connect(listener))
        return self.peers[-1]

    async def ask(self, listener, data):
        peer = await self.connect(listener)
        peer.send(data)
        return await peer.answer()


def post(path="/hooks/default/github", body=b"{}", headers=()):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def test_a_delivery_arrives_as_it_was_sent(world, inbox):
    listener = await world.listen()
    status, headers, body = await world.ask(
        listener,
        post(
            "/hooks/team-a/git/hub%20x?a=1&b=%C3%BC&a=2",
            b'\x00\xff{"raw": true}',
            [
                "Content-Type: Application/JSON; charset=utf-8",
                "X-Many: one",
                "x-many: two",
                "X-Forwarded-For: 6.6.6.6",
                "X-Odd: \xff\xc3\xbc",
            ],
        ),
    )
    assert (status, body) == (202, {"event": "evt_1"})
    assert headers["content-type"] == "application/json"
    assert headers["server"] == "taskforge"
    [delivery] = inbox.received
    assert (delivery.namespace, delivery.path) == ("team-a", "git/hub x")
    assert delivery.body == b'\x00\xff{"raw": true}'
    assert delivery.query == {"a": "2", "b": "ü"}
    assert delivery.content_type == "application/json"
    assert delivery.headers["x-many"] == "one, two"
    assert delivery.headers["x-odd"] == "�ü"
    assert delivery.remote == "127.0.0.1"


async def test_one_connection_carries_many_deliveries(world, inbox):
    listener = await world.listen()
    peer = await world.connect(listener)
    for number in range(5):
        peer.send(post(body=b"%d" % number))
        assert (await peer.answer())[0] == 202
    peer.send(post(body=b"5") + post(body=b"6"))
    assert [(await peer.answer())[0], (await peer.answer())[0]] == [202, 202]
    assert [d.body for d in inbox.received] == [b"%d" % n for n in range(7)]


async def test_a_chunked_body_in_pieces(world, inbox):
    listener = await world.listen()
    peer = await world.connect(listener)
    peer.send(b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"3\r\nab", b"c\r\n", b"2\r\nde\r\n0\r\n", b"\r\n"):
        peer.send(piece)
        await peer.writer.drain()
    assert (await peer.answer())[0] == 202
    assert inbox.received[0].body == b"abcde"


@pytest.mark.parametrize(
    ("request_", "status", "allow"),
    [
        (b"GET /hooks/default/x HTTP/1.1\r\nHost: x\r\n\r\n", 405, "POST"),
        (b"PUT /hooks/default/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 405, "POST"),
        (b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405, "GET, HEAD"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404, None),
        (b"POST /hooks/default HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404, None),
        (b"POST /hooks//x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404, None),
        (b"POST /hooks/default/a%00b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404, None),
        (b"POST /hooks/default/a%0Ab HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404, None),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, None),
        (b"GET /healthz/../hooks HTTP/1.1\r\nHost: x\r\n\r\n", 404, None),
    ],
)
async def test_what_is_not_served(world, inbox, request_, status, allow):
    listener = await world.listen()
    answer = await world.ask(listener, request_)
    assert answer[0] == status
    assert answer[1].get("allow") == allow
    assert answer[1]["content-type"] == "application/json"
    assert set(answer[2]["error"]) == {"code", "message"}
    assert inbox.received == []


async def test_probes_are_answered_by_whoever_serves_them(world):
    requests = Counts(10)
    listener = await world.listen(requests=requests)
    get = b"GET %s HTTP/1.1\r\nHost: x\r\nX-Some: Header\r\n\r\n"
    status, headers, body = await world.ask(listener, get % b"/healthz")
    assert (status, headers["content-type"]) == (201, "application/json; version=1")
    assert body == ["/healthz", "Header", "127.0.0.1"]
    assert (await world.ask(listener, get % b"/readyz/"))[0] == 404
    assert (await world.ask(listener, get % b"/readyz"))[0] == 503  # it failed, and says nothing of why
    assert requests.by_key == {("healthz", "201"): 1, ("readyz", "404"): 1, ("readyz", "503"): 1}


async def test_what_is_asked_does_not_grow_what_is_counted(world):
    requests = Counts(10)
    listener = await world.listen(requests=requests)
    for path in ("/a", "/b/c", "//", "/hookss/x"):
        await world.ask(listener, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert requests.by_key == {("other", "404"): 4}


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GARBAGE\r\n\r\n",
        b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ],
)
async def test_what_is_no_http_is_answered_without_detail_and_closed(world, inbox, data):
    listener = await world.listen()
    peer = await world.connect(listener)
    peer.send(data)
    status, headers, body = await peer.answer()
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert headers["server"] == "taskforge"
    assert await peer.closed() == b""
    assert inbox.received == []


async def test_a_broken_chunk_is_a_bad_request(world, inbox):
    listener = await world.listen()
    peer = await world.connect(listener)
    peer.send(b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await peer.writer.drain()
    peer.send(b"zz\r\n")
    assert (await peer.answer())[0] == 400
    await peer.closed()
    assert inbox.received == []


# Size


async def test_the_limit_is_the_last_size_that_passes(world, inbox):
    listener = await world.listen(body_bytes_max=1000)
    assert (await world.ask(listener, post(body=b"x" * 1000)))[0] == 202
    assert (await world.ask(listener, post(body=b"x" * 1001)))[0] == 413
    [(delivery, reason)] = inbox.rejected
    assert (delivery.namespace, delivery.path, delivery.body) == ("default", "github", b"")
    assert "1,000 bytes" in reason


async def test_a_body_announced_as_too_large_is_refused_before_it_comes(world):
    listener = await world.listen()
    assert (
        await world.ask(listener, b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    )[0] == 413


async def test_an_endless_chunked_body_is_refused_and_cut(world, inbox):
    listener = await world.listen(body_bytes_max=100_000)
    peer = await world.connect(listener)
    peer.send(b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def flood():
        while True:
            peer.send(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")
            await peer.writer.drain()

    flooding = asyncio.create_task(flood())
    assert (await peer.answer())[0] == 413
    await peer.closed()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    assert inbox.received == []


async def test_all_arriving_bodies_together_are_bounded(world, inbox):
    listener = await world.listen(buffer_bytes_max=5000)
    first = await world.connect(listener)
    first.send(post(body=b"x" * 6000)[:-2500])
    second = await world.connect(listener)
    second.send(post(body=b"x" * 6000)[:-2500])
    done, _ = await asyncio.wait(
        [asyncio.create_task(p.answer()) for p in (first, second)], return_when=asyncio.FIRST_COMPLETED
    )
    status, headers, _ = done.pop().result()
    assert (status, headers["retry-after"]) == (503, "1")
    assert (await world.ask(listener, post()))[0] == 202


@pytest.mark.parametrize("encoding", ["gzip", "br", "x, identity"])
async def test_an_encoded_body_is_refused(world, inbox, encoding):
    listener = await world.listen()
    assert (await world.ask(listener, post(headers=[f"Content-Encoding: {encoding}"])))[0] == 415
    assert len(inbox.rejected) == 1


async def test_identity_is_no_encoding(world):
    listener = await world.listen()
    assert (await world.ask(listener, post(headers=["Content-Encoding: Identity"])))[0] == 202


async def test_a_sender_that_waits_for_100_continue(world, inbox):
    listener = await world.listen()
    peer = await world.connect(listener)
    peer.send(post(headers=["Expect: 100-continue"])[:-2])
    assert (await peer.answer())[0] == 100
    peer.send(b"{}")
    assert (await peer.answer())[0] == 202
    assert (await world.ask(listener, post(headers=["Expect: something"])))[0] == 417


# Slow peers


HALF_HEADER = b"POST /hooks/default/x HTTP/1.1\r\nHost: x\r\nX-A: "


@pytest.mark.parametrize("sent", [b"", b"P", HALF_HEADER])
async def test_a_connection_without_a_whole_header_is_closed(world, sent):
    listener = await world.listen(header_s=SHORT)
    peer = await world.connect(listener)
    peer.send(sent)
    assert await peer.closed() == b""


async def test_a_trickling_header_is_closed(world):
    listener = await world.listen(header_s=SHORT)
    peer = await world.connect(listener)
    peer.send(HALF_HEADER)

    async def trickle():
        while True:
            peer.send(b"a")
            await asyncio.sleep(SHORT / 10)

    trickling = asyncio.create_task(trickle())
    assert await peer.closed() == b""
    trickling.cancel()


async def test_the_header_deadline_does_not_touch_a_request_that_is_served(world, inbox):
    listener = await world.listen(header_s=SHORT)
    inbox.gate.clear()
    peer = await world.connect(listener)
    peer.send(post())
    silent = await world.connect(listener)
    await silent.closed()  # so the deadline of the older connection has passed, too
    inbox.gate.set()
    assert (await peer.answer())[0] == 202


@pytest.mark.parametrize("sent", [b"", HALF_HEADER])
async def test_an_idle_connection_is_closed(world, sent):
    listener = await world.listen(idle_s=SHORT)
    peer = await world.connect(listener)
    peer.send(post())
    assert (await peer.answer())[0] == 202
    peer.send(sent)
    assert await peer.closed() == b""


async def test_half_a_body_is_answered_408(world, inbox):
    listener = await world.listen(body_s=SHORT)
    peer = await world.connect(listener)
    peer.send(post(body=b"x" * 100)[:-50])
    status, headers, _ = await peer.answer()
    assert (status, headers["connection"]) == (408, "close")
    await peer.closed()
    assert inbox.received == []
    assert "did not arrive" in inbox.rejected[0][1]


async def test_a_trickling_body_is_answered_408(world, inbox):
    listener = await world.listen(body_s=SHORT)
    peer = await world.connect(listener)
    peer.send(post(body=b"x" * 100_000)[:-99_000])

    async def trickle():
        while True:
            peer.send(b"a")
            await asyncio.sleep(SHORT / 10)

    trickling = asyncio.create_task(trickle())
    assert (await peer.answer())[0] == 408
    await peer.closed()
    trickling.cancel()
    assert inbox.received == []


async def test_a_peer_that_does_not_read_its_answers_is_cut(world, inbox):
    listener = await world.listen(write_s=SHORT)
    inbox.answer = Receipt(200, {"x": "y" * 30_000_000})
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    host, port = listener.base_url.removeprefix("http://").split(":")
    await loop.sock_connect(raw, (host, int(port)))
    await loop.sock_sendall(raw, post())
    await until(lambda: listener._server._gate._open == 0 and inbox.received)
    raw.close()


async def test_a_peer_that_asks_on_and_never_reads_is_held_back_and_cut(world, inbox):
    listener = await world.listen(write_s=SHORT)
    inbox.answer = Receipt(200, {"x": "y" * 100_000})
    peer = await world.connect(listener)
    peer.send(post() * 2000)
    await until(lambda: listener._server._gate._open == 0 and inbox.received)
    assert len(inbox.received) < 1000
    peer.close()


async def until(condition):
    async with asyncio.timeout(GUARD):
        while not condition():
            await asyncio.sleep(0.01)


async def test_one_connection_too_many_is_answered_503(world):
    listener = await world.listen(connections_max=2)
    first, second = [await world.connect(listener) for _ in range(2)]
    for peer in (first, second):
        peer.send(post())
        assert (await peer.answer())[0] == 202
    third = await world.connect(listener)
    third.send(post())
    status, headers, body = await third.answer()
    assert (status, body["error"]["code"], headers["connection"]) == (503, "unavailable", "close")
    assert await third.closed() == b""
    third.close()
    first.close()
    await until(lambda: listener._server._gate._open == 1)
    assert (await world.ask(listener, post()))[0] == 202


async def test_a_flood_is_aborted_without_an_answer(world):
    listener = await world.listen(connections_max=2)
    peers = [await world.connect(listener) for _ in range(4)]
    await until(lambda: listener._server._gate._open == 4)
    assert await (await world.connect(listener)).closed() == b""
    assert len(peers) == 4


async def test_connections_per_peer(world):
    listener = await world.listen(connections_per_peer_max=1)
    first = await world.connect(listener)
    first.send(post())
    assert (await first.answer())[0] == 202
    assert (await world.ask(listener, post()))[0] == 503
    assert len(listener._server._gate._by_peer) == 1


# The inbox


async def test_a_received_delivery_is_completed_although_the_sender_has_gone(world, inbox):
    listener = await world.listen()
    inbox.gate.clear()
    peer = await world.connect(listener)
    peer.send(post())
    await inbox.entered.wait()
    peer.close()
    await until(lambda: listener._server._gate._open == 0)
    inbox.gate.set()
    async with asyncio.timeout(GUARD):
        await inbox.finished.wait()


async def test_a_sender_that_goes_away_within_its_body_has_delivered_nothing(world, inbox):
    listener = await world.listen()
    peer = await world.connect(listener)
    peer.send(post(body=b"x" * 10)[:-1])
    await peer.writer.drain()
    peer.writer.close()
    await until(lambda: listener._server._gate._open == 0)
    assert (inbox.received, inbox.rejected) == ([], [])


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (ResourceExhaustedError("queue of tenant bob is full", retry_after_s=2.5), 429, "3"),
        (ResourceExhaustedError("full"), 429, "1"),
        (UnavailableError("the disk is full"), 503, "1"),
        (RuntimeError("secret detail"), 500, None),
    ],
)
async def test_errors_of_the_inbox(world, inbox, error, status, retry_after):
    listener = await world.listen()
    inbox.answer = error
    answer = await world.ask(listener, post())
    assert answer[0] == status
    assert answer[1].get("retry-after") == retry_after
    assert str(error) not in json.dumps(answer[2])


async def test_headers_of_the_receipt_are_sent(world, inbox):
    listener = await world.listen()
    inbox.answer = Receipt(200, {"challenge": "x"}, {"X-Event": "evt_1"})
    assert (await world.ask(listener, post()))[1]["x-event"] == "evt_1"


# Start and stop


async def test_start_and_stop_are_idempotent(inbox):
    listener = WebhookListener(inbox)
    assert listener.base_url == ""
    await listener.stop(1)
    await listener.start()
    url = listener.base_url
    await listener.start()
    assert listener.base_url == url
    await listener.stop(1)
    await listener.stop(1)
    with pytest.raises(OSError):
        await Peer.connect(listener)


async def test_a_taken_port_is_an_error(world, inbox):
    listener = await world.listen()
    with pytest.raises(OSError):
        await WebhookListener(inbox, port=int(listener.base_url.rsplit(":", 1)[1])).start()


async def test_it_adopts_a_listening_socket(world):
    sock = socket.create_server(("127.0.0.1", 0))
    listener = await world.listen(sock)
    assert listener.base_url.endswith(f":{sock.getsockname()[1]}")
    assert (await world.ask(listener, post()))[0] == 202


async def test_stopping_finishes_what_is_under_way_and_closes_the_idle(world, inbox):
    listener = await world.listen()
    idle = await world.connect(listener)
    idle.send(post())
    await idle.answer()
    inbox.gate.clear()
    inbox.entered.clear()
    busy, uploading = await world.connect(listener), await world.connect(listener)
    uploading.send(post(body=b"abc")[:-1])
    await until(lambda: len(listener._active) == 1)
    busy.send(post())
    await inbox.entered.wait()
    stopping = asyncio.create_task(listener.stop(GUARD))
    assert await idle.closed() == b""
    with pytest.raises(OSError):
        await Peer.connect(listener)
    uploading.send(b"c")
    inbox.gate.set()
    for peer in (busy, uploading):
        status, headers, _ = await peer.answer()
        assert (status, headers["connection"]) == (202, "close")
        assert await peer.closed() == b""
    await stopping
    assert inbox.received[-1].body == b"abc"


async def test_who_has_connected_and_not_spoken_yet_is_heard(world, inbox):
    listener = await world.listen()
    silent, late = await world.connect(listener), await world.connect(listener)
    await until(lambda: len(listener._server.connections) == 2)
    stopping = asyncio.create_task(listener.stop(GUARD))
    await until(lambda: listener._stopping)
    late.send(post(body=b"late"))
    status, headers, _ = await late.answer()
    assert (status, headers["connection"]) == (202, "close")
    await stopping
    assert await silent.closed() == b""
    assert [one.body for one in inbox.received] == [b"late"]


async def test_a_request_behind_the_last_one_is_answered_503_or_cut(world, inbox):
    listener = await world.listen()
    inbox.gate.clear()
    peer = await world.connect(listener)
    peer.send(post(body=b"1") + post(body=b"2"))
    await inbox.entered.wait()
    stopping = asyncio.create_task(listener.stop(GUARD))
    await asyncio.sleep(0)
    inbox.gate.set()
    assert (await peer.answer())[0] == 202
    await peer.closed()
    await stopping
    assert [d.body for d in inbox.received] == [b"1"]


async def test_the_grace_time_ends(world, inbox):
    listener = await world.listen()
    inbox.gate.clear()
    peer = await world.connect(listener)
    peer.send(post())
    await inbox.entered.wait()
    async with asyncio.timeout(GUARD):
        await listener.stop(SHORT)
    assert await peer.closed() == b""
    assert not inbox.finished.is_set()
