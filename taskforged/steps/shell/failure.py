"""How an attempt ends that comes to no result: an exception that carries the outcome, and what it says."""

from __future__ import annotations

import errno
from typing import NoReturn

from taskforged.engine.model import Json
from taskforged.steps.base import Failed

__all__ = ["FailedError", "fail", "fail_start"]


class FailedError(Exception):
    """Ends an attempt from wherever it is."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


def fail(code: str, message: str, *, retryable: bool = False, details: Json = None) -> NoReturn:
    """End the attempt."""
    raise FailedError(Failed(code, message, retryable, details=details)) from None


def fail_start(program: str, error: OSError) -> NoReturn:
    """End the attempt of a program that the system did not start."""
    if isinstance(error, FileNotFoundError):
        fail("program_not_found", f"{program}, or the interpreter that its first line names, does not exist")
    if isinstance(error, PermissionError):
        fail("program_not_found", f"{program} cannot be executed, or the folder cannot be entered: permission denied")
    reason = error.strerror or type(error).__name__
    # Too many arguments, or a script without an interpreter: the same again next time.
    code, again = ("invalid_request", False) if error.errno in {errno.E2BIG, errno.ENOEXEC} else ("start_failed", True)
    fail(code, f"{program} cannot be started: {reason}", retryable=again)
