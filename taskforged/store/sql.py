"""Named queries: every statement stands in `queries/*.sql` behind a line `-- name --`, with its comments.

The idea is procrastinate's. A name is unique over all files; statements are loaded once, at import.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

__all__ = ["QUERIES", "parse_queries"]

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
