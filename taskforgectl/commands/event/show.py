"""`taskforgectl event list` and `show`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

from taskforgectl.commands.event.filters import Selection, filter_options
from taskforgectl.commands.event.watch import newest_cursor, stream, wanted
from taskforgectl.connection import Connection
from taskforgectl.kinds import EVENT, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.events import show_event, show_events
from taskforgectl.render.output import Item, echo_json_line, echo_name, show_item
from taskforgectl.render.plain import plain
from taskforgectl.watching import show_listing

__all__ = ["verbs"]


@click.command("list", cls=Verb)
@filter_options
@click.option(
    "--workflow",
    metavar="WORKFLOW",
    type=WORKFLOW,
    default="",
    help="Only events that a trigger of it was asked about.",
)
@listing_options
@click.pass_obj
def _list(settings: Settings, *, selection: Selection, workflow: str, listing: Listing) -> None:
    """List events, newest first."""
    fields = selection.fields()

    request = pb.ListEventsRequest(namespace=settings.namespace, workflow=workflow, **fields)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(EventServiceStub).ListEvents, request, listing.limit)

    is_filtered = bool(workflow or any(selection))
    empty = "no events fit" if is_filtered else "no events yet; `taskforgectl trigger list` shows what is waited for"
    is_streamed = listing.watching.on and not (settings.styled and settings.output == "table")
    if is_streamed:
        _show_and_stream(settings, wanted(settings, selection, workflow), listing, read, empty)
    show_listing(settings, listing, read, key="id", table=lambda items: show_events(settings, items, empty=empty))


def _show_and_stream(
    settings: Settings,
    fitting: pb.EventFilter,
    listing: Listing,
    read: Callable[[Connection], Sequence[Item]],
    empty: str,
) -> None:
    """Show the list, then what comes after it: nothing is missed, however much comes between two looks."""
    reconnect_s = listing.watching.reconnect_s
    cursor = newest_cursor(settings, fitting, reconnect_s)
    with Connection(settings) as connection:
        rows = [row for row in read(connection) if row["outcome"] != "PENDING"]
    if settings.output == "table":
        show_events(settings, rows, empty=empty)
    for row in rows if settings.output == "name" else ():
        echo_name(row, "id")
    for row in rows if settings.output in {"json", "yaml"} else ():
        echo_json_line(row)
    stream(settings, fitting, after=cursor, reconnect_s=reconnect_s, known={row["id"] for row in rows})


@click.command("show", cls=Verb)
@click.argument("event_id", metavar="EVENT", type=EVENT)
@click.pass_obj
def _show(settings: Settings, event_id: str) -> None:
    """Show an event with headers, body and what each trigger made of it."""
    with Connection(settings) as connection:
        method = connection.stub(EventServiceStub).GetEvent
        event = plain(connection.ask(method, pb.GetEventRequest(event_id=event_id)).event)
    show_item(settings, event, key="id", people=lambda one: show_event(settings, one))


verbs = (_list, _show)
