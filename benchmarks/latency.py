"""How long one thing takes: an unloaded run, 40 steps in a row, a fan-out, a run beside somebody else's flood."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

from taskforge.v1 import (
    namespace_service_pb2,
    namespace_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from benchmarks import bare
from benchmarks.client import serving, timed
from benchmarks.definitions import CHAIN, FAN_HTTP, FAN_LIGHT, FIBONACCI_HTTP, FIBONACCI_SHELL, HTTP, PURE
from benchmarks.load import load, percentile
from benchmarks.measure import Bench


async def latency(b: Bench) -> None:
    """One unloaded run at a time, from StartRun to SUCCEEDED."""
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(PURE, HTTP) as client:
            await load(lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), count=30, width=1)
            took = await load(lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), seconds=b.seconds(4), width=1)
            await load(lambda _: client.start("http", payload, wait=True), count=30, width=1)
            http = await load(lambda _: client.start("http", payload, wait=True), seconds=b.seconds(4), width=1)
    call = await bare.grpc_calls(b.seconds(1.5), 1)
    commit = 1e3 / await b.bare("sqlite 1")
    b.report("latency.p50", took.ms(0.5), bare=call.ms(0.5) + commit)
    b.report("latency.p99", took.ms(0.99), bare=call.ms(0.99) + commit)
    b.report("latency.http.p50", http.ms(0.5))
    b.report("latency.http.p99", http.ms(0.99))


async def chain(b: Bench) -> None:
    """Windmill's scenario, 40 light steps in a row: as transforms, as HTTP steps, as programs; one run at a time."""
    with bare.server("fibonacci") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/"})
        async with serving(CHAIN, FIBONACCI_HTTP, FIBONACCI_SHELL, env={"TASKFORGE_SHELL_UNSAFE": "true"}) as client:
            await load(lambda _: client.start("chain", "{}", wait=True), count=5, width=1)
            light = await load(lambda _: client.start("chain", "{}", wait=True), seconds=b.seconds(2), width=1)
            await load(lambda _: client.start("fibohttp", payload, wait=True), count=3, width=1)
            http = await load(lambda _: client.start("fibohttp", payload, wait=True), seconds=b.seconds(4), width=1)
            shell = await load(lambda _: client.start("fiboshell", "{}", wait=True), count=b.count(2), width=1)
    commit = 1 / await b.bare("sqlite 1")
    code = "f = lambda n: n if n < 2 else f(n-1) + f(n-2); print(f(10))"
    program = percentile([await timed_program([sys.executable, "-c", code]) for _ in range(b.count(16))], 0.5)
    b.report("chain", light.ms(0.5) / 1e3, bare=commit)
    b.report("chain.http", http.ms(0.5) / 1e3, bare=80 * commit)
    b.report("chain.shell", shell.ms(0.5) / 1e3, bare=40 * program)


async def timed_program(command: list[str]) -> float:
    """The seconds that a program takes from exec to its end."""

    async def execute() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    return await timed(execute())


async def fan(b: Bench) -> None:
    """One run that fans out, from StartRun to its end."""
    with bare.server("echo") as port:
        async with serving(FAN_LIGHT, FAN_HTTP) as client:
            for key, workflow, size, kind, count in (
                ("fan", "fan", 1000, "sqlite 100", 3),
                ("fan.large", "fan", 10_000, "sqlite 100", 1),
                ("fan.http", "httpfan", 1000, "echo", 1),
            ):
                text = json.dumps({"items": list(range(size)), "url": f"http://127.0.0.1:{port}/echo"})
                start = functools.partial(client.start, workflow, text, wait=True)
                took = await load(lambda _, start=start: start(), count=b.count(count), width=1)
                b.report(key, took.ms(0.5) / 1e3, bare=size / await b.bare(kind))


async def fair(b: Bench) -> None:
    """One run of a quiet tenant beside 10,000 runs of another one, against the same run alone."""
    flood = 1000 * max(4, b.count(10))
    with bare.server("echo") as port:
        text = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(HTTP) as client:
            namespaces = client.daemon.stub(namespace_service_pb2_grpc.NamespaceServiceStub)
            await namespaces.SetNamespace(namespace_service_pb2.SetNamespaceRequest(name="quiet"))
            workflows = client.daemon.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
            await workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(namespace="quiet", source=HTTP))
            start = functools.partial(client.start, "http", text, wait=True, namespace="quiet")
            alone = await load(lambda _: start(), count=8, width=1)
            for _ in range(flood // 1000):
                await client.start_batch("http", text, 1000)
            beside = await load(lambda _: start(), count=8, width=1)
            left = await client.open_runs()
    if not left:
        raise RuntimeError("the flood was over before it was measured")
    b.report("fair", beside.ms(0.5), bare=alone.ms(0.5), note=f"{left:,} runs of the other were still open")
