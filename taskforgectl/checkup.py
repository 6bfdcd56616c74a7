"""The daemon's own view of a home on which none runs, from its program: this one imports nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from taskforgectl.errors import CliError

__all__ = ["checkup"]


def checkup(home: Path, *arguments: str, limit_s: float, with_variables: bool = True) -> dict[str, Any]:
    """Answer what `python -m taskforged.checkup` says.

    Args:
        home: the data folder.
        arguments: further ones of the program.
        limit_s: how long it may take.
        with_variables: whether settings in our environment count.

    Raises:
        CliError: it is not there, takes too long, or answers something else.
    """
    command = [sys.executable, "-m", "taskforged.checkup", "--home", str(home), *arguments]
    # Not the working folder first: it may hold other people's modules.
    environment = {n: v for n, v in os.environ.items() if with_variables or not n.startswith("TASKFORGE_")}
    environment["PYTHONSAFEPATH"] = "1"
    try:
        done = subprocess.run(  # noqa: S603  our own program, no shell
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise CliError(f"the check of {home} did not end within {limit_s:g} s", hint="allow more time") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        hint = "the daemon's package must be installed beside this program: `taskforgectl version` shows its version"
        raise CliError(f"the check failed (exit code {done.returncode}): {last or 'it said nothing'}", hint=hint)
    return answer
