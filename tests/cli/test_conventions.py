"""Every command keeps the conventions, whoever adds it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from taskforgectl import kinds, reference
from taskforgectl.lazy import LazyGroup
from taskforgectl.options import Settings, global_options

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = list(reference.commands())
VERBS = [one for one in COMMANDS if not isinstance(one.command, click.Group)]
LOCAL = {"config list", "context list"}
"""Lists that are short and come from files, not from a daemon."""

LISTS = [
    one
    for one in VERBS
    if one.path not in LOCAL and one.path.endswith((" list", " versions", " slots", " steps", " history"))
]
GLOBAL = {name for option in global_options(hidden=False) for name in option.opts}
GUIDE = "see taskforgectl/paging.py, kinds.py and options.py for what commands share"

METAVARS = {
    "--workflow": "WORKFLOW",
    "--queue": "QUEUE",
    "--request-id": "ID",
    "--since": "TIME|-SPAN",
    "--until": "TIME|-SPAN",
    "--step": "STEP",
    "--header": "KEY=VALUE",
    "--limit": "N",
    "--interval": "SECONDS",
    "--reconnect-timeout": "SECONDS",
}
"""Options that mean the same wherever they stand."""

OTHER_SPELLINGS = {
    "--max": "--limit",
    "--count-max": "--limit",
    "--page-size": "--limit",
    "--follow-list": "--watch",
    "--json": "-o json",
    "--format-json": "-o json",
    "--quiet": "-o name",
    "--force": "--yes",
    "--assume-yes": "--yes",
    "--from-time": "--since",
    "--filter-state": "--state",
    "--ns": "--namespace",
    "--dryrun": "--dry-run",
    "--preview": "--dry-run",
    "--note": "--reason",
}
"""Spellings of what has one already."""


def params(one):
    return [p for p in one.command.params if not (isinstance(p, click.Option) and p.hidden)]


def options(one):
    return [p for p in params(one) if isinstance(p, click.Option)]


def ids(commands):
    return [one.path.replace(" ", "-") for one in commands]


def test_the_walk_sees_them_all():
    assert len(VERBS) > 60
    assert {"run list", "workflow versions", "schedule slots"} <= {one.path for one in LISTS}


@pytest.mark.parametrize("one", COMMANDS, ids=ids(COMMANDS))
def test_help_says_what_it_does(one):
    text = (one.command.help or "").strip()
    summary = text.split("\n", 1)[0]
    assert text, f"{one.path} has no help"
    assert text[0].isupper(), f"{one.path}: begin with a capital letter"
    assert re.search(r"[.:]$", " ".join(text.split())), f"{one.path}: end with a full stop"
    assert len(summary) <= 120, f"{one.path}: the first line is too long for an overview"


@pytest.mark.parametrize("one", VERBS, ids=ids(VERBS))
def test_options_have_help_and_metavars(one):
    for option in options(one):
        name = max(option.opts, key=len)
        assert option.help, f"{one.path} {name} has no help; {GUIDE}"
        assert option.help[0].isupper() or option.help[0] in "`0123456789-" or ":" in option.help, (one.path, name)
        assert option.help.rstrip().endswith("."), f"{one.path} {name}: end with a full stop"
        assert name == name.lower(), (one.path, name)
        assert "_" not in name, (one.path, name)
        has_value = not option.is_flag and not isinstance(option.type, click.Choice | click.IntRange | click.FloatRange)
        if has_value and not name.endswith(("path", "reason", "comment", "subject")):
            assert option.metavar, f"{one.path} {name}: say what it takes by metavar="
        if name in METAVARS:
            assert option.metavar == METAVARS[name], f"{one.path} {name} is {METAVARS[name]} elsewhere"
        assert name not in OTHER_SPELLINGS, f"{one.path}: {name} is {OTHER_SPELLINGS.get(name)} elsewhere"


@pytest.mark.parametrize("one", VERBS, ids=ids(VERBS))
def test_verbs_take_the_global_options(one):
    taken = {name for option in one.command.params for name in option.opts}
    assert taken >= GLOBAL - {"-n", "--output"}, f"{one.path}: use cls=Verb"
    assert "-o" in taken


@pytest.mark.parametrize("one", LISTS, ids=ids(LISTS))
def test_lists_have_limits_and_can_be_watched(one):
    taken = {name for option in options(one) for name in option.opts}
    assert taken >= {"--limit", "--all", "--watch", "--interval"}, f"{one.path}: use @listing_options; {GUIDE}"


@pytest.mark.parametrize("one", VERBS, ids=ids(VERBS))
def test_names_can_be_completed(one):
    free = {
        "SIGNAL",
        "TYPE",
        "NAME",
        "KEY",
        "URL",
        "ADDR",
        "CONTEXT",
        "HOST",
        "LABEL",
        "SETTING",
        "SECTION.KEY",
        "UNIT",
        "SHELL",
    }
    for argument in params(one):
        if isinstance(argument, click.Argument):
            metavar = (argument.metavar or (argument.name or "").upper()).strip("[].")
            typed = isinstance(argument.type, kinds.Named | kinds.FileName | click.Choice | click.Path)
            assert typed or metavar in free, f"{one.path} {metavar}: give it a type of taskforgectl.kinds"


def test_the_same_option_is_the_same_kind_everywhere():
    kinds_of: dict[str, set[tuple[str, bool]]] = {}
    for one in VERBS:
        for option in options(one):
            name = max(option.opts, key=len)
            kinds_of.setdefault(name, set()).add((type(option.type).__name__, option.is_flag))
    # `trigger test` works on files, `workflow show --source` prints one, and logs go on after a cursor
    differing = {name: found for name, found in kinds_of.items() if len(found) > 1}
    assert set(differing) <= {"--trigger", "--source", "--event", "--after"}, differing


def test_nouns_are_lazy_and_their_overviews_say_what_their_verbs_say():
    for one in COMMANDS:
        if isinstance(one.command, click.Group):
            assert isinstance(one.command, LazyGroup), f"{one.path}: make it a LazyNoun, so that its help is quick"
            for verb, text in one.command.overview.items():
                command = one.command.get_command(one.context, verb)
                assert command.name == verb
                assert " ".join(command.help.split()).startswith(text), (one.path, verb)


def test_short_options_are_few():
    short = {name for one in VERBS for option in options(one) for name in option.opts if len(name) == 2}
    assert short <= {"-f", "-n"}, "long names are for scripts, and short ones are soon used up"


def test_the_page_is_what_the_commands_say():
    text = (ROOT / "docs/cli.md").read_text()
    assert text == reference.page(), "run `make docs` and commit docs/cli.md; prose goes to taskforgectl/manual"


def test_no_prose_is_lost():
    names = {one.path.replace(" ", "-") for one in COMMANDS} | {"preface"}
    found = {file.stem for file in (ROOT / "taskforgectl/manual").glob("*.md")}
    assert found <= names, "a page of taskforgectl/manual belongs to no command"


def test_settings_know_every_global_option():
    assert {"home", "address", "token", "namespace", "output", "timeout_s", "color", "pager"} <= set(dir(Settings))
