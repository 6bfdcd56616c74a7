"""`taskforgectl torture` as people use it: a short one, one that finds what is wrong, one that is ended early."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "taskforgectl", "torture", "--rate", "12"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}


def scratch(tmp_path: Path) -> list[str]:
    return ["--dir", str(tmp_path / "disk"), "-o", "json"]


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "disk").iterdir())


def processes_on(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(str(folder).encode()) for word in words):
            found.append(f"{path.parent.name} {b' '.join(words).decode(errors='replace')}")
    return found


def checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in report["checks"]}


@pytest.mark.timeout(300)
def test_a_short_one_passes_and_leaves_nothing_behind(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--minutes", "0.05", "--seed", "72", *scratch(tmp_path)],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=280,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said + done.stdout.decode()
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["seed"] == 72
    assert documented() == report.keys()
    assert report["faults"] == {"kill": 1, "kill in start": 1, "stop": 1, "term": 2}
    assert report["starts"] == {**report["starts"], "count": 5, "ready": 4}
    assert sum(report["runs"].values()) > 10
    for name in ("runs", "deliveries", "ends", "effects", "schedules", "slots", "feed", "histories", "database"):
        assert checks(report)[name]["looked_at"], f"{name} was held against nothing"
    assert "settling" in said
    assert "\x1b" not in said, "there is no terminal to draw over"
    assert left(tmp_path) == []
    assert processes_on(tmp_path) == []


def documented() -> set[str]:
    """The fields that the page names."""
    page = Path(__file__).parents[2].joinpath("docs", "torture.md").read_text()
    table = page.partition("### For programs")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


LOSING = """
    import os, pathlib, sqlite3, sys

    home = pathlib.Path(sys.argv[sys.argv.index("--home") + 1])
    database, mark = home / "taskforge.db", home / "spoiled"
    if database.exists() and not mark.exists():
        connection = sqlite3.connect(database, isolation_level=None)
        asked = "SELECT no FROM runs WHERE ended_at IS NOT NULL AND request_id LIKE 'r-%' ORDER BY no LIMIT 2"
        found = [row[0] for row in connection.execute(asked)]
        if len(found) == 2:
            for trigger in ("runs_stay", "history_stays", "step_runs_stay"):
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute("DELETE FROM step_runs WHERE run_no = ?", found[:1])
            connection.execute("DELETE FROM history WHERE run_no = ?", found[:1])
            connection.execute("DELETE FROM runs WHERE no = ?", found[:1])
            connection.execute("UPDATE step_runs SET attempt = attempt + 1 WHERE run_no = ?", found[1:])
            mark.touch()
        connection.close()
    os.execv(sys.executable, [sys.executable, "-m", "taskforged", *sys.argv[1:]])
"""
"""A daemon that has lost an acknowledged run after a restart, and has another one's steps wrong."""


@pytest.mark.timeout(300)
def test_what_is_wrong_is_found_and_the_evidence_kept(tmp_path):
    program = tmp_path / "losing.py"
    program.write_text(textwrap.dedent(LOSING))
    daemon = shlex.join([sys.executable, str(program)])
    done = subprocess.run(
        [*COMMAND, "--minutes", "0.1", "--seed", "792", "--daemon", daemon, *scratch(tmp_path)],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=280,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode == 8, said
    report = json.loads(done.stdout)
    broken = {name for name, one in checks(report).items() if not one["ok"]}
    assert broken >= {"runs", "histories"}, broken
    assert any("was acknowledged and is not stored" in one for one in checks(report)["runs"]["violations"])
    assert "is stored, " in checks(report)["histories"]["violations"][0]
    assert not checks(report)["database"]["violations"], "SQLite itself sees nothing wrong"
    (folder,) = left(tmp_path)
    evidence = folder / "round-1"
    assert f"the evidence is in {evidence}" in said
    assert "taskforgectl torture --seed 792 --minutes 0.1 --rate 12" in said
    kept = {path.name for path in evidence.iterdir()}
    assert kept >= {"home", "daemon.log", "driver.jsonl", "calls.jsonl", "inventory.jsonl", "report.json"}
    assert json.loads((evidence / "report.json").read_text())["checks"] == report["checks"]
    assert processes_on(tmp_path) == []


@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_load_and_still_checks(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--minutes", "30", *scratch(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,  # pytest does not hear it
    ) as process:
        for line in process.stderr:
            if b"torture: " in line and b" 0 effects" not in line:
                break
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells all of its processes
        out, said = process.communicate(timeout=200)
    assert process.returncode == 130, said.decode()
    report = json.loads(out)
    assert report["ok"]
    assert report["interrupted"]
    assert checks(report)["histories"]["looked_at"]
    assert left(tmp_path) == []
    assert processes_on(tmp_path) == []


@pytest.mark.timeout(120)
def test_a_driver_that_is_killed_takes_its_daemon_with_it(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--minutes", "30", *scratch(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        for line in process.stderr:
            if b"torture: " in line:
                break
        assert len(processes_on(tmp_path)) == 2
        process.kill()
    for _ in range(400):
        if not processes_on(tmp_path):
            return
        time.sleep(0.05)
    left_behind = processes_on(tmp_path)
    for one in left_behind:
        os.kill(int(one.split()[0]), signal.SIGKILL)
    raise AssertionError(f"left behind: {left_behind}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--daemon", "/bin/false", "--minutes", "0.05"], 1, "before it was ready"),
        (["--dir", "/proc/nowhere"], 1, "no scratch folder can be made in /proc/nowhere"),
        (["--minutes", "0"], 2, "--minutes"),
        (["--minutes", "nan"], 2, "'nan' is not a number"),
        (["--rate", "nan"], 2, "'nan' is not a number"),
    ],
)
def test_what_cannot_begin_says_so(tmp_path, arguments, code, says):
    command = [*COMMAND, "--dir", str(tmp_path / "disk"), *arguments]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=50, check=False, text=True)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "disk").exists() or left(tmp_path) == []
