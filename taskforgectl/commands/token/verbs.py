"""`taskforgectl token`: credentials."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click
from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import token_pb2
from taskforge.v1 import token_service_pb2 as pb
from taskforge.v1.token_service_pb2_grpc import TokenServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.home import Home
from taskforgectl.kinds import TOKEN
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import Column, tabled, when
from taskforgectl.times import parse_span
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_ROLES = ["admin", "operator", "trigger", "viewer", "worker"]
_TTL = re.compile(r"(\d{1,6})([smhdw])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group("token", cls=Noun)
def command() -> None:
    """Create, rotate and revoke credentials."""


@command.command("create")
@click.argument("name", metavar="NAME")
@click.option("--role", required=True, type=click.Choice(_ROLES), help="What the bearer may do.")
@click.option("--for-namespace", "confined_to", metavar="NS", default="", help="Confine the bearer to a namespace.")
@click.option("--ttl", metavar="SPAN", help="How long it works, for example 12h or 30d. Default: for ever.")
@click.pass_obj
def create(settings: Settings, *, name: str, role: str, confined_to: str, ttl: str | None) -> None:
    """Make a token. Its secret is shown this once."""
    value = token_pb2.Token.Role.Value(f"ROLE_{role.upper()}")
    request = pb.CreateTokenRequest(name=name, role=value, namespace=confined_to, ttl=_duration(ttl))
    with Connection(settings) as connection:
        answer = connection.tell(connection.stub(TokenServiceStub).CreateToken, request)
    item = {**plain(answer.token), "secret": answer.secret}
    show_item(settings, item, key="id", people=lambda one: echo(one["secret"]))
    if settings.output == "table":  # apart from stdout, so that the secret can be captured alone
        click.echo(safe_line(f"token {item['id']} made; keep the secret safe, it is not shown again"), err=True)


def _duration(ttl: str | None) -> Duration | None:
    if ttl is None:
        return None
    found = _TTL.fullmatch(ttl)
    if found is None or not int(found[1]):
        raise CliError(f"--ttl {ttl!r} is not a span", hint="for example 90m, 12h, 30d, 4w", code=EXIT_USAGE)
    return Duration(seconds=int(found[1]) * _UNIT_S[found[2]])


@command.command("rotate")
@click.argument("token_id", metavar="TOKEN", type=TOKEN)
@click.option("--grace", metavar="SPAN", default="", help="How long the old secret works, too. Default: not at all.")
@click.option("--ttl", metavar="SPAN", help="How long the token works from now on. Default: as it was.")
@click.option("--request-id", metavar="ID", default="", help="Makes a repetition safe whose answer was lost.")
@click.pass_obj
def rotate(settings: Settings, *, token_id: str, grace: str, ttl: str | None, request_id: str) -> None:
    """Replace a token's secret. The new one is shown this once.

    The token stays who it is: its name, role, namespace and what was done with it. The token of this home is written
    into its file, too.
    """
    kept = _duration(ttl)
    overlap = Duration(seconds=round(parse_span(grace, "--grace").total_seconds())) if grace else None
    request = pb.RotateTokenRequest(token_id=token_id, grace=overlap, ttl=kept, request_id=request_id)
    with Connection(settings) as connection:
        answer = connection.tell(connection.stub(TokenServiceStub).RotateToken, request)
    item = {**plain(answer.token), "secret": answer.secret}
    written = Home(settings.home).replace_token(answer.secret)
    show_item(settings, item, key="id", people=lambda one: echo(one["secret"]))
    if settings.output == "table":
        ends = f"until {when(item['previous_until'])}" if overlap else "no more"
        place = f"; {written} has the new one" if written else ""
        click.echo(safe_line(f"token {item['id']} rotated; the old secret works {ends}{place}"), err=True)


@command.command("list")
@click.option("--live", is_flag=True, help="Only tokens that are neither revoked nor expired.")
@listing_options
@click.pass_obj
def list_(settings: Settings, *, live: bool, listing: Listing) -> None:
    """List tokens, newest first."""
    request = pb.ListTokensRequest(live_only=live)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(TokenServiceStub).ListTokens, request, listing.limit)

    columns = [
        Column("TOKEN", lambda one: one["id"]),
        Column("NAME", lambda one: one["name"]),
        Column("ROLE", lambda one: one["role"]),
        Column("NAMESPACE", lambda one: one["namespace"] or "all"),
        Column("CREATED", lambda one: when(one["create_time"])),
        Column("EXPIRES", lambda one: when(one["expire_time"]) or "never"),
        Column("ROTATED", lambda one: when(one["rotate_time"])),
        Column("LAST USED", lambda one: when(one["last_use_time"]) or "never"),
        Column("REVOKED", lambda one: when(one["revoke_time"])),
    ]
    empty = "no tokens; make one with `taskforgectl token create NAME --role ROLE`"
    show_listing(settings, listing, read, key="id", table=tabled(settings, columns, empty=empty))


@command.command("revoke")
@click.argument("token_id", metavar="TOKEN", type=TOKEN)
@click.pass_obj
def revoke(settings: Settings, token_id: str) -> None:
    """End a token at once. TOKEN is its id, not its secret."""
    with Connection(settings) as connection:
        method = connection.stub(TokenServiceStub).RevokeToken
        item = plain(connection.ask(method, pb.RevokeTokenRequest(token_id=token_id)).token)
    show_item(settings, item, key="id", people=lambda one: echo(f"{one['id']}  revoked"))


verbs = tuple(command.commands.values())
