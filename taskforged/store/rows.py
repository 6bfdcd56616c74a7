"""Rows that both the writer and the readers know."""

from __future__ import annotations

from typing import NamedTuple

from taskforged.engine.model import Json
from taskforged.jsonvalue import canonical

__all__ = ["EventRow", "internal_event"]


class EventRow(NamedTuple):
    """A row of `events`. `run_no` is the run that published it; `depth` counts the runs in the chain of its causes."""

    no: int
    id: str
    namespace_no: int
    source: str
    path: str
    outcome: str
    reason: str
    verification: str
    delivery_id: str
    duplicate_of: str
    headers: str
    query: str
    body: bytes
    body_size: int
    content_type: str
    remote: str
    verdicts: str
    created_at: int
    type: str = ""
    run_no: int | None = None
    depth: int = 0
    replay_of: str = ""
    addressee: str = ""
    created_by: str = ""
    origin: str = ""
    subject: str = ""


def internal_event(
    no: int,
    event_id: str,
    namespace_no: int,
    name: str,
    data: Json,
    at: int,
    *,
    source: str,
    outcome: str,
    run_no: int | None = None,
    depth: int = 0,
    created_by: str = "",
    subject: str = "",
    headers: str = "{}",
) -> EventRow:
    """Answer the row of an event that did not come over HTTP; its body is `data` as JSON."""
    body = canonical(data)
    return EventRow(
        no=no,
        id=event_id,
        namespace_no=namespace_no,
        source=source,
        path="",
        outcome=outcome,
        reason="",
        verification="",
        delivery_id="",
        duplicate_of="",
        headers=headers,
        query="{}",
        body=body,
        body_size=len(body),
        content_type="application/json",
        remote="",
        verdicts="[]",
        created_at=at,
        type=name,
        run_no=run_no,
        depth=depth,
        created_by=created_by,
        subject=subject,
    )
