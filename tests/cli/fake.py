"""A daemon that answers what a test wants: for commands, apart from what a daemon makes of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from taskforgectl import __main__ as program

SERVICES = (
    "run_service",
    "dead_letter_service",
    "event_service",
    "queue_service",
    "namespace_service",
    "trigger_service",
    "workflow_service",
    "secret_service",
    "token_service",
    "system_service",
    "audit_service",
    "storage_service",
)


def _methods() -> Mapping[str, Any]:
    found = {}
    for name in SERVICES:
        module = importlib.import_module(f"taskforge.v1.{name}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = getattr(module, method.input_type.name)
                found[f"/{service.full_name}/{method.name}"] = (method.name, request, method.server_streaming)
    return found


class Refusal(Exception):
    """Makes the fake refuse a call."""

    def __init__(self, status: grpc.StatusCode, message: str = "no", violations: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.violations = status, message, violations or {}

    def abort(self, context: grpc.ServicerContext) -> None:
        if not self.violations:
            context.abort(self.status, self.message)
        detail = any_pb2.Any()
        violation = error_details_pb2.BadRequest.FieldViolation
        detail.Pack(
            error_details_pb2.BadRequest(
                field_violations=[violation(field=field, description=text) for field, text in self.violations.items()]
            )
        )
        code = code_pb2.Code.Value(self.status.name)
        context.abort_with_status(
            rpc_status.to_status(status_pb2.Status(code=code, message=self.message, details=[detail]))
        )


class Fake(grpc.GenericRpcHandler):
    """`answers` holds a function per method name, from request to answer, or to an iterator of answers."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.requests: list[Any] = []
        self._methods = _methods()
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def service(self, details: Any) -> Any:
        name, request, is_stream = self._methods[details.method]
        make = grpc.unary_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
        handle = self._stream if is_stream else self._answer
        return make(
            lambda message, context: handle(name, message, context),
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        try:
            return self.answers[name](request)
        except Refusal as refusal:
            refusal.abort(context)

    def _stream(self, name: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        try:
            yield from self.answers[name](request)
        except Refusal as refusal:
            refusal.abort(context)


class Told:
    """What a command has told, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Caller:
    """Runs commands in this process, against the fake."""

    def __init__(self, fake: Fake, monkeypatch: Any, capsys: Any) -> None:
        self.fake, self._monkeypatch, self._capsys = fake, monkeypatch, capsys

    def __call__(self, *arguments: str, code: int = 0) -> Told:
        where = ["--address", f"127.0.0.1:{self.fake.port}", "--token", "tfk_a_b"]
        self._monkeypatch.setattr(sys, "argv", ["taskforgectl", *where, *arguments])
        for name in ("TASKFORGE_NAMESPACE", "TASKFORGE_ADDRESS", "TASKFORGE_TOKEN"):
            self._monkeypatch.delenv(name, raising=False)
        found = program._run()
        told = Told(found, *self._capsys.readouterr())
        assert found == code, (arguments, found, told.out, told.err)
        return told

    @property
    def request(self) -> Any:
        """The newest request."""
        return self.fake.requests[-1]
