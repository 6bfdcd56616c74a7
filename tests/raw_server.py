"""HTTP servers that answer byte for byte what a test tells them to."""

from __future__ import annotations

import asyncio


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
