"""Backups under load, kills in their midst, and the way back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from harness import Daemon, seeded
from nursery import Nursery
from switchboard import Board
from taskforge.v1 import token_pb2

from taskforged.store.backup import BackupError, inspect_copy, list_backups

CYCLES, CUT = (50, 20) if "TASKFORGE_TEST_CYCLES" in os.environ else (6, 3)
DEFINITION = "name: light\nsteps:\n  - {id: one, transform: 1}\noutput: ${{ input.pad }}\n"
PAD = "x" * 2000


def ctl(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}
    command = [sys.executable, "-m", "taskforgectl", "--home", str(daemon.home), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def load(board: Board, acked: set[str]) -> None:
    """Start runs until the daemon is gone."""

    async def client() -> None:
        while True:
            try:
                answer = await board("StartRun", workflow="light", input_json=json.dumps({"pad": PAD}))
            except grpc.aio.AioRpcError:
                return
            acked.add(answer.run.id)

    await asyncio.gather(*(client() for _ in range(8)))


def stored(path: Path) -> set[str]:
    """The runs of a file that nobody writes to."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM runs")}


@pytest.mark.timeout(50 * CYCLES)
async def test_backups_under_load_and_kills_in_their_midst() -> None:
    chance = seeded("test_backups")
    nursery = Nursery()
    daemon = Daemon(nursery=nursery)
    acked: set[str] = set()
    proofs = []
    cut = set(chance.sample(range(CYCLES), CUT))
    try:
        await asyncio.to_thread(daemon.start)
        await daemon.apply(DEFINITION)
        for cycle in range(CYCLES):
            board = Board(daemon)
            loading = asyncio.create_task(load(board, acked))
            await asyncio.sleep(0.3)
            before = set(acked)
            if cycle in cut:
                making = asyncio.create_task(board("CreateBackup"))
                await asyncio.sleep(chance.uniform(0.0, 0.15))
                await asyncio.to_thread(daemon.kill)
                await asyncio.gather(making, return_exceptions=True)
            else:
                made = (await board("CreateBackup", within_s=300)).backup  # a commit of the load between any two pieces
                proofs.append((Path(made.path), before))
                await asyncio.to_thread(daemon.kill)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await board.close()
            await asyncio.to_thread(daemon.start)
        files = list_backups(daemon.home / "backups")
        assert len(files) >= CYCLES - CUT == len(proofs)
        for one in files:
            inspect_copy(one.path)
            assert one.path.stat().st_mode & 0o777 == 0o600
        for path, before in proofs:
            missing = before - stored(path)
            assert before
            assert not missing, f"{path} lacks {len(missing)} of {len(before)} runs that were acknowledged before"
        assert not list((daemon.home / "backups").glob(".*.partial")), "the start sweeps what kills have left"
        print(f"{CYCLES} backups, {CUT} of them cut, {len(files)} whole; {len(acked):,} runs acknowledged")
    finally:
        await daemon.aclose()
        nursery.close()


@pytest.mark.timeout(120)
async def test_the_way_back(own: Board) -> None:
    daemon = own.daemon
    await daemon.apply(DEFINITION)
    await own("SetSecret", name="KEY", value="s3cret-value")
    first = (await own("StartRun", workflow="light", input_json='{"pad": "a"}')).run.id
    path = (await own("CreateBackup")).backup.path
    second = (await own("StartRun", workflow="light", input_json='{"pad": "b"}')).run.id
    assert "stop the daemon first" in ctl(daemon, "restore", "latest", "--yes", code=6)
    await asyncio.to_thread(daemon.kill)  # with a log beside the database
    said = ctl(daemon, "restore", path, "--yes")
    assert "the master key of this home opens its secrets" in said
    kept = list(daemon.home.glob("taskforge.replaced-*.db"))
    assert len(kept) == 1
    assert {first, second} <= stored(kept[0]), "what was replaced is whole, its log included"
    await asyncio.to_thread(daemon.start)
    assert (await own("GetRun", run_id=first)).run.id == first
    await own.refused("NOT_FOUND", "GetRun", run_id=second)
    assert (await own("StartRun", workflow="light", input_json='{"pad": "c"}')).run.id
    assert b"s3cret-value" not in Path(path).read_bytes()
    master = (daemon.home / "master.key").read_bytes().strip()
    for form in (master, raw := base64.b64decode(master), raw.hex().encode()):
        assert form not in Path(path).read_bytes()


async def test_a_restore_says_when_another_key_is_needed(own: Board) -> None:
    await own("SetSecret", name="KEY", value="v")
    path = (await own("CreateBackup")).backup.path
    await asyncio.to_thread(own.daemon.terminate)
    (own.daemon.home / "master.key").unlink()
    assert "MISSING" in ctl(own.daemon, "backup", "verify", path)
    key = lambda: json.loads(ctl(own.daemon, "backup", "verify", path, "-o", "json"))["key"]
    assert key() == "missing"
    (own.daemon.home / "master.key").write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    (own.daemon.home / "master.key").chmod(0o600)
    assert key() == "other"


async def test_a_damaged_backup_changes_nothing(own: Board) -> None:
    await own.daemon.apply(DEFINITION)
    path = Path((await own("CreateBackup")).backup.path)
    await asyncio.to_thread(own.daemon.terminate)
    before = (own.daemon.home / "taskforge.db").read_bytes()
    whole = bytearray(path.read_bytes())
    whole[4096 * 3 : 4096 * 6] = os.urandom(4096 * 3)
    path.write_bytes(whole)
    with pytest.raises(BackupError):
        inspect_copy(path)
    assert f"{path} is damaged" in ctl(own.daemon, "restore", str(path), "--yes", code=1)
    assert (own.daemon.home / "taskforge.db").read_bytes() == before
    assert not list(own.daemon.home.glob("*.restoring"))
    other = own.daemon.home / "other.db"
    other.write_bytes(b"not a database at all" * 400)
    assert "damaged" in ctl(own.daemon, "restore", str(other), "--yes", code=1)
    assert "there is no file" in ctl(own.daemon, "restore", "/nowhere.db", "--yes", code=3)


async def test_scheduled_backups_rotate() -> None:
    daemon = Daemon(env={"TASKFORGE_BACKUP_EVERY": "1m", "TASKFORGE_BACKUP_KEEP": "2"})
    folder = daemon.home / "backups"
    folder.mkdir(parents=True, mode=0o700)
    daemon.home.chmod(0o700)
    names = [f"taskforge-2020010{day}T000000Z-6.db" for day in (1, 2, 3)]
    others = ["taskforge-20200101T000000Z-3-upgrade.db", "mine.db", "taskforge-copy.db"]
    for name in (*names, *others):
        (folder / name).write_bytes(b"old")
    try:
        await asyncio.to_thread(daemon.start)
        async with asyncio.timeout(30):
            while (folder / names[1]).exists():
                await asyncio.sleep(0.05)
        assert all((folder / name).exists() for name in others)
        left = [one.path.name for one in list_backups(folder) if not one.is_upgrade]
        assert len(left) == 2
        assert left[1] == names[2]
        inspect_copy(folder / left[0])
    finally:
        await daemon.aclose()


async def _grow(board: Board, mib: int) -> None:
    """Let the database hold so much that a copy takes a while."""
    await asyncio.to_thread(board.daemon.terminate)
    with contextlib.closing(sqlite3.connect(board.daemon.home / "taskforge.db")) as connection:
        connection.execute("CREATE TABLE filler (bytes)")
        connection.executemany("INSERT INTO filler VALUES (randomblob(1048576))", [()] * mib)
        connection.commit()
    await asyncio.to_thread(board.daemon.start)


@pytest.mark.timeout(120)
async def test_a_client_that_goes_away_leaves_no_half_a_backup(own: Board) -> None:
    await _grow(own, 96)
    folder = own.daemon.home / "backups"
    making = asyncio.create_task(own("CreateBackup"))
    async with asyncio.timeout(30):
        while not list(folder.glob(".*.partial")):
            await asyncio.sleep(0.001)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        while list(folder.iterdir()):
            await asyncio.sleep(0.01)
    assert not (await own("GetStorage")).backup_failure, "nothing failed"
    path = Path((await own("CreateBackup")).backup.path)
    assert list(folder.iterdir()) == [path]
    inspect_copy(path)


async def test_who_may(own: Board) -> None:
    await own("SetNamespace", name="tenant")
    confined = (await own("CreateToken", name="t", role=token_pb2.Token.ROLE_ADMIN, namespace="tenant")).secret
    viewer = (await own("CreateToken", name="v", role=token_pb2.Token.ROLE_VIEWER)).secret
    for method in ("CreateBackup", "ListBackups", "PruneStorage"):
        for bearer in (confined, viewer):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await own(method, bearer=bearer)
            assert caught.value.code().name == "PERMISSION_DENIED"
    assert (await own("GetStorage", bearer=viewer)).database_bytes > 0
