"""`taskforgectl namespace`: tenants and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from taskforge.v1 import namespace_service_pb2 as pb
from taskforge.v1.namespace_service_pb2_grpc import NamespaceServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.kinds import NAMESPACE, Amount
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, show_item, tell_deleted
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, local_time, show_details, tabled
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_count = click.IntRange(0, 1_000_000_000)


@click.group("namespace", cls=Noun)
def command() -> None:
    """Keep tenants and their limits."""


@command.command("list")
@listing_options
@click.pass_obj
def list_(settings: Settings, listing: Listing) -> None:
    """List namespaces by name."""
    request = pb.ListNamespacesRequest()

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(NamespaceServiceStub).ListNamespaces, request, listing.limit)

    show_listing(
        settings,
        listing,
        read,
        key="name",
        table=tabled(settings, _COLUMNS, empty=_EMPTY),
    )


def _of(used: int, most: int) -> str:
    return f"{used}/{most}" if most else str(used)


def _labels(namespace: Item) -> str:
    return ", ".join(f"{key}={value}" for key, value in namespace["labels"].items())


_EMPTY = "no namespaces; make one with `taskforgectl namespace set NAME`"

_COLUMNS = [
    Column("NAMESPACE", lambda one: one["name"]),
    Column("WEIGHT", lambda one: f"{one['weight']:g}"),
    Column("RUNNING STEPS", lambda one: _of(one["running_steps"], one["running_steps_max"])),
    Column("RUNNING RUNS", lambda one: _of(one["running_runs"], one["running_runs_max"])),
    Column("PENDING RUNS", lambda one: _of(one["pending_runs"], one["pending_runs_max"])),
    Column("REQUESTS/S", lambda one: f"{one['requests_per_second']:g}" if one["requests_per_second"] else "no limit"),
    Column("LABELS", _labels),
]


@command.command("show")
@click.argument("name", metavar="NAMESPACE", type=NAMESPACE)
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show a namespace."""
    with Connection(settings) as connection:
        method = connection.stub(NamespaceServiceStub).GetNamespace
        namespace = plain(connection.ask(method, pb.GetNamespaceRequest(name=name)).namespace)
    show_item(settings, namespace, key="name", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, namespace: Item) -> None:
    rate = namespace["requests_per_second"]
    pairs = [
        ("namespace", namespace["name"]),
        ("labels", _labels(namespace)),
        ("weight", f"{namespace['weight']:g}"),
        ("running steps", _usage(namespace, "running_steps")),
        ("running runs", _usage(namespace, "running_runs")),
        ("pending runs", _usage(namespace, "pending_runs")),
        ("requests", f"at most {rate:g} a second" if rate else "no limit"),
        ("created", local_time(namespace["create_time"])),
    ]
    show_details(settings, pairs)


def _usage(namespace: Item, name: str) -> str:
    most = namespace[f"{name}_max"]
    return f"{namespace[name]} of at most {most}" if most else f"{namespace[name]}, no limit"


@command.command("set")
@click.argument("name", metavar="NAMESPACE", type=NAMESPACE)
@click.option("--label", "pairs", multiple=True, metavar="KEY=VALUE", help="One label; KEY= removes it.")
@click.option("--replace-labels", is_flag=True, help="Remove the labels that are not given.")
@click.option("--weight", type=Amount(0, 1000, min_open=True), help="Share of executors. A new one has 1.")
@click.option("--running-steps-max", type=_count, metavar="N", help="Steps at work at once; 0 means no limit.")
@click.option("--running-runs-max", type=_count, metavar="N", help="Runs at once, others wait; 0 means no limit.")
@click.option("--pending-runs-max", type=_count, metavar="N", help="Waiting runs, others are refused; 0: no limit.")
@click.option("--requests-per-second", type=Amount(0), metavar="N", help="Calls; 0 means no limit.")
@click.pass_obj
def set_(settings: Settings, /, *, name: str, pairs: Sequence[str], **values: Any) -> None:
    """Create a namespace, or change what is given."""
    request = pb.SetNamespaceRequest(name=name, labels=dict(map(_pair, pairs)), **values)
    with Connection(settings) as connection:
        namespace = plain(connection.ask(connection.stub(NamespaceServiceStub).SetNamespace, request).namespace)
    show_item(settings, namespace, key="name", people=lambda one: echo(f"{one['name']}  set"))


def _pair(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key:
        hint = "for example --label team=payments; --label team= removes it"
        raise CliError(f"--label {pair!r} is not KEY=VALUE", hint=hint, code=EXIT_USAGE)
    return key, value


@command.command("delete")
@click.argument("name", metavar="NAMESPACE", type=NAMESPACE)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete a namespace that has nothing in it any more."""
    with Connection(settings) as connection:
        connection.tell(connection.stub(NamespaceServiceStub).DeleteNamespace, pb.DeleteNamespaceRequest(name=name))
    tell_deleted(settings, name)


verbs = tuple(command.commands.values())
