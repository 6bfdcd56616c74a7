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
from collections.abc import Iterator
from pathlib import Path

from benchmarks.client import Client, serving, stop_and_measure
from benchmarks.definitions import FAILING, PURE

SEED = 2000
_EACH_FAILS = 50
_NOT_OF_RUNS = {"events", "purge"}
"""Tables with a `run_no` that are not copied: events that runs published, and runs that leave."""

_RENAMED = """CASE WHEN sequence = 1 AND instr(body, CAST({old} AS BLOB))
  THEN CAST(replace(CAST(body AS TEXT), {old}, {new}) AS BLOB) ELSE body END""".format(
    old="(SELECT id FROM runs WHERE no = run_no)", new="(SELECT id FROM runs WHERE no = run_no + {by})"
)


async def fill(home: Path, count: int) -> None:
    """Make a home with `count` finished runs of `pure`; one in 50 is of `failing`."""
    await seed(home, min(SEED, count))
    await asyncio.to_thread(multiply, home, count)


async def seed(home: Path, count: int = SEED) -> None:
    """Make a home with so many runs that were really run."""
    home.parent.mkdir(parents=True, exist_ok=True)
    async with serving(PURE, FAILING, home=home) as client:
        if count:
            await _run(client, count)
        await asyncio.to_thread(stop_and_measure, client.daemon)


async def _run(client: Client, count: int) -> None:
    for at in range(0, count, _EACH_FAILS):
        size = min(_EACH_FAILS, count - at)
        if size > 1:
            await client.start_batch("pure", '{"n":1}', size - 1)
        await client.start_batch("failing", '{"n":1}', 1)
    await client.until_idle()


def multiply(home: Path, count: int) -> None:
    """Copy the runs of a stopped daemon's home until there are `count`."""
    with contextlib.closing(sqlite3.connect(home / "taskforge.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -262144")
        bounds = connection.execute("SELECT max(no), min(created_at), max(created_at) FROM runs")
        of, first, last = bounds.fetchone()
        tables = sorted(_tables(connection), key=lambda table: table[0] != "runs")  # ids first
        for at in range(of, count, of):
            connection.execute("BEGIN")
            for table, columns in tables:
                _copy(connection, table, columns, at, min(of, count - at), (last - first + 1) * (at // of))
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _tables(connection: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """The tables that hold runs, with their columns, whatever a migration has made of them."""
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        if table == "runs" or ("run_no" in columns and table not in _NOT_OF_RUNS):
            yield table, columns


def _copy(connection: sqlite3.Connection, table: str, columns: list[str], by: int, size: int, later: int) -> None:
    """Copy the rows of the first `size` runs: numbers go up by `by`, times by `later`, ids are new."""
    number = "no" if table == "runs" else "run_no"
    changed = {name: f"{name} + {later}" for name in columns if name == "at" or name.endswith("_at")}
    changed |= {number: f"{number} + {by}"}
    if table == "runs":
        changed["id"] = f"substr(id, 1, 22) || printf('%08x', no + {by})"
    if table == "history":  # the first event tells the id
        changed["body"] = _RENAMED.format(by=by)
    kept = [name for name in columns if (table, name) != ("step_logs", "no")]
    values = ", ".join(changed.get(name, name) for name in kept)
    connection.execute(
        f"INSERT INTO {table} ({', '.join(kept)}) SELECT {values} FROM {table} WHERE {number} <= ?", (size,)
    )


def remove(home: Path) -> None:
    """Remove a home and its log."""
    shutil.rmtree(home, ignore_errors=True)
    home.with_name(home.name + ".log").unlink(missing_ok=True)
