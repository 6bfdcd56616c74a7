"""A running program.

**One session per attempt.** The program leads a session, and with it a process group, of its own; what it starts
belongs to the session unless it asks for another one (`setsid`, daemons). Signals go to the group and to all else in
the session: `timeout`, for one, moves into a group of its own. How numbers are kept from being reused is told at
`processes.signal_session`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import structlog

from taskforged.engine.model import Json
from taskforged.steps.base import Log
from taskforged.steps.shell.place import Place
from taskforged.steps.shell.plan import Plan
from taskforged.steps.shell.processes import GONE_S, signal_name, signal_session
from taskforged.steps.shell.streams import Stream

__all__ = ["Program", "start_program"]

_log = structlog.get_logger(__name__)

_EOF_S = 0.5
"""How long a stream may stay open when all is dead: only something that left the session can still hold it."""
_UMASK = 0o022  # what programs expect; the daemon's own 077 would make files that a web server cannot read


def start_program(plan: Plan, place: Place, signals: ThreadPoolExecutor, used: Collection[str], log: Log) -> Program:
    """Start the program. On the event loop, as asyncio does it itself: for the time of a vfork, about 1 ms.

    Raises:
        OSError: it cannot be started.
    """
    streams, write_ends = [], []
    with ExitStack() as on_failure, ExitStack() as always:
        always.callback(place.close)
        for name in ("stdout", "stderr"):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            always.callback(os.close, write_end)
            stream = Stream(name, read_end, plan.kept_max, used, log)
            on_failure.callback(stream.close)
            streams.append(stream)
            write_ends.append(write_end)
        with _memory_unlimited():
            popen = subprocess.Popen(  # noqa: S603  a list of arguments, checked against the allow list
                plan.argv,
                stdin=subprocess.DEVNULL if place.stdin is None else place.stdin,
                stdout=write_ends[0],
                stderr=write_ends[1],
                cwd=plan.cwd or place.folder,
                env=plan.environment,
                start_new_session=True,
                close_fds=True,
                umask=_UMASK,
            )
        on_failure.callback(popen.wait)
        on_failure.callback(os.killpg, popen.pid, signal.SIGKILL)
        with suppress(OSError):  # a full disk; the first half of the record is enough to find the program by
            place.started(popen.pid)
        program = Program(popen, streams[0], streams[1], signals)
        place.is_over = False
        on_failure.pop_all()
    return program


@contextmanager
def _memory_unlimited() -> Iterator[None]:
    """The daemon bounds its address space for the sake of expressions; node and java reserve more than that.

    Both happen on the event loop's thread, one after the other, so expressions stay bounded.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Program:
    """A running program, its session and its streams.

    Attributes:
        exited: the program itself, the leader of the session, has ended. It is not reaped before `end`.
        is_gone: nothing in the session is alive.
        duration_s: from start to exit, in seconds.
    """

    def __init__(self, popen: subprocess.Popen[bytes], out: Stream, err: Stream, signals: ThreadPoolExecutor) -> None:
        self.exited = asyncio.Event()
        self.is_gone = False
        self.duration_s = 0.0
        self.out, self.err = out, err
        self._popen = popen
        self._signals = signals
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self._pidfd: int | None = None
        self._poller: asyncio.Task[None] | None = None
        # Neither asyncio's child watchers (3.11 starts a thread per child by default, and they reap at once, which
        # frees the number) nor uvloop's processes: a descriptor of the process works in every event loop.
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except OSError:  # too many open files, or a container that forbids it
            self._poller = self._loop.create_task(self._poll(), name="shell-poll")
        else:
            self._loop.add_reader(self._pidfd, self._notice)
        out.start()
        err.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that killed it."""
        code: int | None = self._popen.returncode
        return code

    def evidence(self) -> dict[str, Json]:
        """What a failure says about it."""
        code = self.returncode
        return {
            "exit_code": code if code is not None and code >= 0 else None,
            "signal": signal_name(-code) if code is not None and code < 0 else None,
            "stdout": self.out.tail(),
            "stderr": self.err.tail(),
        }

    async def end(self, grace_s: float) -> None:
        """End all that is alive in the session, reap the program, read the rest of its streams."""
        try:
            if grace_s > 0:
                await self._terminate(grace_s)
            self.is_gone = await self._kill()
        except asyncio.CancelledError:  # the event loop itself is ending
            signal_session(self._popen.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=1)
            self.out.close()
            self.err.close()
            raise
        finally:
            self._release()
        with suppress(TimeoutError):
            async with asyncio.timeout(_EOF_S):
                await self.out.ended.wait()
                await self.err.ended.wait()
        self.out.finish()
        self.err.finish()

    async def _terminate(self, grace_s: float) -> None:
        # All get the time, not only the leader: a shell ends at once, while its children still clean up.
        deadline = self._loop.time() + grace_s
        is_alive = await self._signal(signal.SIGTERM)
        pause = 0.002
        while is_alive and self._loop.time() < deadline:
            await asyncio.sleep(min(pause, deadline - self._loop.time()))
            pause = min(2 * pause, 0.1)
            is_alive = await self._signal(0)

    async def _kill(self) -> bool:
        deadline = self._loop.time() + GONE_S
        pause = 0.001
        while await self._signal(signal.SIGKILL):
            if self._loop.time() > deadline:
                _log.warning("shell.not_killed", pid=self._popen.pid)
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                await self.exited.wait()
        # Reaps: from here on the number may belong to somebody else. (A leader that hangs in the kernel is reaped by
        # `subprocess` itself, when a later program is started.)
        return self._popen.poll() is not None

    async def _signal(self, number: int) -> bool:
        return await self._loop.run_in_executor(self._signals, signal_session, self._popen.pid, number)

    def _notice(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self.duration_s = time.monotonic() - self._started
        self.exited.set()

    async def _poll(self) -> None:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while os.waitid(os.P_PID, self._popen.pid, options) is None:  # noqa: ASYNC222, ASYNC110  it does not wait
                await asyncio.sleep(0.02)
        self.duration_s = time.monotonic() - self._started
        self.exited.set()

    def _release(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
