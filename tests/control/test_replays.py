"""Replays on a running daemon: an event of the past, offered again to the triggers as they are now."""

import asyncio
import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from harness import github_headers
from switchboard import Event, eventually

SECRET = "s3cret"
JSON = {"Content-Type": "application/json"}


def hooked(name="hooked", *, rules="", path="in", verify="{scheme: none}", more="", output="${{ event.body }}"):
    return f"""
name: {name}
on:
  got:
    webhook: {{path: {path}, verify: {verify}{more}}}
{rules}
steps:
  - {{id: keep, transform: {{seen: "{output}"}}}}
output: "${{{{ steps.keep.output.seen }}}}"
"""


def heard(name="heard", kind="news", rules=""):
    return f"""
name: {name}
on:
  got:
    event: {{type: "{kind}"}}
{rules}
steps:
  - {{id: keep, transform: {{seen: "${{{{ event.body }}}}"}}}}
output: "${{{{ steps.keep.output.seen }}}}"
"""


async def test_the_same_body_once_more(board):
    await board.apply(hooked(output="${{ [event.body, event.headers['x-a'], event.query.q, event.path] }}"))
    first = await board.post("in?q=1", b'{"a": 1}', {**JSON, "X-A": "b"})
    event = await board.replay(first.event_id)
    assert event.outcome == "ACCEPTED"
    assert event.id != first.event_id
    assert event.runs != first.body["run_ids"]
    assert await board.output(event.runs[0]) == [{"a": 1}, "b", "1", "in"]
    run = await board.run(event.runs[0])
    assert (run.event_id, run.correlation_id, run.trigger) == (event.id, event.id, "got")
    original = await board.event(first.event_id)
    again = await board.event(event.id)
    assert (original.outcome, original.runs) == ("ACCEPTED", first.body["run_ids"])
    for name in ("source", "path", "body", "query_json", "content_type", "verification", "remote"):
        assert getattr(again, name) == getattr(original, name), name
    assert again.create_time.ToNanoseconds() >= original.create_time.ToNanoseconds()


async def test_lineage_is_shown_both_ways(board):
    await board.apply(hooked())
    first = (await board.post("in")).event_id
    replays = [(await board.replay(first)).id for _ in range(3)]
    grandchild = await board.replay(replays[0])
    assert list((await board.event(first)).replayed_by) == replays
    assert [(await board.event(one)).replay_of for one in replays] == [first] * 3
    assert (grandchild.replay_of, list((await board.event(replays[0])).replayed_by)) == (replays[0], [grandchild.id])
    summary = list((await board("ExplainEvent", event_id=first)).summary)
    assert f"It was replayed as {', '.join(replays)}." in summary
    assert f"It replays {first}." in (await board("ExplainEvent", event_id=replays[0])).summary


async def test_an_edited_body(board):
    await board.apply(hooked(rules="    if: event.body.total > 100"))
    first = await board.post("in", b'{"total": 7}')
    assert first.body["outcome"] == "FILTERED"
    event = await board.replay(first.event_id, body=b'{"total": 700}')
    assert (event.outcome, event.body, event.body_size) == ("ACCEPTED", b'{"total": 700}', 14)
    assert await board.output(event.runs[0]) == {"total": 700}
    assert (await board.event(first.event_id)).body == b'{"total": 7}'
    assert (await board.replay(first.event_id, body=b"")).reasons[0].startswith("an expression failed")


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", b"{", "body"),
        ("application/json", b'{"a": 1, "a": 2}', "body"),
        ("application/json", b'"' + b"x" * (1 << 20) + b'"', "larger than 1,048,576 bytes"),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 1001), "more than 1,000 fields"),
    ],
)
async def test_an_edited_body_is_held_against_its_type(board, content_type, body, said):
    await board.apply(hooked())
    first = await board.post("in", b"1", {"Content-Type": content_type})
    assert said in await board.refused("INVALID_ARGUMENT", "ReplayEvent", event_id=first.event_id, body=body)
    assert len(await board.listed()) == 1


async def test_to_one_workflow_or_one_trigger_that_listens_elsewhere(board):
    await board.apply(hooked("one"))
    await board.apply(hooked("two"))
    await board.apply(hooked("far", path="elsewhere"))
    await board.apply(heard("ear"))
    first = (await board.post("in", b'{"a": 1}')).event_id
    assert set((await board.replay(first)).verdict) == {"one/got", "two/got"}
    only = await board.replay(first, workflow="two")
    assert (set(only.verdict), only.addressee) == ({"two/got"}, "")
    far = await board.replay(first, workflow="far")
    assert (far.outcome, dict(far.verdict)) == ("UNMATCHED", {}), "it does not listen there"
    for name in ("far", "ear"):
        event = await board.replay(first, workflow=name, trigger="got")
        assert (event.outcome, set(event.verdict), event.addressee) == ("ACCEPTED", {f"{name}/got"}, f"{name}/got")
        assert await board.output(event.runs[0]) == {"a": 1}
        assert set((await board.replay(event.id)).verdict) == {f"{name}/got"}, "and so does what replays it"


async def test_what_is_not_there_is_said(board):
    await board.apply(hooked())
    first = (await board.post("in")).event_id
    said = await board.refused("NOT_FOUND", "ReplayEvent", event_id=first, workflow="hooked", trigger="nope")
    assert said == "workflow 'hooked' has no trigger 'nope'"
    assert "'nope'" in await board.refused("NOT_FOUND", "ReplayEvent", event_id=first, workflow="nope")
    said = await board.refused("INVALID_ARGUMENT", "ReplayEvent", event_id=first, trigger="got")
    assert "needs 'workflow'" in said
    assert "'evt_nope'" in await board.refused("NOT_FOUND", "ReplayEvent", event_id="evt_nope")


async def test_a_request_id_makes_a_replay_repeatable(own):
    await own.apply(hooked())
    first = (await own.post("in", b"1")).event_id
    again = [await own.replay(first, request_id="r-1") for _ in range(2)]
    await own.restart()
    again.append(await own.replay(first, request_id="r-1"))
    at_once = await asyncio.gather(*(own.replay(first, request_id="r-2") for _ in range(20)))
    assert len({one.id for one in again}) == 1
    assert len({one.id for one in at_once}) == 1
    assert len(await own.runs()) == 3
    said = await own.refused("ALREADY_EXISTS", "ReplayEvent", event_id=first, request_id="r-1", body=b"2")
    assert again[0].id in said
    other = (await own.post("in", b"1")).event_id
    assert (await own.replay(other, request_id="r-1")).id != again[0].id, "another event is another request"
    await own.refused("INVALID_ARGUMENT", "ReplayEvent", event_id=first, request_id="x" * 129)


async def test_what_had_no_effect_is_not_replayed_and_the_message_helps(board):
    await board.secret("HOOK", SECRET)
    await board.apply(hooked(verify="{scheme: github, secret: HOOK}"))
    headers = github_headers(SECRET, b"{}", delivery="d-1")
    first = await board.post("in", b"{}", headers)
    await board.post("in", b"{}", headers)
    await board.post("in", b"{}", JSON)
    await board.post("in", b"{}", github_headers(SECRET, b"{}", event="ping"))
    found = {one.outcome: one for one in await board.listed()}
    assert set(found) == {"ACCEPTED", "DUPLICATE", "REJECTED", "HANDSHAKE"}
    for outcome in ("REJECTED", "HANDSHAKE"):
        said = await board.refused("FAILED_PRECONDITION", "ReplayEvent", event_id=found[outcome].id)
        assert said == f"{found[outcome].id} cannot be replayed: it is {outcome}, so it had no effect to repeat"
        await board.refused("FAILED_PRECONDITION", "ReplayEvent", event_id=found[outcome].id, body=b"{}")
    said = await board.refused("FAILED_PRECONDITION", "ReplayEvent", event_id=found["DUPLICATE"].id)
    assert said == f"{found['DUPLICATE'].id} repeats {first.event_id}, which has the body: replay that one"
    answer = await board("ReplayEvents", event_ids=[one.id for one in found.values()])
    assert [bool(one.error) for one in answer.results] == [one != "ACCEPTED" for one in found]
    assert len(await board.runs()) == 2


async def test_a_replay_proves_nothing_to_those_who_refused_the_sender(board):
    """A stranger whom one workflow takes must not reach its signed neighbour through an operator's replay."""
    await board.secret("HOOK", SECRET)
    await board.apply(hooked("signed", verify="{scheme: github, secret: HOOK}"))
    await board.apply(hooked("open"))
    first = await board.post("in", b"{}")
    assert (await board.event(first.event_id)).verdict["signed/got"].reason.startswith("missing")
    event = await board.replay(first.event_id)
    assert event.verdict["open/got"].matched
    assert not event.verdict["signed/got"].matched
    assert event.verdict["signed/got"].reason.startswith("missing")
    assert not (await board.replay(event.id)).verdict["signed/got"].matched
    assert not (await board.replay(first.event_id, workflow="signed")).runs
    assert await board.runs(workflow="signed") == []
    chosen = await board.replay(first.event_id, workflow="signed", trigger="got")
    assert chosen.outcome == "ACCEPTED", "whoever names the trigger means it"


async def test_triggers_are_asked_as_they_are_now(board):
    await board.apply(hooked(rules="    if: event.body.kind == 'realease'"))
    ids = [(await board.post("in", b'{"kind": "release", "n": %d}' % n)).event_id for n in range(3)]
    assert {one.outcome for one in await board.listed()} == {"FILTERED"}
    await board.apply(hooked(rules="    if: event.body.kind == 'release'"))
    answer = await board("ReplayEvents", filter={"namespace": board.namespace, "outcomes": [2]})
    assert [one.event_id for one in answer.results] == ids
    outputs = [await board.output(one.run_ids[0]) for one in answer.results]
    assert [one["n"] for one in outputs] == [0, 1, 2]
    event = await board.event(answer.results[0].replay_id)
    assert (event.verdict["hooked/got"].version, event.verdict["hooked/got"].matched) == (2, True)
    await board("DeleteWorkflow", name="hooked")
    gone = await board.replay(ids[0])
    assert (gone.outcome, gone.runs) == ("UNMATCHED", [])


async def test_a_paused_trigger_starts_nothing_by_replays(board):
    await board.apply(hooked())
    first = (await board.post("in")).event_id
    await board("PauseTrigger", workflow="hooked")
    event = await board.replay(first)
    assert (event.outcome, event.runs) == ("FILTERED", [])
    assert event.reasons[0].startswith("the trigger is paused since")


async def test_all_kinds_of_events_are_replayed_to_whom_they_were_for(board):
    await board.apply(heard())
    await board.apply(
        "name: daily\non:\n  at: {cron: '0 3 * * *'}\nsteps:\n  - {id: a, transform: 1}\noutput: '${{ event.due_time }}'\n"
    )
    published = await board.publish("news", {"a": 1}, subject="s")
    event = await board.replay(published.id)
    assert (event.source, event.type, event.subject, event.outcome) == ("internal", "news", "s", "ACCEPTED")
    assert await board.output(event.runs[0]) == {"a": 1}
    fired = await board.fire("daily")
    again = await board.replay(fired.id)
    assert (again.source, again.addressee, set(again.verdict)) == ("manual", "daily/at", {"daily/at"})
    assert await board.output(again.runs[0]) == fired.data["due_time"]
    await board("DeleteWorkflow", name="daily")
    assert (await board.replay(fired.id)).outcome == "UNMATCHED"


async def test_a_replay_of_an_engine_event(board):
    await board.apply(heard(kind="run.failed"))
    await board.apply("name: fails\nsteps:\n  - {id: stop, fail: no}\n")
    await board("StartRun", workflow="fails")
    (event,) = await eventually(lambda: board.listed(type="run.failed"), lambda found: found and found[0].runs)
    again = await board.replay(event.id)
    assert (again.source, again.type, again.outcome, again.depth) == ("engine", "run.failed", "ACCEPTED", 0)
    assert (await board.output(again.runs[0]))["workflow"] == "fails"


# --- many ------------------------------------------------------------------------------------------------------------


async def test_many_in_portions_oldest_first(board):
    await board.apply(hooked())
    ids = [(await board.post("in", b"%d" % n)).event_id for n in range(5)]
    wanted = {"namespace": board.namespace}
    shown = await board("ReplayEvents", filter=wanted, max_count=2, dry_run=True)
    assert ([one.event_id for one in shown.results], shown.more) == (ids[:2], True)
    assert [(one.replay_id, one.outcome, list(one.run_ids)) for one in shown.results] == [("", 0, [])] * 2
    assert len(await board.listed()) == 5
    order, more = [], True
    while more:
        answer = await board("ReplayEvents", filter=wanted, max_count=2)
        order += [one.event_id for one in answer.results]
        more = answer.more
        assert all(one.replay_id and one.outcome == 1 and len(one.run_ids) == 1 for one in answer.results)
    assert order == ids
    last = await board("ReplayEvents", filter=wanted)
    assert (list(last.results), last.more) == ([], False), "neither replays nor what was replayed are selected again"
    assert len(await board.runs()) == 10
    replays = sorted((one for one in await board.listed() if one.replay_of), key=lambda one: one.id)
    assert [one.replay_of for one in replays] == ids


async def test_filters(board):
    await board.apply(hooked())
    await board.apply(hooked("other", path="out", rules="    if: event.body == 1"))
    await board.apply(heard(kind="a.*"))
    ids = {
        "in": (await board.post("in", b"1")).event_id,
        "out1": (await board.post("out", b"1")).event_id,
        "out2": (await board.post("out", b"2")).event_id,
        "a.b": (await board.publish("a.b")).id,
        "lost": (await board.publish("lost")).id,
    }
    await board.fire("heard", type="a.x")
    names = {value: key for key, value in ids.items()}

    async def select(**filters):
        answer = await board("ReplayEvents", filter={"namespace": board.namespace, **filters}, dry_run=True)
        return [names.get(one.event_id, "fired") for one in answer.results]

    assert await select() == ["in", "out1", "out2", "a.b", "lost", "fired"]
    assert await select(path="out") == ["out1", "out2"]
    assert await select(outcomes=[2]) == ["out2"]
    assert await select(outcomes=[7]) == ["lost"]
    assert await select(outcomes=[2, 7]) == ["out2", "lost"]
    assert await select(type="a.*") == ["a.b", "fired"]
    assert await select(type="a.b") == ["a.b"]
    assert await select(workflow="other") == ["out1", "out2"]
    assert await select(sources=["internal", "manual"]) == ["a.b", "lost", "fired"]
    since = (await board.event(ids["out2"])).create_time
    assert await select(since=since) == ["out2", "a.b", "lost", "fired"]
    assert await select(until=since) == ["in", "out1"]
    assert await select(since=since, until=Timestamp(seconds=since.seconds + 1000), workflow="other") == ["out2"]


async def test_one_that_cannot_be_replayed_does_not_hinder_the_others(board):
    await board.apply(hooked())
    ids = [(await board.post("in", b"%d" % n)).event_id for n in range(3)]
    other = await board.fresh()
    await other.apply(hooked())
    foreign = (await other.post("in")).event_id
    token = await board.token("OPERATOR")
    wanted = [ids[2], "evt_nope", foreign, ids[0], ids[2]]
    for dry_run in (True, False):
        answer = await board("ReplayEvents", event_ids=wanted, dry_run=dry_run, bearer=token.secret)
        assert [one.event_id for one in answer.results] == [ids[2], "evt_nope", foreign, ids[0]]
        assert [one.error for one in answer.results] == [
            "",
            "there is no event 'evt_nope'",
            f"there is no event '{foreign}'",
            "",
        ]
    assert len(await board.runs()) == 5
    assert len(await other.runs()) == 1


async def test_many_to_one_trigger(board):
    await board.apply(hooked())
    await board.apply(hooked("far", path="elsewhere"))
    ids = [(await board.post("in", b"%d" % n)).event_id for n in range(3)]
    answer = await board("ReplayEvents", event_ids=ids, workflow="far", trigger="got")
    assert [await board.output(one.run_ids[0]) for one in answer.results] == [0, 1, 2]
    assert len(await board.runs(workflow="far")) == 3
    answer = await board("ReplayEvents", event_ids=ids, workflow="far", trigger="got", max_count=2, dry_run=True)
    assert ([one.event_id for one in answer.results], answer.more) == (ids[:2], True)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "or 'filter' is required"),
        ({"event_ids": ["evt_1"], "filter": {}}, "and not both"),
        ({"event_ids": [f"evt_{n}" for n in range(1001)]}, "at most 1,000"),
        ({"filter": {}, "max_count": 1001}, "at most 1,000"),
        ({"filter": {}, "max_count": -1}, "at most 1,000"),
        ({"filter": {"sources": ["webhok"]}}, "'webhok'"),
    ],
)
async def test_a_selection_is_one_thing_and_bounded(board, request_, said):
    assert said in await board.refused("INVALID_ARGUMENT", "ReplayEvents", **request_)


# --- who may ---------------------------------------------------------------------------------------------------------


async def test_operators_replay_and_nobody_else(board):
    await board.apply(hooked())
    first = (await board.post("in")).event_id
    for role in ("VIEWER", "TRIGGER", "WORKER"):
        token = await board.token(role)
        await board.refused("PERMISSION_DENIED", "ReplayEvent", event_id=first, bearer=token.secret)
        await board.refused("PERMISSION_DENIED", "ReplayEvents", event_ids=[first], bearer=token.secret)
    token = await board.token("OPERATOR")
    event = await board.replay(first, bearer=token.secret)
    assert event.created_by == token.token.id
    assert (await board.run(event.runs[0])).created_by == token.token.id
    assert len(await board.runs()) == 2


async def test_other_namespaces_see_nothing(board):
    await board.apply(hooked())
    first = (await board.post("in")).event_id
    other = await board.fresh()
    await other.apply(hooked())
    token = (await other.token("OPERATOR")).secret
    for method in ("ReplayEvent", "GetEvent", "ExplainEvent"):
        assert await board.refused("NOT_FOUND", method, event_id=first, bearer=token) == f"there is no event '{first}'"
    await board.refused("PERMISSION_DENIED", "ReplayEvents", filter={"namespace": board.namespace}, bearer=token)
    answer = await board("ReplayEvents", filter={"namespace": other.namespace}, bearer=token)
    assert list(answer.results) == []
    event = await board.event(first)
    assert list(event.replayed_by) == []


async def test_events_are_kept_whole_across_a_crash(own):
    await own.apply(hooked())
    body = bytes(range(256)) * 100
    first = await own.post("in", body, {"Content-Type": "application/octet-stream"})
    await own.restart()
    event = await own.replay(first.event_id)
    assert (event.body, event.encoding) == (body, "base64")
    assert isinstance(event, Event)
    assert json.loads((await own.ended(event.runs[0])).output_json)
