"""HTTP servers that answer byte for byte what a test tells them to, and a proxy that forwards to them."""

from __future__ import annotations

import asyncio

from yarl import URL

PROXY_PASSWORD = "pr0xy+pass/word"


class Request:
    def __init__(self, head, body):
        line, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.pairs = [tuple(one.split(": ", 1)) for one in lines]
        self.headers = {name.lower(): value for name, value in self.pairs}
        self.body = body


class Server:
    """Answers every request with what `script` makes of it: bytes, or a coroutine that does as it likes."""

    def __init__(self, script):
        self.script = script
        self.requests, self.connections = [], 0
        self.gone = asyncio.Event()  # a client has closed its connection
        self.tasks = set()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head, b"")
                request.body = await reader.readexactly(int(request.headers.get("content-length", 0)))
                self.requests.append(request)
                answer = self.script(request) if callable(self.script) else self.script
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                elif await answer(reader, writer) is not None:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            writer.transport.abort()

    @property
    def last(self):
        return self.requests[-1]


class Proxy:
    """Forwards as RFC 9110 says, to where `hosts` says that a name is; remembers what it was asked."""

    def __init__(self, hosts=(), refusal=b"", auth=""):
        self.hosts, self.refusal, self.auth = dict(hosts), refusal, auth
        self.asked, self.heads, self.tasks = [], [], set()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            method, target, _ = head.split(" ", 2)
            self.asked.append(f"{method} {target}")
            if self.refusal or (self.auth and f"Proxy-Authorization: Basic {self.auth}" not in head):
                writer.write(self.refusal or b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                await self._forward(method, target, head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the end of the test
        finally:
            writer.close()

    async def _forward(self, method, target, head, reader, writer):
        url = URL(f"http://{target}" if method == "CONNECT" else target)
        far, upstream = await asyncio.open_connection(self.hosts.get(url.host, url.host), url.port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                upstream.write(head.replace(target, url.raw_path_qs, 1).encode())
            await asyncio.gather(self._pipe(reader, upstream), self._pipe(far, writer))
        finally:
            upstream.transport.abort()

    async def _pipe(self, reader, writer):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()


class Servers:
    """Servers on free ports of loopback, which end with the test."""

    def __init__(self):
        self._opened = []

    async def __aenter__(self):
        return self

    async def start(self, script, tls=None, host="127.0.0.1", port=0):
        server = Server(script)
        listening = await asyncio.start_server(server.serve, host, port, ssl=tls)
        server.port = listening.sockets[0].getsockname()[1]
        server.url = f"http{'s' if tls else ''}://{host}:{server.port}"
        self._opened.append((server, listening))
        return server

    async def start_proxy(self, tls=None, **how):
        proxy = Proxy(**how)
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
        address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        scheme = "https" if tls else "http"
        proxy.url = f"{scheme}://{address}"
        password = PROXY_PASSWORD.replace("/", "%2F").replace("+", "%2B")
        proxy.with_user = f"{scheme}://alice:{password}@{address}"
        self._opened.append((proxy, listening))
        return proxy

    async def __aexit__(self, *_):
        for server, listening in self._opened:
            listening.close()
            for task in server.tasks:
                task.cancel()
            await asyncio.gather(*server.tasks, return_exceptions=True)


def answer(status=200, body=b"", headers=(), kind="application/json"):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    if kind:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
