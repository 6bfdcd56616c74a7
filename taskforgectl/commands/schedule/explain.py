"""`taskforgectl schedule explain`."""

from __future__ import annotations

import datetime as dt

import click
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import TRIGGER
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, echo_parts, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.schedules import show_due_times, show_slots
from taskforgectl.render.tables import Column, show_table
from taskforgectl.times import parse_time
from taskforgectl.triggers import full_name, parse_trigger

__all__ = ["verbs"]

_SLOTS_MAX = 20


@click.command("explain", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.option("--since", metavar="TIME|-SPAN", help="How far to look back. Default: -7d.")
@click.pass_obj
def _explain(settings: Settings, name: str, since: str | None) -> None:
    """Say what became of the due times of a trigger, and what happens next."""
    workflow, trigger = parse_trigger(name)
    request = pb.ExplainScheduleRequest(namespace=settings.namespace, workflow=workflow, trigger=trigger)
    if since is not None:
        request.since.CopyFrom(parse_time(since, "--since", dt.datetime.now(dt.UTC)))
    with Connection(settings) as connection:
        story = plain(connection.ask(connection.stub(TriggerServiceStub).ExplainSchedule, request))
    show_item(settings, story, key=lambda one: full_name(one["trigger"]), people=lambda one: _tell(settings, one))


def _tell(settings: Settings, story: Item) -> None:
    trigger = story["trigger"]
    zone = trigger["schedule"]["timezone"] if trigger["schedule"] else ""
    echo_parts(full_name(trigger), trigger["detail"])
    for sentence in story["summary"]:
        echo(safe_line(sentence))
    if story["counts"] or story["waiting"]:
        undecided = [{"outcome": "not decided yet", "count": story["waiting"]}] if story["waiting"] else []
        echo("")
        show_table(settings, [*story["counts"], *undecided], _COUNT_COLUMNS, empty="")
    if story["slots"]:
        echo("")
        show_slots(settings, story["slots"][:_SLOTS_MAX], zone, empty="")
    if len(story["slots"]) > _SLOTS_MAX:
        echo(safe_line(f"… and more: taskforgectl schedule slots {full_name(trigger)}"))
    if story["next"]:
        echo("\nnext")
        show_due_times(settings, story["next"], zone, empty="")


_COUNT_COLUMNS = [Column("OUTCOME", lambda one: one["outcome"]), Column("DUE TIMES", lambda one: f"{one['count']:,}")]

verbs = (_explain,)
