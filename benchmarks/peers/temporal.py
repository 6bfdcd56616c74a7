"""Temporal's dev server with a database file, and a Python worker in the process of the client."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from datetime import timedelta
from pathlib import Path

import aiohttp
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.peers.engine import PAYLOAD, Engine, free_port, until_open

_QUEUE = "bench"
_LIMIT = timedelta(seconds=60)
_shared: dict[str, object] = {}


@activity.defn
async def plus_one(n: int) -> int:
    return n + 1


@activity.defn
async def send() -> int:
    session: aiohttp.ClientSession = _shared["session"]  # type: ignore[assignment]
    async with session.post(str(_shared["url"]), json={"step": 1}) as answer:
        return int((await answer.json(content_type=None))["ok"])


@workflow.defn(sandboxed=False)
class Light:
    @workflow.run
    async def run(self, n: int, steps: int) -> int:
        for _ in range(steps):
            n = await workflow.execute_activity(plus_one, n, start_to_close_timeout=_LIMIT)
        return n


@workflow.defn(sandboxed=False)
class Http:
    @workflow.run
    async def run(self) -> int:
        return sum([await workflow.execute_activity(send, start_to_close_timeout=_LIMIT) for _ in range(3)])


@workflow.defn(sandboxed=False)
class Fan:
    @workflow.run
    async def run(self, size: int) -> int:
        calls = [workflow.execute_activity(plus_one, n, start_to_close_timeout=_LIMIT) for n in range(size)]
        return len(await asyncio.gather(*calls))


@workflow.defn(sandboxed=False)
class OneStep:
    @workflow.run
    async def run(self, n: int, text: str) -> int:  # noqa: ARG002
        return await workflow.execute_activity(plus_one, n, start_to_close_timeout=_LIMIT)


class Temporal(Engine):
    """A server process; client and worker here."""

    accepts = "StartWorkflowExecution over gRPC"

    async def open(self) -> None:
        port = free_port()
        program = shutil.which("temporal", path=str(Path(sys.executable).parent)) or "temporal"
        address = ["--ip", "127.0.0.1", "--port", str(port), "--headless", "--log-level", "error"]
        self.spawn([program, "server", "start-dev", "--db-filename", str(self.folder / "temporal.db"), *address])
        await until_open(port)
        self._client = await Client.connect(f"127.0.0.1:{port}")
        _shared["url"] = self.url
        _shared["session"] = await self.stack.enter_async_context(aiohttp.ClientSession())
        kinds = [Light, Http, Fan, OneStep]
        worker = Worker(self._client, task_queue=_QUEUE, workflows=kinds, activities=[plus_one, send])
        await self.stack.enter_async_context(worker)

    async def _execute(self, run: object, *args: object) -> int:
        return int(await self._client.execute_workflow(run, args=args, id=str(uuid.uuid4()), task_queue=_QUEUE))

    async def light(self, n: int) -> int:
        return await self._execute(Light.run, n, 3)

    async def http(self, n: int) -> int:  # noqa: ARG002
        return await self._execute(Http.run)

    async def fan(self, size: int) -> int:
        return await self._execute(Fan.run, size)

    async def accept(self, n: int) -> None:
        await self._client.start_workflow(OneStep.run, args=[n, PAYLOAD], id=str(uuid.uuid4()), task_queue=_QUEUE)

    async def completed(self) -> int:
        return (await self._client.count_workflows("ExecutionStatus = 'Completed'")).count


ENGINE = Temporal
