"""Ids sort by time and keep their form: databases hold ids of earlier versions, and derived ids must be found again."""

import random

from taskforged.clock import new_id
from taskforged.engine.keys import derived_id
from taskforged.ids import ENTROPY_BYTES, sortable_id

AT = 1_795_600_000_123_456


def test_the_form_is_that_of_every_version():
    assert sortable_id("run", AT, bytes(range(1, 10))) == "run_01m891k93ve8041061050r3gg2"
    assert derived_id("evt", AT, "run_1", 6) == "evt_01m891k93ve8dy40btzt0y607g"


def test_ids_sort_by_time():
    drawn = random.Random(7)
    times = sorted(drawn.randrange(1 << 57) for _ in range(500))
    assert sorted(ids := [sortable_id("run", at, drawn.randbytes(ENTROPY_BYTES)) for at in times]) == ids


def test_no_two_are_equal():
    assert len({new_id("run", AT) for _ in range(1000)}) == 1000
