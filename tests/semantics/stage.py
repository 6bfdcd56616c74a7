"""A world whose workflows start by themselves: a service that remembers headers, and a client for triggers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web
from harness import Call, _State
from semantics.support import Service, World, example
from taskforge.v1 import (
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

PLACE = "http://127.0.0.1:7499"
"""Where the examples expect their services."""


class Recorder(Service):
    """A service that remembers headers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.asked: list[str] = []
        """`METHOD /path?query` as it came."""

    async def _answer(self, request: web.Request, call: Call, state: _State) -> web.Response:
        self.seen.append((request.path, dict(request.headers), call.body))
        self.asked.append(f"{request.method} {request.raw_path}")
        return await super()._answer(request, call, state)

    def clear(self) -> None:
        super().clear()
        self.seen.clear()
        self.asked.clear()

    def texts(self, path: str) -> list[str]:
        """The bodies that were sent to a path as they came, in order."""
        return [body.decode() for called, _, body in self.seen if called == path]

    def headers(self, path: str) -> list[dict[str, str]]:
        """What was sent to a path besides bodies, in order."""
        return [headers for called, headers, _ in self.seen if called == path]


class Stage(World):
    """A world whose workflows start by themselves."""

    service: Recorder

    async def put(self, name: str, *changes: tuple[str, str], namespace: str = "") -> None:
        """Apply an example that finds its services here; each change replaces a text that must be there."""
        source = example(name).read_text()
        for old, new in (*changes, (PLACE, self.service.url)):
            assert old in source or old == PLACE, f"{name} has no {old!r}"
            source = source.replace(old, new)
        stub = self.daemon.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
        await stub.ApplyWorkflow(
            workflow_service_pb2.ApplyWorkflowRequest(namespace=namespace, source=source), timeout=20
        )

    async def remove(self, *names: str) -> None:
        """Take workflows away, so that they do not hear what other tests do."""
        stub = self.daemon.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
        for name in names:
            await stub.DeleteWorkflow(workflow_service_pb2.DeleteWorkflowRequest(name=name), timeout=20)

    async def secret(self, name: str, value: str, namespace: str = "", **more: Any) -> None:
        """Set a secret."""
        stub = self.daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
        await stub.SetSecret(secret_service_pb2.SetSecretRequest(namespace=namespace, name=name, value=value, **more))

    @property
    def triggers(self) -> Any:
        """TriggerService."""
        return self.daemon.stub(trigger_service_pb2_grpc.TriggerServiceStub)

    @property
    def events(self) -> Any:
        """EventService."""
        return self.daemon.stub(event_service_pb2_grpc.EventServiceStub)

    async def fire(self, workflow: str, payload: Any = None, **more: Any) -> event_pb2.Event:
        """Fire the only trigger of a workflow."""
        text = "" if payload is None else json.dumps(payload)
        request = trigger_service_pb2.FireTriggerRequest(workflow=workflow, payload_json=text, **more)
        return (await self.triggers.FireTrigger(request, timeout=20)).event

    async def publish(self, kind: str, data: Any) -> event_pb2.Event:
        """Publish an event, and answer it when its triggers were asked."""
        request = event_service_pb2.PublishEventRequest(type=kind, data_json=json.dumps(data))
        event = (await self.events.PublishEvent(request, timeout=20)).event
        return await self.decided(event.id)

    async def event(self, event_id: str) -> event_pb2.Event:
        """Answer an event."""
        return (await self.events.GetEvent(event_service_pb2.GetEventRequest(event_id=event_id), timeout=20)).event

    async def decided(self, event_id: str) -> event_pb2.Event:
        """Wait until the triggers of an event were asked."""
        return await eventually(
            lambda: self.event(event_id), lambda event: event.outcome != event_pb2.Event.OUTCOME_PENDING
        )

    async def listed(self, kind: str, count: int = 1) -> list[event_pb2.Event]:
        """Wait until there are so many decided events of a type; answers all of them whole, the oldest first."""

        async def look() -> list[event_pb2.Event]:
            request = event_service_pb2.ListEventsRequest(type=kind, page_size=1000)
            found = (await self.events.ListEvents(request, timeout=20)).events
            return [await self.event(one.id) for one in reversed(found)]

        return await eventually(
            look,
            lambda found: len(found) >= count and all(one.outcome != event_pb2.Event.OUTCOME_PENDING for one in found),
        )

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        """Deliver a webhook."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.daemon.http}/hooks/default/{path}", data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()


async def eventually(look: Callable[[], Any], is_enough: Callable[[Any], bool], within_s: float = 30.0) -> Any:
    """Look again until it is enough."""
    deadline = time.monotonic() + within_s
    while True:
        found = await look()
        if is_enough(found):
            return found
        assert time.monotonic() < deadline, f"this is all there is after {within_s:g} s: {found}"
        await asyncio.sleep(0.02)
