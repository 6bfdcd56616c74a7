"""The error classes of the daemon. Each says what the caller should do; `rpc.errors` maps them to gRPC once.

`reason` is stable, upper snake case and meant for programs; `metadata` repeats in parts what the message mentions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "CANONICAL",
    "AlreadyExistsError",
    "ConflictError",
    "CorruptStoreError",
    "DeadlineError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "TaskforgeError",
    "UnauthenticatedError",
    "UnavailableError",
    "Violation",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of an argument: where it is and how to mend it. `line` and `column` count from 1, 0 is unknown."""

    path: str
    message: str
    line: int = 0
    column: int = 0


class TaskforgeError(Exception):
    """Base of all errors that reach a caller on purpose."""

    reason = "ERROR"

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})


class InvalidArgumentError(TaskforgeError):
    """The request can never succeed as it is: mend it. `violations` has one entry per fault."""

    reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations)


class NotFoundError(TaskforgeError):
    """What was named does not exist, or not for this caller."""

    reason = "NOT_FOUND"


class AlreadyExistsError(TaskforgeError):
    """The name or request id is taken by something else."""

    reason = "ALREADY_EXISTS"


class FailedPreconditionError(TaskforgeError):
    """The resource is in a state that does not allow this: change the state first, do not just retry."""

    reason = "FAILED_PRECONDITION"


class OutOfRangeError(TaskforgeError):
    """What was asked for lies before what is kept: begin where the metadata says."""

    reason = "OUT_OF_RANGE"


class ConflictError(TaskforgeError):
    """Somebody else changed the resource meanwhile: read it again and retry."""

    reason = "CONFLICT"


class UnauthenticatedError(TaskforgeError):
    """No valid token: get one."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(TaskforgeError):
    """The token is valid and may not do this: use another one."""

    reason = "PERMISSION_DENIED"


class ResourceExhaustedError(TaskforgeError):
    """A limit is reached: send less, or wait `retry_after_s` where it is given."""

    reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_s = retry_after_s


class UnavailableError(TaskforgeError):
    """The daemon cannot do this right now: retry the same request later."""

    reason = "UNAVAILABLE"


class DeadlineError(TaskforgeError):
    """It took longer than the caller, or the daemon for a caller without a deadline, would wait."""

    reason = "DEADLINE_EXCEEDED"


class CorruptStoreError(TaskforgeError):
    """The database is damaged, newer than this program, or not ours: a person must look at it."""

    reason = "CORRUPT_STORE"


class InternalError(TaskforgeError):
    """A bug of the daemon; the log has the details under the same request."""

    reason = "INTERNAL"


CANONICAL: dict[type[TaskforgeError], str] = {
    InvalidArgumentError: "INVALID_ARGUMENT",
    NotFoundError: "NOT_FOUND",
    AlreadyExistsError: "ALREADY_EXISTS",
    FailedPreconditionError: "FAILED_PRECONDITION",
    ConflictError: "ABORTED",
    OutOfRangeError: "OUT_OF_RANGE",
    UnauthenticatedError: "UNAUTHENTICATED",
    PermissionDeniedError: "PERMISSION_DENIED",
    ResourceExhaustedError: "RESOURCE_EXHAUSTED",
    UnavailableError: "UNAVAILABLE",
    DeadlineError: "DEADLINE_EXCEEDED",
    CorruptStoreError: "DATA_LOSS",
    InternalError: "INTERNAL",
}
"""The canonical code of each error class: what clients are answered, and what the audit records."""
