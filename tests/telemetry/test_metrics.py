"""Metrics of a real daemon, scraped over HTTP and read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from harness import Daemon, github_headers, github_payload
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from switchboard import Board, eventually, state

from taskforged.telemetry.families import FAMILIES

from .scraping import Scrape, fetch, parse, scrape

WORK = """
name: work
steps:
  - id: call
    http: {url: "${{ input.url }}"}
    retry: {max_attempts: 3, delay: 10ms, jitter: none}
  - id: shape
    transform: {ok: true}
"""
TICK = """
name: tick
on:
  beat: {cron: {schedule: "* * * * * *", seconds: true}}
steps:
  - {id: shape, transform: {ok: true}}
"""
HOOK = """
name: hooked
on:
  got: {webhook: {path: github, verify: {scheme: github, secret: HOOK}}}
steps:
  - {id: shape, transform: {ok: true}}
"""


async def finished(board: Board, workflow: str, **values: object) -> str:
    run = (await board("StartRun", workflow=workflow, input_json=json.dumps(values))).run
    return state(await board.ended(run.id))


async def test_known_work_gives_known_values(own, effects):
    await own.apply(WORK)
    await own.apply(HOOK)
    await own.secret("HOOK", "s3cret")
    before = await scrape(own)
    assert before.value("taskforge_ready") == 1
    assert before.value("taskforge_step_slots") == 64
    assert await finished(own, "work", url=f"{effects.url}/ok") == "SUCCEEDED"
    assert await finished(own, "work", url=f"{effects.url}/fail?n=2") == "SUCCEEDED"
    assert await finished(own, "work", url=f"{effects.url}/status/404") == "FAILED"
    assert await finished(own, "work", url=f"{effects.url}/status/503") == "DEAD"
    body = github_payload()
    headers = github_headers("s3cret", body)
    assert (await own.post("github", body, headers)).status == 202
    assert (await own.post("github", body, headers)).status == 200
    assert (await own.post("github", body, github_headers("wrong", body))).status == 401
    await own.refused("NOT_FOUND", "GetRun", run_id="run_none")
    now = await scrape(own)

    def grown(name: str, **labels: str) -> float:
        return now.total(name, **labels) - before.total(name, **labels)

    assert grown("taskforge_runs_created_total", namespace="default", workflow="work") == 4
    assert grown("taskforge_runs_ended_total", workflow="work", state="SUCCEEDED") == 2
    assert grown("taskforge_runs_ended_total", workflow="work", state="FAILED") == 1
    assert grown("taskforge_runs_ended_total", workflow="work", state="DEAD") == 1
    assert grown("taskforge_run_duration_seconds_count", queue="default") == 5
    assert grown("taskforge_step_attempts_total", kind="http", outcome="succeeded") == 2
    assert grown("taskforge_step_attempts_total", kind="http", outcome="failed") == 2 + 1 + 3
    assert grown("taskforge_step_retries_total", kind="http") == 2 + 2
    assert grown("taskforge_step_attempt_duration_seconds_count", kind="http") == 8
    assert grown("taskforge_step_queue_wait_seconds_count", namespace="default", queue="default") == 4
    assert now.value("taskforge_dead_letters_open") == 1
    assert now.total("taskforge_open_runs") == 0
    assert {one.labels["outcome"]: one.value for one in now.samples["taskforge_webhook_deliveries_total"]} == {
        "accepted": 1,
        "duplicate": 1,
        "rejected": 1,
    }
    assert grown("taskforge_webhook_ack_duration_seconds_count") == 1
    assert grown("taskforge_http_requests_total", route="hooks", code="202") == 1
    assert grown("taskforge_http_requests_total", route="hooks", code="401") == 1
    assert grown("taskforge_http_requests_total", route="metrics", code="200") == 1
    assert grown("taskforge_grpc_requests_total", method="RunService/StartRun", code="OK") == 4
    assert grown("taskforge_grpc_requests_total", method="RunService/GetRun", code="NOT_FOUND") == 1
    assert grown("taskforge_grpc_request_duration_seconds_count", method="RunService/StartRun") == 4
    assert grown("taskforge_commits_total") == grown("taskforge_commit_duration_seconds_count") > 0
    assert now.value("taskforge_commit_batch_writes_sum") >= now.value("taskforge_commits_total")
    assert now.value("taskforge_database_size_bytes") > 0
    assert now.value("taskforge_disk_free_bytes") > 0
    assert now.value("taskforge_event_loop_lag_seconds_count") > 0
    assert now.value("process_resident_memory_bytes") > 1 << 20
    assert now.value("process_open_fds") > 0
    assert now.value("taskforge_build_info", version=own.daemon.info["version"]) == 1


async def test_what_waits_and_what_runs_is_told_by_queue(own, effects):
    await own("SetQueue", name="slow", running_steps_max=1)
    await own.apply(WORK.replace("name: work", "name: work\nqueue: slow"))
    url = f"{effects.url}/slow?ms=20000"
    await asyncio.gather(*(own("StartRun", workflow="work", input_json=json.dumps({"url": url})) for _ in range(3)))

    def is_told(found: Scrape) -> bool:
        at = {"namespace": "default", "queue": "slow"}
        return found.total("taskforge_running_steps", **at) == 1 and found.total("taskforge_queued_steps", **at) == 2

    found = await eventually(lambda: scrape(own), is_told)
    assert found.value("taskforge_open_runs", state="running") == 3
    for run in await own.runs():
        await own("CancelRun", run_id=run.id)


async def test_a_late_due_time_is_measured(own):
    await own.apply(TICK)
    found = await eventually(lambda: scrape(own), lambda one: one.value("taskforge_schedule_lateness_seconds_count"))
    assert found.value("taskforge_schedules_active") == 1


async def test_names_beyond_the_bound_count_together(effects):
    """200 namespaces with a queue of their own: the text stays small, and nothing is lost from the sums."""
    daemon = Daemon(env={"TASKFORGE_METRICS_NAMES": "20"})
    try:
        await asyncio.to_thread(daemon.start)
        board = Board(daemon)
        count = 200
        for first in range(0, count, 50):
            await asyncio.gather(
                *(use_namespace(board.of(f"tenant-{no}"), effects.url) for no in range(first, first + 50))
            )
        now = await scrape(board)
        for name, amount in (("runs_created_total", count), ("runs_ended_total", count)):
            samples = now.samples[f"taskforge_{name}"]
            assert sum(one.value for one in samples) == amount
            assert len({one.labels["namespace"] for one in samples}) <= 4 * 20 + 1
        created = {one.labels["namespace"]: one.value for one in now.samples["taskforge_runs_created_total"]}
        assert len(created) == 21
        assert created["other"] == count - 20
        assert len(now.samples["taskforge_queued_steps"]) <= 21
        assert len(now.text.splitlines()) < 2500
        await board.close()
    finally:
        await daemon.aclose()


async def use_namespace(board: Board, url: str) -> None:
    await board("SetNamespace", name=board.namespace)
    await board.apply(WORK)
    assert await finished(board, "work", url=url) == "SUCCEEDED"


async def test_no_label_holds_an_id_or_what_a_user_sends(own, effects):
    await own.apply(WORK)
    run = (await own("StartRun", workflow="work", input_json=json.dumps({"url": f"{effects.url}/x"}))).run
    await own.ended(run.id)
    await fetch(own, "/a-path-that-was-made-up")
    text = (await scrape(own)).text
    for forbidden in (run.id, effects.url, "a-path-that-was-made-up", '"run_', '"evt_'):
        assert forbidden not in text


async def test_names_follow_the_conventions(own, effects):
    await own.apply(WORK)
    await finished(own, "work", url=f"{effects.url}/x")
    now = await scrape(own)
    known = {one.full_name: one for one in FAMILIES}
    for name, family in now.families.items():
        if not name.startswith("taskforge_"):
            continue
        full = name + {"counter": "_total"}.get(family.type, "")
        assert full in known, full
        assert family.documentation == known[full].help
        assert re.fullmatch(r"taskforge_[a-z]+(_[a-z]+)*", name)
        assert not re.search(r"(_ms|_millis|_us|_mib|_kb|_count|_sum|_bucket|_total)$", name), name
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_writes")), name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(known[full].labels)
    for one in FAMILIES:
        assert one.help[0].isupper() or one.help[0] == "1"
        assert not one.help.endswith(".")


async def test_openmetrics_is_answered_to_whoever_asks_for_it(own):
    accept = "application/openmetrics-text; version=1.0.0"
    status, kind, text = await fetch(own, Authorization=f"Bearer {own.daemon.token}", Accept=accept)
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    assert {one.name for one in parse_openmetrics(text)} >= {"taskforge_commits", "taskforge_build"}


async def test_metrics_need_a_token_for_all_namespaces(own):
    viewer = (await own.token("VIEWER", None)).secret
    confined = (await own.token("VIEWER")).secret
    trigger = (await own.token("TRIGGER", None)).secret
    for given, status in ((f"Bearer {viewer}", 200), (f"Bearer {confined}", 403), (f"Bearer {trigger}", 403)):
        assert (await fetch(own, Authorization=given))[0] == status
    for given in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {viewer}"}):
        status, _, text = await fetch(own, **given)
        assert status == 401
        assert "taskforge_" not in text


async def test_open_metrics_are_open_on_this_machine_only():
    daemon = Daemon(env={"TASKFORGE_METRICS_OPEN": "true"})
    try:
        await asyncio.to_thread(daemon.start)
        board = Board(daemon)
        assert (await fetch(board))[0] == 200
        for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
            assert (await fetch(board, **{header: "for=203.0.113.7"}))[0] == 401
        await board.close()
    finally:
        await daemon.aclose()


async def test_counters_of_a_crash_begin_again_and_gauges_do_not(own, effects):
    await own.apply(WORK)
    url = f"{effects.url}/slow?ms=600000"
    run = (await own("StartRun", workflow="work", input_json=json.dumps({"url": url}))).run
    await eventually(lambda: scrape(own), lambda one: one.total("taskforge_running_steps") == 1)
    await own.restart()
    now = await eventually(lambda: scrape(own), lambda one: one.total("taskforge_running_steps") == 1)
    assert now.total("taskforge_runs_created_total") == 0
    assert now.value("taskforge_step_attempts_total", kind="http", outcome="lost") == 1
    assert now.value("taskforge_open_runs", state="running") == 1
    await own("CancelRun", run_id=run.id)


def test_the_parser_of_these_tests_refuses_what_is_none():
    with pytest.raises(ValueError):
        parse("taskforge_x{a=b} 1\n")
