"""Webhooks against a real daemon: proof, duplicates, verdicts, what is kept and what is told."""

import asyncio
import io
import json
import uuid

import aiohttp
import pytest
from harness import github_headers, github_payload
from taskforge.v1 import (
    event_pb2,
    run_pb2,
)
from taskforge.v1 import (
    event_service_pb2 as events,
)
from taskforge.v1 import (
    event_service_pb2_grpc as events_grpc,
)
from taskforge.v1 import (
    run_service_pb2 as runs,
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

SECRET = "It's a Secret to Everybody"
BODY = github_payload()

RELEASE = """
name: {name}
on:
  release:
    webhook: {{path: github, verify: {{scheme: github, secret: HOOK}}}}
    if: {condition}
    input: {{tag: "{tag}"}}
input: {{type: object, required: [tag], properties: {{tag: {{type: string}}}}}}
steps:
  - id: note
    transform: {{tag: "${{{{ input.tag }}}}", sender: "${{{{ event.body.sender.login }}}}", kind: "${{{{ event.headers['x-github-event'] }}}}"}}
output: "${{{{ steps.note.output }}}}"
"""


def release(name="release", condition="event.body.action == 'published'", tag="${{ event.body.release.tag_name }}"):
    return RELEASE.format(name=name, condition=condition, tag=tag)


@pytest.fixture
async def hooked(tenant):
    stub = tenant.stub(secrets_grpc.SecretServiceStub)
    await stub.SetSecret(secrets.SetSecretRequest(name="HOOK", value=SECRET))
    await tenant.apply(release())
    return tenant


async def post(daemon, body=BODY, headers=None, path="github", namespace=""):
    headers = github_headers(SECRET, body) if headers is None else headers
    async with aiohttp.ClientSession() as session:
        async with session.post(
            f"{daemon.http}/hooks/{namespace or daemon.namespace}/{path}", data=body, headers=headers
        ) as answer:
            return answer.status, await answer.json()


async def inbox(daemon, **filters):
    stub = daemon.stub(events_grpc.EventServiceStub)
    return list((await stub.ListEvents(events.ListEventsRequest(page_size=1000, **filters))).events)


async def show(daemon, event_id):
    return (await daemon.stub(events_grpc.EventServiceStub).GetEvent(events.GetEventRequest(event_id=event_id))).event


async def test_a_release_is_verified_stored_and_run(hooked):
    status, answer = await post(hooked)
    assert status == 202
    event = await show(hooked, answer["event_id"])
    assert event.body == BODY
    assert event.verification == "github"
    assert event.headers["x-github-event"] == "release"
    assert list(event.run_ids) == answer["run_ids"]
    run = (await hooked.runs.GetRun(runs.GetRunRequest(run_id=answer["run_ids"][0]))).run
    assert run.state == run_pb2.Run.STATE_SUCCEEDED
    assert json.loads(run.output_json) == {"tag": "0.0.1", "sender": "Codertocat", "kind": "release"}
    assert (run.event_id, run.trigger, run.correlation_id) == (event.id, "release", event.id)
    listed = await hooked.runs.ListRuns(runs.ListRunsRequest(event_id=event.id))
    assert [(one.id, one.event_id) for one in listed.runs] == [(run.id, event.id)]
    assert (await hooked.runs.VerifyRun(runs.VerifyRunRequest(run_id=run.id))).intact


async def test_a_hundred_copies_at_once_start_one_run(hooked):
    headers = github_headers(SECRET, BODY, delivery=str(uuid.uuid4()))
    answers = await asyncio.gather(*(post(hooked, headers=headers) for _ in range(100)))
    assert sorted(status for status, _ in answers) == [200] * 99 + [202]
    assert len({(a["event_id"], *a["run_ids"]) for _, a in answers}) == 1
    hooked.restart()
    await hooked.disconnect()
    status, again = await post(hooked, headers=headers)
    assert (status, again["run_ids"]) == (200, answers[0][1]["run_ids"])
    assert len(await hooked.list_runs()) == 1


async def test_forged_deliveries_are_refused_kept_and_without_effect(hooked):
    good = github_headers(SECRET, BODY)
    forged = [
        {**good, "X-Hub-Signature-256": "sha256=" + "0" * 64},
        {**good, "X-Hub-Signature-256": ""},
        {k: v for k, v in good.items() if k != "X-Hub-Signature-256"},
        {**good, "X-Hub-Signature-256": good["X-Hub-Signature-256"][:-1]},
        github_headers("wrong", BODY),
    ]
    answers = [await post(hooked, headers=headers) for headers in forged]
    changed = bytearray(BODY)
    changed[100] ^= 1
    answers.append(await post(hooked, body=bytes(changed), headers=good))
    assert {status for status, _ in answers} == {401}
    assert len({json.dumps(answer) for _, answer in answers}) == 1, "no answer may tell how far it came"
    assert await hooked.list_runs() == []
    kept = await inbox(hooked, outcomes=[event_pb2.Event.OUTCOME_REJECTED])
    assert len(kept) == len(forged) + 1
    assert all(one.reason for one in kept)


async def test_unknown_paths_and_namespaces_are_404_and_not_kept(hooked):
    for path in ("nothing", "github/more", "..%2fgithub"):
        assert (await post(hooked, path=path))[0] == 404
    assert (await post(hooked, namespace="other"))[0] == 404
    assert await inbox(hooked) == []


async def test_the_ping_of_a_new_webhook_is_answered_and_starts_nothing(hooked):
    body = github_payload("ping")
    status, answer = await post(hooked, body, github_headers(SECRET, body, event="ping"))
    assert (status, answer["outcome"], answer["run_ids"]) == (200, "HANDSHAKE", [])
    forged, _ = await post(hooked, body, github_headers("wrong", body, event="ping"))
    assert forged == 401


async def test_every_trigger_on_a_path_gets_its_verdict(hooked):
    await hooked.apply(release("never", "event.body.action == 'deleted'"))
    await hooked.apply(release("breaks", "event.body.nothing.here == 1"))
    await hooked.apply(release("misfit", "true", "${{ event.body.release.id }}"))
    await hooked.apply(release("second", "true"))
    status, answer = await post(hooked)
    assert status == 202
    verdicts = {v.workflow: v for v in (await show(hooked, answer["event_id"])).verdicts}
    assert {name for name, v in verdicts.items() if v.matched} == {"release", "second"}
    assert verdicts["never"].reason == "`if` is false: event.body.action == 'deleted'"
    assert "event.body.nothing.here" in verdicts["breaks"].reason
    assert "$.tag" in verdicts["misfit"].reason
    assert set(answer["run_ids"]) == {verdicts["release"].run_id, verdicts["second"].run_id}


async def test_an_event_that_nothing_wants_is_kept_with_the_reason(hooked):
    body = github_payload("issues.opened")
    status, answer = await post(hooked, body, github_headers(SECRET, body, event="issues"))
    assert (status, answer["outcome"], answer["run_ids"]) == (202, "FILTERED", [])
    assert [v.reason for v in (await show(hooked, answer["event_id"])).verdicts] == [
        "`if` is false: event.body.action == 'published'"
    ]


async def test_an_inactive_workflow_keeps_what_comes_and_starts_nothing(hooked):
    stub = hooked.stub(workflows_grpc.WorkflowServiceStub)
    await stub.SetWorkflowActive(workflows.SetWorkflowActiveRequest(name="release", active=False))
    status, answer = await post(hooked)
    assert (status, answer["outcome"]) == (202, "FILTERED")
    hooked.restart()
    await hooked.disconnect()
    status, answer = await post(hooked)
    assert (status, answer["outcome"]) == (202, "FILTERED")
    verdicts = (await show(hooked, answer["event_id"])).verdicts
    assert [verdict.reason for verdict in verdicts] == ["the workflow is not active"]
    stub = hooked.stub(workflows_grpc.WorkflowServiceStub)
    await stub.SetWorkflowActive(workflows.SetWorkflowActiveRequest(name="release", active=True))
    assert (await post(hooked))[1]["outcome"] == "ACCEPTED"


async def test_a_path_that_moves_moves_at_once(hooked):
    await hooked.apply(release().replace("path: github", "path: moved/here"))
    assert (await post(hooked))[0] == 404
    assert (await post(hooked, path="moved/here"))[0] == 202


async def test_bad_json_is_refused_and_kept(hooked):
    for body in (b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 100_000, b'"\\ud800"'):
        status, _ = await post(hooked, body, github_headers(SECRET, body))
        assert status == 400, body[:20]
    assert await hooked.list_runs() == []
    assert len(await inbox(hooked, outcomes=[event_pb2.Event.OUTCOME_REJECTED])) == 6


async def test_a_body_over_the_limit_is_413(hooked):
    body = b'{"pad": "' + b"x" * (1 << 20) + b'"}'
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{hooked.http}/hooks/{hooked.namespace}/github", data=io.BytesIO(body)) as answer:
            assert answer.status == 413


async def test_a_missing_secret_refuses_and_says_so_in_the_inbox(tenant):
    await tenant.apply(release())
    assert (await post(tenant))[0] == 401
    kept = await inbox(tenant)
    assert "HOOK is not set" in kept[0].reason


HMAC = """
name: generic
on:
  any:
    webhook:
      path: generic
      verify: {scheme: hmac, secret: HOOK, header: X-Signature, algorithm: sha512, encoding: base64}
      delivery_header: X-Delivery
  open:
    webhook: {path: open, verify: {scheme: none}}
steps:
  - {id: keep, transform: {body: "${{ event.body }}"}}
output: "${{ steps.keep.output.body }}"
"""


async def test_generic_hmac_and_open_paths(hooked):
    import base64
    import hmac

    await hooked.apply(HMAC)
    body = b'{"x": 1}'
    signature = base64.b64encode(hmac.digest(SECRET.encode(), body, "sha512")).decode()
    headers = {"Content-Type": "application/json", "X-Signature": signature, "X-Delivery": "d-1"}
    assert (await post(hooked, body, headers, "generic"))[0] == 202
    assert (await post(hooked, body, headers, "generic"))[0] == 200
    assert (await post(hooked, body, {**headers, "X-Signature": "x"}, "generic"))[0] == 401
    plain = {"Content-Type": "text/plain"}
    first, second = [await post(hooked, b"hello", plain, "open") for _ in range(2)]
    assert (first[0], second[0]) == (202, 202), "an unsigned body without a delivery id is never a duplicate"
    run = (await hooked.runs.GetRun(runs.GetRunRequest(run_id=first[1]["run_ids"][0]))).run
    assert json.loads(run.output_json) == "hello"


async def test_credentials_in_headers_are_not_stored(hooked):
    headers = {**github_headers(SECRET, BODY), "Authorization": "Bearer planted-credential"}
    _, answer = await post(hooked, headers=headers)
    event = await show(hooked, answer["event_id"])
    assert event.headers["authorization"] == "***"
    assert hooked.terminate() == 0
    try:
        assert b"planted-credential" not in b"".join(f.read_bytes() for f in hooked.home.glob("taskforge.db*"))
    finally:
        hooked.start()
