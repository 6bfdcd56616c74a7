"""`taskforgectl schedule slots`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import click
from taskforge.v1 import trigger_pb2
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import RemoteError
from taskforgectl.kinds import TRIGGER
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item
from taskforgectl.render.schedules import show_slots
from taskforgectl.times import parse_time
from taskforgectl.triggers import TriggerName, parse_trigger
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_OUTCOMES = [
    one.name.removeprefix("OUTCOME_") for one in trigger_pb2.ScheduleSlot.Outcome.DESCRIPTOR.values if one.number
]


@click.command("slots", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.option("--since", metavar="TIME|-SPAN", help="Only what was due then or later, for example -7d.")
@click.option("--until", metavar="TIME|-SPAN", help="Only what was due earlier.")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice(_OUTCOMES, case_sensitive=False),
    help="Only with this outcome. May be given several times.",
)
@listing_options
@click.pass_obj
def _slots(
    settings: Settings, *, name: str, since: str | None, until: str | None, outcomes: Sequence[str], listing: Listing
) -> None:
    """List what became of due times, newest first. What no run was started for may be told as a range."""
    target, now = parse_trigger(name), dt.datetime.now(dt.UTC)
    fields: dict[str, Any] = {
        "since": None if since is None else parse_time(since, "--since", now),
        "until": None if until is None else parse_time(until, "--until", now),
        "outcomes": [trigger_pb2.ScheduleSlot.Outcome.Value(f"OUTCOME_{one}") for one in outcomes],
    }

    zones = [""]

    request = pb.ListScheduleSlotsRequest(
        namespace=settings.namespace,
        workflow=target.workflow,
        trigger=target.trigger,
        **fields,
    )

    def read(connection: Connection) -> Sequence[Item]:
        rows = collect(connection, connection.stub(TriggerServiceStub).ListScheduleSlots, request, listing.limit)
        zones[:] = [_zone(settings, connection, target, rows)]
        return rows

    empty = "no due times fit" if since or until or outcomes else "nothing was due yet; see `taskforgectl trigger next`"
    show_listing(
        settings, listing, read, key="due_time", table=lambda items: show_slots(settings, items, zones[0], empty=empty)
    )


def _zone(settings: Settings, connection: Connection, target: TriggerName, rows: Sequence[Item]) -> str:
    """Answer the schedule's time zone where the end of a range is to be told in it; else an empty text."""
    if settings.output != "table" or all(one["count"] <= 1 for one in rows):
        return ""
    request = pb.PreviewScheduleRequest(
        namespace=settings.namespace, workflow=target.workflow, trigger=target.trigger, count=1
    )
    try:
        return connection.ask(connection.stub(TriggerServiceStub).PreviewSchedule, request).timezone
    except RemoteError:  # the newest version has no such trigger; the ledger has
        return ""


verbs = (_slots,)
