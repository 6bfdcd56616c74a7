"""Calls of the control plane by a careful client: the same request again until there is an answer."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from taskforge.v1 import run_pb2

from taskforgectl.errors import BROKEN

__all__ = ["METHODS", "TERMINAL", "RefusedError", "Wire", "message", "state_name"]

_SERVICES = (
    "audit",
    "dead_letter",
    "event",
    "namespace",
    "queue",
    "run",
    "secret",
    "storage",
    "system",
    "token",
    "trigger",
    "workflow",
)
_CALL_S = 15.0
"""Longer than the daemon is ever held still."""

_FULL_S = 60.0
"""After so long a limit that is reached, or a full disk, is a refusal for good."""

_PAUSE_S = 0.05
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)

TERMINAL = frozenset({"SUCCEEDED", "FAILED", "DEAD", "CANCELLED"})


def state_name(run: run_pb2.Run) -> str:
    """Answer the state of a run, for example `RUNNING`."""
    return run_pb2.Run.State.Name(run.state).removeprefix("STATE_")


def _methods() -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in _SERVICES:
        messages = importlib.import_module(f"taskforge.v1.{name}_service_pb2")
        stubs = importlib.import_module(f"taskforge.v1.{name}_service_pb2_grpc")
        (service,) = messages.DESCRIPTOR.services_by_name.values()
        for method in service.methods:
            found[method.name] = (getattr(stubs, f"{service.name}Stub"), getattr(messages, method.input_type.name))
    return found


METHODS = _methods()
"""Stub and request of each method by name, of whichever service."""


def message(method: str, **fields: Any) -> Any:
    """Answer the request of a method."""
    return METHODS[method][1](**fields)


class RefusedError(Exception):
    """The daemon has answered, and does not want to.

    Attributes:
        status: name of the gRPC status.
    """

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Wire:
    """A client over all lives of the daemon; `is_over` ends the patience of those that repeat."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._up = asyncio.Event()
        self.repeats = 0

    async def connect(self, target: str, token: str) -> None:
        """Talk to a daemon that has just become ready."""
        await self.disconnect()
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._up.set()

    async def disconnect(self) -> None:
        """Talk to nobody until `connect`. Idempotent."""
        self._up.clear()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def once(self, method: str, /, *, timeout_s: float = _CALL_S, **fields: Any) -> Any:
        """Call once.

        Raises:
            RefusedError: whatever went wrong, also that nobody was there.
        """
        return await self._send(method, message(method, **fields), timeout_s)

    async def insist(self, method: str, /, **fields: Any) -> Any:
        """Call until there is an answer.

        Raises:
            RefusedError: the daemon has refused for good or for long, or it is over.
        """
        request = message(method, **fields)
        full_until = 0.0
        while True:
            try:
                await asyncio.wait_for(self._up.wait(), 1.0)
                return await self._send(method, request, _CALL_S)
            except TimeoutError:
                if self._is_over():
                    raise RefusedError("UNAVAILABLE", "it is over") from None
            except RefusedError as refusal:
                if refusal.status not in {*BROKEN, "RESOURCE_EXHAUSTED"} or self._is_over():
                    raise
                full_until = full_until or time.monotonic() + _FULL_S
                if refusal.status == "RESOURCE_EXHAUSTED" and time.monotonic() > full_until:
                    raise
                self.repeats += 1
                await asyncio.sleep(_PAUSE_S if refusal.status in BROKEN else 10 * _PAUSE_S)

    async def stream(self, method: str, /, **fields: Any) -> AsyncIterator[Any]:
        """Yield what the daemon sends.

        Raises:
            RefusedError: the stream broke.
        """
        await self._up.wait()
        call = self._stub(method)(message(method, **fields), timeout=300, metadata=self._metadata)
        try:
            async for portion in call:
                yield portion
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise _meant(error) from error
        finally:
            call.cancel()

    async def pages(self, method: str, field: str, /, **fields: Any) -> AsyncIterator[Any]:
        """Yield the items of all pages."""
        token = ""
        while True:
            page = await self.insist(method, page_size=1000, page_token=token, **fields)
            for item in getattr(page, field):
                yield item
            token = page.next_page_token
            if not token:
                return

    def _stub(self, method: str) -> Any:
        if self._channel is None:
            raise RefusedError("UNAVAILABLE", "the daemon is down")
        return getattr(METHODS[method][0](self._channel), method)

    async def _send(self, method: str, request: Any, timeout_s: float) -> Any:
        stub = self._stub(method)
        try:
            return await stub(request, timeout=timeout_s, metadata=self._metadata)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            raise _meant(error) from error


def _meant(error: BaseException) -> BaseException:
    """Answer what an error means. A channel that is closed cancels its calls; so does whoever cancels the task."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError):
        return (
            error if task is not None and task.cancelling() else RefusedError("CANCELLED", "the connection was closed")
        )
    if isinstance(error, grpc.aio.AioRpcError):
        return RefusedError(error.code().name, error.details() or "")
    return RefusedError("UNAVAILABLE", str(error))
