"""The other side of each measurement, in a process of its own: `python servers.py KIND` prints its port and serves.

`echo`   the cheapest HTTP server that Python can be: an asyncio protocol that answers 200 with a little JSON.
`fibonacci`  an aiohttp server that computes a naive Fibonacci number, as Windmill's scenario has it.
`http`   a bare aiohttp server that reads the body and answers 202: what a webhook costs without Taskforge.
`grpc`   a bare grpc.aio server with StartRun answering a constant: what a call costs without Taskforge.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from aiohttp import web

_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nConnection: keep-alive\r\n\r\n"
    b'{"ok":true}'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class _Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            self._transport.write(_ANSWER)  # type: ignore[attr-defined]


async def _echo() -> int:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0, backlog=1024)
    _keep.append(server)
    return int(server.sockets[0].getsockname()[1])


async def _http() -> int:
    from aiohttp import web

    async def accept(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"event_id": "evt_00000000000000000000000000", "run_ids": []}, status=202)

    return await _site(accept)


async def _site(handle: Callable[[web.Request], Awaitable[web.Response]]) -> int:
    from aiohttp import web

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    _keep.append(runner)
    return int(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]


async def _fibonacci() -> int:
    from aiohttp import web

    async def compute(request: web.Request) -> web.Response:
        return web.json_response({"value": _fibo((await request.json())["n"])})

    return await _site(compute)


def _fibo(n: int) -> int:
    return n if n <= 1 else _fibo(n - 1) + _fibo(n - 2)


async def _grpc() -> int:
    import grpc.aio
    from taskforge.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc

    class Runs(run_service_pb2_grpc.RunServiceServicer):
        async def StartRun(self, request, context):  # noqa: N802, ARG002
            run = run_pb2.Run(id="run_00000000000000000000000000", workflow=request.workflow, state=2, sequence=6)
            return run_service_pb2.StartRunResponse(run=run)

    server = grpc.aio.server()
    run_service_pb2_grpc.add_RunServiceServicer_to_server(Runs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _keep.append(server)
    return int(port)


_keep: list[object] = []


async def _main() -> None:
    port = await {"echo": _echo, "http": _http, "fibonacci": _fibonacci, "grpc": _grpc}[sys.argv[1]]()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent is gone


if __name__ == "__main__":
    uvloop.run(_main())
