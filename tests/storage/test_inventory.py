"""`python -m taskforged.inventory`: what a database holds, proved, while no daemon runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import Daemon, start_run, wait_until_idle

CHILD = "{name: child, steps: [{id: a, transform: 1}]}"
PARENT = "{name: parent, steps: [{id: sub, workflow: child}, {id: tell, event: {type: x.y, data: 1}}]}"


def inventory(home: Path, file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    command = [sys.executable, "-m", "taskforged.inventory", "--home", str(home), str(file)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 1), done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return answer, lines


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def spoil(daemon: Daemon, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(daemon.home / "taskforge.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def test_what_there_is_and_what_is_wrong_with_it(daemon: Daemon, tmp_path: Path) -> None:
    for source in (CHILD, PARENT):
        await daemon.apply(source)
    run_id = await start_run(daemon, "parent", request_id="r-1")
    await wait_until_idle(daemon, [run_id], within_s=30)
    held, _ = await asyncio.to_thread(inventory, daemon.home, tmp_path / "held")
    assert "already runs on" in held["message"]
    assert await asyncio.to_thread(daemon.terminate) == 0

    told, lines = await asyncio.to_thread(inventory, daemon.home, tmp_path / "all")
    assert told == {"ok": True, "runs": 2, "events": 3}
    assert lines[0] == {"kind": "database", "faults": []}
    assert lines[-1] == {"kind": "end"}
    assert (tmp_path / "all").stat().st_mode & 0o777 == 0o600
    parent, child = of_kind(lines, "run")
    assert (parent["id"], parent["workflow"], parent["request_id"]) == (run_id, "parent", "r-1")
    assert child["parent"] == run_id
    assert parent["faults"] == child["faults"] == []
    assert parent["history"][-1][2] == "run.succeeded"
    assert len(parent["history"]) == parent["sequence"]
    (published,) = [one for one in of_kind(lines, "event") if one["type"] == "x.y"]
    assert (published["publisher"], published["told"], published["body"]) == (run_id, 1, "1")
    assert of_kind(lines, "leftover") == []

    spoil(
        daemon,
        "UPDATE step_runs SET state = 'FAILED' WHERE key = 'tell'",
        "DROP TRIGGER history_is_append_only",
        f"UPDATE history SET body = CAST('{{}}' AS BLOB) WHERE kind = 'run.created' AND run_no = (SELECT no FROM runs WHERE id = '{child['id']}')",
        "INSERT INTO timers (run_no, sequence, due_at) SELECT no, 1, 0 FROM runs WHERE parent_no IS NOT NULL",
        "PRAGMA foreign_keys = OFF",
        "INSERT INTO deliveries VALUES (1, 'x', x'00', 4711)",
    )
    _, lines = await asyncio.to_thread(inventory, daemon.home, tmp_path / "spoiled")
    assert "deliveries refers to a row of events that is not there" in lines[0]["faults"][0]
    parent, child = of_kind(lines, "run")
    assert "step tell: ('FAILED', 0) is stored, ('SUCCEEDED', 0) follows from history" in parent["faults"][0]
    assert any("the hash of sequence 1 does not fit" in one for one in child["faults"])
    assert of_kind(lines, "leftover") == [
        {"kind": "leftover", "what": "timer", "run": child["id"], "state": "SUCCEEDED", "claimed": 0}
    ]


def test_a_home_without_a_database(tmp_path: Path) -> None:
    answer, lines = inventory(tmp_path, tmp_path / "out")
    assert f"there is no database in {tmp_path}" in answer["message"]
    assert lines == []
