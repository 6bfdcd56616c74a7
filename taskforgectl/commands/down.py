"""`taskforgectl down`: stop the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import click

from taskforgectl.errors import EXIT_UNREACHABLE, CliError
from taskforgectl.home import Home, local_home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import note
from taskforgectl.service.manager import in_charge

__all__ = ["command", "stop"]

_POLL_S = 0.02


@click.command("down", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Stop the daemon and wait until it has ended. Running steps get their grace. Does nothing when none runs.

    A service is stopped with its socket; it starts again with the next login or start of the machine, unless
    `systemctl --user disable taskforged.socket taskforged.service` says otherwise.
    """
    home = local_home(settings, "down")
    pid = home.daemon_pid()
    manager = in_charge(home)
    if manager is not None:
        manager.stop(settings.timeout_s)
    if pid is None:
        note(settings, f"not running on {home.path}")
        return
    stop(settings, home, pid)
    note(settings, f"stopped (pid {pid})")


def stop(settings: Settings, home: Home, pid: int) -> None:
    """Ask a daemon to stop, and wait until it has."""
    if home.daemon_pid() == pid:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in this instant
            os.kill(pid, signal.SIGTERM)
    _wait_end(settings, home, pid)


def _wait_end(settings: Settings, home: Home, pid: int) -> None:
    deadline = time.monotonic() + settings.timeout_s
    # Another holder of the home: a supervisor has started the next daemon. The lock alone says too little: it is free
    # a moment before the process has ended.
    while home.daemon_pid() == pid or (not home.daemon_lives() and _is_alive(pid)):
        if time.monotonic() > deadline:
            hint = f"it finishes running steps; wait on with `taskforgectl down`, or look at {home.log}"
            raise CliError(
                f"the daemon (pid {pid}) has not ended after {settings.timeout_s:g} s", hint=hint, code=EXIT_UNREACHABLE
            )
        time.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the number belongs to another user's process by now
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and its parent has not asked how; such a number can still be signalled."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
