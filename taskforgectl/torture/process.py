"""The daemon that is tortured: a real process on a scratch home, and its lives one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from taskforgectl.errors import CliError
from taskforgectl.home import Home, RunFile

__all__ = ["DaemonError", "Life", "Subject"]

READY_S = 180.0
"""How long a start may take before it counts as one that failed: also on a machine that is busy with other things."""

STOP_S = 120.0
_POLL_S = 0.02
_MORTAL = (
    sys.executable,
    "-ISc",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])",
)
"""Makes Linux kill a process when we die, even by SIGKILL: PR_SET_PDEATHSIG, which stays over an exec."""


class DaemonError(CliError):
    """The daemon did not start, or did not end."""


class Life(NamedTuple):
    """One start of the daemon that became ready, in the driver's seconds."""

    number: int
    ready_s: float


class Subject:
    """A `taskforged` on a home of its own, on free ports.

    Args:
        home: its home, which need not exist.
        log: file that takes what it writes, over all lives.
        settings: environment variables besides those that make it a scratch daemon.
        program: the command instead of `python -m taskforged`.
    """

    def __init__(self, home: Path, log: Path, settings: Mapping[str, str], program: Sequence[str] = ()) -> None:
        self.home = Home(home)
        self.log = log
        self._settings = settings
        self._program = list(program) or [sys.executable, "-m", "taskforged"]
        self._process: asyncio.subprocess.Process | None = None
        self.run_file: RunFile | None = None
        self.boots = 0
        """Processes so far, ready or not: the number of the present one."""
        self.lives: list[Life] = []

    @property
    def http(self) -> str:
        """Where it takes webhooks; empty while it does not."""
        return self.run_file.http if self.run_file is not None else ""

    @property
    def target(self) -> str:
        """Where its control plane listens: the unix socket, where its path is short enough for one."""
        return self.run_file.grpc[0] if self.run_file is not None else ""

    async def spawn(self) -> None:
        """Start the process without waiting for anything."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}
        environment |= {
            "TASKFORGE_GRPC_LISTEN": "127.0.0.1:0",
            "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0",
            "TASKFORGE_LOG_FORMAT": "json",
            "TASKFORGE_LIMITS_STUCK_SCAN": "1",
            "TASKFORGE_EXECUTOR_GRACE": "5",
            "PYTHONFAULTHANDLER": "1",
            **self._settings,
        }
        self.boots += 1
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_MORTAL,
                *self._program,
                "--home",
                str(self.home.path),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,  # Ctrl-C is for the driver
            )

    async def start(self) -> Life:
        """Start and wait until it says that it is ready.

        Raises:
            DaemonError: it ended, or is not ready in time.
        """
        began = time.monotonic()
        await self.spawn()
        process = self._running()
        while True:
            known = self.home.run_file()
            if known is not None and known.pid == process.pid:
                break
            if process.returncode is not None:
                raise DaemonError(f"the daemon ended with {process.returncode} before it was ready")
            if time.monotonic() - began > READY_S:
                raise DaemonError(f"the daemon is not ready after {READY_S:g} s")
            await asyncio.sleep(_POLL_S)
        self.run_file = known
        life = Life(self.boots, time.monotonic() - began)
        self.lives.append(life)
        return life

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        process = self._running()
        self._send(signal.SIGKILL)
        await process.wait()
        self._forget()

    async def terminate(self) -> int:
        """SIGTERM; answers the exit code.

        Raises:
            DaemonError: it does not stop in time.
        """
        process = self._running()
        self._send(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            raise DaemonError(f"the daemon did not end within {STOP_S:g} s after SIGTERM") from None
        self._forget()
        return code

    async def stand_still(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while, whatever happens."""
        self._send(signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            self._send(signal.SIGCONT)

    async def dump_stacks(self) -> None:
        """End the process by SIGABRT, which writes the stacks of its threads into its log."""
        if self._process is not None and self.ended() is None:
            self._send(signal.SIGCONT)
            self._send(signal.SIGABRT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._running().wait(), 5)

    def ended(self) -> int | None:
        """Answer with what the present process has ended by itself, None while it runs or when there is none."""
        return self._process.returncode if self._process is not None else None

    @property
    def is_up(self) -> bool:
        """Whether there is a process that was not ended by us."""
        return self._process is not None

    async def close(self) -> None:
        """Leave no process behind. Idempotent."""
        if self._process is not None:
            if self._process.returncode is None:
                await self.kill()
            self._forget()

    def tail(self, lines: int = 15) -> str:
        """Answer the end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 64_000))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise DaemonError("the daemon does not run")
        return self._process

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._running().send_signal(number)

    def _forget(self) -> None:
        self._process = self.run_file = None
