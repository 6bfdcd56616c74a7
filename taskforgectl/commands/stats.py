"""`taskforgectl stats`: the daemon's counters."""

from __future__ import annotations

from collections.abc import Sequence

import click
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.connection import Connection
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import Watching, watch_options
from taskforgectl.render.output import Item, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import show_details
from taskforgectl.watching import watch_items

__all__ = ["command"]


@click.command("stats", cls=Verb)
@watch_options
@click.pass_obj
def command(settings: Settings, watching: Watching) -> None:
    """Show the daemon's counters."""
    if watching.on:
        watch_items(settings, watching, _counters, key="name", table=lambda rows: _show(settings, rows))
    with Connection(settings) as connection:
        stats = _stats(connection)
    show_item(settings, stats, key="open_runs", people=lambda _: _show(settings, _rows(stats)))


def _stats(connection: Connection) -> Item:
    return plain(connection.ask(connection.stub(SystemServiceStub).GetStats, pb.GetStatsRequest()))


def _counters(connection: Connection) -> Sequence[Item]:
    return _rows(_stats(connection))


def _rows(stats: Item) -> Sequence[Item]:
    """Answer a row for each counter, so that those that have changed can be told by themselves."""
    return [{"name": name, "value": value} for name, value in stats.items()]


def _show(settings: Settings, rows: Sequence[Item]) -> None:
    show_details(settings, [(one["name"].replace("_", " "), f"{one['value']:,}") for one in rows])
