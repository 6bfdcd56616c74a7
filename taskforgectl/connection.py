"""The only place that connects: finds the daemon, proves who calls, limits and repeats calls, maps errors."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from taskforgectl import trust
from taskforgectl.address import is_loopback, split_address
from taskforgectl.contexts import Trust
from taskforgectl.errors import EXIT_DENIED, EXIT_USAGE, CliError, NotRunningError, RemoteError, Violation
from taskforgectl.home import Home
from taskforgectl.options import Settings
from taskforgectl.service.manager import comes_back

__all__ = ["Connection"]

_REPEAT_PAUSES_S = (0.1, 0.3, 0.9)
"""A daemon that restarts is back within a second or two."""

_RETURN_S = 0.2
"""Between two looks whether a daemon that starts, stops or is restarted is back."""

_STREAM_S = 900.0
"""A stream's deadline. A watcher asks again from where it was, so a daemon that hangs is not waited for for ever."""

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a daemon is never behind the proxy of a browser
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # what a busy machine may take to shake hands; a refusal comes at once
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),  # finds out that the daemon hangs; it permits a ping each 10 s
    ("grpc.keepalive_timeout_ms", 10_000),
)

_POSITION = re.compile(r"line (\d+), column (\d+): (.*)", re.DOTALL)

T = TypeVar("T")
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class Connection:
    """A channel to one daemon. Use as a context manager.

    Args:
        settings: whom to reach, and as whom.
        patient: wait for a daemon of this machine that is about to come back, instead of saying that none runs.

    Raises:
        NotRunningError: no address is given, and no daemon runs on the home.
        CliError: there is no token, the address cannot be used, or who listens there is not who it should be.
    """

    def __init__(self, settings: Settings, *, patient: bool = True) -> None:
        self._home = Home(settings.home) if patient and not settings.address else None
        self._target = settings.address or _local_address(settings, patient=patient)
        self._trust = _find_trust(settings, self._target)
        self._context = settings.context.name if settings.context else ""
        _check_address(self._target, self._trust)
        token = _check_token(_find_token(settings))
        self._timeout_s = settings.timeout_s
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel = _open(self._target, self._trust)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def stub(self, service: Callable[[grpc.Channel], T]) -> T:
        """Answer a stub. `service` is a generated `…Stub` class."""
        return service(self._channel)

    def ask(self, method: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, *, extra_s: float = 0.0) -> A:
        """Call what may be repeated safely; repeat it while the daemon is not to be reached.

        Args:
            method: of a stub.
            request: its message.
            extra_s: how long the daemon may hold the answer back on purpose.

        Raises:
            RemoteError: the daemon refused, or was not to be reached.
        """
        deadline = time.monotonic() + self._timeout_s
        pauses = iter(_REPEAT_PAUSES_S)
        while True:
            try:
                return self.tell(method, request, extra_s=extra_s)
            except RemoteError as error:
                pause_s = next(pauses, 0.0)
                if error.status != "UNAVAILABLE" or not (pause_s or self._comes_back(deadline)):
                    raise
            time.sleep(pause_s or _RETURN_S)

    def _comes_back(self, deadline: float) -> bool:
        return self._home is not None and time.monotonic() < deadline and comes_back(self._home)

    def tell(self, method: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, *, extra_s: float = 0.0) -> A:
        """Call once.

        Raises:
            RemoteError: the daemon refused, or was not to be reached.
        """
        timeout_s = self._timeout_s + extra_s
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error, timeout_s) from error

    def stream(self, method: grpc.UnaryStreamMultiCallable[Q, A], request: Q) -> Generator[A, None, None]:
        """Yield what the daemon sends until it ends. The call is cancelled when the generator is closed.

        Raises:
            RemoteError: the daemon refused, the stream broke or its time is over.
        """
        call = method(request, timeout=_STREAM_S, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failure(error, _STREAM_S) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def _failure(self, error: Any, timeout_s: float) -> CliError:
        """Answer what went wrong; for reasons of TLS it is nothing to be repeated, and gRPC's words tell nobody why."""
        remote = _remote(error, timeout_s)
        if remote.status != "UNAVAILABLE" or self._target.startswith("unix:"):
            return remote
        explained = trust.explain(self._target, self._trust, self._context)
        if explained is None and self._context:
            remote.hint = f"is the daemon of the context {self._context} running, and can {self._target} be reached?"
        return explained or remote


# --- where to --------------------------------------------------------------------------------------------------------


def _local_address(settings: Settings, *, patient: bool) -> str:
    home, deadline = Home(settings.home), time.monotonic() + settings.timeout_s
    while True:
        known = home.run_file()
        if known is not None and known.grpc:
            return known.grpc[0]
        if not patient or time.monotonic() > deadline or not comes_back(home):
            raise NotRunningError(settings.home)
        time.sleep(_RETURN_S)


def _find_trust(settings: Settings, target: str) -> Trust | None:
    """Answer how the daemon proves itself; None: the connection is plain."""
    if settings.context is not None and settings.address:
        return settings.context.tls
    known = Home(settings.home).run_file() if not target.startswith("unix:") else None
    if known is None or not known.certificate or target not in known.grpc:
        return None
    return _trust_of_home(known.certificate)


def _trust_of_home(certificate: str) -> Trust:
    """Pin what the daemon on this home shows."""
    try:
        shown = ssl.PEM_cert_to_DER_cert(_first_certificate(certificate))
    except (OSError, ValueError):
        raise CliError(f"cannot read the daemon's certificate {certificate}", code=EXIT_DENIED) from None
    return Trust(trust.fingerprint_of(shown), ssl.DER_cert_to_PEM_cert(shown))


def _first_certificate(path: str) -> str:
    head, end, _ = Path(path).read_text().partition(ssl.PEM_FOOTER)
    return head[head.find(ssl.PEM_HEADER) :] + end


def _find_token(settings: Settings) -> str:
    if settings.token or settings.context is None or settings.context.home:
        return settings.token or Home(settings.home).token()
    # The administrator's token of this machine is nothing for another daemon.
    name = settings.context.name
    hint = "give one with --token or TASKFORGE_TOKEN, or keep one: `taskforgectl context add --replace`"
    raise CliError(f"the context {name} has no token", hint=hint, code=EXIT_DENIED)


def _open(target: str, trusted: Trust | None) -> grpc.Channel:
    if trusted is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    told = trust.channel_of(target, trusted)
    name = (("grpc.ssl_target_name_override", told.server_name),) if told.server_name else ()
    credentials = grpc.ssl_channel_credentials(told.roots, told.key, told.chain)
    return grpc.secure_channel(target, credentials, options=(*_CHANNEL_OPTIONS, *name))


def _check_address(address: str, trusted: Trust | None) -> None:
    """Refuse what would carry a token over a network in clear text.

    Raises:
        CliError: the address is malformed, or of another machine without TLS.
    """
    if address.startswith("unix:"):
        return
    host, port = split_address(address)
    if trusted is None and not is_loopback(host):
        hint = (
            f"`taskforgectl context add NAME --address {address}` keeps what certificate to trust;"
            f" or come through SSH: ssh -L {port}:127.0.0.1:{port} {host}, then --address 127.0.0.1:{port}"
        )
        raise CliError(
            f"{host} is not this machine, and the token would travel in clear text", hint=hint, code=EXIT_USAGE
        )


def _check_token(token: str) -> str:
    """Refuse what no token can be, before gRPC refuses it as a header in words of its own."""
    if not token.isascii() or not token.isprintable() or " " in token:
        hint = "a token has the form tfk_<id>_<secret>, with no spaces or line breaks in it"
        raise CliError("that is not a token", hint=hint, code=EXIT_DENIED)
    return token


# --- what went wrong -------------------------------------------------------------------------------------------------


def _remote(error: Any, timeout_s: float) -> RemoteError:
    """Answer our error for gRPC's, which is an RpcError and a Call at once: no type of its stubs says so."""
    status: str = error.code().name
    message = error.details() or status
    if status == "CANCELLED":  # not by us: a daemon that has begun to stop cuts what comes in just then
        status, message = "UNAVAILABLE", "the daemon is stopping"
    elif status == "DEADLINE_EXCEEDED":
        message = f"the daemon did not answer within {timeout_s:g} s"
    elif status == "UNAVAILABLE" and "connect" in message.lower():
        message = f"the daemon is not to be reached: {message}"
    return RemoteError(status, message, *_details(error))


def _details(error: Any) -> tuple[list[Violation], dict[str, str]]:
    """Answer the faults of the request and what else the daemon says of it."""
    violations: list[Violation] = []
    metadata: dict[str, str] = {}
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: not from a daemon of ours
        return violations, metadata
    request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(request):
            violations = [_violation(one.field, one.description) for one in request.field_violations]
        elif detail.Unpack(info):
            metadata = dict(info.metadata)
    return violations, metadata


def _violation(path: str, description: str) -> Violation:
    found = _POSITION.fullmatch(description)
    if found is None:
        return Violation(path, description)
    return Violation(path, found[3], int(found[1]), int(found[2]))
