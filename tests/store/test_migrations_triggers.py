"""From schema 2 to schema 3: a database with a past keeps all of it, and finds its webhooks among the triggers."""

import sqlite3

import pytest

from taskforged.clock import Clock
from taskforged.control.trigger_book import TriggerBook
from taskforged.errors import CorruptStoreError
from taskforged.store import database
from taskforged.store.database import APPLICATION_ID, connect_writer, migrations, schema_version, split_statements
from taskforged.store.events import EventStore
from taskforged.store.store import Store

HASH = bytes(range(32))

WORKFLOWS = [  # no, id, namespace_no, name, active, latest, created_at, updated_at, deleted_at, concurrency
    (1, "wf_1", 1, "release", 1, 2, 10, 20, None, ""),
    (2, "wf_2", 2, "deploy", 0, 1, 30, 31, None, '["g",1,"queue"]'),
    (3, "wf_3", 1, "gone", 1, 1, 40, 41, 45, ""),
    (4, "wf_4", 1, "manual-only", 1, 1, 50, 51, None, ""),
]

VERSIONS = [  # workflow_no, number, content_hash, source, profile, created_at, created_by
    (1, 1, "h1", "name: release", "cel/1", 10, "tok-old"),
    (1, 2, "h2", "name: release # 2", "cel/1", 20, "tok-new"),
    (2, 1, "h3", "name: deploy", "cel/1", 30, "tok-two"),
    (3, 1, "h4", "name: gone", "cel/1", 40, "tok-old"),
    (4, 1, "h5", "name: manual-only", "cel/1", 50, ""),
]

WEBHOOKS = [  # namespace_no, path, workflow_no, trigger_id
    (1, "github", 1, "released"),
    (1, "github", 1, "pushed"),
    (1, "gitlab/x", 1, "other"),
    (2, "github", 2, "released"),
]


def event(no, namespace_no, source, outcome, kind="", run_no=None, **more):
    row = {
        "no": no,
        "id": f"evt_{no}",
        "namespace_no": namespace_no,
        "source": source,
        "path": "",
        "outcome": outcome,
        "reason": "",
        "verification": "",
        "delivery_id": "",
        "duplicate_of": "",
        "headers": "{}",
        "query": "{}",
        "body": b"{}",
        "body_size": 2,
        "content_type": "application/json",
        "remote": "",
        "verdicts": "[]",
        "created_at": 100 + no,
        "type": kind,
        "run_no": run_no,
    }
    return row | more


EVENTS = [
    event(
        *(1, 1, "webhook", "ACCEPTED"),
        path="github",
        verification="github",
        delivery_id="d-1",
        headers='{"x-github-event":"release"}',
        query='{"a":"b"}',
        body=b'{"text":"\xc3\xa4"}\x00\xff',
        body_size=4711,
        remote="127.0.0.1",
        verdicts='[{"workflow":"release","matched":true}]',
    ),
    event(2, 1, "webhook", "FILTERED", path="github", delivery_id="d-2"),
    event(3, 1, "webhook", "DUPLICATE", path="github", delivery_id="d-1", duplicate_of="evt_1"),
    event(4, 1, "webhook", "REJECTED", path="github", reason="bad signature", body=b"", body_size=9),
    event(5, 2, "webhook", "HANDSHAKE", path="slack"),
    event(6, 1, "internal", "FILTERED", "run.succeeded", 1),
    event(7, 1, "internal", "FILTERED", "run.failed", 2),
    event(8, 2, "internal", "FILTERED", "order.paid", 3, body=b'{"n":1}', body_size=7),
    event(9, 1, "internal", "FILTERED", "running.late", 1),
    event(12, 1, "webhook", "FILTERED", path="run.me", type="", delivery_id="d-12"),
]
"""With a gap in the numbers: what was pruned stays away."""

DELIVERIES = [(1, "github", b"\x00d-1", 1), (1, "github", b"d-2", 2), (1, "run.me", b"d-12", 12)]

KEPT = [name for name in EVENTS[0] if name not in {"source", "outcome"}]


def old_database(path, *, events=EVENTS):
    """Write a database of schema 2 with a past, as the daemon of that time would have left it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    for migration in migrations()[:2]:
        for statement in split_statements(migration.script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 2")
    connection.execute("INSERT INTO namespaces (no, name, created_at) VALUES (2, 'team', 5)")
    connection.executemany(f"INSERT INTO workflows VALUES ({marks(10)})", WORKFLOWS)
    connection.executemany(f"INSERT INTO workflow_versions VALUES ({marks(7)})", VERSIONS)
    connection.executemany(f"INSERT INTO webhooks VALUES ({marks(4)})", WEBHOOKS)
    connection.executemany(f"INSERT INTO events VALUES ({marks(20)})", [tuple(one.values()) for one in events])
    connection.executemany(f"INSERT INTO deliveries VALUES ({marks(4)})", DELIVERIES)
    for no, state, event_no, ended in ((1, "SUCCEEDED", 1, 60), (2, "FAILED", 1, 61), (3, "RUNNING", None, None)):
        connection.execute(
            "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested,"
            f" trigger, event_no, created_at, started_at, ended_at) VALUES ({marks(14)})",
            (no, f"run_{no}", 1, 1, 2, state, 1, HASH, 0, "released", event_no, 50, 51, ended),
        )
        connection.execute(
            f"INSERT INTO history VALUES ({marks(8)})", (no, 1, 50, "run.created", "", 0, b'{"n":1}', HASH)
        )
    connection.close()


def marks(count):
    return ", ".join("?" * count)


def rows(connection, sql, *parameters):
    return connection.execute(sql, parameters).fetchall()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "taskforge.db"


@pytest.fixture
def migrated(path):
    old_database(path)
    connection = connect_writer(path, synchronous="OFF")
    yield connection
    connection.close()


def test_the_database_is_sound_and_of_the_newest_schema(migrated):
    assert schema_version(migrated) == migrations()[-1].number
    assert rows(migrated, "PRAGMA integrity_check") == [("ok",)]
    assert rows(migrated, "PRAGMA foreign_key_check") == []
    assert rows(migrated, "SELECT name FROM sqlite_schema WHERE name IN ('webhooks', 'new_events')") == []


def test_it_has_the_same_schema_as_one_that_is_new(migrated, tmp_path):
    fresh = connect_writer(tmp_path / "new.db")
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
    assert rows(migrated, schema) == rows(fresh, schema)
    fresh.close()


def test_triggers_carry_the_webhook_paths(migrated):
    found = rows(migrated, "SELECT namespace_no, address, workflow_no, key FROM triggers ORDER BY 1, 2, 3, 4")
    assert found == sorted(WEBHOOKS)
    ids = [one for (one,) in rows(migrated, "SELECT id FROM triggers")]
    assert len(set(ids)) == len(WEBHOOKS)
    assert all(one.startswith("trg_") and len(one) == 30 for one in ids)
    rest = rows(
        migrated,
        "SELECT DISTINCT kind, removed_at, paused_at, paused_by, pause_reason, profile, schedule, cursor, next_at,"
        " suspended_from, suspended_until FROM triggers",
    )
    assert rest == [("webhook", None, None, "", "", "", "", 0, None, None, None)]
    since = rows(migrated, "SELECT DISTINCT workflow_no, created_at FROM triggers ORDER BY 1")
    assert since == [(1, 20), (2, 31)]


def test_every_event_is_there_with_its_source_and_outcome(migrated):
    stored = migrated.execute("SELECT * FROM events ORDER BY no")
    names = [column[0] for column in stored.description]
    found = [dict(zip(names, row, strict=True)) for row in stored]
    assert [{name: one[name] for name in KEPT} for one in found] == [
        {name: one[name] for name in KEPT} for one in EVENTS
    ]
    assert [(one["source"], one["outcome"]) for one in found] == [
        ("webhook", "ACCEPTED"),
        ("webhook", "FILTERED"),
        ("webhook", "DUPLICATE"),
        ("webhook", "REJECTED"),
        ("webhook", "HANDSHAKE"),
        ("engine", "UNMATCHED"),
        ("engine", "UNMATCHED"),
        ("internal", "UNMATCHED"),
        ("internal", "UNMATCHED"),
        ("webhook", "FILTERED"),
    ]
    new = [(one["depth"], one["replay_of"], one["addressee"], one["created_by"]) for one in found]
    assert set(new) == {(0, "", "", "")}


def test_deliveries_are_still_recognised_and_refer_to_their_events(migrated):
    assert rows(migrated, "SELECT namespace_no, path, key, event_no FROM deliveries ORDER BY event_no") == DELIVERIES
    keys = rows(migrated, "PRAGMA foreign_key_list(deliveries)")
    assert [(key[2], key[3], key[4]) for key in keys] == [("events", "event_no", "no")]
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        migrated.execute("INSERT INTO deliveries VALUES (1, 'github', x'00', 9999)")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        migrated.execute("INSERT INTO deliveries VALUES (1, 'github', ?, 2)", (DELIVERIES[0][2],))


def test_runs_and_their_history_stay(migrated):
    assert rows(migrated, "SELECT no, state, event_no, trigger, trigger_no FROM runs ORDER BY no") == [
        (1, "SUCCEEDED", 1, "released", None),
        (2, "FAILED", 1, "released", None),
        (3, "RUNNING", None, "released", None),
    ]
    assert rows(migrated, "SELECT count(*), min(hash), max(hash) FROM history") == [(3, HASH, HASH)]


def test_workflows_act_for_the_token_that_applied_the_newest_version(migrated):
    assert rows(migrated, "SELECT no, applied_by FROM workflows ORDER BY no") == [
        (1, "tok-new"),
        (2, "tok-two"),
        (3, "tok-old"),
        (4, ""),
    ]


async def test_the_program_finds_triggers_and_events(path):
    old_database(path)
    store = Store(path)
    await store.start()
    try:
        book = TriggerBook(store, Clock())
        await book.start()
        assert [(one.workflow_no, one.key) for one in book.on_path(1, "github")] == [(1, "pushed"), (1, "released")]
        assert [(one.workflow_no, one.key) for one in book.on_path(2, "github")] == [(2, "released")]
        events = EventStore(store)
        assert await events.by_delivery(1, "github", DELIVERIES[0][2]) == (1, "evt_1")
        first = await events.by_id("evt_1")
        assert (first.source, first.body) == ("webhook", EVENTS[0]["body"])
        assert store.last_no["events"] == 12
        assert store.last_no["triggers"] == len(WEBHOOKS)
    finally:
        await store.stop()


# --- what cannot change ----------------------------------------------------------------------------------------------


def insert_pending(connection, no=50):
    row = event(no, 1, "internal", "PENDING", "order.paid")
    names = ", ".join(row)
    connection.execute(
        f"INSERT INTO events ({names}, depth, replay_of, addressee, created_by, origin, subject)"
        f" VALUES ({marks(len(row))}, 0, '', '', 'tok', 'o', 's')",
        tuple(row.values()),
    )
    return no


@pytest.mark.parametrize("no", [one["no"] for one in EVENTS])
@pytest.mark.parametrize("change", ["outcome = 'PENDING'", "verdicts = '[1]'", "body = x''", "reason = 'x'"])
def test_an_event_that_is_decided_cannot_change(migrated, no, change):
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        migrated.execute(f"UPDATE events SET {change} WHERE no = ?", (no,))


def test_a_pending_event_gets_its_outcome_once(migrated):
    no = insert_pending(migrated)
    decide = "UPDATE events SET outcome = ?, verdicts = ? WHERE no = ?"
    assert migrated.execute(decide, ("ACCEPTED", "[1]", no)).rowcount == 1
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        migrated.execute(decide, ("FILTERED", "[2]", no))
    assert rows(migrated, "SELECT outcome, verdicts FROM events WHERE no = ?", no) == [("ACCEPTED", "[1]")]


@pytest.mark.parametrize(
    "change",
    [
        "no = 51",
        "id = 'evt_x'",
        "namespace_no = 2",
        "source = 'engine'",
        "type = 'order.lost'",
        "body = x'31'",
        'headers = \'{"a":"b"}\'',
        'query = \'{"a":"b"}\'',
        "run_no = 1",
        "depth = 1",
        "created_at = 1",
    ],
)
def test_of_a_pending_event_nothing_changes_but_what_became_of_it(migrated, change):
    no = insert_pending(migrated)
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        migrated.execute(f"UPDATE events SET outcome = 'ACCEPTED', {change} WHERE no = ?", (no,))


def insert_slot(connection, *, due_at=1000, last_at=1000, count=1, outcome="FIRED", trigger_no=1, backfill=0):
    connection.execute(
        f"INSERT INTO schedule_slots VALUES ({marks(10)})",
        (trigger_no, due_at, backfill, last_at, count, outcome, 1001, 0, None, ""),
    )


@pytest.mark.parametrize(
    "change", ["outcome = 'MISSED'", "due_at = 999", "count = 2", "reason = ''", "event_no = 1", "last_at = 2000"]
)
def test_a_slot_cannot_change(migrated, change):
    insert_slot(migrated)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        migrated.execute(f"UPDATE schedule_slots SET {change}")


def test_a_slot_is_there_once_and_each_backfill_is_another(migrated):
    insert_slot(migrated)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        insert_slot(migrated, outcome="MISSED")
    insert_slot(migrated, backfill=77)
    insert_slot(migrated, trigger_no=2)


@pytest.mark.parametrize(
    "row", [{"count": 0}, {"last_at": 999}, {"outcome": "LATE"}, {"trigger_no": 99}], ids=lambda row: next(iter(row))
)
def test_impossible_slots_are_refused(migrated, row):
    with pytest.raises(sqlite3.IntegrityError):
        insert_slot(migrated, **row)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_migration_that_is_cut_leaves_schema_two_whole(path, monkeypatch):
    old_database(path)
    before = dump(path)
    third = migrations()[2]
    half = third._replace(script=third.script + "\nINSERT INTO nowhere VALUES (1);\n")
    good = migrations()
    with monkeypatch.context() as patch:
        patch.setattr(database, "migrations", lambda: [*good[:2], half])
        with pytest.raises(CorruptStoreError, match="Nothing was changed"):
            connect_writer(path)
    assert dump(path) == before
    connection = connect_writer(path)
    assert schema_version(connection) == good[-1].number
    assert rows(connection, "SELECT count(*) FROM events") == [(len(EVENTS),)]
    connection.close()


def dump(path):
    connection = sqlite3.connect(path)
    found = list(connection.iterdump())
    connection.close()
    return found


def test_a_large_past_is_carried_over_whole(path):
    many = [
        event(
            no, 1, "internal" if no % 3 else "webhook", "FILTERED", "run.succeeded" if no % 3 else "", body=b"x" * 200
        )
        for no in range(1, 20_001)
    ]
    old_database(path, events=many)
    connection = connect_writer(path)
    sources = rows(connection, "SELECT source, outcome, count(*) FROM events GROUP BY 1, 2 ORDER BY 1")
    assert sources == [("engine", "UNMATCHED", 13_334), ("webhook", "FILTERED", 6_666)]
    assert rows(connection, "PRAGMA foreign_key_check") == []
    connection.close()
