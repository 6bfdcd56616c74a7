"""`taskforgectl storage show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from taskforge.v1 import storage_service_pb2 as pb
from taskforge.v1.storage_service_pb2_grpc import StorageServiceStub

from taskforgectl.connection import Connection
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.render.output import Item, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import lasting, local_time, show_details
from taskforgectl.rescue import size

__all__ = ["verbs"]

_TABLES = 5
"""Tables that people are shown; the other formats have all of them."""


@click.group("storage", cls=Noun)
def command() -> None:
    """Show what the database holds."""


@command.command("show")
@click.pass_obj
def show(settings: Settings) -> None:
    """Show sizes and budgets, and what pruning and backups have done."""
    with Connection(settings) as connection:
        found = plain(connection.ask(connection.stub(StorageServiceStub).GetStorage, pb.GetStorageRequest()))
    show_item(settings, found, key="database_bytes", people=lambda one: show_details(settings, list(_pairs(one))))


def _pairs(found: Item) -> Iterator[tuple[str, Any]]:
    yield "database", _room(found)
    yield "log beside it", size(found["wal_bytes"])
    yield "budget", size(found["budget_bytes"]) if found["budget_bytes"] else "none"
    yield "new work", f"refused: {found['refuses_new_work']}" if found["refuses_new_work"] else "accepted"
    yield "largest tables", "\n".join(f"{one['name']}  {size(one['size_bytes'])}" for one in found["tables"][:_TABLES])
    yield "last pruned", local_time(found["last_prune_time"]) or "not since the daemon started"
    yield "runs ever pruned", _pruned(found)
    every = f"one every {lasting(found['backup_every'])}" if found["backup_every"] else "none by the clock"
    yield "backups", f"{found['backup_folder']}, {every}"
    yield "last backup", _last_backup(found)
    if found["backup_failure"]:
        yield "failed backup", f"{local_time(found['backup_failure_time'])}: {found['backup_failure']}"


def _room(found: Item) -> str:
    text = f"{size(found['database_bytes'])}, {size(found['free_bytes'])} of it free"
    return text if found["can_shrink"] else f"{text}; it shrinks with `taskforgectl prune --compact` only"


def _pruned(found: Item) -> str:
    until = f", the newest of {local_time(found['pruned_runs_until'])}" if found["pruned_runs"] else ""
    return f"{found['pruned_runs']:,}{until}"


def _last_backup(found: Item) -> str:
    if not found["last_backup_time"]:
        return "none"
    return f"{local_time(found['last_backup_time'])}  {size(found['last_backup_bytes'])}  {found['last_backup_path']}"


verbs = tuple(command.commands.values())
