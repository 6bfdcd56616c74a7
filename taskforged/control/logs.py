"""The log of a run: what its history says in words, and what its executors said, as one stream.

Two sequences are merged: the history, numbered within the run, and the stored lines, numbered over all runs. Each is
read in its own order, and of the two next ones the earlier goes first. The cursor of an entry names how far both were
when it was sent, so whoever resumes after a cursor misses nothing and sees nothing twice, however the log was cut into
portions and whatever was written meanwhile. A line that reaches the disk late, behind history that was sent already,
is sent late.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from taskforged.control.narrator import Narrator
from taskforged.control.views import WATCHES_MAX
from taskforged.engine.events import HistoryEvent
from taskforged.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError, Violation
from taskforged.host.feed import Feed
from taskforged.host.logbook import LogBook
from taskforged.store.changes import StoredEvent, history_from_row
from taskforged.store.runs import RunRow
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["LogEntry", "LogPage", "LogPortion", "RunLogs"]

_PORTION = 100
"""Entries of one portion of a stream, as the contract says."""

_READ = 200
"""Events and lines read at once."""

_ALIVE_S = 15.0
"""An idle stream says that it is alive this often; as for the history."""

_REMEMBERED_MAX = 64
_AT = 3
_CURSOR = re.compile(r"h([0-9]{1,18})\.l([0-9]{1,18})")


class LogEntry(NamedTuple):
    """One line. `step` is empty for the run itself, `attempt` 0 when it is about none."""

    cursor: str
    at: int
    step: str
    attempt: int
    stream: str
    text: str


class LogPage(NamedTuple):
    """Entries, and whether there are more behind them; the next page begins after the last one's cursor."""

    entries: Sequence[LogEntry]
    has_more: bool


class LogPortion(NamedTuple):
    """Entries, none as a sign of life, and the state of the run when they were read."""

    entries: Sequence[LogEntry]
    state: str


class _Position(NamedTuple):
    """How far history and lines were sent."""

    sequence: int = 0
    line: int = 0

    @property
    def cursor(self) -> str:
        return f"h{self.sequence}.l{self.line}"


class _Snapshot(NamedTuple):
    """What follows a position, both parts as of one moment."""

    row: RunRow
    events: Sequence[StoredEvent]
    lines: Sequence[Row]

    @property
    def is_all(self) -> bool:
        return len(self.events) < _READ and len(self.lines) < _READ


class RunLogs:
    """Shows the logs of runs, a page at a time or as they grow."""

    def __init__(self, store: Store, feed: Feed, book: LogBook) -> None:
        self._store = store
        self._feed = feed
        self._book = book
        self._remembered: OrderedDict[tuple[int, int], Narrator] = OrderedDict()

    async def page(self, row: RunRow, step: str, after_cursor: str, limit: int) -> LogPage:
        """Answer up to `limit` entries after a cursor; empty: from the beginning.

        Args:
            row: the run.
            step: only entries of this step; of a fan-out also those of its items and of what is inside them.
            after_cursor: the cursor of the last entry already seen.
            limit: at least 1.

        Raises:
            InvalidArgumentError: it is no cursor of this run.
        """
        reader = await self._reader(row, step, after_cursor)
        if self._book.has_waiting(row.no):
            await self._book.flush(row.no)
        entries: list[LogEntry] = []
        while True:
            snapshot = await self._snapshot(row.no, reader.position)
            for entry in reader.read(snapshot):
                if len(entries) == limit:
                    return LogPage(entries, has_more=True)
                entries.append(entry)
                if len(entries) == limit:
                    self._remember(row.no, reader)
            if snapshot.is_all:
                return LogPage(entries, has_more=False)

    async def watch(self, row: RunRow, step: str, after_cursor: str) -> AsyncIterator[LogPortion]:
        """Yield a run's log from after a cursor until it has ended and all is sent; empty portions are signs of life.

        Raises:
            InvalidArgumentError: it is no cursor of this run.
            ResourceExhaustedError: too many watch already.
            UnavailableError: the daemon is stopping; ask again with the last cursor seen.
        """
        if self._feed.count() >= WATCHES_MAX:
            raise ResourceExhaustedError(f"{WATCHES_MAX:,} watches are open already", retry_after_s=5.0)
        reader = await self._reader(row, step, after_cursor)
        has_ended = False
        with self._feed.watch(row.no) as watch:
            while True:
                snapshot = await self._snapshot(row.no, reader.position)
                entries = list(reader.read(snapshot))
                for start in range(0, len(entries), _PORTION):
                    yield LogPortion(entries[start : start + _PORTION], snapshot.row.state)
                if not snapshot.is_all:
                    continue
                if snapshot.row.ended_at is not None:
                    if has_ended:
                        return
                    has_ended = True  # once more: what was said last may not have been on disk yet
                    await self._book.flush(row.no)
                elif not await watch.wait_news(_ALIVE_S):
                    yield LogPortion((), snapshot.row.state)
                if self._feed.closed:
                    raise UnavailableError("the daemon is stopping; watch again from the last cursor seen")

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _reader(self, row: RunRow, step: str, cursor: str) -> _Reader:
        position = _position(cursor, row)
        narrator = self._remembered.get((row.no, position.sequence))
        if narrator is not None:
            return _Reader(step, position, narrator.copy())
        narrator, at = Narrator(), 0
        while at < position.sequence:  # what was told before says what is meant later: of which request, since when
            rows = await self._store.rows("history_after", row.no, at, min(1000, position.sequence - at))
            if not rows:
                break
            for event in map(history_from_row, rows):
                narrator.tell(event.event)
            at = rows[-1][0]
        return _Reader(step, position, narrator)

    def _remember(self, run_no: int, reader: _Reader) -> None:
        """Keep what the next page needs to know of the history before it, or each page would read all of that again."""
        key = (run_no, reader.position.sequence)
        self._remembered[key] = reader.narrator.copy()
        self._remembered.move_to_end(key)
        if len(self._remembered) > _REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    async def _snapshot(self, run_no: int, position: _Position) -> _Snapshot:
        return await self._store.read(lambda connection: _read(connection, run_no, position))


class _Reader:
    """Merges events and lines, and knows how far it is.

    Attributes:
        position: how far both were sent, or passed over.
        narrator: puts events into words.
    """

    def __init__(self, step: str, position: _Position, narrator: Narrator) -> None:
        self._step = step
        self._inside, self._below = f"{step}[", f"{step}."
        self.position = position
        self.narrator = narrator

    def read(self, snapshot: _Snapshot) -> Iterator[LogEntry]:
        """Yield entries of a snapshot, as long as it is known which one is next."""
        events, lines = deque(snapshot.events), deque(snapshot.lines)
        while events or lines:
            if (not events and len(snapshot.events) >= _READ) or (not lines and len(snapshot.lines) >= _READ):
                return  # the next one of these may be the earlier
            if events and (not lines or events[0].event.at <= lines[0][_AT]):
                entry = self._told(events.popleft().event)
            else:
                entry = self._said(lines.popleft())
            if entry is not None:
                yield entry

    def _told(self, event: HistoryEvent) -> LogEntry | None:
        self.position = self.position._replace(sequence=event.sequence)
        text = self.narrator.tell(event)
        if not text or not self._is_wanted(event.step):
            return None
        return LogEntry(self.position.cursor, event.at, event.step, event.attempt, "system", text)

    def _said(self, line: Row) -> LogEntry | None:
        no, step, attempt, at, stream, text = line
        self.position = self.position._replace(line=no)
        is_wanted = self._is_wanted(step) or not step  # of no step: that lines are missing
        return LogEntry(self.position.cursor, at, step, attempt, stream, text) if is_wanted else None

    def _is_wanted(self, step: str) -> bool:
        return not self._step or step == self._step or step.startswith((self._inside, self._below))


def _position(cursor: str, row: RunRow) -> _Position:
    """Read a cursor.

    Raises:
        InvalidArgumentError: it is none, or not of this run.
    """
    if not cursor:
        return _Position()
    found = _CURSOR.fullmatch(cursor)
    position = _Position() if found is None else _Position(int(found[1]), int(found[2]))
    if found is None or position.sequence > row.sequence:
        message = "is not the cursor of an entry of this run's log"
        raise InvalidArgumentError(f"after_cursor {message}", violations=[Violation("after_cursor", message)])
    return position


def _read(connection: Connection, run_no: int, position: _Position) -> _Snapshot:
    connection.execute("BEGIN")
    try:
        row = connection.execute(QUERIES["run_by_no"], (run_no,)).fetchone()
        events = connection.execute(QUERIES["history_after"], (run_no, position.sequence, _READ)).fetchall()
        lines = connection.execute(QUERIES["logs_after"], (run_no, position.line, _READ)).fetchall()
    finally:
        connection.execute("COMMIT")
    return _Snapshot(RunRow(*row), [history_from_row(one) for one in events], lines)
