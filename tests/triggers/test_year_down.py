"""A daemon that was off for a year comes back: it starts as ever, fires what it should, and tells of all the rest."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import urllib.request

import pytest
from harness import Daemon
from ledger import SECOND, check_ledgers
from turned import DAY_S, WallClock

DOWN_DAYS = 366
CAP = 100

POLICIES = {"newest": "latest", "some": f"{{policy: all, cap: {CAP}}}", "none": "skip"}

STEPS = "steps: [{id: look, transform: {at: '${{ event.body.due_time }}'}}]"


def _definition() -> str:
    triggers = [
        f"  {key}: {{cron: {{schedule: '* * * * *', misfire: {how}, overlap: allow}}}}" for key, how in POLICIES.items()
    ]
    return "\n".join(["name: minutely", "on:", *triggers, STEPS])


@pytest.mark.timeout(180)
async def test_a_year_off() -> None:
    with WallClock() as wall:
        daemon = Daemon(env={**wall.env, "TASKFORGE_METRICS_OPEN": "true"})
        try:
            # Half a minute past the minute: nothing becomes due while the test looks.
            wall.freeze()
            wall.turn(30 - wall.now() % 60)
            await asyncio.to_thread(daemon.start)
            await daemon.apply(_definition())
            assert await asyncio.to_thread(daemon.terminate) == 0
            await asyncio.to_thread(daemon.start)
            assert await asyncio.to_thread(daemon.terminate) == 0
            wall.turn(DOWN_DAYS * DAY_S)
            await asyncio.to_thread(daemon.start)
            rows = await _settled(daemon, wall)
            lags = await asyncio.to_thread(_lags, daemon)
            assert await asyncio.to_thread(daemon.terminate) == 0
            _check(rows)
            with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db")) as connection:
                check_ledgers(connection, step_s=60)
                runs = dict(connection.execute("SELECT trigger, count(*) FROM runs GROUP BY trigger").fetchall())
            assert runs == {"newest": 1, "some": CAP}
            usual, after = daemon.ready_s[1:]
            print(
                f"ready after {usual:.2f} s as usual, after {after:.2f} s with a year to settle; lags of the loop {lags}"
            )
        finally:
            await daemon.aclose()


async def _settled(daemon: Daemon, wall: WallClock) -> dict[str, list[tuple[str, int, int, str]]]:
    """Wait until every ledger is complete; answers outcome, due time, count and reason of the entries."""
    for _ in range(600):
        with contextlib.closing(
            sqlite3.connect(f"file:{daemon.home / 'taskforge.db'}?mode=ro", uri=True)
        ) as connection:
            (least,) = connection.execute("SELECT min(cursor) FROM triggers").fetchone()
            rows = connection.execute(
                "SELECT t.key, s.outcome, s.due_at, s.count, s.reason FROM schedule_slots s"
                " JOIN triggers t ON t.no = s.trigger_no ORDER BY s.due_at"
            ).fetchall()
            (open_runs,) = connection.execute("SELECT count(*) FROM runs WHERE ended_at IS NULL").fetchone()
        if least / SECOND > wall.now() - 60 and not open_runs:
            return {key: [row[1:] for row in rows if row[0] == key] for key in POLICIES}
        await asyncio.sleep(0.1)
    raise AssertionError(daemon.tail())


def _check(rows: dict[str, list[tuple[str, int, int, str]]]) -> None:
    year = DOWN_DAYS * 1440
    told = {key: [(outcome, count) for outcome, _, count, _ in found] for key, found in rows.items()}
    total = {key: sum(count for _, count in found) for key, found in told.items()}
    assert set(total.values()) == {year}, total
    assert told["newest"] == [("COALESCED", total["newest"] - 1), ("FIRED", 1)]
    assert told["some"] == [("MISSED", total["some"] - CAP), *[("FIRED", 1)] * CAP]
    assert told["none"] == [("MISSED", total["none"])]
    assert rows["some"][0][3] == f"more than the cap of {CAP}"


def _lags(daemon: Daemon) -> dict[str, int]:
    """How often the loop was late by up to so many seconds, since the start."""
    with urllib.request.urlopen(f"{daemon.http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    buckets = [line for line in lines if line.startswith("taskforge_event_loop_lag_seconds_bucket")]
    found: dict[str, int] = {}
    before = 0
    for line in buckets:
        label, count = line.rsplit(" ", 1)
        if int(float(count)) > before:
            found[label.split('le="')[1].split('"')[0]] = int(float(count)) - before
            before = int(float(count))
    return found
