"""Health of a real daemon: over HTTP, over gRPC by service, while it drains, and with a disk that is nearly full."""

from __future__ import annotations

import asyncio
import json

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Daemon
from switchboard import Board, eventually

from .scraping import fetch, scrape

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def checks(board: Board) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(board.channel)


async def test_a_daemon_that_is_ready_says_so_to_strangers(own):
    for path in ("/healthz", "/readyz"):
        assert await fetch(own, path) == (200, "application/json", '{"status":"ok"}')
    for service in ("", "taskforge.v1.RunService", "taskforge.v1.SystemService"):
        answer = await checks(own).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == SERVING, service
    try:
        await checks(own).Check(health_pb2.HealthCheckRequest(service="taskforge.v1.NoService"), timeout=10)
        raise AssertionError("a service that does not exist is healthy")
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_a_service_is_told_before_the_daemon_drains(own):
    watch = checks(own).Watch(health_pb2.HealthCheckRequest(service="taskforge.v1.RunService"))
    assert (await watch.read()).status == SERVING
    await asyncio.to_thread(own.daemon.terminate, wait=False)
    assert (await asyncio.wait_for(watch.read(), 20)).status == NOT_SERVING
    watch.cancel()
    assert await asyncio.to_thread(own.daemon.wait) == 0


async def test_a_nearly_full_disk_is_not_ready_and_lives():
    daemon = Daemon(env={"TASKFORGE_LIMITS_DISK_FREE_MIB": str(1 << 30)})
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        assert (await fetch(board, "/healthz"))[0] == 200
        status, _, text = await eventually(lambda: fetch(board, "/readyz"), lambda found: found[0] == 503)
        assert status == 503
        assert json.loads(text) == {"status": "not ready", "reasons": ["the disk is nearly full"]}
        assert (await checks(board).Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
        assert (await scrape(board)).value("taskforge_ready") == 0
    finally:
        await board.close()
        await daemon.aclose()
