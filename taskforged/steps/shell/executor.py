"""The executor: plans an attempt, executes the program in a place of its own, judges how it ended."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError
from taskforged.steps.base import Failed, Log, Outcome, Succeeded, Task
from taskforged.steps.failure import FailedError, fail
from taskforged.steps.secrets import mask_outcome
from taskforged.steps.shell.place import Place
from taskforged.steps.shell.plan import Plan, Planner
from taskforged.steps.shell.processes import signal_name
from taskforged.steps.shell.program import Program, start_program
from taskforged.steps.shell.sweep import sweep

__all__ = ["ShellExecutor"]

_T = TypeVar("_T")


class ShellExecutor:
    """Executes programs. Linux only: it needs /proc.

    Failure codes: `shell_not_allowed`, `program_not_found`, `invalid_request`, `secret_missing`, `start_failed`,
    `timeout`, `exit_code`, `signal`, `invalid_json`.

    A program whose leader ended has ended: whatever it left behind in its session is killed at once.

    Args:
        scratch: a folder of this executor alone; at `start` leftovers below it are removed.
        allow: absolute paths of the programs that may be executed.
        unsafe: any program may be executed.
        timeout_s: for a task that has none of its own, in seconds.
        grace_s: between SIGTERM and SIGKILL after a timeout or a cancellation, in seconds.
        output_bytes_max: upper bound of a task's `max_output`.
    """

    name = "shell"

    def __init__(
        self,
        *,
        scratch: Path,
        allow: Sequence[str] = (),
        unsafe: bool = False,
        timeout_s: float = 600.0,
        grace_s: float = 5.0,
        output_bytes_max: int = 1 << 20,
    ) -> None:
        self._scratch = scratch
        self._planner = Planner(tuple(allow), unsafe, output_bytes_max)
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._boot_id = ""
        self._signals: ThreadPoolExecutor | None = None

    async def start(self) -> int:
        """Kill what an earlier daemon left behind, and make ready; answer how many programs were killed. Idempotent.

        Raises:
            OSError: the folder cannot be made.
        """
        if self._signals is not None:
            return 0
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited; the kernel would reap our children by itself
        self._boot_id = (await asyncio.to_thread(Path("/proc/sys/kernel/random/boot_id").read_text)).strip()
        killed = await asyncio.to_thread(sweep, self._scratch, self._boot_id)
        self._signals = ThreadPoolExecutor(2, thread_name_prefix="shell")
        return killed

    async def close(self) -> None:
        """Release the threads. Idempotent."""
        signals, self._signals = self._signals, None
        if signals is not None:
            signals.shutdown()  # idle, as no attempt is running

    async def execute(self, task: Task) -> Outcome:
        """Execute the program that `task.config` describes, and judge its end.

        Cancelled, it lets `CancelledError` through when everything in the program's session is dead.
        """
        used: set[str] = set()
        try:
            return mask_outcome(await self._attempt(task, used), used)
        except FailedError as error:
            return mask_outcome(error.outcome, used)

    async def _attempt(self, task: Task, used: set[str]) -> Outcome:
        if self._signals is None:
            raise RuntimeError("ShellExecutor.start() was not called")
        timeout_s = self._timeout_s if task.timeout_s is None else task.timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        mark = secrets.token_hex(16)
        try:
            async with asyncio.timeout_at(deadline):
                plan = await self._planner.plan(task, mark, used)
        except TimeoutError:
            fail("timeout", f"the program was not started within {timeout_s:g} s", retryable=True)
        place = Place(self._scratch, mark, self._boot_id)
        try:
            program, is_ended = await self._execute(plan, place, deadline, used, task.log)
        finally:
            await _undisturbed(asyncio.to_thread(place.remove))
        if not is_ended:
            message = f"the program did not end within {timeout_s:g} s and was killed"
            return Failed("timeout", message, retryable=True, details=program.evidence(), is_unknown=True)
        return _judged(plan, program)

    async def _execute(
        self, plan: Plan, place: Place, deadline: float, used: set[str], log: Log
    ) -> tuple[Program, bool]:
        """Answer the program, which is over, and whether it came to its end by itself."""
        assert self._signals is not None
        try:
            await _undisturbed(asyncio.to_thread(place.make, plan.stdin))
            program = start_program(plan, place, self._signals, used, log)
        except OSError as error:
            _fail_start(plan.argv[0].decode(), error)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await program.exited.wait()
        finally:
            is_ended = program.exited.is_set()
            try:
                await _undisturbed(program.end(0.0 if is_ended else self._grace_s))
            finally:
                place.is_over = program.is_gone
        return program, is_ended


def _fail_start(program: str, error: OSError) -> NoReturn:
    """End the attempt of a program that the system did not start."""
    if isinstance(error, FileNotFoundError):
        fail("program_not_found", f"{program}, or the interpreter that its first line names, does not exist")
    if isinstance(error, PermissionError):
        fail("program_not_found", f"{program} cannot be executed, or the folder cannot be entered: permission denied")
    reason = error.strerror or type(error).__name__
    # Too many arguments, or a script without an interpreter: the same again next time.
    code, again = ("invalid_request", False) if error.errno in {errno.E2BIG, errno.ENOEXEC} else ("start_failed", True)
    fail(code, f"{program} cannot be started: {reason}", retryable=again)


def _judged(plan: Plan, program: Program) -> Outcome:
    code, name = program.returncode, os.fsdecode(plan.argv[0])
    if code is None:
        return Failed("signal", f"{name} ended and cannot be reaped", retryable=True, is_unknown=True)
    if code < 0:
        message = f"{name} was killed by {signal_name(-code)}"
        return Failed("signal", message, retryable=True, details=program.evidence(), is_unknown=True)
    if code not in plan.exit_codes:
        return Failed("exit_code", f"{name} exited with {code}", retryable=True, details=program.evidence())
    output: dict[str, Json] = {
        "exit_code": code,
        "stdout": program.out.text() if plan.output == "text" else None,
        "stderr": program.err.text(),
        "truncated": program.out.is_truncated or program.err.is_truncated,
        "duration_s": round(program.duration_s, 3),
    }
    if plan.output == "json":
        try:
            output["json"] = program.out.json()
        except InvalidArgumentError as error:
            return Failed("invalid_json", error.message, False, details=program.evidence(), is_unknown=True)
    return Succeeded(output)


async def _undisturbed(work: Coroutine[Any, Any, _T]) -> _T:
    """Await to the end, however often the caller is cancelled meanwhile; the cancellation comes after."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen; the cancellation goes before it
    raise cancellation
