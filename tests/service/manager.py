"""The parts of systemd that a daemon talks to: a socket handed over, a socket for notifications."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_HAND_OVER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


def handing_over(fd: int, name: str = "http") -> list[str]:
    """A wrapper of a command that gets a descriptor as sd_listen_fds(3) has it."""
    return [sys.executable, "-c", _HAND_OVER, str(fd), name]


@contextlib.contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    """A socket that listens all the time, as `taskforged.socket` does."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family, backlog=4096) as made:
        yield made


class Notifications:
    """Where `NOTIFY_SOCKET` leads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def next(self, timeout_s: float = 20.0) -> str:
        """Wait for the next notification."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode()

    def until(self, start: str) -> str:
        """Wait for one that begins like this."""
        while not (found := self.next()).startswith(start):
            pass
        return found

    def drain(self) -> list[str]:
        """Everything that has arrived."""
        found = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        return found

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)
