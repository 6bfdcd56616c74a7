"""`taskforgectl schedule backfill`."""

from __future__ import annotations

import datetime as dt
import sys
import uuid
from collections.abc import Sequence

import click
from taskforge.v1 import trigger_pb2
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED
from taskforgectl.kinds import TRIGGER
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, note, show_item, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.schedules import show_slots
from taskforgectl.times import parse_time
from taskforgectl.triggers import parse_trigger

__all__ = ["verbs"]

_FIRED = trigger_pb2.ScheduleSlot.OUTCOME_FIRED
_FAILED = trigger_pb2.ScheduleSlot.OUTCOME_FAILED


@click.command("backfill", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.option("--from", "begin", metavar="TIME|-SPAN", required=True, help="What was due then or later.")
@click.option("--to", "end", metavar="TIME|-SPAN", help="What was due earlier than this. Default: now.")
@click.option("--max-parallel", type=click.IntRange(1, 1000), metavar="N", help="Runs at the same time. Default: 1.")
@click.option("--include-fired", is_flag=True, help="Start those again, too, that have fired.")
@click.option("--dry-run", is_flag=True, help="Only say which it would be.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@click.pass_context
def _backfill(
    context: click.Context,
    *,
    name: str,
    begin: str,
    end: str | None,
    max_parallel: int | None,
    include_fired: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Start runs for due times of the past, all of them or none. Exit code 1 when one could not be started."""
    settings: Settings = context.obj
    (workflow, trigger), now = parse_trigger(name), dt.datetime.now(dt.UTC)
    request = pb.BackfillScheduleRequest(
        namespace=settings.namespace,
        workflow=workflow,
        trigger=trigger,
        to=None if end is None else parse_time(end, "--to", now),
        max_parallel=max_parallel or 0,
        include_fired=include_fired,
        dry_run=dry_run,
        request_id=str(uuid.uuid4()),  # so that a repeated call starts nothing twice
    )
    getattr(request, "from").CopyFrom(parse_time(begin, "--from", now))  # a keyword of Python
    with Connection(settings) as connection:
        if not dry_run and not yes and sys.stdin.isatty() and not _confirmed(settings, connection, request):
            return
        answer = connection.ask(connection.stub(TriggerServiceStub).BackfillSchedule, request)
    _show(settings, plain(answer), dry_run=dry_run)
    if any(slot.outcome == _FAILED for slot in answer.slots):
        context.exit(EXIT_FAILED)


def _confirmed(settings: Settings, connection: Connection, request: pb.BackfillScheduleRequest) -> bool:
    """Ask whether as many runs are meant, and bind the request to what was shown; False when there are none."""
    dry = pb.BackfillScheduleRequest()
    dry.CopyFrom(request)
    dry.dry_run, dry.request_id = True, ""
    slots = connection.ask(connection.stub(TriggerServiceStub).BackfillSchedule, dry).slots
    count = sum(slot.count or 1 for slot in slots if slot.outcome == _FIRED)
    if not count:
        note(settings, "there is nothing to start")
        return False
    click.confirm(f"start runs for {count:,} due times?", abort=True, err=True)
    if not request.HasField("to"):  # what falls due while somebody thinks was not asked for
        last = max(max(one.due_time.ToDatetime(dt.UTC), one.last_due_time.ToDatetime(dt.UTC)) for one in slots)
        request.to.FromDatetime(last + dt.timedelta(milliseconds=1))
    return True


def _show(settings: Settings, answer: Item, *, dry_run: bool) -> None:
    """Show the answer; `-o name` has the runs, in a dry run the due times."""
    slots: Sequence[Item] = answer["slots"]
    if settings.output == "name":
        names = [{"name": one["due_time"]} for one in slots if one["outcome"] == "FIRED"]
        if not dry_run:
            names = [{"name": run_id} for one in slots for run_id in one["run_ids"]]
        show_list(settings, names, key="name", table=lambda _: None)
        return
    show_item(settings, answer, key="", people=lambda _: _tell(settings, answer, dry_run=dry_run))


def _tell(settings: Settings, answer: Item, *, dry_run: bool) -> None:
    shown = [_described(one, dry_run=dry_run) for one in answer["slots"]]
    show_slots(settings, shown, "", empty="there is nothing to start")
    if answer["omitted"]:
        echo(f"left out: {answer['omitted']:,} that have fired already; --include-fired starts them again")


def _described(slot: Item, *, dry_run: bool) -> Item:
    """Answer a slot without what goes without saying here."""
    outcome = "would fire" if dry_run and slot["outcome"] == "FIRED" else slot["outcome"]
    return {**slot, "outcome": outcome, "backfill": False}


verbs = (_backfill,)
