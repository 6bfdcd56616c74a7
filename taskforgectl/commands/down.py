"""`taskforgectl down`: stop the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import click

from taskforgectl.errors import EXIT_UNREACHABLE, EXIT_USAGE, CliError
from taskforgectl.home import Home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import note

__all__ = ["command"]

_POLL_S = 0.02


@click.command("down", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Stop the daemon and wait until it has ended. Running steps get their grace. Does nothing when none runs."""
    if settings.address:
        raise CliError(
            "down works on a home, not on an address", hint="leave out --address and TASKFORGE_ADDRESS", code=EXIT_USAGE
        )
    home = Home(settings.home)
    pid = home.daemon_pid()
    if pid is None:
        note(settings, f"not running on {home.path}")
        return
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this instant
        os.kill(pid, signal.SIGTERM)
    _wait_end(settings, home, pid)
    note(settings, f"stopped (pid {pid})")


def _wait_end(settings: Settings, home: Home, pid: int) -> None:
    deadline = time.monotonic() + settings.timeout_s
    while home.daemon_pid() == pid:  # another pid: a supervisor has started the next one
        if time.monotonic() > deadline:
            hint = f"it finishes running steps; wait on with `taskforgectl down`, or look at {home.log}"
            raise CliError(
                f"the daemon (pid {pid}) has not ended after {settings.timeout_s:g} s", hint=hint, code=EXIT_UNREACHABLE
            )
        time.sleep(_POLL_S)
