"""Counts calls by method and code, and measures the unary ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from taskforged.meters import DoorMeters

__all__ = ["metered_stream", "metered_unary"]


def metered_unary(
    method: str, call: Callable[..., Awaitable[Message]], meters: DoorMeters
) -> Callable[..., Awaitable[Message]]:
    """Answer the handler of a unary method that is counted and measured."""
    name = _name(method)
    done = (name, "OK")

    async def measured(request: Message, context: Any) -> Message:
        began = time.monotonic()
        try:
            response = await call(request, context)
        except BaseException as error:
            meters.grpc.add((name, _code(error, context)))
            raise
        meters.grpc.add(done)
        meters.grpc_durations.observe((name,), time.monotonic() - began)
        return response

    return measured


def metered_stream(
    method: str, call: Callable[..., Awaitable[None]], meters: DoorMeters
) -> Callable[..., Awaitable[None]]:
    """Answer the handler of a streaming method that is counted when the stream ends."""
    name = _name(method)

    async def counted(request: Any, context: Any) -> None:
        code = "OK"
        try:
            await call(request, context)
        except BaseException as error:
            code = _code(error, context)
            raise
        finally:
            meters.grpc.add((name, code))

    return counted


def _name(method: str) -> str:
    """Answer `RunService/StartRun` for ours, else the whole."""
    return method.removeprefix("/taskforge.v1.").removeprefix("/")


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _code(error: BaseException, context: Any) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    code = context.code()  # set by `abort`; a number or a StatusCode, as the version of grpcio has it
    return _CODES.get(getattr(code, "value", (code,))[0], "UNKNOWN")
