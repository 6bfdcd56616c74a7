"""What stands before and behind every call: authentication, the role it needs, error mapping.

Default deny: a method that is not in `NEEDS` cannot be called, and a test walks the descriptors to see that each is.
grpc.aio answers UNKNOWN with the text of an exception, which may hold anything; so nothing but `to_status` ever
reaches a client. Bugs are logged with their trace and answered as INTERNAL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import Message

from taskforged.control.access import GRANTS, Access, Principal, Role
from taskforged.control.audit import Audit
from taskforged.control.doorman import Doorman
from taskforged.control.namespaces import RequestLimits
from taskforged.correlation import Trace, trace_from
from taskforged.errors import (
    DeadlineError,
    InternalError,
    PermissionDeniedError,
    TaskforgeError,
    UnauthenticatedError,
    UnavailableError,
)
from taskforged.meters import DoorMeters
from taskforged.rpc.auditing import begin, peer
from taskforged.rpc.errors import to_status
from taskforged.rpc.metering import metered_stream, metered_unary

__all__ = ["LONG", "MUTATIONS", "NEEDS", "OPEN", "READS", "WHOLE", "Guard", "caller", "trace_of_call"]

_log = structlog.get_logger(__name__)

_V1 = "/taskforge.v1."

NEEDS: dict[str, Role | None] = {
    f"{_V1}WorkflowService/ApplyWorkflow": Role.OPERATOR,
    f"{_V1}WorkflowService/ValidateWorkflow": Role.VIEWER,
    f"{_V1}WorkflowService/GetWorkflow": Role.VIEWER,
    f"{_V1}WorkflowService/ListWorkflows": Role.VIEWER,
    f"{_V1}WorkflowService/GetWorkflowVersion": Role.VIEWER,
    f"{_V1}WorkflowService/ListWorkflowVersions": Role.VIEWER,
    f"{_V1}WorkflowService/SetWorkflowActive": Role.OPERATOR,
    f"{_V1}WorkflowService/DeleteWorkflow": Role.OPERATOR,
    f"{_V1}WorkflowService/GetWorkflowGraph": Role.VIEWER,
    f"{_V1}RunService/StartRun": Role.TRIGGER,
    f"{_V1}RunService/BatchStartRuns": Role.TRIGGER,
    f"{_V1}RunService/GetRun": Role.VIEWER,
    f"{_V1}RunService/ListRuns": Role.VIEWER,
    f"{_V1}RunService/CancelRun": Role.OPERATOR,
    f"{_V1}RunService/GetRunHistory": Role.VIEWER,
    f"{_V1}RunService/WatchRun": Role.VIEWER,
    f"{_V1}RunService/VerifyRun": Role.VIEWER,
    f"{_V1}RunService/PauseRun": Role.OPERATOR,
    f"{_V1}RunService/ResumeRun": Role.OPERATOR,
    f"{_V1}RunService/RetryRun": Role.OPERATOR,
    f"{_V1}RunService/RerunRun": Role.OPERATOR,
    f"{_V1}RunService/SignalRun": Role.TRIGGER,
    f"{_V1}RunService/ApproveRun": Role.OPERATOR,
    f"{_V1}RunService/RejectRun": Role.OPERATOR,
    f"{_V1}RunService/ResolveRun": Role.OPERATOR,
    f"{_V1}RunService/ExplainRun": Role.VIEWER,
    f"{_V1}RunService/ListRunSteps": Role.VIEWER,
    f"{_V1}RunService/GetRunLogs": Role.VIEWER,
    f"{_V1}RunService/WatchRunLogs": Role.VIEWER,
    f"{_V1}DeadLetterService/ListDeadLetters": Role.VIEWER,
    f"{_V1}DeadLetterService/GetDeadLetter": Role.VIEWER,
    f"{_V1}DeadLetterService/RetryDeadLetters": Role.OPERATOR,
    f"{_V1}DeadLetterService/DiscardDeadLetters": Role.OPERATOR,
    f"{_V1}EventService/GetEvent": Role.VIEWER,
    f"{_V1}EventService/ListEvents": Role.VIEWER,
    f"{_V1}EventService/WatchEvents": Role.VIEWER,
    f"{_V1}EventService/ExplainEvent": Role.VIEWER,
    f"{_V1}EventService/PublishEvent": Role.TRIGGER,
    f"{_V1}EventService/ReplayEvent": Role.OPERATOR,
    f"{_V1}EventService/ReplayEvents": Role.OPERATOR,
    f"{_V1}TriggerService/ListTriggers": Role.VIEWER,
    f"{_V1}TriggerService/GetTrigger": Role.VIEWER,
    f"{_V1}TriggerService/PauseTrigger": Role.OPERATOR,
    f"{_V1}TriggerService/ResumeTrigger": Role.OPERATOR,
    f"{_V1}TriggerService/FireTrigger": Role.TRIGGER,
    f"{_V1}TriggerService/PreviewSchedule": Role.VIEWER,
    f"{_V1}TriggerService/ListScheduleSlots": Role.VIEWER,
    f"{_V1}TriggerService/ExplainSchedule": Role.VIEWER,
    f"{_V1}TriggerService/BackfillSchedule": Role.OPERATOR,
    f"{_V1}QueueService/SetQueue": Role.OPERATOR,
    f"{_V1}QueueService/GetQueue": Role.VIEWER,
    f"{_V1}QueueService/ListQueues": Role.VIEWER,
    f"{_V1}QueueService/DeleteQueue": Role.OPERATOR,
    f"{_V1}NamespaceService/SetNamespace": Role.ADMIN,
    f"{_V1}NamespaceService/GetNamespace": Role.VIEWER,
    f"{_V1}NamespaceService/ListNamespaces": Role.VIEWER,
    f"{_V1}NamespaceService/DeleteNamespace": Role.ADMIN,
    f"{_V1}TokenService/CreateToken": Role.ADMIN,
    f"{_V1}TokenService/ListTokens": Role.ADMIN,
    f"{_V1}TokenService/RotateToken": Role.ADMIN,
    f"{_V1}TokenService/RevokeToken": Role.ADMIN,
    f"{_V1}SecretService/SetSecret": Role.OPERATOR,
    f"{_V1}SecretService/ListSecrets": Role.OPERATOR,
    f"{_V1}SecretService/DeleteSecret": Role.OPERATOR,
    f"{_V1}SecretService/RotateMasterKey": Role.ADMIN,
    f"{_V1}AuditService/ListAuditRecords": Role.ADMIN,
    f"{_V1}StorageService/GetStorage": Role.VIEWER,
    f"{_V1}StorageService/PruneStorage": Role.ADMIN,
    f"{_V1}StorageService/CreateBackup": Role.ADMIN,
    f"{_V1}StorageService/ListBackups": Role.ADMIN,
    f"{_V1}SystemService/GetInfo": None,
    f"{_V1}SystemService/GetStats": Role.VIEWER,
    f"{_V1}SystemService/ListStuckRuns": Role.VIEWER,
    f"{_V1}SystemService/GetConfig": Role.ADMIN,
    f"{_V1}SystemService/Diagnose": Role.ADMIN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": None,
}
"""The role that each method needs; None: any valid token."""

OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List"})
"""Methods for probes, which have no token. They tell whether the daemon serves, and nothing else."""

WHOLE = frozenset(
    f"{_V1}{name}"
    for name in (
        "WorkflowService/ApplyWorkflow",
        "WorkflowService/SetWorkflowActive",
        "WorkflowService/DeleteWorkflow",
        "TriggerService/PauseTrigger",
        "TriggerService/ResumeTrigger",
        "QueueService/SetQueue",
        "QueueService/DeleteQueue",
        "NamespaceService/SetNamespace",
        "NamespaceService/DeleteNamespace",
        "TokenService/CreateToken",
        "TokenService/RotateToken",
        "TokenService/RevokeToken",
        "SecretService/SetSecret",
        "SecretService/DeleteSecret",
        "SecretService/RotateMasterKey",
    )
)
"""Mutations that change memory after their commit. A caller that goes away between the two must not leave, say, a
revoked token alive, so they run to their end in a task of their own. Runs are created and steered safely without."""

READS = frozenset(
    f"{_V1}{name}"
    for name in (
        "TokenService/ListTokens",
        "SecretService/ListSecrets",
        "AuditService/ListAuditRecords",
        "StorageService/ListBackups",
        "SystemService/GetConfig",
        "SystemService/Diagnose",
    )
)
"""What changes nothing though it is not for viewers."""

MUTATIONS = frozenset(name for name, need in NEEDS.items() if need not in {None, Role.VIEWER}) - READS
"""What the audit records: whatever is not known to be a read."""

DEADLINE_S = 30.0
"""How long a unary call may take whose caller sets no deadline, besides the time that it asks to wait."""

_TOO_LONG = f"it took longer than {DEADLINE_S:g} s; set a deadline to wait longer"

WAITING = frozenset({f"{_V1}RunService/StartRun"})
"""Unary calls that may wait for minutes: they end with their token, as streams do."""

_UNATTENDED = contextlib.nullcontext()

LONG = frozenset(
    f"{_V1}{name}" for name in ("StorageService/CreateBackup", "StorageService/PruneStorage", "SystemService/Diagnose")
)
"""Unary calls that may take long and end by themselves: no deadline but the caller's. One that goes away ends them."""

_UNCOUNTED = tuple(
    f"{_V1}{name}/"
    for name in (
        "SystemService",
        "StorageService",
        "TokenService",
        "NamespaceService",
        "QueueService",
        "AuditService",
    )
)
"""Services with which whoever keeps all namespaces mends one, however many requests it makes."""

_caller: ContextVar[Principal] = ContextVar("caller")

Handler = Any
"""grpc's RpcMethodHandler, which its stubs leave untyped."""

Unary: TypeAlias = Callable[[Any, Any], Awaitable[Message]]
Work: TypeAlias = Callable[[Principal, Any, Any], Awaitable[Message]]


def caller() -> Principal:
    """Answer who makes the present call."""
    return _caller.get()


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic only in its stubs
    """The one interceptor. Wrapped handlers are made once per method."""

    def __init__(
        self, access: Access, requests: RequestLimits, audit: Audit, doorman: Doorman, meters: DoorMeters
    ) -> None:
        self._access = access
        self._requests = requests
        self._audit = audit
        self._doorman = doorman
        self._meters = meters
        self._wrapped: dict[str, Handler] = {}
        self.draining = False

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Answer the guarded handler of a method, or None for a method that does not exist."""
        method: str = details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = handler if method in OPEN else self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        make: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {
            (False, False): (grpc.unary_unary_rpc_method_handler, self._unary, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, self._stream, handler.unary_stream),
            (True, True): (grpc.stream_stream_rpc_method_handler, self._stream, handler.stream_stream),
        }
        factory, around, inner = make[handler.request_streaming, handler.response_streaming]
        return factory(
            around(method, inner),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, inner: Unary) -> Unary:
        work = self._audited(method, inner) if method in MUTATIONS else self._allowed(method, inner)
        is_whole = method in WHOLE

        async def call(request: Message, context: Any) -> Message:
            wait_s = _asked_to_wait_s(method, request)
            limit = asyncio.timeout(_time_to_take(method, wait_s, context))
            try:
                principal = self._authenticate(context)
                async with limit:
                    if is_whole:
                        return await asyncio.shield(asyncio.ensure_future(work(principal, request, context)))
                    async with self._access.attend(principal) if wait_s else _UNATTENDED:
                        return await work(principal, request, context)
            except TaskforgeError as error:
                await _abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the boundary: a bug must not leak its text
                late = isinstance(error, TimeoutError) and limit.expired()
                await _abort(context, DeadlineError(_TOO_LONG) if late else _bug(method, error))
            raise AssertionError("abort returns never")

        return metered_unary(method, call, self._meters)

    def _allowed(self, method: str, inner: Unary) -> Work:
        async def work(principal: Principal, request: Message, context: Any) -> Message:
            self._authorise(method, principal)
            self._count(method, principal, request)
            return await inner(request, context)

        return work

    def _audited(self, method: str, inner: Unary) -> Work:
        """Leave a record of each call, also of one that is denied or fails."""
        allowed = self._allowed(method, inner)

        async def work(principal: Principal, request: Message, context: Any) -> Message:
            entry = begin(self._audit, method, principal, request, peer(context))
            return await self._audit.over(entry, allowed(principal, request, context))

        return work

    def _stream(self, method: str, inner: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        async def call(request: Any, context: Any) -> None:
            try:
                principal = self._authenticate(context)
                self._authorise(method, principal)
                async with self._access.attend(principal), contextlib.aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except TaskforgeError as error:
                await _abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the boundary: a bug must not leak its text
                await _abort(context, _bug(method, error))

        return metered_stream(method, call, self._meters)

    def _authenticate(self, context: Any) -> Principal:
        if self.draining:
            raise UnavailableError("the daemon is stopping; ask again in a moment")
        try:
            principal = self._access.authenticate(_credential(context))
        except UnauthenticatedError:
            self._doorman.failed(peer(context))
            raise
        _caller.set(principal)
        return principal

    def _authorise(self, method: str, principal: Principal) -> None:
        if method not in NEEDS:
            raise PermissionDeniedError(f"{method} cannot be called")
        need = NEEDS[method]
        if need is not None and need not in GRANTS[principal.role]:
            raise PermissionDeniedError(
                f"this needs the role {need.value}; the token {principal.name!r} has {principal.role.value}",
                metadata={"needs": need.value, "has": principal.role.value},
            )

    def _count(self, method: str, principal: Principal, request: Message) -> None:
        """Count a call for the namespace that its token is confined to, or else that it names."""
        if self._requests.is_empty:
            return
        namespace_no = principal.namespace_no
        if namespace_no is None and not method.startswith(_UNCOUNTED):
            name = getattr(request, "namespace", None)
            namespace_no = None if name is None else self._access.namespace_no(name or "default")
        if namespace_no is not None:
            self._requests.take(namespace_no)


def _asked_to_wait_s(method: str, request: Any) -> float:
    """Answer how long a caller wants to wait for what its call begins."""
    return request.wait.ToMilliseconds() / 1000 if method in WAITING and request.HasField("wait") else 0.0


def _time_to_take(method: str, wait_s: float, context: Any) -> float | None:
    if method in LONG or context.time_remaining() is not None:
        return None
    return DEADLINE_S + max(wait_s, 0.0)


def trace_of_call(context: Any) -> Trace:
    """Answer what the metadata of a call says of its cause."""
    metadata = context.invocation_metadata() or ()
    return trace_from({key: value for key, value in metadata if isinstance(value, str)})


def _credential(context: Any) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return ""


def _bug(method: str, error: BaseException) -> InternalError:
    _log.error("rpc.bug", method=method, exc_info=error)
    return InternalError("an internal error; the daemon's log has the details", metadata={"method": method})


async def _abort(context: Any, error: TaskforgeError) -> None:
    status = to_status(error)
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError as aborted:
        context.add_done_callback(partial(_let_go, (aborted, error)))
        raise


def _let_go(errors: tuple[BaseException, ...], _: Any) -> None:
    """Drop what the calls on the way to an error had in hand.

    grpc keeps what ended a call with the call, and its trace leads back there: a cycle, in which a request of
    megabytes would stay until the collector comes by, which it seldom does.
    """
    for error in errors:
        error.__traceback__ = error.__context__ = None
