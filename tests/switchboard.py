"""One namespace of a real daemon, and every call that there is: what tests of triggers and events share."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import grpc
import grpc.aio
import pytest
from harness import Daemon
from taskforge.v1 import event_pb2, run_pb2, token_pb2

from taskforgectl.torture.wire import METHODS

T = TypeVar("T")

PENDING = "PENDING"
_COUNTER = itertools.count(1)


class Answer:
    """What a webhook's sender is told."""

    def __init__(self, status: int, headers: Any, raw: bytes) -> None:
        self.status = status
        self.headers = headers
        self.raw = raw

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return json.loads(self.raw)

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return str(self.body["event_id"])


class Board:
    """A namespace of a daemon: `await board("PauseTrigger", workflow=…)` calls that method of whichever service."""

    def __init__(self, daemon: Daemon, namespace: str = "default") -> None:
        self.daemon = daemon
        self.namespace = namespace
        self._channel: grpc.aio.Channel | None = None
        self._http: aiohttp.ClientSession | None = None

    def of(self, namespace: str) -> Board:
        """Another namespace of the same daemon; it shares the connections."""
        other = Board(self.daemon, namespace)
        other._channel, other._http = self.channel, self.http
        return other

    async def fresh(self, **labels: str) -> Board:
        """A namespace that nobody else uses."""
        name = f"n{next(_COUNTER):05}"  # whoever sorts by name gets the order of their making
        await self("SetNamespace", name=name, labels=labels)
        return self.of(name)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The connection to the control plane; it survives restarts."""
        if self._channel is None:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
            self._channel = grpc.aio.insecure_channel(self.daemon.uds, options=options)
        return self._channel

    @property
    def http(self) -> aiohttp.ClientSession:
        """The connections to the door."""
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self._http

    async def close(self) -> None:
        """Close what is open."""
        if self._channel is not None:
            await self._channel.close()
        if self._http is not None:
            await self._http.close()

    async def __call__(self, method: str, /, *, bearer: str = "", within_s: float = 30, **fields: Any) -> Any:
        """Call a method; the namespace is this one unless it is given."""
        stub, message = METHODS[method]
        if "namespace" in message.DESCRIPTOR.fields_by_name and method != "CreateToken":
            fields.setdefault("namespace", self.namespace)
        metadata = (("authorization", f"Bearer {bearer or self.daemon.token}"),)
        call = getattr(stub(self.channel), method)
        return await call(message(**fields), metadata=metadata, timeout=within_s, wait_for_ready=True)

    async def refused(self, code: str, method: str, **fields: Any) -> str:
        """Call a method that must be refused; answers what is said."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self(method, **fields)
        assert caught.value.code().name == code, caught.value.details()
        return str(caught.value.details())

    # -- what there is

    async def apply(self, source: str, **more: Any) -> Any:
        """Apply a definition."""
        return await self("ApplyWorkflow", source=source, **more)

    async def secret(self, name: str, value: str) -> None:
        """Set a secret."""
        await self("SetSecret", name=name, value=value)

    async def token(self, role: str, namespace: str | None = "") -> Any:
        """Make a token; `None` is for all namespaces."""
        value = token_pb2.Token.Role.Value(f"ROLE_{role}")
        name = f"{role.lower()}-{next(_COUNTER)}"
        inside = self.namespace if namespace == "" else namespace
        return await self("CreateToken", name=name, role=value, **({} if inside is None else {"namespace": inside}))

    # -- webhooks

    async def post(
        self, path: str, body: bytes = b"{}", headers: dict[str, str] | None = None, *, namespace: str = ""
    ) -> Answer:
        """Deliver a webhook; `path` may have a query."""
        url = f"{self.daemon.http}/hooks/{namespace or self.namespace}/{path}"
        given = {"Content-Type": "application/json"} if headers is None else headers
        skip = [] if "Content-Type" in given else ["Content-Type"]
        data = io.BytesIO(body) if len(body) > 1 << 20 else body  # aiohttp warns of large bytes
        async with self.http.post(url, data=data, headers=given, skip_auto_headers=skip) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    # -- events

    async def event(self, event_id: str) -> Event:
        """Answer an event."""
        return Event((await self("GetEvent", event_id=event_id)).event)

    async def listed(self, **filters: Any) -> list[Event]:
        """Answer events, the newest first."""
        if "outcomes" in filters:
            filters["outcomes"] = [event_pb2.Event.Outcome.Value(f"OUTCOME_{one}") for one in filters["outcomes"]]
        return [Event(one) for one in (await self("ListEvents", page_size=1000, **filters)).events]

    async def publish(self, kind: str, data: Any = None, **more: Any) -> Event:
        """Publish an event, and wait until its triggers were asked."""
        event = (await self("PublishEvent", type=kind, data_json=json.dumps(data), **more)).event
        return await self.decided(event.id)

    async def decided(self, event_id: str) -> Event:
        """Wait until the triggers of an event were asked."""
        return await eventually(lambda: self.event(event_id), lambda event: event.outcome != PENDING)

    async def fire(self, workflow: str, payload: Any = None, **more: Any) -> Event:
        """Fire a trigger by hand."""
        text = "" if payload is None else json.dumps(payload)
        return Event((await self("FireTrigger", workflow=workflow, payload_json=text, **more)).event)

    async def replay(self, event_id: str, **more: Any) -> Event:
        """Replay an event."""
        return Event((await self("ReplayEvent", event_id=event_id, **more)).event)

    # -- runs

    async def run(self, run_id: str) -> run_pb2.Run:
        """Answer a run."""
        return (await self("GetRun", run_id=run_id)).run

    async def ended(self, run_id: str) -> run_pb2.Run:
        """Wait for the end of a run."""
        return await eventually(lambda: self.run(run_id), lambda run: run.HasField("end_time"))

    async def output(self, run_id: str) -> Any:
        """Wait for the end of a run that succeeds, and answer its output."""
        run = await self.ended(run_id)
        assert state(run) == "SUCCEEDED", run.error
        return json.loads(run.output_json)

    async def runs(self, **filters: Any) -> list[run_pb2.Run]:
        """Answer runs, the newest first."""
        return list((await self("ListRuns", page_size=1000, **filters)).runs)

    async def restart(self) -> None:
        """SIGKILL, and up again."""
        await asyncio.to_thread(self.daemon.restart)


class Event:
    """An event, with names instead of numbers; everything else is the message's."""

    def __init__(self, message: event_pb2.Event) -> None:
        self.message = message
        self.outcome = event_pb2.Event.Outcome.Name(message.outcome).removeprefix("OUTCOME_")
        self.verdict = {f"{one.workflow}/{one.trigger}": one for one in message.verdicts}
        self.runs = list(message.run_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)

    @property
    def reasons(self) -> list[str]:
        """Why the triggers did not match, in order."""
        return [one.reason for one in self.message.verdicts]

    @property
    def data(self) -> Any:
        """The body as JSON."""
        return json.loads(self.message.body)


def state(run: run_pb2.Run) -> str:
    """The name of a run's state."""
    return run_pb2.Run.State.Name(run.state).removeprefix("STATE_")


async def eventually(look: Callable[[], Awaitable[T]], fits: Callable[[T], Any], within_s: float = 30.0) -> T:
    """Look until it fits."""
    deadline = time.monotonic() + within_s
    while True:
        found = await look()
        if fits(found):
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"it has not become so within {within_s:g} s: {found}")
        await asyncio.sleep(0.02)


def hex_mac(secret: str, payload: bytes, algorithm: str = "sha256") -> str:
    """A signature as most senders write it."""
    return hmac.digest(secret.encode(), payload, algorithm).hex()


def basic(user: str, password: str) -> str:
    """The header of a user with a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def digest(raw: bytes) -> str:
    """A short name of bytes."""
    return hashlib.sha256(raw).hexdigest()[:12]
