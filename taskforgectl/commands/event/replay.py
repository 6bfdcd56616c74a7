"""`taskforgectl event replay`."""

from __future__ import annotations

import datetime as dt
import sys
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

from taskforgectl.commands.event.filters import Selection, filter_options
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_USAGE, CliError, RemoteError
from taskforgectl.files import read_bytes
from taskforgectl.kinds import EVENT, FILE, TRIGGER, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, note, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, few, filled, show_table
from taskforgectl.times import parse_time
from taskforgectl.triggers import TriggerName, parse_trigger

__all__ = ["verbs"]

_PORTION = 100
"""Events in one call: each of them asks triggers and starts runs before the answer comes."""

_DRY_PORTION = 1000
"""The daemon's own limit."""


class _Job(NamedTuple):
    """What is to be replayed, and for whom."""

    event_ids: Sequence[str]
    filter: pb.EventFilter | None
    target: TriggerName
    body: bytes | None
    dry_run: bool

    def request(self, event_ids: Sequence[str], *, dry_run: bool) -> pb.ReplayEventsRequest:
        """Answer the request for some of the events, or for what fits the filter."""
        return pb.ReplayEventsRequest(
            event_ids=event_ids,
            filter=self.filter,
            max_count=len(event_ids) or (_DRY_PORTION if dry_run else _PORTION),
            workflow=self.target.workflow,
            trigger=self.target.trigger,
            dry_run=dry_run,
        )


@click.command("replay", cls=Verb)
@click.argument("event_ids", metavar="[EVENT]...", nargs=-1, type=EVENT)
@click.option("--edit", metavar="FILE|-", type=FILE, help="Put this in place of the body. With one event only.")
@click.option("--workflow", metavar="WORKFLOW", type=WORKFLOW, default="", help="Ask only its triggers.")
@click.option(
    "--trigger",
    metavar="TRIGGER",
    type=TRIGGER,
    default="",
    help="Ask only this one: WORKFLOW/TRIGGER, or with --workflow.",
)
@click.option("--all", "everything", is_flag=True, help="All that fit the filters and have not been replayed.")
@filter_options
@click.option("--dry-run", is_flag=True, help="Only say which it would be.")
@click.option("--yes", is_flag=True, help="Do not ask, on a terminal, whether --all is meant.")
@click.pass_context
def _replay(
    context: click.Context,
    *,
    event_ids: Sequence[str],
    edit: str | None,
    workflow: str,
    trigger: str,
    everything: bool,
    selection: Selection,
    dry_run: bool,
    yes: bool,
) -> None:
    """Offer events again to the triggers as they are now. Exit code 1 when one could not be replayed."""
    settings: Settings = context.obj
    _check(event_ids, selection, edit, everything=everything, dry_run=dry_run)
    target = _target(workflow, trigger)
    fitting = _filter(settings, selection) if everything else None
    body = None if edit is None else read_bytes(edit)
    job = _Job(list(dict.fromkeys(event_ids)), fitting, target, body, dry_run)
    with Connection(settings) as connection:
        is_asked_for = everything and not yes and not dry_run and sys.stdin.isatty()
        if is_asked_for and not _confirmed(settings, connection, job):
            return
        results = _replay_all(settings, connection, job)
    if any(one["error"] for one in results):
        context.exit(EXIT_FAILED)


def _check(
    event_ids: Sequence[str], selection: Selection, edit: str | None, *, everything: bool, dry_run: bool
) -> None:
    if bool(event_ids) == everything:
        raise CliError("give the events, or --all", hint="`taskforgectl event list` shows them", code=EXIT_USAGE)
    if not everything and any(selection):
        message = "--outcome, --path, --type, --source, --since and --until go with --all"
        raise CliError(message, code=EXIT_USAGE)
    if edit is not None and (everything or len(event_ids) > 1 or dry_run):
        raise CliError("--edit goes with one event, and without --all and --dry-run", code=EXIT_USAGE)


def _target(workflow: str, trigger: str) -> TriggerName:
    """Answer whom to ask; both parts are empty for all."""
    if not trigger:
        return TriggerName(workflow, "")
    if workflow:
        return parse_trigger(f"{workflow}/{trigger.removeprefix(f'{workflow}/')}")
    if "/" not in trigger:
        raise CliError("--trigger needs --workflow, or is WORKFLOW/TRIGGER", code=EXIT_USAGE)
    return parse_trigger(trigger)


def _filter(settings: Settings, selection: Selection) -> pb.EventFilter:
    fitting = pb.EventFilter(namespace=settings.namespace, **selection.fields())
    if not selection.until:  # always bounded: what comes in meanwhile is not for the next portion
        fitting.until.CopyFrom(parse_time("+0s", "--until", dt.datetime.now(dt.UTC)))
    return fitting


def _confirmed(settings: Settings, connection: Connection, job: _Job) -> bool:
    """Ask whether as many are meant; False when there are none."""
    answer = connection.ask(connection.stub(EventServiceStub).ReplayEvents, job.request((), dry_run=True))
    if not answer.results:
        note(settings, "no events fit")
        return False
    count = f"more than {len(answer.results)}" if answer.more else f"{len(answer.results)}"
    click.confirm(f"replay {count} events?", abort=True, err=True)
    return True


def _replay_all(settings: Settings, connection: Connection, job: _Job) -> list[Item]:
    """Replay and show what became of each, also of those before one at which it was broken off."""
    results: list[Item] = []
    try:
        for portion in _portions(connection, job):
            results += portion
    except (RemoteError, KeyboardInterrupt):
        if results:
            _show(settings, job, results)
        raise
    _show(settings, job, results)
    return results


def _portions(connection: Connection, job: _Job) -> Iterator[Sequence[Item]]:
    """Yield what became of the events, call by call."""
    if len(job.event_ids) == 1 and not job.dry_run:
        yield [_one(connection, job)]
        return
    method = connection.stub(EventServiceStub).ReplayEvents
    for begin in range(0, len(job.event_ids), _PORTION):
        request = job.request(job.event_ids[begin : begin + _PORTION], dry_run=job.dry_run)
        yield [plain(one) for one in connection.tell(method, request).results]
    more = job.filter is not None
    while more:
        answer = connection.tell(method, job.request((), dry_run=job.dry_run))
        yield [plain(one) for one in answer.results]
        # A portion of which nothing was replayed would come again, and so would a dry one.
        more = answer.more and not job.dry_run and any(not one.error for one in answer.results)


def _one(connection: Connection, job: _Job) -> Item:
    request = pb.ReplayEventRequest(
        event_id=job.event_ids[0],
        body=job.body,
        workflow=job.target.workflow,
        trigger=job.target.trigger,
        request_id=str(uuid.uuid4()),  # so that a repeated call replays nothing twice
    )
    event = connection.ask(connection.stub(EventServiceStub).ReplayEvent, request).event
    result = pb.ReplayEventsResponse.Result(
        event_id=job.event_ids[0], replay_id=event.id, outcome=event.outcome, run_ids=event.run_ids
    )
    return plain(result)


def _show(settings: Settings, job: _Job, results: Sequence[Item]) -> None:
    """Show the results; `-o name` has the new events, in a dry run the old ones."""
    if settings.output == "name":
        results = [one for one in results if not one["error"]]
    key = "event_id" if job.dry_run else "replay_id"
    show_list(settings, results, key=key, table=lambda rows: _show_table(settings, job, rows))


def _show_table(settings: Settings, job: _Job, rows: Sequence[Item]) -> None:
    done = "would replay" if job.dry_run else "replayed"
    columns = [
        Column("EVENT", lambda one: one["event_id"]),
        Column("RESULT", lambda one: "failed" if one["error"] else done),
        Column("REPLAY", lambda one: one["replay_id"]),
        Column("OUTCOME", lambda one: one["outcome"]),
        Column("RUNS", lambda one: few(one["run_ids"])),
        Column("ERROR", lambda one: one["error"]),
    ]
    show_table(settings, rows, filled(columns, rows, "EVENT", "RESULT"), empty="no events fit")


verbs = (_replay,)
