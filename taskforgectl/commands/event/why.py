"""`taskforgectl event why`."""

from __future__ import annotations

import click
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import EVENT
from taskforgectl.options import Settings, Verb
from taskforgectl.render.events import show_runs, show_verdicts
from taskforgectl.render.output import Item, echo, echo_parts, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import Column, show_table

__all__ = ["verbs"]


@click.command("why", cls=Verb)
@click.argument("event_id", metavar="EVENT", type=EVENT)
@click.pass_obj
def _why(settings: Settings, event_id: str) -> None:
    """Say why an event did or did not start runs.

    What led to it, which triggers were asked, which part of an `if` was false, and what became of the runs.
    """
    with Connection(settings) as connection:
        method = connection.stub(EventServiceStub).ExplainEvent
        story = plain(connection.ask(method, pb.ExplainEventRequest(event_id=event_id)))
    show_item(settings, story, key=lambda one: one["event"]["id"], people=lambda one: _tell(settings, one))


def _tell(settings: Settings, story: Item) -> None:
    event = story["event"]
    echo_parts(event["id"], event["outcome"])
    for sentence in story["summary"]:
        echo(safe_line(sentence))
    if story["causes"]:
        echo("\ncaused by, the nearest first")
        show_table(settings, story["causes"], _CAUSE_COLUMNS, empty="")
    show_verdicts(settings, event["verdicts"])
    show_runs(settings, story["runs"], event["id"])


_CAUSE_COLUMNS = [
    Column("RUN", lambda one: one["run_id"]),
    Column("WORKFLOW", lambda one: one["workflow"]),
    Column("STARTED BY", lambda one: one["event_id"] or "hand"),
    Column("TYPE", lambda one: one["event_type"]),
    Column("SOURCE", lambda one: one["event_source"]),
]

verbs = (_why,)
