"""`python -m taskforged.rescue`: verifies, restores and compacts databases while no daemon runs; one JSON object out.

    rescue verify FILE
    rescue restore FILE|latest     over the home's database, under the home's lock
    rescue compact                 rewrites the home's database to what it holds, under the home's lock

`taskforgectl restore`, `backup verify` and `prune --compact` are made of it: they never open a database themselves.
Out: `{"ok": true, …}` or `{"ok": false, "message", "reason"}`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from taskforged.config import Config, load_config
from taskforged.errors import FailedPreconditionError, NotFoundError, TaskforgeError
from taskforged.keyring import find_keys, key_id
from taskforged.store.backup import BackupError, Inspection, inspect_copy, list_backups, room_for, sync_folder
from taskforged.store.database import HomeLock, migrations
from taskforged.store.rescue import compact, fold_log, key_of

__all__ = ["main"]

_CHUNK = 1 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked, and print what became of it."""
    parser = argparse.ArgumentParser(prog="taskforged.rescue")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("verb", choices=("verify", "restore", "compact"))
    parser.add_argument("file", nargs="?", default="")
    given = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        config = load_config(given.home, given.config)
        answer = {"ok": True, **_VERBS[given.verb](config, given.file)}
    except TaskforgeError as error:
        answer = {"ok": False, "message": error.message, "reason": error.reason}
    except BackupError as error:
        answer = {"ok": False, "message": str(error), "reason": "BAD_BACKUP"}
    except OSError as error:
        answer = {"ok": False, "message": str(error), "reason": "FAILED"}
    sys.stdout.buffer.write(orjson.dumps(answer))
    sys.exit(0 if answer["ok"] else 1)


# --- verify ----------------------------------------------------------------------------------------------------------


def _verify(config: Config, file: str) -> dict[str, Any]:
    path = _chosen(config, file)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    found = inspect_copy(path)
    return {"file": str(path), "size_bytes": path.stat().st_size, **asdict(found), "key": _key(config, path)}


def _chosen(config: Config, file: str) -> Path:
    if file != "latest":
        return Path(file).expanduser().absolute()
    found = list_backups(config.backups)
    if not found:
        raise NotFoundError(f"there is no backup in {config.backups}")
    return found[0].path


def _key(config: Config, copy: Path) -> str:
    """Say whether the home's master key opens the secrets of a copy: `fits`, `other`, `missing` or `none needed`."""
    wanted, secrets = key_of(copy)
    if not secrets:
        return "none needed"
    with contextlib.suppress(TaskforgeError):
        keys = find_keys(config.master_key)
        held = [key for key in (keys.key, keys.other) if key is not None]
        if not held:
            return "missing"
        return "fits" if not wanted or wanted in {key_id(key) for key in held} else "other"
    return "missing"


# --- restore ---------------------------------------------------------------------------------------------------------


def _restore(config: Config, file: str) -> dict[str, Any]:
    """Put a verified copy in the place of the database. At every instant there is one database, whole, in the home."""
    source = _chosen(config, file)
    with contextlib.suppress(FileExistsError):
        config.home.mkdir(mode=0o700, parents=True)
    lock = HomeLock(config.lock)
    lock.acquire()
    fresh = config.database.with_name(f"{config.database.name}.restoring")
    try:
        _copy(source, fresh)
        found = _inspect(fresh, source)
        newest = migrations()[-1].number
        if found.schema > newest:
            raise FailedPreconditionError(
                f"{source} has schema {found.schema}, newer than this program's {newest}; install a newer taskforged",
                reason="SCHEMA_TOO_NEW",
            )
        key = _key(config, fresh)
        replaced = _replace(config.database, fresh)
    finally:
        fresh.unlink(missing_ok=True)
        lock.release()
    return {
        "file": str(source),
        "database": str(config.database),
        "replaced": "" if replaced is None else str(replaced),
        **asdict(found),
        "key": key,
    }


def _inspect(fresh: Path, source: Path) -> Inspection:
    try:
        return inspect_copy(fresh)
    except BackupError as error:
        raise BackupError(str(error).replace(str(fresh), str(source))) from None  # people know the file that they named


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise NotFoundError(f"there is no file {source}")
    log = source.with_name(f"{source.name}-wal")
    if log.exists() and log.stat().st_size:
        raise BackupError(f"{source} has a log beside it, {log.name}: it is in use, or was copied by hand")
    lacking = room_for(target.parent, source.stat().st_size)
    if lacking:
        raise FailedPreconditionError(f"{target.parent} lacks {lacking >> 20:,} MiB for it", reason="NO_ROOM")
    target.unlink(missing_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as reader, os.fdopen(fd, "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def _replace(database: Path, fresh: Path) -> Path | None:
    """Rename the copy over the database, which stays beside it under another name.

    A log that belongs to the old database must never lie beside the new one: SQLite would play it back into it. So it
    is folded into the old database first. One that cannot be read any more is linked to the kept database's name and
    taken away just before the rename; a crash between the two leaves the damaged database without what it could not
    read anyway.
    """
    if not database.exists():
        _drop_log(database)
        fresh.rename(database)
        sync_folder(database.parent)
        return None
    fold_log(database)
    kept = _free_name(database)
    os.link(database, kept)
    log = database.with_name(f"{database.name}-wal")
    if log.exists():
        os.link(log, kept.with_name(f"{kept.name}-wal"))
    sync_folder(database.parent)
    _drop_log(database)
    fresh.rename(database)
    sync_folder(database.parent)
    return kept


def _free_name(database: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = database.with_name(f"{database.stem}.replaced-{stamp}.db")
    count = 1
    while kept.exists():
        count += 1
        kept = database.with_name(f"{database.stem}.replaced-{stamp}-{count}.db")
    return kept


def _drop_log(database: Path) -> None:
    for end in ("-wal", "-shm", "-journal"):
        database.with_name(database.name + end).unlink(missing_ok=True)


# --- compact ---------------------------------------------------------------------------------------------------------


def _compact(config: Config, _: str) -> dict[str, Any]:
    if not config.database.exists():
        raise NotFoundError(f"there is no database {config.database}")
    lock = HomeLock(config.lock)
    lock.acquire()
    try:
        before = config.database.stat().st_size
        lacking = room_for(config.home, 2 * before)
        if lacking:
            raise FailedPreconditionError(
                f"{config.home} lacks {lacking >> 20:,} MiB: the database is written anew beside itself",
                reason="NO_ROOM",
            )
        compact(config.database)
        return {"database": str(config.database), "before_bytes": before, "after_bytes": config.database.stat().st_size}
    finally:
        lock.release()


_VERBS = {"verify": _verify, "restore": _restore, "compact": _compact}


if __name__ == "__main__":
    main()
