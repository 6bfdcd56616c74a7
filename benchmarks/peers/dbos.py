"""DBOS over SQLite: workflows and steps are functions of the process that calls them."""

from __future__ import annotations

import asyncio
import sqlite3

import aiohttp
from dbos import DBOS

from benchmarks.peers.engine import PAYLOAD, Engine

_shared: dict[str, object] = {}


@DBOS.step()
async def plus_one(n: int) -> int:
    return n + 1


@DBOS.step()
async def send() -> int:
    session: aiohttp.ClientSession = _shared["session"]  # type: ignore[assignment]
    async with session.post(str(_shared["url"]), json={"step": 1}) as answer:
        return int((await answer.json(content_type=None))["ok"])


@DBOS.workflow()
async def light_run(n: int) -> int:
    return await plus_one(await plus_one(await plus_one(n)))


@DBOS.workflow()
async def http_run() -> int:
    return await send() + await send() + await send()


@DBOS.workflow()
async def fan_run(size: int) -> int:
    return len(await asyncio.gather(*(plus_one(n) for n in range(size))))


@DBOS.workflow()
async def one_step(n: int, text: str) -> int:  # noqa: ARG001
    return await plus_one(n)


class Dbos(Engine):
    """In this process."""

    accepts = "start_workflow_async in the process, returns after the row is stored"

    async def open(self) -> None:
        _shared["url"] = self.url
        _shared["session"] = await self.stack.enter_async_context(aiohttp.ClientSession())
        self._file = self.folder / "dbos.sqlite"
        DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{self._file}", "log_level": "ERROR"})
        self.stack.callback(DBOS.destroy)
        DBOS.launch()

    async def light(self, n: int) -> int:
        return await light_run(n)

    async def http(self, n: int) -> int:  # noqa: ARG002
        return await http_run()

    async def fan(self, size: int) -> int:
        return await fan_run(size)

    async def accept(self, n: int) -> None:
        await DBOS.start_workflow_async(one_step, n, PAYLOAD)

    async def completed(self) -> int:
        with sqlite3.connect(self._file) as connection:
            (count,) = connection.execute("SELECT count(*) FROM workflow_status WHERE status = 'SUCCESS'").fetchone()
        return int(count)


ENGINE = Dbos
