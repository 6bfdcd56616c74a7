"""`taskforgectl trigger next`."""

from __future__ import annotations

import datetime as dt

import click
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.kinds import TRIGGER
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.schedules import show_due_times
from taskforgectl.times import parse_time
from taskforgectl.triggers import parse_trigger

__all__ = ["verbs"]


@click.command("next", cls=Verb)
@click.argument("name", metavar="[TRIGGER]", required=False, type=TRIGGER)
@click.option("--cron", "expression", metavar="EXPR", help="An expression that need not be applied: '0 3 * * *'.")
@click.option("--seconds", is_flag=True, help="With --cron: it has six fields, the seconds first.")
@click.option("--timezone", default="", metavar="ZONE", help="With --cron: an IANA name. Default: UTC.")
@click.option("--gap", type=click.Choice(["shift", "skip"]), help="With --cron: times that the clock leaves out.")
@click.option("--fold", type=click.Choice(["first", "last", "both"]), help="With --cron: times that it shows twice.")
@click.option("--from", "begin", metavar="TIME|+SPAN", help="Begin then, for example 2030-03-30. Default: now.")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@click.pass_obj
def _next(
    settings: Settings,
    *,
    name: str | None,
    expression: str | None,
    seconds: bool,
    timezone: str,
    gap: str | None,
    fold: str | None,
    begin: str | None,
    count: int,
) -> None:
    """Show the next due times of a cron trigger or of an expression."""
    if (name is None) == (expression is None):
        raise CliError("give the name of a trigger, or an expression with --cron", code=EXIT_USAGE)
    if name is not None and (seconds or timezone or gap or fold):
        raise CliError("--seconds, --timezone, --gap and --fold go with --cron", code=EXIT_USAGE)
    request = pb.PreviewScheduleRequest(
        namespace=settings.namespace,
        expression=expression or "",
        seconds=seconds,
        timezone=timezone,
        gap=gap or "",
        fold=fold or "",
        after=None if begin is None else _just_before(begin),
        count=count,
    )
    if name is not None:
        request.workflow, request.trigger = parse_trigger(name)
    with Connection(settings) as connection:
        answer = connection.ask(connection.stub(TriggerServiceStub).PreviewSchedule, request)
    rows = [plain(one) for one in answer.due_times]
    empty = "nothing is due from then on"
    show_list(
        settings,
        rows,
        key="due_time",
        table=lambda items: show_due_times(settings, items, answer.timezone, empty=empty),
    )


def _just_before(text: str) -> Timestamp:
    """Answer the instant before a time: the daemon answers what is later than it is told, and people say `from`."""
    stamp = parse_time(text, "--from", dt.datetime.now(dt.UTC))
    stamp.FromDatetime(stamp.ToDatetime(dt.UTC) - dt.timedelta(milliseconds=1))
    return stamp


verbs = (_next,)
