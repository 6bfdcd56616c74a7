"""Retention deletes by the clock: a clock that has jumped is not believed before it has behaved for an hour."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from switchboard import eventually

from taskforged.control.clock_trust import CALM_S, GAP_US, JUMP_US, ClockTrust

DAY_US = 86_400_000_000
START = 1_790_000_000_000_000
RUN = """
name: short
retention: {age: 1s}
steps:
  - {id: a, transform: 1}
"""


class Hands:
    """A wall clock and what really passes."""

    def __init__(self):
        self.wall, self.passed = START, 1000.0

    def go(self, seconds, *, jump_us=0):
        self.passed += seconds
        self.wall += round(seconds * 1_000_000) + jump_us


@pytest.fixture
def hands():
    return Hands()


def trust_of(hands, last=0):
    trust = ClockTrust(lambda: hands.wall, lambda: hands.passed)
    trust.start(last)
    return trust


def test_a_new_home_and_one_that_was_in_use_are_believed_at_once(hands):
    assert trust_of(hands).is_earned()
    assert trust_of(hands, START - GAP_US).is_earned()


def test_a_long_silence_earns_trust_by_an_hour(hands):
    trust = trust_of(hands, START - GAP_US - 1)
    assert not trust.is_earned()
    hands.go(CALM_S - 1)
    assert not trust.is_earned()
    hands.go(1)
    assert trust.is_earned()


def test_a_jump_ahead_costs_an_hour_and_one_back_nothing(hands):
    trust = trust_of(hands)
    hands.go(10, jump_us=JUMP_US + 1)
    assert not trust.is_earned()
    hands.go(60, jump_us=-JUMP_US)  # somebody has corrected it
    assert not trust.is_earned()
    hands.go(CALM_S)
    assert trust.is_earned()
    hands.go(10, jump_us=-DAY_US)
    assert trust.is_earned()


def test_slow_drift_and_long_pauses_between_looks_are_no_jump(hands):
    trust = trust_of(hands)
    for _ in range(50):
        hands.go(600, jump_us=JUMP_US // 10)
        assert trust.is_earned()


async def test_a_home_that_seems_to_have_slept_for_a_year_is_not_pruned_at_once(daemon, own):
    await own.apply(RUN)
    run = (await own("StartRun", workflow="short")).run
    await own.ended(run.id)
    await asyncio.to_thread(daemon.terminate)
    with sqlite3.connect(daemon.home / "taskforge.db") as database:
        for statement in (
            f"UPDATE boots SET started_at = started_at - {400 * DAY_US}, stopped_at = stopped_at - {400 * DAY_US}",
            f"UPDATE runs SET created_at = created_at - {400 * DAY_US}, ended_at = ended_at - {400 * DAY_US}",
            "DROP TRIGGER events_keep_their_content",
            "DROP TRIGGER events_are_immutable",
            f"UPDATE events SET created_at = created_at - {400 * DAY_US}",
        ):
            database.execute(statement)
    database.close()
    daemon.env["TASKFORGE_STORE_MAX_MIB"] = "0"
    await asyncio.to_thread(daemon.start)
    await eventually(lambda: asyncio.to_thread(daemon.log.read_text), lambda text: "retention.waits" in text)
    assert (await own.run(run.id)).id == run.id
    report = await own("PruneStorage")  # who asks for it by hand knows what time it is
    assert report.counts.runs == 1
