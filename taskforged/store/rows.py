"""Rows that both the writer and the readers know."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EventRow"]


class EventRow(NamedTuple):
    """A row of `events`. `type` and `run_no`, who published it, are those of internal events."""

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
