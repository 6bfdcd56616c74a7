"""`taskforgectl stats`: the daemon's counters."""

from __future__ import annotations

import click
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.connection import Connection
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import show_details

__all__ = ["command"]


@click.command("stats", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Show the daemon's counters."""
    with Connection(settings) as connection:
        stats = plain(connection.ask(connection.stub(SystemServiceStub).GetStats, pb.GetStatsRequest()))

    def people(item: object) -> None:  # noqa: ARG001
        show_details(settings, [(name.replace("_", " "), f"{value:,}") for name, value in stats.items()])

    show_item(settings, stats, key="open_runs", people=people)
