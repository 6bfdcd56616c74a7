"""`taskforgectl run list`, `show`, `steps`, `history` and `verify`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import click
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1 import system_service_pb2 as system_pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.commands.run.outcome import get_run, show_run
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED
from taskforgectl.kinds import EVENT, RUN, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.board import describe_body
from taskforgectl.render.output import Item, echo, note, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.runs import STEP_COLUMNS
from taskforgectl.render.tables import Column, age, local_time, tabled, when
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_STATES = [one.name.removeprefix("STATE_") for one in run_pb2.Run.State.DESCRIPTOR.values if one.number]
_STEP_STATES = [one.name.removeprefix("STATE_") for one in run_pb2.StepRun.State.DESCRIPTOR.values if one.number]


@click.command("list", cls=Verb)
@click.option("--workflow", metavar="WORKFLOW", type=WORKFLOW, default="", help="Only runs of this workflow.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES, case_sensitive=False), help="Only in this state."
)
@click.option("--event", "event_id", metavar="EVENT", type=EVENT, default="", help="Only runs that this event started.")
@click.option("--stuck", is_flag=True, help="Only open runs that nothing will move, and what they lack.")
@listing_options
@click.pass_obj
def _list(
    settings: Settings, *, workflow: str, states: Sequence[str], event_id: str, stuck: bool, listing: Listing
) -> None:
    """List runs, newest first."""
    if stuck:
        if workflow or states or event_id:
            raise click.UsageError("--stuck goes with no other filter")
        _list_stuck(settings, listing)
        return
    wanted = [run_pb2.Run.State.Value(f"STATE_{state}") for state in states]

    pages: deque[pb.ListRunsResponse] = deque(maxlen=1)
    request = pb.ListRunsRequest(namespace=settings.namespace, workflow=workflow, states=wanted, event_id=event_id)

    def read(connection: Connection) -> Sequence[Item]:
        method = connection.stub(RunServiceStub).ListRuns
        return collect(connection, method, request, listing.limit, on_page=pages.append)

    filtered = bool(workflow or states or event_id)
    empty = "no runs fit" if filtered else "no runs yet; start one with `taskforgectl run start WORKFLOW`"
    show_listing(settings, listing, read, key="id", table=tabled(settings, _RUN_COLUMNS, empty=empty))
    if pages[-1].pruned and not pages[-1].next_page_token:
        until = local_time(pages[-1].pruned_until.ToJsonString())
        note(settings, f"{pages[-1].pruned:,} older runs have been pruned, the newest of them of {until}")


def _list_stuck(settings: Settings, listing: Listing) -> None:
    def read(connection: Connection) -> Sequence[Item]:
        request = system_pb.ListStuckRunsRequest(namespace=settings.namespace)
        answer = connection.ask(connection.stub(SystemServiceStub).ListStuckRuns, request)
        return [plain(one) for one in answer.runs[: listing.limit or None]]

    show_listing(settings, listing, read, key="id", table=tabled(settings, _STUCK_COLUMNS, empty="no run is stuck"))


_STUCK_COLUMNS = [
    Column("RUN", lambda one: one["id"]),
    Column("WORKFLOW", lambda one: one["workflow"]),
    Column("STATE", lambda one: one["state"]),
    Column("SINCE", lambda one: when(one["since"])),
    Column("DIAGNOSIS", lambda one: plain(one["diagnosis"])),
]


_RUN_COLUMNS = [
    Column("RUN", lambda one: one["id"]),
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("STATE", lambda one: one["state"]),
    Column("TRIGGER", lambda one: one["trigger"]),
    Column("CREATED", lambda one: when(one["create_time"])),
    Column("TOOK", lambda one: age(one["create_time"], one["end_time"])),
]


@click.command("show", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.pass_obj
def _show(settings: Settings, run_id: str) -> None:
    """Show a run with its steps. Of a fan-out's items those that need attention; `run steps` lists all."""
    show_run(settings, get_run(settings, run_id))


@click.command("steps", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STEP_STATES, case_sensitive=False),
    help="Only in this state. May be given several times.",
)
@click.option("--prefix", metavar="TEXT", default="", help="Only steps whose keys begin so, for example 'notify['.")
@listing_options
@click.pass_obj
def _steps(settings: Settings, *, run_id: str, states: Sequence[str], prefix: str, listing: Listing) -> None:
    """List a run's steps in the order in which they were reached."""
    wanted = [run_pb2.StepRun.State.Value(f"STATE_{state}") for state in states]

    request = pb.ListRunStepsRequest(run_id=run_id, key_prefix=prefix, states=wanted)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(RunServiceStub).ListRunSteps, request, listing.limit)

    empty = "no steps fit" if states or prefix else "no step was reached yet"
    show_listing(settings, listing, read, key="key", table=tabled(settings, STEP_COLUMNS, empty=empty))


@click.command("history", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@listing_options
@click.pass_obj
def _history(settings: Settings, run_id: str, listing: Listing) -> None:
    """List a run's history, oldest first."""
    request = pb.GetRunHistoryRequest(run_id=run_id)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(RunServiceStub).GetRunHistory, request, listing.limit)

    columns = [
        Column("SEQ", lambda one: one["sequence"]),
        Column("TIME", lambda one: local_time(one["create_time"])),
        Column("KIND", lambda one: one["kind"]),
        Column("STEP", lambda one: one["step"]),
        Column("ATTEMPT", lambda one: one["attempt"] or ""),
        Column("DETAIL", lambda one: describe_body(one["kind"], one["body"])),
    ]
    show_listing(
        settings,
        listing,
        read,
        key="sequence",
        table=tabled(settings, columns, empty="no history"),
    )


@click.command("verify", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.pass_context
def _verify(context: click.Context, run_id: str) -> None:
    """Prove that a run's history is unbroken and decides the same again. Exit code 1 when it does not."""
    settings: Settings = context.obj
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).VerifyRun
        verdict = {"run_id": run_id, **plain(connection.ask(method, pb.VerifyRunRequest(run_id=run_id)))}
    show_item(settings, verdict, key="run_id", people=_tell_verdict)
    if not verdict["intact"]:
        context.exit(EXIT_FAILED)


def _tell_verdict(verdict: Item) -> None:
    if verdict["intact"]:
        echo(f"intact: {verdict['events']} events, head {verdict['head_hash'][:16]}")
    for fault in verdict["faults"]:
        echo(f"fault: {fault}")


verbs = (_list, _show, _steps, _history, _verify)
