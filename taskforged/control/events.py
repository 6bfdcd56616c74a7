"""Looking into the inbox."""

from __future__ import annotations

from collections.abc import Sequence

from taskforged.control.access import Principal
from taskforged.errors import NotFoundError
from taskforged.jsonvalue import load_stored
from taskforged.store.events import EventFilter, EventRow, EventStore
from taskforged.store.store import Store

__all__ = ["Events"]


class Events:
    """The events of all namespaces."""

    def __init__(self, store: Store) -> None:
        self._events = EventStore(store)

    async def get(self, principal: Principal, event_id: str) -> tuple[EventRow, Sequence[str]]:
        """Answer an event and the runs that it started.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        row = await self._events.by_id(event_id)
        if row is None or not principal.sees(row.namespace_no):
            raise NotFoundError(f"there is no event {event_id!r}", metadata={"event": event_id})
        return row, _runs(row)

    async def page(self, wanted: EventFilter, limit: int) -> Sequence[tuple[EventRow, Sequence[str]]]:
        """Answer up to `limit` events, newest first, without headers, query and body."""
        return [(row, _runs(row)) for row in await self._events.page(wanted, limit)]


def _runs(row: EventRow) -> list[str]:
    """The runs are named in the verdicts, which were written with them."""
    return [verdict["run_id"] for verdict in load_stored(row.verdicts) if verdict["run_id"]]
