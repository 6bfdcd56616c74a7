"""A statement with many rows writes what as many statements would."""

import sqlite3
from contextlib import closing

import pytest

from taskforged.store.database import connect_writer
from taskforged.store.sql import insert_rows


@pytest.fixture
def connection(tmp_path):
    with closing(connect_writer(tmp_path / "taskforge.db")) as connection:
        yield connection


def step(number, key="one"):
    return (number, key, "SUCCEEDED", 0, number, number, None)


def command(number):
    return (number, 1, 0, 1, "default", 5)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 200])
def test_every_row_is_written_whatever_their_number(connection, count):
    insert_rows(connection, "save_step", [step(number) for number in range(count)])
    found = connection.execute("SELECT run_no, key, state, started_at FROM step_runs ORDER BY run_no").fetchall()
    assert found == [(number, "one", "SUCCEEDED", number) for number in range(count)]


@pytest.mark.parametrize("twice", [0, 8, 70])
def test_one_row_that_is_there_refuses_the_transaction_as_a_whole(connection, twice):
    insert_rows(connection, "insert_command", [command(twice)])
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.IntegrityError):
        insert_rows(connection, "insert_command", [command(number) for number in range(72)])
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM commands").fetchone() == (1,)


def test_what_is_saved_again_takes_the_place_of_what_was_there(connection):
    insert_rows(connection, "save_step", [step(number) for number in range(80)])
    later = [(number, "one", "FAILED", 2, number, 7, None) for number in range(80)]
    insert_rows(connection, "save_step", later)
    assert connection.execute("SELECT DISTINCT state, attempt, ended_at FROM step_runs").fetchall() == [
        ("FAILED", 2, 7)
    ]


def test_what_a_query_says_behind_and_among_its_values_stays(connection):
    letters = [(number, 1, 1, "one", "code", "{}", 3, number) for number in range(20)]
    insert_rows(connection, "insert_dead_letter", letters)
    found = connection.execute("SELECT run_no, state FROM dead_letters ORDER BY run_no").fetchall()
    assert found == [(number, "OPEN") for number in range(20)]
