"""The validators of watches find what they are for, each in a record that breaks its property, and nothing in a good one."""

from __future__ import annotations

import pytest
import watching
from watching import PROPERTIES, Entry, Message, Record, Session, faults

STORED = {position: f"event {position}" for position in (1, 2, 3, 5, 8, 9)}


def message(*positions: int, cursor: int = 0) -> Message:
    entries = [Entry(position, STORED.get(position, "unknown")) for position in positions]
    return Message(entries, cursor or max(positions, default=0))


GOOD = [
    Record(),
    Record([Session(0)]),
    Record([Session(0, [message(cursor=0), message(1, 2, cursor=2), message(3, cursor=4), message(5, 8, 9)])]),
    Record(
        [Session(0, [message(1, 2)]), Session(2), Session(2, [message(3), message(cursor=4)]), Session(4, [message(5)])]
    ),
    Record([Session(3, [message(cursor=3), message(5, cursor=7), message(8, 9, cursor=12)])]),
]

BROKEN = [
    ("ordered", Record([Session(0, [message(1, 3, 2, cursor=3)])])),
    ("ordered", Record([Session(0, [message(1, 2, 3)]), Session(0, [message(1)])])),
    ("unique", Record([Session(0, [message(1, 2), message(2)])])),
    ("unique", Record([Session(0, [message(1, 2)]), Session(1, [message(2)])])),
    ("atomic", Record([Session(0, [Message([Entry(1, "event 2")], 1)])])),
    ("atomic", Record([Session(0, [Message([Entry(7, "never stored")], 7)])])),
    ("atomic", Record([Session(0, [message(1, 2, cursor=1)])])),
    ("reliable", Record([Session(0, [message(1, 3, cursor=3)])])),
    ("reliable", Record([Session(0, [message(1)]), Session(1, [message(3)])])),
    ("resumable", Record([Session(0, [message(1)]), Session(1, [message(3)])])),
    ("resumable", Record([Session(2, [message(2, 3)])])),
    ("bookmarkable", Record([Session(0, [message(1, cursor=3), message(5)])])),
    ("bookmarkable", Record([Session(0, [message(1, 2, cursor=3), message(3)])])),
    ("bookmarkable", Record([Session(0, [message(1, 2), message(cursor=1)])])),
]


@pytest.mark.parametrize("record", GOOD)
def test_a_good_record_has_no_faults(record):
    assert faults(record, STORED) == []


@pytest.mark.parametrize(("name", "record"), BROKEN)
def test_each_property_can_be_broken_and_is_named(name, record):
    assert getattr(watching, name)(record, STORED)
    assert any(fault.startswith(f"{name}: ") for fault in faults(record, STORED))


def test_every_property_has_a_record_that_breaks_it():
    assert {one.__name__ for one in PROPERTIES} == {name for name, _ in BROKEN}
    assert len(PROPERTIES) == 6


def test_a_record_goes_on_behind_its_last_message():
    assert Record().cursor == 0
    assert Record([Session(4)]).cursor == 4
    assert Record([Session(0, [message(1, cursor=2)]), Session(2)]).cursor == 2
