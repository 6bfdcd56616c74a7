"""Measures Taskforge, each figure beside its budget and beside the bare cost of its parts in the same run.

    make bench                          everything, a few minutes
    make bench ARGS="--quick"           a short look
    make bench ARGS="--only pure,http"  some rows

The daemon is a process of its own, as are the servers it calls; this process is the load client. Nothing is asserted:
figures depend on the machine, so they are compared, not tested. README.md says what each row is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import uvloop
from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    namespace_service_pb2,
    namespace_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import bare  # noqa: E402
from bare import in_flight, percentile  # noqa: E402
from harness import Daemon, github_headers, github_payload  # noqa: E402

WAIT = Duration(seconds=60)
SECRET = "bench"

PURE = """
name: pure
input: {type: object, properties: {n: {type: integer}}}
steps:
  - id: one
    transform: {n: "${{ input.n }}"}
  - id: two
    transform: {n: "${{ steps.one.output.n + 1 }}"}
  - id: three
    transform: {n: "${{ steps.two.output.n + 1 }}"}
output: ${{ steps.three.output }}
"""

HTTP = """
name: http
input: {type: object, required: [url], properties: {url: {type: string}}}
steps:
  - id: one
    http: {method: POST, url: "${{ input.url }}", json: {step: 1}}
  - id: two
    http: {method: POST, url: "${{ input.url }}", json: {step: 2}}
  - id: three
    http: {method: POST, url: "${{ input.url }}", json: {step: 3}}
output: ${{ steps.three.output.body }}
"""

CHAIN = "name: chain\nsteps:\n  - id: s0\n    transform: {n: 0}\n" + "".join(
    f'  - id: s{n}\n    transform: {{n: "${{{{ steps.s{n - 1}.output.n + 1 }}}}"}}\n' for n in range(1, 40)
)
HTTP_CHAIN = "name: httpchain\ninput: {type: object}\nsteps:\n" + "".join(
    f'  - id: s{n}\n    http: {{method: POST, url: "${{{{ input.url }}}}", json: {{n: {n}}}}}\n' for n in range(40)
)

HOOK = """
name: hook
on:
  release:
    webhook: {path: github, verify: {scheme: github, secret: GITHUB_WEBHOOK_SECRET}}
    if: event.body.action == "published"
    input: {tag: "${{ event.body.release.tag_name }}"}
input: {type: object, properties: {tag: {type: string}}}
steps:
  - id: look
    transform: {tag: "${{ input.tag }}"}
"""


LISTENER = """
name: listener
on:
  paid:
    event: {type: "order.*"}
    if: event.body.n >= 0
    input: {n: "${{ event.body.n }}"}
steps:
  - {id: one, transform: {n: "${{ input.n }}"}}
"""

FAN = """
name: fan
input: {type: object, properties: {n: {type: integer}, items: {type: array}, url: {type: string}}}
steps:
  - id: many
    for_each: ${{ input.items }}
    max_parallel: 1000
    %s
"""
FAN_LIGHT = FAN % 'transform: {n: "${{ item + 1 }}"}'
FAN_HTTP = FAN.replace("name: fan", "name: httpfan") % 'http: {method: POST, url: "${{ input.url }}", json: {n: 1}}'


@dataclass(slots=True)
class Row:
    """One line of the table.

    Attributes:
        value: the figure, in `unit`.
        budget: of DESIGN section 7; None where it sets none.
        bare: the same unit, without Taskforge; None where there is no such thing.
        higher: whether more is better.
        note: what else was seen.
    """

    name: str
    value: float
    unit: str
    budget: float | None = None
    bare: float | None = None
    bare_is: str = ""
    higher: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met or missed, and by how much."""
        if self.budget is None:
            return ""
        met = self.value >= self.budget if self.higher else self.value <= self.budget
        share = self.value / self.budget if self.higher else self.budget / self.value
        return f"{'met' if met else 'MISSED'} {share:.2f}x"

    @property
    def of_bare(self) -> str:
        """The share of the bare speed that is left, or how many times the bare cost it takes."""
        if not self.bare:
            return ""
        return f"{self.value / self.bare:.2f}x"


@dataclass(slots=True)
class Bench:
    """The settings and the bare costs, measured once when first asked for."""

    quick: bool
    folder: Path
    rows: list[Row] = field(default_factory=list)
    _bare: dict[str, float] = field(default_factory=dict)

    def count(self, full: int) -> int:
        """How many to do."""
        return max(40, full // 8) if self.quick else full

    def add(self, row: Row) -> None:
        """Record and show a row."""
        self.rows.append(row)
        print(f"  {row.name}: {_number(row.value)} {row.unit} {row.verdict}  {row.note}", flush=True)

    def sqlite(self, batch: int) -> float:
        """Bare step transitions a second."""
        name = f"sqlite {batch}"
        if name not in self._bare:
            self._bare[name] = bare.sqlite_transitions_per_s(self.folder, batch, 0.5 if self.quick else 2.0)
            print(f"  bare: SQLite, {batch} transitions a commit, full fsync: {self._bare[name]:,.0f}/s", flush=True)
        return self._bare[name]

    async def grpc(self) -> float:
        """Bare gRPC calls a second, 64 in flight."""
        if "grpc" not in self._bare:
            self._bare["grpc"], _ = await bare.grpc_calls(self.count(8000))
            print(f"  bare: grpc.aio, 64 in flight: {self._bare['grpc']:,.0f} calls/s", flush=True)
        return self._bare["grpc"]

    async def requests(self, kind: str) -> tuple[float, float]:
        """Bare HTTP requests a second and their p99 in seconds."""
        if kind not in self._bare:
            body = github_payload() if kind == "http" else b'{"step": 1}'
            rate, took = await bare.http_requests(kind, self.count(12_000), body)
            self._bare[kind], self._bare[f"{kind} p99"] = rate, percentile(took, 0.99)
            print(f"  bare: aiohttp client to the {kind} server, 64 in flight: {rate:,.0f}/s", flush=True)
        return self._bare[kind], self._bare[f"{kind} p99"]

    def bare_figures(self) -> dict[str, float]:
        """All bare costs that were measured."""
        return dict(self._bare)


class Client:
    """A load client of one daemon: bare stubs over TCP, the token in each call."""

    def __init__(self, daemon: Daemon, channel: object) -> None:
        self._token = daemon.metadata
        self._runs = run_service_pb2_grpc.RunServiceStub(channel)  # type: ignore[arg-type]
        self._events = event_service_pb2_grpc.EventServiceStub(channel)  # type: ignore[arg-type]
        self._storage = storage_service_pb2_grpc.StorageServiceStub(channel)  # type: ignore[arg-type]
        self._system = system_service_pb2_grpc.SystemServiceStub(channel)  # type: ignore[arg-type]
        self.daemon = daemon

    async def start(self, workflow: str, payload: str, *, wait: bool, namespace: str = "") -> run_pb2.Run:
        """StartRun; with `wait` the answer is the finished run."""
        request = run_service_pb2.StartRunRequest(namespace=namespace, workflow=workflow, input_json=payload)
        if wait:
            request.wait.CopyFrom(WAIT)
        answer = await self._runs.StartRun(request, metadata=self._token)
        if wait and answer.run.state != run_pb2.Run.STATE_SUCCEEDED:
            raise RuntimeError(f"a run did not succeed: {answer.run}")
        return answer.run

    async def start_batch(self, workflow: str, payload: str, size: int) -> None:
        """BatchStartRuns."""
        one = run_service_pb2.StartRunRequest(workflow=workflow, input_json=payload)
        request = run_service_pb2.BatchStartRunsRequest(requests=[one] * size)
        answer = await self._runs.BatchStartRuns(request, metadata=self._token)
        if len(answer.run_ids) != size:
            raise RuntimeError(f"asked for {size} runs, got {len(answer.run_ids)}")

    async def prune(self, workflow: str, keep: int) -> None:
        """PruneStorage."""
        request = storage_service_pb2.PruneStorageRequest(workflow=workflow, keep=keep)
        await self._storage.PruneStorage(request, metadata=self._token)

    async def back_up(self) -> None:
        """CreateBackup."""
        await self._storage.CreateBackup(storage_service_pb2.CreateBackupRequest(), metadata=self._token)

    async def open_runs(self) -> int:
        """How many runs are open."""
        return (await self._system.GetStats(system_service_pb2.GetStatsRequest(), metadata=self._token)).open_runs

    async def stats(self) -> system_service_pb2.GetStatsResponse:
        """GetStats."""
        return await self._system.GetStats(system_service_pb2.GetStatsRequest(), metadata=self._token)

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
            request = run_service_pb2.ListRunsRequest(workflow=workflow, page_size=1000, page_token=token)
            page = await self._runs.ListRuns(request, metadata=self._token)
            bad = [run.id for run in page.runs if run.state != run_pb2.Run.STATE_SUCCEEDED]
            if bad:
                raise RuntimeError(f"{len(bad)} runs have not succeeded, {bad[0]} among them")
            found += len(page.runs)
            token = page.next_page_token
            if not token:
                break
        if found != count:
            raise RuntimeError(f"{count} runs were started, {found} are stored")


class Meter:
    """Processor time that daemon and load client use for a number of operations: it says what a busy machine hides."""

    def __init__(self, daemon: Daemon) -> None:
        self._pid = daemon.pid
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), time.process_time()

    def per(self, count: int, what: str) -> str:
        """The milliseconds for each of `count` operations."""
        daemon, client = (after - before for after, before in zip(self._now(), self._before, strict=True))
        return f"CPU per {what}: daemon {daemon / count * 1e3:.2f} ms, client {client / count * 1e3:.2f} ms"


@contextlib.asynccontextmanager
async def serving(*definitions: str) -> AsyncIterator[Client]:
    """A fresh daemon with these workflows, and a client of it."""
    import grpc.aio

    daemon = Daemon(env={"PYTHONWARNINGS": "ignore", "TASKFORGE_LOG_LEVEL": "warning"})
    try:
        daemon.start()
        for definition in definitions:
            await daemon.apply(definition)
        async with grpc.aio.insecure_channel(daemon.tcp) as channel:
            yield Client(daemon, channel)
    finally:
        await daemon.aclose()


# -- the rows


async def bench_pure(b: Bench) -> None:
    """(a) 3-step runs of transforms, 64 StartRun calls in flight, from the first StartRun to the last SUCCEEDED."""
    count = b.count(8000)
    async with serving(PURE) as client:
        await in_flight(300, lambda n: client.start("pure", f'{{"n":{n}}}', wait=True))
        meter = Meter(client.daemon)
        began = time.perf_counter()
        _, acks = await in_flight(count, lambda n: client.start("pure", f'{{"n":{n}}}', wait=False))
        await client.until_idle()
        elapsed = time.perf_counter() - began
        cpu = meter.per(count, "run")
        waited, _ = await in_flight(count // 2, lambda n: client.start("pure", f'{{"n":{n}}}', wait=True))
        await client.check_all_succeeded("pure", 300 + count + count // 2)
    calls = await b.grpc()
    b.add(
        Row(
            "3 pure steps, StartRun",
            3 * count / elapsed,
            "steps/s",
            6750,
            3 * calls,
            "3 x bare gRPC calls",
            note=f"{count / elapsed:,.0f} runs/s, ack p99 {percentile(acks, 0.99) * 1e3:.1f} ms; {cpu}",
        )
    )
    runs = count // 2 / waited
    b.add(Row("3 pure steps, StartRun that waits", 3 * runs, "steps/s", None, 3 * calls, note=f"{runs:,.0f} runs/s"))


async def bench_batch(b: Bench) -> None:
    """(b) The same through BatchStartRuns, 1,000 a call, two calls in flight; and (h) the disk that it took."""
    batches = max(2, b.count(160) // 8)
    async with serving(PURE) as client:
        await client.start_batch("pure", '{"n":1}', 200)
        await client.until_idle()
        meter = Meter(client.daemon)
        began = time.perf_counter()
        await in_flight(batches, lambda _: client.start_batch("pure", '{"n":1}', 1000), 2)
        await client.until_idle()
        elapsed = time.perf_counter() - began
        cpu = meter.per(batches * 1000, "run")
        await client.check_all_succeeded("pure", 200 + batches * 1000)
    steps = 3000 * batches / elapsed
    b.add(
        Row(
            "3 pure steps, BatchStartRuns",
            steps,
            "steps/s",
            15_000,
            b.sqlite(100),
            "SQLite, 100 a commit",
            note=f"{steps / 3:,.0f} runs/s; {cpu}",
        )
    )


async def bench_http(b: Bench) -> None:
    """(c) 3-step runs of HTTP calls to an echo server in its own process, 64 runs in flight."""
    count = b.count(3000)
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(HTTP) as client:
            await in_flight(100, lambda _: client.start("http", payload, wait=True))
            meter = Meter(client.daemon)
            elapsed, took = await in_flight(count, lambda _: client.start("http", payload, wait=True))
            cpu = meter.per(count, "run")
            await client.check_all_succeeded("http", 100 + count)
    rate, _ = await b.requests("echo")
    b.add(
        Row(
            "3 HTTP steps, 64 in flight",
            3 * count / elapsed,
            "steps/s",
            2700,
            rate,
            "bare aiohttp requests",
            note=f"{count / elapsed:,.0f} runs/s, run p99 {percentile(took, 0.99) * 1e3:.0f} ms; {cpu}",
        )
    )


async def bench_latency(b: Bench) -> None:
    """(d) One unloaded run at a time, from StartRun to SUCCEEDED."""
    count = b.count(1200)
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(PURE, HTTP) as client:
            await in_flight(30, lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), 1)
            _, took = await in_flight(count, lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), 1)
            await in_flight(30, lambda _: client.start("http", payload, wait=True), 1)
            _, http = await in_flight(count // 3, lambda _: client.start("http", payload, wait=True), 1)
    _, call = await bare.grpc_calls(count // 2, 1)
    commit = 1 / b.sqlite(1)
    for share, budget in ((0.5, 2.8), (0.99, 8.0)):
        floor = (percentile(call, share) + commit) * 1e3
        name = f"one run of 3 pure steps, p{share * 100:.0f}"
        b.add(Row(name, percentile(took, share) * 1e3, "ms", budget, floor, "one gRPC call + one commit", higher=False))
    for share in (0.5, 0.99):
        b.add(Row(f"one run of 3 HTTP steps, p{share * 100:.0f}", percentile(http, share) * 1e3, "ms", higher=False))


async def bench_webhook(b: Bench) -> None:
    """(e) Signed release payloads of 8 KB over 64 connections, verified and durable, to their 2xx."""
    count = b.count(8000)
    body = github_payload()
    async with serving(HOOK) as client:
        daemon = client.daemon
        secrets = daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
        await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="GITHUB_WEBHOOK_SECRET", value=SECRET))
        headers = github_headers(SECRET, body)
        connector = aiohttp.TCPConnector(limit=bare.IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def deliver(_: int) -> None:
                delivery = {"X-GitHub-Delivery": str(uuid.uuid4())}
                async with session.post(f"{daemon.http}/hooks/default/github", data=body, headers=delivery) as response:
                    answer = await response.read()
                    if response.status != 202:
                        raise RuntimeError(f"{response.status}: {answer[:200]!r}")

            await in_flight(300, deliver)
            meter = Meter(daemon)
            elapsed, took = await in_flight(count, deliver)
            cpu = meter.per(count, "ack")
        await client.until_idle()
        await client.check_all_succeeded("hook", 300 + count)
    rate, p99 = await b.requests("http")
    b.add(
        Row(
            "webhook acks, 64 connections",
            count / elapsed,
            "acks/s",
            2200,
            rate,
            "bare aiohttp server",
            note=f"{len(body):,} bytes each; {cpu}",
        )
    )
    b.add(
        Row("webhook ack, p99", percentile(took, 0.99) * 1e3, "ms", 60, p99 * 1e3, "bare aiohttp server", higher=False)
    )


async def bench_chain(b: Bench) -> None:
    """(f) A chain of 40 light steps, one run at a time."""
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(CHAIN, HTTP_CHAIN) as client:
            await in_flight(5, lambda _: client.start("chain", "{}", wait=True), 1)
            _, took = await in_flight(b.count(160), lambda _: client.start("chain", "{}", wait=True), 1)
            await in_flight(3, lambda _: client.start("httpchain", payload, wait=True), 1)
            _, http = await in_flight(
                max(10, b.count(160) // 8), lambda _: client.start("httpchain", payload, wait=True), 1
            )
    b.add(
        Row(
            "chain of 40 transforms, p50",
            percentile(took, 0.5) * 1e3,
            "ms",
            250,
            1e3 / b.sqlite(1),
            "one commit",
            higher=False,
        )
    )
    b.add(
        Row(
            "chain of 40 HTTP steps, p50",
            percentile(http, 0.5) * 1e3,
            "ms",
            250,
            80e3 / b.sqlite(1),
            "80 commits",
            higher=False,
        )
    )


async def bench_fan(b: Bench) -> None:
    """(i) One run that fans out, from StartRun to its end."""
    with bare.server("echo") as port:
        async with serving(FAN_LIGHT, FAN_HTTP) as client:
            for workflow, what, size, budget in (
                ("fan", "light", 1000, 0.35),
                ("fan", "light", 10_000, 3.5),
                ("httpfan", "HTTP", 1000, 0.35),
            ):
                text = json.dumps({"items": list(range(size)), "url": f"http://127.0.0.1:{port}/echo"})
                _, took = await in_flight(3 if b.quick else 7, functools.partial(_fan, client, workflow, text), 1)
                name = f"fan-out of {size:,} {what} steps, median"
                yardstick = size / b.sqlite(100)
                b.add(Row(name, percentile(took, 0.5), "s", budget, yardstick, "100 a commit", higher=False))


async def _fan(client: Client, workflow: str, text: str, _: int) -> None:
    await client.start(workflow, text, wait=True)


async def bench_fair(b: Bench) -> None:
    """(j) One run of a quiet tenant, beside 10,000 runs of another one, against the same run alone."""
    count = b.count(10_000)
    with bare.server("echo") as port:
        text = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(HTTP) as client:
            namespaces = client.daemon.stub(namespace_service_pb2_grpc.NamespaceServiceStub)
            await namespaces.SetNamespace(namespace_service_pb2.SetNamespaceRequest(name="quiet"))
            workflows = client.daemon.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
            await workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(namespace="quiet", source=HTTP))
            start = functools.partial(client.start, "http", text, wait=True, namespace="quiet")
            _, alone = await in_flight(5, lambda _: start(), 1)
            for at in range(0, count, 1000):
                await client.start_batch("http", text, min(1000, count - at))
            _, beside = await in_flight(5, lambda _: start(), 1)
            left = await client.open_runs()
            if not left:
                raise RuntimeError("the flood was over before it was measured")
            await client.until_idle()
    b.add(
        Row(
            f"run beside {count:,} of another tenant, median",
            percentile(beside, 0.5) * 1e3,
            "ms",
            None,
            percentile(alone, 0.5) * 1e3,
            "the same run alone",
            higher=False,
            note=f"{left:,} runs of the other were still open",
        )
    )


def _cron_definition(number: int, count: int, expression: str) -> str:
    triggers = "".join(
        f'  t{n}: {{cron: {{schedule: "{expression}", seconds: true, overlap: allow}}}}\n' for n in range(count)
    )
    return f"name: cron-{number:04}\non:\n{triggers}steps:\n  - {{id: a, transform: {{n: 1}}}}\n"


async def bench_cron(b: Bench) -> None:
    """(i) What cron triggers cost while nothing is due, and how late they fire when all are due at one second."""
    total = 10_000 if not b.quick else 2_000
    idle = [_cron_definition(number, 100, "0 0 0 1 1 *") for number in range(total // 100)]
    async with serving(*idle) as client:
        await asyncio.sleep(1.0)
        before, began = _cpu_s(client.daemon.pid), time.perf_counter()
        await asyncio.sleep(10.0)
        busy = (_cpu_s(client.daemon.pid) - before) / (time.perf_counter() - began)
    b.add(Row(f"{total:,} cron triggers, idle", 100 * busy, "% of a core", None, higher=False))
    count = total // 2
    due = time.gmtime(time.time() + 20 + count / 250)
    expression = f"{due.tm_sec} {due.tm_min} {due.tm_hour} * * *"
    definitions = [_cron_definition(number, 100, expression) for number in range(count // 100)]
    async with serving(*definitions) as client:
        while (await client.stats()).fired_slots < count:
            await asyncio.sleep(0.2)
        stats = await client.stats()
    name = f"{count:,} cron triggers due at one second, last fired"
    note = f"median {stats.lateness_p50_ms:,.0f} ms of the last 1,024"
    b.add(Row(name, stats.lateness_max_ms / 1000, "s", 10, higher=False, note=note))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def bench_events(b: Bench) -> None:
    """(j) Internal events published by a client, each matching one trigger, to the last run SUCCEEDED."""
    count = b.count(4000)
    async with serving(LISTENER) as client:
        await in_flight(200, lambda n: client.publish("order.paid", f'{{"n":{n}}}'))
        await client.until_idle()
        meter = Meter(client.daemon)
        began = time.perf_counter()
        await in_flight(count, lambda n: client.publish("order.paid", f'{{"n":{n}}}'))
        while (await client.stats()).pending_events:
            await asyncio.sleep(0.05)
        await client.until_idle()
        elapsed = time.perf_counter() - began
        cpu = meter.per(count, "event")
        await client.check_all_succeeded("listener", 200 + count)
    calls = await b.grpc()
    b.add(Row("published event to ended run", count / elapsed, "events/s", None, calls, "bare gRPC calls", note=cpu))


async def bench_start(b: Bench) -> None:
    """(g) From exec to an answered GetInfo, and resident memory when idle."""
    daemon = Daemon(env={"PYTHONWARNINGS": "ignore", "TASKFORGE_LOG_LEVEL": "warning"})
    try:
        daemon.start()  # the first one makes the home and compiles
        for _ in range(5):
            daemon.restart()
        await asyncio.sleep(1.0)
        memory = _resident(daemon.pid)
    finally:
        daemon.close()
    seconds, resident = min(bare.bare_python() for _ in range(3))
    ready = sorted(daemon.ready_s[1:])[2]
    what = "Python with its imports"
    b.add(Row("start to ready, median of 5", ready, "s", 0.7, seconds, what, higher=False))
    b.add(Row("resident memory, idle", memory / 1e6, "MB", 90, resident / 1e6, what, higher=False))


async def bench_help(b: Bench) -> None:
    """(k) Help, from exec to the end, and the completion of a name by a daemon."""
    bare_s = statistics.median(_took([sys.executable, "-c", "import click"]) for _ in range(20))
    for words in (("--help",), ("run", "--help")):
        seconds = statistics.median(_took([sys.executable, "-m", "taskforgectl", *words]) for _ in range(20))
        name = f"taskforgectl {' '.join(words)}, median of 20"
        b.add(Row(name, seconds * 1e3, "ms", 150, bare_s * 1e3, "Python with click", higher=False))
    async with serving(PURE) as client:
        line = "taskforgectl run start "
        names = {"_TASKFORGECTL_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        environment = {**os.environ, **names, "TASKFORGE_HOME": str(client.daemon.home)}
        seconds = statistics.median(
            [await asyncio.to_thread(_took, [sys.executable, "-m", "taskforgectl"], environment) for _ in range(20)]
        )
    b.add(Row("completion of a workflow's name, median of 20", seconds * 1e3, "ms", higher=False))


def _took(command: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


async def bench_disk(b: Bench) -> None:
    """(h) Bytes on disk per finished run, full history, after a clean stop."""
    count = b.count(4000)
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        for workflow, definition, text, budget in (("pure", PURE, '{"n":1}', 2000), ("http", HTTP, payload, 2000)):
            async with serving(definition) as client:
                daemon = client.daemon
                before = await asyncio.to_thread(_stop_and_measure, daemon)
                daemon.start()
                await _start_many(daemon, workflow, text, count)
                taken = await asyncio.to_thread(_stop_and_measure, daemon) - before
            name = f"disk per run of 3 {workflow} steps"
            b.add(Row(name, taken / count, "bytes", budget, higher=False, note=f"{count:,} runs"))


async def bench_prune(b: Bench) -> None:
    """StartRun, one at a time, beside the pruning of many runs and beside a backup of them."""
    old = 1000 * max(2, b.count(100))
    async with serving(PURE) as client:
        await in_flight(old // 1000, lambda _: client.start_batch("pure", '{"n":1}', 1000), 2)
        await client.until_idle()
        alone = await _starts_while(client, asyncio.sleep(10.0))
        copied_s, beside_copy = await _timed(client, client.back_up())
        pruned_s, beside = await _timed(client, client.prune("pure", 1))
    floor = percentile(alone, 0.99) * 1e3
    note = f"{old:,} runs in {pruned_s:.1f} s"
    b.add(Row("StartRun p99 beside pruning", percentile(beside, 0.99) * 1e3, "ms", None, floor, "alone", False, note))
    note = f"backup of {old:,} runs in {copied_s:.1f} s"
    b.add(
        Row(
            "StartRun p99 beside a backup", percentile(beside_copy, 0.99) * 1e3, "ms", None, floor, "alone", False, note
        )
    )
    for name, took in (("alone", alone), ("beside pruning", beside), ("beside a backup", beside_copy)):
        print(f"  StartRun {name}: {len(took):,} calls, p50 {percentile(took, 0.5) * 1e3:.2f} ms,", end=" ")
        print(f"p99 {percentile(took, 0.99) * 1e3:.2f} ms, worst {max(took) * 1e3:.1f} ms", flush=True)


async def _timed(client: Client, work: Coroutine[object, object, None]) -> tuple[float, list[float]]:
    began = time.perf_counter()
    took = await _starts_while(client, work)
    return time.perf_counter() - began, took


async def _starts_while(client: Client, work: Coroutine[object, object, None]) -> list[float]:
    """How long StartRun takes, one call at a time, until something else is done."""
    task = asyncio.create_task(work)
    took: list[float] = []
    while not task.done():
        began = time.perf_counter()
        await client.start("pure", '{"n":1}', wait=False)
        took.append(time.perf_counter() - began)
    await task
    return took


async def _start_many(daemon: Daemon, workflow: str, text: str, count: int) -> None:
    import grpc.aio

    async with grpc.aio.insecure_channel(daemon.tcp) as channel:
        client = Client(daemon, channel)
        await in_flight(count, lambda _: client.start(workflow, text, wait=True))


def _stop_and_measure(daemon: Daemon) -> int:
    if daemon.terminate() != 0:
        raise RuntimeError(f"the daemon did not stop well:\n{daemon.tail()}")
    return sum(file.stat().st_size for file in daemon.home.glob("taskforge.db*"))


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


BENCHES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "pure": bench_pure,
    "batch": bench_batch,
    "http": bench_http,
    "latency": bench_latency,
    "webhook": bench_webhook,
    "chain": bench_chain,
    "fan": bench_fan,
    "fair": bench_fair,
    "cron": bench_cron,
    "events": bench_events,
    "start": bench_start,
    "help": bench_help,
    "disk": bench_disk,
    "prune": bench_prune,
}


# -- the report


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


def _table(rows: list[Row]) -> str:
    head = ("what", "measured", "budget", "", "bare", "of bare", "bare is")
    lines = [
        (
            row.name,
            f"{_number(row.value)} {row.unit}",
            "" if row.budget is None else f"{'>=' if row.higher else '<='} {_number(row.budget)}",
            row.verdict,
            "" if row.bare is None else _number(row.bare),
            row.of_bare,
            row.bare_is,
        )
        for row in rows
    ]
    widths = [max(len(line[n]) for line in [head, *lines]) for n in range(len(head))]

    def show(line: tuple[str, ...]) -> str:
        cells = [
            cell.rjust(w) if n in {1, 2, 4, 5} else cell.ljust(w)
            for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([show(head), show(tuple("-" * w for w in widths)), *(show(line) for line in lines)])


def _machine() -> dict[str, object]:
    import sqlite3

    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": platform.machine(),
    }


def _write(machine: dict[str, object], b: Bench) -> Path:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
    records = [{"kind": "machine", **machine, "quick": b.quick}, {"kind": "bare", **b.bare_figures()}]
    records += [{"kind": "row", **asdict(row)} for row in b.rows]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


async def _run(b: Bench, names: list[str]) -> None:
    for name in names:
        print(f"{name}: {(BENCHES[name].__doc__ or '').splitlines()[0]}", flush=True)
        await BENCHES[name](b)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the work; figures are rougher")
    parser.add_argument("--only", default=",".join(BENCHES), help=f"rows to measure: {','.join(BENCHES)}")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name]
    if unknown := set(names) - BENCHES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BENCHES)}")
    machine = _machine()
    print(f"{machine['cpus']} cores, load {machine['load_before']:.2f} before the start, SQLite {machine['sqlite']}")
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as folder:
        b = Bench(arguments.quick, Path(folder))
        uvloop.run(_run(b, names))
    print(f"\n{_table(b.rows)}\n\nwritten to {_write(machine, b).relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
