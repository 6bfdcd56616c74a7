"""Events as they are decided. Watchers are served from the table by position: a slow one costs a flag, not a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from taskforged.control.events import Events, EventView
from taskforged.control.views import WATCHES_MAX
from taskforged.errors import (
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
    Violation,
)
from taskforged.host.feed import EVENTS, Feed
from taskforged.store.events import EventFilter, EventStore
from taskforged.store.store import Store

__all__ = ["EventPortion", "EventWatches"]

_PORTION = 100
"""Events in one message."""

_SPAN = 2_000
"""Positions that one query looks at, however few of them fit."""

_LOOK_S = 0.05
_BOOKMARK_S = 15.0
"""An idle watch says that it is alive this often; a quarter of common proxies' idle limit."""


class EventPortion(NamedTuple):
    """Events with the cursor behind each, the cursor behind all that was looked at, and how many were removed there."""

    entries: Sequence[tuple[str, EventView]]
    cursor: str
    removed: int = 0


class EventWatches:
    """All who watch events."""

    def __init__(self, store: Store, feed: Feed, events: Events) -> None:
        self._store = store
        self._rows = EventStore(store)
        self._feed = feed
        self._events = events
        self._looker: asyncio.Task[None] | None = None
        self._watchers = 0

    async def watch(self, wanted: EventFilter, cursor: str) -> AsyncIterator[EventPortion]:
        """Yield events that fit from behind a cursor on, for ever; empty portions tell the cursor and that it lives.

        Raises:
            InvalidArgumentError: the cursor is none, or lies in the future.
            OutOfRangeError: what follows the cursor is not kept any more.
            UnavailableError: the daemon is stopping; ask again with the last cursor.
        """
        if self._feed.count() >= WATCHES_MAX:
            raise ResourceExhaustedError(f"{WATCHES_MAX:,} watches are open already", retry_after_s=5.0)
        with self._feed.watch(EVENTS) as watch:
            self._look()
            self._watchers += 1
            try:
                position = await self._begin(cursor)
                yield EventPortion((), str(position))
                told, has_caught_up = position, False
                while True:
                    portion, position, is_behind = await self._read(wanted, position)
                    if portion.entries or portion.removed:
                        yield portion
                        told = position
                    elif not is_behind:
                        is_news = position != told and not has_caught_up  # who leaves before a bookmark is told as well
                        has_caught_up = True
                        if is_news or not await watch.wait_news(_BOOKMARK_S):
                            yield EventPortion((), str(position))
                    if self._feed.closed:
                        raise UnavailableError("the daemon is stopping; watch again from the last cursor")
            finally:
                self._watchers -= 1

    async def _begin(self, cursor: str) -> int:
        """Answer the position that a cursor names; the newest for none."""
        oldest, newest = await self._bounds()
        if not cursor:
            return newest
        position = int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) < 19 else -1
        if not 0 <= position <= newest:
            message = "is not a cursor of this daemon's events"
            raise InvalidArgumentError(f"after_cursor {message}", violations=[Violation("after_cursor", message)])
        self._check_kept(position, oldest, newest)
        return position

    async def _read(self, wanted: EventFilter, position: int) -> tuple[EventPortion, int, bool]:
        """Answer events behind a position, how far was looked, and whether there is more to look at."""
        _, newest = await self._bounds()
        until = min(newest, position + _SPAN)
        if until == position:
            return EventPortion((), str(position)), position, False
        found = await self._rows.feed(wanted, position, until, _PORTION)
        self._check_kept(position, *await self._bounds())  # after the rows: none of them was missing already
        entries = [(str(at), await self._events.summary(row)) for at, row in found.rows]
        return EventPortion(entries, str(found.end), found.removed), found.end, found.end < newest

    @staticmethod
    def _check_kept(position: int, oldest: int, newest: int) -> None:
        if position < newest and (not oldest or position < oldest - 1):
            floor = str(oldest - 1 if oldest else newest)
            raise OutOfRangeError(
                f"events behind this cursor were removed; the oldest that are kept follow cursor {floor}",
                metadata={"oldest_cursor": floor},
            )

    async def _bounds(self) -> tuple[int, int]:
        found = await self._store.row("feed_bounds")
        assert found is not None
        return found[0], found[1]

    # --- news --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See to it that somebody looks for news while there are watchers."""
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_for_news(), name="event-watch")

    async def _look_for_news(self) -> None:
        """Wake the watchers when a commit has brought an event. Looks at a counter, and only then into the table."""
        commits, newest = -1, -1
        while not self._feed.closed:
            if commits != self._store.journal.stats.commits:
                commits = self._store.journal.stats.commits
                _, found = await self._bounds()
                if found != newest:
                    newest = found
                    self._feed.publish(EVENTS)
            await asyncio.sleep(_LOOK_S)
            if not self._watchers:
                return
