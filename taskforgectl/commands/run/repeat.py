"""`taskforgectl run retry` and `rerun`: a new run for one that has ended."""

from __future__ import annotations

import uuid

import click
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.commands.run.outcome import Outcome, conclude, outcome_options
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.kinds import RUN
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import echo

__all__ = ["verbs"]

_request_option = click.option("--request-id", metavar="ID", help="Makes a repeated command answer the same run.")


@click.command("retry", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@_request_option
@outcome_options
@click.pass_context
def _retry(context: click.Context, *, run_id: str, request_id: str | None, outcome: Outcome) -> None:
    """Retry a run that failed, died or was cancelled. The new run takes over what had succeeded."""
    settings: Settings = context.obj
    request = pb.RetryRunRequest(run_id=run_id, request_id=request_id or str(uuid.uuid4()))
    with Connection(settings) as connection:
        run = connection.ask(connection.stub(RunServiceStub).RetryRun, request).run
    conclude(context, run, outcome, people=lambda one: echo(f"{one['id']}  {one['state']}  retries {run_id}"))


@click.command("rerun", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.option("--from", "from_step", metavar="STEP", default="", help="Take over what comes before this step.")
@click.option("--version", type=click.IntRange(min=1), help="Run this version. Default: that of the run.")
@click.option("--newest", is_flag=True, help="Run the newest version.")
@_request_option
@outcome_options
@click.pass_context
def _rerun(
    context: click.Context,
    *,
    run_id: str,
    from_step: str,
    version: int | None,
    newest: bool,
    request_id: str | None,
    outcome: Outcome,
) -> None:
    """Run one that has ended once more. The new run has the same input; it begins anew, or at a step."""
    if version is not None and newest:
        raise CliError("--version and --newest exclude each other", code=EXIT_USAGE)
    settings: Settings = context.obj
    request = pb.RerunRunRequest(
        run_id=run_id,
        from_step=from_step,
        newest_version=newest,
        version=version or 0,
        request_id=request_id or str(uuid.uuid4()),
    )
    with Connection(settings) as connection:
        run = connection.ask(connection.stub(RunServiceStub).RerunRun, request).run
    conclude(context, run, outcome, people=lambda one: echo(f"{one['id']}  {one['state']}  repeats {run_id}"))


verbs = (_retry, _rerun)
