"""Watching, completion, the pager and hints, with real shells and terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cli.support import finish, named

COMPLETE = """\
eval "$(taskforgectl completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_taskforgectl_completion taskforgectl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bin_path() -> str:
    return f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"


def bash(ctl, line: str, **extra: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", line],
        env=ctl.environment(PATH=bin_path(), **extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("taskforgectl wor", {"workflow"}),
        ("taskforgectl run ", {"start", "list", "verify"}),
        ("taskforgectl run list --li", {"--limit"}),
        ("taskforgectl run list --state suc", {"succeeded"}),
        ("taskforgectl workflow show he", {"hello"}),
        ("taskforgectl run start ", {"hello", "nap"}),
        ("taskforgectl run list --workflow=he", {"hello"}),
        ("taskforgectl -n default run start he", {"hello"}),
        ("taskforgectl completion ", {"bash", "zsh", "fish"}),
        ("taskforgectl -o j", {"json"}),
        ("taskforgectl namespace show de", {"default"}),
        ("taskforgectl run list -n de", {"default"}),
    ],
)
def test_bash_completes(ctl, line, some):
    assert some <= set(bash(ctl, line))


def test_bash_completes_ids_newest_first_and_steps_of_a_run(ctl):
    ids = [ctl("run", "start", "hello", "-o", "name", "--wait").strip() for _ in range(2)]
    found = bash(ctl, "taskforgectl run show run_")
    assert [one for one in found if one in ids] == ids[::-1]
    assert bash(ctl, f"taskforgectl run logs {ids[0]} gr") == ["greet"]


def test_completion_is_silent_without_a_daemon_or_a_token(ctl, tmp_path):
    assert bash(ctl, f"taskforgectl --home {tmp_path} run start ") == []
    assert bash(ctl, "taskforgectl run start ", TASKFORGE_TOKEN="tfk_no_no") == []
    assert bash(ctl, "taskforgectl --address 127.0.0.1:1 run start ") == []


def test_completion_does_not_wait_for_a_daemon_that_hangs(own):
    from cli.support import Ctl

    os.kill(own.pid, signal.SIGSTOP)
    try:
        assert bash(Ctl(own.home), "taskforgectl run start ") == []
    finally:
        os.kill(own.pid, signal.SIGCONT)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_scripts(ctl, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    script = ctl("completion", shell)
    subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=30)


def test_other_shells_are_told_states(ctl):
    run_id = ctl("run", "start", "hello", "-o", "name", "--wait").strip()
    words = {"COMP_WORDS": "taskforgectl run show run_", "COMP_CWORD": "3"}
    told = ctl(_TASKFORGECTL_COMPLETE="zsh_complete", **words).splitlines()
    assert told[told.index(run_id) + 1] == "SUCCEEDED hello"


# --- watching --------------------------------------------------------------------------------------------------------


def line_of(process, timeout_s: float = 30.0) -> str:
    assert select.select([process.stdout], [], [], timeout_s)[0], "nothing came"
    return process.stdout.readline().decode()


def test_a_watched_list_tells_what_is_new_over_a_restart(own):
    from cli.support import Ctl

    ctl = Ctl(own.home)
    ctl.apply(named("first"))
    process = ctl.popen("workflow", "list", "--watch", "--interval", "0.1", "-o", "json")
    try:
        assert json.loads(line_of(process))["name"] == "first"
        own.restart()
        ctl.apply(named("second"))
        assert json.loads(line_of(process))["name"] == "second"
        ctl("workflow", "deactivate", "first")
        changed = json.loads(line_of(process))
        assert (changed["name"], changed["active"]) == ("first", False)
        process.send_signal(signal.SIGINT)
        _, err = finish(process)
        assert process.returncode == 130
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()


def test_a_watched_table_has_its_titles_once(ctl):
    process = ctl.popen("run", "list", "--workflow", "hello", "--watch", "--interval", "0.1")
    try:
        line_of(process)
        run_id = ctl("run", "start", "hello", "-o", "name", "--wait").strip()
        lines = []
        while not any(run_id in one for one in lines):
            lines.append(line_of(process))
        assert sum(one.startswith("RUN ") for one in lines) <= 1
        process.send_signal(signal.SIGINT)
        finish(process)
        assert process.returncode == 130
    finally:
        process.kill()
        process.communicate()


def test_event_watch_goes_on_behind_its_cursor(ctl):
    process = ctl.popen("event", "watch", "--after", "0", "--type", "finish.*", "-o", "json")
    try:
        ctl("event", "publish", "finish.one")
        seen = json.loads(line_of(process))
        assert seen["type"] == "finish.one"
        process.send_signal(signal.SIGINT)
        _, err = finish(process)
        assert "go on with: taskforgectl event watch --after" in err
    finally:
        process.kill()
        process.communicate()
    ctl("event", "publish", "finish.two")
    after = ctl.popen("event", "watch", "--after", seen["cursor"], "--type", "finish.*", "-o", "name")
    try:
        assert line_of(after).strip() == ctl("event", "list", "--type", "finish.two", "-o", "name").strip()
    finally:
        after.kill()
        after.communicate()


def test_a_list_that_is_watched_fails_at_once_without_a_daemon(empty):
    assert "not running" in empty.error("run", "list", "--watch", code=5)


# --- terminals -------------------------------------------------------------------------------------------------------


def on_terminal(ctl, *arguments: str, **extra: str) -> str:
    """Run it on a terminal of six lines; answers what was written there."""
    master, slave = pty.openpty()
    environment = ctl.environment(**{"TERM": "xterm", "LINES": "6", "COLUMNS": "120"} | extra)
    process = subprocess.Popen(ctl.command(*arguments), env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    found, deadline = b"", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            try:
                part = os.read(master, 65_536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            found += part
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return found.decode()


PAGER = "sed s/^/paged:/"


def test_long_output_is_paged_and_short_is_not(ctl):
    for n in range(7):
        ctl("queue", "set", f"pager-{n}")
    assert "paged:pager-0" not in on_terminal(ctl, "queue", "show", "pager-0", TASKFORGE_PAGER=PAGER, LINES="60")
    assert "paged:" in on_terminal(ctl, "queue", "list", TASKFORGE_PAGER=PAGER)
    assert "paged:" in on_terminal(ctl, "queue", "list", PAGER=PAGER)
    assert "paged:Usage" in on_terminal(ctl, "queue", "--help", TASKFORGE_PAGER=PAGER)
    assert "paged:" not in on_terminal(ctl, "queue", "list", "--no-pager", TASKFORGE_PAGER=PAGER)
    assert "paged:" not in on_terminal(ctl, "queue", "list", TASKFORGE_PAGER="", PAGER=PAGER)
    assert "pager-6" in on_terminal(ctl, "queue", "list", TASKFORGE_PAGER="/nonexistent/pager")
    assert "paged:" not in ctl("queue", "list", TASKFORGE_PAGER=PAGER)


def test_a_pager_that_ends_early_is_no_fault(ctl):
    told = on_terminal(ctl, "queue", "list", "-o", "json", TASKFORGE_PAGER="head -1")
    assert "Traceback" not in told
    assert "rror" not in told


def test_times_are_relative_on_terminals_only(ctl):
    ctl("queue", "set", "timely")
    assert " ago" in on_terminal(ctl, "queue", "list", "--no-pager")
    assert " ago" not in ctl("queue", "list")


# --- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "start", "hllo"], "did you mean 'hello'?"),
        (["workflow", "show", "hallo"], "did you mean 'hello'?"),
        (["-n", "defualt", "run", "list"], "did you mean 'default'?"),
        (["queue", "show", "defalt"], "did you mean 'default'?"),
    ],
)
def test_a_mistyped_name_meets_the_right_one(ctl, arguments, hint):
    ctl("queue", "set", "default", "--priority", "5")
    assert hint in ctl.error(*arguments, code=3)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["rnu"], "'run'"), (["run", "lst"], "'list'"), (["run", "list", "--limt", "1"], "--limit")],
)
def test_a_mistyped_command_meets_the_right_one(empty, arguments, meant):
    assert meant in empty.error(*arguments, code=2)


def test_what_was_deleted_is_told_in_every_format(ctl):
    ctl("queue", "set", "gone")
    assert ctl.json("queue", "delete", "gone") == {"name": "gone", "deleted": True}
