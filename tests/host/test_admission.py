"""Admission: which pending runs may start, and in what order."""

import tracemalloc
from collections import Counter

import pytest

from taskforged.errors import ResourceExhaustedError
from taskforged.host.admission import HOLDERS_MAX, Admission, Blocker, Ticket
from taskforged.host.limits import Limits, NamespaceLimits


def ticket(no, *, namespace=1, priority=5, group="", limit=0, exempt=False):
    return Ticket(no, namespace, priority, group, limit, exempt)


class Door:
    """An admission that notes who was admitted."""

    def __init__(self, *, running_runs=0, is_open=True, **limits):
        self.limits = Limits(**limits)
        if running_runs:
            self.limits.set_namespace(1, NamespaceLimits(running_runs=running_runs))
        self.admitted: list[int] = []
        self.on_admit = lambda no: None
        self.admission = Admission(limits=self.limits, admit=self.admit)
        if is_open:
            self.admission.open()

    def admit(self, no):
        self.admitted.append(no)
        self.on_admit(no)

    def start(self, *tickets):
        """As a caller does: take the slot, or wait; answers who got one at once."""
        at_once = []
        for one in tickets:
            if self.admission.try_admit(one):
                at_once.append(one.no)
            else:
                self.admission.wait(one)
        return at_once

    def end(self, *numbers):
        """Runs end, one after the other; answers who was admitted instead."""
        before = len(self.admitted)
        for no in numbers:
            self.admission.free(no)
        return self.admitted[before:]


def test_without_limits_everybody_goes_at_once():
    door = Door()
    assert door.start(ticket(1), ticket(2, namespace=2), ticket(3, group="g")) == [1, 2, 3]
    assert door.admission.running() == 3
    assert door.admission.running(1) == 2
    assert door.admission.try_admit(ticket(1)), "it has its slot already"
    assert door.admission.running() == 3


def test_a_full_namespace_holds_up_only_itself_and_goes_by_priority_and_age():
    door = Door(running_runs=1)
    assert door.start(ticket(1), ticket(3), ticket(2), ticket(4, priority=9), ticket(5, namespace=2)) == [1, 5]
    assert door.admission.pending() == door.admission.pending(1) == 3
    assert door.end(1, 4, 2, 3) == [4, 2, 3]
    assert door.admission.running(1) == door.admission.pending() == 0
    assert door.end(3, 3, 77) == []


def test_nothing_is_admitted_before_open_and_after_close():
    door = Door(is_open=False)
    assert door.start(ticket(1)) == []
    door.admission.open()
    assert door.admitted == [1]
    door.admission.close()
    assert door.start(ticket(2)) == []
    assert door.end(1) == []


def test_a_full_group_holds_up_nobody_else_of_its_namespace():
    door = Door(running_runs=3)
    deploy = {"group": "deploy", "limit": 1}
    assert door.start(ticket(1, **deploy), ticket(2, **deploy, priority=9), ticket(3, **deploy), ticket(4)) == [1, 4]
    assert door.start(ticket(5, group="deploy", limit=1, namespace=2)) == [5], "groups belong to their namespace"
    assert door.admission.group_members(1, "deploy") == ([1], [2, 3])
    assert door.end(1) == [2]
    assert door.end(4) == []
    assert door.end(2) == [3]
    assert door.end(3) == []
    assert door.admission.group_members(1, "deploy") == ([], [])
    assert not door.admission._namespaces[1].groups


def test_a_group_waits_for_the_namespace_and_the_namespace_for_the_group():
    door = Door(running_runs=2)
    two = {"group": "two", "limit": 2}
    assert door.start(ticket(1), ticket(2, **two)) == [1, 2]
    assert door.start(ticket(3, **two), ticket(4, **two), ticket(5)) == []
    assert door.end(1) == [3]
    assert door.end(2) == [4]
    assert door.end(3) == [5]


def test_a_group_of_several_slots_shows_one_run_after_the_other():
    door = Door(is_open=False)
    tickets = [ticket(no, group="g", limit=3) for no in range(1, 8)]
    door.admission.restore([], tickets)
    door.admission.open()
    assert door.admitted == [1, 2, 3]
    assert door.end(2) == [4]
    assert door.end(1, 3) == [5, 6]


def test_nobody_overtakes_within_a_group_even_with_a_larger_limit():
    door = Door()
    assert door.start(ticket(1, group="g", limit=1), ticket(2, group="g", limit=1)) == [1]
    assert door.start(ticket(3, group="g", limit=5)) == []
    assert door.end(1) == [2, 3]
    door.start(ticket(4, group="g", limit=1), ticket(5, group="g", limit=5))
    assert door.end(4) == [5], "the one that held it up is gone"


def test_a_better_run_takes_the_group_s_place_in_line():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2, group="g", limit=1), ticket(3), ticket(4, group="g", limit=1, priority=8))
    assert door.end(1) == [4]
    assert door.end(4, 2) == [2, 3]


def test_who_leaves_the_line_is_not_admitted():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2), ticket(3, group="g", limit=1), ticket(4, group="g", limit=1), ticket(5))
    assert door.end(2, 3) == []
    assert door.admission.pending() == 2
    assert door.end(1) == [4]
    assert door.end(4) == [5]


def test_a_run_can_stand_in_line_again_with_another_priority():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2), ticket(3), ticket(4, group="g", limit=1))
    door.end(3, 4)
    assert door.start(ticket(3, priority=9), ticket(4, group="g", limit=1, priority=8, exempt=True)) == [4]
    assert door.end(1, 3, 2) == [3, 2]
    assert door.admission.running(1) == 0


def test_who_stands_in_line_again_has_lost_the_old_place():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2, priority=9), ticket(3))
    door.end(2)
    door.start(ticket(2, priority=1))
    assert door.end(1, 3) == [3, 2]


def test_runs_that_need_a_slot_and_exempt_ones_go_by_the_same_order():
    door = Door(is_open=False)
    door.admission.restore([], [ticket(1, exempt=True), ticket(2, priority=9), ticket(3, exempt=True, priority=8)])
    door.admission.open()
    assert door.admitted == [2, 3, 1]


def test_children_ride_on_their_parent_s_slot():
    door = Door(running_runs=1)
    assert door.start(ticket(1), ticket(2), ticket(3, exempt=True)) == [1, 3]
    assert door.admission.running(1) == 1
    assert door.end(3) == []
    assert door.end(1) == [2]


def test_a_child_does_not_stand_behind_runs_that_wait_for_its_parent():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2, group="g", limit=1, priority=9))
    assert door.start(ticket(3, group="g", limit=1, exempt=True)) == [3], "its group has room"
    assert door.start(ticket(4, group="g", limit=1, exempt=True)) == []
    assert door.end(3) == [4]
    assert door.end(1) == []
    assert door.end(4) == [2]


def test_limits_changed_at_run_time():
    door = Door(running_runs=3)
    door.start(*(ticket(no) for no in range(1, 8)))
    door.limits.set_namespace(1, NamespaceLimits(running_runs=1))
    assert door.end(1, 2) == []
    assert door.end(3) == [4]
    door.limits.set_namespace(1, NamespaceLimits(running_runs=3))
    assert door.admitted == [4, 5, 6]
    door.limits.set_namespace(1, NamespaceLimits())
    assert door.admitted == [4, 5, 6, 7]


def test_restore_keeps_every_slot_and_admits_the_rest_in_order():
    door = Door(running_runs=2, is_open=False)
    door.admission.restore(
        [ticket(no) for no in (1, 2, 3)], [ticket(9), ticket(5), ticket(7, priority=6), ticket(3), ticket(5)]
    )
    door.admission.open()
    assert door.admission.running(1) == 3
    assert door.admission.pending() == 3
    assert door.end(1) == []
    assert door.end(2, 3, 7) == [7, 5, 9]


def test_restore_knows_better_than_what_stood_in_line_before():
    door = Door(running_runs=1, is_open=False)
    door.admission.wait(ticket(3))
    door.admission.restore([ticket(3)], [])
    door.admission.open()
    assert door.admitted == []
    assert door.admission.pending() == 0


def test_when_several_can_go_the_order_is_priority_share_age():
    door = Door(is_open=False)
    door.limits.set_namespace(1, NamespaceLimits(weight=3.0))
    waiting = [ticket(no, namespace=1 if no <= 400 else 2) for no in range(1, 801)]
    waiting += [ticket(900, namespace=3, priority=9), ticket(899, namespace=4, priority=8)]
    door.admission.restore([], waiting)
    door.admission.open()
    assert door.admitted[:2] == [900, 899]
    assert len(door.admitted) == 802
    for start in range(2, 402, 40):
        assert 28 <= sum(no <= 400 for no in door.admitted[start : start + 40]) <= 32
    own = [no for no in door.admitted if no <= 400]
    assert own == sorted(own)


def test_a_flood_of_one_namespace_does_not_delay_another():
    door = Door(running_runs=2)
    door.start(*(ticket(no) for no in range(1, 10_001)))
    assert door.start(ticket(20_000, namespace=2)) == [20_000]
    door.limits.set_namespace(2, NamespaceLimits(running_runs=1))
    door.admission.close()
    door.start(ticket(20_001, namespace=2))
    door.limits.set_namespace(1, NamespaceLimits())
    door.end(20_000)
    door.admission.open()
    assert 20_001 in door.admitted[:2]


def test_calls_within_an_admission_neither_recurse_nor_overtake():
    door = Door(running_runs=1, is_open=False)
    tried = []

    def ends_at_once(no):
        tried.append(door.admission.try_admit(ticket(10_000 + no, priority=9)))
        door.admission.free(no)

    door.on_admit = ends_at_once
    door.admission.restore([], [ticket(no) for no in range(1, 3001)])
    door.admission.open()
    assert door.admitted == list(range(1, 3001))
    assert not any(tried)


def test_a_newcomer_does_not_overtake_in_the_middle_of_admitting():
    door = Door(running_runs=2, is_open=False)
    tried = []
    door.on_admit = lambda no: tried.append(door.admission.try_admit(ticket(100 + no)))
    door.admission.restore([], [ticket(1), ticket(2), ticket(3)])
    door.admission.open()
    assert door.admitted == [1, 2]
    assert tried == [False, False]


def test_an_admission_may_take_others_out_of_the_line():
    door = Door(is_open=False)
    door.on_admit = lambda no: [door.admission.free(other) for other in (2, 4)]
    door.admission.restore([], [ticket(1), ticket(2, namespace=2), ticket(3, namespace=2), ticket(4, namespace=3)])
    door.admission.open()
    assert door.admitted == [1, 3]
    assert door.admission.pending() == 0


def test_an_admission_that_raises_loses_nobody():
    door = Door(is_open=False)

    def fails(no):
        raise RuntimeError("no")

    door.on_admit = fails
    door.admission.restore([], [ticket(1), ticket(2, namespace=2), ticket(3, namespace=3)])
    with pytest.raises(RuntimeError):
        door.admission.open()
    door.on_admit = lambda no: None
    door.end(99)
    assert sorted(door.admitted) == [1, 2, 3]


def test_a_close_within_an_admission_ends_it():
    door = Door(is_open=False)
    door.admission.restore([], [ticket(1), ticket(2), ticket(3, namespace=2)])
    door.on_admit = lambda _: door.admission.close()
    door.admission.open()
    assert len(door.admitted) == 1
    door.on_admit = lambda _: None
    door.admission.open()
    assert sorted(door.admitted) == [1, 2, 3]


def test_pending_limits_of_namespace_and_daemon():
    door = Door(running_runs=1, pending_runs=5)
    door.limits.set_namespace(1, NamespaceLimits(running_runs=1, pending_runs=3))
    door.limits.set_namespace(2, NamespaceLimits(running_runs=1))
    door.start(ticket(1), ticket(2), ticket(3))
    door.admission.check_pending(1)
    with pytest.raises(ResourceExhaustedError) as caught:
        door.admission.check_pending(1, 2)
    assert caught.value.retry_after_s > 0
    assert caught.value.metadata == {"pending": "2", "limit": "3"}
    door.admission.check_pending(2, 3)
    with pytest.raises(ResourceExhaustedError, match="daemon"):
        door.admission.check_pending(2, 4)
    door.end(2)
    door.admission.check_pending(1, 2)


def test_what_a_run_waits_for():
    door = Door(running_runs=2)
    g = {"group": "g", "limit": 1}
    door.start(ticket(1, **g), ticket(2), ticket(3, **g), ticket(4, **g), ticket(5), ticket(6, priority=6))
    assert door.admission.blockers(1) is None
    assert door.admission.blockers(3) == Blocker("group", 1, [1], 0)
    assert door.admission.blockers(4) == Blocker("group", 1, [1], 1)
    assert door.admission.blockers(6) == Blocker("namespace", 2, [1, 2], 0)
    assert door.admission.blockers(5) == Blocker("namespace", 2, [1, 2], 1)
    door.admission.free(1)
    assert door.admitted == [6]
    assert door.admission.blockers(3) == Blocker("namespace", 2, [2, 6], 0)
    assert door.admission.blockers(4) == Blocker("group", 1, [], 1)
    assert door.admission.blockers(5) == Blocker("namespace", 2, [2, 6], 2)


def test_what_a_run_waits_for_before_open_and_behind_many():
    door = Door(is_open=False)
    door.admission.restore([ticket(no, group="g", limit=50) for no in range(1, 51)], [ticket(60, group="g", limit=50)])
    door.admission.wait(ticket(70))
    assert door.admission.blockers(60).holders == list(range(1, HOLDERS_MAX + 1))
    assert door.admission.blockers(70) == Blocker("none", 0, [], 0)


def test_coming_and_going_leaves_no_rubbish():
    door = Door(running_runs=1)
    door.start(ticket(1), ticket(2, group="g", limit=1), ticket(3))
    for no in range(10, 5000):
        group = "g" if no % 2 else ""
        door.start(ticket(no, group=group, limit=1, priority=no % 10, namespace=1, exempt=no % 3 == 0))
        door.end(no)
    lines = [*door.admission._namespaces[1].lines, *(door.admission._namespaces[1].groups["g"].lines)]
    assert sum(len(line or ()) for line in lines) < 1000
    assert set(door.admission._pending) == {2, 3}


def test_namespaces_of_the_past_are_forgotten():
    door = Door()
    for no in range(1, 2000):
        door.start(ticket(no, namespace=no))
        door.end(no)
    assert len(door.admission._namespaces) < 600


def test_a_hundred_thousand_pending_runs_are_small():
    door = Door(running_runs=1, is_open=False)
    tracemalloc.start()
    try:
        door.admission.restore(
            [ticket(1)], (ticket(no, group=f"g{no % 100}", limit=1) for no in range(1_000_000, 1_100_000))
        )
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 40_000_000
    assert Counter(one.namespace_no for one in door.admission._pending.values()) == {1: 100_000}
