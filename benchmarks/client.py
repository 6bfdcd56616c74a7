"""A daemon as it is measured, and the client that puts load on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from harness import Daemon
from taskforge.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
)

WAIT = Duration(seconds=60)
QUIET = {"PYTHONWARNINGS": "ignore", "TASKFORGE_LOG_LEVEL": "warning"}

_READY_S = 180.0
"""A row that is late is a figure; a daemon that is given up is none."""


class Client:
    """A load client of one daemon: bare stubs over TCP, the token in each call."""

    def __init__(self, daemon: Daemon, channel: grpc.aio.Channel) -> None:
        self._token = daemon.metadata
        self.runs = run_service_pb2_grpc.RunServiceStub(channel)
        self._events = event_service_pb2_grpc.EventServiceStub(channel)
        self._storage = storage_service_pb2_grpc.StorageServiceStub(channel)
        self._system = system_service_pb2_grpc.SystemServiceStub(channel)
        self.daemon = daemon

    async def start(self, workflow: str, payload: str, *, wait: bool, namespace: str = "") -> run_pb2.Run:
        """StartRun; with `wait` the answer is the finished run."""
        request = run_service_pb2.StartRunRequest(namespace=namespace, workflow=workflow, input_json=payload)
        if wait:
            request.wait.CopyFrom(WAIT)
        answer = await self.runs.StartRun(request, metadata=self._token)
        if wait and answer.run.state != run_pb2.Run.STATE_SUCCEEDED:
            raise RuntimeError(f"a run did not succeed: {answer.run}")
        return answer.run

    async def start_batch(self, workflow: str, payload: str, size: int) -> list[str]:
        """BatchStartRuns; answers the ids."""
        one = run_service_pb2.StartRunRequest(workflow=workflow, input_json=payload)
        request = run_service_pb2.BatchStartRunsRequest(requests=[one] * size)
        answer = await self.runs.BatchStartRuns(request, metadata=self._token)
        if len(answer.run_ids) != size:
            raise RuntimeError(f"asked for {size} runs, got {len(answer.run_ids)}")
        return list(answer.run_ids)

    async def list_page(self, token: str = "", size: int = 50, **filters: object) -> run_service_pb2.ListRunsResponse:
        """ListRuns, one page."""
        request = run_service_pb2.ListRunsRequest(page_size=size, page_token=token, **filters)  # type: ignore[arg-type]
        return await self.runs.ListRuns(request, metadata=self._token)

    async def show(self, run_id: str) -> run_pb2.Run:
        """GetRun."""
        return (await self.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), metadata=self._token)).run

    async def history(self, run_id: str) -> run_service_pb2.GetRunHistoryResponse:
        """GetRunHistory, one page."""
        request = run_service_pb2.GetRunHistoryRequest(run_id=run_id, page_size=100)
        return await self.runs.GetRunHistory(request, metadata=self._token)

    async def watch(self, run_id: str) -> list[float]:
        """WatchRun to its end; answers how long each event was under way, by the wall clock that both share."""
        request = run_service_pb2.WatchRunRequest(run_id=run_id)
        lags: list[float] = []
        async for part in self.runs.WatchRun(request, metadata=self._token):
            now = time.time()
            lags += [now - event.create_time.ToMicroseconds() / 1e6 for event in part.events]
        return lags

    async def prune(self, workflow: str, keep: int) -> None:
        """PruneStorage."""
        request = storage_service_pb2.PruneStorageRequest(workflow=workflow, keep=keep)
        await self._storage.PruneStorage(request, metadata=self._token)

    async def back_up(self) -> None:
        """CreateBackup."""
        await self._storage.CreateBackup(storage_service_pb2.CreateBackupRequest(), metadata=self._token)

    async def stats(self) -> system_service_pb2.GetStatsResponse:
        """GetStats."""
        return await self._system.GetStats(system_service_pb2.GetStatsRequest(), metadata=self._token)

    async def open_runs(self) -> int:
        """How many runs are open."""
        return (await self.stats()).open_runs

    async def publish(self, name: str, payload: str) -> None:
        """PublishEvent."""
        request = event_service_pb2.PublishEventRequest(type=name, data_json=payload)
        await self._events.PublishEvent(request, metadata=self._token)

    async def until_idle(self) -> None:
        """Return when no run is open."""
        while await self.open_runs():
            await asyncio.sleep(0.002)

    async def check_all_succeeded(self, workflow: str, count: int) -> None:
        """Every run that was asked for is there and has succeeded: speed that loses runs is none."""
        found, token = 0, ""
        while True:
            page = await self.list_page(token, 1000, workflow=workflow)
            bad = [run.id for run in page.runs if run.state != run_pb2.Run.STATE_SUCCEEDED]
            if bad:
                raise RuntimeError(f"{len(bad)} runs have not succeeded, {bad[0]} among them")
            found += len(page.runs)
            token = page.next_page_token
            if not token:
                break
        if found != count:
            raise RuntimeError(f"{count} runs were started, {found} are stored")


@contextlib.asynccontextmanager
async def serving(*definitions: str, home: Path | None = None, env: Mapping[str, str] = QUIET) -> AsyncIterator[Client]:
    """A daemon with these workflows, on a fresh home or on one that exists, and a client of it."""
    daemon = Daemon(home, env={**QUIET, **env})
    daemon.READY_S = _READY_S
    try:
        await asyncio.to_thread(daemon.start)
        for definition in definitions:
            await daemon.apply(definition)
        async with connected(daemon) as client:
            yield client
    finally:
        await daemon.aclose()


@contextlib.asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Client]:
    """A client of a daemon that runs, with a connection of its own."""
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(daemon.tcp, options=own) as channel:
        yield Client(daemon, channel)


class Meter:
    """Processor time of daemon and load client for a number of operations: it says what a busy machine hides."""

    def __init__(self, daemon: Daemon) -> None:
        self._pid = daemon.pid
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return processor_s(self._pid), time.process_time()

    def per(self, count: int) -> tuple[float, float]:
        """The milliseconds for each of `count` operations: of the daemon, and of the client."""
        daemon, client = (after - before for after, before in zip(self._now(), self._before, strict=True))
        return daemon / count * 1e3, client / count * 1e3


def processor_s(pid: int) -> float:
    """Processor time of a process since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def stop_and_measure(daemon: Daemon) -> int:
    """Stop a daemon; answers the bytes of its database."""
    if daemon.terminate() != 0:
        raise RuntimeError(f"the daemon did not stop well:\n{daemon.tail()}")
    return sum(file.stat().st_size for file in daemon.home.glob("taskforge.db*"))


async def timed(work: Awaitable[object]) -> float:
    """The seconds that something takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began
