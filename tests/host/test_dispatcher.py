"""The dispatcher: who gets a slot, in what order, and what it holds in memory."""

import asyncio
from collections import Counter

import pytest

from taskforged.host import dispatcher as module
from taskforged.host.dispatcher import GUARD_EVERY, WINDOW, Dispatcher, Lane
from taskforged.host.limits import FairShare, Limits, NamespaceLimits, QueueLimits

A, B = Lane(1, "default", 5), Lane(2, "default", 5)


class Pool:
    """A dispatcher over a fake outbox: `rows` has what is queued, `begun` what was handed out, in order."""

    def __init__(self, size=1, *, limits=None, is_open=True):
        self.limits = limits or Limits()
        self.rows: dict[tuple[int, int], Lane] = {}
        self.begun: list[tuple[int, int]] = []
        self.since: dict[tuple[int, int], int] = {}
        self.reads: list[tuple[Lane, tuple[int, int], int]] = []
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.on_claim = lambda key: None
        self.dispatcher = Dispatcher(pool_size=size, limits=self.limits, load_queued=self.load_queued, claim=self.claim)
        if is_open:
            self.dispatcher.open()

    async def load_queued(self, lane, after, limit):
        self.reads.append((lane, after, limit))
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is away")
        found = sorted(key for key, where in self.rows.items() if where == lane and key > after)[:limit]
        await self.gate.wait()
        return found

    def claim(self, key):
        self.rows.pop(key, None)
        self.begun.append(key)
        self.since[key] = len(self.begun)
        self.on_claim(key)

    def put(self, *keys, lane=A):
        for key in keys:
            self.rows[key] = lane
            self.dispatcher.enqueue(key, lane)

    def restore(self, rows):
        self.rows.update(rows)
        self.dispatcher.restore(Counter(rows.values()).items())
        self.dispatcher.open()

    def withdraw(self, key, lane=A):
        self.rows.pop(key, None)
        self.dispatcher.withdraw(key, lane)

    async def work(self, most=100_000):
        """Finish what runs, one after the other, until nothing runs any more; answers what began meanwhile."""
        start = len(self.begun)
        for _ in range(most):
            await self.settle()
            held = self.dispatcher.held_by()
            if not held:
                break
            self.dispatcher.release(min(held, key=self.since.__getitem__))
        return self.begun[start:]

    async def settle(self):
        while self.gate.is_set() and self.dispatcher._refills:
            await asyncio.sleep(0)


def held(*numbers):
    return [(no, 0) for no in numbers]


async def test_a_slot_is_taken_once_and_given_back_once():
    pool = Pool(1)
    assert pool.dispatcher.try_take((1, 0), A)
    assert pool.dispatcher.try_take((2, 0), A) is False
    assert pool.dispatcher.running == 1
    assert pool.dispatcher.held_by() == [(1, 0)]
    for _ in range(3):
        pool.dispatcher.release((1, 0))
    assert pool.dispatcher.running == 0
    assert pool.dispatcher.try_take((2, 0), A)


async def test_nothing_is_handed_out_before_open_and_after_close():
    pool = Pool(2, is_open=False)
    pool.put((1, 0))
    assert pool.dispatcher.try_take((2, 0), A) is False
    pool.dispatcher.open()
    assert pool.begun == held(1)
    pool.dispatcher.close()
    pool.put((3, 0))
    pool.dispatcher.release((1, 0))
    assert pool.begun == held(1)
    assert pool.dispatcher.try_take((4, 0), A) is False


async def test_a_lane_goes_by_age_also_when_an_old_run_comes_late():
    pool = Pool(1)
    pool.put((9, 0), (5, 0), (5, 2), (5, 1), (1, 7), (7, 0))
    assert await pool.work() == [(1, 7), (5, 0), (5, 1), (5, 2), (7, 0)]


async def test_the_queue_s_priority_goes_before_the_run_s_and_both_before_age():
    limits = Limits()
    limits.set_queue(1, "urgent", QueueLimits(priority=8))
    pool = Pool(1, limits=limits)
    pool.put((1, 0), lane=Lane(1, "default", 0))
    pool.put((2, 0), lane=Lane(1, "default", 0))
    pool.put((3, 0), lane=Lane(1, "default", 9))
    pool.put((4, 0), lane=Lane(1, "urgent", 0))
    pool.put((5, 0), lane=Lane(1, "urgent", 1))
    assert await pool.work() == held(5, 4, 3, 2)


async def test_a_changed_queue_priority_counts_from_the_next_hand_out():
    pool = Pool(1)
    pool.put((1, 0), (2, 0))
    pool.put((3, 0), lane=Lane(1, "other", 5))
    pool.limits.set_queue(1, "other", QueueLimits(priority=6))
    assert await pool.work() == held(3, 2)


async def test_a_flood_of_one_namespace_does_not_delay_another():
    pool = Pool(4)
    pool.put(*((no, 0) for no in range(1, 10_001)))
    await pool.work(100)
    before = len(pool.begun)
    pool.put((20_000, 0), lane=B)
    await pool.work(4)
    assert (20_000, 0) in pool.begun[before : before + 4]


async def test_shares_follow_the_weights():
    pool = Pool(2)
    pool.limits.set_namespace(1, NamespaceLimits(weight=3.0))
    pool.put(*((no, 0) for no in range(1, 401)), lane=A)
    pool.put(*((no, 0) for no in range(401, 801)), lane=B)
    begun = await pool.work(400)
    count = sum(no <= 400 for no, _ in begun)
    assert 295 <= count <= 305
    for start in range(0, 360, 40):  # and not in bursts
        assert 28 <= sum(no <= 400 for no, _ in begun[start : start + 40]) <= 32


async def test_a_changed_weight_counts_at_once_and_leaves_no_debt():
    pool = Pool(1)
    pool.limits.set_namespace(1, NamespaceLimits(weight=0.001))
    pool.put(*((no, 0) for no in range(1, 401)), lane=A)
    pool.put(*((no, 0) for no in range(401, 801)), lane=B)
    await pool.work(20)
    pool.limits.set_namespace(1, NamespaceLimits(weight=1.0))
    begun = await pool.work(100)
    assert 45 <= sum(no <= 400 for no, _ in begun) <= 55


async def test_nobody_saves_up_a_credit_and_nobody_is_punished():
    pool = Pool(1)
    pool.put(*((no, 0) for no in range(1, 301)), lane=A)
    pool.put(*((no, 0) for no in range(1001, 1301)), lane=Lane(3, "default", 5))
    await pool.work(200)  # B had nothing to do, all this time
    pool.put(*((no, 0) for no in range(2001, 2301)), lane=B)
    begun = await pool.work(60)
    counts = Counter(no // 1000 for no, _ in begun)
    assert all(19 <= counts[no] <= 21 for no in range(3)), "a turn more or less is the guard's"


async def test_who_was_outranked_saves_up_no_credit_against_newcomers():
    pool = Pool(1)
    pool.put((1, 0), lane=Lane(9, "default", 9))
    pool.put(*((no, 0) for no in range(1001, 1400)), lane=Lane(1, "default", 3))
    for start in (5001, 6001):  # two that compete at a higher rank
        pool.put(*((no, 0) for no in range(start, start + 150)), lane=Lane(start, "default", 7))
    await pool.work(290)
    pool.put(*((no, 0) for no in range(2001, 2101)), lane=Lane(2, "default", 3))
    begun = await pool.work(100)
    low = [no // 1000 for no, _ in begun if no < 5000][-60:]
    assert 25 <= low.count(2) <= 35


async def test_who_used_its_priority_is_not_punished_for_it_below():
    pool = Pool(1)
    high = [Lane(no, "default", 7) for no in (1, 2)]
    pool.put(*((no, 0) for no in range(1, 101)), lane=high[0])
    pool.put(*((no, 0) for no in range(101, 201)), lane=high[1])
    pool.put(*((no, 0) for no in range(1001, 1101)), lane=A)
    pool.put(*((no, 0) for no in range(2001, 2101)), lane=Lane(3, "default", 5))
    begun = await pool.work(260)
    low = [no // 1000 for no, _ in begun if no > 1000][-40:]
    assert 15 <= low.count(1) <= 25


async def test_hand_outs_of_one_rank_leave_the_shares_of_another_alone():
    pool = Pool(1)
    pool.put((1, 0), lane=Lane(9, "default", 9))
    pool.put(*((no, 0) for no in range(1001, 1101)), lane=A)
    pool.put(*((no, 0) for no in range(2001, 2101)), lane=B)
    for round_no in range(60):
        for namespace in (7, 8):
            numbers = range(9000 + 100 * round_no + namespace, 9100 + 100 * round_no, 30)
            pool.put(*((no, 0) for no in numbers), lane=Lane(namespace, "default", 9))
        await pool.work(9)
    low = Counter(no // 1000 for no, _ in pool.begun if 1000 < no < 9000)
    assert abs(low[1] - low[2]) <= 12, "but for the guard's turns, which know only their own account"
    assert low[2] >= 20


async def test_strict_priority_starves_nobody():
    pool = Pool(1)
    pool.put((1, 0), lane=Lane(1, "default", 9))
    pool.put((2, 0), lane=Lane(1, "default", 0))
    pool.on_claim = lambda key: pool.put((key[0] + 10, 0), lane=Lane(1, "default", 9))
    pool.put(*((no, 0) for no in range(3, 10)), lane=Lane(1, "default", 9))
    begun = await pool.work(GUARD_EVERY + 1)
    assert (2, 0) in begun


async def test_priorities_hold_but_for_the_guard():
    pool = Pool(1)
    pool.put((1, 0), lane=Lane(1, "default", 9))
    pool.put(*((no, 0) for no in range(1000, 1200)), lane=Lane(1, "default", 9))
    pool.put(*((no, 0) for no in range(2, 200)), lane=Lane(1, "default", 0))
    begun = await pool.work(160)
    assert sum(no < 1000 for no, _ in begun) == 160 // GUARD_EVERY


async def test_a_paused_queue_starts_nothing_and_holds_up_nobody():
    pool = Pool(2)
    pool.limits.set_queue(1, "default", QueueLimits(paused=True))
    pool.put((1, 0))
    assert pool.dispatcher.try_take((2, 0), A) is False
    assert pool.dispatcher.try_take((3, 0), Lane(1, "other", 0))
    pool.put((4, 0), lane=B)
    assert pool.begun == held(4)
    pool.dispatcher.release((4, 0))
    assert pool.begun == held(4)
    pool.limits.set_queue(1, "default", QueueLimits())
    assert pool.begun == held(4, 1)


async def test_a_full_namespace_and_a_full_queue_hold_up_only_themselves():
    limits = Limits()
    limits.set_namespace(1, NamespaceLimits(running_steps=2))
    limits.set_queue(1, "narrow", QueueLimits(running_steps=1))
    pool = Pool(10, limits=limits)
    narrow = Lane(1, "narrow", 5)
    pool.put((1, 0), (2, 0), lane=narrow)
    pool.put((3, 0), (4, 0))
    pool.put((5, 0), lane=B)
    assert pool.begun == held(1, 3, 5)
    assert pool.dispatcher.try_take((6, 0), Lane(1, "third", 9)) is False, "the namespace is full"
    assert pool.dispatcher.try_take((7, 0), Lane(2, "narrow", 5)), "a queue of that name elsewhere is not"
    pool.dispatcher.release((3, 0))
    assert pool.begun == held(1, 3, 5, 4), "the queue of the older one is still full"
    pool.dispatcher.release((1, 0))
    assert pool.begun == held(1, 3, 5, 4, 2)
    assert pool.dispatcher.held_by(1) == held(2, 4)
    assert pool.dispatcher.held_by(1, "narrow") == held(2)
    assert pool.dispatcher.held_by(queue="narrow") == held(2, 7)


async def test_a_lowered_limit_takes_no_slot_away_and_a_raised_one_counts_at_once():
    pool = Pool(10)
    pool.put(*held(*range(1, 5)))
    pool.limits.set_namespace(1, NamespaceLimits(running_steps=2))
    pool.put(*held(5, 6, 7))
    assert pool.dispatcher.running == 4
    for no in (1, 2):
        pool.dispatcher.release((no, 0))
    assert pool.begun == held(1, 2, 3, 4)
    pool.dispatcher.release((3, 0))
    assert pool.begun == held(1, 2, 3, 4, 5)
    pool.limits.set_namespace(1, NamespaceLimits())
    assert pool.begun == held(1, 2, 3, 4, 5, 6, 7)


async def test_a_newcomer_does_not_overtake_what_is_being_read_for_the_same_limit():
    limits = Limits()
    limits.set_namespace(2, NamespaceLimits(running_steps=1))
    pool = Pool(3, limits=limits, is_open=False)
    pool.gate.clear()
    pool.restore({(1, 0): A, (2, 0): B})
    assert pool.dispatcher.try_take((9, 0), A) is False
    assert pool.dispatcher.try_take((9, 1), Lane(2, "other", 9)) is False
    assert pool.dispatcher.try_take((9, 2), Lane(1, "other", 5)), "nothing that it needs is spoken for"
    pool.gate.set()
    await pool.settle()
    assert set(pool.begun) == {(1, 0), (2, 0)}


async def test_a_newcomer_does_not_overtake_in_the_middle_of_a_hand_out():
    pool = Pool(2)
    pool.put(*held(1, 2, 3, 4))
    taken = []
    pool.on_claim = lambda key: taken.append(pool.dispatcher.try_take((key[0] + 10, 0), A))
    pool.dispatcher.close()
    for no in (1, 2):
        pool.dispatcher.release((no, 0))
    pool.dispatcher.open()
    assert taken == [False, False]
    assert pool.begun == held(1, 2, 3, 4)


async def test_a_backlog_on_disk_is_read_in_windows_and_in_order():
    pool = Pool(3, is_open=False)
    pool.restore({(no, 0): A for no in range(1, 3001)})
    assert pool.dispatcher.waiting(A) == 3000
    assert await pool.work() == held(*range(1, 3001))
    assert {limit for _, _, limit in pool.reads} == {WINDOW}
    assert len(pool.reads) <= 3000 // WINDOW + 2
    assert pool.dispatcher.lanes() == []


async def test_memory_is_bounded_under_a_flood():
    pool = Pool(1)
    pool.put(*((no, 0) for no in range(20_000, 0, -1)))
    line = pool.dispatcher._lines[A]
    assert len(line.keys) <= 2 * WINDOW
    assert len(line.heap) <= 5 * WINDOW
    assert pool.dispatcher.waiting(A) == 19_999
    begun = await pool.work()
    assert begun == held(*range(1, 20_000))
    assert pool.dispatcher.waiting(A) == 0


async def test_what_is_enqueued_while_a_refill_is_under_way_is_not_lost():
    pool = Pool(2, is_open=False)
    pool.gate.clear()
    pool.restore({(no, 0): A for no in range(1, 11)})
    await asyncio.sleep(0)  # the read has seen ten
    pool.put((5, 1), (20, 0), (0, 1))
    pool.gate.set()
    begun = await pool.work()
    assert pool.begun == sorted([*held(*range(1, 11)), (5, 1), (20, 0), (0, 1)])
    assert begun == pool.begun


@pytest.mark.parametrize("on_disk", [3, 1000])
@pytest.mark.parametrize("order", [1, -1])
async def test_a_flood_while_a_refill_is_under_way_is_bounded_and_loses_nothing(order, on_disk):
    pool = Pool(2, is_open=False)
    pool.gate.clear()
    pool.restore({(no, 1): A for no in range(1, on_disk + 1)})
    await asyncio.sleep(0)
    pool.put(*((no, 0) for no in list(range(1, 4001))[::order]))
    assert len(pool.dispatcher._lines[A].late) <= 2 * WINDOW
    pool.gate.set()
    await pool.work()
    assert pool.begun == sorted([*((no, 1) for no in range(1, on_disk + 1)), *((no, 0) for no in range(1, 4001))])


async def test_what_is_withdrawn_is_not_handed_out_wherever_it_waits():
    pool = Pool(1, is_open=False)
    pool.gate.clear()
    pool.restore({(no, 0): A for no in range(1, 1001)})
    await asyncio.sleep(0)
    for no in (2, 250, 251):  # the read has seen the first two
        pool.withdraw((no, 0))
    pool.gate.set()
    await pool.settle()
    assert pool.begun == held(1)
    for no in (3, 5, 200, 900):
        pool.withdraw((no, 0))
    assert pool.dispatcher.waiting(A) == len(pool.rows) == 992
    await pool.work()
    assert {no for no, _ in pool.begun} == set(range(1, 1001)) - {2, 3, 5, 200, 250, 251, 900}


async def test_what_came_and_went_while_a_refill_was_under_way_is_not_handed_out():
    pool = Pool(3, is_open=False)
    pool.gate.clear()
    pool.restore({(1, 0): A})
    await asyncio.sleep(0)
    pool.put((20, 0))
    pool.withdraw((20, 0))
    pool.gate.set()
    await pool.settle()
    assert pool.begun == held(1)
    assert pool.dispatcher.lanes() == []


async def test_a_window_that_overflows_while_a_refill_is_under_way_loses_nothing(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    pool = Pool(1, is_open=False)
    pool.restore({(no, 0): A for no in range(100, 120)})
    await pool.work(3)
    pool.gate.clear()
    pool.dispatcher.release(pool.dispatcher.held_by()[0])
    assert pool.dispatcher._lines[A].refilling
    await asyncio.sleep(0)
    pool.put(*held(*range(1, 20)))
    pool.gate.set()
    await pool.work()
    assert sorted(pool.begun) == held(*range(1, 20), *range(100, 120))
    assert pool.begun[5:-15] == held(*range(2, 20)) or pool.begun[4:-16] == held(*range(1, 20))


async def test_the_window_is_refilled_before_it_is_empty():
    pool = Pool(1, is_open=False)
    pool.restore({(no, 0): A for no in range(1, 601)})
    await pool.work(WINDOW * 3 // 4 + 2)
    assert len(pool.reads) == 2
    assert pool.dispatcher._lines[A].keys


async def test_the_count_is_right_when_a_read_sees_a_command_before_we_are_told(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    pool = Pool(1, is_open=False)
    pool.restore({(no, 0): A for no in range(1, 20)})
    pool.rows[2, 5] = A
    await pool.settle()
    pool.dispatcher.enqueue((2, 5), A)
    assert pool.dispatcher.waiting(A) == len(pool.rows) == 19


async def test_what_was_parked_can_come_back():
    pool = Pool(1, is_open=False)
    pool.gate.clear()
    pool.restore({(no, 0): A for no in range(1, 4)})
    await asyncio.sleep(0)
    pool.withdraw((2, 0))
    pool.put((2, 0))
    pool.gate.set()
    await pool.settle()
    pool.withdraw((3, 0))
    pool.put((3, 0))
    pool.withdraw((9, 9))
    pool.withdraw((9, 9), Lane(7, "nobody", 1))
    assert await pool.work() == held(2, 3)


async def test_withdrawing_leaves_no_rubbish():
    pool = Pool(1)
    pool.put((1, 0), (2, 0))
    for no in range(3, 10_000):
        pool.put((no, 0))
        pool.withdraw((no, 0))
    assert len(pool.dispatcher._lines[A].heap) <= 5 * WINDOW
    assert pool.dispatcher.waiting(A) == 1
    pool.withdraw((2, 0))
    assert pool.dispatcher.lanes() == []


async def test_what_has_a_slot_is_not_handed_out_again():
    pool = Pool(2, is_open=False)
    pool.restore({(1, 0): A, (2, 0): A})
    await pool.settle()
    pool.rows[1, 0] = A  # the start is not on disk yet, and a read finds it
    pool.dispatcher.restore([(A, 1)])
    pool.dispatcher.release((2, 0))
    await pool.settle()
    pool.dispatcher.enqueue((1, 0), A)
    assert pool.begun == held(1, 2)
    assert pool.dispatcher.waiting(A) == 0


async def test_what_has_a_slot_and_ends_while_a_read_still_sees_it_is_not_handed_out_again():
    pool = Pool(2, is_open=False)
    pool.restore({(1, 0): A, (2, 0): A})
    await pool.settle()
    pool.gate.clear()
    pool.rows[1, 0] = A  # the start is not on disk yet
    pool.dispatcher.restore([(A, 1)])
    pool.dispatcher.release((2, 0))
    await asyncio.sleep(0)
    del pool.rows[1, 0]
    pool.dispatcher.release((1, 0))
    pool.gate.set()
    await pool.settle()
    assert pool.begun == held(1, 2)


async def test_a_claim_that_failed_is_offered_again():
    pool = Pool(1)
    pool.put((1, 0), (2, 0))
    pool.dispatcher.release((1, 0))
    pool.dispatcher.enqueue((1, 0), A)
    assert await pool.work() == held(1)
    assert pool.begun == held(1, 2, 1)


async def test_a_failed_refill_is_tried_again_after_a_pause_and_not_by_every_call(monkeypatch):
    monkeypatch.setattr(module, "REFILL_RETRY_S", 0.05)
    pool = Pool(2, is_open=False)
    pool.failures = 2
    pool.restore({(1, 0): A})
    for no in range(10, 20):
        await asyncio.sleep(0)
        pool.put((no, 0), lane=B)
        pool.dispatcher.release((no, 0))
    assert len(pool.reads) == 1
    for _ in range(100):
        if (1, 0) in pool.begun:
            break
        await asyncio.sleep(0.01)
    assert (1, 0) in pool.begun
    assert len(pool.reads) == 3


async def test_a_retry_that_comes_after_close_reads_nothing_and_open_reads_again(monkeypatch):
    monkeypatch.setattr(module, "REFILL_RETRY_S", 0.01)
    pool = Pool(2, is_open=False)
    pool.failures = 1
    pool.restore({(1, 0): A})
    await asyncio.sleep(0)
    pool.dispatcher.close()
    await asyncio.sleep(0.05)
    assert len(pool.reads) == 1
    pool.dispatcher.open()
    await pool.settle()
    assert pool.begun == held(1)


async def test_claims_answered_within_themselves_cost_no_recursion():
    pool = Pool(1)
    pool.dispatcher.close()
    pool.put(*((no, 0) for no in range(1, 500)))
    pool.on_claim = pool.dispatcher.release
    pool.dispatcher.open()
    assert pool.begun == held(*range(1, 500))
    assert pool.dispatcher.running == 0


async def test_a_close_in_the_middle_of_a_hand_out_ends_it():
    pool = Pool(5)
    pool.dispatcher.close()
    pool.put(*held(1, 2, 3))
    pool.on_claim = lambda _: pool.dispatcher.close()
    pool.dispatcher.open()
    assert pool.begun == held(1)


async def test_positions_are_known_near_the_front():
    pool = Pool(1)
    pool.put(*held(*range(1, 2001)))
    assert pool.dispatcher.position((1, 0)) is None
    assert pool.dispatcher.position((2, 0)) == 0
    assert pool.dispatcher.position((12, 0)) == 10
    assert pool.dispatcher.position((2000, 0)) is None


async def test_queues_of_the_past_are_forgotten():
    pool = Pool(1)
    for no in range(2000):
        lane = Lane(no, f"queue-{no}", 5)
        assert pool.dispatcher.try_take((no, 0), lane)
        pool.dispatcher.release((no, 0))
    assert len(pool.dispatcher._queues) < 600
    assert len(pool.dispatcher._namespaces) < 600


def test_limits_have_defaults_keep_nothing_needless_and_refuse_nonsense():
    limits = Limits(pending_runs=7)
    told = []
    limits.subscribe(lambda: told.append(1))
    assert limits.namespace(1) == (1.0, 0, 0, 0)
    assert limits.queue(1, "x") == (0, 5, False)
    assert limits.pending_runs == 7
    limits.set_namespace(1, NamespaceLimits())
    limits.set_queue(1, "x", QueueLimits())
    assert told == []
    limits.set_namespace(1, NamespaceLimits(weight=2.0))
    limits.set_queue(1, "x", QueueLimits(paused=True))
    limits.set_queue(2, "x", QueueLimits(paused=True))
    assert len(told) == 3
    limits.forget_namespace(1)
    assert limits.namespace(1).weight == 1.0
    assert not limits.queue(1, "x").paused
    assert limits.queue(2, "x").paused
    limits.set_queue(2, "x", QueueLimits())
    assert not limits._namespaces
    assert not limits._queues
    for bad in (NamespaceLimits(weight=0.0), NamespaceLimits(weight=float("nan")), NamespaceLimits(running_steps=-1)):
        with pytest.raises(ValueError):
            limits.set_namespace(1, bad)
    for worse in (QueueLimits(priority=10), QueueLimits(priority=-1), QueueLimits(running_steps=-1)):
        with pytest.raises(ValueError):
            limits.set_queue(1, "x", worse)
    with pytest.raises(ValueError):
        Limits(pending_runs=-1)


def test_shares_forget_who_stands_at_the_floor():
    share = FairShare()
    for member in range(10_000):
        share.charge(member, 1.0)
        share.charge(0 if member % 2 else member, 1.0)
    assert len(share._passes) < 10_000
