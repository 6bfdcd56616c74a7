"""Messages to plain values, as JSON output shows them.

Keys are the field names of the protos, and every field is there: what is unset or empty JSON text is null. `x_json`
appears unfolded as `x`, an enum value without its prefix, a time in RFC 3339, a span in seconds like `1.5s`, a 64-bit
integer as a number.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["plain"]

_JSON = "_json"
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


# Descriptors are `Any` below: protobuf has three implementations of them, and the stubs know one and a half.


def plain(message: Message) -> dict[str, Any]:
    """Answer a message as a dictionary."""
    found = {}
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if name.endswith(_JSON):
            found[name.removesuffix(_JSON)] = _unfold(getattr(message, name))
        else:
            found[name] = _field(message, field)
    return found


def _unfold(text: str) -> Any:
    return json.loads(text) if text else None


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_value(field, one) for one in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp | Duration):
        return value.ToJsonString()
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return _bytes(value)
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    return value


def _bytes(value: bytes) -> Any:
    """Answer text as text; anything else as base64 under a key that says so."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _enum(kind: Any, number: int) -> Any:
    """Answer the name without its prefix, null for unspecified, the number for one that a newer daemon has."""
    known = kind.values_by_number.get(number)
    if known is None:
        return number
    if number == 0:
        return None
    return known.name.removeprefix(_WORDS.sub("_", kind.name).upper() + "_")
