"""`taskforgectl event`: what webhooks delivered, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from taskforge.v1 import event_pb2
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

from taskforgectl.connection import Connection
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import collect, limit_option
from taskforgectl.render.output import Item, echo, show_item, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, local_time, show_details, show_table

__all__ = ["command"]

_OUTCOMES = [one.name.removeprefix("OUTCOME_") for one in event_pb2.Event.Outcome.DESCRIPTOR.values if one.number]


@click.group("event", cls=Noun)
def command() -> None:
    """Show what webhooks delivered and what became of it."""


@command.command("list")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice(_OUTCOMES, case_sensitive=False),
    help="Only events with this outcome.",
)
@click.option("--path", default="", help="Only events of this webhook path.")
@limit_option
@click.pass_obj
def list_(settings: Settings, *, outcomes: Sequence[str], path: str, limit: int) -> None:
    """List events, newest first."""
    wanted = [event_pb2.Event.Outcome.Value(f"OUTCOME_{outcome}") for outcome in outcomes]
    with Connection(settings) as connection:
        stub = connection.stub(EventServiceStub)

        def fetch(size: int, token: str) -> tuple[Sequence[Any], str]:
            request = pb.ListEventsRequest(
                namespace=settings.namespace, outcomes=wanted, path=path, page_size=size, page_token=token
            )
            answer = connection.ask(stub.ListEvents, request)
            return answer.events, answer.next_page_token

        rows = collect(fetch, limit)
    empty = "no events fit" if outcomes or path else "no events yet; `taskforgectl workflow list` shows the webhooks"
    show_list(settings, rows, key="id", table=lambda items: show_table(settings, items, _COLUMNS, empty=empty))


_COLUMNS = [
    Column("EVENT", lambda one: one["id"]),
    Column("PATH", lambda one: one["path"]),
    Column("OUTCOME", lambda one: one["outcome"]),
    Column("RECEIVED", lambda one: local_time(one["create_time"])),
    Column("RUNS", lambda one: " ".join(one["run_ids"])),
    Column("REASON", lambda one: one["reason"] or one["duplicate_of"]),
]


@command.command("show")
@click.argument("event_id", metavar="EVENT")
@click.pass_obj
def show(settings: Settings, event_id: str) -> None:
    """Show an event with headers, body and what each trigger made of it."""
    with Connection(settings) as connection:
        method = connection.stub(EventServiceStub).GetEvent
        event = plain(connection.ask(method, pb.GetEventRequest(event_id=event_id)).event)
    show_item(settings, event, key="id", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, event: Item) -> None:
    pairs = [
        ("event", event["id"]),
        ("path", event["path"]),
        ("outcome", event["outcome"]),
        ("reason", event["reason"]),
        ("duplicate of", event["duplicate_of"]),
        ("verified by", event["verification"]),
        ("delivery", event["delivery_id"]),
        ("received", local_time(event["create_time"])),
        ("from", event["remote"]),
        ("runs", "\n".join(event["run_ids"])),
        ("query", "\n".join(f"{key}={value}" for key, value in (event["query"] or {}).items())),
        ("headers", "\n".join(f"{key}: {value}" for key, value in event["headers"].items())),
        ("body", _body_text(event)),
    ]
    show_details(settings, pairs)
    if event["verdicts"]:
        echo("")
        show_table(settings, event["verdicts"], _VERDICT_COLUMNS, empty="")


def _body_text(event: Item) -> str:
    body = event["body"]
    return body if isinstance(body, str) else f"{event['body_size']} bytes that are not text; -o json shows them"


_VERDICT_COLUMNS = [
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("TRIGGER", lambda one: one["trigger"]),
    Column("MATCHED", lambda one: one["matched"]),
    Column("RUN", lambda one: one["run_id"]),
    Column("REASON", lambda one: one["reason"]),
]
