"""Opening the database: pragmas, migrations, refusals."""

import os
import re
import sqlite3
import threading
import time
from importlib.resources import files

import pytest

from taskforged.errors import CorruptStoreError, FailedPreconditionError
from taskforged.store.database import (
    APPLICATION_ID,
    HomeLock,
    connect_reader,
    connect_writer,
    migrations,
    schema_version,
    split_statements,
)
from taskforged.store.runs import RunFilter, _list_query
from taskforged.store.sql import QUERIES, parse_queries


@pytest.fixture
def path(tmp_path):
    return tmp_path / "taskforge.db"


def test_a_new_database_has_every_migration_and_the_pragmas_of_the_design(path):
    connection = connect_writer(path)
    assert schema_version(connection) == migrations()[-1].number
    pragma = lambda name: connection.execute(f"PRAGMA {name}").fetchone()[0]
    assert pragma("application_id") == APPLICATION_ID
    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("foreign_keys") == 1
    assert pragma("auto_vacuum") == 2
    connection.close()


def test_opening_again_changes_nothing(path):
    connect_writer(path).close()
    before = sqlite3.connect(path)
    schema = before.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall()
    before.close()
    again = connect_writer(path)
    assert again.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall() == schema
    again.close()


def test_migrations_are_numbered_from_one_without_gaps():
    assert [m.number for m in migrations()] == list(range(1, len(migrations()) + 1))
    for file in files("taskforged.store").joinpath("migrations").iterdir():
        assert re.fullmatch(r"\d{4}_[a-z_]+\.sql", file.name)


def test_a_newer_database_is_refused_and_left_alone(path):
    connection = connect_writer(path)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    with pytest.raises(CorruptStoreError, match="newer than this program") as caught:
        connect_writer(path)
    assert caught.value.reason == "SCHEMA_TOO_NEW"
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA user_version").fetchone()[0] == 9999
    check.close()


def test_a_database_of_another_program_is_refused(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE contacts (name TEXT)")
    other.close()
    with pytest.raises(CorruptStoreError, match="another program"):
        connect_writer(path)


@pytest.mark.parametrize(
    "content", [b"this is no database at all, only text " * 200, b"SQLite format 3\0" + b"\xff" * 8000]
)
def test_a_file_that_is_no_database_is_refused_with_a_clear_message(path, content):
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="cannot be used"):
        connect_writer(path)
    assert path.read_bytes() == content


def test_a_torn_schema_page_is_refused(path):
    connect_writer(path).close()
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xa5" * 3996
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError):
        connect_writer(path)


def test_a_migration_that_fails_half_way_leaves_nothing(path, monkeypatch):
    from taskforged.store import database

    good = migrations()
    broken = database.Migration(
        len(good) + 1, "broken", "CREATE TABLE half (x INTEGER);\nINSERT INTO nowhere VALUES (1);\n"
    )
    connect_writer(path).close()
    monkeypatch.setattr(database, "migrations", lambda: [*good, broken])
    with pytest.raises(CorruptStoreError):
        connect_writer(path)
    monkeypatch.undo()
    connection = connect_writer(path)
    assert schema_version(connection) == len(good)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone()[0] == 0
    connection.close()


def test_a_reader_cannot_write(path):
    connect_writer(path).close()
    reader = connect_reader(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly|query_only|read-only"):
        reader.execute("DELETE FROM boots")
    reader.close()


def test_the_splitter_knows_triggers_strings_and_comments():
    script = (
        "CREATE TABLE a (x TEXT DEFAULT 'one; two');\n-- a comment; with a semicolon\n"
        "CREATE TRIGGER t BEFORE UPDATE ON a\nBEGIN SELECT 1; SELECT 2; END;\nINSERT INTO a VALUES ('x');\n-- end\n"
    )
    found = list(split_statements(script))
    assert len(found) == 3
    assert found[1].endswith("END;")
    with pytest.raises(ValueError, match="unfinished"):
        list(split_statements("CREATE TABLE a (x"))


def test_every_named_query_is_valid_sql_for_the_schema(path):
    connection = connect_writer(path)
    for name, sql in QUERIES.items():
        count = max([sql.count("?"), *map(int, re.findall(r"\?(\d+)", sql))]) if "?" in sql else 0
        named = re.findall(r":(\w+)", sql)
        connection.execute(f"EXPLAIN {sql}", dict.fromkeys(named) if named else [None] * count).fetchall()
        assert name == name.lower()
    connection.close()


def test_a_query_name_cannot_stand_twice():
    with pytest.raises(ValueError, match="twice"):
        parse_queries("-- a --\nSELECT 1\n-- a --\nSELECT 2\n")


HOT = {
    "queued_commands": "commands_queued",
    "claimed_commands": "commands_claimed",
    "due_timers": "timers_by_due",
    "run_by_request": "runs_by_request",
    "history_after": "PRIMARY KEY",
    "run_by_id": "sqlite_autoindex_runs",
}


@pytest.mark.parametrize("name", sorted(HOT))
def test_hot_queries_go_by_their_index(path, name):
    connection = connect_writer(path)
    plan = " ".join(
        row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", [1] * QUERIES[name].count("?"))
    )
    connection.close()
    assert HOT[name] in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("states", [("CANCELLED",), ("PENDING", "RUNNING"), ("FAILED", "DEAD")])
@pytest.mark.parametrize("before", [0, 7])
def test_runs_in_a_state_that_few_are_in_are_not_looked_for_among_all(path, states, before):
    connection = connect_writer(path)
    sql, values = _list_query(RunFilter(1, states=states, before=before), 50)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    connection.close()
    assert sum("INDEX runs_by_trouble (namespace_no=? AND state=?" in step for step in plan) == len(states), plan
    assert not any("runs_by_namespace" in step or "SCAN runs" in step for step in plan), plan


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE history SET body = x'7b7d'",
        "DELETE FROM history",
        "UPDATE workflow_versions SET source = ''",
        "DELETE FROM workflow_versions",
        "UPDATE events SET body = x''",
    ],
)
def test_what_is_history_cannot_be_rewritten(path, statement):
    connection = connect_writer(path)
    connection.execute("INSERT INTO history VALUES (1, 1, 1, 'run.created', '', 0, x'7b7d', zeroblob(32))")
    connection.execute("INSERT INTO workflows VALUES (1, 'wf_1', 1, 'w', 1, 1, 1, 1, NULL, '', '', '')")
    connection.execute("INSERT INTO workflow_versions VALUES (1, 1, 'h', 's', 'cel/1', 1, '')")
    connection.execute(
        "INSERT INTO events VALUES (1, 'evt_1', 1, 'webhook', 'p', 'ACCEPTED', '', '', '', '', '{}', '{}', x'', 0, '',"
        " '', '[]', 1, '', NULL, 0, '', '', '', '', '')"
    )
    with pytest.raises(sqlite3.IntegrityError, match="immutable|append-only"):
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("state, ended", [("RUNNING", 5), ("SUCCEEDED", None), ("NONSENSE", None)])
def test_the_schema_refuses_impossible_runs(path, state, ended):
    connection = connect_writer(path)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute(
            QUERIES["insert_run"],
            (
                *(1, "run_1", 1, 1, 1, state, 1, bytes(32), 0, "manual", None, None, None, 1, 1, ended),
                *("default", 5, "", 0, 0, None, None, None, None),
            ),
        )
    connection.close()


def test_a_home_is_locked_for_one(tmp_path):
    first, second = HomeLock(tmp_path / "lock"), HomeLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(FailedPreconditionError, match="already runs") as caught:
        second.acquire()
    assert caught.value.metadata["pid"].isdigit()
    first.release()
    second.acquire()
    second.release()
    second.release()


def test_one_that_only_looks_gives_way(tmp_path):
    looker, daemon = HomeLock(tmp_path / "lock", looks=True), HomeLock(tmp_path / "lock")
    (tmp_path / "lock.wanted").touch()  # of one that was killed while it waited
    looker.acquire()
    assert not looker.is_wanted()

    def give_way():
        while not looker.is_wanted():
            time.sleep(0.01)
        looker.release()

    giving = threading.Thread(target=give_way)
    giving.start()
    daemon.acquire()
    giving.join()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "lock.wanted").exists()
    with pytest.raises(FailedPreconditionError, match="already runs"):
        looker.acquire()
    daemon.release()
