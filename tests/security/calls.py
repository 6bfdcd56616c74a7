"""Every call of the API by its descriptor, with one text in one of its fields: what tests of hostile callers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from switchboard import METHODS, Board

Path = tuple[str, ...]

BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def texts_of(message: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Answer the way to each text of a request, also inside its filters and lists; keys and values of maps excepted."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (field.name,)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = field.message_type
            if inner.full_name not in seen and not inner.full_name.startswith("google.protobuf."):
                for path in texts_of(inner, seen | {inner.full_name}):
                    yield (field.name, *path)


def request_with(method: str, path: Path, text: str, **base: Any) -> Message:
    """Answer a request of a method whose field at `path` is `text`."""
    message = METHODS[method][1](**base)
    at = message
    for name in path[:-1]:
        child = getattr(at, name)
        at = child.add() if hasattr(child, "add") else child
        at.SetInParent()
    if hasattr(getattr(at, path[-1]), "append"):
        getattr(at, path[-1]).append(text)
    else:
        setattr(at, path[-1], text)
    return message


async def ask(board: Board, method: str, request: Message, *, bearer: str = "") -> tuple[grpc.StatusCode, bytes, str]:
    """Call a method; answers the code, what came back as bytes (of a stream the first message) and what was said."""
    stub, _ = METHODS[method]
    metadata = (("authorization", f"Bearer {bearer or board.daemon.token}"),)
    call = getattr(stub(board.channel), method)(request, metadata=metadata, timeout=20, wait_for_ready=True)
    try:
        if hasattr(call, "__aiter__"):
            async for message in call:
                call.cancel()
                return grpc.StatusCode.OK, message.SerializeToString(), ""
            return grpc.StatusCode.OK, b"", ""
        return grpc.StatusCode.OK, (await call).SerializeToString(), ""
    except grpc.aio.AioRpcError as error:
        return error.code(), b"", str(error.details())
