"""`taskforgectl queue`: the lanes in which steps wait for executors."""

from __future__ import annotations

from collections.abc import Sequence

import click
from taskforge.v1 import queue_service_pb2 as pb
from taskforge.v1.queue_service_pb2_grpc import QueueServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import QUEUE
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, show_item, tell_deleted
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, local_time, show_details, tabled, when
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_count = click.IntRange(0, 1_000_000)


@click.group("queue", cls=Noun)
def command() -> None:
    """Show and limit the lanes in which steps wait."""


@command.command("list")
@listing_options
@click.pass_obj
def list_(settings: Settings, listing: Listing) -> None:
    """List the queues of a namespace by name."""
    request = pb.ListQueuesRequest(namespace=settings.namespace)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(QueueServiceStub).ListQueues, request, listing.limit)

    show_listing(
        settings,
        listing,
        read,
        key="name",
        table=tabled(settings, _COLUMNS, empty=_EMPTY),
    )


def _maximum(queue: Item) -> str:
    return str(queue["running_steps_max"] or "no limit")


_EMPTY = "no queues yet; make one with `taskforgectl queue set NAME --running-steps-max N`"

_COLUMNS = [
    Column("QUEUE", lambda one: one["name"]),
    Column("STATE", lambda one: "PAUSED" if one["paused"] else "open"),
    Column("PRIORITY", lambda one: one["priority"]),
    Column("WAITING", lambda one: one["waiting"]),
    Column("RUNNING", lambda one: one["running"]),
    Column("MAX RUNNING", _maximum),
    Column("UPDATED", lambda one: when(one["update_time"])),
]


@command.command("show")
@click.argument("name", metavar="QUEUE", type=QUEUE)
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show a queue."""
    with Connection(settings) as connection:
        method = connection.stub(QueueServiceStub).GetQueue
        queue = plain(connection.ask(method, pb.GetQueueRequest(namespace=settings.namespace, name=name)).queue)
    show_item(settings, queue, key="name", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, queue: Item) -> None:
    pairs = [
        ("queue", queue["name"]),
        ("namespace", queue["namespace"]),
        ("state", "PAUSED" if queue["paused"] else "open"),
        ("priority", queue["priority"]),
        ("waiting steps", queue["waiting"]),
        ("running steps", queue["running"]),
        ("most at once", _maximum(queue)),
        ("created", local_time(queue["create_time"])),
        ("updated", local_time(queue["update_time"])),
    ]
    show_details(settings, pairs)


@command.command("set")
@click.argument("name", metavar="QUEUE", type=QUEUE)
@click.option("--running-steps-max", type=_count, metavar="N", help="Steps at work at once; 0 means no limit.")
@click.option("--priority", type=click.IntRange(0, 9), metavar="0-9", help="Among the queues; the larger, the sooner.")
@click.pass_obj
def set_(settings: Settings, name: str, running_steps_max: int | None, priority: int | None) -> None:
    """Create a queue, or change what is given."""
    request = pb.SetQueueRequest(
        namespace=settings.namespace, name=name, running_steps_max=running_steps_max, priority=priority
    )
    _set(settings, request, "set")


@command.command("pause")
@click.argument("name", metavar="QUEUE", type=QUEUE)
@click.pass_obj
def pause(settings: Settings, name: str) -> None:
    """Let no step of a queue start. Steps under way end."""
    _set_paused(settings, name, paused=True)


@command.command("resume")
@click.argument("name", metavar="QUEUE", type=QUEUE)
@click.pass_obj
def resume(settings: Settings, name: str) -> None:
    """Let the steps of a queue start again."""
    _set_paused(settings, name, paused=False)


def _set_paused(settings: Settings, name: str, *, paused: bool) -> None:
    with Connection(settings) as connection:  # setting would make a queue of a name that is mistyped
        method = connection.stub(QueueServiceStub).GetQueue
        connection.ask(method, pb.GetQueueRequest(namespace=settings.namespace, name=name))
    request = pb.SetQueueRequest(namespace=settings.namespace, name=name, paused=paused)
    _set(settings, request, "paused" if paused else "resumed")


def _set(settings: Settings, request: pb.SetQueueRequest, verb: str) -> None:
    with Connection(settings) as connection:
        queue = plain(connection.ask(connection.stub(QueueServiceStub).SetQueue, request).queue)
    show_item(settings, queue, key="name", people=lambda one: echo(f"{one['name']}  {verb}"))


@command.command("delete")
@click.argument("name", metavar="QUEUE", type=QUEUE)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete a queue and its limits."""
    with Connection(settings) as connection:
        method = connection.stub(QueueServiceStub).DeleteQueue
        connection.tell(method, pb.DeleteQueueRequest(namespace=settings.namespace, name=name))
    tell_deleted(settings, name)


verbs = tuple(command.commands.values())
