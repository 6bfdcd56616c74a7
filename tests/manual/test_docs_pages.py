"""Every page keeps its word: links lead somewhere, commands parse, definitions are valid, settings and tests exist.

When one of these fails, the message names the line to mend.
"""

import ast
import re
import tomllib
from functools import cache
from itertools import chain

import pytest
import yaml
from manual import commands
from manual.pages import PAGES, ROOT, anchors, blocks, links, spans

from taskforged.config import SETTINGS
from taskforged.errors import InvalidArgumentError
from taskforged.language import compile_definition

DOCS = ROOT / "docs"
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def mend(faults):
    assert not faults, "mend these:\n  " + "\n  ".join(faults)


@BY_PAGE
def test_every_link_leads_somewhere(page):
    faults = []
    for link in links(page):
        path, _, anchor = link.text.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            faults.append(f"{link.place}: there is no {path}")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            faults.append(f"{link.place}: {target.name} has no heading #{anchor}; it has {sorted(anchors(target))}")
    mend(faults)


@BY_PAGE
def test_every_command_parses(page):
    found = chain(
        chain.from_iterable(commands.in_block(block) for block in blocks(page)),
        chain.from_iterable(commands.in_span(span) for span in spans(page)),
    )
    mend([f"{one.place}: `{one.text}`: {fault}" for one in found if (fault := commands.fault(one))])


@BY_PAGE
def test_every_whole_definition_is_valid(page):
    faults = []
    for block in blocks(page):
        source = _definition(block.text) if block.kind in {"yaml", "yml"} else None
        if source is not None:
            try:
                compile_definition(source)
            except InvalidArgumentError as error:
                faults += [f"{block.place}: {one.path}: {one.message}" for one in error.violations]
    mend(faults)


def _definition(text):
    """Answer a definition out of a whole one, of triggers alone, or of steps alone; None for any other YAML."""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if first.startswith("on:"):
        return f"{text}name: page\nsteps:\n  - {{id: say, transform: 1}}\n"
    if first.startswith("- id:"):
        return "name: page\nsteps:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    return text if re.search(r"^name:", text, re.MULTILINE) and re.search(r"^steps:", text, re.MULTILINE) else None


@BY_PAGE
def test_every_setting_exists(page):
    known = {f"[{one.section}] {one.key}" for one in SETTINGS}
    sections = {one.section for one in SETTINGS}
    faults = []
    for span in spans(page):
        found = re.fullmatch(r"\[(\w+)\] ([a-z_]+)( = .*)?", span.text)
        if found and f"[{found[1]}] {found[2]}" not in known:
            faults.append(f"{span.place}: taskforged/config.py has no setting [{found[1]}] {found[2]}")
    for block in blocks(page):
        if block.kind == "toml":
            faults += _toml_faults(block, known, sections)
    mend(faults)


def _toml_faults(block, known, sections):
    try:
        document = tomllib.loads(block.text)
    except tomllib.TOMLDecodeError as error:
        return [f"{block.place}: this is no TOML: {error}"]
    if not sections & document.keys():
        return []  # another program's file
    faults = []
    for section, table in document.items():
        for key, value in table.items() if isinstance(table, dict) else [("", None)]:
            if f"[{section}] {key}" not in known:
                faults.append(f"{block.place}: taskforged/config.py has no setting [{section}] {key}")
                continue
            setting = next(one for one in SETTINGS if (one.section, one.key) == (section, key))
            try:
                setting.parse(value)
            except (TypeError, ValueError) as error:
                faults.append(f"{block.place}: [{section}] {key} = {value!r}: {error}")
    return faults


@cache
def _variables():
    """Every variable that a setting has or that the code reads by name."""
    found = {one.variable for one in SETTINGS}
    for file in chain(ROOT.glob("taskforged/**/*.py"), ROOT.glob("taskforgectl/**/*.py"), ROOT.glob("tests/**/*.py")):
        if file.parent.name != "manual":
            found |= set(re.findall(r"\bTASKFORGE_[A-Z0-9_]+\b", file.read_text()))
    return found | {"TASKFORGE_SECTION_KEY"}  # stands for any


@BY_PAGE
def test_every_variable_exists(page):
    faults = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for name in re.findall(r"\bTASKFORGE_[A-Z0-9_]*[A-Z0-9]\b(?!_?\*)", line):
            if name not in _variables():
                faults.append(f"{page.relative_to(ROOT)}:{number}: nothing reads {name}")
    mend(faults)


@BY_PAGE
def test_every_file_and_test_that_is_named_exists(page):
    """`tests/rpc/test_guard.py::test_x` is a file and a test in it; `taskforged/config.py` is a file."""
    faults = []
    folders = "docs|examples|tests|taskforged|taskforgectl|protos|benchmarks|systemd"
    for span in spans(page):
        path, _, test = span.text.partition("::")
        if not re.fullmatch(rf"(?:{folders})/[\w./-]*", path) or path == "benchmarks/results/":  # made by `make bench`
            continue
        if not (ROOT / path).exists():
            faults.append(f"{span.place}: there is no {path}")
        elif test and test.partition("[")[0].split("::")[-1] not in _tests(path):
            faults.append(f"{span.place}: {path} has no test {test}")
    mend(faults)


@cache
def _tests(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_page_is_in_the_index():
    index = {(DOCS / link.text.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    missing = [page.name for page in PAGES if page.parent == DOCS and page.name != "README.md" and page not in index]
    assert not missing, f"docs/README.md has no link to {', '.join(missing)}: add a line to its table"


def test_every_test_with_a_larger_size_is_in_make_soak():
    listed = re.search(r"^SOAK = .*?tests/,(.*?)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    soaked = {ROOT / "tests" / name for name in listed[1].replace("\\", " ").split()}
    tests = (ROOT / "tests").rglob("test_*.py")
    large = [path for path in tests if re.search('"TASKFORGE_TEST_CYCLES"(?:,| in)', path.read_text())]
    assert len(large) > 10
    mend([f"Makefile: SOAK lacks {path}" for path in large if not soaked & {path, path.parent}])


def test_these_tests_can_fail():
    """What each of them is for, on a page where all is wrong."""
    for text, words in (
        ("taskforgectl rnu list", "has no command"),
        ("taskforgectl run list --colour", "No such option"),
        ("taskforgectl run show", "lacks"),
        ("taskforgectl run list a-run", "no further argument"),
        ("X=1 taskforgectl status -o jason", "jason"),
        ("ls | taskforgectl run list --state RUNNINNG", "RUNNINNG"),
        ('A="$(taskforgectl run lst -o name)"', "has no command"),
        ("taskforged --homes x", "has no option"),
    ):
        (one,) = commands.in_block(commands.Block(ROOT / "x.md", 1, "sh", text))
        assert words in commands.fault(one), text
    for text in ("journalctl --user -u taskforged", "echo taskforgectl", "# taskforgectl nothing"):
        assert not list(commands.in_block(commands.Block(ROOT / "x.md", 1, "sh", text))), text
    assert _definition("a: 1\n") is None
    assert yaml.safe_load(_definition("on:\n  x: {manual: {}}\n"))["name"] == "page"
