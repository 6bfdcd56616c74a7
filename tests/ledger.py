"""What must be true of the ledgers of schedules, whatever was killed and whoever turned the clock: looked up in the file."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from typing import Any

SECOND = 1_000_000


def check_ledgers(connection: sqlite3.Connection, *, step_s: int = 1, faithful: bool = False) -> Counter[str]:
    """Check every ledger, its events and its runs; answers how many due times came to which end.

    Between a trigger's first and its last entry each due time is there once. A due time fires once at most, also one
    that is in the ledger a second time because it was made good. What has fired has its event and its one run, and no
    run is without.

    Args:
        connection: to the database of a daemon that does not run.
        step_s: seconds between two due times of each schedule.
        faithful: every due time must have fired: the schedules catch up everything that they miss.
    """
    found: Counter[str] = Counter()
    runs = Counter(no for (no,) in connection.execute("SELECT event_no FROM runs WHERE trigger_no IS NOT NULL"))
    events = {
        no: json.loads(body)["due_time"]
        for no, body in connection.execute("SELECT no, body FROM events WHERE type = 'schedule.due'")
    }
    used: list[int] = []
    for no, key in connection.execute("SELECT no, key FROM triggers WHERE kind = 'cron' OR schedule <> ''").fetchall():
        rows = connection.execute(
            "SELECT due_at, backfill, last_at, count, outcome, event_no FROM schedule_slots"
            " WHERE trigger_no = ? ORDER BY due_at, backfill",
            (no,),
        ).fetchall()
        assert rows, f"{key} has never been due"
        _check_complete(key, [row for row in rows if not row[1]], step_s * SECOND)
        fired = Counter(row[0] for row in rows if row[4] == "FIRED")
        assert not [at for at, count in fired.items() if count > 1], f"{key} has fired twice: {fired.most_common(3)}"
        for _, _, _, count, outcome, event_no in rows:
            found[outcome] += count
            if event_no is not None:
                used.append(event_no)
                assert runs[event_no] == (outcome == "FIRED"), f"{key}: {runs[event_no]} runs of event {event_no}"
        if faithful:
            assert {row[4] for row in rows} == {"FIRED"}, f"{key}: {Counter(row[4] for row in rows)}"
    assert Counter(used) == Counter(events.keys()), "every event of a due time belongs to one entry"
    assert runs.keys() <= events.keys(), "a run without a due time"
    return found


def _check_complete(key: str, rows: list[Any], step: int) -> None:
    expected = rows[0][0]
    for due_at, _, last_at, count, outcome, _ in rows:
        assert due_at == expected, f"{key}: {expected} was expected, {outcome} {due_at} found"
        assert last_at - due_at == (count - 1) * step, f"{key}: {count} due times from {due_at} to {last_at}"
        expected = last_at + step
