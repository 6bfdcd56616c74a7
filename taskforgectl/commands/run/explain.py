"""`taskforgectl run explain`."""

from __future__ import annotations

import click
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1.run_service_pb2_grpc import RunServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import RUN
from taskforgectl.options import Settings, Verb
from taskforgectl.render.explanation import explanation_lines
from taskforgectl.render.output import echo, show_item
from taskforgectl.render.plain import plain

__all__ = ["verbs"]


@click.command("explain", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.pass_obj
def _explain(settings: Settings, run_id: str) -> None:
    """Say what a run waits for and who holds it up, or why it ended as it did."""
    with Connection(settings) as connection:
        method = connection.stub(RunServiceStub).ExplainRun
        item = plain(connection.ask(method, pb.ExplainRunRequest(run_id=run_id)).explanation)
    show_item(settings, item, key="run_id", people=lambda one: echo("\n".join(explanation_lines(one))))


verbs = (_explain,)
