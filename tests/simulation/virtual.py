"""What the simulated daemon runs on: time that jumps, a loop without a kernel, a disk that survives crashes.

Nothing here waits. The loop's clock jumps to the next timer, and what the product would do in a thread of its own (a
commit, a read) is done by a timer of the loop, some virtual time later. So one seed decides the order of everything.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from taskforged.store import database, store

__all__ = ["Crash", "Disk", "Faults", "Time", "VirtualLoop", "bury", "ruled"]

_START_US = 1_767_225_600_000_000  # 2026-01-01
_BOOTED_S = 1000.0
_LAST_WORDS = 20
"""How often a coroutine may want to wait while it is closed."""


class Crash(KeyboardInterrupt):
    """The daemon dies here. A kind of interrupt, since nothing in the product or in asyncio holds that up."""


class Time:
    """The clocks of the machine. `jump` sets the wall clock; the monotonic one does not notice."""

    def __init__(self) -> None:
        self.now_s = _BOOTED_S
        self._jumped_us = 0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return (_START_US + round((self.now_s - _BOOTED_S) * 1_000_000) + self._jumped_us) * 1000

    def time(self) -> float:
        return self.time_ns() / 1e9

    def jump(self, seconds: float) -> None:
        self._jumped_us += round(seconds * 1_000_000)


@contextmanager
def ruled(clock: Time, rng: Random) -> Iterator[None]:
    """Let a clock and a dice rule over what takes time and identity by itself."""
    saved = time.monotonic, time.time, time.time_ns, os.urandom
    time.monotonic, time.time, time.time_ns, os.urandom = clock.monotonic, clock.time, clock.time_ns, rng.randbytes
    try:
        yield
    finally:
        time.monotonic, time.time, time.time_ns, os.urandom = saved


class _Jumper:
    """Stands where the selector stands: to wait is to let time pass."""

    def __init__(self, clock: Time) -> None:
        self._clock = clock

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "everything has come to a standstill: nobody waits for anything"
        self._clock.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop over a virtual clock. What goes wrong in a callback is kept in `faults`."""

    def __init__(self, clock: Time) -> None:
        super().__init__()
        self._virtual = clock
        self._selector = _Jumper(clock)
        self.faults: list[str] = []
        self.set_exception_handler(self._on_fault)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, executor, function, *arguments):
        """Do at once what others do in a thread."""
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, _: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there who could wake it."""

    def _on_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")


def bury(loop: VirtualLoop) -> None:
    """End a loop as a SIGKILL would: what was under way is not told, and nothing of it goes on."""
    loop.set_exception_handler(lambda *_: None)
    buried: set[asyncio.Task[Any]] = set()
    asyncio._set_running_loop(loop)  # who is closed may want to begin something: it never does
    try:
        while fresh := asyncio.all_tasks(loop) - buried:
            for task in fresh:
                buried.add(task)
                task._log_destroy_pending = False
                _close(task.get_coro())
    finally:
        asyncio._set_running_loop(None)
    loop._ready.clear()
    loop._scheduled.clear()
    loop.close()


def _close(coroutine: Coroutine[Any, Any, Any]) -> None:
    for _ in range(_LAST_WORDS):
        try:
            coroutine.close()
            return
        except Exception:  # it wanted to wait once more
            continue


# --- the disk --------------------------------------------------------------------------------------------------------


@cache
def _template() -> bytes:
    """A database of the present schema, empty."""
    with tempfile.TemporaryDirectory() as folder:
        connection = database.connect_writer(Path(folder, "taskforge.db"), synchronous="OFF")
        connection.execute("PRAGMA journal_mode = DELETE")  # a log has no place in memory
        content = connection.serialize()
        connection.close()
    return content


class _Connection(sqlite3.Connection):
    """Fails a COMMIT when it is told to."""

    fails_commit = False

    def execute(self, sql, *arguments):
        if self.fails_commit and sql == "COMMIT":
            self.fails_commit = False
            raise disk_full()
        return super().execute(sql, *arguments)


def disk_full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return error


class Faults:
    """What goes wrong with one boot's disk, drawn as it comes.

    Attributes:
        full: share of the commits that find no room.
        crash_in: so many commits from now the daemon dies, right before or right after one; None: it does not.
    """

    def __init__(self, rng: Random, *, full: float = 0.0, crash_in: int | None = None) -> None:
        self.rng = rng
        self.full = full
        self.crash_in = crash_in
        self._before = rng.random() < 0.5

    def delay_s(self) -> float:
        draw = self.rng.random()
        if draw < 0.7:
            return 0.0003
        return 0.004 if draw < 0.93 else 0.05 if draw < 0.99 else 2.0

    def before_commit(self, connection: _Connection) -> None:
        if self.crash_in is not None and self._before:
            self._count_down()
        if self.full and self.rng.random() < self.full:
            if self.rng.random() < 0.5:
                raise disk_full()
            connection.fails_commit = True

    def after_commit(self, connection: _Connection) -> None:
        connection.fails_commit = False
        if self.crash_in is not None and not self._before:
            self._count_down()

    def _count_down(self) -> None:
        assert self.crash_in is not None
        self.crash_in -= 1
        if self.crash_in < 0:
            raise Crash


class Disk:
    """The one database, in memory: what is committed outlives each boot, and nothing else does.

    Attributes:
        on_commit: called after each commit.
        commits: how many there were.
    """

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", factory=_Connection, isolation_level=None, cached_statements=256)
        self.connection.deserialize(_template())
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.on_commit: Callable[[], None] = lambda: None
        self.commits = 0
        self._digest = hashlib.sha256()

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def value(self, sql: str, *parameters: Any) -> Any:
        return self.connection.execute(sql, parameters).fetchone()[0]

    def committed(self, now_s: float) -> None:
        self.commits += 1
        self._digest.update(f"{now_s!r} {self.connection.total_changes}\n".encode())
        self.on_commit()

    def digest(self) -> str:
        """Hash when each commit was made and how much it changed, and all that is stored in the end."""
        whole = self._digest.copy()
        tables = [name for (name,) in self.rows("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        for table in tables:
            if table not in ("secrets", "tokens", "boots"):
                content = self.rows(f"SELECT * FROM {table}")
                whole.update(f"{table} {sorted(map(repr, content))}\n".encode())
        return whole.hexdigest()

    @contextmanager
    def serving(self, faults: Faults) -> Iterator[None]:
        """Let stores that are made meanwhile work on this disk."""
        writers: list[_Thread] = []

        def thread(_: Any) -> _Thread:
            made = _Thread(self, faults, is_writer=not writers)
            writers.append(made)
            return made

        saved, store.ConnectionThread = store.ConnectionThread, thread
        try:
            yield
        finally:
            store.ConnectionThread = saved


class _Thread:
    """Stands where a connection's thread stands: whole functions, one after the other, each some time later."""

    def __init__(self, disk: Disk, faults: Faults, *, is_writer: bool) -> None:
        self._disk = disk
        self._faults = faults
        self._is_writer = is_writer
        self._waiting: deque[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = deque()
        self._busy = False
        self._visits = 0

    async def start(self) -> None:
        """It is always there."""

    async def stop(self) -> None:
        """The disk stays."""

    async def run(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((function, future))
        self._next()
        return await future

    def _next(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_later(self._faults.delay_s(), self._execute)

    def _execute(self) -> None:
        function, future = self._waiting.popleft()
        loop = asyncio.get_running_loop()
        result: Any = None
        failure: BaseException | None = None
        try:
            result = self._visit(function)
        except Exception as error:
            failure = error
        loop.call_later(self._faults.delay_s() / 4, self._answer, future, result, failure)

    def _visit(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        if not self._is_writer:
            return function(self._disk.connection)
        self._visits += 1
        if self._visits == 1:  # the store looks at what it has opened
            return function(self._disk.connection)
        connection, before = self._disk.connection, self._disk.connection.total_changes
        self._faults.before_commit(connection)
        try:
            return function(connection)
        finally:
            if not connection.in_transaction and connection.total_changes != before:
                self._disk.committed(asyncio.get_running_loop().time())
            self._faults.after_commit(connection)

    def _answer(self, future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
        self._busy = False
        if not future.done():  # its caller was cancelled
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)
        self._next()
