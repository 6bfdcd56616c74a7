"""The gRPC server: services, health, reflection, listeners, and a drain that does not hang."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from taskforge.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    namespace_service_pb2,
    namespace_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from taskforged.control.access import Access
from taskforged.control.audit import Audit
from taskforged.control.dead_letters import DeadLetters
from taskforged.control.doctor import Doctor
from taskforged.control.doorman import Doorman
from taskforged.control.event_watch import EventWatches
from taskforged.control.events import Events
from taskforged.control.explainer import Explainer
from taskforged.control.ledger import Ledger
from taskforged.control.logs import RunLogs
from taskforged.control.namespaces import Namespaces
from taskforged.control.publishing import EventBus
from taskforged.control.queues import Queues
from taskforged.control.repeats import Repeats
from taskforged.control.replays import Replays
from taskforged.control.runs import Runs
from taskforged.control.secrets import Secrets
from taskforged.control.steering import Steering
from taskforged.control.storage import Storage
from taskforged.control.stuck import StuckDetector
from taskforged.control.system import System
from taskforged.control.triggers import Triggers
from taskforged.control.verifying import Verifier
from taskforged.control.views import RunViews
from taskforged.control.workflows import Workflows
from taskforged.errors import FailedPreconditionError
from taskforged.meters import DoorMeters
from taskforged.rpc.access import AuditServicer, SecretServicer, TokenServicer
from taskforged.rpc.credentials import server_credentials
from taskforged.rpc.dead_letters import DeadLetterServicer
from taskforged.rpc.events import EventServicer
from taskforged.rpc.guard import Guard
from taskforged.rpc.namespaces import NamespaceServicer
from taskforged.rpc.queues import QueueServicer
from taskforged.rpc.runs import RunServicer
from taskforged.rpc.storage import StorageServicer
from taskforged.rpc.system import SystemServicer
from taskforged.rpc.triggers import TriggerServicer
from taskforged.rpc.workflows import WorkflowServicer
from taskforged.tls import Certificates

__all__ = ["Controls", "RpcServer"]

_MIB = 1 << 20

_PENDING_MAX = 4000
"""Calls that have come and were not looked at yet, a few KB each; one more is cancelled."""

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.so_reuseport", 0),  # else a second daemon would bind silently over a live one
    ("grpc.max_receive_message_length", 8 * _MIB),
    ("grpc.max_send_message_length", 64 * _MIB),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.server.max_pending_requests", _PENDING_MAX),  # beyond its default of 1,000 gRPC cancels calls by chance
    ("grpc.server.max_pending_requests_hard_limit", _PENDING_MAX),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # the default punishes pings of watchers
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),  # of TLS and of HTTP/2 together; the default is two minutes
)

_SOCKET_PATH_MAX = 100
"""`sun_path` has 108 bytes on Linux; gRPC needs a few itself."""

_SERVICES = (
    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name,
    dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"].full_name,
    event_service_pb2.DESCRIPTOR.services_by_name["EventService"].full_name,
    namespace_service_pb2.DESCRIPTOR.services_by_name["NamespaceService"].full_name,
    queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"].full_name,
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
    secret_service_pb2.DESCRIPTOR.services_by_name["SecretService"].full_name,
    storage_service_pb2.DESCRIPTOR.services_by_name["StorageService"].full_name,
    system_service_pb2.DESCRIPTOR.services_by_name["SystemService"].full_name,
    token_service_pb2.DESCRIPTOR.services_by_name["TokenService"].full_name,
    trigger_service_pb2.DESCRIPTOR.services_by_name["TriggerService"].full_name,
    workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"].full_name,
)


@dataclass(frozen=True, slots=True)
class Controls:
    """The use cases that the services call."""

    access: Access
    workflows: Workflows
    views: RunViews
    runs: Runs
    steering: Steering
    repeats: Repeats
    verifier: Verifier
    events: Events
    event_watches: EventWatches
    bus: EventBus
    replays: Replays
    triggers: Triggers
    ledger: Ledger
    secrets: Secrets
    audit: Audit
    doorman: Doorman
    system: System
    namespaces: Namespaces
    queues: Queues
    dead_letters: DeadLetters
    logs: RunLogs
    explainer: Explainer
    stuck: StuckDetector
    doctor: Doctor
    meters: DoorMeters
    storage: Storage


class RpcServer:
    """Listens on a unix socket and on TCP.

    Args:
        controls: the use cases.
        certificates: what TCP is encrypted with; None: it is plain, and on loopback.
        connections_max: open at once, on each listener; one more is closed.
    """

    def __init__(self, controls: Controls, *, certificates: Certificates | None, connections_max: int) -> None:
        c = controls
        self._guard = Guard(c.access, c.namespaces.requests, c.audit, c.doorman, c.meters)
        options = (*OPTIONS, ("grpc.max_allowed_incoming_connections", connections_max))
        self._server = grpc.aio.server(interceptors=[self._guard], options=options)
        self._credentials = None if certificates is None else server_credentials(certificates)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._socket: Path | None = None
        self._add_services(controls)

    def _add_services(self, c: Controls) -> None:
        workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(
            WorkflowServicer(c.workflows, c.access), self._server
        )
        runs = RunServicer(
            views=c.views,
            runs=c.runs,
            steering=c.steering,
            repeats=c.repeats,
            verifier=c.verifier,
            logs=c.logs,
            explainer=c.explainer,
            workflows=c.workflows,
            access=c.access,
            pruned=c.storage.pruner.pruned_runs,
        )
        run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, self._server)
        self._add_events(c)
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(TokenServicer(c.access), self._server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(c.audit, c.access), self._server)
        secret_service_pb2_grpc.add_SecretServiceServicer_to_server(SecretServicer(c.secrets, c.access), self._server)
        system_service_pb2_grpc.add_SystemServiceServicer_to_server(
            SystemServicer(c.system, c.doctor, c.stuck, c.access), self._server
        )
        self._add_tenancy(c)
        storage = StorageServicer(c.storage, c.workflows, c.access)
        storage_service_pb2_grpc.add_StorageServiceServicer_to_server(storage, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def _add_events(self, c: Controls) -> None:
        events = EventServicer(
            events=c.events,
            watches=c.event_watches,
            bus=c.bus,
            replays=c.replays,
            views=c.views,
            access=c.access,
        )
        event_service_pb2_grpc.add_EventServiceServicer_to_server(events, self._server)
        triggers = TriggerServicer(triggers=c.triggers, ledger=c.ledger, events=c.events, access=c.access)
        trigger_service_pb2_grpc.add_TriggerServiceServicer_to_server(triggers, self._server)

    def _add_tenancy(self, c: Controls) -> None:
        namespace_service_pb2_grpc.add_NamespaceServiceServicer_to_server(NamespaceServicer(c.namespaces), self._server)
        queue_service_pb2_grpc.add_QueueServiceServicer_to_server(QueueServicer(c.queues, c.access), self._server)
        letters = DeadLetterServicer(c.dead_letters, c.views, c.access)
        dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server(letters, self._server)

    async def _not_yet(self) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def start(self, *, listen: str, socket: Path) -> list[str]:
        """Bind and serve; answers the addresses.

        Args:
            listen: `host:port`; port 0 picks a free one.
            socket: path of the unix socket; skipped, with the address left out, where it is too long for one.

        Raises:
            FailedPreconditionError: an address is in use or not to be had.
        """
        await self._not_yet()
        addresses = []
        if len(str(socket)) <= _SOCKET_PATH_MAX:
            addresses.append(self._bind_socket(socket))
        addresses.append(self._bind_tcp(listen))
        await self._server.start()
        return addresses

    def _bind_socket(self, path: Path) -> str:
        path.unlink(missing_ok=True)  # a leftover: the home's lock is ours, so nobody listens on it
        address = f"unix:{path}"
        before = os.umask(0o177)  # the socket is 0600 from its first moment on
        try:
            self._bind(address)
        finally:
            os.umask(before)
        self._socket = path
        return address

    def _bind_tcp(self, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if port == "0":
            return f"{host}:{self._bind(listen, self._credentials)}"
        self._bind(listen, self._credentials)
        return listen

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        try:
            if credentials is not None:
                return int(self._server.add_secure_port(address, credentials))
            return int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"cannot listen for gRPC on {address}: the address is in use or not of this machine;"
                " set [grpc] listen in config.toml or TASKFORGE_GRPC_LISTEN",
                reason="ADDRESS_IN_USE",
                metadata={"address": address},
            ) from error

    async def serve(self) -> None:
        """Answer health checks with SERVING."""
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tell probes that new work is not wanted, and refuse it as UNAVAILABLE: `stop` would cut it as CANCELLED."""
        await self._health.enter_graceful_shutdown()
        self._guard.draining = True

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, let calls finish for `grace_s`, then cut them. Idempotent."""
        async with asyncio.timeout(grace_s + 5):
            await self._server.stop(grace_s)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None
