"""The systemd service: its units as installed beside those that are shipped, and what the manager makes of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from taskforgectl import __version__
from taskforgectl.doctor.model import Finding, Ground, error, ok, warning
from taskforgectl.service.manager import Manager, lingers
from taskforgectl.service.setup import place_of
from taskforgectl.service.units import SERVICE, SOCKET, Change, installed, served_home, unit_folder

__all__ = ["check_service", "check_units"]

_ASK_S = 20.0


def check_units(ground: Ground) -> Iterator[Finding]:
    """The files: there, of this home, as shipped, with a program that exists and has this version."""
    unit = unit_folder() / SERVICE
    if not unit.exists():
        yield ok("no service is installed; `taskforgectl init --systemd` would do it")
        return
    if not _is_ours(ground):
        yield ok(f"the service of this user is for another home, {served_home()}")
        return
    place = place_of(ground.home)
    changed = False
    for name in (SERVICE, SOCKET):
        found = installed(name, place)
        if found.change is Change.THEIRS:
            yield warning(
                f"{found.path} was changed after it was installed, so it is not brought up to date",
                f"put the changes into a drop-in (`systemctl --user edit {name}`), remove the file, and"
                " `taskforgectl init --systemd`",
            )
        elif found.change is not Change.SAME:
            missing = "is missing" if found.change is Change.MADE else "is not the one that fits program and settings"
            yield warning(f"{found.path} {missing}", "`taskforgectl init --systemd`, then `taskforgectl restart`")
        changed |= found.change is not Change.SAME
    yield from _check_program(unit)
    if not changed:
        yield ok(f"{SERVICE} and {SOCKET} are as shipped")


def _is_ours(ground: Ground) -> bool:
    served = served_home()
    return served is not None and served.resolve() == ground.home.path.resolve()


def _check_program(unit: Path) -> Iterator[Finding]:
    lines = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=/")]
    if len(lines) != 1:
        return
    program = lines[0].removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$")
    try:
        done = subprocess.run(  # noqa: S603  what the service would execute
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        yield error(f"{program} of {unit} cannot be executed: {problem}", "`taskforgectl init --systemd`")
        return
    version = done.stdout.strip().removeprefix("taskforged ")
    if version != __version__:
        yield warning(
            f"the service executes taskforged {version or '?'}, and this is taskforgectl {__version__}",
            "`taskforgectl init --systemd`, then `taskforgectl restart`",
        )


def check_service(ground: Ground) -> Iterator[Finding]:
    """The manager: there, starts the service by itself, also without a login, and has not given up."""
    if not (unit_folder() / SERVICE).exists() or not _is_ours(ground):
        return
    manager = Manager()
    if not manager.is_there():
        yield warning(
            "the service is installed, and no user manager answers",
            "log in as this user in a session of its own (not by su or sudo), or `loginctl enable-linger`",
        )
        return
    faults = list(_faults(ground, manager))
    yield from faults or [ok(f"{SERVICE} is {manager.state()}, and starts by itself")]


def _faults(ground: Ground, manager: Manager) -> Iterator[Finding]:
    if manager.state() == "failed":
        yield error(
            f"{SERVICE} has failed, and systemd has given up", "`taskforgectl logs` tells why; then `taskforgectl up`"
        )
    if not manager.is_enabled():
        yield warning("the service does not start by itself", f"systemctl --user enable --now {SOCKET} {SERVICE}")
    elif manager.state(SOCKET) != "active":
        yield warning(f"{SOCKET} is not active: webhooks are refused while the daemon restarts", "`taskforgectl up`")
    if not lingers():
        yield warning(
            "the service ends when this user logs out, and starts only at a login", "`loginctl enable-linger`"
        )
    holder = ground.home.daemon_pid()
    if holder is not None and manager.is_enabled() and manager.main_pid() != holder:
        yield warning(
            f"the daemon (pid {holder}) runs in the background, not as the service",
            "`taskforgectl restart` hands over to the service",
        )
