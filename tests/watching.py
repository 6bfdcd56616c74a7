"""The six properties of a watch, as pure functions over what a watcher has recorded and what is stored.

They are those of etcd's watches: Ordered, Unique, Atomic, Reliable, Resumable, Bookmarkable. A record can be kept and
judged again later; each function answers its faults in words, none when the property holds.
"""

from __future__ import annotations

import contextlib
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from taskforge.v1 import event_pb2, event_service_pb2, run_pb2, run_service_pb2
from taskforge.v1.event_service_pb2_grpc import EventServiceStub


class Entry(NamedTuple):
    """Something seen: where it stands, and what identifies it with all that is in it."""

    position: int
    content: str


@dataclass(frozen=True, slots=True)
class Message:
    """What came at once. `removed` were not there to be sent any more; `cursor` is where to go on."""

    entries: Sequence[Entry]
    cursor: int
    removed: int = 0


@dataclass(slots=True)
class Session:
    """One stream, from the cursor it began after to its break."""

    after: int
    messages: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class Record:
    """All that one watcher saw, over all its streams."""

    sessions: list[Session] = field(default_factory=list)

    def begin(self, after: int) -> Session:
        """Note that a stream begins."""
        self.sessions.append(Session(after))
        return self.sessions[-1]

    @property
    def cursor(self) -> int:
        """Where to go on: behind the last message of whichever stream had one."""
        last = [session.messages[-1].cursor for session in self.sessions if session.messages]
        return last[-1] if last else self.sessions[0].after if self.sessions else 0

    def entries(self) -> Iterator[Entry]:
        """All entries in the order in which they came."""
        return (entry for session in self.sessions for message in session.messages for entry in message.entries)


Stored = Mapping[int, str]
"""What is stored and fits, by position."""


def ordered(record: Record, _: Stored) -> list[str]:
    """Whatever comes later stands later, also over streams."""
    seen = [entry.position for entry in record.entries()]
    return [f"{later} came after {earlier}" for earlier, later in zip(seen, seen[1:], strict=False) if later < earlier]


def unique(record: Record, _: Stored) -> list[str]:
    """Nothing comes twice, also over streams."""
    seen: set[int] = set()
    twice = []
    for entry in record.entries():
        if entry.position in seen:
            twice.append(f"{entry.position} came again")
        seen.add(entry.position)
    return twice


def atomic(record: Record, stored: Stored) -> list[str]:
    """What comes is what is stored, whole; and a message ends at its cursor."""
    found = []
    for session in record.sessions:
        for message in session.messages:
            for entry in message.entries:
                if stored.get(entry.position) != entry.content:
                    found.append(f"{entry.position} is not what is stored: {entry.content!r}")
                if entry.position > message.cursor:
                    found.append(f"{entry.position} came with the cursor {message.cursor}, which is before it")
    return found


def reliable(record: Record, stored: Stored) -> list[str]:
    """Nothing between the first cursor and the last entry is left out."""
    if not record.sessions:
        return []
    seen = {entry.position for entry in record.entries()}
    end = max(seen, default=0)
    return [f"{one} was left out" for one in stored if record.sessions[0].after < one <= end and one not in seen]


def resumable(record: Record, stored: Stored) -> list[str]:
    """A stream begins with the first that is stored behind its cursor."""
    order = sorted(stored)
    found = []
    for session in record.sessions:
        first = next((entry.position for message in session.messages for entry in message.entries), None)
        if first is None:
            continue
        at = bisect_right(order, session.after)
        due = order[at] if at < len(order) else None
        if first != due:
            found.append(f"after {session.after} came {first} and not {due}")
    return found


def bookmarkable(record: Record, stored: Stored) -> list[str]:
    """A cursor vouches: all that stands up to it was sent, nothing below it follows, and it never goes back."""
    order = sorted(stored)
    found = []
    for session in record.sessions:
        sent, cursor = 0, session.after
        begin = bisect_right(order, session.after)
        for message in session.messages:
            found += [
                f"{one.position} came behind the cursor {cursor}" for one in message.entries if one.position <= cursor
            ]
            if message.cursor < cursor:
                found.append(f"the cursor went back from {cursor} to {message.cursor}")
            cursor = message.cursor
            sent += len(message.entries)
            due = bisect_right(order, cursor) - begin
            if sent != due:
                found.append(f"up to the cursor {cursor} {sent} came of {due}")
    return found


PROPERTIES: Sequence[Callable[[Record, Stored], list[str]]] = (
    ordered,
    unique,
    atomic,
    reliable,
    resumable,
    bookmarkable,
)


def faults(record: Record, stored: Stored) -> list[str]:
    """Everything that is wrong with a record, the first few of each kind."""
    return [f"{one.__name__}: {fault}" for one in PROPERTIES for fault in one(record, stored)[:3]]


# --- from the streams of the control plane ---------------------------------------------------------------------------


def of_event(event: event_pb2.Event) -> str:
    """What identifies an event."""
    return f"{event.id} {event_pb2.Event.Outcome.Name(event.outcome).removeprefix('OUTCOME_')} {event.type}"


def event_message(raw: event_service_pb2.WatchEventsResponse, _: int) -> Message:
    """Turn what a watch of events says into a message."""
    return Message([Entry(int(one.cursor), of_event(one.event)) for one in raw.entries], int(raw.cursor), raw.removed)


def of_history(event: run_pb2.HistoryEvent) -> str:
    """All that is in an event of a run's history."""
    return f"{event.kind} {event.step} {event.attempt} {event.body_json} {event.hash}"


def history_message(raw: run_service_pb2.WatchRunResponse, cursor: int) -> Message:
    """Turn what a watch of a run says into a message; it has a cursor only with its events."""
    entries = [Entry(one.sequence, of_history(one)) for one in raw.events]
    return Message(entries, entries[-1].position if entries else cursor)


class LogCursors:
    """Numbers for the cursors of logs: each entry is further in the history or in the lines."""

    def __init__(self) -> None:
        self.text: dict[int, str] = {0: ""}

    def message(self, raw: run_service_pb2.WatchRunLogsResponse, cursor: int) -> Message:
        """Turn what a watch of a log says into a message."""
        entries = [Entry(self._number(one.cursor), of_line(one)) for one in raw.entries]
        return Message(entries, entries[-1].position if entries else cursor)

    def _number(self, cursor: str) -> int:
        sequence, line = cursor.removeprefix("h").split(".l")
        number = int(sequence) + int(line)
        self.text[number] = cursor
        return number


def of_line(entry: run_pb2.LogEntry) -> str:
    """All that is in an entry of a log."""
    return f"{entry.step} {entry.attempt} {entry.stream} {entry.text}"


async def newest_cursor(stub: EventServiceStub) -> int:
    """Where a watch of events begins now."""
    call = stub.WatchEvents(event_service_pb2.WatchEventsRequest(), timeout=30)
    raw = await call.read()
    call.cancel()
    return int(raw.cursor)


def stored_events(home: Path) -> dict[int, str]:
    """The events of a stopped daemon's home by position, but for the engine's own."""
    with contextlib.closing(sqlite3.connect(f"file:{home / 'taskforge.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT f.position, e.id || ' ' || e.outcome || ' ' || e.type FROM event_feed f"
            " JOIN events e ON e.no = f.event_no WHERE e.source <> 'engine'"
        )
        return dict(rows)
