"""`taskforgectl event publish`."""

from __future__ import annotations

import uuid

import click
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

from taskforgectl.connection import Connection
from taskforgectl.inputs import given_json
from taskforgectl.kinds import FILE
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo_parts, show_item
from taskforgectl.render.plain import plain

__all__ = ["verbs"]


@click.command("publish", cls=Verb)
@click.argument("kind", metavar="TYPE")
@click.option("--data", metavar="JSON|@FILE|-", type=FILE, help="The event's body, any JSON value. Default: null.")
@click.option("--data-file", metavar="FILE|-", type=FILE, help="The same from a file or from stdin.")
@click.option("--subject", default="", help="What it is about.")
@click.option("--request-id", metavar="ID", help="Makes a repeated command answer the same event.")
@click.pass_obj
def _publish(
    settings: Settings, *, kind: str, data: str | None, data_file: str | None, subject: str, request_id: str | None
) -> None:
    """Publish an internal event. The triggers that ask for its type are asked, also after a crash."""
    request = pb.PublishEventRequest(
        namespace=settings.namespace,
        type=kind,
        data_json=given_json(data, data_file, "--data"),
        subject=subject,
        request_id=request_id or str(uuid.uuid4()),  # so that a repeated call publishes nothing twice
    )
    with Connection(settings) as connection:
        event = plain(connection.ask(connection.stub(EventServiceStub).PublishEvent, request).event)
    show_item(settings, event, key="id", people=_tell)


def _tell(event: Item) -> None:
    fate = "no trigger asks for it" if event["outcome"] == "UNMATCHED" else ""
    echo_parts(event["id"], event["type"], event["outcome"], fate)


verbs = (_publish,)
