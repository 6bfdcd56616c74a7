"""What a check gets and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskforgectl.errors import CliError
from taskforgectl.home import Home
from taskforgectl.options import Settings

__all__ = ["ERROR", "OK", "WARNING", "Check", "Finding", "Ground", "error", "ok", "warning"]

OK = "OK"
WARNING = "WARNING"
ERROR = "ERROR"


class Finding(NamedTuple):
    """What a check has found, and how to mend it."""

    severity: str
    message: str
    remedy: str = ""


def ok(message: str) -> Finding:
    """Answer that all is as it should be."""
    return Finding(OK, message)


def warning(message: str, remedy: str) -> Finding:
    """Answer something that should be looked at."""
    return Finding(WARNING, message, remedy)


def error(message: str, remedy: str) -> Finding:
    """Answer something that does not work, or is not safe."""
    return Finding(ERROR, message, remedy)


@dataclass(slots=True)
class Ground:
    """What is examined.

    Attributes:
        settings: the global options.
        home: the data folder.
        info: what a running daemon says about itself; None: none answers.
        locked_out: why a daemon that may run cannot be asked; None: it can.
        config: settings in force by `section.key`, where they could be read.
    """

    settings: Settings
    home: Home
    info: Mapping[str, Any] | None = None
    locked_out: CliError | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[Ground], Iterable[Finding]]
