"""How a command fails: a message, a hint, an exit code. Knows gRPC's codes by name, so that `--help` needs no gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "BROKEN",
    "EXIT_CODES",
    "EXIT_CONFLICT",
    "EXIT_DENIED",
    "EXIT_EXHAUSTED",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_NOT_FOUND",
    "EXIT_OF_STATUS",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "EXIT_VIOLATED",
    "CliError",
    "NotRunningError",
    "RemoteError",
    "Violation",
    "exit_code",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_DENIED = 4
EXIT_UNREACHABLE = 5
EXIT_CONFLICT = 6
EXIT_EXHAUSTED = 7
EXIT_VIOLATED = 8
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    EXIT_FAILED: "failed; also: the run that was waited for did not succeed, a history is broken, no trigger matched",
    EXIT_USAGE: "wrong usage, or the daemon refused the input",
    EXIT_NOT_FOUND: "not found",
    EXIT_DENIED: "no valid token, or the token may not do this",
    EXIT_UNREACHABLE: "the daemon does not run, is not to be reached or does not answer in time",
    EXIT_CONFLICT: "conflict: exists already, changed meanwhile, or not in a state that allows it",
    EXIT_EXHAUSTED: "a limit is reached: too much at once, or a namespace's limit",
    EXIT_VIOLATED: "a torture has found a promise that was broken",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C",
    141: "the reader of the output went away",
}
"""What each exit code means."""

EXIT_OF_STATUS: Mapping[str, int] = {
    "INVALID_ARGUMENT": EXIT_USAGE,
    "NOT_FOUND": EXIT_NOT_FOUND,
    "UNAUTHENTICATED": EXIT_DENIED,
    "PERMISSION_DENIED": EXIT_DENIED,
    "UNAVAILABLE": EXIT_UNREACHABLE,
    "DEADLINE_EXCEEDED": EXIT_UNREACHABLE,
    "ALREADY_EXISTS": EXIT_CONFLICT,
    "ABORTED": EXIT_CONFLICT,
    "FAILED_PRECONDITION": EXIT_CONFLICT,
    "RESOURCE_EXHAUSTED": EXIT_EXHAUSTED,
}
"""Exit codes by status. Scripts rely on them, so they are only ever added to."""

BROKEN = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"})
"""How a call ends whose daemon is killed, stops or hangs. Anything else is an answer."""

_HINTS: Mapping[str, str] = {
    "UNAUTHENTICATED": "give a token with --token or TASKFORGE_TOKEN; the administrator's is in HOME/token",
    "PERMISSION_DENIED": "use a token with a larger role: `taskforgectl token create NAME --role ROLE`",
    "UNAVAILABLE": "is the daemon running? `taskforgectl status` tells, `taskforgectl up` starts it",
    "DEADLINE_EXCEEDED": "allow more time with --timeout SECONDS",
    "RESOURCE_EXHAUSTED": "a limit is reached: try again later, or see `taskforgectl namespace show NAME`",
    "INTERNAL": "the daemon's log has the details: HOME/taskforged.log",
    "UNIMPLEMENTED": "the daemon is older than this program: `taskforgectl version` shows both",
}


_ROOM = frozenset({"free_bytes", "budget_bytes"})
"""What is said with a refusal for want of room."""

_FULL = "`taskforgectl prune --dry-run` tells what could go, `taskforgectl doctor` what there is"


def exit_code(status: str) -> int:
    """Answer the exit code of a status name; what the table does not know has failed."""
    return EXIT_OF_STATUS.get(status, EXIT_FAILED)


class CliError(Exception):
    """The command cannot go on. `message` says why, `hint` what to do about it."""

    def __init__(self, message: str, *, hint: str = "", code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class NotRunningError(CliError):
    """No daemon runs on the home."""

    def __init__(self, home: object) -> None:
        super().__init__(
            f"the daemon is not running on {home}", hint="start it with `taskforgectl up`", code=EXIT_UNREACHABLE
        )


class Violation(NamedTuple):
    """One fault of a request: where it is and what is wrong. Line and column count from 1, 0 is unknown."""

    path: str
    message: str
    line: int = 0
    column: int = 0

    def describe(self, source: str = "") -> str:
        """Answer one line, in the form that editors link to the place: `FILE:L:C: path: message`."""
        place = f"{source}:{self.line}:{self.column}" if source and self.line else source
        return ": ".join(part for part in (place, self.path, self.message) if part)


class RemoteError(CliError):
    """The daemon refused, or could not be reached.

    Attributes:
        status: name of the gRPC status.
        violations: faults of the request.
        metadata: what else is said, such as which thing does not exist.
    """

    def __init__(
        self,
        status: str,
        message: str,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        is_full = status == "RESOURCE_EXHAUSTED" and not _ROOM.isdisjoint(metadata)
        super().__init__(message, hint=_FULL if is_full else _HINTS.get(status, ""), code=exit_code(status))
        self.status = status
        self.violations = tuple(violations)
        self.metadata = metadata
