"""`taskforgectl secret`: values that workflows use and nobody reads back."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from taskforge.v1 import secret_service_pb2 as pb
from taskforge.v1.secret_service_pb2_grpc import SecretServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.files import read_text
from taskforgectl.kinds import FILE, SECRET
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, show_item, tell_deleted
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, tabled, when
from taskforgectl.watching import show_listing

__all__ = ["verbs"]


@click.group("secret", cls=Noun)
def command() -> None:
    """Set and delete secrets."""


@command.command("set")
@click.argument("name", metavar="SECRET", type=SECRET)
@click.option("--value-file", "file", metavar="FILE|-", type=FILE, help="Take the value from a file; - is stdin.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Where it may be sent to; repeatable.")
@click.option("--any-host", is_flag=True, help="It may be sent anywhere, whatever was said before.")
@click.pass_obj
def set_(settings: Settings, *, name: str, file: str | None, hosts: tuple[str, ...], any_host: bool) -> None:
    """Create or replace a secret.

    The value comes from --value-file, else from stdin, else from a hidden prompt; never from the command line, where
    other processes and the shell's history see it. One line feed at the end is not part of it.

    HOST is api.example.com, an address, or *.example.com for every name below, each with an optional :port. Only http
    steps can use a secret that has hosts. Without --host those of the value before stay.
    """
    if hosts and any_host:
        raise CliError("--host and --any-host exclude each other", code=EXIT_USAGE)
    value = _read_value(name, file)
    with Connection(settings) as connection:
        method = connection.stub(SecretServiceStub).SetSecret
        request = pb.SetSecretRequest(
            namespace=settings.namespace, name=name, value=value, hosts=hosts, clear_hosts=any_host
        )
        item = plain(connection.tell(method, request).secret)
    show_item(settings, item, key="name", people=lambda one: echo(f"{one['name']}  version {one['version']}  set"))


def _read_value(name: str, file: str | None) -> str:
    if file is None and sys.stdin.isatty():
        return str(click.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True, err=True))
    return read_text(file or "-").removesuffix("\n").removesuffix("\r")  # editors and echo add it


@command.command("list")
@listing_options
@click.pass_obj
def list_(settings: Settings, listing: Listing) -> None:
    """List secrets by name. Values are never shown."""
    request = pb.ListSecretsRequest(namespace=settings.namespace)

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(SecretServiceStub).ListSecrets, request, listing.limit)

    columns = [
        Column("SECRET", lambda one: one["name"]),
        Column("VERSION", lambda one: one["version"]),
        Column("HOSTS", lambda one: ", ".join(one["hosts"]) or "any"),
        Column("UPDATED", lambda one: when(one["update_time"])),
    ]
    empty = "no secrets yet; set one with `taskforgectl secret set NAME`"
    show_listing(settings, listing, read, key="name", table=tabled(settings, columns, empty=empty))


@command.command("delete")
@click.argument("name", metavar="SECRET", type=SECRET)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete a secret."""
    with Connection(settings) as connection:
        method = connection.stub(SecretServiceStub).DeleteSecret
        connection.tell(method, pb.DeleteSecretRequest(namespace=settings.namespace, name=name))
    tell_deleted(settings, name)


@command.command("rotate-key")
@click.pass_obj
def rotate_key(settings: Settings) -> None:
    """Encrypt all secrets with a new master key.

    The daemon makes the key and puts it into the home's master.key. Backups that were made before need the old key:
    keep a copy of it with them. A key from a variable or a systemd credential is rotated there.
    """
    with Connection(settings) as connection:
        method = connection.stub(SecretServiceStub).RotateMasterKey
        item = plain(connection.tell(method, pb.RotateMasterKeyRequest()))
    show_item(settings, item, key="key_id", people=_tell_rotation)


def _tell_rotation(one: Item) -> None:
    echo(f"{one['secrets']} secrets are encrypted with the new key {one['key_id']}")
    click.echo("back up master.key; backups made until now need the key before", err=True)


verbs = tuple(command.commands.values())
