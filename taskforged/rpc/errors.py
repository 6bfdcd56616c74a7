"""Domain errors to gRPC statuses with `google.rpc` details: one table, used by one interceptor."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from taskforged.errors import CANONICAL, InvalidArgumentError, ResourceExhaustedError, TaskforgeError, Violation

__all__ = ["CODES", "to_status"]

CODES: dict[type[TaskforgeError], grpc.StatusCode] = {cls: grpc.StatusCode[name] for cls, name in CANONICAL.items()}

_VIOLATIONS_MAX = 100
"""Violations in one answer: gRPC metadata is limited to some 8 KiB by default, so texts are cut, too."""

_DETAILS_BYTES_MAX = 6000
_METADATA_TEXT_MAX = 256


def to_status(error: TaskforgeError) -> grpc.Status:
    """Answer the status of an error: its code, its message, one ErrorInfo and what else helps the caller."""
    code = next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    status = status_pb2.Status(code=code.value[0], message=error.message[:2000])
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _details(error: TaskforgeError) -> list[message.Message]:
    metadata = {key: value[:_METADATA_TEXT_MAX] for key, value in error.metadata.items()}
    found: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain="taskforge", metadata=metadata)
    ]
    if isinstance(error, InvalidArgumentError) and error.violations:
        found.append(_bad_request(error.violations))
    if isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
        seconds = int(error.retry_after_s)
        nanos = round((error.retry_after_s - seconds) * 1e9)
        delay = duration_pb2.Duration(seconds=seconds, nanos=nanos)
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return found


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for count, violation in enumerate(violations):
        if count >= _VIOLATIONS_MAX or request.ByteSize() > _DETAILS_BYTES_MAX:
            more = f"and {len(violations) - count} more problems"
            request.field_violations.add(field="", description=more)
            break
        request.field_violations.add(field=violation.path[:200], description=_describe(violation))
    return request


def _describe(violation: Violation) -> str:
    place = f"line {violation.line}, column {violation.column}: " if violation.line else ""
    return f"{place}{violation.message}"[:500]
