"""`taskforgectl trigger list`, `show`, `pause` and `resume`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from taskforge.v1 import trigger_pb2
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import TRIGGER, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo_parts, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, lasting, local_time, show_details, tabled, when
from taskforgectl.triggers import full_name, parse_trigger
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_KINDS = [one.name.removeprefix("KIND_").lower() for one in trigger_pb2.Trigger.Kind.DESCRIPTOR.values if one.number]


# --- list ------------------------------------------------------------------------------------------------------------


@click.command("list", cls=Verb)
@click.option("--workflow", metavar="WORKFLOW", type=WORKFLOW, default="", help="Only triggers of this workflow.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS, case_sensitive=False), help="Only this kind.")
@listing_options
@click.pass_obj
def _list(settings: Settings, *, workflow: str, kinds: Sequence[str], listing: Listing) -> None:
    """List triggers by workflow."""
    wanted = [trigger_pb2.Trigger.Kind.Value(f"KIND_{kind.upper()}") for kind in kinds]

    request = pb.ListTriggersRequest(namespace=settings.namespace, workflow=workflow, kinds=wanted)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(TriggerServiceStub).ListTriggers, request, listing.limit)

    empty = "no triggers fit" if workflow or kinds else "no triggers yet; a workflow declares them under `on:`"
    show_listing(settings, listing, read, key=full_name, table=tabled(settings, _COLUMNS, empty=empty))


def _state(trigger: Item) -> str:
    if trigger["paused"]:
        return "PAUSED"
    return "active" if trigger["workflow_active"] else "inactive"


def _next_due(trigger: Item) -> str:
    """Answer when a schedule is due next; what does not fire then has no such time."""
    schedule = trigger["schedule"]
    return when(schedule["next_due_time"]) if schedule and _state(trigger) == "active" else ""


_COLUMNS = [
    Column("TRIGGER", full_name),
    Column("KIND", lambda one: str(one["kind"] or "").lower()),
    Column("STATE", _state),
    Column("LISTENS", lambda one: one["detail"]),
    Column("LAST FIRED", lambda one: when(one["last_fire_time"])),
    Column("NEXT DUE", _next_due),
]


# --- show ------------------------------------------------------------------------------------------------------------


@click.command("show", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.pass_obj
def _show(settings: Settings, name: str) -> None:
    """Show a trigger: where it listens, whether it is paused, when it fired."""
    workflow, trigger = parse_trigger(name)
    request = pb.GetTriggerRequest(namespace=settings.namespace, workflow=workflow, trigger=trigger)
    with Connection(settings) as connection:
        found = plain(connection.ask(connection.stub(TriggerServiceStub).GetTrigger, request).trigger)
    show_item(settings, found, key=full_name, people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, trigger: Item) -> None:
    last = " by ".join(filter(None, [local_time(trigger["last_fire_time"]), trigger["last_event_id"]]))
    paused = " by ".join(filter(None, [local_time(trigger["pause_time"]), trigger["paused_by"]]))
    pairs = [
        ("trigger", full_name(trigger)),
        ("id", trigger["id"]),
        ("namespace", trigger["namespace"]),
        ("kind", str(trigger["kind"] or "").lower()),
        ("state", _state(trigger)),
        ("paused", paused if trigger["paused"] else ""),
        ("pause reason", trigger["pause_reason"]),
        ("listens", trigger["detail"]),
        ("version", trigger["version"]),
        ("applied by", trigger["applied_by"]),
        ("declared", local_time(trigger["create_time"])),
        ("last fired", last),
    ]
    show_details(settings, [*pairs, *_schedule_pairs(trigger["schedule"])])


def _schedule_pairs(schedule: Item | None) -> list[tuple[str, Any]]:
    if schedule is None:
        return []
    window = f", not later than {lasting(schedule['misfire_window'])}" if schedule["misfire_window"] else ""
    cap = f", at most {schedule['misfire_cap']} at once" if schedule["misfire_cap"] else ""
    return [
        ("schedule", f"{schedule['expression']}{' (with seconds)' if schedule['seconds'] else ''}"),
        ("time zone", schedule["timezone"]),
        ("rules", schedule["profile"]),
        ("misfire", f"{schedule['misfire']}{window}{cap}"),
        ("overlap", schedule["overlap"]),
        ("clock changes", f"gap {schedule['gap']}, fold {schedule['fold']}"),
        ("delay", lasting(schedule["delay"])),
        ("starts", local_time(schedule["start_time"])),
        ("ends", local_time(schedule["end_time"])),
        ("decided up to", local_time(schedule["cursor_time"])),
        ("next due", local_time(schedule["next_due_time"])),
    ]


# --- pause and resume ------------------------------------------------------------------------------------------------


@click.command("pause", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.option("--reason", default="", help="For those who wonder later.")
@click.pass_obj
def _pause(settings: Settings, name: str, reason: str) -> None:
    """Let a trigger start nothing. Its webhook goes on storing deliveries."""
    workflow, trigger = parse_trigger(name)
    request = pb.PauseTriggerRequest(namespace=settings.namespace, workflow=workflow, trigger=trigger, reason=reason)
    with Connection(settings) as connection:
        found = plain(connection.ask(connection.stub(TriggerServiceStub).PauseTrigger, request).trigger)
    show_item(settings, found, key=full_name, people=_tell_state)


@click.command("resume", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.pass_obj
def _resume(settings: Settings, name: str) -> None:
    """Let a paused trigger start runs again. What fell due meanwhile follows its misfire policy."""
    workflow, trigger = parse_trigger(name)
    request = pb.ResumeTriggerRequest(namespace=settings.namespace, workflow=workflow, trigger=trigger)
    with Connection(settings) as connection:
        found = plain(connection.ask(connection.stub(TriggerServiceStub).ResumeTrigger, request).trigger)
    show_item(settings, found, key=full_name, people=_tell_state)


def _tell_state(trigger: Item) -> None:
    echo_parts(full_name(trigger), _state(trigger))


verbs = (_list, _show, _pause, _resume)
