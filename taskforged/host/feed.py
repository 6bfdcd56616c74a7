"""Tells watchers that a run has moved on. Only the news travels through memory; the events are read from the store.

So a slow watcher costs one flag, not a queue: however far behind it is, it reads on from its last sequence number.
"""

from __future__ import annotations

import asyncio
from typing import Self

__all__ = ["EVENTS", "Feed", "Watch"]

EVENTS = 0
"""What those watch who watch events; numbers of runs begin at 1."""


class Watch:
    """One watcher's flag. Use as a context manager."""

    __slots__ = ("_feed", "_no", "news")

    def __init__(self, feed: Feed, no: int) -> None:
        self._feed = feed
        self._no = no
        self.news = asyncio.Event()

    def __enter__(self) -> Self:
        self._feed.add(self._no, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.remove(self._no, self)

    async def wait_news(self, timeout_s: float) -> bool:
        """Wait until the run has moved or the feed is closed; False when `timeout_s` has passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.news.wait()
        except TimeoutError:
            return False
        self.news.clear()
        return True


class Feed:
    """All watchers of all runs."""

    def __init__(self) -> None:
        self._watches: dict[int, set[Watch]] = {}
        self.closed = False

    def watch(self, no: int) -> Watch:
        """Answer a watch on run number `no`; enter it before reading the present state, so that nothing is missed."""
        return Watch(self, no)

    def publish(self, no: int) -> None:
        """Run number `no` has moved, and that is on disk."""
        for watch in self._watches.get(no, ()):
            watch.news.set()

    def close(self) -> None:
        """Wake everybody: the daemon is stopping."""
        self.closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.news.set()

    def count(self) -> int:
        """Answer how many watches there are."""
        return sum(len(watches) for watches in self._watches.values())

    def is_watched(self, no: int) -> bool:
        """Answer whether somebody watches run number `no`."""
        return no in self._watches

    def add(self, no: int, watch: Watch) -> None:
        """Enter a watch."""
        self._watches.setdefault(no, set()).add(watch)
        if self.closed:
            watch.news.set()

    def remove(self, no: int, watch: Watch) -> None:
        """Leave a watch."""
        watches = self._watches.get(no)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._watches[no]
