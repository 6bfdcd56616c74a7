"""`taskforgectl status`: whether the daemon runs, and where."""

from __future__ import annotations

from typing import Any

import click
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_UNREACHABLE, NotRunningError, RemoteError
from taskforgectl.home import Home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.tables import local_time, show_details
from taskforgectl.service.manager import in_charge
from taskforgectl.service.units import SERVICE

__all__ = ["command", "running", "show"]


@click.command("status", cls=Verb)
@click.pass_context
def command(context: click.Context) -> None:
    """Show whether the daemon runs, and where. Exit code 5 when it does not."""
    settings: Settings = context.obj
    try:
        info = running(settings)
    except NotRunningError:
        info = _absent(settings, "starting or stopping" if Home(settings.home).daemon_lives() else "stopped")
    except RemoteError as error:
        if error.status != "UNAVAILABLE" or settings.address or Home(settings.home).daemon_lives():
            raise
        info = _absent(settings, "stopped")  # killed: its run file is left over
    show(settings, info)
    if info["pid"] is None:
        context.exit(EXIT_UNREACHABLE)


def running(settings: Settings) -> dict[str, Any]:
    """Answer what the daemon says about itself.

    Raises:
        NotRunningError: there is no run file.
        RemoteError: the daemon does not answer.
    """
    with Connection(settings, patient=False) as connection:
        return plain(connection.ask(connection.stub(SystemServiceStub).GetInfo, pb.GetInfoRequest()))


def show(settings: Settings, info: Item) -> None:
    """Show it, and what the service manager says of the service, where one is in charge of the home."""
    manager = None if settings.address else in_charge(Home(settings.home))
    item = {**info, "service": f"{SERVICE}: {manager.state()}" if manager else None}
    show_item(settings, item, key="state", people=lambda one: show_details(settings, _pairs(one)))


def _absent(settings: Settings, state: str) -> dict[str, Any]:
    info = plain(pb.GetInfoResponse())
    return {name: [] if name == "grpc" else None for name in info} | {"state": state, "home": str(settings.home)}


def _pairs(info: Item) -> list[tuple[str, Any]]:
    return [
        ("state", info["state"]),
        ("pid", info["pid"]),
        ("version", info["version"]),
        ("home", info["home"]),
        ("grpc", "\n".join(info["grpc"])),
        ("http", info["http"]),
        ("ready since", local_time(info["start_time"])),
        ("boots", info["boot_epoch"]),
        ("service", info["service"]),
    ]
