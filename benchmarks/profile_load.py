"""The load client of `profile_run.py`: warms a daemon up, prints a line, and on `go` makes the calls."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from taskforge.v1 import (
    run_service_pb2,
    run_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from benchmarks import load
from benchmarks.definitions import CHAIN, PURE

BATCH = 1000


async def main(kind: str, runs: int, address: str, token: Path) -> None:
    """Make so many runs."""
    metadata = (("authorization", f"Bearer {token.read_text().strip()}"),)
    async with aio.insecure_channel(address) as channel:
        workflows = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
        stub, system = run_service_pb2_grpc.RunServiceStub(channel), system_service_pb2_grpc.SystemServiceStub(channel)
        for definition in (PURE, CHAIN):
            request = workflow_service_pb2.ApplyWorkflowRequest(source=definition)
            await workflows.ApplyWorkflow(request, metadata=metadata)

        async def start(number: int) -> None:
            request = run_service_pb2.StartRunRequest(workflow="pure", input_json=f'{{"n":{number}}}')
            if kind == "chain":
                request = run_service_pb2.StartRunRequest(workflow="chain")
            if kind != "start":
                request.wait.CopyFrom(Duration(seconds=60))
            await stub.StartRun(request, metadata=metadata)

        async def batch(_: int) -> None:
            one = run_service_pb2.StartRunRequest(workflow="pure", input_json='{"n":1}')
            request = run_service_pb2.BatchStartRunsRequest(requests=[one] * BATCH)
            await stub.BatchStartRuns(request, metadata=metadata)

        async def until_idle() -> None:
            while (await system.GetStats(system_service_pb2.GetStatsRequest(), metadata=metadata)).open_runs:
                await asyncio.sleep(0.002)

        call, width, count = start, 64, runs
        if kind == "batch":
            call, width, count = batch, 2, max(1, runs // BATCH)
        elif kind in {"one", "chain"}:
            width = 1
        await load.load(call, count=max(2, count // 20), width=width)
        await until_idle()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        done = await load.load(call, count=count, width=width)
        await until_idle()
        print(f"a call p50 {done.ms(0.5):.2f} ms, p99 {done.ms(0.99):.2f} ms", flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
