"""The listening socket is handed over: webhooks are accepted by the kernel whether or not a daemon runs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from typing import Any, NamedTuple

import aiohttp
import pytest
from harness import Daemon, github_headers, github_payload, wait_until_idle
from service.manager import handing_over, listening
from taskforge.v1 import run_pb2, secret_service_pb2, secret_service_pb2_grpc

from taskforged.errors import FailedPreconditionError
from taskforged.systemd import ServiceManager

SECRET = "It's a Secret to Everybody"
SENDERS = 8
DEFINITION = """
name: on-release
on:
  release:
    webhook: {path: github, verify: {scheme: github, secret: GITHUB_WEBHOOK_SECRET}}
    input: {delivery: "${{ event.headers['x-github-delivery'] }}"}
input: {type: object, required: [delivery], properties: {delivery: {type: string}}}
steps:
  - id: look
    transform: {delivery: "${{ input.delivery }}"}
output: ${{ steps.look.output }}
"""


UNHEARD_S = 0.4
"""Who speaks within this time after a stop has begun is answered. The daemon listens for half a second."""


class Broken(NamedTuple):
    """A delivery that did not come to an answer, or to another one than 2xx."""

    what: str
    spoke_at: float | None
    """When the head of the request was sent; None: it was not."""


class Senders:
    """Deliver without a pause, each delivery on a connection of its own, until it is acknowledged."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._body = github_payload()
        self.over = False
        self.acknowledged: dict[str, str] = {}
        self.refused: list[str] = []
        self.broken: list[Broken] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._send())

    async def _send(self) -> None:
        while not self.over:
            delivery = str(uuid.uuid4())
            while delivery not in self.acknowledged:
                await self._deliver(delivery)

    async def _deliver(self, delivery: str) -> None:
        headers = github_headers(SECRET, self._body, delivery=delivery)
        timeout = aiohttp.ClientTimeout(total=30)
        spoke_at: float | None = None

        async def on_spoken(*_: Any) -> None:
            nonlocal spoke_at
            spoke_at = time.monotonic()

        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(on_spoken)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trace_configs=[trace]) as session,
                session.post(self._url, data=self._body, headers=headers) as answer,
            ):
                text = await answer.text()
                if answer.status in {200, 202}:
                    self.acknowledged[delivery] = json.loads(text)["run_ids"][0]
                else:
                    self.broken.append(Broken(f"{answer.status} {text}", spoke_at))
        except aiohttp.ClientConnectorError as error:
            self.refused.append(str(error))
            await asyncio.sleep(0.01)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.broken.append(Broken(repr(error), spoke_at))

    async def more(self, count: int = 20) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(30):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.01)


def _cut_by_grace(daemon: Daemon) -> int:
    """How many requests the daemon says it has cut, since they took longer than its grace time."""
    lines = [json.loads(line) for line in daemon.log_text().splitlines() if "end of the grace time" in line]
    return sum(line["count"] for line in lines)


def _was_silent(broken: Broken, stops: list[float]) -> bool:
    """Whether a sender was cut because it had not spoken when a stop had waited for it."""
    if "Disconnected" not in broken.what and "reset" not in broken.what:
        return False
    if broken.spoke_at is None:
        return True
    return max(stop for stop in stops if stop <= broken.spoke_at) + UNHEARD_S <= broken.spoke_at


@pytest.mark.timeout(120)
async def test_no_webhook_is_refused_over_restarts_and_kills() -> None:
    with listening() as sock:
        daemon = Daemon(wrapper=handing_over(sock.fileno()), fds=[sock.fileno()])
        try:
            await asyncio.to_thread(daemon.start)
            assert daemon.http == f"http://127.0.0.1:{sock.getsockname()[1]}"
            secrets = daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
            await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="GITHUB_WEBHOOK_SECRET", value=SECRET))
            await daemon.apply(DEFINITION)
            senders = Senders(f"{daemon.http}/hooks/default/github")
            sending = asyncio.create_task(senders.run())
            stops = []
            for _ in range(3):
                await senders.more()
                stops.append(time.monotonic())
                assert await asyncio.to_thread(daemon.terminate) == 0
                await asyncio.sleep(0.2)  # nobody is there, and they go on sending
                await asyncio.to_thread(daemon.start)
            await senders.more()
            # A stop in order answers everybody who speaks in time, if it can within its grace time, and says if not.
            cut = [one for one in senders.broken if not _was_silent(one, stops)]
            assert len(cut) <= _cut_by_grace(daemon), f"{cut}, stops at {stops}\n{daemon.tail()}"
            for _ in range(2):
                await asyncio.to_thread(daemon.kill)
                await asyncio.to_thread(daemon.start)
                await senders.more()
            senders.over = True
            await asyncio.wait_for(sending, 40)
            assert senders.refused == []
            assert len(set(senders.acknowledged.values())) == len(senders.acknowledged)
            runs = await wait_until_idle(daemon, senders.acknowledged.values(), within_s=60)
            assert {run.state for run in runs.values()} == {run_pb2.Run.STATE_SUCCEEDED}
            stored = {run.id for run in await daemon.list_runs()}
            assert stored == set(senders.acknowledged.values()), "a run that no acknowledged delivery started"
            assert await asyncio.to_thread(daemon.terminate) == 0
        finally:
            await daemon.aclose()


@pytest.mark.parametrize("name", ["http", "unknown", ""])
async def test_a_socket_is_adopted_by_its_name_or_as_the_only_one(name: str) -> None:
    with listening(socket.AF_INET6) as sock:
        daemon = Daemon(wrapper=handing_over(sock.fileno(), name), fds=[sock.fileno()])
        try:
            await asyncio.to_thread(daemon.start)
            assert daemon.http == f"http://[::1]:{sock.getsockname()[1]}"
            assert "http.other_address" in daemon.log_text(), "it is not the one of the settings"
        finally:
            await daemon.aclose()


def _refused(sock: socket.socket, name: str = "http") -> str:
    daemon = Daemon(wrapper=handing_over(sock.fileno(), name), fds=[sock.fileno()])
    try:
        assert daemon.spawn().wait(30) == 1
        log = daemon.log_text()
        assert "daemon.cannot_start" in log
        assert "BAD_SOCKET" in log
        return log
    finally:
        daemon.close()


def test_what_is_no_listening_tcp_socket_is_refused() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert "does not listen" in _refused(silent)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert "no TCP socket" in _refused(datagrams)
    with socket.socket(socket.AF_UNIX) as local:
        assert "no TCP socket" in _refused(local)
    with listening() as other:
        assert "grpc" in _refused(other, "grpc")


def test_a_socket_for_all_the_world_needs_tls_like_an_address_of_our_own() -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        assert "clear text" in _refused(sock)


# --- what the manager says -------------------------------------------------------------------------------------------


def test_the_environment_is_taken_once_and_removed() -> None:
    environment = {
        "LISTEN_PID": str(os.getpid() + 1),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "http",
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "3000000",
        "OTHER": "stays",
    }
    manager = ServiceManager.take(environment)
    assert environment == {"OTHER": "stays"}
    assert manager.http_socket() is None, "meant for another process"
    assert manager.watchdog_s == 3.0
    manager.notify("READY=1")
    assert ServiceManager.take({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog_s == 0.0
    assert ServiceManager.take({}).http_socket() is None


def test_two_sockets_are_one_too_many() -> None:
    with listening() as one, listening() as two, pytest.raises(FailedPreconditionError, match="http, unknown"):
        ServiceManager(sockets=[("http", one), ("unknown", two)]).http_socket()


def test_a_child_does_not_inherit_the_socket() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from taskforged.systemd import ServiceManager\n"
        "manager = ServiceManager.take()\n"
        "assert manager.http_socket() is not None\n"
        'look = \'import os; print(sorted(n for n in os.environ if "LISTEN" in n), len(os.listdir("/proc/self/fd")))\'\n'
        "print(subprocess.run([sys.executable, '-c', look], close_fds=False, capture_output=True, text=True).stdout)\n"
    )
    with listening() as sock:
        command = [*handing_over(sock.fileno()), sys.executable, "-c", code]
        told = subprocess.run(command, pass_fds=[sock.fileno()], capture_output=True, text=True, check=True).stdout
    alone = subprocess.run(
        [sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/fd')))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # The wrapper's own copy, under the old number, is not what was handed over.
    assert told.split()[0] == "[]"
    assert int(told.split()[1]) == int(alone.stdout) + 1
