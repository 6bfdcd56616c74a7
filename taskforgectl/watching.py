"""Lists that are watched: refreshed in place on a terminal, else what is new or has changed, row by row.

The daemon is found anew for each look, so that a list outlives its restarts, also on another port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import click

from taskforgectl.connection import Connection
from taskforgectl.errors import BROKEN, EXIT_INTERRUPTED, NotRunningError, RemoteError
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, Watching
from taskforgectl.render.output import Item, Key, echo_json_line, echo_name, key_of, show_list, tell_interruption
from taskforgectl.render.safe import safe_line
from taskforgectl.render.screen import Screen, captured

__all__ = ["show_listing", "watch_items"]

_PAUSE_S = 0.5

T = TypeVar("T")
Table = Callable[[Sequence[Item]], None]


def show_listing(
    settings: Settings, listing: Listing, read: Callable[[Connection], Sequence[Item]], *, key: Key, table: Table
) -> None:
    """Show a list once, or watch it.

    Args:
        settings: where to ask, and the format.
        listing: what is wanted of it.
        read: answers the rows.
        key: what tells rows apart, and what `-o name` prints.
        table: shows rows to people.
    """
    if listing.watching.on:
        watch_items(settings, listing.watching, read, key=key, table=table)
    with Connection(settings) as connection:
        rows = read(connection)
    show_list(settings, rows, key=key, table=table)


def watch_items(
    settings: Settings, watching: Watching, read: Callable[[Connection], Sequence[Item]], *, key: Key, table: Table
) -> None:
    """Show rows again and again until Ctrl-C, which raises click's Exit; the parameters are those of `show_listing`.

    Raises:
        CliError: the daemon refused, or stayed away for too long.
    """
    in_place = settings.output == "table" and settings.styled
    view: _View = _InPlace(settings, watching, table) if in_place else _Changes(settings, key, table)
    broken_at: float | None = None
    is_first = True
    try:
        while True:
            try:
                with Connection(settings) as connection:
                    rows = read(connection)
                view.show(rows)
                broken_at, is_first = None, False
                time.sleep(watching.interval_s)
            except (NotRunningError, RemoteError) as error:
                if is_first or (isinstance(error, RemoteError) and error.status not in BROKEN):
                    raise
                broken_at = broken_at or time.monotonic()
                if time.monotonic() - broken_at > watching.reconnect_s:
                    raise
                view.interrupted(error.message)
                time.sleep(min(_PAUSE_S, watching.interval_s))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    finally:
        view.close()


class _View(Protocol):
    """Shows rows whenever they were read."""

    def show(self, rows: Sequence[Item]) -> None:
        """Show the rows as they are now."""

    def interrupted(self, reason: str) -> None:
        """Show that the daemon is away."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class _InPlace:
    """The table, drawn over the one before."""

    def __init__(self, settings: Settings, watching: Watching, table: Table) -> None:
        self._settings = settings
        self._table = table
        self._screen = Screen()
        self._foot = f"every {watching.interval_s:g} s; Ctrl-C ends"
        self._body = ""

    def show(self, rows: Sequence[Item]) -> None:
        self._body = captured(lambda: self._table(rows), styled=True)
        self._screen.draw(self._body, f"{time.strftime('%H:%M:%S')}, {self._foot}")

    def interrupted(self, reason: str) -> None:
        self._screen.draw(self._body, f"reconnecting… ({safe_line(reason)})")

    def close(self) -> None:
        self._screen.close()


class _Changes:
    """Rows that are new or have changed, for pipes and programs. What a list no longer has is not told."""

    def __init__(self, settings: Settings, key: Key, table: Table) -> None:
        self._settings = settings
        self._key = key
        self._table = table
        self._seen: dict[Any, Item] = {}
        self._titles: list[str] = []
        self._is_broken = False

    def show(self, rows: Sequence[Item]) -> None:
        self._is_broken = False
        keys = [key_of(row, self._key) for row in rows]
        changed = [row for key, row in zip(keys, rows, strict=True) if self._seen.get(key) != row]
        new = [row for key, row in zip(keys, rows, strict=True) if key not in self._seen]
        is_first, self._seen = not self._titles and not self._seen, dict(zip(keys, rows, strict=True))
        if self._settings.output == "table":
            if changed or is_first:
                self._show_table(changed)
        elif self._settings.output == "name":
            for row in new:
                echo_name(row, self._key)
        else:
            for row in changed:
                echo_json_line(row)

    def _show_table(self, rows: Sequence[Item]) -> None:
        """Show rows, below the titles that stand already when they fit."""
        if not rows:
            self._table(rows)  # says that there are none
            self._titles = ["-"]
            return
        head, _, body = captured(lambda: self._table(rows), styled=False).partition("\n")
        if head.split() != self._titles:
            click.echo(head)
            self._titles = head.split()
        click.echo(body, nl=False)

    def interrupted(self, reason: str) -> None:
        if not self._is_broken:
            tell_interruption(reason)
        self._is_broken = True

    def close(self) -> None:
        pass
