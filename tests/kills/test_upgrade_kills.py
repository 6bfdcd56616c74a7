"""Databases of every schema that there was are upgraded by a real daemon, and SIGKILL in any step of that costs nothing.

`tests/fixtures/schemas` has what the daemon of each schema left when it was killed: ended and open runs, a webhook with
its secret, later sub-workflows, events and schedules. `TASKFORGE_TEST_CYCLES` sets how often each step of each upgrade
is killed (`make soak`: ten times), `TASKFORGE_TEST_SEED` repeats the choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import FIXTURES, Daemon, github_headers, seeded
from kills.stage import UPGRADE_POINTS, opened
from nursery import Nursery
from switchboard import Board, eventually, state

from taskforged.failpoints import VARIABLE
from taskforged.store.backup import inspect_copy, list_backups
from taskforged.store.database import connect_writer, migrations, split_statements

CYCLES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "0")) // 20
NEWEST = migrations()[-1].number
SCHEMAS = sorted(int(one.stem.split("-")[1]) for one in (FIXTURES / "schemas").glob("schema-*.sql"))
SECRET = "the secret of schema"
WANTED = {
    1: [("light", 3), ("naps", 1), ("on-release", 1)],
    2: [("above", 1), ("naps", 1)],  # naps below above
    3: [("yearly", 1)],  # an event that `above` tells
}
"""Which runs each schema brought that succeed in the end; and one of `tries`, which cannot, is in all of them."""
SHAPE = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where daemons come from."""
    with Nursery() as made:
        yield made


def old_script(schema: int) -> str:
    """A database as text."""
    return (FIXTURES / "schemas" / f"schema-{schema}.sql").read_text()


def old_home(folder: Path, schema: int) -> Path:
    """A home as the daemon of a schema left it."""
    script = old_script(schema)
    folder.mkdir(mode=0o700)
    for name, label in (("master.key", "master key"), ("token", "token")):
        found = re.search(rf"^-- {label}: (\S+)$", script, re.MULTILINE)
        assert found is not None
        (folder / name).write_text(found[1] + "\n")
        (folder / name).chmod(0o600)
    with contextlib.closing(sqlite3.connect(folder / "taskforge.db")) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(script)
    return folder


def _past(connection: sqlite3.Connection) -> dict[str, Any]:
    """What every schema can tell of the past, and no upgrade may change."""
    return {
        "runs": connection.execute("SELECT no, id, state, sequence, hex(head_hash) FROM runs ORDER BY no").fetchall(),
        "history": connection.execute("SELECT *, hex(hash) FROM history ORDER BY run_no, sequence").fetchall(),
        "events": connection.execute("SELECT no, id, body, created_at FROM events ORDER BY no").fetchall(),
        "deliveries": connection.execute("SELECT path, hex(key), event_no FROM deliveries ORDER BY 2").fetchall(),
        "timers": connection.execute("SELECT run_no, sequence, due_at FROM timers ORDER BY 1, 2").fetchall(),
        "secrets": connection.execute("SELECT name, version, hex(ciphertext) FROM secrets").fetchall(),
        "versions": connection.execute("SELECT workflow_no, number, content_hash, source FROM workflow_versions").fetchall(),
    }  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_released_migration_is_not_edited(schema: int) -> None:
    old = sqlite3.connect(":memory:")
    old.executescript(old_script(schema))
    new = sqlite3.connect(":memory:", isolation_level=None)
    for migration in migrations()[:schema]:
        for statement in split_statements(migration.script):
            new.execute(statement)
    assert old.execute(SHAPE).fetchall() == new.execute(SHAPE).fetchall(), "add a migration instead"
    assert old.execute("PRAGMA user_version").fetchone() == (schema,)
    old.close()
    new.close()


def test_every_schema_has_its_database() -> None:
    """The newest one may still be in the making; the one before it is not."""
    assert len(SCHEMAS) in {NEWEST - 1, NEWEST}, "add what the daemon of the newest schema leaves; see docs/testing.md"
    assert SCHEMAS == list(range(1, len(SCHEMAS) + 1))


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_daemon_takes_over_what_one_of_an_old_schema_left(
    schema: int, nursery: Nursery, tmp_path: Path
) -> None:
    daemon = Daemon(old_home(tmp_path / "home", schema), nursery=nursery)
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        wanted = Counter({("tries", "DEAD"): 1})
        for since in filter(lambda since: since <= schema, WANTED):
            wanted.update({(workflow, "SUCCEEDED"): count for workflow, count in WANTED[since]})
        runs = await eventually(board.runs, lambda runs: len(runs) == wanted.total())
        ended = {run.id: await board.ended(run.id) for run in runs}
        assert Counter((run.workflow, state(run)) for run in ended.values()) == wanted
        for run_id in ended:
            verdict = await board("VerifyRun", run_id=run_id)
            assert verdict.intact, f"{run_id}: {list(verdict.faults)}"
        body = json.dumps({"action": "published"}).encode()
        again = await board.post("github", body, github_headers(SECRET, body, delivery="d-1"))
        # Schemas 1 and 2 knew deliveries by another key.
        assert (again.status, again.body["outcome"]) == ((200, "DUPLICATE") if schema >= 3 else (202, "ACCEPTED"))
        first = await board.post("github", body, github_headers(SECRET, body, delivery="d-3"))
        assert (first.status, first.body["outcome"]) == (202, "ACCEPTED"), "its secret is known still"
        assert (await board("RotateMasterKey")).secrets == 1
        assert len(list_backups(daemon.home / "backups")) == (schema < NEWEST)
        assert await asyncio.to_thread(daemon.terminate) == 0
    finally:
        await board.close()
        await daemon.aclose()


def _plans(schema: int) -> list[str]:
    """Each step of an upgrade."""
    steps = NEWEST - schema
    found = [f"{name}=kill@{n}" for name in UPGRADE_POINTS if "migration" in name for n in range(1, steps + 1)]
    return [*found, *(f"{name}=kill" for name in UPGRADE_POINTS if "upgrade" in name)]


def _chosen(chance: random.Random) -> list[tuple[int, str]]:
    """All steps of all upgrades so often, or in CI all of the longest one and one of each other."""
    if CYCLES:
        return [(schema, plan) for schema in SCHEMAS for plan in _plans(schema) if schema < NEWEST] * CYCLES
    return [(1, plan) for plan in _plans(1)] + [
        (schema, chance.choice(_plans(schema))) for schema in SCHEMAS[1:] if schema < NEWEST
    ]


@pytest.mark.timeout(300 + 300 * CYCLES)
def test_a_kill_in_any_step_of_an_upgrade_costs_nothing(nursery: Nursery, tmp_path: Path) -> None:
    chance = seeded("test_upgrade_kills")
    chosen = _chosen(chance)
    pasts: dict[int, Any] = {}
    for schema, plan in chosen:
        home = old_home(tmp_path / "home", schema)
        with opened(home) as connection:
            pasts[schema] = _past(connection)
        daemon = Daemon(home, nursery=nursery, env={VARIABLE: plan})
        try:
            daemon.process = daemon.spawn()
            code = daemon.process.wait(Daemon.READY_S)
            assert code == -signal.SIGKILL, f"{schema}, {plan}: exit code {code}\n{daemon.tail(20)}"
        finally:
            daemon.close_process()
        _check(home, schema, plan, pasts[schema])
        shutil.rmtree(home)
    print(f"{len(chosen)} kills in upgrades")


def _check(home: Path, schema: int, plan: str, past: dict[str, Any]) -> None:
    """The database is of one schema or another and whole, the backup is that of before, and an upgrade goes on."""
    name, _, step = plan.partition("=kill@")
    done = int(step or 0) - (name != "migration.committed") if step else 0
    where = f"schema {schema}, killed at {plan}"
    (kept,) = list_backups(home / "backups")
    assert inspect_copy(kept.path).schema == schema, where
    restored = home / "restored.db"
    shutil.copyfile(kept.path, restored)
    for file, version in ((home / "taskforge.db", schema + done), (restored, schema)):
        with opened(home) if file.name == "taskforge.db" else contextlib.closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (version,), f"{where}: {file.name}"
            assert _past(connection) == past, f"{where}: {file.name}"
        upgraded = connect_writer(file, synchronous="OFF")
        try:
            assert upgraded.execute("PRAGMA user_version").fetchone() == (NEWEST,), where
            assert upgraded.execute("PRAGMA integrity_check").fetchone() == ("ok",), where
            assert upgraded.execute("PRAGMA foreign_key_check").fetchone() is None, where
            assert _past(upgraded) == past, where
        finally:
            upgraded.close()
