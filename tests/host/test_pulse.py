"""The pulse: a blocked loop is measured, logged with its place, and told from a frozen process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog

from taskforged.host import pulse as module
from taskforged.host.pulse import BEAT_S, Pulse


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Pulse]]:
    made: list[Pulse] = []

    def build(**options: Any) -> Pulse:
        made.append(Pulse(options.pop("commit_began", lambda: 0.0), stall_s=options.pop("stall_s", 0.0)))
        made[-1].start()
        return made[-1]

    yield build
    for one in made:
        one.stop()


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_blocked_loop_is_logged_with_its_place_while_it_is_blocked(make):
    with structlog.testing.capture_logs() as lines:
        pulse = make(stall_s=0.2)
        await eventually(lambda: pulse.lag.count >= 2)
        hold_the_loop(1.0)
        seen = [line["event"] for line in lines]  # before the loop runs again
        await eventually(lambda: any(line["event"] == "loop.lagged" for line in lines))
    assert seen == ["loop.blocked"]
    blocked, lagged = (next(one for one in lines if one["event"] == name) for name in ("loop.blocked", "loop.lagged"))
    assert any(place.endswith(" hold_the_loop") for place in blocked["stack"])
    assert 0.2 <= blocked["blocked_s"] < 1.0
    assert lagged["lag_s"] >= 1.0 - 2 * BEAT_S
    assert pulse.stalls == 1


async def test_lags_are_counted_and_not_all_of_them_logged(make):
    with structlog.testing.capture_logs() as lines:
        pulse = make()
        for count in (1, 2, 3):
            hold_the_loop(module.LATE_S + 2 * BEAT_S)
            await eventually(lambda count=count: pulse.lag.count >= count)
    assert [line["event"] for line in lines] == ["loop.lagged"]
    assert pulse.lag.total >= 3 * module.LATE_S
    assert pulse.stalls == 0


async def test_without_a_stall_nothing_is_said(make):
    with structlog.testing.capture_logs() as lines:
        pulse = make(stall_s=5.0)
        await eventually(lambda: pulse.lag.count >= 3)
    assert lines == []
    assert pulse.is_alive(5.0)


async def test_silence_is_that_of_the_loop_and_that_of_the_journal(make):
    began = 0.0
    pulse = make(commit_began=lambda: began)
    await eventually(lambda: pulse.lag.count >= 1)
    assert pulse.journal_silence_s() == 0.0
    began = time.monotonic() - 60
    assert pulse.journal_silence_s() >= 60
    assert not pulse.is_alive(30.0)
    began = 0.0
    assert pulse.is_alive(30.0)
    hold_the_loop(0.5)
    assert not await asyncio.to_thread(pulse.is_alive, 0.0)


async def test_start_and_stop_can_be_repeated(make):
    pulse = make(stall_s=1.0)
    pulse.start()
    pulse.stop()
    pulse.stop()
    assert pulse.loop_silence_s() == 0.0
    pulse.start()
    count = pulse.lag.count
    await eventually(lambda: pulse.lag.count > count)
