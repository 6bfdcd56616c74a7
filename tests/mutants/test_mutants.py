"""The table of seeded faults stays true, and some of them are tried each time; `make mutants` tries all."""

import ast
from collections import Counter

import pytest

from mutants.__main__ import ROOT, Copy
from mutants.table import MUTANTS

SAMPLE = "does not link the hash chain"
"""One whose test needs neither a daemon nor long: it proves that the runner notices anything at all."""


def test_there_are_enough_and_no_two_alike():
    assert len(MUTANTS) >= 40
    assert Counter(one.name for one in MUTANTS).most_common(1)[0][1] == 1
    assert len({(one.file, one.old, one.new) for one in MUTANTS}) == len(MUTANTS)
    assert len({one.file.rpartition("/")[0] for one in MUTANTS}) >= 8, "the whole product, and not one corner of it"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_it_still_fits_and_its_test_is_there(mutant):
    source = (ROOT / mutant.file).read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} has changed: choose what stands there once"
    assert mutant.old != mutant.new
    if mutant.file.endswith(".py"):
        ast.parse(source.replace(mutant.old, mutant.new))
    path, _, name = mutant.test.partition("::")
    names = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
    assert not name or name.partition("[")[0] in names, f"{mutant.test} is gone"


def test_a_sample_is_caught(tmp_path):
    copy, mutant = Copy(tmp_path / "copy"), next(one for one in MUTANTS if one.name == SAMPLE)
    assert copy.kills(mutant), f"nobody noticed a Taskforge that {mutant.name}"
