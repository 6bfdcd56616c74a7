"""Dispatcher and admission together against a fake database: whatever happens, the rows and the slots agree.

The fake database is a dict of runs, each with a state and one queued or claimed command at a time. Commits are
immediate; refills take turns of the loop, read at one moment and answer at another, and sometimes fail.
"""

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskforged.host import dispatcher as module
from taskforged.host.admission import Admission, Ticket
from taskforged.host.dispatcher import Dispatcher, Lane
from taskforged.host.limits import Limits, NamespaceLimits, QueueLimits

EXAMPLES = int(os.environ.get("TASKFORGE_TEST_EXAMPLES", "100"))
POOL = 4
NAMESPACES = (1, 2, 3)
QUEUES = ("default", "other")
SMALL = 3
"""A window of three: every other refill is one of many."""

ON_DISK = ("queued", "claiming", "failed")
"""What a read finds queued: also what has a slot whose start is not written, and what is to be offered again."""

some_limit = st.sampled_from((0, 0, 1, 1, 2, 3))
pick = st.integers(0, 1 << 30)


@dataclass
class Row:
    """A run, and the one command it has while it runs."""

    ticket: Ticket
    queue: str
    state: str = "new"  # new, pending, running, ended
    sequence: int = 0
    command: str = ""  # queued, claiming (slot, start not on disk yet), claimed, failed (queued, offered later), parked

    @property
    def key(self):
        return self.ticket.no, self.sequence

    @property
    def lane(self):
        return Lane(self.ticket.namespace_no, self.queue, self.ticket.priority)


class Slots(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patches = [
            mock.patch.object(module, "WINDOW", SMALL),
            mock.patch.object(module, "REFILL_RETRY_S", 0.0),
            mock.patch.object(module, "_log"),
        ]
        for patch in self.patches:
            patch.start()
        self.rows: dict[int, Row] = {}
        self.next_no = 1
        self.offers: list[tuple[tuple[int, int], Lane]] = []  # timers of the runner
        self.offered: set[tuple[int, int]] = set()
        self.failures = 0
        self.fault: AssertionError | None = None
        self.limits = Limits()
        self.boot()

    def teardown(self):
        try:
            self.finish_everything()
        finally:
            self.settle()
            self.loop.close()
            for patch in self.patches:
                patch.stop()

    # --- what stands around the two ----------------------------------------------------------------------------------

    def boot(self):
        """Build both from the rows alone: claims of earlier boots were decided, and their commands queued again."""
        self.offers.clear()
        self.offered.clear()
        limits, self.limits = self.limits, Limits()
        self.limits._namespaces, self.limits._queues = limits._namespaces, limits._queues
        self.dispatcher = Dispatcher(pool_size=POOL, limits=self.limits, load_queued=self.load_queued, claim=self.claim)
        self.admission = Admission(limits=self.limits, admit=self.admit)
        tickets = {
            state: [row.ticket for row in self.rows.values() if row.state == state] for state in ("pending", "running")
        }

        def start():
            self.admission.restore(tickets["running"], tickets["pending"])
            self.dispatcher.restore(Counter(row.lane for row in self.of("queued")).items())
            self.dispatcher.open()
            self.admission.open()

        self.within(start)

    async def load_queued(self, lane, after, limit):
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is away")
        keys = [row.key for row in self.rows.values() if row.lane == lane and row.command in ON_DISK]
        found = sorted(key for key in keys if key > after)[:limit]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return found

    def claim(self, key):
        try:
            self.begin(key)
        except AssertionError as fault:  # it may be raised in a refill, where nobody sees it
            self.fault = fault
            raise

    def begin(self, key):
        row = self.rows[key[0]]
        if row.key != key or row.command not in ("queued", "failed"):
            assert row.key != key or row.command not in ("claiming", "claimed"), "handed out twice"
            assert key in self.offered, "handed out, and nobody wants it"
            self.dispatcher.release(key)
            return
        self.check_step_room(row)
        row.command = "claiming"

    def admit(self, no):
        row = self.rows[no]
        assert row.state == "pending", "admitted twice, or not waiting"
        self.check_run_room(row)
        self.set_running(row)

    def check_step_room(self, row):
        mine, queue = self.limits.namespace(row.ticket.namespace_no), self.limits.queue(*row.lane[:2])
        held = [other for other in self.rows.values() if other.command in ("claiming", "claimed")]
        assert len(held) < POOL
        assert not queue.paused
        own = [other for other in held if other.ticket.namespace_no == row.ticket.namespace_no]
        assert not mine.running_steps or len(own) < mine.running_steps
        assert not queue.running_steps or sum(other.queue == row.queue for other in own) < queue.running_steps

    def check_run_room(self, row):
        assert self.run_has_room(row)

    def run_has_room(self, row):
        mine = self.limits.namespace(row.ticket.namespace_no)
        own = [
            other.ticket
            for other in self.rows.values()
            if other.state == "running" and other.ticket.namespace_no == row.ticket.namespace_no
        ]
        if not row.ticket.exempt and mine.running_runs and sum(not one.exempt for one in own) >= mine.running_runs:
            return False
        if not row.ticket.group:
            return True
        return not row.ticket.limit or sum(one.group == row.ticket.group for one in own) < row.ticket.limit

    def set_running(self, row):
        row.state = "running"
        self.next_command(row)

    def next_command(self, row):
        """The run wants its next step: at once with a slot when it can have one, else queued."""
        row.sequence += 1
        row.command = ""
        if self.dispatcher.try_take(row.key, row.lane):
            self.check_step_room(row)
            row.command = "claimed"
        else:
            row.command = "queued"
            self.dispatcher.enqueue(row.key, row.lane)

    def of(self, *commands):
        return [row for row in self.rows.values() if row.command in commands]

    def choose(self, rows, number):
        return rows[number % len(rows)] if rows else None

    def within(self, action, *arguments):
        """Act as a callback of the loop does: at once, and not after what the loop has still to do."""
        asyncio._set_running_loop(self.loop)
        try:
            action(*arguments)
        finally:
            asyncio._set_running_loop(None)

    def settle(self):
        async def until_read():
            while self.dispatcher._refills or any(
                line.refilling for line in self.dispatcher._lines.values() if self.dispatcher._open
            ):
                await asyncio.sleep(0)

        self.loop.run_until_complete(until_read())

    def finish_everything(self):
        self.failures = 0
        for no in NAMESPACES:
            self.within(self.limits.set_namespace, no, NamespaceLimits())
            for queue in QUEUES:
                self.within(self.limits.set_queue, no, queue, QueueLimits())
        while any(row.state != "ended" for row in self.rows.values()):
            while self.offers:
                self.a_failed_start_is_offered_again(0)
            for row in self.of("parked"):
                self.within(self.put_back, row)
            self.settle()
            for row in self.of("claiming"):
                row.command = "claimed"
            busy = self.of("claimed")
            assert busy, "work waits, and nothing runs"
            for row in busy:
                self.within(self.end_run, row)
        self.settle()
        assert self.dispatcher.running == self.admission.running() == self.admission.pending() == 0
        assert self.dispatcher.lanes() == []
        assert all(not space.running and not space.groups for space in self.admission._namespaces.values())
        assert all(not queue.running for queue in self.dispatcher._queues.values())

    def end_run(self, row):
        """A run ends or is cancelled, whatever it was doing."""
        key, had, row.state, row.command = row.key, row.command, "ended", ""
        if had in ("claimed", "claiming"):
            self.dispatcher.release(key)
        elif had in ("queued", "failed"):
            self.dispatcher.withdraw(key, row.lane)
        self.admission.free(row.ticket.no)

    def park(self, row):
        row.command = "parked"
        self.dispatcher.withdraw(row.key, row.lane)

    def fail(self, row):
        row.command = "failed"  # its row is still queued; it is offered again after a pause
        self.offers.append((row.key, row.lane))
        self.dispatcher.release(row.key)

    def offer(self, key, lane):
        row = self.rows[key[0]]
        if row.command == "failed" and row.key == key:
            row.command = "queued"
        else:
            self.offered.add(key)
        self.dispatcher.enqueue(key, lane)

    def put_back(self, row):
        row.command = "queued"
        self.dispatcher.enqueue(row.key, row.lane)

    # --- what may happen ---------------------------------------------------------------------------------------------

    @initialize(rows=st.integers(0, 12))
    def some_runs_are_there(self, rows):
        for number in range(rows):
            self.a_run_is_created(number, number, number % 3, 1, False)

    @rule(
        number=pick,
        priority=st.sampled_from((0, 5, 5, 9)),
        group=st.integers(0, 4),
        limit=some_limit,
        exempt=st.booleans(),
    )
    def a_run_is_created(self, number, priority, group, limit, exempt):
        namespace = NAMESPACES[number % 3]
        name = f"g{group}" if group < 2 else ""
        ticket = Ticket(
            self.next_no, namespace, min(priority, 9), name, limit if name else 0, exempt and number % 4 == 0
        )
        self.next_no += 1
        row = self.rows[ticket.no] = Row(ticket, QUEUES[number % 2])

        def create():
            room = self.run_has_room(row)
            if self.admission.try_admit(ticket):
                assert room
                self.set_running(row)
            else:
                row.state = "pending"
                self.admission.wait(ticket)

        self.within(create)

    @precondition(lambda self: self.dispatcher._refills)
    @rule(number=pick, comes=st.booleans())
    def lanes_change_in_the_middle_of_a_read(self, number, comes):
        self.time_passes(1)  # it has seen its rows, and has not answered yet
        lane = self.choose(sorted(lane for lane, line in self.dispatcher._lines.items() if line.refilling), number)
        rows = [row for row in self.of("queued", "claiming", "claimed") if row.lane == lane]
        if comes and lane:
            ticket = Ticket(self.next_no, lane.namespace_no, lane.priority, exempt=True)
            row = self.rows[ticket.no] = Row(ticket, lane.queue)
            self.next_no += 1
            assert self.admission.try_admit(ticket)
            self.within(self.set_running, row)
        elif rows:
            self.within(self.end_run, rows[-1 - number % len(rows)])

    @rule(number=pick, count=st.integers(5, 25))
    def a_flood_arrives(self, number, count):
        for _ in range(count):
            self.a_run_is_created(number, 5, 4, 0, False)

    @rule(number=pick)
    def a_creation_fails(self, number):
        ticket = Ticket(self.next_no, NAMESPACES[number % 3], 5, "g0" if number % 2 else "", 1)
        self.next_no += 1
        if self.admission.try_admit(ticket):
            self.within(self.admission.free, ticket.no)

    @rule(number=pick)
    def a_start_is_written(self, number):
        row = self.choose(self.of("claiming"), number)
        if row:
            row.command = "claimed"

    @rule(number=pick)
    def a_start_fails(self, number):
        row = self.choose(self.of("claiming"), number)
        if row:
            self.within(self.fail, row)

    @rule(number=pick)
    def a_failed_start_is_offered_again(self, number):
        """Also when it has been read from disk meanwhile, is at work, or is not wanted any more."""
        if self.offers:
            self.within(self.offer, *self.offers.pop(number % len(self.offers)))

    @rule(number=pick)
    def a_step_ends_and_another_follows(self, number):
        row = self.choose(self.of("claimed"), number)

        def follow():
            key, row.command = row.key, ""
            self.dispatcher.release(key)
            self.next_command(row)

        if row:
            self.within(follow)

    @rule(number=pick)
    def a_run_ends(self, number):
        row = self.choose(self.of("claimed"), number)
        if row:
            self.within(self.end_run, row)

    @rule(number=pick)
    def a_run_is_cancelled(self, number):
        row = self.choose([row for row in self.rows.values() if row.state != "ended"], number)
        if row:
            self.within(self.end_run, row)

    @rule(number=pick)
    def a_queued_command_is_parked(self, number):
        row = self.choose(self.of("queued"), number)
        if row:
            self.within(self.park, row)

    @rule(number=pick)
    def a_parked_command_comes_back(self, number):
        row = self.choose(self.of("parked"), number)
        if row:
            self.within(self.put_back, row)

    @rule(number=pick, weight=st.sampled_from((0.1, 1.0, 3.0)), steps=some_limit, runs=some_limit)
    def namespace_limits_change(self, number, weight, steps, runs):
        self.within(self.limits.set_namespace, NAMESPACES[number % 3], NamespaceLimits(weight, steps, runs))

    @rule(number=pick, steps=some_limit, priority=st.sampled_from((1, 5, 9)), paused=st.booleans())
    def queue_limits_change(self, number, steps, priority, paused):
        where = NAMESPACES[number % 3], QUEUES[number % 2]
        self.within(self.limits.set_queue, *where, QueueLimits(steps, priority, paused))

    @rule(turns=st.integers(1, 3))
    def time_passes(self, turns):
        async def pass_time():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_time())

    @rule()
    def everything_is_read(self):
        self.settle()

    @rule(count=st.integers(1, 2))
    def reads_fail(self, count):
        self.failures = count

    @precondition(lambda self: self.rows)
    @rule()
    def the_daemon_crashes(self):
        self.settle()
        self.dispatcher.close()
        for row in self.of("claimed"):  # lost: the next attempt is a new command
            row.sequence += 1
        for row in self.of("claimed", "claiming", "failed", "parked"):
            row.command = "queued"
        self.boot()

    # --- what must always hold ---------------------------------------------------------------------------------------

    @invariant()
    def nothing_went_wrong_in_a_refill(self):
        if self.fault is not None:
            raise self.fault

    @invariant()
    def slots_are_rows(self):
        assert self.dispatcher.held_by() == sorted(row.key for row in self.of("claiming", "claimed"))
        running = [row.ticket for row in self.rows.values() if row.state == "running"]
        pending = [row.ticket for row in self.rows.values() if row.state == "pending"]
        assert self.admission.running() == len(running)
        assert self.admission.pending() == len(pending)
        for no in NAMESPACES:
            counted = [one for one in running if one.namespace_no == no and not one.exempt]
            assert self.admission.running(no) == len(counted)
            for group in ("g0", "g1"):
                assert self.admission.group_members(no, group) == tuple(
                    [one.no for one in tickets if one.namespace_no == no and one.group == group]
                    for tickets in (running, pending)
                )

    @invariant()
    def whoever_can_run_runs(self):
        for row in self.rows.values():
            if row.state == "pending":
                first = not any(self.goes_before(other, row) for other in self.rows.values())
                assert not (first and self.run_has_room(row)), f"{row} waits for nothing"
                assert self.admission.blockers(row.ticket.no).kind != "none"
        if any(line.refilling for line in self.dispatcher._lines.values()):
            return
        assert self.dispatcher.running == POOL or not any(self.step_has_room(row) for row in self.of("queued"))

    def goes_before(self, other, row):
        """Whether another run stands in front of one, in the same line of the same group."""
        mine, its = row.ticket, other.ticket
        if (
            other.state != "pending"
            or not mine.group
            or (its.namespace_no, its.group) != (mine.namespace_no, mine.group)
        ):
            return False
        return its.exempt == mine.exempt and (-its.priority, its.no) < (-mine.priority, mine.no)

    def step_has_room(self, row):
        try:
            self.check_step_room(row)
        except AssertionError:
            return False
        return True

    @invariant()
    def memory_is_bounded(self):
        for line in self.dispatcher._lines.values():
            assert len(line.keys) <= 2 * SMALL
            assert len(line.late) <= 2 * SMALL
            assert not line.heap or line.heap[0] in line.keys
            assert not line.is_empty

    @invariant()
    def counts_are_right(self):
        if not self.of("failed", "claiming") and not self.offered:
            for lane, count in Counter(row.lane for row in self.of("queued")).items():
                assert self.dispatcher.waiting(lane) == count


TestSlots = Slots.TestCase
TestSlots.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
