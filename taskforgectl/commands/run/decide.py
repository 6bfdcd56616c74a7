"""`taskforgectl run approve`, `reject` and `resolve`: what only a person can decide."""

from __future__ import annotations

from collections.abc import Sequence

import click
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_CONFLICT, EXIT_USAGE, CliError
from taskforgectl.inputs import json_value
from taskforgectl.kinds import FILE, RUN, STEP
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import collect
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line

__all__ = ["verbs"]

_NAMED_MAX = 10
"""Waiting steps that an error names."""

_comment_option = click.option("--comment", default="", help="Recorded in the history.")


@click.command("approve", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.argument("step", metavar="[STEP]", default="", type=STEP)
@click.option(
    "--data", metavar="JSON|@FILE|-", type=FILE, help="Goes into the step's output, any JSON value. Default: null."
)
@_comment_option
@click.pass_obj
def _approve(settings: Settings, *, run_id: str, step: str, data: str | None, comment: str) -> None:
    """Approve a step. Without STEP the only one that waits for approval."""
    payload = json_value(data, "--data")
    with Connection(settings) as connection:
        step = step or _only_approval(connection, run_id)
        request = pb.ApproveRunRequest(run_id=run_id, step=step, payload_json=payload, comment=comment)
        run = connection.tell(connection.stub(RunServiceStub).ApproveRun, request).run
    _show(settings, run, step, "approved")


@click.command("reject", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.argument("step", metavar="[STEP]", default="", type=STEP)
@_comment_option
@click.pass_obj
def _reject(settings: Settings, *, run_id: str, step: str, comment: str) -> None:
    """Refuse a step, which then fails. Without STEP the only one that waits for approval."""
    with Connection(settings) as connection:
        step = step or _only_approval(connection, run_id)
        request = pb.RejectRunRequest(run_id=run_id, step=step, comment=comment)
        run = connection.tell(connection.stub(RunServiceStub).RejectRun, request).run
    _show(settings, run, step, "rejected")


@click.command("resolve", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.argument("step", metavar="STEP", type=STEP)
@click.option(
    "--as",
    "outcome",
    required=True,
    type=click.Choice(["succeeded", "failed", "retry"]),
    help="succeeded: the effect happened; failed: it did not and shall not; retry: it did not, do it now.",
)
@click.option(
    "--output",
    "--data",
    "data",
    metavar="JSON|@FILE|-",
    type=FILE,
    help="With --as succeeded: the step's output, any JSON value. The format is -o here.",
)
@_comment_option
@click.pass_obj
def _resolve(settings: Settings, *, run_id: str, step: str, outcome: str, data: str | None, comment: str) -> None:
    """Say what became of a step that needs a decision. `run explain` and `run steps -o json` show the evidence."""
    if data is not None and outcome != "succeeded":
        raise CliError("--output goes with --as succeeded only", code=EXIT_USAGE)
    request = pb.ResolveRunRequest(
        run_id=run_id,
        step=step,
        outcome=pb.Resolution.Value(f"RESOLUTION_{outcome.upper()}"),
        output_json=json_value(data, "--output"),
        comment=comment,
    )
    with Connection(settings) as connection:
        run = connection.tell(connection.stub(RunServiceStub).ResolveRun, request).run
    _show(settings, run, step, f"resolved as {outcome}")


def _show(settings: Settings, run: run_pb2.Run, step: str, verdict: str) -> None:
    line = f"{run.id}  {plain(run)['state']}  {step} {verdict}"
    show_item(settings, plain(run), key="id", people=lambda _: echo(line))


def _only_approval(connection: Connection, run_id: str) -> str:
    """Answer the key of the only step that waits for approval.

    Raises:
        CliError: there is none, or more than one.
    """
    waiting = [one for one in _waiting(connection, run_id) if one["waiting_for"] == "approval"]
    if not waiting:
        hint = f"see what it waits for: taskforgectl run explain {run_id}"
        raise CliError(f"no step of {run_id} waits for approval", hint=hint, code=EXIT_CONFLICT)
    if len(waiting) > 1:
        named = [safe_line(f"{one['key']}: {one['message']}") for one in waiting[:_NAMED_MAX]]
        rest = [f"… and {len(waiting) - _NAMED_MAX} more"] if len(waiting) > _NAMED_MAX else []
        text = "\n  ".join([f"{len(waiting)} steps wait for approval:", *named, *rest])
        raise CliError(text, hint="name one of them after the run", code=EXIT_USAGE)
    return str(waiting[0]["key"])


def _waiting(connection: Connection, run_id: str) -> Sequence[Item]:
    request = pb.ListRunStepsRequest(run_id=run_id, states=[run_pb2.StepRun.STATE_WAITING])
    return collect(connection, connection.stub(RunServiceStub).ListRunSteps, request, 0)


verbs = (_approve, _reject, _resolve)
