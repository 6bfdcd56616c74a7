"""Prefect: a server process over SQLite, flows and tasks in the process that calls them."""

from __future__ import annotations

import asyncio
import os
import sys

import aiohttp

from benchmarks.peers.engine import Engine, free_port, until_open

_shared: dict[str, object] = {}


class Prefect(Engine):
    """The server is set before the library is imported: it reads its settings then."""

    async def open(self) -> None:
        port = free_port()
        settings = {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        os.environ.update(settings)
        self.spawn([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)])
        await until_open(port)
        _shared["url"] = self.url
        _shared["session"] = await self.stack.enter_async_context(aiohttp.ClientSession())
        from prefect import flow, task

        @task
        async def plus_one(n: int) -> int:
            return n + 1

        @task
        async def send() -> int:
            async with _shared["session"].post(str(_shared["url"]), json={"step": 1}) as answer:  # type: ignore[attr-defined]
                return int((await answer.json(content_type=None))["ok"])

        @flow
        async def light_run(n: int) -> int:
            return await plus_one(await plus_one(await plus_one(n)))

        @flow
        async def http_run() -> int:
            return await send() + await send() + await send()

        @flow
        async def fan_run(size: int) -> int:
            return len(await asyncio.gather(*(plus_one(n) for n in range(size))))

        self._light, self._http, self._fan = light_run, http_run, fan_run

    async def light(self, n: int) -> int:
        return await self._light(n)

    async def http(self, n: int) -> int:  # noqa: ARG002
        return await self._http()

    async def fan(self, size: int) -> int:
        return await self._fan(size)


ENGINE = Prefect
