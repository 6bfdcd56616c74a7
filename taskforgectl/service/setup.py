"""`init --systemd`: install the units, start them where a manager is there, say what to type where none is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskforgectl.checkup import checkup
from taskforgectl.errors import EXIT_CONFLICT, CliError
from taskforgectl.home import Home
from taskforgectl.service.manager import Manager, lingers
from taskforgectl.service.units import (
    SERVICE,
    SOCKET,
    Change,
    Installed,
    Place,
    program,
    refresh,
    served_home,
    unit_folder,
)

__all__ = ["Setup", "place_of", "set_up"]

_CHECK_S = 30.0


class Setup(NamedTuple):
    """What was done: units, whether they run now, what is left to type and why. `fault`: why they do not run."""

    units: Sequence[Installed]
    state: str
    left: Sequence[tuple[str, str]]
    fault: CliError | None = None

    def report(self) -> dict[str, Any]:
        """Answer it for programs."""
        units = [{"path": str(one.path), "change": one.change.value} for one in self.units]
        left = [{"type": command, "why": why} for command, why in self.left]
        return {"service": {"units": units, "state": self.state, "left_to_do": left}}


def place_of(home: Home) -> Place:
    """Answer what the units of a home are filled in with. Variables do not count: the service will not have them."""
    answer = checkup(home.path, "--settings", limit_s=_CHECK_S, with_variables=False)
    if answer["problems"]:
        raise CliError("\n".join(one["message"] for one in answer["problems"]), hint=f"mend {answer['file']}")
    listen = next(one["value"] for one in answer["settings"] if (one["section"], one["key"]) == ("http", "listen"))
    return Place(home.path, program(), str(listen))


def set_up(home: Home) -> Setup:
    """Install both units for a home and start them.

    Raises:
        CliError: the service is another home's, or the settings have faults.
    """
    served = served_home()
    if served is not None and served.resolve() != home.path.resolve():
        raise CliError(
            f"the service of this user is for {served}, and there is one for each user",
            hint=f"work with `taskforgectl up` on {home.path}, or remove {unit_folder() / SERVICE} first",
            code=EXIT_CONFLICT,
        )
    place = place_of(home)
    units = [refresh(SERVICE, place), refresh(SOCKET, place)]
    manager = Manager()
    if not manager.is_there():
        return Setup(units, "no user manager answers", [*_BY_HAND, *_linger()])
    manager.reload()
    left = list(_linger())
    holder = home.daemon_pid()
    was_active = holder is not None and manager.main_pid() == holder
    if holder is not None and not was_active:
        manager.enable(now=False)
        left.insert(0, ("taskforgectl restart", "a daemon runs in the background; this hands over to the service"))
        return Setup(units, "enabled", left)
    try:
        manager.enable(now=True)
    except CliError as fault:
        return Setup(units, manager.state(), left, fault)
    if was_active and any(one.change is Change.UPDATED for one in units):
        left.insert(0, ("taskforgectl restart", "the running daemon still has the old unit"))
    return Setup(units, manager.state(), left)


_BY_HAND = (
    ("systemctl --user daemon-reload", "as this user, in a session of its own (not by su or sudo): reads the units"),
    (f"systemctl --user enable --now {SOCKET} {SERVICE}", "starts them, now and with every start of the manager"),
)


def _linger() -> Sequence[tuple[str, str]]:
    if lingers():
        return ()
    why = "else the service ends when you log out, and starts only when you log in"
    return ((f"loginctl enable-linger {os.environ.get('USER') or os.getuid()}", why),)
