"""Lists longer than a page: `--limit` counts rows, whatever the daemon's page size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.message import Message

from taskforgectl.render.plain import plain

__all__ = ["collect", "limit_option"]

_PAGE_MAX = 1000
"""The daemon's own limit."""

limit_option = click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most rows; 0 means all."
)


def collect(fetch: Callable[[int, str], tuple[Sequence[Message], str]], limit: int) -> list[dict[str, Any]]:
    """Answer up to `limit` rows as plain values; 0 means all.

    Args:
        fetch: answers a page and the next page's token from a page size and a token.
        limit: most rows wanted.
    """
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        left = limit - len(found) if limit else _PAGE_MAX
        page, token = fetch(min(left, _PAGE_MAX), token)
        found.extend(plain(message) for message in page)
        if not token or (limit and len(found) >= limit):
            return found
