"""Failpoints: what a plan may say, what it does, and that the table and the source name the same places."""

from __future__ import annotations

import ast
import time
from collections import Counter
from pathlib import Path

import pytest

import taskforged
from taskforged import failpoints
from taskforged.errors import InvalidArgumentError
from taskforged.failpoints import FAILPOINTS, FailpointError, arm, reach

PACKAGE = Path(taskforged.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    arm("")


def _reached() -> Counter[str]:
    """The names that the source gives to `reach`, each as a literal."""
    found: Counter[str] = Counter()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach":
                (name,) = node.args
                if isinstance(name, ast.Constant):
                    found[name.value] += 1
    return found


def test_each_place_is_in_the_table_and_in_the_source_once() -> None:
    assert _reached() == Counter(FAILPOINTS.keys())
    assert len(FAILPOINTS) >= 20


def test_nothing_happens_unless_it_is_planned() -> None:
    reach("journal.written")
    arm("journal.committed=error")
    reach("journal.written")
    with pytest.raises(FailpointError, match=r"journal\.committed"):
        reach("journal.committed")
    arm("")
    reach("journal.committed")
    assert failpoints._plans is None


def _outcomes(plan: str, visits: int) -> str:
    arm(plan)
    found = ""
    for _ in range(visits):
        try:
            reach("timer.due")
            found += "."
        except FailpointError:
            found += "x"
    return found


@pytest.mark.parametrize(
    ("plan", "outcomes"),
    [
        ("timer.due=error", "x..."),
        ("timer.due=error@1", "x..."),
        ("timer.due=error@3", "..x."),
        ("timer.due=error@2+", ".xxx"),
        (" timer.fired=kill ; timer.due=error@4;", "...x"),
        ("timer.due=sleep:0", "...."),
    ],
)
def test_a_plan_says_at_which_visit(plan: str, outcomes: str) -> None:
    assert _outcomes(plan, 4) == outcomes


def test_a_place_can_stall() -> None:
    arm("timer.due=sleep:0.05")
    began = time.monotonic()
    reach("timer.due")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    "plan",
    ["timer.due", "timer.due=", "timer.due=die", "timer.due=kill@0", "timer.due=kill@-1", "timer.due=sleep",
     "timer.due=sleep:x", "=kill", "timer.due=kill timer.fired=kill", "timer.due=kill@1@2"],
)  # fmt: skip
def test_what_is_no_plan_is_refused(plan: str) -> None:
    with pytest.raises(InvalidArgumentError, match="NAME=kill"):
        arm(plan)


def test_an_unknown_place_is_refused_and_the_known_ones_are_named() -> None:
    arm("timer.due=error")
    with pytest.raises(InvalidArgumentError, match=r"no failpoint 'timer.dew'.*timer\.due"):
        arm("timer.due=kill;timer.dew=kill")
    assert _outcomes("", 2) == ".."
