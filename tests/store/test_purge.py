"""Deletion, as the schema allows it: by way of `purge` and nothing else, whole, and never what is needed."""

import sqlite3

import pytest

from taskforged.store import purge
from taskforged.store.database import connect_writer

RUN = (
    "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested,"
    " trigger, created_at, ended_at, parent_no, retry_of_no, rerun_of_no, event_no)"
    " VALUES (?, 'run_' || ?1, 1, 1, 1, ?, 3, zeroblob(32), 0, 'manual', 10, ?, ?, ?, ?, ?)"
)
EVENT = (
    "INSERT INTO events (no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of,"
    " headers, query, body, body_size, content_type, remote, verdicts, created_at, type, run_no, depth, replay_of,"
    " addressee, created_by, origin, subject) VALUES (?, 'evt_' || ?1, 1, 'webhook', 'p', ?, '', '', '', '', '{}', '{}',"
    " x'', 0, '', '', '[]', ?, '', ?, 0, '', '', '', '', '')"
)


@pytest.fixture
def store(tmp_path):
    connection = connect_writer(tmp_path / "t.db", synchronous="OFF")
    yield connection
    connection.close()


def add_run(store, no, *, ended=20, parent=None, retry_of=None, rerun_of=None, event=None, rows=3):
    state = "SUCCEEDED" if ended else "RUNNING"
    store.execute(RUN, (no, state, ended, parent, retry_of, rerun_of, event))
    history = [(no, n, 10, "x", "", 0, b"{}", bytes(32)) for n in range(1, rows + 1)]
    store.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?)", history)
    store.execute("INSERT INTO step_runs VALUES (?, 'a', 'SUCCEEDED', 1, 10, 20, NULL)", (no,))
    store.execute(
        "INSERT INTO step_logs (run_no, step, attempt, at, stream, text) VALUES (?, 'a', 1, 1, 'stdout', 't')", (no,)
    )


def numbers(store, table="runs"):
    return [row[0] for row in store.execute(f"SELECT no FROM {table} ORDER BY no")]


def left_of(store, no):
    return [
        store.execute(f"SELECT count(*) FROM {table} WHERE run_no = ?", (no,)).fetchone()[0]
        for table in ("history", "step_runs", "step_logs", "dead_letters", "purge")
    ]


def test_a_run_goes_with_all_that_belongs_to_it(store):
    add_run(store, 1)
    add_run(store, 2)
    done = purge.purge_runs(store, [1], 1000)
    assert (done.things, done.used, done.is_cut) == (1, 1, False)
    assert numbers(store) == [2]
    assert left_of(store, 1) == [0, 0, 0, 0, 0]
    assert left_of(store, 2) == [3, 1, 1, 0, 0]
    assert store.execute("SELECT what, namespace_no, workflow_no, count, until FROM pruned").fetchall() == [
        ("runs", 1, 1, 1, 10)
    ]


def test_a_large_run_is_gone_at_once_and_its_rest_goes_in_pieces(store):
    add_run(store, 1, rows=1000)
    slices = [purge.purge_runs(store, [1], 100)]
    assert slices[0].is_cut
    assert numbers(store) == []
    while slices[-1].is_cut:
        slices.append(purge.finish_leaving(store, 100))
    assert max(one.rows for one in slices) <= 101
    assert len(slices) >= 10
    assert left_of(store, 1) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda s: add_run(s, 1, ended=None),
        lambda s: (
            add_run(s, 1),
            s.execute(
                "INSERT INTO dead_letters (run_no, namespace_no, workflow_no, state, step, code, error, attempts,"
                " created_at) VALUES (1, 1, 1, 'OPEN', '', '', '{}', 1, 1)"
            ),
        ),
        lambda s: (add_run(s, 1), s.execute("INSERT INTO children VALUES (1, 1, 'run_x', 'w', 1, 0)")),
        lambda s: (add_run(s, 1), s.execute("INSERT INTO children VALUES (9, 1, 'run_1', 'w', 1, 0)")),
        lambda s: (add_run(s, 1), add_run(s, 2, ended=None, parent=1)),
        lambda s: (add_run(s, 2, ended=None), add_run(s, 1, parent=2)),
        lambda s: (add_run(s, 1), add_run(s, 2, ended=None, retry_of=1)),
        lambda s: (add_run(s, 1), add_run(s, 2, ended=None, rerun_of=1)),
        lambda s: (add_run(s, 2), add_run(s, 1, retry_of=2)),
        lambda s: (add_run(s, 1), s.execute(EVENT, (1, "PENDING", 1, 1))),
    ],
    ids=[
        "open",
        "dead letter",
        "waits for a child",
        "its parent waits",
        "open child",
        "open parent",
        "open retry",
        "open repetition",
        "retry of what is there",
        "pending event",
    ],
)
def test_what_is_needed_stays_whoever_asks(store, prepare):
    prepare(store)
    assert purge.purge_runs(store, [1], 1000).things == 0
    with pytest.raises(sqlite3.IntegrityError, match="still needed"):
        store.execute("INSERT INTO purge VALUES (1)")
    assert 1 in numbers(store)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM runs",
        "DELETE FROM history",
        "DELETE FROM step_runs",
        "DELETE FROM events",
        "DELETE FROM schedule_slots",
        "UPDATE history SET body = x''",
    ],
)
def test_nothing_else_can_delete(store, sql):
    add_run(store, 1)
    store.execute(EVENT, (1, "ACCEPTED", 1, None))
    store.execute("INSERT INTO workflows VALUES (1, 'wf_1', 1, 'w', 1, 1, 1, 1, NULL, '', '', '')")
    store.execute(
        "INSERT INTO triggers (no, id, namespace_no, workflow_no, key, kind, address, created_at) VALUES"
        " (1, 't', 1, 1, 'k', 'cron', '', 1)"
    )
    store.execute("INSERT INTO schedule_slots VALUES (1, 1, 0, 1, 1, 'FIRED', 1, 0, NULL, '')")
    with pytest.raises(sqlite3.IntegrityError):
        store.execute(sql)


def test_a_name_cannot_go_before_the_run_has_gone_whole(store):
    add_run(store, 1, rows=50)
    purge.purge_runs(store, [1], 10)
    with pytest.raises(sqlite3.IntegrityError, match="deleted whole"):
        store.execute("DELETE FROM purge")
    with pytest.raises(sqlite3.IntegrityError, match="stays named"):
        store.execute("UPDATE purge SET run_no = 7")


def test_an_event_goes_when_it_is_old_and_nothing_refers_to_it(store):
    for no, outcome, run in ((1, "ACCEPTED", None), (2, "ACCEPTED", None), (3, "PENDING", None), (4, "FILTERED", None)):
        store.execute(EVENT, (no, outcome, 100, run))
    store.execute(EVENT, (5, "ACCEPTED", 900, None))
    add_run(store, 1, event=2)
    store.execute("INSERT INTO deliveries VALUES (1, 'p', x'01', 4)")
    rows = [(no, 1, "ACCEPTED", 100) for no in (1, 2, 3, 4)]
    assert purge.purge_events(store, rows, 500, 100).things == 1
    assert numbers(store, "events") == [2, 3, 4, 5]
    with pytest.raises(sqlite3.IntegrityError, match="until it is pruned"):
        purge.purge_events(store, [(5, 1, "ACCEPTED", 900)], 500, 100)
    store.execute("DELETE FROM purge_until")
    purge.forget_deliveries(store, [(1, "p", b"\x01")])
    assert purge.purge_events(store, rows, 500, 100).things == 1
    assert numbers(store, "events") == [2, 3, 5]


def test_numbers_are_never_given_twice(store):
    add_run(store, 7)
    purge.purge_runs(store, [7], 100)
    assert store.execute("SELECT value FROM meta WHERE key = 'last_no.runs'").fetchone() == ("7",)
