"""Checks and refusals that several use cases share."""

from __future__ import annotations

from taskforged.errors import AlreadyExistsError, InvalidArgumentError, Violation
from taskforged.store.runs import RunRow

__all__ = ["INPUT_MAX", "REASON_MAX", "REQUEST_ID_MAX", "check_text", "invalid", "used"]

INPUT_MAX = 1 << 20
"""Bytes of a run's input, and of a payload."""

REQUEST_ID_MAX = 128
REASON_MAX = 1000


def check_text(field: str, text: str, limit: int) -> None:
    """Raise InvalidArgumentError unless a text is printable and not too long."""
    if len(text) > limit or not text.isprintable():
        raise invalid(field, f"must have at most {limit:,} printable characters")


def invalid(field: str, message: str) -> InvalidArgumentError:
    """Answer the refusal of a field."""
    return InvalidArgumentError(f"{field} {message}", violations=[Violation(field, message)])


def used(request_id: str, row: RunRow) -> AlreadyExistsError:
    """Answer the refusal of a request id that stands for another request."""
    return AlreadyExistsError(
        f"request_id {request_id!r} was used for another request, which started {row.id}",
        metadata={"request_id": request_id, "run_id": row.id},
    )
