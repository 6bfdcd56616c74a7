"""`taskforgectl run`: start, watch, show and steer runs."""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CliError
from taskforgectl.follow import TERMINAL, Interruption, Portion, follow
from taskforgectl.inputs import input_json
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import collect, limit_option
from taskforgectl.render.board import Board, describe_body
from taskforgectl.render.output import Item, echo, show_item, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, age, local_time, show_details, show_table
from taskforgectl.render.viewer import Viewer, open_viewer

__all__ = ["command"]

_WAIT_S_MAX = 300
"""The daemon's limit for `StartRunRequest.wait`; beyond it the run is watched."""

_STATES = [one.name.removeprefix("STATE_") for one in run_pb2.Run.State.DESCRIPTOR.values if one.number]

_reconnect_option = click.option(
    "--reconnect-timeout",
    "reconnect_s",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to look for the daemon when the stream breaks.",
)


@click.group("run", cls=Noun)
def command() -> None:
    """Start, watch, show and cancel runs."""


# --- start -----------------------------------------------------------------------------------------------------------


@command.command("start")
@click.argument("name")
@click.option("--input", "pairs", multiple=True, metavar="KEY=VALUE", help="One input; JSON if it parses, else text.")
@click.option("--input-json", "text", metavar="TEXT", help="The input as a JSON object.")
@click.option("--input-file", "file", metavar="FILE", help="The input as a file with a JSON object; - for stdin.")
@click.option("--wait", is_flag=True, help="Wait for the end and show the run. Exit code 0 only if it succeeded.")
@click.option("--watch", is_flag=True, help="Watch it live. Exit code 0 only if it succeeded.")
@click.option("--request-id", metavar="ID", help="Makes a repeated command answer the same run.")
@click.option("--correlation-id", metavar="ID", default="", help="Groups runs that one cause led to.")
@_reconnect_option
@click.pass_context
def start(
    context: click.Context,
    *,
    name: str,
    pairs: Sequence[str],
    text: str | None,
    file: str | None,
    wait: bool,
    watch: bool,
    request_id: str | None,
    correlation_id: str,
    reconnect_s: float,
) -> None:
    """Start a run of the newest version of a workflow."""
    if wait and watch:
        raise CliError("--wait and --watch exclude each other", code=EXIT_USAGE)
    settings: Settings = context.obj
    request = pb.StartRunRequest(
        namespace=settings.namespace,
        workflow=name,
        input_json=input_json(pairs, text, file),
        request_id=request_id or str(uuid.uuid4()),  # so that a repeated call starts nothing twice
        correlation_id=correlation_id,
    )
    with Connection(settings) as connection:
        run = connection.ask(connection.stub(RunServiceStub).StartRun, request).run
    if watch:
        _watch(context, run, after=0, reconnect_s=reconnect_s)
    elif wait:
        with _detachable(context, run.id):
            run = _wait(settings, request, run, reconnect_s)
        _show_run(settings, run)
        _exit_as(context, run)
    else:
        show_item(settings, plain(run), key="id", people=lambda one: echo(f"{one['id']}  {one['state']}"))


def _wait(settings: Settings, request: pb.StartRunRequest, run: run_pb2.Run, reconnect_s: float) -> run_pb2.Run:
    """Answer the run as it ended, with its steps."""
    held = _wait_held(settings, request)
    if held is not None and held.state in TERMINAL:
        return held
    with contextlib.closing(follow(settings, run.id, after=run.sequence, reconnect_s=reconnect_s)) as updates:
        for _ in updates:
            pass
    return _get(settings, run.id)


def _wait_held(settings: Settings, request: pb.StartRunRequest) -> run_pb2.Run | None:
    """Ask for the same run again and let the daemon hold the answer back; None when it could not.

    Unlike watching, this is open to tokens that may only start runs.
    """
    held = pb.StartRunRequest()
    held.CopyFrom(request)
    held.wait.CopyFrom(Duration(seconds=_WAIT_S_MAX))
    try:
        with Connection(settings) as connection:
            return connection.tell(connection.stub(RunServiceStub).StartRun, held, extra_s=_WAIT_S_MAX).run
    except CliError:  # the daemon restarts, or a newer version refuses the input: watching goes on
        return None


def _get(settings: Settings, run_id: str) -> run_pb2.Run:
    with Connection(settings) as connection:
        return connection.ask(connection.stub(RunServiceStub).GetRun, pb.GetRunRequest(run_id=run_id)).run


# --- watch -----------------------------------------------------------------------------------------------------------


@command.command("watch")
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin after this sequence number.")
@_reconnect_option
@click.pass_context
def watch(context: click.Context, *, run_id: str, after: int, reconnect_s: float) -> None:
    """Watch a run until it ends. Exit code 0 only if it succeeded. Ctrl-C detaches and leaves the run alone."""
    _watch(context, _get(context.obj, run_id), after=after, reconnect_s=reconnect_s)


def _watch(context: click.Context, run: run_pb2.Run, *, after: int, reconnect_s: float) -> None:
    settings: Settings = context.obj
    refresh = functools.partial(_get, settings, run.id)
    with _detachable(context, run.id), open_viewer(settings, Board(run), refresh) as viewer:
        updates = follow(settings, run.id, after=after, reconnect_s=reconnect_s)
        with contextlib.closing(updates):  # cancels the call, also on Ctrl-C
            for update in updates:
                run = _show_update(viewer, run, update)
    _exit_as(context, run)


def _show_update(viewer: Viewer, run: run_pb2.Run, update: Portion | Interruption) -> run_pb2.Run:
    if isinstance(update, Interruption):
        viewer.interrupted(update.reason)
        return run
    viewer.show(update.events, update.run)
    return update.run


@contextlib.contextmanager
def _detachable(context: click.Context, run_id: str) -> Iterator[None]:
    """Let Ctrl-C leave the run to itself."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"detached; come back with: taskforgectl run watch {run_id}", err=True)
        context.exit(EXIT_INTERRUPTED)


def _exit_as(context: click.Context, run: run_pb2.Run) -> None:
    context.exit(0 if run.state == run_pb2.Run.STATE_SUCCEEDED else EXIT_FAILED)


# --- show ------------------------------------------------------------------------------------------------------------


@command.command("list")
@click.option("--workflow", metavar="NAME", default="", help="Only runs of this workflow.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES, case_sensitive=False), help="Only in this state."
)
@click.option("--event", "event_id", metavar="ID", default="", help="Only runs that this event started.")
@limit_option
@click.pass_obj
def list_(settings: Settings, *, workflow: str, states: Sequence[str], event_id: str, limit: int) -> None:
    """List runs, newest first."""
    wanted = [run_pb2.Run.State.Value(f"STATE_{state}") for state in states]
    with Connection(settings) as connection:
        stub = connection.stub(RunServiceStub)

        def fetch(size: int, token: str) -> tuple[Sequence[Any], str]:
            request = pb.ListRunsRequest(
                namespace=settings.namespace,
                workflow=workflow,
                states=wanted,
                event_id=event_id,
                page_size=size,
                page_token=token,
            )
            answer = connection.ask(stub.ListRuns, request)
            return answer.runs, answer.next_page_token

        rows = collect(fetch, limit)
    filtered = bool(workflow or states or event_id)
    empty = "no runs fit" if filtered else "no runs yet; start one with `taskforgectl run start WORKFLOW`"
    show_list(settings, rows, key="id", table=lambda items: show_table(settings, items, _RUN_COLUMNS, empty=empty))


_RUN_COLUMNS = [
    Column("RUN", lambda one: one["id"]),
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("STATE", lambda one: one["state"]),
    Column("TRIGGER", lambda one: one["trigger"]),
    Column("CREATED", lambda one: local_time(one["create_time"])),
    Column("TOOK", lambda one: age(one["create_time"], one["end_time"])),
]


@command.command("show")
@click.argument("run_id", metavar="RUN")
@click.pass_obj
def show(settings: Settings, run_id: str) -> None:
    """Show a run with its steps."""
    _show_run(settings, _get(settings, run_id))


def _show_run(settings: Settings, run: run_pb2.Run) -> None:
    show_item(settings, plain(run), key="id", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, run: Item) -> None:
    error = run["error"]
    pairs = [
        ("run", run["id"]),
        ("workflow", f"{run['workflow']} v{run['version']}"),
        ("state", run["state"]),
        ("trigger", " ".join(filter(None, [run["trigger"], run["event_id"]]))),
        ("created", local_time(run["create_time"])),
        ("took", age(run["create_time"], run["end_time"])),
        ("cancel requested", run["cancel_requested"] or None),
        ("error", _error_text(error) if error else None),
        ("input", _pretty(run["input"])),
        ("output", _pretty(run["output"])),
    ]
    show_details(settings, pairs)
    if run["steps"]:
        echo("")
        show_table(settings, run["steps"], _STEP_COLUMNS, empty="")


_STEP_COLUMNS = [
    Column("STEP", lambda one: one["key"]),
    Column("KIND", lambda one: one["kind"]),
    Column("STATE", lambda one: one["state"]),
    Column("ATTEMPT", lambda one: f"{one['attempt']}/{one['max_attempts']}" if one["max_attempts"] else ""),
    Column("TOOK", lambda one: age(one["start_time"], one["end_time"])),
    Column("ERROR", lambda one: _error_text(one["error"]) if one["error"] else ""),
]


def _error_text(error: Item) -> str:
    place = f" (step {error['step']})" if error["step"] else ""
    return f"{error['code']}: {error['message']}{place}"


def _pretty(value: Any) -> str:
    return "" if value in (None, {}) else json.dumps(value, ensure_ascii=False, indent=2)


@command.command("history")
@click.argument("run_id", metavar="RUN")
@limit_option
@click.pass_obj
def history(settings: Settings, run_id: str, limit: int) -> None:
    """List a run's history, oldest first."""
    with Connection(settings) as connection:
        stub = connection.stub(RunServiceStub)

        def fetch(size: int, token: str) -> tuple[Sequence[Any], str]:
            request = pb.GetRunHistoryRequest(run_id=run_id, page_size=size, page_token=token)
            answer = connection.ask(stub.GetRunHistory, request)
            return answer.events, answer.next_page_token

        rows = collect(fetch, limit)
    columns = [
        Column("SEQ", lambda one: one["sequence"]),
        Column("TIME", lambda one: local_time(one["create_time"])),
        Column("KIND", lambda one: one["kind"]),
        Column("STEP", lambda one: one["step"]),
        Column("ATTEMPT", lambda one: one["attempt"] or ""),
        Column("DETAIL", lambda one: describe_body(one["kind"], one["body"])),
    ]
    show_list(
        settings, rows, key="sequence", table=lambda items: show_table(settings, items, columns, empty="no history")
    )


# --- steer -----------------------------------------------------------------------------------------------------------


@command.command("cancel")
@click.argument("run_id", metavar="RUN")
@click.option("--reason", default="", help="Recorded in the history.")
@click.pass_obj
def cancel(settings: Settings, run_id: str, reason: str) -> None:
    """Ask a run to stop."""
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).CancelRun
        run = plain(connection.ask(method, pb.CancelRunRequest(run_id=run_id, reason=reason)).run)
    asked = "" if run["state"] == "CANCELLED" else "  cancel requested"
    show_item(settings, run, key="id", people=lambda one: echo(f"{one['id']}  {one['state']}{asked}"))


@command.command("verify")
@click.argument("run_id", metavar="RUN")
@click.pass_context
def verify(context: click.Context, run_id: str) -> None:
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
