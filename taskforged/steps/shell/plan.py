"""What is executed, and whether it may be.

**What may be executed** is the operator's decision: nothing at first, then the programs in `[shell] allow`. An entry
names a directory entry. Paths are compared after the symbolic links, `.` and `..` in the *folder* are resolved, on both
sides, and what was compared is what is executed: `/usr/bin/../bin/sh` is `/usr/bin/sh`, and so is `/bin/sh` where
`/bin` leads to `/usr/bin`. The last part is not resolved: an entry that is a link allows whatever it leads to, and a
link elsewhere that leads to an allowed program is not allowed. An allowed program gets any arguments, and any variables
but those that make the loader or bash execute something else; allowing an interpreter therefore allows everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.jsonvalue import to_text
from taskforged.steps.base import Task
from taskforged.steps.failure import fail
from taskforged.steps.secrets import resolve_references
from taskforged.steps.shell.place import MARK

__all__ = ["Plan", "Planner"]

_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_OUTPUT_DEFAULT = 1 << 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOADER = re.compile(r"LD_.*|GCONV_PATH|BASH_ENV")
"""Variables by which an allowed program executes one that is not (the first of those that sudo removes)."""


@dataclass(frozen=True, slots=True)
class Plan:
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


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans, within what the operator allows.

    Attributes:
        allow: absolute paths of the programs that may be executed.
        unsafe: any program may be executed.
        output_bytes_max: upper bound of a task's `max_output`.
    """

    allow: tuple[str, ...]
    unsafe: bool
    output_bytes_max: int

    async def plan(self, task: Task, mark: str, used: set[str]) -> Plan:
        """Make the plan of an attempt, and add the secrets in it to `used`: a failure after that is masked, too.

        Raises:
            FailedError: something is not allowed, not there, or not well-formed.
        """
        config = task.config
        if not isinstance(config, dict):
            fail("invalid_request", "the configuration must be an object")
        command = config.get("command")
        if not isinstance(command, list) or not command or not isinstance(command[0], str):
            fail("invalid_request", "command must be a list: the program, then its arguments")
        program = await asyncio.to_thread(self._program, command[0])
        arguments = [_encoded(_scalar(part, "an argument"), "an argument") for part in command[1:]]
        resolved = await _resolve({key: config.get(key) for key in ("env", "stdin")}, task, used)
        stdin, cwd = resolved["stdin"], config.get("cwd")
        if cwd is not None:
            await asyncio.to_thread(_check_folder, cwd)
        return Plan(
            argv=[_encoded(program, "the program"), *arguments],
            environment=self._environment(task, mark, resolved["env"]),
            cwd=cwd,
            stdin=None if stdin is None else _scalar(stdin, "stdin").encode("utf-8", "replace"),
            output=_output(config.get("output")),
            exit_codes=_exit_codes(config.get("exit_codes")),
            kept_max=min(_whole(config.get("max_output"), "max_output", _OUTPUT_DEFAULT), self.output_bytes_max),
        )

    def _program(self, name: str) -> str:
        """The path to execute; see the module's text for what is compared."""
        if not self.unsafe and not self.allow:
            fail("shell_not_allowed", f"shell steps are off; {_how_to_allow(name)}")
        if "\0" in name or not name or ("/" in name and not name.startswith("/")):
            fail("invalid_request", "the program must be an absolute path, or a name without a slash")
        path = name if name.startswith("/") else _found(name)
        folder, last = os.path.split(path)
        if last in {"", ".", ".."}:
            fail("invalid_request", "the program must be a file")
        path = _entry(folder, last)
        if not self.unsafe and path not in {_entry(*os.path.split(allowed)) for allowed in self.allow}:
            fail("shell_not_allowed", f"{path} may not be executed; {_how_to_allow(path)}")
        if not os.path.isfile(path):  # noqa: PTH113  texts all along: a Path would drop what it thinks superfluous
            fail("program_not_found", f"there is no program {path}")
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
            MARK: mark,
        }
        return {name.encode(): _encoded(value, f"the variable {name}") for name, value in variables.items()}

    def _declared(self, declared: Json) -> Iterator[tuple[str, str]]:
        if declared is None:
            return
        if not isinstance(declared, dict):
            fail("invalid_request", "env must be an object")
        for name, value in declared.items():
            if not _NAME.fullmatch(name):
                fail("invalid_request", f"{name[:80]!r} is no name for a variable")
            if name.startswith("TASKFORGE_"):
                fail("invalid_request", f"{name[:80]}: variables that start with TASKFORGE_ are set by Taskforge")
            if not self.unsafe and _LOADER.fullmatch(name):
                why = "it makes allowed programs execute others"
                fail("shell_not_allowed", f"the variable {name[:80]} needs `unsafe = true` below [shell]: {why}")
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
            break
    else:
        fail("program_not_found", f"there is no program {name[:200]} in {':'.join(_PATH)}")
    return path


def _check_folder(cwd: Json) -> None:
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        fail("invalid_request", "cwd must be an absolute path")
    if not os.path.isdir(cwd):  # noqa: PTH112
        fail("invalid_request", f"cwd: there is no folder {cwd}")


async def _resolve(values: dict[str, Json], task: Task, used: set[str]) -> dict[str, Json]:
    try:
        resolved, found = await resolve_references(values, task.secret)
    except NotFoundError as error:
        fail("secret_missing", error.message, details=dict(error.metadata))
    except InvalidArgumentError as error:
        fail("invalid_request", error.message)
    used.update(found)
    return dict(resolved)


def _scalar(value: Json, where: str) -> str:
    if isinstance(value, dict) and value.keys() & {"$secret", "$concat"}:
        fail("invalid_request", f"{where} may not hold a secret: the whole machine can read it; use env or stdin")
    if value is None or isinstance(value, (dict, list)):
        fail("invalid_request", f"{where} must be a text, a number or a boolean")
    return value if isinstance(value, str) else to_text(value)


def _encoded(text: str, where: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        fail("invalid_request", f"{where} holds half a character")
    if b"\0" in raw:
        fail("invalid_request", f"{where} holds a NUL character")
    return raw


def _whole(value: Json, where: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        fail("invalid_request", f"{where} must be a whole number, at least 0")
    return value


def _output(value: Json) -> str:
    if value not in {None, "text", "json", "none"}:
        fail("invalid_request", "output must be text, json or none")
    return "text" if value is None else str(value)


def _exit_codes(value: Json) -> frozenset[int]:
    if value is None:
        return frozenset({0})
    if not isinstance(value, list) or not value:
        fail("invalid_request", "exit_codes must be a list of whole numbers")
    return frozenset(_whole(code, "exit_codes", 0) for code in value)
