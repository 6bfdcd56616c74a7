"""`taskforgectl up`: start the daemon in the background."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import click

from taskforgectl.commands import status
from taskforgectl.errors import EXIT_UNREACHABLE, CliError, RemoteError
from taskforgectl.home import Home, RunFile, local_home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.daemonlog import parsed
from taskforgectl.render.output import note
from taskforgectl.service.manager import Manager, in_charge

__all__ = ["command", "start", "wait_ready"]

_POLL_S = 0.02
_TAIL_LINES = 15


@click.command("up", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Start the daemon and wait until it is ready. Does nothing when it runs.

    Where `init --systemd` has installed a service for the home, the user's service manager starts it; else it runs in
    the background and writes HOME/taskforged.log.
    """
    home = local_home(settings, "up")
    if home.daemon_lives():
        wait_ready(settings, home, time.monotonic() + settings.timeout_s)
        note(settings, "already running")
    else:
        start(settings, home, in_charge(home))
    status.show(settings, status.running(settings))


def start(settings: Settings, home: Home, manager: Manager | None) -> None:
    """Start a daemon by its manager, or in the background without one; returns when it is ready."""
    deadline = time.monotonic() + settings.timeout_s
    if manager is None:
        _start(settings, home, deadline)
    else:
        manager.start(settings.timeout_s)
        wait_ready(settings, home, deadline)


def wait_ready(settings: Settings, home: Home, deadline: float) -> None:
    """Wait until the daemon that holds the home answers."""
    _wait_ready(settings, home, None, deadline)


def _start(settings: Settings, home: Home, deadline: float) -> None:
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_fd = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(f"cannot use {home.path}: {error.strerror}") from None
    try:
        log_begin = os.fstat(log_fd).st_size
        process = _spawn(home, log_fd)
    finally:
        os.close(log_fd)
    try:
        _wait_ready(settings, home, process, deadline)
    except _EndedError as error:
        raise CliError(
            f"the daemon ended with {error.code} before it was ready; the end of {home.log}:\n{_tail(home, log_begin)}",
            hint="mend what the log says, then `taskforgectl up` again",
        ) from None


def _spawn(home: Home, log_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        [sys.executable, "-m", "taskforged", "--home", str(home.path)],
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        start_new_session=True,  # Ctrl-C and a closed terminal are not for the daemon
        cwd=home.path,  # keeps no other file system busy, and `-m` finds no stray modules of a working folder
    )


class _EndedError(Exception):
    """The daemon ended instead of becoming ready."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _wait_ready(settings: Settings, home: Home, process: subprocess.Popen[bytes] | None, deadline: float) -> None:
    """Wait until the daemon, `process` or whoever runs already, answers."""
    while True:
        known = home.run_file()
        if known is not None and _is_ours(known, process) and _answers(settings):
            return
        if process is not None and (code := process.poll()) is not None:
            raise _EndedError(code)
        if time.monotonic() > deadline:
            raise CliError(
                f"the daemon is not ready after {settings.timeout_s:g} s; it was not stopped",
                hint=f"look at {home.log}, or wait on with `taskforgectl up`",
                code=EXIT_UNREACHABLE,
            )
        time.sleep(_POLL_S)


def _is_ours(known: RunFile, process: subprocess.Popen[bytes] | None) -> bool:
    return process is None or known.pid == process.pid  # a killed daemon leaves its run file behind


def _answers(settings: Settings) -> bool:
    try:
        status.running(settings)
    except RemoteError as error:
        if error.code != EXIT_UNREACHABLE:
            raise
        return False
    return True


def _tail(home: Home, begin: int) -> str:
    """Answer the last lines that this start wrote."""
    with home.log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {_plain(line)}" for line in lines[-_TAIL_LINES:])


def _plain(line: str) -> str:
    """Answer why the daemon does not start, in place of the whole entry of the log."""
    entry = parsed(line)
    return str(entry["error"]) if entry.get("event") == "daemon.cannot_start" and "error" in entry else line
