"""A correlation id and a trace lead from a request to its run, its sub-runs, its events and what its steps send."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from switchboard import METHODS, Board, eventually

from taskforged.correlation import (
    NO_TRACE,
    Trace,
    attempt_span,
    headers_of,
    parent_of,
    run_span,
    step_span,
    trace_from,
    trace_id_of,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
CALL = """
name: call
steps:
  - id: call
    http: {url: "${{ input.url }}"}
    retry: {max_attempts: 2, delay: 10ms, jitter: none}
  - id: child
    workflow: {name: inner, input: {url: "${{ input.url }}"}}
  - id: tell
    event: {type: told.us, data: {url: "${{ input.url }}"}}
"""
INNER = """
name: inner
steps:
  - {id: call, http: {url: "${{ input.url }}"}}
"""
HEARS = """
name: hears
on:
  it: {event: {type: told.us}, input: {url: "${{ event.body.url }}"}}
steps:
  - {id: call, http: {url: "${{ input.url }}"}}
"""
HOOK = """
name: hooked
on:
  got: {webhook: {path: in, verify: {scheme: none}}, input: {url: "${{ event.body.url }}"}}
steps:
  - {id: call, http: {url: "${{ input.url }}"}}
"""
OWN = """
name: own
steps:
  - id: call
    http:
      url: "${{ input.url }}"
      headers: {Traceparent: mine, X-Correlation-Id: mine, Tracestate: m=1}
"""


class Target:
    """Keeps the headers of every request; the first to /flaky fails."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        flaky = request.path == "/flaky" and len(self.seen) == 1
        return web.json_response({}, status=503 if flaky else 200)


@pytest.fixture
async def target():
    made = Target()
    await made.start()
    yield made
    await made.stop()


async def started(board: Board, workflow: str, url: str, metadata: dict[str, str] | None = None, **more: object) -> str:
    stub, message = METHODS["StartRun"]
    pairs = (("authorization", f"Bearer {board.daemon.token}"), *(metadata or {}).items())
    request = message(namespace=board.namespace, workflow=workflow, input_json=json.dumps({"url": url}), **more)
    return str((await stub(board.channel).StartRun(request, metadata=pairs, timeout=30)).run.id)


async def test_a_trace_leads_through_retries_sub_runs_and_events(board, target):
    for source in (INNER, CALL, HEARS):
        await board.apply(source)
    given_ = {"x-correlation-id": "order-17", "traceparent": PARENT, "tracestate": "a=1,b@c=2"}
    run_id = await started(board, "call", f"{target.url}/flaky", given_)
    await board.ended(run_id)
    await eventually(lambda: asyncio.sleep(0, len(target.seen)), lambda count: count == 4)
    assert {one["x-correlation-id"] for one in target.seen} == {"order-17"}
    assert {one["tracestate"] for one in target.seen} == {"a=1,b@c=2"}
    assert {one["traceparent"][:36] for one in target.seen} == {f"00-{TRACE}-"}
    spans = [one["traceparent"].split("-")[2] for one in target.seen]
    assert spans[:2] == [attempt_span(run_id, "call", 1), attempt_span(run_id, "call", 2)]
    assert len(set(spans)) == 4
    runs = {run.workflow: run for run in await board.runs()}
    for name in ("inner", "hears"):
        assert (await board.run(runs[name].id)).correlation_id == "order-17"
    (told,) = [await board.event(event.id) for event in await board.listed() if event.type == "told.us"]
    assert told.headers["x-correlation-id"] == "order-17"
    assert told.headers["traceparent"] == parent_of(run_id, PARENT, run_span(run_id))
    for run in runs.values():
        assert (await board("VerifyRun", run_id=run.id)).intact


async def test_without_a_trace_a_run_begins_one_and_keeps_it(board, target):
    await board.apply(INNER)
    run_id = await started(board, "inner", target.url)
    await board.ended(run_id)
    again = (await board("RerunRun", run_id=run_id)).run
    await board.ended(again.id)
    first, second = target.seen
    trace = trace_id_of(run_id, "")
    assert first["traceparent"] == f"00-{trace}-{attempt_span(run_id, 'call', 1)}-01"
    assert second["traceparent"] == f"00-{trace}-{attempt_span(again.id, 'call', 1)}-01"
    assert first["x-correlation-id"] == second["x-correlation-id"] == run_id
    assert "tracestate" not in first


async def test_an_explicit_correlation_id_wins_and_a_repeated_call_may_have_another_trace(board, target):
    await board.apply(INNER)
    given_ = {"x-correlation-id": "from-metadata", "traceparent": PARENT}
    first = await started(board, "inner", target.url, given_, correlation_id="explicit", request_id="r1")
    again = await started(
        board, "inner", target.url, {"traceparent": PARENT[:-2] + "00"}, correlation_id="explicit", request_id="r1"
    )
    assert first == again
    assert (await board.ended(first)).correlation_id == "explicit"


async def test_a_webhook_hands_its_trace_over(board, target):
    await board.apply(HOOK)
    body = json.dumps({"url": target.url}).encode()
    headers = {"Content-Type": "application/json", "X-Correlation-ID": "hook-1", "Traceparent": PARENT[:-2] + "00"}
    answer = await board.post("in", body, headers)
    run = await board.ended(answer.body["run_ids"][0])
    assert run.correlation_id == "hook-1"
    assert target.seen[0]["traceparent"] == f"00-{TRACE}-{attempt_span(run.id, 'call', 1)}-00"


async def test_what_is_malformed_is_left_out(board, target):
    await board.apply(INNER)
    bad = {"x-correlation-id": "has space", "traceparent": "00-0-0-00", "tracestate": "a=1"}
    run_id = await started(board, "inner", target.url, bad)
    assert (await board.ended(run_id)).correlation_id == run_id
    assert target.seen[0]["traceparent"].startswith(f"00-{trace_id_of(run_id, '')}-")
    assert "tracestate" not in target.seen[0]


async def test_a_header_of_the_definition_wins(board, target):
    await board.apply(OWN)
    await board.ended(await started(board, "own", target.url, {"traceparent": PARENT, "tracestate": "a=1"}))
    (seen,) = target.seen
    assert (seen["traceparent"], seen["x-correlation-id"], seen["tracestate"]) == ("mine", "mine", "m=1")


# --- the rules by themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "00", PARENT.upper(), PARENT + "-x", "ff" + PARENT[2:], f" {PARENT}", PARENT + "\n"),
        *(f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01", PARENT[:-1], PARENT.replace("-", "_")),
    ],
)
def test_malformed_traceparents(text):
    assert trace_from({"traceparent": text, "tracestate": "a=1"}) == NO_TRACE


def test_later_versions_are_read_as_far_as_they_are_known():
    assert trace_from({"traceparent": "01" + PARENT[2:] + "-more"}).traceparent == PARENT


@pytest.mark.parametrize("text", ["=1", "A=1", "a", "a=\x00", "a=1," * 33, "a=" + "x" * 600, "a=b=c", "a=é"])
def test_malformed_tracestates_do_not_take_the_trace_along(text):
    assert trace_from({"traceparent": PARENT, "tracestate": text}) == Trace("", PARENT, "")


@given(st.text(max_size=200))
def test_whatever_comes_in_can_go_out_as_a_header(text):
    made = headers_of(trace_from({"x-correlation-id": text, "traceparent": PARENT, "tracestate": text}))
    for value in made.values():
        assert value.isascii()
        assert value.isprintable()
        assert 1 <= len(value) <= 512


def test_ids_are_stable_and_told_apart():
    """Backends find a span by these for as long as they keep it: the rule must not change."""
    assert (trace_id_of("run_1", ""), run_span("run_1")) == ("91baa60d2ed29cf0e3d146ac98acbc81", "a650fba24fd346c9")
    ids = [run_span("run_1"), step_span("run_1", "a"), attempt_span("run_1", "a", 1), attempt_span("run_1", "a", 2)]
    assert len(set(ids)) == 4
    assert all(len(one) == 16 and int(one, 16) for one in ids)
