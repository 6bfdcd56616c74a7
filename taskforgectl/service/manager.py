"""The user's service manager: `systemctl --user`, where there is one to talk to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from taskforgectl.errors import EXIT_UNREACHABLE, CliError
from taskforgectl.home import Home
from taskforgectl.service.units import SERVICE, SOCKET, served_home, unit_folder

__all__ = ["Manager", "comes_back", "in_charge", "lingers"]

_ASK_S = 10.0


class Manager:
    """Talks to the manager. A call answers, or raises what the manager says."""

    def is_there(self) -> bool:
        """Whether a user manager answers."""
        return shutil.which("systemctl") is not None and self._run("show-environment").returncode == 0

    def is_enabled(self) -> bool:
        """Whether the service starts by itself."""
        return self._run("is-enabled", SERVICE).returncode == 0

    def state(self, unit: str = SERVICE) -> str:
        """Answer `active`, `inactive`, `failed`, `activating`, …; empty when it cannot be asked."""
        return self._run("is-active", unit).stdout.strip()

    def main_pid(self) -> int:
        """Answer the service's process; 0: there is none."""
        told = self._run("show", "--property=MainPID", "--value", SERVICE).stdout.strip()
        return int(told) if told.isdigit() else 0

    def reload(self) -> None:
        """Make it read the unit files again."""
        self._do("daemon-reload")

    def enable(self, *, now: bool) -> None:
        """Let both units start by themselves from now on, and at once with `now`."""
        self._do("enable", *(["--now"] if now else []), SOCKET, SERVICE, timeout_s=_START_S)

    def start(self, timeout_s: float) -> None:
        """Start both units; returns when the daemon is ready."""
        self._run("reset-failed", SERVICE)  # what the manager has given up is tried again
        self._do("start", SOCKET, SERVICE, timeout_s=timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Stop both units: the socket alone would start the daemon with the next webhook."""
        self._do("stop", SOCKET, SERVICE, timeout_s=timeout_s)

    def restart(self, timeout_s: float) -> None:
        """Stop the daemon and start it again; the socket stays, so no webhook is refused meanwhile."""
        self._run("reset-failed", SERVICE)
        self._do("restart", SERVICE, timeout_s=timeout_s)
        self._do("start", SOCKET, timeout_s=timeout_s)

    def _do(self, *arguments: str, timeout_s: float = _ASK_S) -> None:
        done = self._run(*arguments, timeout_s=timeout_s)
        if done.returncode:
            told = done.stderr.strip() or f"exit code {done.returncode}"
            hint = "see `taskforgectl logs` and `systemctl --user status taskforged`"
            raise CliError(f"systemctl --user {' '.join(arguments)}: {told}", hint=hint)

    @staticmethod
    def _run(*arguments: str, timeout_s: float = _ASK_S) -> subprocess.CompletedProcess[str]:
        command = ["systemctl", "--user", "--no-pager", *arguments]
        try:
            return subprocess.run(  # noqa: S603  names of ours, no shell
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            told = f"systemctl --user {' '.join(arguments)} has not ended after {timeout_s:g} s; it goes on"
            raise CliError(told, hint="look at `taskforgectl status`", code=EXIT_UNREACHABLE) from None
        except OSError as error:
            return subprocess.CompletedProcess(command, 127, "", f"systemctl cannot be run: {error.strerror}")


_START_S = 660.0
"""As the unit's TimeoutStartSec: migrations of a large database take time."""


def _environment() -> dict[str, str]:
    """Answer our environment, with the way to the manager, which `su` and `sudo` lose."""
    runtime = Path(f"/run/user/{os.getuid()}")
    if "XDG_RUNTIME_DIR" in os.environ or not runtime.is_dir():
        return dict(os.environ)
    return {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}


def in_charge(home: Home) -> Manager | None:
    """Answer the manager when the service is installed and enabled for a home; else None."""
    served = served_home() if (unit_folder() / SERVICE).exists() else None
    if served is None or served.resolve() != home.path.resolve():
        return None
    manager = Manager()
    return manager if manager.is_there() and manager.is_enabled() else None


def comes_back(home: Home) -> bool:
    """Whether a daemon is about to answer: one starts or stops, or its manager is restarting it."""
    if home.daemon_lives():
        return True
    manager = in_charge(home)
    if manager is None:
        return False
    return manager.state() in {"activating", "deactivating", "reloading"} or home.daemon_lives()  # it came meanwhile


def lingers() -> bool:
    """Whether this user's services run without a login."""
    user = str(os.getuid())
    try:
        done = subprocess.run(  # noqa: S603
            ["loginctl", "show-user", user, "--property=Linger", "--value"],  # noqa: S607  where the system has it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "yes"
