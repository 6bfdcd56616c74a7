"""What the audit records of a call, told from its method and its request."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from taskforged.control.access import Principal
from taskforged.control.audit import Audit
from taskforged.store.audit import Entry

__all__ = ["begin", "peer"]

_IDS = {"run_id": "run", "event_id": "event", "token_id": "token"}


def begin(audit: Audit, method: str, principal: Principal, request: Message, remote: str) -> Entry:
    """Begin the record of a call."""
    short, kind, fields = _shape(method, request.DESCRIPTOR)
    given: Any = request
    entry = audit.begin(principal, remote, short, given.request_id if "request_id" in fields else "")
    for name, noun in _IDS.items():
        if name in fields:
            audit.about(entry, noun, getattr(given, name))
            return entry
    if "workflow" in fields:
        trigger = getattr(given, "trigger", "")
        resource = f"{given.workflow}/{trigger}" if trigger else given.workflow
        audit.about(entry, "trigger" if trigger else "workflow", resource)
    elif "name" in fields:
        audit.about(entry, kind, given.name)
    return entry


@lru_cache(maxsize=1000)
def _shape(method: str, request: Descriptor) -> tuple[str, str, frozenset[str]]:
    """Answer a method's short name, what its service is about, and the fields of its request."""
    short = method.removeprefix("/taskforge.v1.")
    kind = short.partition("Service/")[0].lower()
    return short, kind, frozenset(request.fields_by_name)


def peer(context: Any) -> str:
    """Answer the caller's address without its port, or `unix`."""
    kind, _, address = str(context.peer()).partition(":")
    return unquote(address.rpartition(":")[0]).strip("[]") if kind in {"ipv4", "ipv6"} else kind
