"""Promises whose breach no other test noticed: each of these was written for a mutant that had survived."""

import os

import pytest

from taskforged.engine.events import HistoryEvent
from taskforged.engine.states import Kind
from taskforged.errors import ConflictError
from taskforged.store import backup
from taskforged.store.changes import GENESIS, RunChange, chain_hash
from taskforged.store.database import connect_writer
from taskforged.store.journal import Write
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

RUN = (
    "INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested,"
    " trigger, created_at, started_at, request_id, request_digest)"
    " VALUES (?, 'run_' || ?1, ?, 1, 1, 'RUNNING', 3, zeroblob(32), 0, 'manual', 10, 10, ?, ?)"
)


@pytest.fixture
async def store(tmp_path):
    made = Store(tmp_path / "taskforge.db", synchronous="OFF")
    await made.start()
    await made.journal.execute(lambda c: c.execute(RUN, (1, 1, None, None)))
    yield made
    await made.stop()


async def write(store, **rows):
    await store.journal.submit(Write(changes=[RunChange(**rows)]))


async def epochs(store):
    rows = await store.read(lambda c: c.execute("SELECT run_no, sequence, epoch FROM commands").fetchall())
    return {(no, seq): epoch for no, seq, epoch in rows}


async def test_a_run_moves_only_from_where_it_was_read(store):
    moved = ("PAUSED", 4, bytes(32), 0, 10, None, 1)
    with pytest.raises(ConflictError):
        await write(store, update=(*moved, 2))
    assert (await RunStore(store).by_no(1)).state == "RUNNING"
    await write(store, update=(*moved, 3))
    assert (await RunStore(store).by_no(1)).state == "PAUSED"


async def test_a_command_is_claimed_once(store):
    """What the epoch of a claim is for: who comes later, with a newer epoch or an older one, is refused."""
    await write(store, commands=[(1, 3, 0, 1, "default", 5)])
    await write(store, claims=[(7, 1, 3)])
    for epoch in (6, 7, 8):
        with pytest.raises(ConflictError):
            await write(store, claims=[(epoch, 1, 3)])
    assert await epochs(store) == {(1, 3): 7}


async def test_a_result_that_nobody_waits_for_is_refused(store):
    await write(store, commands=[(1, 3, 7, 1, "default", 5)])
    await write(store, finished_commands=[(1, 3)])
    with pytest.raises(ConflictError):
        await write(store, finished_commands=[(1, 3)], timers=[])
    assert await epochs(store) == {}


def test_the_hash_of_an_event_depends_on_all_before_it():
    first = HistoryEvent(1, 10, Kind.RUN_CREATED, "", 0, {})
    second = HistoryEvent(2, 10, Kind.RUN_STARTED, "", 0, {})
    heads = {chain_hash(chain_hash(GENESIS, first, body), second, b"{}") for body in (b"{}", b'{"a":1}')}
    assert len(heads) == 2
    known = chain_hash(chain_hash(GENESIS, first, b"{}"), second, b"{}").hex()
    assert known == "2c3531e04a868cdad381b7281684f390fda7606c794267df7bd56a63bfab614c", (
        "what is stored is chained by this very rule: it must never change"
    )


async def test_a_request_id_is_known_in_its_namespace_only(store):
    rows = [(2, 1, "same", b"a"), (3, 2, "same", b"b")]
    await store.journal.execute(lambda c: c.executemany(RUN, rows))
    runs = RunStore(store)
    assert [(await runs.by_request(namespace_no, "same")).no for namespace_no in (1, 2)] == [2, 3]
    assert await runs.by_request(3, "same") is None


def test_a_backup_is_synced_then_named_then_its_folder_is_synced(tmp_path, monkeypatch):
    """A name must never come before the content it stands for, and is kept only by its folder's own sync."""
    source = connect_writer(tmp_path / "t.db", synchronous="OFF")
    copy, name = tmp_path / "copy.part", tmp_path / "named.db"
    backup.copy_whole(source, copy)
    source.close()
    seen, sync = [], os.fsync

    def fsync(fd):
        seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), name.exists()))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    backup.seal(copy, name)
    assert seen == [("copy.part", False), (tmp_path.name, True)]
