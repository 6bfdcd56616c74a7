"""What ties together the requests, events and runs that one cause led to: a correlation id, and W3C Trace Context.

Both come in with requests and go out with steps; what comes in is checked first, and left out when it is malformed,
as the recommendation wants (https://www.w3.org/TR/trace-context/). Ids of traces and spans are hashes of ids that the
history has. So they are the same after a crash and on a replay, and nothing has to be stored for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "CORRELATION_ID_MAX",
    "NO_TRACE",
    "Trace",
    "attempt_span",
    "headers_of",
    "parent_of",
    "run_span",
    "step_span",
    "trace_from",
    "trace_id_of",
]

CORRELATION_ID_MAX = 128

_CORRELATION_ID = re.compile(rf"[A-Za-z0-9._:/@+=~-]{{1,{CORRELATION_ID_MAX}}}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_TRACESTATE_MAX = 512
_MEMBERS_MAX = 32
_SAMPLED = "01"


class Trace(NamedTuple):
    """What came in with a request, checked; empty where nothing did."""

    correlation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


NO_TRACE = Trace()


def trace_from(headers: Mapping[str, str]) -> Trace:
    """Read headers or metadata with lower-case names."""
    if not ("x-correlation-id" in headers or "traceparent" in headers):
        return NO_TRACE
    correlation_id = headers.get("x-correlation-id", "")
    traceparent = _traceparent(headers.get("traceparent", ""))
    return Trace(
        correlation_id if _CORRELATION_ID.fullmatch(correlation_id) else "",
        traceparent,
        _tracestate(headers.get("tracestate", "")) if traceparent else "",
    )


def headers_of(trace: Trace) -> dict[str, str]:
    """Answer the headers that say the same."""
    names = zip(("x-correlation-id", "traceparent", "tracestate"), trace, strict=True)
    return {name: value for name, value in names if value}


def _traceparent(text: str) -> str:
    """Answer a valid traceparent in the form of version 00, else nothing."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return ""
    if not int(match[2], 16) or not int(match[3], 16):
        return ""
    return f"00-{match[2]}-{match[3]}-{match[4]}"


def _tracestate(text: str) -> str:
    members = [one.strip(" \t") for one in text.split(",")]
    kept = [one for one in members if one]
    if len(text) > _TRACESTATE_MAX or len(kept) > _MEMBERS_MAX or not all(map(_MEMBER.fullmatch, kept)):
        return ""
    return ",".join(kept)


# --- ids -------------------------------------------------------------------------------------------------------------


def trace_id_of(run_id: str, traceparent: str) -> str:
    """Answer the trace of a run: the one that came in, else one of its own."""
    return traceparent[3:35] if traceparent else hashlib.sha256(f"trace|{run_id}".encode()).hexdigest()[:32]


def run_span(run_id: str) -> str:
    """Answer the id of a run's span."""
    return _span(f"run|{run_id}")


def step_span(run_id: str, key: str) -> str:
    """Answer the id of a step's span."""
    return _span(f"step|{run_id}|{key}")


def attempt_span(run_id: str, key: str, attempt: int) -> str:
    """Answer the id of an attempt's span: what an executor's requests have as their parent."""
    return _span(f"attempt|{run_id}|{key}|{attempt}")


def _span(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parent_of(run_id: str, traceparent: str, span: str) -> str:
    """Answer the traceparent for what happens within a span of a run."""
    return f"00-{trace_id_of(run_id, traceparent)}-{span}-{traceparent[53:55] or _SAMPLED}"
