"""`taskforgectl run cancel`, `pause`, `resume` and `signal`."""

from __future__ import annotations

import uuid

import click
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.inputs import json_value
from taskforgectl.kinds import FILE, RUN
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.render.plain import plain

__all__ = ["verbs"]

_reason_option = click.option("--reason", default="", help="Recorded in the history.")


@click.command("cancel", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@_reason_option
@click.pass_obj
def _cancel(settings: Settings, run_id: str, reason: str) -> None:
    """Ask a run to stop."""
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).CancelRun
        run = plain(connection.ask(method, pb.CancelRunRequest(run_id=run_id, reason=reason)).run)
    asked = "" if run["state"] == "CANCELLED" else "  cancel requested"
    show_item(settings, run, key="id", people=lambda one: echo(f"{one['id']}  {one['state']}{asked}"))


@click.command("pause", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@_reason_option
@click.pass_obj
def _pause(settings: Settings, run_id: str, reason: str) -> None:
    """Let no further step of a run start. Steps under way end."""
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).PauseRun
        run = plain(connection.ask(method, pb.PauseRunRequest(run_id=run_id, reason=reason)).run)
    show_item(settings, run, key="id", people=_tell_state)


@click.command("resume", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@_reason_option
@click.pass_obj
def _resume(settings: Settings, run_id: str, reason: str) -> None:
    """Let a paused run go on."""
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).ResumeRun
        run = plain(connection.ask(method, pb.ResumeRunRequest(run_id=run_id, reason=reason)).run)
    show_item(settings, run, key="id", people=_tell_state)


def _tell_state(run: Item) -> None:
    echo(f"{run['id']}  {run['state']}")


@click.command("signal", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.argument("name", metavar="SIGNAL")
@click.option("--data", metavar="JSON|@FILE|-", type=FILE, help="The signal's payload, any JSON value. Default: null.")
@click.option("--request-id", metavar="ID", help="Makes a repeated command deliver the signal once.")
@click.pass_obj
def _signal(settings: Settings, *, run_id: str, name: str, data: str | None, request_id: str | None) -> None:
    """Send a signal to a run. It is kept until a step waits for it."""
    request = pb.SignalRunRequest(
        run_id=run_id,
        signal=name,
        payload_json=json_value(data, "--data"),
        request_id=request_id or str(uuid.uuid4()),  # so that a repeated call delivers nothing twice
    )
    with Connection(settings) as connection:
        answer = connection.ask(connection.stub(RunServiceStub).SignalRun, request)
    fate = f"taken by step {answer.step}" if answer.step else "kept until a step waits for it"
    item = {**plain(answer.run), "signal": name, "signal_step": answer.step}
    show_item(settings, item, key="id", people=lambda one: echo(f"{one['id']}  {one['state']}  {name} {fate}"))


verbs = (_cancel, _pause, _resume, _signal)
