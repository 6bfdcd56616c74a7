"""Taskforge, by the same rules as the others: its figures stand beside theirs, of the same minutes."""

from __future__ import annotations

import json
import uuid

import aiohttp
from harness import github_headers
from taskforge.v1 import run_pb2, secret_service_pb2, secret_service_pb2_grpc

from benchmarks.client import serving
from benchmarks.peers.engine import PAYLOAD, Engine

_LIGHT = """
name: light
input: {type: object, properties: {n: {type: integer}}}
steps:
  - {id: one, transform: "${{ input.n + 1 }}"}
  - {id: two, transform: "${{ steps.one.output + 1 }}"}
  - {id: three, transform: "${{ steps.two.output + 1 }}"}
output: ${{ steps.three.output }}
"""
_HTTP = """
name: http
input: {type: object, properties: {url: {type: string}}}
steps:
  - {id: one, http: {method: POST, url: "${{ input.url }}", json: {step: 1}}}
  - {id: two, http: {method: POST, url: "${{ input.url }}", json: {step: 2}}}
  - {id: three, http: {method: POST, url: "${{ input.url }}", json: {step: 3}}}
output: ${{ [steps.one.output, steps.two.output, steps.three.output].filter(s, s.body.ok).size() }}
"""
_FAN = """
name: fan
input: {type: object, properties: {items: {type: array}}}
steps:
  - id: many
    for_each: ${{ input.items }}
    max_parallel: 1000
    transform: ${{ item + 1 }}
output: ${{ size(steps.many.output) }}
"""
_HOOK = """
name: hook
on:
  sent: {webhook: {path: sent, verify: {scheme: github, secret: PEER}}, input: {n: "${{ event.body.n }}"}}
input: {type: object, properties: {n: {type: integer}}}
steps:
  - {id: one, transform: "${{ input.n + 1 }}"}
"""


class Taskforge(Engine):
    """A daemon over gRPC."""

    accepts = "webhook of 8 KB, signature verified, 202 after the commit"

    async def open(self) -> None:
        daemon = serving(_LIGHT, _HTTP, _FAN, _HOOK, home=self.folder / "home")
        self._client = await self.stack.enter_async_context(daemon)
        secrets = self._client.daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
        await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="PEER", value="peer"))
        session = aiohttp.ClientSession(headers=github_headers("peer", PAYLOAD.encode()))
        self._session = await self.stack.enter_async_context(session)

    async def _run(self, workflow: str, payload: object) -> int:
        run = await self._client.start(workflow, json.dumps(payload), wait=True)
        return int(json.loads(run.output_json))

    async def light(self, n: int) -> int:
        return await self._run("light", {"n": n})

    async def http(self, n: int) -> int:  # noqa: ARG002
        return await self._run("http", {"url": self.url})

    async def fan(self, size: int) -> int:
        return await self._run("fan", {"items": list(range(size))})

    async def accept(self, n: int) -> None:  # noqa: ARG002
        address = f"{self._client.daemon.http}/hooks/default/sent"
        async with self._session.post(
            address, data=PAYLOAD.encode(), headers={"X-GitHub-Delivery": str(uuid.uuid4())}
        ) as answer:
            if answer.status != 202:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")

    async def completed(self) -> int:
        if await self._client.open_runs():
            return 0
        found, token = 0, ""
        while True:
            page = await self._client.list_page(token, 1000, states=[run_pb2.Run.STATE_SUCCEEDED])
            found, token = found + len(page.runs), page.next_page_token
            if not token:
                return found


ENGINE = Taskforge
