"""What the audit records of a call, told from its method and its request."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from google.protobuf.message import Message

from taskforged.control.access import Principal
from taskforged.control.audit import Audit
from taskforged.store.audit import Entry

__all__ = ["begin", "peer"]

_IDS = {"run_id": "run", "event_id": "event", "token_id": "token"}


def begin(audit: Audit, method: str, principal: Principal, request: Message, remote: str) -> Entry:
    """Begin the record of a call."""
    shape = _SHAPES.get(method) or _shape(method, request.DESCRIPTOR)
    given: Any = request
    entry = audit.begin(principal, remote, shape.short, given.request_id if shape.has_request_id else "")
    if shape.field:
        noun, resource = shape.noun, getattr(given, shape.field)
        if shape.has_trigger and given.trigger:
            noun, resource = "trigger", f"{resource}/{given.trigger}"
        audit.about(entry, noun, resource)
    return entry


class _Shape(NamedTuple):
    """What a method's request tells: the field that names what the call is about, and what that is."""

    short: str
    field: str
    noun: str
    has_trigger: bool
    has_request_id: bool


_SHAPES: dict[str, _Shape] = {}


def _shape(method: str, request: Any) -> _Shape:
    short = method.removeprefix("/taskforge.v1.")
    fields = request.fields_by_name
    nouns = {**_IDS, "workflow": "workflow", "name": short.partition("Service/")[0].lower()}
    field = next((one for one in nouns if one in fields), "")
    shape = _Shape(short, field, nouns.get(field, ""), "trigger" in fields, "request_id" in fields)
    return _SHAPES.setdefault(method, shape)


def peer(context: Any) -> str:
    """Answer the caller's address without its port, or `unix`."""
    kind, _, address = str(context.peer()).partition(":")
    return unquote(address.rpartition(":")[0]).strip("[]") if kind in {"ipv4", "ipv6"} else kind
