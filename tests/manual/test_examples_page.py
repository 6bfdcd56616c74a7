"""The gallery is whole: every example is on its page, is run by a test, and shows commands that exist."""

import re

import pytest
from manual import commands
from manual.pages import ROOT, Block, links

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGE = ROOT / "docs" / "examples.md"
RUN_BY = sorted([*(ROOT / "tests" / "semantics").glob("test_*.py"), ROOT / "README.md", ROOT / "examples" / "demo.py"])
"""Where examples are run on a daemon: tests by name; README and demo by being typed."""


def test_the_page_lists_every_example_once():
    listed = [link.text.removeprefix("../examples/") for link in links(PAGE) if link.text.endswith(".yaml")]
    assert sorted(listed) == [path.name for path in EXAMPLES], "docs/examples.md is to have each example once"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_run_by_a_test(path):
    name = re.escape(path.stem)
    found = [file for file in RUN_BY if re.search(rf'"{name}"|run start {name}\b|{name}\.yaml', file.read_text())]
    assert found, f"examples/{path.name} has no test: tests/semantics/test_gallery.py shows how"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_says_what_it_is_and_what_to_type(path):
    head = re.match(r"(?:#.*\n)+", path.read_text())
    assert head, f"examples/{path.name} begins with a comment that says what it does"
    lines = [line[4:] for line in head[0].splitlines() if line.startswith("#   ")]
    block = Block(path, 1, "sh", "\n".join(lines))
    faults = [f"{one.text}: {fault}" for one in commands.in_block(block) if (fault := commands.fault(one))]
    assert not faults, f"examples/{path.name}: {faults}"
