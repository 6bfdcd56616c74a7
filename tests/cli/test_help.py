from __future__ import annotations

import importlib
import resource
import subprocess
import sys

import click
import pytest

from taskforgectl import __version__
from taskforgectl.__main__ import _COMMANDS, root

NOUNS = [name for name in _COMMANDS if isinstance(root().get_command(click.Context(root()), name), click.Group)]
HEAVY = ("grpc", "google", "rich", "yaml", "taskforge", "taskforged")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_nothing_heavy():
    done = _python(
        "import sys\n"
        "sys.argv = ['taskforgectl', '--help']\n"
        "from taskforgectl.__main__ import main\n"
        "try: main()\n"
        f"finally: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    assert "Usage: taskforgectl" in done.stdout, done.stderr
    assert "LOADED []" in done.stdout


def test_the_client_never_imports_the_daemon():
    done = _python(
        "import sys, importlib, pkgutil, taskforgectl\n"
        "names = [m.name for m in pkgutil.walk_packages(taskforgectl.__path__, 'taskforgectl.')]\n"
        "assert 'taskforgectl.commands.trigger.trial' in names\n"
        "for name in names: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'taskforged'])\n"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("noun", NOUNS)
def test_help_of_a_lazy_noun_imports_nothing_heavy(noun):
    done = _python(
        "import sys\n"
        f"sys.argv = ['taskforgectl', {noun!r}, '--help']\n"
        "from taskforgectl.__main__ import main\n"
        "try: main()\n"
        f"finally: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    assert f"Usage: taskforgectl {noun}" in done.stdout, done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("noun", NOUNS)
def test_the_table_of_a_lazy_noun_says_what_its_verbs_say(noun):
    group = importlib.import_module(f"taskforgectl.commands.{noun}").command
    context = click.Context(group)
    for verb in group.list_commands(context):
        command = group.get_command(context, verb)
        assert command.name == verb
        begin = " ".join(command.help.split())
        assert begin.startswith(group.overview[verb]), (verb, begin)


def test_help_is_quick():
    """Processor time: that of the clock says more about the other tests."""

    def used_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def measure() -> float:
        before = used_s()
        subprocess.run([sys.executable, "-m", "taskforgectl", "--help"], capture_output=True, timeout=60, check=True)
        return used_s() - before

    assert min(measure() for _ in range(5)) < 0.150


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help(empty, name):
    assert f"Usage: taskforgectl {name}" in empty(name, "--help")


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["run", "bogus"], ["--bogus"], ["run", "start"], ["run", "list", "--limit", "x"]]
)
def test_wrong_usage_is_2(empty, arguments):
    told = empty.error(*arguments, code=2)
    assert "hint: see `taskforgectl" in told


def test_a_group_without_a_verb_shows_its_verbs(empty):
    assert "history" in empty.run("run", code=2).stderr


def test_version(empty):
    assert empty("version") == f"taskforgectl {__version__}\n"
    assert empty("--version").strip().endswith(__version__)
    assert empty.json("version") == {"version": __version__, "daemon": None}
