"""A home with very many finished runs, in seconds instead of minutes.

Some thousand runs are really run. Then the database of the stopped daemon is multiplied by SQL: rows of `runs` and of
every table with a `run_no` are copied under new numbers, ids and times. The copies of a run have its hash chain, which
was made over the run's own id: `run verify` says so. Sizes, indexes and what is read are those of real runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path

from benchmarks.client import Client, serving, stop_and_measure
from benchmarks.definitions import FAILING
from benchmarks.load import load

_SEED = 2000
_EACH_FAILS = 50


async def fill(home: Path, count: int, definition: str, workflow: str = "pure") -> None:
    """Make a home with `count` finished runs of a definition that takes `n`; one in 50 is of one that fails."""
    home.parent.mkdir(parents=True, exist_ok=True)
    async with serving(definition, FAILING, home=home) as client:
        seed = min(_SEED, count)
        await _run_seed(client, workflow, seed)
        await asyncio.to_thread(stop_and_measure, client.daemon)
    await asyncio.to_thread(_multiply, home / "taskforge.db", count)


async def _run_seed(client: Client, workflow: str, count: int) -> None:
    each = max(1, count // _EACH_FAILS)
    for _ in range(0, count, each):
        if each > 1:
            await client.start_batch(workflow, '{"n":1}', each - 1)
        await client.start_batch("failing", '{"n":1}', 1)
    await load(lambda n: client.start(workflow, f'{{"n":{n}}}', wait=True), count=count % each, width=8)
    await client.until_idle()


def _multiply(database: Path, count: int) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -262144")
        (seed, first, last) = connection.execute(
            "SELECT max(no), min(created_at), max(created_at) FROM runs"
        ).fetchone()
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        copies = {table: _columns(connection, table) for table in tables}
        for block in range(1, -(-count // seed)):
            size = min(seed, count - block * seed)
            earlier = (last - first + 1) * block
            connection.execute("BEGIN")
            for table, columns in copies.items():
                if table == "runs" or ("run_no" in columns and table not in {"events", "purge"}):
                    _copy(connection, table, columns, block * seed, size, earlier)
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _copy(connection: sqlite3.Connection, table: str, columns: list[str], by: int, size: int, earlier: int) -> None:
    """Copy the rows of the first `size` runs: numbers go up by `by`, times by `earlier`, ids are new."""
    number = "no" if table == "runs" else "run_no"
    changed = {number: f"{number} + {by}"}
    if table == "runs":
        changed["id"] = f"substr(id, 1, 22) || printf('%08x', no + {by})"
    changed |= {name: f"{name} + {earlier}" for name in columns if name == "at" or name.endswith("_at")}
    kept = [name for name in columns if table != "step_logs" or name != "no"]
    values = ", ".join(changed.get(name, name) for name in kept)
    names = ", ".join(kept)
    connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {number} <= ?", (size,))


def remove(home: Path) -> None:
    """Remove a home and its log."""
    shutil.rmtree(home, ignore_errors=True)
    home.with_name(home.name + ".log").unlink(missing_ok=True)
