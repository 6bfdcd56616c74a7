"""Lists longer than a page: `--limit` counts rows, whatever the daemon's page size. And what all lists take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import click
import grpc
from google.protobuf.message import Message

from taskforgectl.connection import Connection
from taskforgectl.kinds import Amount
from taskforgectl.render.plain import plain

__all__ = ["Listing", "Watching", "collect", "limit_option", "listing_options", "reconnect_option", "watch_options"]

_PAGE_MAX = 1000
"""The daemon's own limit."""

F = TypeVar("F", bound=Callable[..., Any])
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

limit_option = click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, metavar="N", help="Most rows; 0 means all."
)

reconnect_option = click.option(
    "--reconnect-timeout",
    "reconnect_s",
    type=Amount(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to look for the daemon when it goes away meanwhile.",
)


class Watching(NamedTuple):
    """Whether something is shown again and again, how often, and how long the daemon may stay away."""

    on: bool
    interval_s: float
    reconnect_s: float


class Listing(NamedTuple):
    """How much of a list is shown, and whether it is watched. A limit of 0 means all."""

    limit: int
    watching: Watching


def watch_options(function: F) -> F:
    """Add what is watched to a verb, which gets it as `watching`."""

    @click.option("--watch", is_flag=True, help="Go on and show what changes. Ctrl-C ends it.")
    @click.option(
        "--interval",
        type=Amount(0.1, 3600),
        default=2.0,
        show_default=True,
        metavar="SECONDS",
        help="With --watch: how often to look.",
    )
    @reconnect_option
    @functools.wraps(function)
    def wrapped(*args: Any, watch: bool, interval: float, reconnect_s: float, **values: Any) -> Any:
        return function(*args, watching=Watching(watch, interval, reconnect_s), **values)

    return cast(F, wrapped)


def listing_options(function: F) -> F:
    """Add what all lists take to a verb, which gets it as `listing`."""

    @limit_option
    @click.option("--all", "everything", is_flag=True, help="All rows, as --limit 0.")
    @watch_options
    @functools.wraps(function)
    def wrapped(*args: Any, limit: int, everything: bool, watching: Watching, **values: Any) -> Any:
        return function(*args, listing=Listing(0 if everything else limit, watching), **values)

    return cast(F, wrapped)


def collect(
    connection: Connection,
    method: grpc.UnaryUnaryMultiCallable[Q, A],
    request: Q,
    limit: int,
    *,
    on_page: Callable[[A], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer up to `limit` rows as plain values; 0 means all.

    Args:
        connection: whom to ask.
        method: answers pages, whose rows are their only repeated field.
        request: what is asked for, of the whole list.
        limit: most rows wanted.
        on_page: is shown each answer.
    """
    found: list[dict[str, Any]] = []
    page: Any = type(request)()
    page.CopyFrom(request)
    while True:
        page.page_size = min(limit - len(found) if limit else _PAGE_MAX, _PAGE_MAX)
        answer: Any = connection.ask(method, page)
        if on_page is not None:
            on_page(answer)
        rows = next(field for field in answer.DESCRIPTOR.fields if field.is_repeated)
        found.extend(plain(message) for message in getattr(answer, rows.name))
        page.page_token = answer.next_page_token
        if not page.page_token or (limit and len(found) >= limit):
            return found
