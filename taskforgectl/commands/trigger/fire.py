"""`taskforgectl trigger fire`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from taskforge.v1 import event_pb2, run_pb2
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub

from taskforgectl.commands.run.outcome import await_end, get_run
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_INTERRUPTED, CliError
from taskforgectl.follow import TERMINAL
from taskforgectl.inputs import given_json, pairs_of
from taskforgectl.kinds import FILE, TRIGGER
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import reconnect_option
from taskforgectl.render.events import show_runs, show_verdicts
from taskforgectl.render.output import Item, echo_parts, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.triggers import parse_trigger

__all__ = ["verbs"]


@click.command("fire", cls=Verb)
@click.argument("name", metavar="TRIGGER", type=TRIGGER)
@click.option("--payload", metavar="JSON|@FILE|-", type=FILE, help="What `event.body` shall be. Default: null.")
@click.option("--payload-file", metavar="FILE|-", type=FILE, help="The same from a file or from stdin.")
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="One of `event.headers`.")
@click.option("--type", "kind", metavar="TYPE", default="", help="What `event.type` shall be, for an event trigger.")
@click.option("--wait", is_flag=True, help="Wait for the end of the runs. Exit code 0 only if all succeeded.")
@click.option("--request-id", metavar="ID", help="Makes a repeated command answer the same event.")
@reconnect_option
@click.pass_context
def _fire(
    context: click.Context,
    *,
    name: str,
    payload: str | None,
    payload_file: str | None,
    headers: Sequence[str],
    kind: str,
    wait: bool,
    request_id: str | None,
    reconnect_s: float,
) -> None:
    """Ask a trigger by hand, as if what it waits for had happened. It may be paused.

    Exit code 1 when it started no run.
    """
    settings: Settings = context.obj
    workflow, trigger = parse_trigger(name)
    request = pb.FireTriggerRequest(
        namespace=settings.namespace,
        workflow=workflow,
        trigger=trigger,
        payload_json=given_json(payload, payload_file, "--payload"),
        headers=pairs_of(headers, "--header"),
        type=kind,
        request_id=request_id or str(uuid.uuid4()),  # so that a repeated call fires nothing twice
    )
    with Connection(settings) as connection:
        event = connection.ask(connection.stub(TriggerServiceStub).FireTrigger, request).event
    runs = _await_all(context, event, reconnect_s) if wait else None
    item = {**plain(event), "runs": None if runs is None else [plain(run) for run in runs]}
    show_item(settings, item, key="id", people=lambda one: _tell(settings, one))
    if not event.run_ids or any(run.state != run_pb2.Run.STATE_SUCCEEDED for run in runs or ()):
        context.exit(EXIT_FAILED)


def _await_all(context: click.Context, event: event_pb2.Event, reconnect_s: float) -> list[run_pb2.Run]:
    """Answer the runs as they ended."""
    settings: Settings = context.obj
    found = []
    with _remembered(context, event.id):
        for run_id in event.run_ids:
            run = get_run(settings, run_id)
            found.append(run if run.state in TERMINAL else await_end(settings, run, reconnect_s))
    return found


@contextmanager
def _remembered(context: click.Context, event_id: str) -> Iterator[None]:
    """Say how to come back when waiting ends early: the event has happened, and its runs go on."""
    again = f"taskforgectl event why {event_id}"
    try:
        yield
    except KeyboardInterrupt:
        click.echo(safe_line(f"detached; come back with: {again}"), err=True)
        context.exit(EXIT_INTERRUPTED)
    except CliError as error:
        error.hint = f"the trigger has fired; what became of it: {again}"
        raise


def _tell(settings: Settings, event: Item) -> None:
    echo_parts(event["id"], event["outcome"])
    show_verdicts(settings, event["verdicts"])
    show_runs(settings, event["runs"] or (), event["id"])


verbs = (_fire,)
