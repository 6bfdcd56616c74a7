"""One sqlite3 connection and the aiosqlite thread that owns it: whole functions go in, results come out.

aiosqlite offers one await per statement. That is two thread switches for each, and a task cancelled between two of
them leaves its transaction open for whoever comes next. So a whole transaction is one function here, executed in one
visit to the thread. `_execute` is what aiosqlite's own methods are made of; a test watches that it stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiosqlite

__all__ = ["ConnectionThread", "Guests"]

T = TypeVar("T")

_END_S = 5.0
"""How long a thread may take to end; it has nothing left to do."""


class Guests:
    """Functions that are executed while a long one is under way in the same thread, between two of its steps."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]]
        self._waiting = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.is_aborted = False

    def offer(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T] | None:
        """Hand in a function; None when the long one is over, and the thread is to be asked directly."""
        with self._lock:
            if self._closed:
                return None
            future: asyncio.Future[T] = self._loop.create_future()
            self._waiting.put((function, future))
            return future

    def serve(self, connection: sqlite3.Connection, seconds: float) -> None:
        """Execute what comes within a time; called by the long function, in its thread."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while True:
                self._execute(connection, *self._waiting.get(timeout=max(0.0, deadline - time.monotonic())))

    def close(self, connection: sqlite3.Connection) -> None:
        """Execute what waits, and take no more."""
        with self._lock:
            self._closed = True
        self.serve(connection, 0.0)

    def _execute(
        self, connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]
    ) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = function(connection)
        except BaseException as error:  # noqa: BLE001  it belongs to whoever handed the function in
            failure = error
        self._loop.call_soon_threadsafe(_settle, future, result, failure)


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


class ConnectionThread:
    """Runs functions of a connection, one after the other, in the connection's own thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._proxy = aiosqlite.Connection(connect, iter_chunk_size=64)
        self._open = False
        self._guests: Guests | None = None

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
        invited = None if self._guests is None else self._guests.offer(function)
        if invited is not None:
            return await invited
        return await self._run(function)

    async def run_long(self, function: Callable[[sqlite3.Connection, Guests], T]) -> T:
        """Execute `function(connection, guests)`, which takes long and now and then lets `guests` in.

        When the caller is cancelled, `guests.is_aborted` tells the function to end soon, and its end is awaited.
        """
        guests = self._guests = Guests()

        def host(connection: sqlite3.Connection) -> T:
            try:
                return function(connection, guests)
            finally:
                guests.close(connection)

        running = asyncio.ensure_future(self._run(host))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            guests.is_aborted = True
            await asyncio.gather(running, return_exceptions=True)
            raise
        finally:
            self._guests = None

    async def _run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        raw = self._proxy._conn  # noqa: SLF001  see the module's docstring
        result: T = await self._proxy._execute(function, raw)  # type: ignore[no-untyped-call]  # noqa: SLF001
        return result

    async def stop(self) -> None:
        """Close the connection and end the thread, after what was handed in before. Idempotent."""
        if self._open:
            self._open = False
            await self._proxy.close()
