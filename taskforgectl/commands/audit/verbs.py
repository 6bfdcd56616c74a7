"""`taskforgectl audit list`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import click
import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import audit_service_pb2 as pb
from taskforge.v1.audit_service_pb2_grpc import AuditServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import TOKEN
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item
from taskforgectl.render.tables import Column, tabled, when
from taskforgectl.times import parse_time
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_OUTCOMES = ["OK", *(one.name for one in grpc.StatusCode if one is not grpc.StatusCode.OK)]


@click.group("audit", cls=Noun)
def command() -> None:
    """Show who changed what, or tried to."""


@command.command("list")
@click.option("--by", metavar="TOKEN", type=TOKEN, default="", help="Only what this token did: its id or its name.")
@click.option(
    "--method", metavar="METHOD", default="", help="Only methods that begin so: StartRun, Set, TokenService/."
)
@click.option(
    "--outcome",
    type=click.Choice(_OUTCOMES, case_sensitive=False),
    help="Only with this outcome: OK, or the code of the refusal.",
)
@click.option("--since", metavar="TIME|-SPAN", help="Only what happened then or later, for example -2h.")
@click.option("--until", metavar="TIME|-SPAN", help="Only what happened earlier.")
@listing_options
@click.pass_obj
def list_(
    settings: Settings,
    *,
    by: str,
    method: str,
    outcome: str | None,
    since: str | None,
    until: str | None,
    listing: Listing,
) -> None:
    """List what was changed or tried, newest first.

    One line for each call that changes something, also when it was denied or failed. Failed authentications are counted
    by peer and minute. Without --namespace those of all namespaces are shown.
    """
    now = dt.datetime.now(dt.UTC)
    times: dict[str, Any] = {"since": _stamp(since, "--since", now), "until": _stamp(until, "--until", now)}

    request = pb.ListAuditRecordsRequest(
        namespace=settings.namespace,
        token=by,
        method=method,
        outcome=outcome or "",
        **times,
    )

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(AuditServiceStub).ListAuditRecords, request, listing.limit)

    columns = [
        Column("TIME", lambda one: when(one["time"])),
        Column("WHO", lambda one: one["token_name"] or "nobody"),
        Column("FROM", lambda one: one["remote"]),
        Column("METHOD", lambda one: one["method"]),
        Column("NAMESPACE", lambda one: one["namespace"]),
        Column("WHAT", lambda one: one["resource"] and f"{one['resource_type']}/{one['resource']}"),
        Column("OUTCOME", _outcome),
    ]
    empty = "nothing was changed"
    show_listing(settings, listing, read, key="sequence", table=tabled(settings, columns, empty=empty))


def _outcome(one: Item) -> str:
    times = f" x{one['count']}" if int(one["count"]) > 1 else ""
    return f"{one['outcome']}{times}"


def _stamp(text: str | None, option: str, now: dt.datetime) -> Timestamp | None:
    return None if text is None else parse_time(text, option, now)


verbs = tuple(command.commands.values())
