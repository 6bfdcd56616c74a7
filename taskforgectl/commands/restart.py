"""`taskforgectl restart`: stop the daemon and start it again."""

from __future__ import annotations

import time

import click

from taskforgectl.commands import status
from taskforgectl.commands.down import stop
from taskforgectl.commands.up import start, wait_ready
from taskforgectl.home import local_home
from taskforgectl.options import Settings, Verb
from taskforgectl.service.manager import in_charge

__all__ = ["command"]


@click.command("restart", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Stop the daemon, start it again and wait until the new one is ready. Starts it when none runs.

    Running steps get their grace; runs go on where they were. A service keeps its socket, so that no webhook is
    refused meanwhile. A daemon in the background hands over to the service where `init --systemd` has installed one.
    """
    home = local_home(settings, "restart")
    manager = in_charge(home)
    holder = home.daemon_pid()
    if holder is not None and (manager is None or manager.main_pid() != holder):
        stop(settings, home, holder)
        holder = None
    if manager is not None and holder is not None:
        deadline = time.monotonic() + settings.timeout_s
        manager.restart(settings.timeout_s)
        wait_ready(settings, home, deadline)
    else:
        start(settings, home, manager)
    status.show(settings, status.running(settings))
