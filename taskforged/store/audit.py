"""The audit's rows on their way to disk: with the change that they tell of, in one transaction.

A call that changes something carries an `Entry` in a context variable. The first write that is made for it takes the
row along; a write that fails gives it back. What is still open when the call ends is written by itself. When the caller
goes away, a write that is on its way keeps the row: it is done all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["CURRENT", "AuditRow", "Entry", "about", "taken"]


class AuditRow(NamedTuple):
    """One row of `audit`, without its number."""

    at: int
    token_id: str
    token_name: str
    role: str
    remote: str
    method: str
    namespace_no: int | None
    resource_type: str
    resource: str
    outcome: str
    message: str
    request_id: str
    times: int = 1


class Entry:
    """What is known of one call. `is_open`: no row of it is on disk or on its way there."""

    __slots__ = ("_now", "facts", "is_closed", "is_open", "namespace_no", "on_return", "resource", "resource_type")

    def __init__(
        self, now: Callable[[], int], facts: tuple[str, str, str, str, str, str], namespace_no: int | None
    ) -> None:
        """Create an entry; `facts` are token id, token name, role, remote, method and request id."""
        self._now = now
        self.facts = facts
        self.namespace_no = namespace_no
        self.resource_type = self.resource = ""
        self.is_open = True
        self.is_closed = False
        self.on_return: Callable[[Entry], None] | None = None

    def row(self, outcome: str = "OK", message: str = "") -> AuditRow:
        """Answer the row as it stands."""
        token_id, token_name, role, remote, method, request_id = self.facts
        return AuditRow(
            *(self._now(), token_id, token_name, role, remote, method, self.namespace_no),
            *(self.resource_type, self.resource, outcome, message, request_id),
        )

    def take(self) -> AuditRow:
        """Answer the row of a call that succeeds, for the write that makes it so."""
        self.is_open = False
        return self.row()

    def give_back(self) -> None:
        """The write that took the row has not been done."""
        self.is_open = not self.is_closed
        if self.is_open and self.on_return is not None:  # nobody else is there to write it
            self.on_return(self)

    def settle(self, written: asyncio.Future[Any]) -> None:
        """Give the row back when the write that took it has failed."""
        if written.cancelled() or written.exception() is not None:
            self.give_back()

    def close(self) -> None:
        """Take part in no later write."""
        self.is_open, self.is_closed = False, True


CURRENT: ContextVar[Entry | None] = ContextVar("audit", default=None)
"""The entry of the present call; None outside of calls that change something."""


def taken() -> Entry | None:
    """Answer the entry of the present call, when its row is still to be written."""
    entry = CURRENT.get()
    return entry if entry is not None and entry.is_open else None


def about(resource_type: str = "", resource: str = "", *, namespace_no: int | None = None) -> None:
    """Tell what the present call is about, as soon as it is known."""
    entry = CURRENT.get()
    if entry is None:
        return
    if resource:
        entry.resource_type, entry.resource = resource_type, resource
    if namespace_no is not None:
        entry.namespace_no = namespace_no
