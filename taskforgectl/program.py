"""Programs of the daemon's package, run for what a client may not do itself: this one imports nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from taskforgectl.errors import CliError

__all__ = ["run_program"]


def run_program(
    module: str, arguments: Sequence[str], *, what: str, limit_s: float, with_variables: bool = True
) -> dict[str, Any]:
    """Answer the JSON object that `python -m taskforged.<module>` prints, whatever its exit code.

    Args:
        module: of the package `taskforged`.
        arguments: for it.
        what: is being done, for messages: `the check of /home`.
        limit_s: how long it may take.
        with_variables: False: settings in this shell's variables do not count.

    Raises:
        CliError: it is not there, takes too long, or answers something else.
    """
    command = [sys.executable, "-m", f"taskforged.{module}", *arguments]
    # Not the working folder first: it may hold other people's modules.
    environment = {n: v for n, v in os.environ.items() if with_variables or not n.startswith("TASKFORGE_")}
    environment["PYTHONSAFEPATH"] = "1"
    try:
        done = subprocess.run(  # noqa: S603  our own program, no shell
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise CliError(f"{what} did not end within {limit_s:g} s", hint="allow more time") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        hint = "the daemon's package must be installed beside this program: `taskforgectl version` shows its version"
        raise CliError(f"{what} failed (exit code {done.returncode}): {last or 'it said nothing'}", hint=hint)
    return answer
