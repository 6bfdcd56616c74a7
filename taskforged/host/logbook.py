"""What executors say while they work: lines go into memory, and a moment later, many in one write, to disk.

Nothing here may slow an executor down or make an attempt fail. A line is put into memory, within bounds, and whatever
is beyond a bound is dropped and counted: per attempt, per run, and in the whole book. So a program that floods, or a
disk that is full, costs lines of a log and nothing else.

One write is under way at a time, and rows get their numbers in the order in which they are written. So whoever has
read a run's rows up to a number has missed none below it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import structlog

from taskforged.clock import Clock
from taskforged.errors import TaskforgeError, UnavailableError
from taskforged.host.feed import Feed
from taskforged.steps.base import Log
from taskforged.store.journal import Write
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["BookBounds", "LogBook"]

_log = structlog.get_logger(__name__)

_FLUSH_S = 0.1
"""How long a line waits for others at most; a follower hardly notices."""

_ROWS_MAX = 2000
"""Lines in one write: they share the journal with the results of steps, which must not wait for megabytes."""

_PAUSES_S = (0.1, 0.5, 1.0)
"""Before a write that failed is tried again. A disk that stays full for longer costs these lines."""

_COUNTED_RUNS_MAX = 10_000
"""Runs whose kept lines are counted; one that was silent for longer than so many others counts from 0 again."""

_OVERHEAD = 200
"""Bytes that a waiting line costs besides its text."""

_STREAMS = frozenset({"stdout", "stderr", "system"})

_Key: TypeAlias = tuple[int, str, int]


class BookBounds(NamedTuple):
    """What is kept at most.

    Attributes:
        attempt_lines: lines of one attempt.
        attempt_bytes: bytes of one attempt.
        run_lines: lines of one run.
        run_bytes: bytes of one run.
        line_bytes: a longer line becomes several.
        waiting_bytes: bytes in memory, on their way to disk.
    """

    attempt_lines: int = 2_000
    attempt_bytes: int = 256 << 10
    run_lines: int = 20_000
    run_bytes: int = 8 << 20
    line_bytes: int = 16 << 10
    waiting_bytes: int = 8 << 20


class _Attempt:
    """The log of one attempt, and the callable that takes its lines.

    Attributes:
        lines: how many were kept.
        size: their bytes.
        is_full: it has reached a bound of its own.
        waiting: lines that are not on disk yet.
        dropped: lines that were dropped and that no line tells of yet.
    """

    __slots__ = ("__weakref__", "_book", "dropped", "is_full", "key", "lines", "size", "waiting")

    def __init__(self, book: LogBook, key: _Key) -> None:
        self._book = book
        self.key = key
        self.lines = self.size = self.waiting = self.dropped = 0
        self.is_full = False

    def __call__(self, stream: str, text: str) -> None:
        self._book.take(self, stream, text)


class _Line(NamedTuple):
    """A line on its way to disk."""

    attempt: _Attempt
    at: int
    stream: str
    text: str
    size: int


class _Count:
    """What was kept of one run."""

    __slots__ = ("is_full", "lines", "size")

    def __init__(self) -> None:
        self.lines = self.size = 0
        self.is_full = False


class LogBook:
    """The logs of all attempts. For the event loop only, as executors are."""

    def __init__(self, store: Store, clock: Clock, feed: Feed, *, bounds: BookBounds | None = None) -> None:
        """Create a book; `feed` is told of runs whose lines are on disk."""
        self._store = store
        self._clock = clock
        self._feed = feed
        self._bounds = bounds or BookBounds()
        self._attempts: WeakValueDictionary[_Key, _Attempt] = WeakValueDictionary()
        self._runs: OrderedDict[int, _Count] = OrderedDict()
        self._lines: deque[_Line] = deque()
        self._open: dict[int, int] = {}  # how many lines of a run are not on disk yet
        self._waiting_bytes = 0
        self._taken = self._settled = 0  # lines since the start: put into memory, and on disk or given up
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.dropped = 0

    # --- taking ------------------------------------------------------------------------------------------------------

    def logger(self, run_no: int, step_key: str, attempt: int) -> Log:
        """Answer what takes the lines of an attempt."""
        return _Attempt(self, (run_no, step_key, attempt))

    def take(self, attempt: _Attempt, stream: str, text: str) -> None:
        """Take a line, or several when there are line ends in it."""
        self._attempts.setdefault(attempt.key, attempt)
        stream = stream if stream in _STREAMS else "system"
        text, size = _clean(text)
        if size <= self._bounds.line_bytes and "\n" not in text:
            self._keep(attempt, stream, text, size)
            return
        for piece in _pieces(text, self._bounds.line_bytes):
            self._keep(attempt, stream, piece, len(piece.encode()))

    def _keep(self, attempt: _Attempt, stream: str, text: str, size: int) -> None:
        bounds, run = self._bounds, self._count(attempt.key[0])
        if run.is_full or run.lines >= bounds.run_lines or run.size + size > bounds.run_bytes:
            if not run.is_full:
                run.is_full = True
                limits = f"{bounds.run_lines:,} lines or {bounds.run_bytes:,} bytes"
                self._put(attempt, "system", f"… the log of this run has reached {limits}; what follows is dropped")
            self.dropped += 1
            return
        is_too_much = attempt.lines >= bounds.attempt_lines or attempt.size + size > bounds.attempt_bytes
        attempt.is_full = attempt.is_full or is_too_much  # a shorter line must not slip in behind: one gap, at the end
        if attempt.is_full or self._waiting_bytes + size > bounds.waiting_bytes:
            attempt.dropped += 1
            self.dropped += 1
            return
        if attempt.dropped:  # the disk was slow or full, and is no more
            self._note(attempt)
        attempt.lines += 1
        attempt.size += size
        run.lines += 1
        run.size += size
        self._put(attempt, stream, text, size)

    def _put(self, attempt: _Attempt, stream: str, text: str, size: int = 0) -> None:
        if self._stopped:
            return
        attempt.waiting += 1
        run_no = attempt.key[0]
        self._open[run_no] = self._open.get(run_no, 0) + 1
        self._taken += 1
        self._waiting_bytes += size + _OVERHEAD
        self._lines.append(_Line(attempt, self._clock.now(), stream, text, size))
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._begin)

    def _count(self, run_no: int) -> _Count:
        count = self._runs.get(run_no)
        if count is None:
            count = self._runs[run_no] = _Count()
            if len(self._runs) > _COUNTED_RUNS_MAX:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end(run_no)
        return count

    # --- ending ------------------------------------------------------------------------------------------------------

    def end(self, run_no: int, step_key: str, attempt: int) -> None:
        """An attempt is over: its last line says how many were dropped. Idempotent."""
        known = self._attempts.get((run_no, step_key, attempt))
        if known is not None and known.dropped:
            self._note(known)

    def _note(self, attempt: _Attempt) -> None:
        count, attempt.dropped = attempt.dropped, 0
        self._put(attempt, "system", f"… {count:,} more {'line' if count == 1 else 'lines'} dropped")

    def has_lines(self, run_no: int, step_key: str, attempt: int) -> bool:
        """Whether lines of an attempt that is over, see `end`, are not on disk yet."""
        self.end(run_no, step_key, attempt)
        known = self._attempts.get((run_no, step_key, attempt))
        return known is not None and known.waiting > 0

    def has_waiting(self, run_no: int) -> bool:
        """Whether any lines of a run are not on disk yet."""
        return run_no in self._open

    async def flush(self, run_no: int | None = None) -> None:
        """Wait until all lines that wait now, or those of a run, are on disk, or were given up. Never raises."""
        target = self._taken
        while self._settled < target and (run_no is None or run_no in self._open):
            self._begin()
            assert self._writing is not None
            await asyncio.shield(self._writing)  # a caller that is cancelled takes nobody's lines with it

    async def stop(self) -> None:
        """Write what waits and take nothing more. Idempotent."""
        for attempt in list(self._attempts.values()):
            if attempt.dropped:
                self._note(attempt)
        self._stopped = True
        await self.flush()
        if self._timer is not None:
            self._timer.cancel()

    # --- writing -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin to write, unless a write is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None and self._lines:
            self._writing = asyncio.get_running_loop().create_task(self._write_next(), name="logbook.write")

    async def _write_next(self) -> None:
        try:
            await self._write_some()
        finally:
            self._written()

    def _written(self) -> None:
        """Part of the task: who flushes must not find one that is done, which would not make him wait."""
        self._writing = None
        if self._lines and self._timer is None and not self._stopped:
            pause = 0.0 if len(self._lines) >= _ROWS_MAX else _FLUSH_S
            self._timer = asyncio.get_running_loop().call_later(pause, self._begin)

    async def _write_some(self) -> None:
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), _ROWS_MAX))]
        try:
            if not await self._write(lines):
                self._give_up(lines)
        finally:
            self._settle(lines)
        for run_no in dict.fromkeys(line.attempt.key[0] for line in lines):
            self._feed.publish(run_no)

    async def _write(self, lines: Sequence[_Line]) -> bool:
        rows = [self._row(line) for line in lines]
        for pause_s in (*_PAUSES_S, None):
            try:
                await self._store.journal.submit(Write(function=lambda connection: _insert(connection, rows)))
            except TaskforgeError as error:
                is_final = pause_s is None or self._stopped or isinstance(error, UnavailableError)
                _log.warning("logbook.not_written", lines=len(lines), error=str(error), dropped=is_final)
                if is_final:
                    return False
            except Exception as error:  # noqa: BLE001  task boundary: a bug here must not fail attempts
                _log.error("logbook.not_written", lines=len(lines), exc_info=error)
                return False
            else:
                return True
            await asyncio.sleep(pause_s or 0.0)
        return False

    def _row(self, line: _Line) -> Row:
        return (self._store.next_no("step_logs"), *line.attempt.key, line.at, line.stream, line.text)

    def _give_up(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            line.attempt.dropped += 1
            self.dropped += 1

    def _settle(self, lines: Sequence[_Line]) -> None:
        for line in lines:
            run_no = line.attempt.key[0]
            line.attempt.waiting -= 1
            self._waiting_bytes -= line.size + _OVERHEAD
            if self._open[run_no] == 1:
                del self._open[run_no]
            else:
                self._open[run_no] -= 1
        self._settled += len(lines)


def _insert(connection: Connection, rows: Sequence[Row]) -> Any:
    return connection.executemany(QUERIES["insert_log"], rows).rowcount


def _clean(text: str) -> tuple[str, int]:
    """Answer a text that SQLite and protobuf take, with its size in UTF-8."""
    text = text.rstrip("\r\n")
    if "\0" in text:  # SQLite's own functions would end the text there
        text = text.replace("\0", "\ufffd")
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:  # lone surrogates
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, len(text.encode())


def _pieces(text: str, size_max: int) -> Iterable[str]:
    """Yield the lines of a text, those that are too long in pieces, no character cut in half."""
    for line in text.split("\n"):
        raw = line.rstrip("\r").encode()
        start = 0
        while len(raw) - start > size_max:
            end = start + size_max
            while end > start + 1 and raw[end] & 0xC0 == 0x80:
                end -= 1
            yield raw[start:end].decode()
            start = end
        yield raw[start:].decode()
