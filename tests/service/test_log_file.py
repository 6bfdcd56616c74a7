"""The log of a daemon in the background does not grow for ever, and loses nothing when a new file begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskforged.logs import LogFile

CODE = """
import os, sys
from pathlib import Path
from taskforged.logs import LogFile
path, size, keep, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
log = LogFile(path, bytes_max=size, keep=keep)
for number in range(rounds):
    print(f"line {number}", file=sys.stderr, flush=True)
    os.system(f"echo child {number} >&2")
    if log.is_full():
        log.turn()
"""


def _write(path: Path, size: int, keep: int, rounds: int = 40, target: Path | None = None) -> None:
    with (target or path).open("ab") as file:
        command = [sys.executable, "-c", CODE, str(path), str(size), str(keep), str(rounds)]
        subprocess.run(command, stdout=file, stderr=file, check=True, timeout=60)


def test_full_files_are_put_away_and_the_oldest_goes(tmp_path):
    log = tmp_path / "taskforged.log"
    _write(log, 100, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "taskforged.log",
        "taskforged.log.1",
        "taskforged.log.2",
    ]
    assert all(path.stat().st_size < 150 for path in tmp_path.iterdir())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.log") if path.stat().st_size} <= {0o600, 0o644}
    text = "".join((tmp_path / f"taskforged.log{end}").read_text() for end in (".2", ".1", ""))
    lines = text.splitlines()
    first = int(lines[0].split()[1])
    kinds = ["line", "child"] if lines[0].startswith("line") else ["child", "line"]
    expected = [f"{kind} {n}" for n in range(first, 40) for kind in ("line", "child")]
    assert lines == expected[0 if kinds[0] == "line" else 1 :], "nothing is lost, children included"


def test_nothing_is_kept_when_nothing_is_to_be(tmp_path):
    log = tmp_path / "taskforged.log"
    _write(log, 100, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["taskforged.log"]
    assert log.stat().st_size < 150


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_without_a_bound_or_below_it_there_is_one_file(tmp_path, size):
    _write(tmp_path / "taskforged.log", size, 2)
    assert os.listdir(tmp_path) == ["taskforged.log"]


def test_what_goes_elsewhere_is_left_alone(tmp_path):
    (tmp_path / "taskforged.log").write_text("x" * 500)
    _write(tmp_path / "taskforged.log", 100, 2, target=tmp_path / "elsewhere")
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "taskforged.log"]
    assert (tmp_path / "taskforged.log").read_text() == "x" * 500


def test_a_file_that_cannot_begin_changes_nothing(tmp_path):
    log = tmp_path / "taskforged.log"
    log.write_text("full\n" * 40)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    (tmp_path / "taskforged.log.new").mkdir()
    with pytest.raises(IsADirectoryError):
        LogFile(log, bytes_max=100, keep=2).turn()
    (tmp_path / "taskforged.log.new").rmdir()
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before
