"""The step `shell`: one program, executed directly and not by a shell, with everything it starts under control.

**What may be executed** is the operator's decision: nothing at first, then the programs in `[shell] allow`. An entry
names a directory entry. Paths are compared after the symbolic links, `.` and `..` in the *folder* are resolved, on both
sides, and what was compared is what is executed: `/usr/bin/../bin/sh` is `/usr/bin/sh`, and so is `/bin/sh` where
`/bin` leads to `/usr/bin`. The last part is not resolved: an entry that is a link allows whatever it leads to, and a
link elsewhere that leads to an allowed program is not allowed. An allowed program gets any arguments, and any variables
but those that make the loader or bash execute something else; allowing an interpreter therefore allows everything.

**One session per attempt.** The program leads a session, and with it a process group, of its own; what it starts
belongs to the session unless it asks for another one (`setsid`, daemons). Signals go to the group and to all else in
the session: `timeout`, for one, moves into a group of its own. How numbers are kept from being reused is told at
`_signal_session`.

**After kill -9 of the daemon** programs go on until the next daemon starts. A record per attempt lies in
`<scratch>/groups/`: first the boot id and a random mark that the program gets as `TASKFORGE_GROUP`, written before the
program is started, then its number and start time. `start` kills what is proven to be ours, see `_sweep`. What remains:
a program that throws its environment away and whose leader is gone, or that throws it away in the microseconds between
its start and the second half of the record, is not found; nor is what left the session.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import resource
import secrets
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import structlog

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.jsonvalue import parse_json, to_text
from taskforged.steps.base import Failed, Log, Outcome, Succeeded, Task
from taskforged.steps.secrets import margin_of, mask, resolve_references

__all__ = ["ShellExecutor"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_MARK = "TASKFORGE_GROUP"
_OUTPUT_DEFAULT = 1 << 16
_EXCERPT_MAX = 4096
"""Bytes of the end of each stream that a failure keeps as evidence."""
_PIECE_MAX = 4096
"""Bytes of one line of the log; a longer line becomes several."""
_LINE_MAX = 1 << 16
"""Bytes of a line that are logged at all. A line is held until it is complete, as secrets are masked in whole lines."""
_LINES_MAX = 50_000
"""Lines of each stream that are logged: a program that floods would otherwise keep the event loop busy with masking."""
_READ_LOGGED, _READ_DROPPED = 1 << 13, 1 << 16
"""Bytes read at once while lines are logged and after: 8 KiB may be 8,192 lines, which take some milliseconds."""
_EOF_S = 0.5
"""How long a stream may stay open when all is dead: only something that left the session can still hold it."""
_GONE_S = 5.0
"""How long to wait for the end of what was killed. Only a process that hangs in the kernel takes longer."""
_UMASK = 0o022  # what programs expect; the daemon's own 077 would make files that a web server cannot read

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOADER = re.compile(r"LD_.*|GCONV_PATH|BASH_ENV")
"""Variables by which an allowed program executes one that is not (the first of those that sudo removes)."""
_TOKEN = re.compile(r"[0-9a-f]{32}")


class _FailedError(Exception):
    """Ends an attempt from wherever it is."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


def _fail(code: str, message: str, *, retryable: bool = False, details: Json = None) -> NoReturn:
    raise _FailedError(Failed(code, message, retryable, details=details)) from None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is executed, and how the end is judged.

    Attributes:
        argv: the program's path, then its arguments.
        environment: all variables.
        cwd: None for the attempt's own folder.
        stdin: None for nothing.
        output: `text`, `json` or `none`.
        exit_codes: those that mean success.
        kept_max: bytes of each stream that the output keeps.
    """

    argv: list[bytes]
    environment: dict[bytes, bytes]
    cwd: str | None
    stdin: bytes | None
    output: str
    exit_codes: frozenset[int]
    kept_max: int


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
        self._allow = tuple(allow)
        self._unsafe = unsafe
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._output_bytes_max = output_bytes_max
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
        killed = await asyncio.to_thread(_sweep, self._scratch, self._boot_id)
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
            return _masked(await self._attempt(task, used), used)
        except _FailedError as error:
            return _masked(error.outcome, used)

    async def _attempt(self, task: Task, used: set[str]) -> Outcome:
        if self._signals is None:
            raise RuntimeError("ShellExecutor.start() was not called")
        timeout_s = self._timeout_s if task.timeout_s is None else task.timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        mark = secrets.token_hex(16)
        try:
            async with asyncio.timeout_at(deadline):
                plan = await self._plan(task, mark, used)
        except TimeoutError:
            _fail("timeout", f"the program was not started within {timeout_s:g} s", retryable=True)
        place = _Place(self._scratch, mark, self._boot_id)
        try:
            program, is_ended = await self._execute(plan, place, deadline, used, task.log)
        finally:
            await _undisturbed(asyncio.to_thread(place.remove))
        if not is_ended:
            message = f"the program did not end within {timeout_s:g} s and was killed"
            return Failed("timeout", message, retryable=True, details=program.evidence(), is_unknown=True)
        return _judged(plan, program)

    async def _execute(
        self, plan: _Plan, place: _Place, deadline: float, used: set[str], log: Log
    ) -> tuple[_Program, bool]:
        """Answer the program, which is over, and whether it came to its end by itself."""
        assert self._signals is not None
        try:
            await _undisturbed(asyncio.to_thread(place.make, plan.stdin))
            program = _start(plan, place, self._signals, used, log)
        except OSError as error:
            _raise_not_started(error, plan)
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

    # What is executed

    async def _plan(self, task: Task, mark: str, used: set[str]) -> _Plan:
        config = task.config
        if not isinstance(config, dict):
            _fail("invalid_request", "the configuration must be an object")
        command = config.get("command")
        if not isinstance(command, list) or not command or not isinstance(command[0], str):
            _fail("invalid_request", "command must be a list: the program, then its arguments")
        program = await asyncio.to_thread(self._program, command[0])
        arguments = [_encoded(_scalar(part, "an argument"), "an argument") for part in command[1:]]
        resolved = await _resolve({key: config.get(key) for key in ("env", "stdin")}, task, used)
        stdin, cwd = resolved["stdin"], config.get("cwd")
        if cwd is not None:
            await asyncio.to_thread(_check_folder, cwd)
        return _Plan(
            argv=[_encoded(program, "the program"), *arguments],
            environment=self._environment(task, mark, resolved["env"]),
            cwd=cwd,
            stdin=None if stdin is None else _scalar(stdin, "stdin").encode("utf-8", "replace"),
            output=_output(config.get("output")),
            exit_codes=_exit_codes(config.get("exit_codes")),
            kept_max=min(_whole(config.get("max_output"), "max_output", _OUTPUT_DEFAULT), self._output_bytes_max),
        )

    def _program(self, name: str) -> str:
        """The path to execute; see the module's text for what is compared."""
        if not self._unsafe and not self._allow:
            _fail("shell_not_allowed", f"shell steps are off; {_how_to_allow(name)}")
        if "\0" in name or not name or ("/" in name and not name.startswith("/")):
            _fail("invalid_request", "the program must be an absolute path, or a name without a slash")
        path = name if name.startswith("/") else _found(name)
        folder, last = os.path.split(path)
        if last in {"", ".", ".."}:
            _fail("invalid_request", "the program must be a file")
        path = _entry(folder, last)
        if not self._unsafe and path not in {_entry(*os.path.split(allowed)) for allowed in self._allow}:
            _fail("shell_not_allowed", f"{path} may not be executed; {_how_to_allow(path)}")
        if not os.path.isfile(path):  # noqa: PTH113  texts all along: a Path would drop what it thinks superfluous
            _fail("program_not_found", f"there is no program {path}")
        return path

    def _environment(self, task: Task, mark: str, declared: Json) -> dict[bytes, bytes]:
        variables = {
            "PATH": ":".join(_PATH),
            "HOME": os.path.expanduser("~"),  # noqa: PTH111  answers what it can where Path.home() raises
            "LANG": "C.UTF-8",
        }
        variables.update(self._declared(declared))
        variables |= {
            "TASKFORGE_RUN_ID": task.run_id,
            "TASKFORGE_STEP": task.step_key,
            "TASKFORGE_ATTEMPT": str(task.attempt),
            "TASKFORGE_IDEMPOTENCY_KEY": task.idempotency_key,
            "TASKFORGE_CORRELATION_ID": task.correlation_id,
            **({"TRACEPARENT": task.traceparent} if task.traceparent else {}),
            **({"TRACESTATE": task.tracestate} if task.tracestate else {}),
            "TASKFORGE_NAMESPACE": task.namespace,
            "TASKFORGE_WORKFLOW": task.workflow,
            _MARK: mark,
        }
        return {name.encode(): _encoded(value, f"the variable {name}") for name, value in variables.items()}

    def _declared(self, declared: Json) -> Iterator[tuple[str, str]]:
        if declared is None:
            return
        if not isinstance(declared, dict):
            _fail("invalid_request", "env must be an object")
        for name, value in declared.items():
            if not _NAME.fullmatch(name):
                _fail("invalid_request", f"{name[:80]!r} is no name for a variable")
            if name.startswith("TASKFORGE_"):
                _fail("invalid_request", f"{name[:80]}: variables that start with TASKFORGE_ are set by Taskforge")
            if not self._unsafe and _LOADER.fullmatch(name):
                why = "it makes allowed programs execute others"
                _fail("shell_not_allowed", f"the variable {name[:80]} needs `unsafe = true` below [shell]: {why}")
            if value is not None:
                yield name, _scalar(value, f"the variable {name}")


def _how_to_allow(name: str) -> str:
    path = name if name.startswith("/") else f"/usr/bin/{name}"
    return (
        f"to allow it, write allow = [{json.dumps(path)}] below [shell] in config.toml, or set "
        f"TASKFORGE_SHELL_ALLOW={shlex.quote(path)}, with : between several, and restart the daemon"
    )


def _entry(folder: str, last: str) -> str:
    return os.path.join(os.path.realpath(folder), last)  # noqa: PTH118


def _found(name: str) -> str:
    for folder in _PATH:
        path = f"{folder}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return path
    _fail("program_not_found", f"there is no program {name[:200]} in {':'.join(_PATH)}")


def _check_folder(cwd: Json) -> None:
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        _fail("invalid_request", "cwd must be an absolute path")
    if not os.path.isdir(cwd):  # noqa: PTH112
        _fail("invalid_request", f"cwd: there is no folder {cwd}")


async def _resolve(values: dict[str, Json], task: Task, used: set[str]) -> dict[str, Json]:
    try:
        resolved, found = await resolve_references(values, task.secret)
    except NotFoundError as error:
        _fail("secret_missing", error.message, details=dict(error.metadata))
    except InvalidArgumentError as error:
        _fail("invalid_request", error.message)
    used.update(found)
    return dict(resolved)


def _scalar(value: Json, where: str) -> str:
    if isinstance(value, dict) and value.keys() & {"$secret", "$concat"}:
        _fail("invalid_request", f"{where} may not hold a secret: the whole machine can read it; use env or stdin")
    if value is None or isinstance(value, (dict, list)):
        _fail("invalid_request", f"{where} must be a text, a number or a boolean")
    return value if isinstance(value, str) else to_text(value)


def _encoded(text: str, where: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        _fail("invalid_request", f"{where} holds half a character")
    if b"\0" in raw:
        _fail("invalid_request", f"{where} holds a NUL character")
    return raw


def _whole(value: Json, where: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _fail("invalid_request", f"{where} must be a whole number, at least 0")
    return value


def _output(value: Json) -> str:
    if value not in {None, "text", "json", "none"}:
        _fail("invalid_request", "output must be text, json or none")
    return "text" if value is None else str(value)


def _exit_codes(value: Json) -> frozenset[int]:
    if value is None:
        return frozenset({0})
    if not isinstance(value, list) or not value:
        _fail("invalid_request", "exit_codes must be a list of whole numbers")
    return frozenset(_whole(code, "exit_codes", 0) for code in value)


# Where it is executed


class _Place:
    """The files of one attempt: its record, its own folder, its standard input.

    Attributes:
        folder: the working directory, private.
        record: see the module's text. The page cache outlives the daemon, and after a power cut nothing is left to be
            killed, so nothing is forced to the disk.
        stdin: a file in memory; a pipe would have to be fed while the program runs.
        is_over: nothing of the attempt is alive.
    """

    def __init__(self, scratch: Path, mark: str, boot_id: str) -> None:
        self.folder = scratch / mark
        self.record = scratch / "groups" / mark
        self.stdin: int | None = None
        self.is_over = True
        self._boot_id = boot_id
        self._record_fd: int | None = None

    def make(self, stdin: bytes | None) -> None:
        """Make everything.

        Raises:
            OSError: the disk is full, or too many files are open.
        """
        self.folder.mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._record_fd = os.open(self.record, flags, 0o600)
        os.write(self._record_fd, json.dumps({"boot_id": self._boot_id}).encode() + b"\n")
        if stdin is not None:
            self.stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
            with open(self.stdin, "wb", closefd=False) as file:
                file.write(stdin)
            os.lseek(self.stdin, 0, os.SEEK_SET)

    def started(self, pid: int) -> None:
        """Complete the record."""
        found = _stat(pid)
        if self._record_fd is not None and found is not None:
            os.write(self._record_fd, json.dumps({"pid": pid, "start": found.start}).encode() + b"\n")

    def close(self) -> None:
        """Close the files. Idempotent."""
        for fd in (self._record_fd, self.stdin):
            if fd is not None:
                os.close(fd)
        self._record_fd = self.stdin = None

    def remove(self) -> None:
        """Remove everything; while something is alive its record stays for the next daemon."""
        self.close()
        if self.is_over:
            _remove_folder(self.folder)
            self.record.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    for parent, names, _ in os.walk(folder):  # top down: each becomes readable before it is listed
        for path in [Path(parent, name) for name in names]:  # some tools make folders that cannot be written to
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


# The program


def _start(plan: _Plan, place: _Place, signals: ThreadPoolExecutor, used: Collection[str], log: Log) -> _Program:
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
            stream = _Stream(name, read_end, plan.kept_max, used, log)
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
        program = _Program(popen, streams[0], streams[1], signals)
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


def _raise_not_started(error: OSError, plan: _Plan) -> NoReturn:
    program = plan.argv[0].decode()
    if isinstance(error, FileNotFoundError):
        _fail("program_not_found", f"{program}, or the interpreter that its first line names, does not exist")
    if isinstance(error, PermissionError):
        _fail("program_not_found", f"{program} cannot be executed, or the folder cannot be entered: permission denied")
    reason = error.strerror or type(error).__name__
    # Too many arguments, or a script without an interpreter: the same again next time.
    code, again = ("invalid_request", False) if error.errno in {errno.E2BIG, errno.ENOEXEC} else ("start_failed", True)
    _fail(code, f"{program} cannot be started: {reason}", retryable=again)


class _Program:
    """A running program, its session and its streams.

    Attributes:
        exited: the program itself, the leader of the session, has ended. It is not reaped before `end`.
        is_gone: nothing in the session is alive.
        duration_s: from start to exit, in seconds.
    """

    def __init__(self, popen: subprocess.Popen[bytes], out: _Stream, err: _Stream, signals: ThreadPoolExecutor) -> None:
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
            "signal": _signal_name(-code) if code is not None and code < 0 else None,
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
            _signal_session(self._popen.pid, signal.SIGKILL)
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
        deadline = self._loop.time() + _GONE_S
        pause = 0.001
        while await self._signal(signal.SIGKILL):
            if self._loop.time() > deadline:
                _log.warning("shell.not_killed", pid=self._popen.pid)
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S):
                await self.exited.wait()
        # Reaps: from here on the number may belong to somebody else. (A leader that hangs in the kernel is reaped by
        # `subprocess` itself, when a later program is started.)
        return self._popen.poll() is not None

    async def _signal(self, number: int) -> bool:
        return await self._loop.run_in_executor(self._signals, _signal_session, self._popen.pid, number)

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


def _judged(plan: _Plan, program: _Program) -> Outcome:
    code, name = program.returncode, os.fsdecode(plan.argv[0])
    if code is None:
        return Failed("signal", f"{name} ended and cannot be reaped", retryable=True, is_unknown=True)
    if code < 0:
        message = f"{name} was killed by {_signal_name(-code)}"
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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _masked(outcome: Outcome, used: set[str]) -> Outcome:
    if not used:
        return outcome
    if isinstance(outcome, Succeeded):
        return Succeeded(mask(outcome.output, used))
    return replace(outcome, message=mask(outcome.message, used), details=mask(outcome.details, used))


# Its streams


class _Stream:
    """Reads one stream: keeps its beginning and its end, logs its lines, drops the rest.

    What is cut off is cut by a margin more than asked, then masked, then the margin is cut: at the edge there may be a
    part of a secret, which masking cannot find. No form of a secret is longer than the margin.

    Attributes:
        ended: everything was read.
    """

    def __init__(self, name: str, fd: int, kept_max: int, used: Collection[str], log: Log) -> None:
        self.ended = asyncio.Event()
        self._name, self._fd, self._log = name, fd, log
        self._used = frozenset(used)
        self._margin = margin_of(self._used)
        self._kept_max = kept_max
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        self._pending = bytearray()  # the line that is not complete yet
        self._is_skipping = False  # the rest of a line that is too long
        self._lines_left = _LINES_MAX
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        os.set_blocking(fd, False)

    @property
    def is_truncated(self) -> bool:
        """Whether there was more than is kept."""
        return self._total > self._kept_max

    def start(self) -> None:
        """Read whenever there is something."""
        self._loop.add_reader(self._fd, self._read)

    def finish(self) -> None:
        """Read what is there without waiting, log the line that was not completed, close. Idempotent."""
        for _ in range((1 << 20) // _READ_LOGGED):  # the largest pipe
            if self.ended.is_set() or not self._read():
                break
        self._flush()
        self.close()

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def text(self) -> str:
        """The beginning, up to the bytes to keep, masked."""
        text = self._mask(self._head)
        if self._total > len(self._head) and self._margin:
            text = text[: -self._margin]
        return text.encode()[: self._kept_max].decode("utf-8", "ignore")

    def tail(self) -> str:
        """The last bytes, masked."""
        text = self._mask(self._tail[-_EXCERPT_MAX - self._margin :])
        if self._total > _EXCERPT_MAX + self._margin:
            text = text[self._margin :]
        return text.encode()[-_EXCERPT_MAX:].decode("utf-8", "ignore")

    def json(self) -> Json:
        """All of it as a JSON value, not masked.

        Raises:
            InvalidArgumentError: it is no JSON, or more than is kept.
        """
        if self.is_truncated:
            raise InvalidArgumentError(f"stdout has more than {self._kept_max:,} bytes; raise max_output")
        return parse_json(bytes(self._head), where="stdout", size_max=self._kept_max)

    def _mask(self, raw: bytes | bytearray) -> str:
        return str(mask(raw.decode("utf-8", "replace"), self._used))

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _READ_LOGGED if self._lines_left > 0 else _READ_DROPPED)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
            self.ended.set()
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._total += len(data)
        self._head += data[: max(self._kept_max + self._margin - len(self._head), 0)]
        self._tail += data
        if len(self._tail) > 4 * (_EXCERPT_MAX + self._margin) + _READ_DROPPED:
            del self._tail[: -_EXCERPT_MAX - self._margin]
        if self._lines_left > 0:
            self._pending += data
            self._log_lines()

    def _log_lines(self) -> None:
        if self._is_skipping:
            line_end = self._pending.find(b"\n")
            del self._pending[: line_end + 1 if line_end >= 0 else len(self._pending)]
            self._is_skipping = line_end < 0
        end = self._pending.rfind(b"\n")
        if end >= 0:  # all complete lines at once: a secret of several lines is found as a whole
            self._emit(self._mask(self._pending[:end]))
            del self._pending[: end + 1]
        if len(self._pending) > _LINE_MAX + self._margin:
            text = self._mask(self._pending)
            self._emit(text[: -self._margin] if self._margin else text)
            self._note("the rest of this line is not logged")
            self._pending.clear()
            self._is_skipping = True

    def _flush(self) -> None:
        if self._pending and not self._is_skipping and self._lines_left > 0:
            self._emit(self._mask(self._pending))
        self._pending.clear()

    def _emit(self, text: str) -> None:
        for line in text.split("\n"):
            for piece in _pieces(line.removesuffix("\r")):
                if self._lines_left <= 0:
                    return
                self._lines_left -= 1
                self._log(self._name, piece)
                if self._lines_left == 0:
                    self._note("further lines are not logged")

    def _note(self, text: str) -> None:
        self._log("system", f"{self._name}: {text}")


def _pieces(line: str) -> Iterator[str]:
    size = _PIECE_MAX if line.isascii() else _PIECE_MAX // 4
    yield line[:size]
    for at in range(size, len(line), size):
        yield line[at : at + size]


# Processes


@dataclass(frozen=True, slots=True)
class _Stat:
    """From /proc/<pid>/stat. `start` counts clock ticks since boot."""

    is_alive: bool
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie may still have threads: when only the first one has ended.
    is_dead = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return _Stat(is_alive=not is_dead, start=int(fields[19]))


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)  # a system call is 20 times faster than a file in /proc
    except OSError:
        return None


def _members(session: int) -> list[int]:
    """The living processes of a session, zombies left out."""
    return [pid for pid in _pids() if _session_of(pid) == session and (found := _stat(pid)) and found.is_alive]


def _signal_session(session: int, number: int) -> bool:
    """Signal a session; answer whether anything in it was alive.

    The number of a session must not be reused meanwhile, or strangers would be hit. Linux gives a number to nobody else
    while a process, a group or a session bears it. Here it is borne either by the leader, which is a zombie until we
    reap it and is reaped last, or, in `_sweep`, by a living process that is proven to belong to it. The same holds for
    the group of that number. Other groups of the session have no such warrant: their processes are signalled one by
    one, each through a descriptor that was opened before the session was asked for.

    A group that gets SIGKILL cannot escape by forking, the kernel sees to that. The others could, so the caller
    repeats this until nothing is left.
    """
    if number:
        with suppress(ProcessLookupError, PermissionError):  # gone, or all of another user: sudo
            os.killpg(session, number)
    members = _members(session)
    for pid in members if number else []:
        with suppress(OSError):
            if os.getpgid(pid) != session:
                _signal_member(pid, session, number)
    return bool(members)


def _signal_member(pid: int, session: int, number: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # no descriptors: a reuse of the number within this microsecond has to be risked
        os.kill(pid, number)
        return
    try:
        if _session_of(pid) == session:
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


# What an earlier daemon left behind


def _sweep(scratch: Path, boot_id: str) -> int:
    """Kill programs that an earlier daemon left behind, remove their files; answer how many there were."""
    groups = scratch / "groups"
    groups.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch.chmod(0o700)
    killed = 0
    for record in [path for path in groups.iterdir() if _TOKEN.fullmatch(path.name)]:
        sessions = _left_behind(record, boot_id) - {os.getsid(0)}
        if [session for session in sessions if not _killed(session)]:
            _log.warning("shell.not_killed", record=str(record))
            continue
        killed += len(sessions)
        record.unlink(missing_ok=True)
    for folder in [path for path in scratch.iterdir() if _TOKEN.fullmatch(path.name)]:
        if not (groups / folder.name).exists():
            _remove_folder(folder)
    return killed


def _left_behind(record: Path, boot_id: str) -> set[int]:
    """The sessions with living processes that the record proves to be ours."""
    facts = _facts(record)
    if facts.get("boot_id") != boot_id:
        return set()  # nothing survives a reboot
    pid, mark = facts.get("pid"), record.name
    if not isinstance(pid, int):  # killed between start and the second half: whoever bears the mark is it
        return {session for bearer in _pids() if _bears(bearer, mark) and (session := _session_of(bearer))}
    members = _members(pid)
    leader = _stat(pid)
    if leader is not None:
        # Another start time: the number was reused, which can only be when nothing of the session was left.
        return {pid} if members and leader.start == facts.get("start") else set()
    # Without its leader a session has no start time. The mark proves it: one member is enough, as the session is the
    # same for all. "Later than the leader" would not do, that holds for a session that reuses the number, too.
    return {pid} if any(_bears(member, mark) for member in members) else set()


def _facts(record: Path) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    for line in record.read_bytes().splitlines():
        with suppress(ValueError):  # a half-written line
            facts.update(json.loads(line))
    return facts


def _bears(pid: int, mark: str) -> bool:
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
            return False
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _killed(session: int) -> bool:
    deadline = time.monotonic() + _GONE_S
    while _signal_session(session, signal.SIGKILL):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# Waiting


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
