"""Restate: one server process, and handlers in Python behind hypercorn; runs are calls of its HTTP ingress."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import aiohttp
import restate

from benchmarks.peers.engine import PAYLOAD, Engine, free_port, until_open

service = restate.Service("bench")
_shared: dict[str, aiohttp.ClientSession] = {}


def _plus_one(n: int) -> int:
    return n + 1


async def _send() -> int:
    if "session" not in _shared:
        _shared["session"] = aiohttp.ClientSession()
    async with _shared["session"].post(os.environ["BENCH_URL"], json={"step": 1}) as answer:
        return int((await answer.json(content_type=None))["ok"])


@service.handler()
async def light(context: restate.Context, body: dict) -> int:
    n = body["n"]
    for _ in range(3):
        n = await context.run_typed("plus one", _plus_one, n=n)
    return n


@service.handler()
async def http(context: restate.Context, body: dict) -> int:  # noqa: ARG001
    return sum([await context.run_typed("send", _send) for _ in range(3)])


@service.handler()
async def fan(context: restate.Context, body: dict) -> int:
    return len(await restate.gather(*(context.run_typed("plus one", _plus_one, n=n) for n in range(body["size"]))))


@service.handler()
async def one(context: restate.Context, body: dict) -> int:
    return await context.run_typed("plus one", _plus_one, n=body["n"])


app = restate.app([service])


class Restate(Engine):
    """Server and handlers are processes of their own."""

    accepts = "POST to the HTTP ingress with /send, 202 after it is in the log"

    async def open(self) -> None:
        ingress, admin, node, handlers = (free_port() for _ in range(4))
        self.spawn(
            [sys.executable, "-m", "hypercorn", "benchmarks.peers.restate:app", "--bind", f"127.0.0.1:{handlers}"],
            PYTHONPATH=str(Path.cwd()),
            BENCH_URL=self.url,
        )
        self.spawn(
            [
                os.environ["RESTATE_SERVER"],
                "--base-dir",
                str(self.folder / "restate"),
                "--listen-mode",
                "tcp",
            ],
            RESTATE_INGRESS__BIND_ADDRESS=f"127.0.0.1:{ingress}",
            RESTATE_ADMIN__BIND_ADDRESS=f"127.0.0.1:{admin}",
            RESTATE_BIND_ADDRESS=f"127.0.0.1:{node}",
            RESTATE_DISABLE_TELEMETRY="true",
            RESTATE_LOG_FILTER="warn",
        )
        await until_open(handlers)
        await until_open(ingress)
        await until_open(admin)
        self._session = await self.stack.enter_async_context(aiohttp.ClientSession())
        self._admin, self._ingress = f"http://127.0.0.1:{admin}", f"http://127.0.0.1:{ingress}/bench"
        async with self._session.post(
            f"{self._admin}/deployments", json={"uri": f"http://127.0.0.1:{handlers}"}
        ) as answer:
            if answer.status >= 300:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")

    async def _call(self, handler: str, body: object) -> int:
        async with self._session.post(f"{self._ingress}/{handler}", json=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
            return int(await answer.json())

    async def light(self, n: int) -> int:
        return await self._call("light", {"n": n})

    async def http(self, n: int) -> int:
        return await self._call("http", {"n": n})

    async def fan(self, size: int) -> int:
        return await self._call("fan", {"size": size})

    async def accept(self, n: int) -> None:  # noqa: ARG002
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{self._ingress}/one/send", data=PAYLOAD, headers=headers) as answer:
            if answer.status != 202:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")

    async def completed(self) -> int | None:
        query = (
            "SELECT count(*) AS count FROM sys_invocation WHERE status = 'completed' AND completion_result = 'success'"
        )
        headers = {"Accept": "application/json"}
        async with self._session.post(f"{self._admin}/query", json={"query": query}, headers=headers) as answer:
            return int(json.loads(await answer.text())["rows"][0]["count"])


ENGINE = Restate
