"""Databases on which no daemon works, by way of the daemon's program."""

from __future__ import annotations

from typing import Any

from taskforgectl.errors import EXIT_CONFLICT, EXIT_NOT_FOUND, CliError
from taskforgectl.options import Settings
from taskforgectl.program import run_program

__all__ = ["key_sentence", "rescue", "size"]

_LIMIT_S = 24 * 3600.0
"""A database of hundreds of gigabytes is read whole."""

_CODES = {"HOME_IN_USE": EXIT_CONFLICT, "NOT_FOUND": EXIT_NOT_FOUND}
_HINTS = {"HOME_IN_USE": "stop the daemon first: `taskforgectl down`"}


def rescue(settings: Settings, verb: str, *arguments: str) -> dict[str, Any]:
    """Answer what `python -m taskforged.rescue` has done.

    Raises:
        CliError: it could not.
    """
    answer = run_program(
        "rescue", ["--home", str(settings.home), verb, *arguments], what=f"to {verb} the database", limit_s=_LIMIT_S
    )
    if not answer.pop("ok", False):
        reason = str(answer.get("reason", ""))
        raise CliError(str(answer.get("message")), hint=_HINTS.get(reason, ""), code=_CODES.get(reason, 1))
    return answer


def key_sentence(key: str) -> str:
    """Say whether the master key of the home opens the secrets of a backup."""
    return {
        "fits": "the master key of this home opens its secrets",
        "other": "ANOTHER master key is needed for its secrets: put back the one that was in force then",
        "missing": "the master key is MISSING, and without it its secrets cannot be read",
        "none needed": "it holds no secrets",
    }.get(key, key)


def size(count: int) -> str:
    """Write a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
