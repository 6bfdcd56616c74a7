"""The HTTP door: receives webhooks and hands them to the inbox. It knows nothing of workflows.

aiohttp's server has no limit for silent, half-open or slow connections worth the name: its only timeout is that of
idle connections, and by default that is an hour. What is added here, and where:

===========================  ==================================================================================
no or half a first request   `_Connection` aborts after `Limits.header_s`
idle, or half a later one    aiohttp's own keep-alive timer, set to `Limits.idle_s`
slow or endless body         `_read_slowly`: `Limits.body_s` in all, `Limits.body_bytes_max`, then 408 or 413
a peer that does not read    `_Connection` aborts when writing was blocked for `Limits.write_s`, or when a closed
                             connection could not flush what it had for `Limits.linger_s`
too many connections         `_Gate`: 503 and close, before anything is parsed; under TLS close, before the handshake
no end of a TLS handshake    `TlsServer`: closed after `Limits.header_s`, counted from the first byte on
===========================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import orjson
import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from taskforged.control.delivery import Delivery, Gateway, Inbox, Page, Probes, Receipt
from taskforged.control.pressure import STORAGE_REASONS
from taskforged.errors import ResourceExhaustedError, UnavailableError
from taskforged.meters import OTHER, Counts
from taskforged.triggers.accepting import TlsServer, bind

__all__ = ["Limits", "WebhookListener"]

_log = structlog.get_logger(__name__)

_BACKLOG = 1024
_UNHEARD_S = 0.5
"""How long a stop waits for a connection that has not said anything yet; a request is mostly a round trip behind it."""
_LOOK_S = 0.01
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: taskforge\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 70\r\n\r\n"
    b'{"error":{"code":"unavailable","message":"too many connections open"}}'
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may ask for.

    Attributes:
        body_bytes_max: size of a body; more is answered 413. GitHub sends up to 25 MB, but only for huge pushes.
        header_s: from the connection to the end of the first request's header; under TLS to the end of the handshake,
            and from there again.
        idle_s: from the end of one request to the end of the next one's header.
        body_s: from the end of the header to the end of the body; then 408.
        write_s: how long a peer may refuse to take its answer.
        linger_s: how long a connection that is over may take to deliver its last answer; what comes in is discarded.
        connections_max: open at once; one more is answered 503.
        connections_per_peer_max: the same for one address. None is no limit: behind a reverse proxy all peers are one.
        buffer_bytes_max: all bodies together that are still arriving; beyond it they are answered 503.
    """

    body_bytes_max: int = 1 << 20
    header_s: float = 5.0
    idle_s: float = 15.0
    body_s: float = 10.0
    write_s: float = 10.0
    linger_s: float = 2.0
    connections_max: int = 1024
    connections_per_peer_max: int | None = None
    buffer_bytes_max: int = 64 << 20


class _Gate:
    """Counts open connections, those that were refused included."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open = 0
        self._by_peer: Counter[str] = Counter()

    def enter(self, peer: str) -> bool:
        """Count a connection; answer whether it may be served."""
        self._open += 1
        self._by_peer[peer] += 1
        per_peer = self.limits.connections_per_peer_max
        return self._open <= self.limits.connections_max and (per_peer is None or self._by_peer[peer] <= per_peer)

    def leave(self, peer: str) -> None:
        """Forget a connection."""
        self._open -= 1
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]

    @property
    def is_flooded(self) -> bool:
        """Even answering 503 costs too much now."""
        return self._open > 2 * self.limits.connections_max


class _Connection(RequestHandler):
    """aiohttp's connection, with an end in every state that a peer can hold it in."""

    __slots__ = ("_admitted", "_blocked", "_deadline", "_gate", "_made", "_peer", "_wire")

    def __init__(self, manager: web.Server, gate: _Gate, peer: str | None = None, **options: Any) -> None:
        super().__init__(manager, **options)
        self._gate = gate
        self._admitted = peer is not None
        self._made = False
        self._peer = peer or ""
        self._wire: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._blocked: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or answer 503 without parsing anything."""
        self._wire = cast(asyncio.Transport, transport)
        self._made = True
        if not self._admitted:
            self._peer = _address(self._wire)
            if not self._gate.enter(self._peer):
                self._refuse(self._wire)
                return
        super().connection_made(transport)
        self._deadline = self._loop.call_later(self._gate.limits.header_s, self._expire)

    def abandon(self) -> None:
        """Be forgotten, unless the connection was made."""
        if not self._made:
            self._made = True
            self._gate.leave(self._peer)

    def as_protocol(self) -> _Connection:
        """Answer itself."""
        return self

    def _refuse(self, wire: asyncio.Transport) -> None:
        self._force_close = True  # what comes in is discarded
        if self._gate.is_flooded:
            wire.abort()
            return
        # Closing at once, with the peer's request unread, would reset the connection and destroy the answer.
        wire.write(_BUSY)
        wire.write_eof()
        self._deadline = self._loop.call_later(self._gate.limits.linger_s, wire.abort)

    def _expire(self) -> None:
        if self._request_count == 0 and self._wire is not None:
            self._wire.abort()

    async def start(self) -> None:
        """Serve requests until the connection is over; then see to it that it really closes."""
        try:
            await super().start()
        finally:
            if self._wire is not None:
                self._cancel(self._deadline)
                self._deadline = self._loop.call_later(self._gate.limits.linger_s, self._wire.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        self._cancel(self._deadline)
        self._cancel(self._blocked)
        self._wire = None
        self._gate.leave(self._peer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give a peer that does not read its answers a limited time."""
        super().pause_writing()
        if self._wire is not None:
            self._blocked = self._loop.call_later(self._gate.limits.write_s, self._wire.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._cancel(self._blocked)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered, or the first one is still to come."""
        if self._waiter is not None and not self._waiter.done() and not self.is_unheard:
            self.force_close()

    @property
    def is_unheard(self) -> bool:
        """Whether no request has come yet."""
        return self._request_count == 0 and self._wire is not None and not self._force_close

    @property
    def is_first_request(self) -> bool:
        """Whether what is being answered is the first request."""
        return self._request_count == 1

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  aiohttp's text quotes what the peer sent
    ) -> web.StreamResponse:
        """Answer what is no HTTP (400), and an error of ours (500), without any detail."""
        if status >= 500:
            _log.error("http request failed", remote=self._peer, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, there cannot be another one")
        return _error(status, "internal" if status >= 500 else "bad_request", close=True)


class _Server(web.Server):
    """aiohttp's server, making guarded connections."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], limits: Limits) -> None:
        super().__init__(
            handler,
            handler_cancellation=False,  # a delivery that was received is kept, also when its sender does not wait
            access_log=None,
            keepalive_timeout=limits.idle_s,
            lingering_time=limits.linger_s,
            auto_decompress=False,
            max_headers=100,
            read_bufsize=1 << 16,
        )
        self._gate = _Gate(limits)

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._gate, loop=self._loop, **self._kwargs)

    def admit(self, peer: str) -> _Connection | None:
        """Answer a connection that is counted already, None when there are too many."""
        if not self._gate.enter(peer):
            self._gate.leave(peer)
            return None
        return _Connection(self, self._gate, peer, loop=self._loop, **self._kwargs)

    def close_idle(self) -> None:
        """Close the connections on which nothing is under way."""
        for connection in self.connections:
            cast(_Connection, connection).close_if_idle()

    def has_unheard(self) -> bool:
        """Whether a connection is still to say something."""
        return any(cast(_Connection, connection).is_unheard for connection in self.connections)


class _RefusedError(Exception):
    """A delivery that is answered here and only shown to the inbox."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason


class WebhookListener:
    """Listens for `POST /hooks/<namespace>/<path>`, CloudEvents and probes.

    Args:
        inbox: keeps the deliveries.
        host: address to listen on.
        port: 0 picks a free one.
        limits: what a peer may ask for.
        gateway: takes and gives CloudEvents below `/events/`; None: nobody does.
        tls: what the connections are encrypted with; None: they are plain.
        probes: answers what machines ask about the daemon; None: nobody does.
        requests: counts requests by route and status.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        gateway: Gateway | None = None,
        tls: ssl.SSLContext | None = None,
        probes: Probes | None = None,
        requests: Counts | None = None,
    ) -> None:
        self._inbox = inbox
        self._host, self._port, self._tls = host, port, tls
        self._limits = Limits() if limits is None else limits
        self._gateway = gateway
        self._probes = probes
        self._requests = Counts(_ROUTES_MAX) if requests is None else requests
        self._server: _Server | None = None
        self._listening: asyncio.Server | TlsServer | None = None
        self._active: set[asyncio.Task[Any]] = set()
        self._buffered = 0
        self._stopping = False
        self._base_url = ""

    @property
    def base_url(self) -> str:
        """Where it listens, for example `http://127.0.0.1:7421`; empty before `start`."""
        return self._base_url

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen. Returns when connections are accepted; does nothing when they are already.

        Args:
            sock: a listening socket to adopt in place of an address, for example from systemd.

        Raises:
            OSError: the address is taken or may not be used.
        """
        if self._server is not None:
            return
        server = _Server(self._answer, self._limits)
        self._listening = await self._listen(server, sock)
        self._server, self._stopping = server, False
        self._base_url = _url("https" if self._tls else "http", self._listening.sockets[0].getsockname())

    async def _listen(self, server: _Server, sock: socket.socket | None) -> asyncio.Server | TlsServer:
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            sock = sock or await bind(self._host, self._port, _BACKLOG)
            limits = self._limits
            return TlsServer(sock, self._tls, server.admit, handshake_s=limits.header_s, shutdown_s=limits.linger_s)
        if sock is not None:
            return await loop.create_server(server, sock=sock, backlog=_BACKLOG)
        return await loop.create_server(server, self._host, self._port, backlog=_BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Stop listening, answer what is under way within `grace_s` seconds, then cut the rest. Idempotent.

        What was cut has not been acknowledged, so its sender delivers it again.
        """
        server, listening = self._server, self._listening
        if server is None or listening is None:
            return
        self._server, self._listening, self._stopping = None, None, True
        listening.close()
        server.close_idle()
        await self._hear_out(server, min(grace_s, _UNHEARD_S))
        await self._finish_active(grace_s)
        await server.shutdown(self._limits.linger_s)

    async def _hear_out(self, server: _Server, limit_s: float) -> None:
        """Let connections that were accepted and have not said anything yet say it.

        They are not refused, as what still waits in the kernel is not when the socket was handed over to us.
        """
        for _ in range(round(limit_s / _LOOK_S)):
            await asyncio.sleep(_LOOK_S)  # first: what was accepted a moment ago is known to nobody yet
            if not server.has_unheard():
                return

    async def _finish_active(self, grace_s: float) -> None:
        if self._active:
            await asyncio.wait(self._active, timeout=grace_s)
        for task in self._active:
            task.cancel()
        if self._active:
            _log.warning("webhooks cut at the end of the grace time", count=len(self._active))
            await asyncio.wait(self._active, timeout=self._limits.linger_s)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._active.add(task)
        task.add_done_callback(self._active.discard)
        if self._is_stopping() and not cast(_Connection, request.protocol).is_first_request:
            return _error(503, "unavailable", retry_after_s=1, close=True)
        response = await self._route(request)
        self._requests.add((_route_name(request.rel_url.raw_path), str(response.status)))
        if self._is_stopping():
            response.force_close()
        return response

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _route(self, request: web.BaseRequest) -> web.Response:
        path = request.rel_url.raw_path
        parts = path.split("/", 3)
        if len(parts) == 4 and parts[1] == "hooks" and parts[2]:
            return await self._receive(request, parts[2], parts[3])
        if len(parts) >= 3 and parts[1] == "events" and parts[2] and self._gateway is not None:
            return await self._exchange(self._gateway, request, parts[2], parts[3] if len(parts) == 4 else "")
        if self._probes is None or not self._probes.serves(path):
            return _error(404, "not_found")
        if request.method not in {"GET", "HEAD"}:
            return _error(405, "method_not_allowed", {"Allow": "GET, HEAD"})
        return await self._probe(self._probes, request, path)

    async def _probe(self, probes: Probes, request: web.BaseRequest, path: str) -> web.Response:
        headers = {name.lower(): _clean(value) for name, value in request.headers.items()}
        try:
            page = await probes.show(path, headers, _peer_of(request))
        except Exception:  # noqa: BLE001  the boundary of a request: the asker learns nothing, the log everything
            _log.exception("probe failed", path=path)
            return _error(503, "unavailable", retry_after_s=1)
        return _page(page)

    async def _receive(self, request: web.BaseRequest, namespace: str, path: str) -> web.Response:
        if request.method != "POST":
            return _error(405, "method_not_allowed", {"Allow": "POST"})
        namespace, path = unquote(namespace), unquote(path)
        if not (namespace + path).isprintable():
            return _error(404, "not_found")
        try:
            body = await self._body(request)
        except _RefusedError as refused:
            await self._reject(_delivery(request, namespace, path, b""), refused.reason)
            return _error(refused.status, refused.code, close=refused.status == 408)
        except UnavailableError:
            return _error(503, "unavailable", retry_after_s=1, close=True)
        except (RequestPayloadError, ConnectionError):
            return _error(400, "bad_request", close=True)  # not chunked as it says, or gone
        return await self._answer_with(self._inbox.receive, _delivery(request, namespace, path, body))

    async def _exchange(self, gateway: Gateway, request: web.BaseRequest, namespace: str, path: str) -> web.Response:
        """Take or give CloudEvents."""
        methods = "GET" if path else "GET, POST"
        if request.method not in methods.split(", "):
            return _error(405, "method_not_allowed", {"Allow": methods})
        namespace, path = unquote(namespace), unquote(path)
        if not (namespace + path).isprintable():
            return _error(404, "not_found")
        if request.method == "GET":
            return await self._answer_with(gateway.show, _delivery(request, namespace, path, b""))
        try:
            body = await self._body(request)
        except _RefusedError as refused:
            return _error(refused.status, refused.code, close=refused.status == 408)
        except UnavailableError:
            return _error(503, "unavailable", retry_after_s=1, close=True)
        except (RequestPayloadError, ConnectionError):
            return _error(400, "bad_request", close=True)
        return await self._answer_with(gateway.publish, _delivery(request, namespace, path, body))

    async def _body(self, request: web.BaseRequest) -> bytes:
        length_max = self._limits.body_bytes_max
        encoding = request.headers.get("Content-Encoding")
        if encoding and encoding.strip().lower() != "identity":
            raise _RefusedError(415, "unsupported_encoding", f"the body is encoded as {_clean(encoding)[:40]}")
        if (request.content_length or 0) > length_max:
            raise _too_large(length_max)
        if "Expect" in request.headers:
            await _expect(request)
        # Most bodies came in one piece with their header: neither a timer nor a copy for those.
        body = request.content.read_nowait() if request.content.is_eof() else await self._read_slowly(request)
        self._check_size(len(body))
        return body

    async def _read_slowly(self, request: web.BaseRequest) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while chunk := await request.content.readany():
                    body += chunk
                    self._buffered += len(chunk)
                    self._check_size(len(body))
        except TimeoutError:
            reason = f"the body did not arrive within {self._limits.body_s:g} s"
            raise _RefusedError(408, "timeout", reason) from None
        finally:
            self._buffered -= len(body)
        return bytes(body)

    def _check_size(self, length: int) -> None:
        if length > self._limits.body_bytes_max:
            raise _too_large(self._limits.body_bytes_max)
        if self._buffered > self._limits.buffer_bytes_max:
            raise UnavailableError("too many bodies are arriving at once")

    async def _answer_with(self, receive: Callable[[Delivery], Awaitable[Receipt]], delivery: Delivery) -> web.Response:
        try:
            receipt = await receive(delivery)
        except ResourceExhaustedError as error:
            # Want of room is none of the sender's doing, too many deliveries are.
            is_ours = error.reason in STORAGE_REASONS
            status, code = (507, "insufficient_storage") if is_ours else (429, "resource_exhausted")
            return _error(status, code, retry_after_s=error.retry_after_s or 1)
        except UnavailableError:
            return _error(503, "unavailable", retry_after_s=1)
        except Exception:  # noqa: BLE001  the boundary of a request: the sender learns nothing, the log everything
            _log.exception("webhook failed", namespace=delivery.namespace, path=delivery.path, remote=delivery.remote)
            return _error(500, "internal")
        return _json(receipt.status, receipt.body, receipt.headers)

    async def _reject(self, delivery: Delivery, reason: str) -> None:
        try:
            await self._inbox.reject(delivery, reason)
        except Exception:  # noqa: BLE001  the boundary of a request: a refusal that cannot be recorded is still a refusal
            _log.exception("refused webhook not recorded", namespace=delivery.namespace, reason=reason)


def _too_large(limit: int) -> _RefusedError:
    return _RefusedError(413, "too_large", f"the body is larger than {limit:,} bytes")


async def _expect(request: web.BaseRequest) -> None:
    # curl sends this for bodies above a megabyte and then waits a second for the answer.
    if request.headers["Expect"].lower() != "100-continue":
        raise _RefusedError(417, "expectation_failed", "the sender expects something else than 100-continue")
    if not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp does: the answer itself has not begun


def _delivery(request: web.BaseRequest, namespace: str, path: str, body: bytes) -> Delivery:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {_clean(value)}" if key in headers else _clean(value)
    query = request.rel_url
    return Delivery(
        namespace=namespace,
        path=path,
        headers=headers,
        query={_clean(name): _clean(value) for name, value in query.query.items()} if query.raw_query_string else {},
        body=body,
        content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
        remote=_peer_of(request),
        arrived_s=time.monotonic(),
    )


def _peer_of(request: web.BaseRequest) -> str:
    return cast(_Connection, request.protocol)._peer  # noqa: SLF001  both are of this module


_ROUTES_MAX = 200
_ROUTES = frozenset({"hooks", "events", "healthz", "readyz", "metrics"})


def _route_name(path: str) -> str:
    """Answer the first part of a path when it is one of ours: what is counted must not grow with what is asked."""
    first = path[1:].partition("/")[0]
    return first if first in _ROUTES else OTHER


def _clean(text: str) -> str:
    # aiohttp decodes headers with `surrogateescape`; half a character would later break JSON and SQLite.
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _address(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) and name else ""


def _url(scheme: str, address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


_MESSAGES = {
    "bad_request": "this is not a valid HTTP request",
    "expectation_failed": "this expectation cannot be met",
    "internal": "something went wrong here; the log has the details",
    "method_not_allowed": "this method is not allowed here",
    "not_found": "there is nothing here",
    "resource_exhausted": "too many deliveries; come back later",
    "timeout": "the body did not arrive in time",
    "too_large": "the body is too large",
    "unavailable": "not possible right now; come back later",
    "insufficient_storage": "there is no room for it just now; try again",
    "unsupported_encoding": "send the body without Content-Encoding",
}


def _error(
    status: int,
    code: str,
    headers: Mapping[str, str] | None = None,
    *,
    retry_after_s: float | None = None,
    close: bool = False,
) -> web.Response:
    extra = dict(headers or {})
    if retry_after_s is not None:
        extra["Retry-After"] = str(math.ceil(retry_after_s))
    response = _json(status, {"error": {"code": code, "message": _MESSAGES[code]}}, extra)
    if close:
        response.force_close()
    return response


def _page(page: Page) -> web.Response:
    fixed = {"Server": "taskforge", "Content-Type": page.content_type}
    return web.Response(status=page.status, body=page.content, headers=fixed)


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    # `Server` is set so that aiohttp does not add its version and Python's.
    fixed = {"Server": "taskforge", "Content-Type": "application/json"}
    return web.Response(status=status, body=orjson.dumps(body), headers={**fixed, **headers} if headers else fixed)
