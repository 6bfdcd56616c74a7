"""The daemon as a process: what it left behind, whether its doors answer, whether versions fit."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

from taskforgectl import __version__
from taskforgectl.doctor.model import Finding, Ground, error, ok, warning
from taskforgectl.errors import CliError
from taskforgectl.home import RunFile
from taskforgectl.service.manager import in_charge
from taskforgectl.service.units import SOCKET

__all__ = ["check_daemon", "check_ports", "check_version"]

_PROBE_S = 3.0


def check_daemon(ground: Ground) -> Iterator[Finding]:
    """Whether it runs and answers, or has left something behind."""
    home = ground.home
    if ground.info is not None:
        yield ok(f"it runs: pid {ground.info['pid']}, {', '.join(ground.info['grpc'])}")
        return
    if not home.path.is_dir():
        return
    if home.daemon_lives() and ground.locked_out is not None:
        yield error(f"pid {home.daemon_pid()} cannot be asked: {ground.locked_out.message}", ground.locked_out.hint)
        return
    if home.daemon_lives():
        yield error(
            f"a daemon (pid {home.daemon_pid()}) holds {home.path} and does not answer",
            "it may be starting or stopping: look at `taskforgectl logs`; if it hangs, `taskforgectl restart`",
        )
        return
    known, told = _run_file(ground)
    if told is not None:
        yield told
    elif known is not None:
        yield warning(
            f"it does not run, and has left {home.path / 'taskforged.json'} behind: it was killed (pid {known.pid})",
            "start it again: `taskforgectl up`; it goes on where it was",
        )
    else:
        yield warning(f"it does not run on {home.path}", "start it: `taskforgectl up`")


def _run_file(ground: Ground) -> tuple[RunFile | None, Finding | None]:
    try:
        return ground.home.run_file(), None
    except CliError as problem:
        return None, warning(problem.message, problem.hint)


def check_ports(ground: Ground) -> Iterator[Finding]:
    """Its doors answer; or, while it does not run, they are free."""
    if ground.info is not None:
        yield from _answering(ground, str(ground.info["http"]))
        socket_path = ground.home.path / "taskforged.sock"
        if not ground.settings.address and not _is_socket(ground):
            yield error(f"{socket_path} is gone, though the daemon listens on it", "`taskforgectl restart`")
        return
    for name in ("grpc.listen", "http.listen"):
        address = str(ground.config.get(name, ""))
        if address and not address.endswith(":0"):
            yield from _free(ground, name, address)


def _is_socket(ground: Ground) -> bool:
    assert ground.info is not None
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK((ground.home.path / "taskforged.sock").stat().st_mode)
    return not any(address.startswith("unix:") for address in ground.info["grpc"])


def _answering(ground: Ground, base: str) -> Iterator[Finding]:
    parts = urlsplit(base)
    if not parts.hostname:
        return
    connection = _connection(ground, parts.scheme, parts.hostname, parts.port)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except ssl.SSLCertVerificationError as problem:
        shown = "a certificate that is not the one in its file, or not valid now"
        yield warning(f"{base} shows {shown}: {problem.verify_message}", "see what is said of the certificate")
    except (OSError, http.client.HTTPException) as problem:
        yield error(f"{base} does not answer: {problem or type(problem).__name__}", "`taskforgectl restart`")
    else:
        if status == 200:
            yield ok(f"{base} answers")
        else:
            yield error(f"{base}/healthz answers {status}", "look at `taskforgectl logs`, then `taskforgectl restart`")
    finally:
        connection.close()


def _connection(ground: Ground, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    known = ground.home.run_file()
    if scheme != "https" or known is None:
        return http.client.HTTPConnection(host, port, timeout=_PROBE_S)
    context = ssl.create_default_context(cafile=known.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # that very certificate, whoever has signed it
    context.check_hostname = False  # its names are those by which others come
    return http.client.HTTPSConnection(host, port, timeout=_PROBE_S, context=context)


def _free(ground: Ground, name: str, address: str) -> Iterator[Finding]:
    manager = in_charge(ground.home)
    if name == "http.listen" and manager is not None and manager.state(SOCKET) == "active":
        yield ok(f"{address} is held by {SOCKET}")
        return
    host, _, port = address.rpartition(":")
    section, _, key = name.partition(".")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does
            probe.bind(place)
    except OSError as problem:
        remedy = f"stop the program that has it (`ss -ltnp 'sport = :{port}'`), or set [{section}] {key}"
        yield error(f"{address} cannot be listened on: {problem.strerror}", remedy)
    else:
        yield ok(f"{address} is free")


def check_version(ground: Ground) -> Iterator[Finding]:
    """This program and the daemon belong together."""
    if ground.info is None or ground.info["version"] == __version__:
        yield ok(f"taskforgectl {__version__}")
    else:
        yield warning(
            f"taskforgectl is {__version__}, the daemon {ground.info['version']}",
            "`taskforgectl restart` starts the version that is installed",
        )
