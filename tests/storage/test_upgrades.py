"""Migrations take a backup first, and a kill in their midst costs nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from taskforged.errors import FailedPreconditionError
from taskforged.store import backup
from taskforged.store.backup import back_up_before_upgrade, inspect_copy, list_backups
from taskforged.store.database import APPLICATION_ID, connect_writer, migrations, split_statements

OLD = 3
RUNS = 30_000


def old_database(path, runs=RUNS):
    """A database of schema 3 with a past that takes a while to migrate."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN")
    for migration in migrations()[:OLD]:
        for statement in split_statements(migration.script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {OLD}")
    connection.executemany(
        "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested,"
        " trigger, created_at, ended_at) VALUES (?1, 'run_' || ?1, 1, 1, 1, 'SUCCEEDED', 1, zeroblob(32), 0, '', 1, 2)",
        [(no,) for no in range(1, runs + 1)],
    )
    connection.executemany(
        "INSERT INTO events SELECT ?1, 'evt_' || ?1, 1, 'webhook', 'p', 'ACCEPTED', '', '', '', '', '{}', '{}', x'', 0,"
        " '', '', '[]', 1, '', NULL, 0, '', '', '', '', ''",
        [(no,) for no in range(1, runs + 1)],
    )
    connection.executemany("INSERT INTO deliveries VALUES (1, 'p', ?, ?)", [(b"%d" % n, n) for n in range(1, runs + 1)])
    connection.execute("COMMIT")
    connection.close()


def test_an_upgrade_takes_a_backup_first_and_keeps_two_of_them(tmp_path):
    path, folder = tmp_path / "taskforge.db", tmp_path / "backups"
    folder.mkdir()
    for day in (1, 2, 3):
        (folder / f"taskforge-2020010{day}T000000Z-2-upgrade.db").write_bytes(b"")
    old_database(path, 10)
    connect_writer(path, before_upgrade=lambda c: back_up_before_upgrade(c, folder)).close()
    newest, *others = list_backups(folder)
    assert (newest.schema, newest.is_upgrade, inspect_copy(newest.path).runs) == (OLD, True, 10)
    assert len(others) == 1
    connect_writer(path, before_upgrade=lambda _: pytest.fail("nothing is to be upgraded")).close()
    connect_writer(tmp_path / "new.db", before_upgrade=lambda _: pytest.fail("there is nothing yet")).close()


def test_without_room_for_it_nothing_is_changed(tmp_path, monkeypatch):
    path = tmp_path / "taskforge.db"
    old_database(path, 10)
    monkeypatch.setattr(backup, "room_for", lambda *_: 5 << 20)
    with pytest.raises(FailedPreconditionError, match="lacks 5 MiB") as caught:
        connect_writer(path, before_upgrade=lambda c: back_up_before_upgrade(c, tmp_path / "backups"))
    assert "TASKFORGE_BACKUP_BEFORE_UPGRADE=false" in caught.value.message
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (OLD,)


PROGRAM = """
import sys
from pathlib import Path
from taskforged.store.backup import back_up_before_upgrade
from taskforged.store.database import connect_writer
home = Path(sys.argv[1])
print("begun", flush=True)
connect_writer(home / "taskforge.db", before_upgrade=lambda c: back_up_before_upgrade(c, home / "backups")).close()
"""


def test_kills_in_the_midst_cost_nothing(tmp_path):
    path = tmp_path / "taskforge.db"
    old_database(path)
    killed = 0
    for part in range(1, 12):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.03 * part)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        for one in list_backups(tmp_path / "backups"):
            assert inspect_copy(one.path).runs == RUNS, "whatever has its name is whole"
    assert killed >= 2
    connection = connect_writer(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchone() is None
        assert connection.execute("PRAGMA user_version").fetchone() == (migrations()[-1].number,)
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (RUNS,)
        assert connection.execute("SELECT count(*) FROM deliveries").fetchone() == (RUNS,)
    finally:
        connection.close()
