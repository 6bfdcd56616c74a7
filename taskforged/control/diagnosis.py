"""A diagnosis: many small checks, each of which says what it found and how to mend it.

`control/examinations.py` has the checks. They run inside of a daemon, for `SystemService.Diagnose`, and in a process of
their own while no daemon runs (`checkup.py`). None may change anything, and none may end the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import structlog

from taskforged.clock import Clock
from taskforged.config import Config
from taskforged.control.backups import Backups
from taskforged.control.stuck import StuckDetector
from taskforged.control.system import Info
from taskforged.errors import CorruptStoreError, TaskforgeError
from taskforged.host.runner import Runner
from taskforged.store.inspection import Inspection

__all__ = ["Check", "Finding", "Live", "Severity", "Subject", "error", "examine", "ok", "warning"]

_log = structlog.get_logger(__name__)


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and should be looked at."""
    ERROR = "error"
    """It does not work, or is not safe."""


class Finding(NamedTuple):
    """What a check says: what it found, and how to mend it. The name of the check is put in later."""

    severity: Severity
    message: str
    remedy: str = ""
    check: str = ""


def ok(message: str) -> list[Finding]:
    """Answer that all is as it should be."""
    return [Finding(Severity.OK, message)]


def warning(message: str, remedy: str) -> list[Finding]:
    """Answer something that should be looked at."""
    return [Finding(Severity.WARNING, message, remedy)]


def error(message: str, remedy: str) -> list[Finding]:
    """Answer something that is broken."""
    return [Finding(Severity.ERROR, message, remedy)]


class Live(NamedTuple):
    """What only a running daemon has."""

    info: Info
    clock: Clock
    runner: Runner
    backups: Backups
    stuck: StuckDetector


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined.

    Attributes:
        database_s: how long the file may be read.
        live: None while no daemon runs.
        sees_key: whether this process gets the master key as the daemon does.
    """

    config: Config
    inspection: Inspection
    now: int
    database_s: float
    live: Live | None = None
    sees_key: bool = True


Check = Callable[[Subject], Awaitable[Sequence[Finding]]]


async def examine(subject: Subject, checks: Mapping[str, Check]) -> list[Finding]:
    """Answer what all checks find, in their order."""
    found: list[Finding] = []
    for name, check in checks.items():
        found += [one._replace(check=name) for one in await _ask(name, check, subject)]
    return found


async def _ask(name: str, check: Check, subject: Subject) -> Sequence[Finding]:
    try:
        return await check(subject)
    except CorruptStoreError as problem:
        return error(problem.message, "restore a backup: `taskforgectl restore --help`")
    except TaskforgeError as problem:
        return warning(f"this could not be checked: {problem.message}", "try again when the daemon has less to do")
    except Exception as problem:  # noqa: BLE001  the boundary of a check: the others still have their say
        _log.error("diagnosis.bug", check=name, exc_info=problem)
        return warning("this could not be checked", "the log has the details; please report it")
