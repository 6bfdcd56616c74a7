"""The service manager's side of the process: readiness and watchdog (sd_notify(3)), and sockets that it hands over.

With socket activation (sd_listen_fds(3)) the manager holds the listening socket, also while no daemon runs. The kernel
keeps accepting connections for it, so a restart refuses nobody.

What the manager says is taken from the environment once, at the very start, and removed from it: a program that a step
starts must neither find the sockets nor speak in the daemon's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping, Sequence

import structlog

from taskforged.errors import FailedPreconditionError

__all__ = ["ServiceManager"]

_log = structlog.get_logger(__name__)

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

_HTTP = "http"
"""FileDescriptorName= of the socket of the webhook listener."""


class ServiceManager:
    """What systemd, or whoever speaks its protocol, has said to this process; nothing when nobody did.

    Args:
        notify: address of the socket for notifications; empty: nobody listens.
        watchdog_s: how often it wants to hear of progress; 0.0: it does not.
        sockets: name and socket of what it has handed over.
    """

    def __init__(
        self, *, notify: str = "", watchdog_s: float = 0.0, sockets: Sequence[tuple[str, socket.socket]] = ()
    ) -> None:
        self._address = "\0" + notify[1:] if notify.startswith("@") else notify
        self.watchdog_s = watchdog_s
        self._sockets = list(sockets)

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Answer what the environment says, and remove it from there."""
        said = {name: environment.pop(name, "") for name in _VARIABLES}
        pid = str(os.getpid())
        watched = said["WATCHDOG_USEC"].isdigit() and said["WATCHDOG_PID"] in {"", pid}
        count = int(said["LISTEN_FDS"]) if said["LISTEN_PID"] == pid and said["LISTEN_FDS"].isdigit() else 0
        names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] else []
        return cls(
            notify=said["NOTIFY_SOCKET"],
            watchdog_s=int(said["WATCHDOG_USEC"]) / 1e6 if watched else 0.0,
            sockets=[(names[i] if i < len(names) else "", _adopt(_FIRST_FD + i)) for i in range(count)],
        )

    def notify(self, *lines: str) -> None:
        """Say something. A manager that does not listen is none of our worries."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as client,
        ):
            client.connect(self._address)
            client.send("\n".join(lines).encode())

    def http_socket(self) -> socket.socket | None:
        """Answer the listening socket for webhooks, None when there is none: the one called `http`, or the only one.

        Raises:
            FailedPreconditionError: what was handed over is no such socket, or there is more than that.
        """
        if not self._sockets:
            return None
        named = [one for name, one in self._sockets if name == _HTTP]
        if len(self._sockets) > 1 or (not named and self._sockets[0][0] not in _UNNAMED):
            got = ", ".join(name or "one without a name" for name, _ in self._sockets)
            raise _unfit(f"one socket called {_HTTP} is expected, and these came: {got}")
        found = self._sockets[0][1]
        _check(found)
        return found

    async def feed_watchdog(self, is_alive: Callable[[float], bool]) -> None:
        """Tell the manager of progress for ever, and only while there is some.

        Args:
            is_alive: whether loop and journal have made progress within so many seconds.
        """
        was_fed = True
        while True:
            is_fed = is_alive(self.watchdog_s / 2)
            if is_fed:
                self.notify("WATCHDOG=1")
            elif was_fed:
                _log.error("watchdog.starved", watchdog_s=self.watchdog_s)
            was_fed = is_fed
            await asyncio.sleep(self.watchdog_s / 4)


_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_UNNAMED = frozenset({"", "unknown", "stored", "connection"})
"""What sd_listen_fds_with_names(3) has for a socket that nobody named."""


def _adopt(fd: int) -> socket.socket:
    """Take a descriptor. Programs that steps start do not get it.

    Raises:
        FailedPreconditionError: it is not open, or not a socket.
    """
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        raise _unfit(f"descriptor {fd} is not a socket ({error.strerror})") from error


def _check(found: socket.socket) -> None:
    if found.type != socket.SOCK_STREAM or found.family not in {socket.AF_INET, socket.AF_INET6}:
        raise _unfit("it is no TCP socket; use ListenStream=127.0.0.1:7421")
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _unfit("it does not listen; the unit needs Accept=no")


def _unfit(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"the socket handed over for webhooks cannot be used: {why}", reason="BAD_SOCKET")
