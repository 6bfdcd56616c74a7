"""Throw-away CAs, daemons that speak TLS, and the command line in this process."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import io
import json
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import trustme
from harness import Daemon
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

import taskforgectl.__main__ as program

CA = trustme.CA()
OTHER_CA = trustme.CA()
HOSTS = ("localhost", "127.0.0.1", "::1")


def in_days(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def leaf(*hosts: str, days: float = 300, ca: trustme.CA = CA, begins: float = -100) -> trustme.LeafCert:
    return ca.issue_cert(*(hosts or HOSTS), not_before=in_days(begins), not_after=in_days(days))


def chain_of(one: trustme.LeafCert) -> bytes:
    return b"".join(part.bytes() for part in one.cert_chain_pems)


def put(folder: Path, one: trustme.LeafCert) -> tuple[Path, Path]:
    """Put certificate and key into place as a careful tool does: whole files, by a rename."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (("key.pem", one.private_key_pem.bytes()), ("cert.pem", chain_of(one))):
        temporary = folder / f"{name}.new"
        temporary.write_bytes(content)
        temporary.chmod(0o600)
        temporary.replace(folder / name)
    return folder / "cert.pem", folder / "key.pem"


def fingerprint(one: trustme.LeafCert) -> str:
    digest = hashlib.sha256(der(one)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def der(one: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(one.cert_chain_pems[0].bytes().decode())


def tls_daemon(first: trustme.LeafCert, *, home: Path | None = None, **env: str) -> Daemon:
    """A daemon, not started, that speaks TLS on all addresses of this machine."""
    daemon = Daemon(home)
    put(daemon.home / "tls", first)
    daemon.home.chmod(0o700)
    daemon.env = {
        "TASKFORGE_GRPC_LISTEN": "0.0.0.0:0",
        "TASKFORGE_HTTP_LISTEN": "0.0.0.0:0",
        "TASKFORGE_TLS_CERT": "tls/cert.pem",
        "TASKFORGE_TLS_KEY": "tls/key.pem",
        **env,
    }
    return daemon


def here(address: str) -> str:
    """Where this machine reaches what listens on all its addresses."""
    return address.replace("0.0.0.0", "127.0.0.1")


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def shown(address: str) -> bytes:
    """The certificate that a new connection is shown, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    place = ("127.0.0.1", port_of(address))
    with socket.create_connection(place, timeout=20) as raw, context.wrap_socket(raw) as wire:
        return wire.getpeercert(binary_form=True) or b""


def trusting(one: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    one.configure_trust(context)
    return context


def get_info(
    daemon: Daemon, *, ca: bytes | None = None, client: trustme.LeafCert | None = None, token: str = ""
) -> Any:
    """GetInfo over TCP with TLS."""
    key, chain = (client.private_key_pem.bytes(), chain_of(client)) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(ca or CA.cert_pem.bytes(), key, chain)
    with grpc.secure_channel(here(daemon.tcp), credentials, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        metadata = (("authorization", f"Bearer {token or daemon.token}"),)
        return SystemServiceStub(channel).GetInfo(pb.GetInfoRequest(), metadata=metadata, timeout=20)


@contextlib.contextmanager
def bare_server(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    """A gRPC server without services; answers its address."""

    async def serve(started: asyncio.Future[str]) -> None:
        server = grpc.aio.server()
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
        started.get_loop().call_soon_threadsafe(started.set_result, f"127.0.0.1:{port}")
        await asyncio.get_running_loop().run_in_executor(None, over.wait)
        await server.stop(0)

    over = threading.Event()
    loop = asyncio.new_event_loop()
    started: asyncio.Future[str] = loop.create_future()
    thread = threading.Thread(target=lambda: asyncio.run(serve(started)), daemon=True)
    thread.start()
    try:
        yield loop.run_until_complete(asyncio.wait_for(started, 20))
    finally:
        over.set()
        thread.join(20)
        loop.close()


class Told:
    """What a command has told."""

    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err


class Client:
    """The command line in this process, of a user with a configuration of his own."""

    def __init__(self, folder: Path, monkeypatch: Any, capsys: Any) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        for name in ("ADDRESS", "CONTEXT", "HOME", "NAMESPACE", "TOKEN"):
            monkeypatch.delenv(f"TASKFORGE_{name}", raising=False)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))

    @property
    def book(self) -> Path:
        return self.folder / "config" / "taskforge" / "contexts.json"

    def __call__(self, *arguments: str, code: int = 0, stdin: Any = None) -> Told:
        self._monkeypatch.setattr(sys, "argv", ["taskforgectl", *arguments])
        self._monkeypatch.setattr(sys, "stdin", stdin or io.StringIO())
        found = program._run()
        told = Told(*self._capsys.readouterr())
        assert found == code, (arguments, found, told.out, told.err)
        return told

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self(*arguments, "-o", "json", **options).out)
