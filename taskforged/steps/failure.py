"""How an attempt ends that comes to no result: an exception that carries the outcome."""

from __future__ import annotations

from typing import NoReturn

from taskforged.engine.model import Json
from taskforged.steps.base import Failed

__all__ = ["FailedError", "fail"]


class FailedError(Exception):
    """Ends an attempt from wherever it is."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


def fail(
    code: str, message: str, *, retryable: bool = False, details: Json = None, is_unknown: bool = False
) -> NoReturn:
    """End the attempt."""
    raise FailedError(Failed(code, message, retryable, details=details, is_unknown=is_unknown)) from None
