"""The journal: the only writer. Callers hand in whole writes and await their commit.

Whatever waits while one commit is under way goes into the next, as one transaction and one visit to the connection's
thread (group commit without a timer: an idle daemon commits at once, a busy one amortises its fsync).

A write is a function of the connection. One that fails must not undo its neighbours' work: the batch is first tried as
a whole, and if anything in it fails, rolled back and done again with a savepoint around each write. So the common case
pays for no savepoints, and a failing write reaches only its own caller. Writes must therefore tolerate being executed
twice, which functions of nothing but the connection do.

After an I/O error of the disk the journal stops for good: the kernel may have marked the pages clean, so a later fsync
that succeeds would prove nothing ("Can Applications Recover from fsync Failures?", ATC 2020). A full disk is different:
nothing was written, callers are told, and the next write tries again. Both hold for commits and for checkpoints, which
are made between two commits, when those who waited for the first have their answer.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from taskforged.errors import ConflictError, ResourceExhaustedError, TaskforgeError, UnavailableError
from taskforged.failpoints import reach
from taskforged.meters import SHORT_S, SIZES, Histogram
from taskforged.store.audit import AuditRow, taken
from taskforged.store.changes import RunChange, StaleWriteError, write_changes
from taskforged.store.checkpoints import Checkpointer
from taskforged.store.sql import insert_rows
from taskforged.store.threads import ConnectionThread

__all__ = ["BATCH_MAX", "Journal", "JournalStats", "Write", "outlive"]

_log = structlog.get_logger(__name__)

T = TypeVar("T")

BATCH_MAX = 1024
"""Writes in one transaction: bounds the latency of a commit and the work that a failing batch does again."""

_FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
"""There was no room: for the log, or for its index. Nothing was written, and nothing is wrong with the disk."""

_SLOW_S = 0.25
"""A commit that is worth a line in the log: as long as a lag of the event loop."""

_QUIET_S = 10.0
"""Between two such lines; those left out are counted in the next one."""

WAITING_MAX = 20_000
"""Writes that may wait for the next commit; beyond that callers are refused instead of memory being filled."""


@dataclass(slots=True)
class Write(Generic[T]):
    """One atomic write: `function` first, then `changes` of runs. The result is the function's.

    `audit` tells of the calls that it is made for; `submit` adds the present one.
    """

    changes: Sequence[RunChange] = ()
    function: Callable[[sqlite3.Connection], T] | None = None
    audit: Sequence[AuditRow] = ()


@dataclass(slots=True)
class JournalStats:
    """Counters since the start; `commit_began` is 0.0 while no commit is under way, else by `time.monotonic`."""

    commits: int = 0
    writes: int = 0
    largest_batch: int = 0
    failures: int = 0
    commit_began: float = 0.0
    sizes: Histogram = field(default_factory=lambda: Histogram(SIZES))
    durations: Histogram = field(default_factory=lambda: Histogram(SHORT_S))


class Journal:
    """Owns the writing connection."""

    def __init__(
        self, connection: ConnectionThread, checkpointer: Checkpointer, *, on_failure: Callable[[BaseException], None]
    ) -> None:
        """Create a journal on a started connection; `on_failure` is called once, when it can write no more."""
        self._connection = connection
        self.checkpointer = checkpointer
        self._is_log_due = False
        self._on_failure = on_failure
        self._waiting: deque[tuple[Write[Any], asyncio.Future[Any]]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._told_slow_at = -_QUIET_S
        self._untold_slow = 0
        self.stats = JournalStats()

    async def start(self) -> None:
        """Begin to commit. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._commit_for_ever(), name="journal")

    async def stop(self) -> None:
        """Commit what was handed in and end. Idempotent."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    @property
    def waiting(self) -> int:
        """How many writes wait for the next commit."""
        return len(self._waiting)

    @property
    def has_failed(self) -> bool:
        """Whether it can write no more."""
        return self._failure is not None

    def submit(self, write: Write[T]) -> asyncio.Future[T]:
        """Hand in a write; the future is done when it is on disk, or has failed with nothing of it written.

        Raises (through the future):
            ConflictError: a guard or a unique index refused it.
            ResourceExhaustedError: the disk is full, or too many writes wait.
            UnavailableError: the journal has stopped.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._stopping or self._failure is not None:
            future.set_exception(UnavailableError("the daemon is stopping; nothing can be written"))
        elif len(self._waiting) >= WAITING_MAX:
            future.set_exception(ResourceExhaustedError("too many writes are waiting for the disk", retry_after_s=1.0))
        else:
            entry = taken()
            if entry is not None:
                write.audit = (*write.audit, entry.take())
                future.add_done_callback(entry.settle)
            self._waiting.append((write, future))
            self._wake.set()
        return future

    async def execute(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Execute a function as a write of its own and answer its result; also when the caller does not wait for it."""
        return await outlive(self.submit(Write(function=function)))

    async def outside(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Execute a function between two commits and outside any transaction: a checkpoint, for example.

        Raises:
            TaskforgeError: it failed; for an I/O error of the disk the journal has stopped.
        """
        if self._stopping or self._failure is not None:
            raise UnavailableError("the daemon is stopping; nothing can be written")
        try:
            return await self._connection.run(function)
        except sqlite3.Error as error:
            if not _error_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                self._check_fatal(error)
            raise _translate(error) from error

    async def _commit_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._commit_waiting()
                if self._is_log_due and not self._stopping and self._failure is None:
                    await self._checkpoint()
            if self._stopping:
                return

    async def _commit_waiting(self) -> None:
        size = min(len(self._waiting), BATCH_MAX)
        batch = [self._waiting.popleft() for _ in range(size)]
        writes = [write for write, _ in batch]
        began = self.stats.commit_began = time.monotonic()
        try:
            outcomes, self._is_log_due = await self._connection.run(
                lambda connection: (_commit(connection, writes), self.checkpointer.is_due(connection))
            )
        except sqlite3.Error as error:
            outcomes = [_translate(error)] * size
            self.stats.failures += 1
            self._check_fatal(error)
            self._is_log_due = True  # on a full disk the log may have room again when it begins anew
        except Exception as error:  # noqa: BLE001  task boundary: without it every later caller would wait for ever
            _log.error("store.not_written", exc_info=error)
            outcomes = [_translate(error)] * size
            self.stats.failures += 1
        self._count(size, time.monotonic() - began)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            _settle(future, outcome)
        reach("journal.told")

    async def _checkpoint(self) -> None:
        self._is_log_due = False
        try:
            await self.outside(self.checkpointer.run)
        except TaskforgeError as error:  # the disk is full, or has failed and the journal has stopped
            _log.warning("store.no_checkpoint", error=error.message)
        except Exception as error:  # noqa: BLE001  task boundary, as above
            _log.error("store.no_checkpoint", exc_info=error)

    def _count(self, size: int, took_s: float) -> None:
        stats = self.stats
        stats.commit_began = 0.0
        stats.commits += 1
        stats.writes += size
        stats.largest_batch = max(stats.largest_batch, size)
        stats.sizes.observe(size)
        stats.durations.observe(took_s)
        if took_s >= _SLOW_S:
            self._warn_slow(size, took_s)

    def _warn_slow(self, size: int, took_s: float) -> None:
        now = time.monotonic()
        if now - self._told_slow_at < _QUIET_S:
            self._untold_slow += 1
            return
        others, self._told_slow_at, self._untold_slow = self._untold_slow, now, 0
        _log.warning("store.slow", commit_s=round(took_s, 3), writes=size, others_since_last_line=others)

    def _check_fatal(self, error: sqlite3.Error) -> None:
        if _error_name(error).startswith(_FULL):
            _log.error("store.disk_full", hint="free some space; writing goes on by itself")
            return
        self._failure = error
        _log.critical("store.write_failed", error=str(error), code=_error_name(error))
        while self._waiting:
            _settle(self._waiting.popleft()[1], _translate(error))
        self._on_failure(error)


async def outlive(future: asyncio.Future[T]) -> T:
    """Await what goes on when its caller is cancelled; nobody has to hear then that it failed."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_hear)
        raise


def _hear(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # else asyncio would report it as one that nobody has looked after


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


# --- in the connection's thread --------------------------------------------------------------------------------------


def _commit(connection: sqlite3.Connection, writes: Sequence[Write[Any]]) -> list[Any]:
    """Commit a batch; answer a result or an exception for each write. Raises when nothing at all could be written."""
    if connection.in_transaction:  # the commit before this one failed and its rollback did, too
        connection.execute("ROLLBACK")
    try:
        return _commit_together(connection, writes)
    except Exception as error:
        _roll_back(connection)
        if not _is_of_one_write(error):
            raise
    except BaseException:
        _roll_back(connection)
        raise
    try:
        return _commit_one_by_one(connection, writes)
    except BaseException:
        _roll_back(connection)
        raise


def _is_of_one_write(error: Exception) -> bool:
    """Whether an error says nothing of the disk: a refusal, a bug, or SQLite's MemoryError near the memory limit."""
    return not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.IntegrityError)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # some errors roll back by themselves
        connection.execute("ROLLBACK")


def _commit_together(connection: sqlite3.Connection, writes: Sequence[Write[Any]]) -> list[Any]:
    connection.execute("BEGIN IMMEDIATE")
    results = [None if write.function is None else write.function(connection) for write in writes]
    write_changes(connection, [change for write in writes for change in write.changes])
    _write_audit(connection, [row for write in writes for row in write.audit])
    reach("journal.written")
    connection.execute("COMMIT")
    reach("journal.committed")
    return results


def _commit_one_by_one(connection: sqlite3.Connection, writes: Sequence[Write[Any]]) -> list[Any]:
    connection.execute("BEGIN IMMEDIATE")
    outcomes = [_attempt(connection, write) for write in writes]
    connection.execute("COMMIT")
    return outcomes


def _attempt(connection: sqlite3.Connection, write: Write[Any]) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        result = None if write.function is None else write.function(connection)
        write_changes(connection, write.changes)
        _write_audit(connection, write.audit)
    except Exception as error:
        if not _is_of_one_write(error):
            raise
        connection.execute("ROLLBACK TO one")
        result = error if isinstance(error, TaskforgeError) else _translate(error)
    connection.execute("RELEASE one")
    return result


def _write_audit(connection: sqlite3.Connection, rows: Sequence[AuditRow]) -> None:
    if rows:
        insert_rows(connection, "insert_audit", rows)


def _error_name(error: BaseException) -> str:
    return getattr(error, "sqlite_errorname", "") or type(error).__name__


def _translate(error: BaseException) -> TaskforgeError:
    name = _error_name(error)
    if isinstance(error, (sqlite3.IntegrityError, StaleWriteError)):
        return ConflictError(f"somebody else was faster: {error}", metadata={"cause": name})
    if name.startswith(_FULL):
        return ResourceExhaustedError("the disk is full; nothing was written", reason="DISK_FULL", retry_after_s=10.0)
    return UnavailableError(f"the database cannot be written: {str(error) or name}", metadata={"cause": name})
