"""The plan of a torture: made from the seed alone."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from taskforgectl.torture.plan import FAULTS_MIN, ROUND_S, Plan, Round, rounds
from taskforgectl.torture.workflows import limits, sources, without_schedules
from taskforged.language.compile import compile_definition

BASE = "http://127.0.0.1:9"


def wishes(seed: int, client: int = 1, count: int = 300) -> list:
    return list(itertools.islice(Plan(Round(seed, 600)).wishes(client), count))


def test_the_same_seed_is_the_same_plan():
    for one, other in ((Plan(Round(7, 120)), Plan(Round(7, 120))), (Plan(Round(8, 6)), Plan(Round(8, 6)))):
        assert one.describe() == other.describe()
    assert wishes(7) == wishes(7)
    assert wishes(7) != wishes(8)
    assert Plan(Round(7, 120)).faults() != Plan(Round(8, 120)).faults()


def test_a_longer_one_begins_like_a_shorter_one():
    short, long = Plan(Round(7, 120)).faults(), Plan(Round(7, 600)).faults()
    assert long[: len(short)] == short
    assert len(long) > 4 * len(short)


@pytest.mark.parametrize("length_s", [3, 18, 600])
def test_every_kind_of_fault_comes(length_s: float):
    faults = Plan(Round(1, length_s)).faults()
    assert len(faults) >= FAULTS_MIN
    assert {one.kind for one in faults} == {"kill", "kill in start", "stop", "term"}
    assert all(one.after_s >= 0 and 0 <= one.for_s <= 6.5 for one in faults)


def test_numbers_are_of_one_client_each():
    numbers = [n for client in (1, 2, 3) for wish in wishes(5, client) for n in wish.numbers]
    assert len(numbers) == len(set(numbers))
    assert {wish.workflow for wish in wishes(5)} == {"everything", "narrow", "solo", "rented", "flaky", "quick"}


def test_moods_are_of_the_turn_and_mostly_good():
    plan = Plan(Round(3, 60))
    moods = [plan.mood("work", "left", n) for n in range(4000)]
    assert moods == [Plan(Round(3, 60)).mood("work", "left", n) for n in range(4000)]
    assert moods != [plan.mood("work", "right", n) for n in range(4000)]
    counts = Counter(moods)
    assert counts.keys() == {"ok", "500", "reset", "stall", "slow"}
    assert counts["ok"] > 3000
    assert {plan.mood("read", "odd", n) for n in range(100)} == {"ok"}


def test_rounds_can_be_repeated_one_by_one():
    found = rounds(40, 2.5 * ROUND_S)
    assert [one.seed for one in found] == [40, 41, 42]
    assert [one.length_s for one in found] == [ROUND_S, ROUND_S, ROUND_S / 2]
    assert rounds(41, ROUND_S) == [found[1]]


@pytest.mark.parametrize("shell", [True, False])
def test_the_load_uses_every_kind_of_step(shell: bool):
    models = [compile_definition(one.text).model for one in sources(BASE, shell=shell)]
    kinds = {step.kind for model in models for step in model.steps.values()}
    wanted = {"event", "fail", "http", "sleep", "steps", "switch", "transform", "wait", "workflow"}
    assert kinds >= wanted | ({"shell"} if shell else set())


def test_schedules_can_be_taken_away():
    for one in without_schedules(BASE):
        assert not compile_definition(one.text).sources()
    assert {limit.of for limit in limits()} == {"steps", "runs"}
