"""The daemon's own view of a home on which none runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from taskforgectl.program import ask_program

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
    environment = [pair for pair in os.environ.items() if with_variables or not pair[0].startswith("TASKFORGE_")]
    command = [sys.executable, "-m", "taskforged.checkup", "--home", str(home), *arguments]
    return ask_program(command, what=f"the check of {home}", limit_s=limit_s, environment=environment)
