"""Threat: reading or causing what belongs to others whose name is nearly one's own (CVE-2026-45426: `lstrip` as prefix
removal), or by their ids (GHSA-h3jj-5f3v-3685: a retry that asked only for the right to read).

The matrix of methods and roles is in `tests/rpc/test_guard.py`.
"""

from __future__ import annotations

import json

import grpc
import pytest
from security.calls import BUGS, ask, request_with, texts_of
from switchboard import METHODS, Board

MARKER = "marker-5c1e"
MINE = "team"
OTHERS = ["teams", "tea", "team-", "team-a", "tteam", "a-team", "eam", "meat", "team0", "0team", "t", "team-team"]
WORKFLOW = f"""
name: w
on:
  go: {{event: {{type: go.now}}}}
steps:
  - {{id: say, transform: {MARKER}}}
  - {{id: stay, wait: {{approval: {MARKER}}}}}
"""
REFUSED = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}
IDS = {"run_id", "run_ids", "event_id", "event_ids", "from_run_id"}
NAMES = {"workflow": "w", "name": "w", "trigger": "go", "signal": "s", "step": "stay", "type": "go.now"}


async def settled(board: Board) -> tuple[str, str]:
    """Put something into a namespace; answers a run and an event of it."""
    await board("SetNamespace", name=board.namespace)
    await board.apply(WORKFLOW)
    await board.secret("MARKER", MARKER)
    event = await board.publish("go.now", {"is": MARKER})
    return event.runs[0], event.id


@pytest.fixture
async def place(board):
    """A namespace, a token that is confined to it, and others with nearly the same name."""
    mine = board.of(MINE)
    await settled(mine)
    token = (await mine.token("OPERATOR")).secret
    others = {}
    for name in OTHERS:
        others[name] = await settled(board.of(name))
    return mine, token, others


async def test_no_method_answers_for_a_namespace_that_is_nearly_ones_own(place):
    mine, token, others = place
    methods = [name for name in METHODS if ("namespace",) in texts_of(METHODS[name][1].DESCRIPTOR)]
    assert len(methods) > 15
    for method in sorted(methods):
        fields = {one.name for one in METHODS[method][1].DESCRIPTOR.fields}
        more = {key: value for key, value in NAMES.items() if key in fields}
        for name in others:
            code, answer, said = await ask(
                mine, method, request_with(method, ("namespace",), name, **more), bearer=token
            )
            assert code in REFUSED, (method, name, code, said)
            assert MARKER.encode() not in answer
            assert MARKER not in said
        if method.startswith("List"):
            code, _, said = await ask(mine, method, request_with(method, ("namespace",), MINE, **more), bearer=token)
            is_fine = code is grpc.StatusCode.OK or "needs the role admin" in said or "no cron trigger" in said
            assert is_fine, (method, said)


async def test_no_method_answers_for_an_id_of_others(place):
    """Runs, their logs, histories and streams, events: also retries, reruns, signals and replays."""
    mine, token, others = place
    run_id, event_id = others["team-a"]
    before = len(await mine.of("team-a").runs())
    tried = 0
    for method in sorted(METHODS):
        for path in texts_of(METHODS[method][1].DESCRIPTOR):
            if path[-1] in IDS:
                tried += 1
                fields = {one.name for one in METHODS[method][1].DESCRIPTOR.fields} - {path[0]}
                more = {key: value for key, value in NAMES.items() if key in fields}
                value = event_id if "event" in path[-1] else run_id
                code, answer, said = await ask(mine, method, request_with(method, path, value, **more), bearer=token)
                assert code in REFUSED or code is grpc.StatusCode.OK, (method, path, code, said)
                assert code not in BUGS
                assert MARKER.encode() not in answer, (method, path)
                if code is grpc.StatusCode.OK:  # lists and what is settled in bulk: nothing was found
                    assert method.startswith(("List", "Retry", "Discard", "Replay")), (method, path)
    assert tried >= 20
    other = mine.of("team-a")
    assert len(await other.runs()) == before
    run = await other.run(run_id)
    assert not run.HasField("end_time"), "nobody of another namespace ended it"


async def test_logs_of_ones_own_are_read_and_logs_of_others_are_not(place):
    mine, token, others = place
    own_run = (await mine.runs())[0].id
    page = await mine("GetRunLogs", run_id=own_run, bearer=token)
    assert page.entries
    for run_id, _ in others.values():
        for method in ("GetRunLogs", "WatchRunLogs", "GetRunHistory", "WatchRun"):
            code, _, _ = await ask(mine, method, METHODS[method][1](run_id=run_id), bearer=token)
            assert code is grpc.StatusCode.NOT_FOUND, method


async def test_the_door_does_not_answer_for_others_either(place):
    mine, token, others = place
    headers = {"Authorization": f"Bearer {token}"}
    async with mine.http.get(f"{mine.daemon.http}/events/{MINE}", headers=headers) as answer:
        assert answer.status == 200
        assert MARKER in await answer.text()
    for name, (_, event_id) in others.items():
        for path in (name, f"{name}/{event_id}", f"{MINE}/{event_id}"):
            async with mine.http.get(f"{mine.daemon.http}/events/{path}", headers=headers) as answer:
                assert answer.status in {403, 404}, path
                assert MARKER not in await answer.text()
        body = json.dumps({"specversion": "1.0", "id": "1", "source": "/x", "type": "go.now"})
        kind = {**headers, "Content-Type": "application/cloudevents+json"}
        async with mine.http.post(f"{mine.daemon.http}/events/{name}", data=body, headers=kind) as answer:
            assert answer.status in {403, 404}
