"""Named queries: every statement stands in `queries/*.sql` behind a line `-- name --`, with its comments.

The idea is procrastinate's. A name is unique over all files; statements are loaded once, at import.

`insert_rows` is for the tables that every run writes to. `executemany` lets go of the interpreter's lock around each
row, and beside a busy event loop each time it waits to get it back; a statement with many rows lets go once.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any

__all__ = ["QUERIES", "insert_rows", "parse_queries"]

_PORTIONS = (64, 8)
"""Rows of one statement: each size is compiled once for a connection, and what is left goes row by row."""

_VALUES = re.compile(r"VALUES\s*(\([^()]+\))")
_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def parse_queries(text: str) -> dict[str, str]:
    """Answer the statements of one file by name.

    Raises:
        ValueError: a name stands twice.
    """
    parts = _NAME.split(text)
    found: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in found:
            raise ValueError(f"query {name} is defined twice")
        found[name] = "\n".join(line for line in body.strip().splitlines() if not line.startswith("--"))
    return found


def _load() -> Mapping[str, str]:
    texts = sorted(files("taskforged.store").joinpath("queries").iterdir(), key=lambda file: file.name)
    return parse_queries("\n".join(file.read_text() for file in texts))


QUERIES = _load()


def insert_rows(connection: sqlite3.Connection, query: str, rows: Sequence[Sequence[Any]]) -> None:
    """Execute a named query, an INSERT of one row of parameters, for many rows."""
    done = 0
    for size in _PORTIONS:
        while len(rows) - done >= size:
            connection.execute(_of_rows(query, size), [*chain.from_iterable(rows[done : done + size])])
            done += size
    if done < len(rows):
        connection.executemany(QUERIES[query], rows[done:])


@cache
def _of_rows(query: str, count: int) -> str:
    """Answer a query with the row of its VALUES `count` times."""
    found = _VALUES.search(QUERIES[query])
    assert found is not None
    text = found.string
    return text[: found.start(1)] + ", ".join([found[1]] * count) + text[found.end(1) :]
