"""Workflows and runs through the API of a real daemon."""

import asyncio
import json

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from taskforge.v1 import (
    run_pb2,
)
from taskforge.v1 import (
    run_service_pb2 as runs,
)
from taskforge.v1 import (
    run_service_pb2_grpc as runs_grpc,
)
from taskforge.v1 import (
    secret_service_pb2 as secrets,
)
from taskforge.v1 import (
    secret_service_pb2_grpc as secrets_grpc,
)
from taskforge.v1 import (
    workflow_service_pb2 as workflows,
)
from taskforge.v1 import (
    workflow_service_pb2_grpc as workflows_grpc,
)

ADD = """
name: add
description: Adds one
labels: {team: core}
input:
  type: object
  required: [n]
  properties:
    n: {type: integer}
    deep: {type: object, properties: {list: {type: array, items: {type: string}}}}
steps:
  - id: sum
    transform: {n: "${{ input.n + 1 }}"}
output: {n: "${{ steps.sum.output.n }}"}
"""

SLOW = """
name: slow
input: {type: object, properties: {url: {type: string}}}
steps:
  - id: call
    http: {url: "${{ input.url }}"}
    timeout: 60s
"""


def stubs(daemon):
    return daemon.stub(workflows_grpc.WorkflowServiceStub), daemon.stub(runs_grpc.RunServiceStub)


async def refused(awaitable, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def violations(error):
    bad = error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(error).details:
        if detail.Unpack(bad):
            return [(v.field, v.description) for v in bad.field_violations]
    return []


async def wait_for(call, condition, turns=500):
    for _ in range(turns):
        found = await call()
        if condition(found):
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"never happened; last was {found}")


async def test_apply_makes_versions_only_for_changes(tenant):
    flow, _ = stubs(tenant)
    first = await flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source=ADD))
    assert (first.changed, first.version.number, first.workflow.active) == (True, 1, True)
    same = await flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source="# a comment\n" + ADD))
    assert (same.changed, same.version.number) == (False, 1)
    second = await flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source=ADD.replace("+ 1", "+ 2")))
    assert (second.changed, second.version.number) == (True, 2)
    listed = await flow.ListWorkflowVersions(workflows.ListWorkflowVersionsRequest(name="add", page_size=1))
    assert [v.number for v in listed.versions] == [2]
    rest = await flow.ListWorkflowVersions(
        workflows.ListWorkflowVersionsRequest(name="add", page_size=1, page_token=listed.next_page_token)
    )
    assert ([v.number for v in rest.versions], rest.next_page_token) == ([1], "")
    old = await flow.GetWorkflowVersion(workflows.GetWorkflowVersionRequest(name="add", number=1))
    assert old.version.source == ADD
    shown = await flow.GetWorkflow(workflows.GetWorkflowRequest(name="add"))
    assert (shown.workflow.description, dict(shown.workflow.labels)) == ("Adds one", {"team": "core"})


async def test_equal_definitions_at_once_make_one_version(tenant):
    flow, _ = stubs(tenant)
    answers = await asyncio.gather(*(flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source=ADD)) for _ in range(20)))
    assert sum(a.changed for a in answers) == 1
    assert {a.version.number for a in answers} == {1}


async def test_an_invalid_definition_answers_every_problem_and_stores_nothing(tenant):
    flow, _ = stubs(tenant)
    source = "name: bad\nsteps:\n  - id: one\n    htp: {url: x}\n  - id: two\n    transform: {x: '${{ inptu.n }}'}\n"
    error = await refused(
        flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source=source)), grpc.StatusCode.INVALID_ARGUMENT
    )
    found = violations(error)
    assert len(found) >= 2
    assert all(text.startswith("line ") for _, text in found)
    assert any("did you mean" in text and "http" in text for _, text in found)
    checked = await flow.ValidateWorkflow(workflows.ValidateWorkflowRequest(source=source))
    assert [p.line for p in checked.problems] == sorted(p.line for p in checked.problems)
    assert not (await flow.ListWorkflows(workflows.ListWorkflowsRequest())).workflows


async def test_a_run_ends_with_its_output_and_keeps_its_version(tenant):
    flow, run = stubs(tenant)
    await tenant.apply(ADD)
    request = runs.StartRunRequest(workflow="add", input_json='{"n": 9007199254740993}')
    request.wait.FromSeconds(10)
    done = (await run.StartRun(request)).run
    assert done.state == run_pb2.Run.STATE_SUCCEEDED
    assert json.loads(done.output_json) == {"n": 9007199254740994}
    await tenant.apply(ADD.replace("+ 1", "+ 100"))
    again = (await run.GetRun(runs.GetRunRequest(run_id=done.id))).run
    assert (again.version, again.output_json) == (1, done.output_json)
    verdict = await run.VerifyRun(runs.VerifyRunRequest(run_id=done.id))
    assert verdict.intact and verdict.events == done.sequence == 4


@pytest.mark.parametrize(
    "text, path",
    [
        ('{"n": "x"}', "$.n"),
        ("{}", "$.n"),
        ('{"n": 1, "deep": {"list": ["a", 2]}}', "$.deep.list[1]"),
        ("[1]", "$"),
        ('{"n": 1', "input_json"),
        ('{"n": NaN}', "input_json"),
        ('{"n": 1, "n": 2}', "input_json"),
        ('{"n": 99999999999999999999}', "input_json"),
        ('{"n": 1e999}', "input_json"),
        ('{"n": 1, "x": "\\ud800"}', "input_json"),
        ("[" * 100_000, "input_json"),
    ],
)
async def test_input_that_does_not_fit_is_refused_with_its_place(shared, text, path):
    run = shared.stub(runs_grpc.RunServiceStub)
    request = runs.StartRunRequest(workflow="add", input_json=text)
    error = await refused(run.StartRun(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert path in [field for field, _ in violations(error)], violations(error)


@pytest.fixture
async def shared(tenant):
    await tenant.apply(ADD)
    return tenant


async def test_bounds(shared):
    flow, run = stubs(shared)
    exhausted, invalid = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT
    big = json.dumps({"n": 1, "pad": "x" * (1 << 20)})
    await refused(run.StartRun(runs.StartRunRequest(workflow="add", input_json=big)), exhausted)
    await refused(run.StartRun(runs.StartRunRequest(workflow="add", input_json="x" * (9 << 20))), exhausted)
    await refused(flow.ApplyWorkflow(workflows.ApplyWorkflowRequest(source="#" * 300_000)), invalid)
    await refused(run.ListRuns(runs.ListRunsRequest(page_size=-1)), invalid)
    await refused(run.ListRuns(runs.ListRunsRequest(page_token="nonsense")), invalid)
    await refused(run.BatchStartRuns(runs.BatchStartRunsRequest()), invalid)
    await refused(run.StartRun(runs.StartRunRequest(workflow="nope")), grpc.StatusCode.NOT_FOUND)
    await refused(run.GetRun(runs.GetRunRequest(run_id="run_nope")), grpc.StatusCode.NOT_FOUND)
    await refused(run.GetRun(runs.GetRunRequest(run_id="'; DROP TABLE runs; --")), grpc.StatusCode.NOT_FOUND)
    await refused(run.StartRun(runs.StartRunRequest(workflow="add", namespace="other")), grpc.StatusCode.NOT_FOUND)
    slow = runs.StartRunRequest(workflow="add", input_json='{"n":1}')
    slow.wait.FromSeconds(10_000)
    await refused(run.StartRun(slow), invalid)


async def test_a_request_id_starts_one_run(shared):
    _, run = stubs(shared)
    request = runs.StartRunRequest(workflow="add", input_json='{"n": 1}', request_id="r-1")
    answers = await asyncio.gather(*(run.StartRun(request) for _ in range(30)))
    assert len({answer.run.id for answer in answers}) == 1
    other = runs.StartRunRequest(workflow="add", input_json='{"n": 2}', request_id="r-1")
    await refused(run.StartRun(other), grpc.StatusCode.ALREADY_EXISTS)
    shared.restart()
    await shared.disconnect()
    _, run = stubs(shared)
    assert (await run.StartRun(request)).run.id == answers[0].run.id
    assert len((await run.ListRuns(runs.ListRunsRequest())).runs) == 1


async def test_a_batch_is_all_or_none_and_keeps_its_order(shared):
    _, run = stubs(shared)
    good = [runs.StartRunRequest(workflow="add", input_json=json.dumps({"n": i})) for i in range(500)]
    started = await run.BatchStartRuns(runs.BatchStartRunsRequest(requests=good))
    assert len(set(started.run_ids)) == 500
    shown = (await run.GetRun(runs.GetRunRequest(run_id=started.run_ids[123]))).run
    assert json.loads(shown.output_json) == {"n": 124}
    bad = [*good[:3], runs.StartRunRequest(workflow="add", input_json='{"n": "x"}')]
    error = await refused(
        run.BatchStartRuns(runs.BatchStartRunsRequest(requests=bad)), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert violations(error)[0][0] == "requests[3].$.n"
    assert len(await shared.list_runs()) == 500


async def test_lists_are_paged_and_filtered(shared):
    _, run = stubs(shared)
    await run.BatchStartRuns(
        runs.BatchStartRunsRequest(requests=[runs.StartRunRequest(workflow="add", input_json='{"n": 1}')] * 25)
    )
    seen, token = [], ""
    while True:
        page = await run.ListRuns(runs.ListRunsRequest(page_size=10, page_token=token))
        seen += [r.id for r in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 25
    failed = runs.ListRunsRequest(states=[run_pb2.Run.STATE_FAILED])
    assert not (await run.ListRuns(failed)).runs
    first = await run.ListRuns(runs.ListRunsRequest(page_size=10))
    mixed = runs.ListRunsRequest(page_size=10, page_token=first.next_page_token, states=[run_pb2.Run.STATE_FAILED])
    await refused(run.ListRuns(mixed), grpc.StatusCode.INVALID_ARGUMENT)


async def test_cancel_reaches_a_running_request(tenant, effects):
    _, run = stubs(tenant)
    await tenant.apply(SLOW)
    url = json.dumps({"url": f"{effects.url}/slow?ms=60000"})
    started = (await run.StartRun(runs.StartRunRequest(workflow="slow", input_json=url))).run
    get = lambda: run.GetRun(runs.GetRunRequest(run_id=started.id))
    await wait_for(get, lambda a: a.run.steps and a.run.steps[0].state == run_pb2.StepRun.STATE_RUNNING)
    first = await run.CancelRun(runs.CancelRunRequest(run_id=started.id, reason="enough"))
    assert first.run.cancel_requested
    done = await wait_for(get, lambda a: a.run.state == run_pb2.Run.STATE_CANCELLED)
    assert done.run.steps[0].state == run_pb2.StepRun.STATE_CANCELLED
    again = await run.CancelRun(runs.CancelRunRequest(run_id=started.id))
    assert again.run.state == run_pb2.Run.STATE_CANCELLED
    assert (await run.VerifyRun(runs.VerifyRunRequest(run_id=started.id))).intact


async def test_a_run_that_has_ended_cannot_be_cancelled(shared):
    _, run = stubs(shared)
    request = runs.StartRunRequest(workflow="add", input_json='{"n": 1}')
    done = (await run.StartRun(request)).run
    error = await refused(run.CancelRun(runs.CancelRunRequest(run_id=done.id)), grpc.StatusCode.FAILED_PRECONDITION)
    assert "SUCCEEDED" in error.details()


async def test_a_sleep_survives_a_kill(tenant):
    _, run = stubs(tenant)
    await tenant.apply("name: nap\nsteps:\n  - {id: rest, sleep: 1500ms}\n  - {id: up, transform: {ok: true}}\n")
    started = (await run.StartRun(runs.StartRunRequest(workflow="nap"))).run
    tenant.restart()
    get = lambda: tenant.stub(runs_grpc.RunServiceStub).GetRun(runs.GetRunRequest(run_id=started.id))
    done = (await wait_for(get, lambda a: a.run.HasField("end_time"))).run
    assert done.state == run_pb2.Run.STATE_SUCCEEDED
    assert done.end_time.ToMicroseconds() - done.start_time.ToMicroseconds() >= 1_500_000


async def test_a_watch_resumes_where_it_was(tenant):
    _, run = stubs(tenant)
    await tenant.apply("name: nap\nsteps:\n  - {id: a, transform: {x: 1}}\n  - {id: rest, sleep: 2s}\n")
    started = (await run.StartRun(runs.StartRunRequest(workflow="nap"))).run
    seen = []
    stream = run.WatchRun(runs.WatchRunRequest(run_id=started.id))
    seen += [e.sequence for e in (await stream.read()).events]
    stream.cancel()
    tenant.restart()
    async for portion in run.WatchRun(runs.WatchRunRequest(run_id=started.id, after_sequence=seen[-1])):
        seen += [e.sequence for e in portion.events]
        last = portion.run
    assert seen == list(range(1, len(seen) + 1))
    assert last.state == run_pb2.Run.STATE_SUCCEEDED
    future = runs.WatchRunRequest(run_id=started.id, after_sequence=999)
    await refused(run.WatchRun(future).read(), grpc.StatusCode.INVALID_ARGUMENT)


async def test_many_watchers_see_the_same(tenant):
    _, run = stubs(tenant)
    await tenant.apply("name: nap\nsteps:\n  - {id: a, transform: {x: 1}}\n  - {id: rest, sleep: 500ms}\n")
    started = (await run.StartRun(runs.StartRunRequest(workflow="nap"))).run

    async def watch(after):
        found = []
        async for portion in run.WatchRun(runs.WatchRunRequest(run_id=started.id, after_sequence=after)):
            found += [e.sequence for e in portion.events]
        return found

    found = await asyncio.gather(*(watch(i % 4) for i in range(40)))
    whole = [event.sequence for event in await tenant.history(started.id)]
    assert [list(one) for one in found] == [whole[i % 4 :] for i in range(40)]


async def test_a_workflow_with_open_runs_cannot_be_deleted(tenant):
    flow, run = stubs(tenant)
    await tenant.apply("name: nap\nsteps:\n  - {id: rest, sleep: 1h}\n")
    started = (await run.StartRun(runs.StartRunRequest(workflow="nap"))).run
    delete = workflows.DeleteWorkflowRequest(name="nap")
    await refused(flow.DeleteWorkflow(delete), grpc.StatusCode.FAILED_PRECONDITION)
    await run.CancelRun(runs.CancelRunRequest(run_id=started.id))
    await flow.DeleteWorkflow(delete)
    await refused(flow.GetWorkflow(workflows.GetWorkflowRequest(name="nap")), grpc.StatusCode.NOT_FOUND)
    assert (await run.GetRun(runs.GetRunRequest(run_id=started.id))).run.workflow == "nap"
    assert (await run.ListRuns(runs.ListRunsRequest())).runs[0].workflow == "nap"
    again = await flow.ApplyWorkflow(
        workflows.ApplyWorkflowRequest(source="name: nap\nsteps:\n  - {id: x, sleep: 1s}\n")
    )
    assert again.version.number == 1


async def test_retries_end_dead_and_on_failure_sees_why(tenant, effects):
    _, run = stubs(tenant)
    await tenant.apply(
        f"""
name: doomed
steps:
  - id: call
    http: {{url: "{effects.url}/status/503"}}
    retry: {{max_attempts: 3, delay: 10ms, strategy: fixed, jitter: none}}
  - id: never
    transform: {{x: 1}}
on_failure:
  - id: alert
    http: {{method: POST, url: "{effects.url}/ops", json: {{error: "${{{{ error.message }}}}", step: "${{{{ error.step }}}}", attempts: "${{{{ error.attempts }}}}"}}}}
"""
    )
    request = runs.StartRunRequest(workflow="doomed")
    request.wait.FromSeconds(20)
    done = (await run.StartRun(request)).run
    assert done.state == run_pb2.Run.STATE_DEAD
    assert (done.error.code, done.error.step, done.error.attempts) == ("http_status", "call", 3)
    states = {s.key: run_pb2.StepRun.State.Name(s.state) for s in done.steps}
    assert states == {"call": "STATE_DEAD", "never": "STATE_SKIPPED", "alert": "STATE_SUCCEEDED"}
    calls = effects.calls()
    assert len(calls[f"{done.id}/call"]) == 3
    assert len(calls[f"{done.id}/alert"]) == 1
    assert (await run.VerifyRun(runs.VerifyRunRequest(run_id=done.id))).intact


async def test_an_expression_that_fails_names_itself(tenant):
    _, run = stubs(tenant)
    await tenant.apply("name: oops\nsteps:\n  - id: bad\n    transform: {x: '${{ input.missing.deep }}'}\n")
    request = runs.StartRunRequest(workflow="oops")
    request.wait.FromSeconds(10)
    done = (await run.StartRun(request)).run
    assert done.state == run_pb2.Run.STATE_FAILED
    details = json.loads(done.error.details_json)
    assert done.error.code == "expression"
    assert details["expression"] == "input.missing.deep"
    assert "line 4" in details["position"]
    assert "missing" in details["reason"]


async def test_a_secret_reaches_the_request_and_nothing_else(daemon, effects):
    _, run = stubs(daemon)
    planted = "s3cr3t-planted-value"
    await daemon.stub(secrets_grpc.SecretServiceStub).SetSecret(secrets.SetSecretRequest(name="API_KEY", value=planted))
    await daemon.apply(
        f"""
name: guarded
steps:
  - id: call
    http: {{method: POST, url: "{effects.url}/echo", headers: {{Authorization: "Bearer ${{{{ secrets.API_KEY }}}}"}}, json: {{key: "${{{{ secrets.API_KEY }}}}"}}}}
output: {{got: "${{{{ steps.call.output }}}}"}}
"""
    )
    request = runs.StartRunRequest(workflow="guarded")
    request.wait.FromSeconds(20)
    done = (await run.StartRun(request)).run
    assert done.state == run_pb2.Run.STATE_SUCCEEDED, done
    call = effects.calls()[f"{done.id}/call"][0]
    assert planted in str(call)
    assert planted not in str(done)
    assert planted not in str(await daemon.history(done.id))
    assert daemon.terminate() == 0
    stored = b"".join(file.read_bytes() for file in daemon.home.glob("taskforge.db*"))
    assert planted.encode() not in stored
    assert planted not in daemon.log_text()


async def test_more_work_than_slots_is_done_in_time(effects):
    from harness import Daemon

    daemon = Daemon(env={"TASKFORGE_EXECUTOR_POOL_SIZE": "3"})
    try:
        await asyncio.to_thread(daemon.start)
        _, run = stubs(daemon)
        await daemon.apply(SLOW)
        url = json.dumps({"url": f"{effects.url}/slow?ms=20"})
        batch = [runs.StartRunRequest(workflow="slow", input_json=url)] * 60
        started = await run.BatchStartRuns(runs.BatchStartRunsRequest(requests=batch))
        daemon.restart()
        await wait_for(lambda: daemon.list_runs(states=[run_pb2.Run.STATE_SUCCEEDED]), lambda found: len(found) == 60)
        assert max(len(effects.calls()[f"{one}/call"]) for one in started.run_ids) <= 2
    finally:
        await daemon.aclose()


async def test_who_waits_for_a_run_is_told_when_the_daemon_stops(daemon):
    _, run = stubs(daemon)
    await daemon.apply("name: nap\nsteps:\n  - {id: rest, sleep: 1h}\n")
    request = runs.StartRunRequest(workflow="nap", request_id="w-1")
    request.wait.FromSeconds(60)
    waiting = asyncio.ensure_future(run.StartRun(request, timeout=60))
    await wait_for(daemon.list_runs, lambda found: len(found) == 1)
    assert await asyncio.to_thread(daemon.terminate) == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await waiting
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in caught.value.details()
