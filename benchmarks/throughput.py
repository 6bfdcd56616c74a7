"""How much in a second: runs of pure and of HTTP steps, batches, webhooks, events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

import aiohttp
from harness import github_headers, github_payload
from taskforge.v1 import secret_service_pb2, secret_service_pb2_grpc

from benchmarks import bare
from benchmarks.client import Client, Meter, serving
from benchmarks.definitions import HOOK, HTTP, LISTENER, PURE
from benchmarks.load import IN_FLIGHT, Load, load
from benchmarks.measure import Bench

SECRET = "bench"


async def pure(b: Bench) -> None:
    """3-step runs of transforms, 64 StartRun calls in flight, from the first StartRun to the last SUCCEEDED."""
    async with serving(PURE) as client:
        await load(lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), count=200)
        meter = Meter(client.daemon)
        began = time.perf_counter()
        started = await load(lambda n: client.start("pure", f'{{"n":{n}}}', wait=False), seconds=b.seconds(5))
        await client.until_idle()
        elapsed = time.perf_counter() - began
        cpu = meter.per(started.count)
        meter = Meter(client.daemon)
        waited = await load(lambda n: client.start("pure", f'{{"n":{n}}}', wait=True), seconds=b.seconds(3))
        waited_cpu = meter.per(waited.count)
        await client.check_all_succeeded("pure", 200 + started.count + waited.count)
    calls = await bare.grpc_calls(b.seconds(2))
    note = f"{started.count / elapsed:,.0f} runs/s"
    b.report("pure", 3 * started.count / elapsed, bare=3 * calls.rate, cpu=cpu, note=note)
    b.report("pure.wait", 3 * waited.rate, bare=3 * calls.rate, cpu=waited_cpu, note=f"{waited.rate:,.0f} runs/s")
    b.report("pure.ack", started.ms(0.99), bare=calls.ms(0.99))


async def batch(b: Bench) -> None:
    """The same through BatchStartRuns, 1,000 runs a call, two calls in flight."""
    async with serving(PURE) as client:
        await client.start_batch("pure", '{"n":1}', 200)
        await client.until_idle()
        meter = Meter(client.daemon)
        began = time.perf_counter()
        sent = await load(lambda _: client.start_batch("pure", '{"n":1}', 1000), seconds=b.seconds(6), width=2)
        await client.until_idle()
        elapsed = time.perf_counter() - began
        cpu = meter.per(sent.count * 1000)
        await client.check_all_succeeded("pure", 200 + sent.count * 1000)
    rate = 1000 * sent.count / elapsed
    b.report("batch", 3 * rate, bare=await b.bare("sqlite 100"), cpu=cpu, note=f"{rate:,.0f} runs/s")


async def http(b: Bench) -> None:
    """3-step runs of HTTP calls to an echo server in its own process, 64 runs in flight."""
    with bare.server("echo") as port:
        payload = json.dumps({"url": f"http://127.0.0.1:{port}/echo"})
        async with serving(HTTP) as client:
            await load(lambda _: client.start("http", payload, wait=True), count=100)
            meter = Meter(client.daemon)
            done = await load(lambda _: client.start("http", payload, wait=True), seconds=b.seconds(7))
            cpu = meter.per(done.count)
            await client.check_all_succeeded("http", 100 + done.count)
    note = f"{done.rate:,.0f} runs/s, run p99 {done.ms(0.99):.0f} ms"
    b.report("http", 3 * done.rate, bare=await b.bare("echo"), cpu=cpu, note=note)


async def webhook(b: Bench) -> None:
    """Signed release payloads of 8 KB over 64 connections, verified and durable, to their 2xx; each starts a run."""
    async with serving(HOOK) as client:
        secrets = client.daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
        await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="GITHUB_WEBHOOK_SECRET", value=SECRET))
        await deliver(client, count=200)
        meter = Meter(client.daemon)
        done = await deliver(client, seconds=b.seconds(6))
        cpu = meter.per(done.count)
        await client.until_idle()
        await client.check_all_succeeded("hook", 200 + done.count)
    alone = await bare.http_requests("http", b.seconds(2))
    b.report("webhook", done.rate, bare=alone.rate, cpu=cpu, note=f"p50 {done.ms(0.5):.0f} ms")
    b.report("webhook.p99", done.ms(0.99), bare=alone.ms(0.99))


async def deliver(client: Client, *, seconds: float = 0.0, count: int = 0) -> Load:
    """Send signed deliveries, each with an id of its own, over 64 connections."""
    body = github_payload()
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, headers=github_headers(SECRET, body)) as session:

        async def one(_: int) -> None:
            headers = {"X-GitHub-Delivery": str(uuid.uuid4())}
            address = f"{client.daemon.http}/hooks/default/github"
            async with session.post(address, data=body, headers=headers) as response:
                answer = await response.read()
                if response.status != 202:
                    raise RuntimeError(f"{response.status}: {answer[:200]!r}")

        return await load(one, seconds=seconds, count=count)


async def events(b: Bench) -> None:
    """Internal events published by a client, each matching one trigger, to the last run SUCCEEDED."""
    async with serving(LISTENER) as client:
        await load(lambda n: client.publish("order.paid", f'{{"n":{n}}}'), count=200)
        await _until_settled(client)
        meter = Meter(client.daemon)
        began = time.perf_counter()
        sent = await load(lambda n: client.publish("order.paid", f'{{"n":{n}}}'), seconds=b.seconds(4))
        await _until_settled(client)
        elapsed = time.perf_counter() - began
        cpu = meter.per(sent.count)
        await client.check_all_succeeded("listener", 200 + sent.count)
    b.report("events", sent.count / elapsed, bare=await b.bare("grpc"), cpu=cpu)


async def _until_settled(client: Client) -> None:
    while (await client.stats()).pending_events:
        await asyncio.sleep(0.02)
    await client.until_idle()
