"""A real collector's stand-in takes the spans of real runs over OTLP/HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
import subprocess
import sys

import pytest
from aiohttp import web
from harness import Daemon
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from switchboard import Board, eventually, state

from taskforged.correlation import attempt_span, run_span, step_span, trace_id_of
from taskforged.engine.events import HistoryEvent
from taskforged.engine.states import Kind
from taskforged.telemetry import spans as module
from taskforged.telemetry.spans import spans_of

from .scraping import scrape

PARENT = """
name: parent
steps:
  - id: flaky
    http: {url: "${{ input.url }}/fail?n=1"}
    retry: {max_attempts: 2, delay: 10ms, jitter: none}
  - {id: child, workflow: {name: inner, input: {url: "${{ input.url }}"}}}
"""
INNER = """
name: inner
steps:
  - {id: bad, http: {url: "${{ input.url }}/status/404"}}
"""


class Collector:
    """Takes spans, by id; `is_down` answers 503."""

    def __init__(self) -> None:
        self.spans: dict[str, trace_pb2.Span] = {}
        self.headers: list[dict[str, str]] = []
        self.services: set[str] = set()
        self.is_down = False
        self.spans_max = 10_000
        self.refused = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        if self.is_down:
            self.refused += 1
            return web.Response(status=503)
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        if sum(len(scope.spans) for one in message.resource_spans for scope in one.scope_spans) > self.spans_max:
            self.refused += 1
            return web.Response(status=413)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        for resource in message.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans |= {span.span_id.hex(): span for span in scope.spans}
        return web.Response(body=trace_service_pb2.ExportTraceServiceResponse().SerializeToString())


@pytest.fixture
async def collector():
    made = Collector()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def traced(collector):
    env = {
        "TASKFORGE_OTEL_ENDPOINT": collector.url,
        "TASKFORGE_OTEL_SERVICE_NAME": "forge-test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=ops",
    }
    daemon = Daemon(env=env)
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        yield board
    finally:
        await board.close()
        await daemon.aclose()


async def work(board: Board, url: str) -> tuple[str, str]:
    """Run parent and child; the child fails, so the parent does."""
    for source in (INNER, PARENT):
        await board.apply(source)
    await eventually(lambda: cursor(board), lambda text: text)  # it begins with what ends from now on
    run = (await board("StartRun", workflow="parent", input_json=json.dumps({"url": url}))).run
    assert state(await board.ended(run.id)) == "FAILED"
    child = next(one for one in await board.runs() if one.workflow == "inner")
    return str(run.id), str(child.id)


async def cursor(board: Board) -> str:
    with sqlite3.connect(f"file:{board.daemon.home}/taskforge.db?mode=ro", uri=True) as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = 'otel.cursor'").fetchone()
    connection.close()
    return row[0] if row else ""


async def test_a_run_its_steps_attempts_and_sub_run_are_one_tree(traced, collector, effects):
    run_id, child = await work(traced, effects.url)
    spans = collector.spans
    await eventually(lambda: asyncio.sleep(0, len(spans)), lambda count: count == 8)
    assert {span.trace_id.hex() for span in spans.values()} == {trace_id_of(run_id, "")}
    tree = {one: span.parent_span_id.hex() for one, span in spans.items()}
    assert tree == {
        run_span(run_id): "",
        step_span(run_id, "flaky"): run_span(run_id),
        attempt_span(run_id, "flaky", 1): step_span(run_id, "flaky"),
        attempt_span(run_id, "flaky", 2): step_span(run_id, "flaky"),
        step_span(run_id, "child"): run_span(run_id),
        run_span(child): step_span(run_id, "child"),
        step_span(child, "bad"): run_span(child),
        attempt_span(child, "bad", 1): step_span(child, "bad"),
    }
    failed = {one for one, span in spans.items() if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR}
    assert failed == {
        *(run_span(run_id), step_span(run_id, "child"), attempt_span(run_id, "flaky", 1)),
        *(run_span(child), step_span(child, "bad"), attempt_span(child, "bad", 1)),
    }
    assert "404" in spans[attempt_span(child, "bad", 1)].status.message
    assert [event.name for event in spans[step_span(run_id, "flaky")].events] == ["step.retrying"]
    for one, parent in tree.items():
        assert spans[one].start_time_unix_nano <= spans[one].end_time_unix_nano
        if parent:
            assert spans[parent].start_time_unix_nano <= spans[one].start_time_unix_nano
    assert collector.services == {"forge-test"}
    assert collector.headers[0]["x-team"] == "ops"
    assert (await scrape(traced)).value("taskforge_spans_exported_total") == 8
    retried = (await traced("RetryRun", run_id=run_id)).run.id
    await traced.ended(retried)
    again = await eventually(lambda: asyncio.sleep(0, spans.get(run_span(retried))), lambda span: span)
    assert again.trace_id.hex() == trace_id_of(run_id, "")
    assert [link.span_id.hex() for link in again.links] == [run_span(run_id)]


async def test_a_collector_that_is_down_costs_nothing_but_delay(traced, collector, effects):
    collector.is_down = True
    run_id, _ = await work(traced, effects.url)
    await eventually(lambda: asyncio.sleep(0, collector.refused), lambda count: count >= 1)
    await traced.restart()
    collector.is_down = False
    await eventually(lambda: asyncio.sleep(0, len(collector.spans)), lambda count: count == 8)
    assert run_span(run_id) in collector.spans


async def test_a_run_of_many_steps_goes_in_pieces_that_a_collector_takes(traced, collector):
    collector.spans_max = 600
    await traced.apply(
        "name: wide\ninput: {type: object}\nsteps:\n  - {id: each, for_each: '${{ input.items }}', transform: 1}\n"
    )
    await eventually(lambda: cursor(traced), lambda text: text)
    items = json.dumps({"items": list(range(900))})
    run = (await traced("StartRun", workflow="wide", input_json=items)).run.id
    assert state(await traced.ended(run)) == "SUCCEEDED"
    await eventually(lambda: asyncio.sleep(0, len(collector.spans) + collector.refused), lambda count: count > 900)
    assert collector.refused == 0
    assert run_span(run) in collector.spans


async def test_events_without_an_end_of_a_run_are_not_looked_at_again(traced, collector):
    await eventually(lambda: cursor(traced), lambda text: text)
    await asyncio.to_thread(traced.daemon.terminate)
    with sqlite3.connect(traced.daemon.home / "taskforge.db") as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) INSERT INTO events"
            " SELECT (SELECT coalesce(max(no), 0) FROM events) + i, 'evt_' || i, 1, 'webhook', '', 'FILTERED', '', '',"
            " '', '', '{}', '{}', x'', 0, '', '', '[]', 1, '', NULL, 0, '', '', '', '', '' FROM n"
        )
        newest = connection.execute("SELECT max(no) FROM events").fetchone()[0]
    connection.close()
    await asyncio.to_thread(traced.daemon.start)
    await eventually(lambda: cursor(traced), lambda text: int(text) >= newest - 10_000)
    await traced.apply("name: one\nsteps:\n  - {id: one, transform: 1}\n")
    run = (await traced("StartRun", workflow="one")).run.id
    await eventually(lambda: asyncio.sleep(0, collector.spans.get(run_span(run))), lambda span: span)


def test_without_an_endpoint_the_libraries_are_not_even_loaded():
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, taskforged.wiring; print([m for m in sys.modules if 'opentelemetry' in m])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "[]"


async def test_without_the_extra_an_endpoint_is_an_error_that_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry'] = None\n")
    env = {"TASKFORGE_OTEL_ENDPOINT": "http://127.0.0.1:4318", "PYTHONPATH": str(tmp_path)}
    daemon = Daemon(env=env)
    try:
        with pytest.raises(AssertionError, match=r"pip install '\.\[otel\]'"):
            await asyncio.to_thread(daemon.start)
    finally:
        await daemon.aclose()


# --- the rules by themselves -----------------------------------------------------------------------------------------

CREATED = {"run_id": "run_1", "namespace": "default", "workflow": "w", "version": 1, "input": {}}


def history(
    *entries: tuple[Kind, str, dict[str, object]], created: dict[str, object] | None = None
) -> list[HistoryEvent]:
    first = (Kind.RUN_CREATED, "", {**CREATED, **(created or {})})
    return [HistoryEvent(no + 1, no, kind, step, 1, body) for no, (kind, step, body) in enumerate((first, *entries))]


def test_who_does_not_want_a_trace_gets_none():
    unsampled = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    assert spans_of(history((Kind.RUN_SUCCEEDED, "", {}), created=unsampled)) == []
    assert len(spans_of(history((Kind.RUN_SUCCEEDED, "", {})))) == 1


def test_a_run_has_a_bounded_number_of_spans(monkeypatch):
    monkeypatch.setattr(module, "SPANS_MAX", 10)
    steps = [(Kind.STEP_SUCCEEDED, f"s[{no}]", {}) for no in range(50)]
    spans = spans_of(history(*steps, (Kind.RUN_SUCCEEDED, "", {})))
    assert len(spans) == 10
    assert spans[0].attributes["taskforge.spans_left_out"] == 41
