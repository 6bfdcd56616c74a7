"""What a clock that is set does to pauses and to times that somebody named: with the host on a real store."""

import asyncio
import threading
import time

import pytest

from taskforged.clock import Clock
from taskforged.engine.model import Block, Jitter, RetryPolicy, SleepSpec, Step, WorkflowModel
from taskforged.engine.states import RunState
from taskforged.errors import UnavailableError
from taskforged.host import timers as timers_module
from taskforged.steps.base import Failed
from taskforged.store.audit import CURRENT, Entry, taken

from .test_runner import Constant, activity, make, until  # noqa: F401  the fixture

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR

PAUSE = RetryPolicy(max_attempts=2, delay_s=60.0, max_delay_s=60.0, jitter=Jitter.NONE)
RETRIED = WorkflowModel("retried", Block((activity("a", retry=PAUSE),)), timeout_s=90.0)
SHORT = WorkflowModel("short", Block((Step("s", "sleep", SleepSpec(duration=Constant(0.05))),)))


def until_time(at):
    return WorkflowModel("until", Block((Step("s", "sleep", SleepSpec(until=Constant(at))),)))


class Turned:
    """The wall clock, and what somebody has set it to."""

    def __init__(self):
        self.by = 0

    def __call__(self):
        return time.time_ns() + self.by * 1000

    def now(self):
        return self() // 1000


@pytest.fixture
async def turned(make):  # noqa: F811
    host = await make()
    clock = Turned()
    host.make_clock = lambda: Clock(clock)
    await host.crash()
    return host, clock


async def waiting(host, model=RETRIED):
    """Answer a run that waits to be tried again."""
    host.work.answers.append(Failed("network", "no", retryable=True))
    calls = len(host.work.calls)
    (no,) = await host.run(model)
    await until(lambda: len(host.work.calls) > calls)
    for _ in range(1000):
        if len(await timers_of(host, no)) == 2:
            return no
        await asyncio.sleep(0.005)
    raise AssertionError("it does not wait")


async def timers_of(host, no):
    sql = "SELECT due_at, set_at FROM timers WHERE run_no = ? ORDER BY due_at"
    return await host.store.read(lambda c: c.execute(sql, (no,)).fetchall())


def left_s(host, rows):
    """How long timers still take, by the clock that they are measured by."""
    return [(due_at - host.clock.now()) / SECOND for due_at, _ in rows]


async def settled(host):
    """Let the timers notice."""
    host.clock.now()
    await until(lambda: not host.timers._jumps)
    await host.timers.run_once()


@pytest.mark.parametrize("jump", [2 * SECOND, HOUR, 400 * DAY])
async def test_a_jump_forward_shortens_no_pause_and_no_timeout(turned, jump):
    host, clock = turned
    no = await waiting(host)
    before = await timers_of(host, no)
    clock.by += jump
    await settled(host)
    after = await timers_of(host, no)
    for (due_at, _), (moved_to, _) in zip(before, after, strict=True):
        assert 0 <= jump - (moved_to - due_at) < SECOND // 2 or 0 <= moved_to - due_at - jump < SECOND // 2
    assert len(host.work.calls) == 1
    assert (await host.state(no)).state is RunState.RUNNING
    # What begins afterwards is not moved, also by a jump that comes then.
    second = await waiting(host)
    assert all(left <= 90 for left in left_s(host, await timers_of(host, second)))
    clock.by += jump
    await settled(host)
    for one in (no, second):
        lefts = left_s(host, await timers_of(host, one))
        assert 20 < lefts[0] <= 60 < lefts[1] <= 90.5, lefts


async def test_a_clock_that_is_corrected_a_little_moves_nothing(turned):
    host, clock = turned
    no = await waiting(host)
    before = await timers_of(host, no)
    for _ in range(20):
        clock.by += SECOND // 10
        host.clock.now()
    assert not host.timers._jumps
    assert await timers_of(host, no) == before


async def test_a_jump_back_lengthens_no_pause(turned):
    host, clock = turned
    clock.by -= HOUR
    numbers = await host.run(SHORT)
    (run,) = await host.ended(numbers)
    assert run.state is RunState.SUCCEEDED


@pytest.mark.parametrize("jump", [HOUR, 400 * DAY])
async def test_a_clock_that_was_set_back_while_nobody_ran_lengthens_no_pause(turned, jump):
    host, clock = turned
    no = await waiting(host)
    clock.by -= jump
    await host.crash()
    lefts = left_s(host, await timers_of(host, no))
    assert 55 < lefts[0] <= 60 < lefts[1] <= 90, lefts
    await host.crash()
    again = left_s(host, await timers_of(host, no))
    assert all(one <= before for one, before in zip(again, lefts, strict=True)), "only the first start begins them anew"


async def test_a_downtime_counts(turned):
    host, clock = turned
    no = await waiting(host)
    clock.by += HOUR
    await host.crash()
    (run,) = await host.ended([no])
    assert run.state in {RunState.SUCCEEDED, RunState.FAILED}, "what fell due meanwhile happens at once"


async def test_a_time_that_is_named_comes_with_the_clock_on_the_wall(turned):
    host, clock = turned
    (no,) = await host.run(until_time(clock.now() + HOUR))
    clock.by += HOUR
    await settled(host)
    (run,) = await host.ended([no])
    assert run.state is RunState.SUCCEEDED


async def test_a_time_that_is_named_waits_for_a_clock_that_was_ahead(turned, monkeypatch):
    host, clock = turned
    clock.by += 400 * DAY
    await settled(host)
    clock.by -= 400 * DAY
    (no,) = await host.run(until_time(clock.now() + HOUR))
    assert await host.timers.run_once() <= timers_module.SLEEP_S_MAX
    (short,) = await host.run(SHORT)
    await host.ended([short])
    assert (await host.state(no)).state is RunState.RUNNING, "the engine's time is far ahead of it"
    clock.by += HOUR
    host.timers.wake()
    await host.ended([no])


async def test_nothing_fires_before_the_timers_were_moved(turned, monkeypatch):
    monkeypatch.setattr(timers_module, "_FAILURE_PAUSE_S", 0.01)
    host, clock = turned
    no = await waiting(host)
    journal, real, refused = host.store.journal, host.store.journal.submit, []

    def refuse(write):
        if len(refused) < 3:
            refused.append(write)
            future = asyncio.get_running_loop().create_future()
            future.set_exception(UnavailableError("the disk is full"))
            return future
        return real(write)

    monkeypatch.setattr(journal, "submit", refuse)
    clock.by += HOUR
    host.clock.now()
    await until(lambda: len(refused) == 3 and not host.timers._jumps)
    assert len(host.work.calls) == 1
    assert left_s(host, await timers_of(host, no))[0] > 20


async def test_who_asks_for_the_time_keeps_the_record_of_the_audit(turned):
    host, clock = turned
    entry = Entry(host.clock.now, ("", "", "", "", "", ""), None)
    token = CURRENT.set(entry)
    try:
        clock.by += HOUR
        host.clock.now()
        assert host.timers._jumps
        assert taken() is entry, "it belongs to what the caller is about to write"
    finally:
        CURRENT.reset(token)
    await settled(host)


async def test_another_thread_that_asks_for_the_time_is_not_told_of_a_jump(turned):
    host, clock = turned
    no = await waiting(host)
    before = host.clock.now()
    clock.by += HOUR
    told = []
    thread = threading.Thread(target=lambda: told.append(host.clock.now()))
    thread.start()
    thread.join()
    assert told[0] - before < 30 * SECOND, "the loop has not seen it yet"
    await settled(host)
    assert host.clock.now() - before >= HOUR
    assert left_s(host, await timers_of(host, no))[0] > 20


async def test_a_start_that_is_named_waits_for_a_clock_that_was_ahead(turned):
    host, clock = turned
    clock.by += HOUR
    await settled(host)
    clock.by -= HOUR
    (no,) = await host.run(SHORT, run_at=clock.now() + HOUR // 2)
    await host.timers.run_once()
    assert (await host.state(no)).state is RunState.SCHEDULED, "the engine's time is past it, the wall's is not"
    clock.by += HOUR // 2
    host.timers.wake()
    await host.ended([no])


async def test_a_jump_finds_pauses_that_are_just_being_written(turned):
    host, clock = turned
    gate = threading.Event()
    journal = host.store.journal
    busy = asyncio.ensure_future(journal.execute(lambda _: gate.wait(10)))
    await until(lambda: journal.stats.commit_began)  # what comes now waits together, for the next commit
    long = WorkflowModel("long", Block((Step("s", "sleep", SleepSpec(duration=Constant(60.0))),)))
    started = asyncio.ensure_future(host.run(long))
    await until(lambda: journal.waiting)
    clock.by += HOUR
    host.clock.now()
    gate.set()
    await busy
    (no,) = await started
    await until(lambda: not host.timers._jumps)
    (left,) = left_s(host, await timers_of(host, no)) or [0.0]
    assert 50 < left <= 60
    assert (await host.state(no)).state is RunState.RUNNING
