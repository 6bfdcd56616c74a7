"""The daemon's programs, as processes: this package imports nothing of the daemon's, and asks it in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from taskforgectl.errors import CliError

__all__ = ["ask_program", "run_program"]


def ask_program(
    command: Sequence[str],
    *,
    what: str,
    limit_s: float,
    data: bytes = b"",
    environment: Sequence[tuple[str, str]] | None = None,
    late_hint: str = "",
    apart: bool = False,
) -> dict[str, Any]:
    """Answer the JSON object that a program prints.

    Args:
        command: the program and its arguments.
        what: what it does, for messages, for example `the trial`.
        limit_s: how long it may take.
        data: what it reads.
        environment: its variables; None: ours.
        late_hint: what to do when it takes too long.
        apart: Ctrl-C is not for it.

    Raises:
        CliError: it is not there, takes too long, or answers something else.
    """
    # Not the working folder first: it may hold other people's modules.
    variables = {**dict(os.environ if environment is None else environment), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(  # noqa: S603  our own program, no shell
            command,
            input=data,
            env=variables,
            capture_output=True,
            timeout=limit_s,
            check=False,
            start_new_session=apart,
        )
    except subprocess.TimeoutExpired:
        raise CliError(f"{what} did not end within {limit_s:g} s", hint=late_hint) from None
    try:
        answer = json.loads(done.stdout)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        hint = "the daemon's package must be installed beside this program: `taskforgectl version` shows its version"
        raise CliError(f"{what} failed (exit code {done.returncode}): {last or 'it said nothing'}", hint=hint)
    return answer


def run_program(
    module: str,
    arguments: Sequence[str],
    *,
    what: str,
    limit_s: float,
    with_variables: bool = True,
    apart: bool = False,
) -> dict[str, Any]:
    """Answer the JSON object that `python -m taskforged.<module>` prints, whatever its exit code.

    Args:
        module: of the package `taskforged`.
        arguments: for it.
        what: is being done, for messages: `the check of /home`.
        limit_s: how long it may take.
        with_variables: False: settings in this shell's variables do not count.
        apart: Ctrl-C is not for it.

    Raises:
        CliError: see `ask_program`.
    """
    command = [sys.executable, "-m", f"taskforged.{module}", *arguments]
    variables = [(n, v) for n, v in os.environ.items() if with_variables or not n.startswith("TASKFORGE_")]
    return ask_program(
        command, what=what, limit_s=limit_s, environment=variables, late_hint="allow more time", apart=apart
    )
