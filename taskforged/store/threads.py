"""One sqlite3 connection and the aiosqlite thread that owns it: whole functions go in, results come out.

aiosqlite offers one await per statement. That is two thread switches for each, and a task cancelled between two of
them leaves its transaction open for whoever comes next. So a whole transaction is one function here, executed in one
visit to the thread. `_execute` is what aiosqlite's own methods are made of; a test watches that it stays so.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TypeVar

import aiosqlite

__all__ = ["ConnectionThread"]

T = TypeVar("T")

_END_S = 5.0
"""How long a thread may take to end; it has nothing left to do."""


class ConnectionThread:
    """Runs functions of a connection, one after the other, in the connection's own thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._proxy = aiosqlite.Connection(connect, iter_chunk_size=64)
        self._open = False

    async def start(self) -> None:
        """Open the connection. What `connect` raises is raised here, and the thread has ended."""
        try:
            await self._proxy
        except BaseException:
            # aiosqlite tells the thread to end and does not wait; it would report to a loop that is closed by then.
            await asyncio.to_thread(self._proxy._thread.join, _END_S)  # noqa: SLF001
            raise
        self._open = True

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Execute `function(connection)`. When the caller is cancelled it is executed all the same, as a whole."""
        raw = self._proxy._conn  # noqa: SLF001  see the module's docstring
        result: T = await self._proxy._execute(function, raw)  # type: ignore[no-untyped-call]  # noqa: SLF001
        return result

    async def stop(self) -> None:
        """Close the connection and end the thread, after what was handed in before. Idempotent."""
        if self._open:
            self._open = False
            await self._proxy.close()
