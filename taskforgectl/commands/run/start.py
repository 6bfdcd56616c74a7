"""`taskforgectl run start`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

import click
from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.commands.run.outcome import Outcome, conclude, outcome_options
from taskforgectl.connection import Connection
from taskforgectl.errors import CliError
from taskforgectl.inputs import input_json
from taskforgectl.kinds import FILE, QUEUE, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo
from taskforgectl.render.tables import local_time
from taskforgectl.times import parse_time

__all__ = ["verbs"]

_WAIT_S_MAX = 300
"""The daemon's limit for `StartRunRequest.wait`; beyond it the run is watched."""


@click.command("start", cls=Verb)
@click.argument("name", metavar="WORKFLOW", type=WORKFLOW)
@click.option("--input", "pairs", multiple=True, metavar="KEY=VALUE", help="One input; JSON if it parses, else text.")
@click.option("--input-json", "text", metavar="TEXT", help="The input as a JSON object.")
@click.option(
    "--input-file", "file", metavar="FILE", type=FILE, help="The input as a file with a JSON object; - for stdin."
)
@click.option("--at", metavar="TIME|+SPAN", help="Start it later: 2030-01-31T18:00 (local), or +90m from now.")
@click.option(
    "--queue", metavar="QUEUE", type=QUEUE, default="", help="Queue of its steps. Default: that of the definition."
)
@click.option("--priority", type=click.IntRange(0, 9), metavar="0-9", help="The larger, the sooner.")
@click.option("--request-id", metavar="ID", help="Makes a repeated command answer the same run.")
@click.option("--correlation-id", metavar="ID", default="", help="Groups runs that one cause led to.")
@outcome_options
@click.pass_context
def _start(
    context: click.Context,
    *,
    name: str,
    pairs: Sequence[str],
    text: str | None,
    file: str | None,
    at: str | None,
    queue: str,
    priority: int | None,
    request_id: str | None,
    correlation_id: str,
    outcome: Outcome,
) -> None:
    """Start a run of the newest version of a workflow."""
    settings: Settings = context.obj
    request = pb.StartRunRequest(
        namespace=settings.namespace,
        workflow=name,
        input_json=input_json(pairs, text, file),
        request_id=request_id or str(uuid.uuid4()),  # so that a repeated call starts nothing twice
        correlation_id=correlation_id,
        queue=queue,
        priority=priority,
        run_time=None if at is None else parse_time(at, "--at", dt.datetime.now(dt.UTC)),
    )
    with Connection(settings) as connection:
        run = connection.ask(connection.stub(RunServiceStub).StartRun, request).run
    conclude(context, run, outcome, people=_tell, held=lambda: _wait_held(settings, request))


def _tell(run: Item) -> None:
    later = f"  starts {local_time(run['run_time'])}" if run["state"] == "SCHEDULED" else ""
    echo(f"{run['id']}  {run['state']}{later}")


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


verbs = (_start,)
