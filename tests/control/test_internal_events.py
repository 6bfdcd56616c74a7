"""Internal events on a running daemon: who is asked, what is answered, what ends a loop, and what nothing may lose."""

import asyncio
import json
import sqlite3

import pytest
from switchboard import Board, eventually, state

DEPTH = 4
"""What the shared daemon is told in TASKFORGE_LIMITS_CAUSAL_DEPTH."""


def heard(name, kind, *, rules="", steps="  - {id: keep, transform: {seen: '${{ event.body }}'}}", top=""):
    return f"name: {name}\n{top}on:\n  got:\n    event: {{type: '{kind}'}}\n{rules}\nsteps:\n{steps}\n"


def sends(kind, data="{n: 1}"):
    return f"  - {{id: send, event: {{type: {kind}, data: {data}}}}}"


async def settled(board, **filters):
    """Wait until nothing is pending and no run is open; answers all events."""

    async def look():
        events = await board.listed(sources=["internal", "engine", "manual", "webhook"], **filters)
        runs = await board.runs()
        return events, runs

    def quiet(found):
        return all(one.outcome != "PENDING" for one in found[0]) and all(one.HasField("end_time") for one in found[1])

    for _ in range(3):  # a run that ends publishes, so it must be quiet for a while
        await eventually(look, quiet)
        await asyncio.sleep(0.05)
    return (await eventually(look, quiet))[0]


# --- publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "kind", "wanted"),
    [
        ("order.paid", "order.paid", True),
        ("order.paid", "order.paid.late", False),
        ("order.paid", "order.Paid", False),
        ("order.*", "order.paid", True),
        ("order.*", "order.paid.late", True),
        ("order.*", "order", False),
        ("order.*", "xorder.paid", False),
        ("*", "anything/at-all", True),
        ("*.paid", "order.paid", True),
        ("a*b*c", "a1b2c", True),
        ("a*b*c", "a1c2b", False),
        ("a.b", "axb", False),
    ],
)
async def test_who_is_asked(board, pattern, kind, wanted):
    await board.apply(heard("ear", pattern))
    event = await board.publish(kind, {"n": 1})
    assert event.outcome == ("ACCEPTED" if wanted else "UNMATCHED")
    assert len(event.runs) == wanted


async def test_every_listener_gets_its_verdict(board):
    await board.apply(heard("yes", "order.paid"))
    await board.apply(heard("also", "order.*"))
    await board.apply(heard("no", "order.*", rules="    if: event.body.total > 100 && event.subject == 'x'"))
    await board.apply(heard("deaf", "user.*"))
    event = await board.publish("order.paid", {"total": 7}, subject="o-1")
    assert event.outcome == "ACCEPTED"
    assert {name: one.matched for name, one in event.verdict.items()} == {"yes/got": 1, "also/got": 1, "no/got": 0}
    verdict = event.verdict["no/got"]
    assert verdict.reason == "`if` is false: event.body.total > 100"
    assert verdict.clause == "event.body.total > 100"
    assert json.loads(verdict.values_json) == {"event.body.total": 7}
    assert [one.id for one in await board.runs(event_id=event.id)] == event.runs[::-1]
    run = await board.ended(event.runs[0])
    assert json.loads(run.steps[0].output_json) == {"seen": {"total": 7}}


async def test_one_that_is_filtered_and_one_that_nobody_wants(board):
    await board.apply(heard("no", "order.*", rules="    if: event.body.a == 1"))
    filtered = await board.publish("order.paid", {"a": 2})
    assert (filtered.outcome, filtered.runs) == ("FILTERED", [])
    broken = await board.publish("order.paid", {})
    assert broken.outcome == "FILTERED"
    assert broken.reasons[0].startswith("an expression failed")
    raw = (await board("PublishEvent", type="nobody")).event
    assert raw.outcome == 7, "it is UNMATCHED at once"
    assert (raw.body, list(raw.verdicts)) == (b"null", [])


@pytest.mark.parametrize("kind", ["run.succeeded", "run.x", "trigger.paused", "schedule.due", "taskforge.x"])
async def test_types_of_the_engine_are_refused(board, kind):
    assert "type" in await board.refused("INVALID_ARGUMENT", "PublishEvent", type=kind)
    assert await board.listed(sources=["internal"]) == []


@pytest.mark.parametrize("kind", ["", "a b", ".a", "order.*", "ä", "a" * 201, "a\n", "-a", "a.", "a..b"])
async def test_what_is_no_type(board, kind):
    await board.refused("INVALID_ARGUMENT", "PublishEvent", type=kind)


@pytest.mark.parametrize("kind", ["running.late", "A", "9", "a" * 200, "com.example/x_y-z", "runs"])
async def test_what_is_a_type(board, kind):
    assert (await board("PublishEvent", type=kind)).event.type == kind


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"data_json": "{"}, "INVALID_ARGUMENT"),
        ({"data_json": '{"a": 1, "a": 2}'}, "INVALID_ARGUMENT"),
        ({"data_json": '"' + "x" * (1 << 20) + '"'}, "RESOURCE_EXHAUSTED"),
        ({"subject": "x" * 1025}, "INVALID_ARGUMENT"),
        ({"request_id": "x" * 129}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_out_of_bounds(board, fields, code):
    await board.refused(code, "PublishEvent", type="a", **fields)


async def test_a_request_id_makes_a_call_repeatable(own):
    await own.apply(heard("ear", "a"))
    call = {"type": "a", "data_json": '{"n": 1}', "request_id": "r-1"}
    ids = {(await own("PublishEvent", **call)).event.id for _ in range(2)}
    at_once = await asyncio.gather(*(own("PublishEvent", **{**call, "request_id": "r-2"}) for _ in range(20)))
    await own.restart()
    ids.add((await own("PublishEvent", **call)).event.id)
    assert len(ids) == 1
    assert len({one.event.id for one in at_once}) == 1
    for change in ({"type": "b"}, {"data_json": "2"}, {"subject": "x"}):
        said = await own.refused("ALREADY_EXISTS", "PublishEvent", **{**call, **change})
        assert next(iter(ids)) in said
    await settled(own)
    assert len(await own.runs()) == 2


async def test_who_may_publish(board):
    for role, allowed in (("VIEWER", False), ("WORKER", False), ("TRIGGER", True), ("OPERATOR", True)):
        token = await board.token(role)
        if allowed:
            event = (await board("PublishEvent", type="a", bearer=token.secret)).event
            assert event.created_by == token.token.id
        else:
            await board.refused("PERMISSION_DENIED", "PublishEvent", type="a", bearer=token.secret)
    other = await board.fresh()
    await other.apply(heard("ear", "a"))
    token = (await board.token("TRIGGER")).secret
    await other.refused("PERMISSION_DENIED", "PublishEvent", type="a", bearer=token)
    assert (await board.publish("a")).outcome == "UNMATCHED", "those of other namespaces do not hear it"


async def test_pages_and_filters_of_the_list(board):
    ids = [(await board("PublishEvent", type=f"a.{n % 2}")).event.id for n in range(7)]
    seen, token = [], ""
    while True:
        page = await board("ListEvents", page_size=3, page_token=token, type="a.*")
        seen += [one.id for one in page.events]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    assert [one.id for one in await board.listed(type="a.1")] == ids[1::2][::-1]
    page = await board("ListEvents", page_size=3)
    assert "page" in await board.refused("INVALID_ARGUMENT", "ListEvents", type="a.1", page_token=page.next_page_token)


# --- chains ----------------------------------------------------------------------------------------------------------


async def test_steps_publish_and_the_chain_is_told(board):
    await board.apply(heard("second", "step.one", steps=sends("step.two", "{n: '${{ event.body.n + 1 }}'}")))
    await board.apply(heard("third", "step.two", rules="    if: event.body.n == 2"))
    await board.apply("name: first\nsteps:\n" + sends("step.one") + "\n")
    run = (await board("StartRun", workflow="first")).run
    (two,) = await eventually(lambda: board.listed(type="step.two"), lambda found: found and found[0].runs)
    (one,) = await board.listed(type="step.one")
    assert (one.source, one.publisher_run_id) == ("internal", run.id), "also in lists"
    one, two = await board.event(one.id), await board.event(two.id)
    assert (one.publisher_run_id, one.depth) == (run.id, 0), "a run that was started by hand comes from outside"
    assert (two.publisher_run_id, two.depth) == (one.runs[0], 1)
    story = await board("ExplainEvent", event_id=two.id)
    assert [(c.run_id, c.workflow, c.event_id, c.event_type, c.event_source) for c in story.causes] == [
        (one.runs[0], "second", one.id, "step.one", "internal"),
        (run.id, "first", "", "", ""),
    ]
    assert [one.id for one in story.runs] == two.runs
    assert story.summary[0].startswith(f"It started 1 run: {two.runs[0]} (")
    assert story.summary[1] == "third/got (version 1) matched."


async def test_what_a_run_publishes_is_published_once(own):
    await own.apply(heard("ear", "told"))
    await own.apply("name: teller\nsteps:\n" + sends("told") + "\n  - {id: hold, wait: {signal: go}}\n")
    run = (await own("StartRun", workflow="teller")).run
    await eventually(lambda: own.listed(type="told"), lambda found: found)
    await own.restart()
    await own("SignalRun", run_id=run.id, signal="go")
    await own.ended(run.id)
    await settled(own)
    assert len(await own.listed(type="told")) == 1
    assert len(await own.runs(workflow="ear")) == 1


async def test_a_summary_says_what_was_false_and_what_to_do(board):
    await board.apply(heard("no", "a", rules="    if: event.body.total > 100 && event.body.total < 200"))
    event = await board.publish("a", {"total": 700})
    story = await board("ExplainEvent", event_id=event.id)
    assert list(story.summary) == [
        "It started no run; 1 trigger was asked.",
        "no/got (version 1) did not match: `if` is false: event.body.total < 200 (event.body.total was 700).",
        f"`taskforgectl event replay {event.id}` asks the triggers as they are now.",
    ]
    assert (list(story.causes), list(story.runs)) == ([], [])
    assert story.event == event.message
    lost = await board.publish("lost")
    summary = (await board("ExplainEvent", event_id=lost.id)).summary
    assert summary[0] == "No trigger of its namespace asked for events of type 'lost' when it came."
    assert await board.refused("NOT_FOUND", "ExplainEvent", event_id="evt_x") == "there is no event 'evt_x'"


# --- what the engine publishes ---------------------------------------------------------------------------------------

ENDS = {
    "run.succeeded": ("SUCCEEDED", "  - {id: a, transform: 1}"),
    "run.failed": ("FAILED", "  - {id: a, fail: {message: no, code: broken}}"),
    "run.dead": ("DEAD", "  - {id: a, http: {url: 'http://127.0.0.1:1/'}, retry: {max_attempts: 2, delay: 1ms}}"),
    "run.cancelled": ("CANCELLED", "  - {id: a, wait: {signal: go}}"),
}


@pytest.mark.parametrize("kind", ENDS)
async def test_the_end_of_a_run(board, kind):
    wanted, steps = ENDS[kind]
    await board.apply(heard("ear", kind, rules="    if: event.body.workflow == 'mine'"))
    await board.apply(f"name: mine\nsteps:\n{steps}\n")
    run = (await board("StartRun", workflow="mine")).run
    if kind == "run.cancelled":
        await board("CancelRun", run_id=run.id, reason="enough")
    ended = await board.ended(run.id)
    assert state(ended) == wanted
    (event,) = await eventually(
        lambda: board.listed(type=kind, workflow="ear", outcomes=["ACCEPTED"]), lambda found: found
    )
    event = await board.event(event.id)
    assert (event.source, event.publisher_run_id, event.depth) == ("engine", run.id, 0)
    assert event.data["run_id"] == run.id
    heard_of = await board.ended(event.runs[0])
    assert json.loads(heard_of.steps[0].output_json)["seen"] == event.data
    listed = [found for one in ENDS for found in await board.listed(type=one)]
    assert [one.id for one in listed if (await board.event(one.id)).data["run_id"] == run.id] == [event.id]
    assert await board.listed() == [], "they are not listed unless they are asked for"


async def test_pausing_and_resuming_is_told_once(board):
    await board.apply(heard("ear", "trigger.*"))
    await board.apply(heard("sleepy", "a"))
    for _ in range(2):
        await board("PauseTrigger", workflow="sleepy", reason="window")
    for _ in range(2):
        await board("ResumeTrigger", workflow="sleepy")
    events = await eventually(
        lambda: board.listed(type="trigger.*"),
        lambda found: len(found) == 2 and all(one.outcome == "ACCEPTED" for one in found),
    )
    assert [one.type for one in events] == ["trigger.resumed", "trigger.paused"]
    data = [(await board.event(one.id)).data for one in events]
    assert [(one["workflow"], one["trigger"], one["reason"]) for one in data] == [
        ("sleepy", "got", ""),
        ("sleepy", "got", "window"),
    ]


async def test_due_times_that_were_missed_are_told(own):
    cron = "name: tick\non:\n  at: {cron: {schedule: '* * * * * *', seconds: true, misfire: skip, overlap: allow}}\nsteps:\n  - {id: a, transform: 1}\n"
    await own.apply(heard("ear", "schedule.missed"))
    await own.apply(cron)
    await eventually(lambda: own.runs(workflow="tick"), lambda found: found)
    await asyncio.to_thread(own.daemon.kill)
    await asyncio.sleep(7)  # more than what counts as on time
    await asyncio.to_thread(own.daemon.start)
    found = await eventually(
        lambda: own.listed(type="schedule.missed"), lambda found: found and found[0].outcome == "ACCEPTED"
    )
    event = await own.event(found[-1].id)
    assert (event.data["workflow"], event.data["trigger"]) == ("tick", "at")
    assert event.data["count"] >= 1
    assert event.data["first_due_time"] <= event.data["last_due_time"]


# --- loops -----------------------------------------------------------------------------------------------------------


async def test_a_workflow_that_starts_itself_comes_to_an_end(board):
    await board.apply(heard("ouroboros", "run.succeeded"))
    await board.apply(heard("alert", "trigger.loop_detected"))
    await board.apply("name: once\nsteps:\n  - {id: a, transform: 1}\n")
    await board("StartRun", workflow="once")
    events = await settled(board)
    assert len(await board.runs(workflow="ouroboros")) == DEPTH
    loops = [one for one in events if one.type == "trigger.loop_detected"]
    assert len(loops) == 1
    loop = await board.event(loops[0].id)
    assert (loop.source, loop.outcome, loop.depth) == ("engine", "ACCEPTED", DEPTH)
    stopped = await board.event(loop.data["event_id"])
    assert (stopped.type, stopped.outcome, stopped.depth) == ("run.succeeded", "FILTERED", DEPTH)
    assert stopped.reasons == ["the chain of events and runs that led here is too long; it looks like a loop"]
    assert loop.data["type"] == "run.succeeded"
    story = await board("ExplainEvent", event_id=loop.id)
    assert [one.workflow for one in story.causes] == ["ouroboros"] * DEPTH + ["once"]


async def test_an_alert_that_hears_of_its_own_success_comes_to_an_end(board):
    alert = heard("alert", "trigger.loop_detected").replace(
        "steps:", "  own:\n    event: {type: run.succeeded}\nsteps:"
    )
    await board.apply(alert)
    await board.apply("name: once\nsteps:\n  - {id: a, transform: 1}\n")
    await board("StartRun", workflow="once")
    events = await settled(board)
    loops = [one for one in events if one.type == "trigger.loop_detected"]
    assert len(loops) == 1
    assert loops[0].outcome == "ACCEPTED"
    runs = await board.runs(workflow="alert")
    assert sorted(one.trigger for one in runs) == ["got", *["own"] * DEPTH]
    deepest = max(events, key=lambda one: one.depth)
    assert (deepest.type, deepest.outcome, deepest.depth) == ("run.succeeded", "FILTERED", DEPTH + 1)


async def test_a_loop_through_published_events_comes_to_an_end_also_across_a_crash(daemon):
    await asyncio.to_thread(daemon.terminate)
    daemon.env["TASKFORGE_LIMITS_CAUSAL_DEPTH"] = "6"
    await asyncio.to_thread(daemon.start)
    own = Board(daemon)
    try:
        await own.apply(heard("ping", "ping", steps=sends("pong")))
        await own.apply(heard("pong", "pong", steps=sends("ping")))
        await own.apply(heard("alert", "trigger.loop_detected"))
        first = await own.publish("ping")
        await own.restart()
        events = await settled(own)
        assert first.depth == 0
        chain = sorted((one for one in events if one.type in {"ping", "pong"}), key=lambda one: one.depth)
        assert [(one.type, one.depth) for one in chain] == [(("ping", "pong")[n % 2], n) for n in range(7)]
        assert [one.outcome for one in chain] == ["ACCEPTED"] * 6 + ["FILTERED"]
        assert len([one for one in events if one.type == "trigger.loop_detected"]) == 1
        assert len(await own.runs(workflow="alert")) == 1
    finally:
        await own.close()


async def test_a_loop_through_two_workflows_doubles_but_ends(board):
    """Both hear of each other's successes: what is bounded is the length of each chain."""
    for name in ("one", "two"):
        await board.apply(heard(name, "run.succeeded"))
    await board.apply("name: once\nsteps:\n  - {id: a, transform: 1}\n")
    await board("StartRun", workflow="once")
    events = await settled(board)
    assert len(await board.runs(workflow="one")) == sum(2**n for n in range(DEPTH))
    assert len([one for one in events if one.type == "trigger.loop_detected"]) == 2**DEPTH


# --- what waits, and what is poisoned --------------------------------------------------------------------------------

HOLD = "  - {id: hold, wait: {signal: go}}"


async def test_events_wait_while_too_many_runs_do_and_are_decided_once(own):
    full = await own.fresh()
    await full("SetNamespace", name=full.namespace, running_runs_max=1, pending_runs_max=2)
    await full.apply(heard("ear", "a"))
    await full.apply(f"name: blocker\nsteps:\n{HOLD}\n")
    blockers = [(await full("StartRun", workflow="blocker")).run.id]
    ids = [(await full("PublishEvent", type="a", data_json=str(n))).event.id for n in range(6)]
    found = await eventually(
        lambda: full.listed(type="a"), lambda found: sum(one.outcome == "ACCEPTED" for one in found) >= 2
    )
    assert sum(one.outcome == "PENDING" for one in found) == 4
    story = await full("ExplainEvent", event_id=ids[-1])
    assert (
        story.summary[0]
        == "Its triggers have not been asked yet: they are as soon as there is room for what they start."
    )
    await own.restart()
    await full("SignalRun", run_id=blockers[0], signal="go")
    await eventually(
        lambda: full.listed(type="a"), lambda found: all(one.outcome == "ACCEPTED" for one in found), within_s=60
    )
    await settled(full)
    runs = await full.runs(workflow="ear")
    assert sorted(one.event_id for one in runs) == sorted(ids), "each exactly once"


async def test_a_namespace_that_is_full_does_not_hold_up_the_others(own):
    full, other = await own.fresh(), await own.fresh()
    await full("SetNamespace", name=full.namespace, running_runs_max=1, pending_runs_max=1)
    await full.apply(heard("ear", "a", steps=HOLD))
    await other.apply(heard("ear", "a"))
    await asyncio.gather(*(full("PublishEvent", type="a") for _ in range(450)))
    event = await other.publish("a")
    assert event.outcome == "ACCEPTED"
    assert sum(one.outcome == "PENDING" for one in await full.listed(type="a")) >= 400


async def test_an_event_that_wants_more_runs_than_may_ever_wait_starts_what_fits(own):
    small = await own.fresh()
    await small("SetNamespace", name=small.namespace, running_runs_max=1, pending_runs_max=3)
    await small.apply(heard("each", "many", rules="    for_each: event.body.items", steps=HOLD))
    event = await small.publish("many", {"items": list(range(8))})
    assert event.outcome == "ACCEPTED"
    refused = [item for item in event.verdict["each/got"].items if not item.run_id]
    assert len(event.runs) in {3, 4}, "those that may wait, and the one that may run"
    assert len(refused) == 8 - len(event.runs)
    assert all("may have 3" in item.reason for item in refused)


async def test_an_event_that_breaks_its_listener_does_not_hold_up_others(board):
    await board.apply(heard("breaks", "a", rules="    if: event.body.deep.er == 1"))
    await board.apply(
        heard(
            "misfits",
            "a",
            rules="    input: {n: '${{ event.body.n }}'}",
            top="input: {type: object, properties: {n: {type: string}}}\n",
        )
    )
    await board.apply(heard("fine", "a"))
    events = [await board.publish("a", {"n": n}) for n in range(3)]
    for event in events:
        assert event.outcome == "ACCEPTED"
        assert event.verdict["fine/got"].matched
        assert event.verdict["breaks/got"].reason.startswith("an expression failed")
        assert event.verdict["misfits/got"].reason.startswith("the input does not fit: ")


async def test_a_definition_that_cannot_be_read_any_more_holds_up_nothing(own):
    """What no client can do: the stored version is damaged."""
    await own.apply(heard("damaged", "a"))
    await own.apply(heard("fine", "b"))
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    with sqlite3.connect(own.daemon.home / "taskforge.db") as connection:
        guards = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'workflow_versions'"
        ).fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE workflow_versions SET source = 'name: [' WHERE workflow_no = 1")
        for _, sql in guards:
            connection.execute(sql)
    await asyncio.to_thread(own.daemon.start)
    poisoned = (await own("PublishEvent", type="a")).event.id
    for _ in range(3):
        assert (await own.publish("b")).outcome == "ACCEPTED"
    event = await own.event(poisoned)
    assert (event.outcome in {"PENDING", "FILTERED"}, event.runs) == (True, [])
    await own("DeleteWorkflow", name="damaged")
    assert (await own.decided(poisoned)).outcome in {"UNMATCHED", "FILTERED"}


async def test_a_loop_through_a_sub_workflow_comes_to_an_end(board):
    await board.apply(f"name: inner\nsteps:\n{sends('again')}\n")
    await board.apply(heard("outer", "again", steps="  - {id: call, workflow: inner}"))
    await board.publish("again")
    events = await settled(board)
    assert len(await board.runs(workflow="outer")) == DEPTH
    assert len([one for one in events if one.type == "trigger.loop_detected"]) == 1
