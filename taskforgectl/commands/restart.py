"""`taskforgectl restart`: stop the daemon and start it again."""

from __future__ import annotations

import time

import click

from taskforgectl.checkup import checkup
from taskforgectl.commands import status
from taskforgectl.commands.down import stop
from taskforgectl.commands.up import start, wait_ready
from taskforgectl.errors import CliError
from taskforgectl.home import Home, local_home
from taskforgectl.options import Settings, Verb
from taskforgectl.service.manager import in_charge

__all__ = ["command"]

_CHECK_S = 30.0


@click.command("restart", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Stop the daemon, start it again and wait until the new one is ready. Starts it when none runs.

    A daemon is left running where the settings have faults, since none would start in its place. Running steps get
    their grace; runs go on where they were. A service keeps its socket, so that no webhook is refused meanwhile. A
    daemon in the background hands over to the service where `init --systemd` has installed one.
    """
    home = local_home(settings, "restart")
    manager = in_charge(home)
    holder = home.daemon_pid()
    if holder is not None:
        _check_settings(home, with_variables=manager is None)
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


def _check_settings(home: Home, *, with_variables: bool) -> None:
    answer = checkup(home.path, "--settings", limit_s=_CHECK_S, with_variables=with_variables)
    if answer["problems"]:
        told = "\n".join(one["message"] for one in answer["problems"])
        raise CliError(f"{told}\nthe daemon goes on as it was", hint=f"mend {answer['file']}, then restart again")
