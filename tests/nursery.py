"""Daemons that start fast: forked from an interpreter that has imported all of the daemon and done nothing with it.

Most of a start is imports. A test with many short lives starts one `Nursery` and gives it to each `Daemon`; what it
gets is a process of its own all the same, which enters `taskforged.__main__.main` with its own arguments, environment
and log, and can be killed. A nursery that is closed, or whose test has died, takes its processes with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

_MESSAGE_MAX = 1 << 20


class Child:
    """A process of a nursery, with what tests use of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self._lock = threading.Lock()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Answer the exit code; None while it runs."""
        with self._lock:  # it is told once
            if self.returncode is None:
                self.returncode = self._nursery.ask(poll=self.pid)["code"]
            return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to a process that has not been seen to end."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it does not come.
        """
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # told to somebody else just now
                self._wait(timeout)
            self.poll()
        assert self.returncode is not None
        return self.returncode

    def _wait(self, timeout: float | None) -> None:
        fd = os.pidfd_open(self.pid)
        try:
            if not select.select([fd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("taskforged", timeout or 0.0)
        finally:
            os.close(fd)


class Nursery:
    """The interpreter that daemons are forked from.

    Args:
        env: what has to be there before anything is loaded, such as `LD_PRELOAD`.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}
        environment |= {"PYTHONWARNINGS": "default", "PYTHONFAULTHANDLER": "1", **(env or {})}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._socket = ours
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, with all its processes. Idempotent."""
        self._socket.close()
        self._process.wait(30)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and answer what comes back."""
        with self._lock:
            self._socket.send(json.dumps(request).encode())
            return json.loads(self._socket.recv(_MESSAGE_MAX))

    def spawn(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> Child:
        """Start `taskforged` with these arguments; it writes to `log`."""
        request = {"arguments": list(arguments), "environment": dict(environment), "log": str(log), "cwd": str(cwd)}
        return Child(self, self.ask(spawn=request)["pid"])


# --- in the nursery --------------------------------------------------------------------------------------------------


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Answer requests until the other side has gone; returns in each forked process, with what it is to be."""
    children: set[int] = set()
    while message := channel.recv(_MESSAGE_MAX):
        request = json.loads(message)
        if "spawn" in request:
            pid = os.fork()
            if pid == 0:
                return dict(request["spawn"])
            children.add(pid)
            answer = {"pid": pid}
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            children.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        channel.send(json.dumps(answer).encode())
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)


def _become(life: dict[str, Any]) -> None:
    os.chdir(life["cwd"])
    log = os.open(life["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(life["environment"])
    sys.argv = ["taskforged", *life["arguments"]]


if __name__ == "__main__":
    from taskforged.__main__ import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the test closes us
    with socket.socket(fileno=int(sys.argv[1])) as _channel:
        gc.freeze()
        _life = _serve(_channel)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become(_life)
    main()
