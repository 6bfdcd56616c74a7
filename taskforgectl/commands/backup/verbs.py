"""`taskforgectl backup`: copies of the database."""

from __future__ import annotations

from collections.abc import Sequence

import click
from taskforge.v1 import storage_service_pb2 as pb
from taskforge.v1.storage_service_pb2_grpc import StorageServiceStub

from taskforgectl.connection import Connection
from taskforgectl.kinds import FILE
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import Column, show_details, tabled, when
from taskforgectl.rescue import key_sentence, rescue, size
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_PATIENCE_S = 6 * 3600.0


@click.group("backup", cls=Noun)
def command() -> None:
    """Make, list and verify copies of the database."""


@command.command("create")
@click.pass_obj
def create(settings: Settings) -> None:
    """Make a backup while the daemon works.

    It is verified before it gets its name. The master key is not in it: keep a copy of that apart.
    """
    with Connection(settings) as connection:
        method = connection.stub(StorageServiceStub).CreateBackup
        made = plain(connection.tell(method, pb.CreateBackupRequest(), extra_s=_PATIENCE_S).backup)
    show_item(settings, made, key="path", people=lambda one: echo(f"{one['path']}  {size(one['size_bytes'])}"))


@command.command("list")
@listing_options
@click.pass_obj
def list_(settings: Settings, listing: Listing) -> None:
    """List the finished backups, newest first."""
    request = pb.ListBackupsRequest()

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(StorageServiceStub).ListBackups, request, listing.limit)

    show_listing(settings, listing, read, key="path", table=tabled(settings, _COLUMNS, empty=_EMPTY))


_EMPTY = "no backups yet; make one with `taskforgectl backup create`, or let [backup] every make them"

_COLUMNS = [
    Column("MADE", lambda one: when(one["create_time"])),
    Column("SIZE", lambda one: size(one["size_bytes"])),
    Column("SCHEMA", lambda one: one["schema_version"]),
    Column("KIND", lambda one: "before an upgrade" if one["is_upgrade"] else "backup"),
    Column("PATH", lambda one: one["path"]),
]


@command.command("verify")
@click.argument("file", type=FILE)
@click.pass_obj
def verify(settings: Settings, file: str) -> None:
    """Check a backup from its first page to its last.

    FILE is a path, or `latest`. Needs no daemon.
    """
    show_item(settings, rescue(settings, "verify", file), key="file", people=lambda one: _show(settings, one))


def _show(settings: Settings, found: Item) -> None:
    pairs = [
        ("file", found["file"]),
        ("size", size(found["size_bytes"])),
        ("schema", found["schema"]),
        ("runs", f"{found['runs']:,}"),
        ("events", f"{found['events']:,}"),
        ("workflows", f"{found['workflows']:,}"),
        ("secrets", f"{found['secrets']:,}; {key_sentence(found['key'])}"),
        ("verdict", "whole: pages, indexes, constraints and references"),
    ]
    show_details(settings, pairs)


verbs = tuple(command.commands.values())
