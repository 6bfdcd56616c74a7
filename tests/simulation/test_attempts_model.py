"""Attempts, results, retries and crashes in any order, drawn by hypothesis, against a small model of what is promised.

The host is the real one (runner, dispatcher, timers, journal, SQLite) on a virtual clock. Its executor does nothing by
itself: rules say when an attempt succeeds, fails or is reported twice, when nothing comes for long, when the clocks
jump, and when the daemon dies, between two commits as well. The model knows runs of a few steps in a row with a retry
policy, and nothing of slots, mailboxes, outboxes or timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from simulation.virtual import Crash, Disk, Faults, Time, VirtualLoop, bury, ruled
from taskforged.clock import Clock, new_id
from taskforged.engine.events import AttemptCompleted, AttemptFailed, AttemptLost, CancelRun, CreateRun
from taskforged.engine.model import ActivitySpec, Backoff, Block, Jitter, RetryPolicy, Step, WorkflowModel
from taskforged.errors import FailedPreconditionError, NotFoundError
from taskforged.host.feed import Feed
from taskforged.host.limits import Limits
from taskforged.host.runner import Runner
from taskforged.host.timers import Timers
from taskforged.steps.base import Failed, Succeeded
from taskforged.store.changes import NewRun
from taskforged.store.store import Store
from taskforged.testing.fakes import Constant

EXAMPLES = int(os.environ.get("TASKFORGE_TEST_EXAMPLES", "50"))
POOL, TRIES, PAUSE_S, LOST_MAX, SOON_S = 3, 3, 2.0, 10, 0.01
POLICY = RetryPolicy(TRIES, Backoff.FIXED, PAUSE_S, PAUSE_S, Jitter.NONE)


def model_of(steps):
    chain = [
        Step(f"s{n}", "hand", ActivitySpec("hand", Constant({})), retry=POLICY, after=(n - 1,) if n else ())
        for n in range(steps)
    ]
    return WorkflowModel(f"w{steps}", Block(tuple(chain)))


MODELS = {steps: model_of(steps) for steps in (1, 2, 3)}


@dataclass
class Row:
    """What is promised about one run."""

    no: int
    steps: int
    at: int = 0
    attempt: int = 1
    failures: int = 0
    lost: int = 0
    not_before: float = 0.0
    is_unsure: bool = False
    may_be_late: bool = False
    state: str = "RUNNING"

    @property
    def key(self):
        return f"s{self.at}"

    def next_step(self):
        self.at, self.attempt, self.failures, self.lost, self.not_before = self.at + 1, 1, 0, 0, 0.0
        self.is_unsure = self.may_be_late = False
        if self.at == self.steps:
            self.state = "SUCCEEDED"


class Prompt(Faults):
    def delay_s(self):
        return 0.0


class NoLogs:
    def logger(self, *_):
        return lambda *_: None

    def has_lines(self, *_):
        return False

    def end(self, *_):
        """They said nothing."""


class Attempts(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.logs = capture_logs()
        self.logs.__enter__()
        self.time, self.disk, self.ids = Time(), Disk(), Random(0)
        self.rows, self.over, self.epoch = {}, [], 0
        self.boot()

    def teardown(self):
        bury(self.loop)
        self.logs.__exit__(None, None, None)

    # --- the daemon --------------------------------------------------------------------------------------------------

    def boot(self):
        self.epoch += 1
        self.jumped = False
        self.hand, self.faults = {}, Prompt(Random(self.epoch))
        self.loop = VirtualLoop(self.time)
        self.wait(self.start())

    async def start(self):
        with self.disk.serving(self.faults):
            self.store = Store(Path("nowhere"))
        await self.store.start()
        clock = self.clock = Clock(self.time.time_ns, lambda: round(self.time.now_s * 1e9))
        self.runner = Runner(
            store=self.store,
            clock=clock,
            feed=Feed(),
            models=self,
            executors={"hand": self},
            secret=None,
            logs=NoLogs(),
            limits=Limits(),
            pool_size=POOL,
        )
        self.timers = Timers(store=self.store, clock=clock, runner=self.runner)
        await self.runner.start(self.epoch)
        await self.timers.start()

    async def model(self, workflow_no, _):
        return MODELS[workflow_no]

    async def execute(self, task):
        key = task.idempotency_key
        assert key not in self.hand, "the same step is executed twice at the same time"
        future = asyncio.get_running_loop().create_future()
        self.hand[key] = (task.attempt, future)
        assert len(self.hand) <= POOL
        try:
            return await future
        finally:
            self.hand.pop(key, None)

    def wait(self, work=None):
        """Let everything happen that can happen now; a moment of virtual time passes."""

        async def all_of_it():
            done = await work if work is not None else None
            await asyncio.sleep(SOON_S)
            return done

        with ruled(self.time, self.ids):
            return self.loop.run_until_complete(all_of_it())

    def die(self):
        bury(self.loop)
        if self.disk.connection.in_transaction:
            self.disk.connection.execute("ROLLBACK")
        began = {no for (no,) in self.disk.rows("SELECT run_no FROM commands WHERE epoch > 0")}
        cut = [row for row in self.going() if row.no in began]  # told or not: their start is on disk
        for row in self.going():  # what a clock was set to meanwhile, nobody can tell the next process
            row.is_unsure = row.is_unsure or (self.jumped and row.not_before > self.time.now_s - 1.0)
        for row in cut:
            row.lost += 1
            row.attempt += 1
            if row.lost > LOST_MAX:
                row.state = "DEAD"
        self.boot()

    # --- looking -----------------------------------------------------------------------------------------------------

    def going(self):
        return [row for row in self.rows.values() if row.state == "RUNNING"]

    def attempt_of(self, row):
        return self.hand.get(f"{self.run_id(row)}/{row.key}")

    def run_id(self, row):
        return self.disk.value("SELECT id FROM runs WHERE no = ?", row.no)

    def pick_busy(self, number):
        busy = [row for row in self.going() if self.attempt_of(row)]
        return busy[number % len(busy)] if busy else None

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(steps=st.sampled_from((1, 2, 3)))
    def a_run_is_started(self, steps):
        self.wait(self.create(steps))

    async def create(self, steps):
        create = CreateRun(new_id("run", self.clock.now()), "default", f"w{steps}", 1, {})
        prepared = self.runner.prepare(MODELS[steps], NewRun(1, steps), create)
        await self.runner.create([prepared])
        self.rows[prepared.no] = Row(prepared.no, steps)

    @rule(number=st.integers(0, 99))
    def an_attempt_succeeds(self, number):
        row = self.pick_busy(number)
        if row is not None:
            self.end(row, Succeeded({}))
            row.next_step()

    @rule(number=st.integers(0, 99), retryable=st.booleans(), after_s=st.sampled_from((None, None, 30.0)))
    def an_attempt_fails(self, number, retryable, after_s):
        row = self.pick_busy(number)
        if row is None:
            return
        began = self.time.now_s
        self.end(row, Failed("broken", "it broke", retryable=retryable, retry_after_s=after_s))
        row.failures += 1
        row.attempt += 1
        if not retryable:
            row.state = "FAILED"
        elif row.failures == TRIES:
            row.state = "DEAD"
        else:
            row.not_before = began + max(PAUSE_S, after_s or 0.0)
            row.is_unsure = row.may_be_late = False

    def end(self, row, outcome):
        seq = self.disk.value("SELECT sequence FROM commands WHERE run_no = ? AND epoch > 0", row.no)
        self.over.append((row.no, seq))
        _, future = self.attempt_of(row)
        future.set_result(outcome)
        self.wait()

    @precondition(lambda self: self.over)
    @rule(number=st.integers(0, 99), kind=st.integers(0, 2))
    def a_result_comes_twice_or_late(self, number, kind):
        """Also one of an earlier boot, and one that says something else: refused, and nothing has changed."""
        no, seq = self.over[number % len(self.over)]
        error = {"code": "late", "message": "late"}
        late = (AttemptCompleted(seq, {"late": 1}), AttemptFailed(seq, error, retryable=True), AttemptLost(seq, "late"))
        try:
            self.wait(self.runner.deliver(no, late[kind]))
        except (FailedPreconditionError, NotFoundError):
            self.wait()
            return
        raise AssertionError("a result was taken that nobody waited for")

    @rule(seconds=st.sampled_from((0.5, 1.0, 3.0, 40.0)))
    def nothing_comes_for_a_while(self, seconds):
        self.wait(asyncio.sleep(seconds))

    @rule(seconds=st.sampled_from((3600.0, 400 * 86_400.0, -10.0, -600.0, -3600.0, 0.3)))
    def the_wall_clock_jumps(self, seconds):
        self.jumped = True
        self.time.jump(seconds)
        for row in self.going():  # set back, it may stand still for as long as nobody looked at it: late, never early
            row.may_be_late = row.may_be_late or (seconds < 0 and row.not_before > self.time.now_s - 1.0)
        self.wait()

    @precondition(lambda self: self.going())
    @rule(number=st.integers(0, 99))
    def a_run_is_cancelled(self, number):
        rows = self.going()
        row = rows[number % len(rows)]
        if self.attempt_of(row):
            self.over.append((row.no, self.disk.value("SELECT sequence FROM commands WHERE run_no = ?", row.no)))
        self.wait(self.runner.deliver(row.no, CancelRun("by a person")))
        row.state = "CANCELLED"

    @rule()
    def the_daemon_dies(self):
        self.die()

    @rule(number=st.integers(0, 99), before=st.booleans())
    def the_daemon_dies_while_a_result_is_written(self, number, before):
        row = self.pick_busy(number)
        if row is None:
            return
        seq = self.disk.value("SELECT sequence FROM commands WHERE run_no = ? AND epoch > 0", row.no)
        self.faults.crash_in, self.faults._before = 0, before
        _, future = self.attempt_of(row)
        future.set_result(Succeeded({}))
        with contextlib.suppress(Crash):
            self.wait()
        left = "SELECT count(*) FROM commands WHERE run_no = ? AND sequence = ?"
        assert self.disk.value(left, row.no, seq) == before
        if not before:
            self.over.append((row.no, seq))
            row.next_step()
        self.die()

    # --- what must always hold ---------------------------------------------------------------------------------------

    @invariant()
    def what_is_stored_is_what_was_promised(self):
        stored = dict(self.disk.rows("SELECT no, state FROM runs"))
        assert stored == {row.no: row.state for row in self.rows.values()}
        assert not self.loop.faults, self.loop.faults

    @invariant()
    def attempts_are_those_that_should_be(self):
        now, expected = self.time.now_s, {f"{self.run_id(row)}/{row.key}": row for row in self.going()}
        assert set(self.hand) <= set(expected), "something is executed that should not be"
        for key, (attempt, _) in self.hand.items():
            row = expected[key]
            assert attempt == row.attempt, f"{row} is at attempt {attempt}"
            assert row.is_unsure or now >= row.not_before - SOON_S, f"{row} was retried too early"
        told = [row for row in expected.values() if not row.is_unsure and not row.may_be_late]
        ready = [row for row in told if now > row.not_before + 0.1]
        idle = [row for row in ready if not self.attempt_of(row)]
        assert not idle or len(self.hand) == POOL, f"{idle} wait for nothing"

    @invariant()
    def slots_are_attempts(self):
        assert self.runner.dispatcher.running == len(self.hand)
        assert self.disk.value("SELECT count(*) FROM commands WHERE epoch > 0") == len(self.hand)


TestAttempts = pytest.mark.timeout(3600)(Attempts.TestCase)
TestAttempts.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
