"""Triggers on a running daemon: seen, paused, fired by hand, kept across versions, and started for each tenant."""

import asyncio
import datetime as dt
import json

import pytest
from google.protobuf.duration_pb2 import Duration
from switchboard import eventually, state
from taskforge.v1 import trigger_pb2

STEP = "steps:\n  - {id: keep, transform: {seen: '${{ event.body }}'}}\n"
THREE = f"""
name: three
on:
  daily: {{cron: {{schedule: "0 3 * * *", timezone: Europe/Berlin}}}}
  hook: {{webhook: {{path: in, verify: {{scheme: none}}}}}}
  news: {{event: {{type: "order.*"}}}}
{STEP}"""


def kind(name):
    return trigger_pb2.Trigger.Kind.Value(f"KIND_{name}")


async def keys(board, **filters):
    found = (await board("ListTriggers", page_size=1000, **filters)).triggers
    return [f"{one.workflow}/{one.trigger}" for one in found]


async def trigger(board, workflow, key=""):
    return (await board("GetTrigger", workflow=workflow, trigger=key)).trigger


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_what_is_shown_of_a_trigger(board):
    await board.apply(THREE)
    found = {one.trigger: one for one in (await board("ListTriggers")).triggers}
    assert {key: (one.kind, one.detail) for key, one in found.items()} == {
        "daily": (kind("CRON"), "0 3 * * * Europe/Berlin"),
        "hook": (kind("WEBHOOK"), f"POST /hooks/{board.namespace}/in"),
        "news": (kind("EVENT"), "order.*"),
    }
    for key, one in found.items():
        assert one == await trigger(board, "three", key)
        assert (one.namespace, one.workflow, one.version) == (board.namespace, "three", 1)
        assert (one.workflow_active, one.paused, one.last_event_id) == (True, False, "")
        assert one.id.startswith("trg_")
        assert one.applied_by in board.daemon.token
        assert one.HasField("schedule") == (key == "daily")
    schedule = found["daily"].schedule
    assert (schedule.expression, schedule.timezone, schedule.misfire, schedule.overlap) == (
        *("0 3 * * *", "Europe/Berlin"),
        *("latest", "skip"),
    )
    assert schedule.next_due_time.ToDatetime() > dt.datetime.now(dt.UTC).replace(tzinfo=None)
    fired = await board.fire("three", {}, trigger="hook")
    hook = await trigger(board, "three", "hook")
    assert hook.last_event_id == fired.id
    assert hook.HasField("last_fire_time")


async def test_filters_and_pages(board):
    for name in ("b", "a", "c"):
        await board.apply(THREE.replace("name: three", f"name: {name}").replace("path: in", f"path: {name}"))
    wanted = [f"{name}/{key}" for name in "abc" for key in ("daily", "hook", "news")]
    assert await keys(board) == wanted
    assert await keys(board, workflow="b") == wanted[3:6]
    assert await keys(board, kinds=[kind("EVENT"), kind("CRON")], workflow="b") == ["b/daily", "b/news"]
    assert await keys(board, kinds=[0]) == wanted
    assert await keys(board, workflow="nope") == []
    seen, token = [], ""
    while True:
        page = await board("ListTriggers", page_size=2, page_token=token)
        seen += [f"{one.workflow}/{one.trigger}" for one in page.triggers]
        token = page.next_page_token
        if not token:
            break
        assert len(page.triggers) == 2
    assert seen == wanted
    token = (await board("ListTriggers", page_size=2)).next_page_token
    await board.refused("INVALID_ARGUMENT", "ListTriggers", page_token=token, workflow="a")
    await board.refused("INVALID_ARGUMENT", "ListTriggers", page_token="x")
    await board.refused("INVALID_ARGUMENT", "ListTriggers", page_size=-1)
    other = await board.fresh()
    assert await keys(other) == []


@pytest.mark.parametrize("method", ["GetTrigger", "PauseTrigger", "ResumeTrigger", "FireTrigger"])
async def test_which_one_is_meant(board, method):
    await board.apply(THREE)
    await board.apply("name: none\n" + STEP)
    said = await board.refused("INVALID_ARGUMENT", method, workflow="three")
    assert said.endswith("say which one: three/daily, three/hook, three/news")
    said = await board.refused("NOT_FOUND", method, workflow="three", trigger="nope")
    assert said == "workflow 'three' has no trigger 'nope'; it has daily (cron), hook (webhook), news (event)"
    said = await board.refused("NOT_FOUND", method, workflow="none")
    assert said == "workflow 'none' has no trigger; it has none but manual"
    assert "'nope'" in await board.refused("NOT_FOUND", method, workflow="nope")
    assert "is required" in await board.refused("INVALID_ARGUMENT", method)


async def test_a_cron_trigger_needs_no_name_where_it_is_the_only_one(board):
    await board.apply(THREE)
    assert (await board("ExplainSchedule", workflow="three")).trigger.trigger == "daily"
    assert "no cron trigger; it has" in await board.refused(
        "NOT_FOUND", "ExplainSchedule", workflow=(await only_hook(board))
    )


async def only_hook(board):
    await board.apply("name: hooky\non: {hook: {webhook: {path: y, verify: {scheme: none}}}}\n" + STEP)
    return "hooky"


# --- pausing ---------------------------------------------------------------------------------------------------------


async def test_a_pause_stands_until_somebody_ends_it(own):
    await own.apply(THREE)
    token = await own.token("OPERATOR")
    paused = (await own("PauseTrigger", workflow="three", trigger="news", reason="window", bearer=token.secret)).trigger
    assert (paused.paused, paused.pause_reason, paused.paused_by) == (True, "window", token.token.id)
    again = (await own("PauseTrigger", workflow="three", trigger="news", reason="other")).trigger
    assert again == paused, "the first pause stands"
    await own.restart()
    assert await trigger(own, "three", "news") == paused
    event = await own.publish("order.paid")
    assert (event.outcome, event.runs) == ("FILTERED", [])
    assert event.reasons[0].endswith(": window")
    for _ in range(2):
        resumed = (await own("ResumeTrigger", workflow="three", trigger="news")).trigger
        assert (resumed.paused, resumed.pause_reason, resumed.paused_by) == (False, "", "")
        assert not resumed.HasField("pause_time")
    assert (await own.publish("order.paid")).outcome == "ACCEPTED"


async def test_who_may_pause_and_fire(board):
    await board.apply("name: one\non: {hook: {webhook: {path: in, verify: {scheme: none}}}}\n" + STEP)
    may = {"VIEWER": set(), "WORKER": set(), "TRIGGER": {"FireTrigger"}}
    methods = ("PauseTrigger", "ResumeTrigger", "FireTrigger")
    may["OPERATOR"] = set(methods)
    for role, allowed in may.items():
        token = (await board.token(role)).secret
        for method in methods:
            if method in allowed:
                await board(method, workflow="one", bearer=token)
            else:
                await board.refused("PERMISSION_DENIED", method, workflow="one", bearer=token)
    other = await board.fresh()
    token = (await other.token("ADMIN")).secret
    await board.refused("PERMISSION_DENIED", "GetTrigger", workflow="one", bearer=token)
    assert "reason" in await board.refused("INVALID_ARGUMENT", "PauseTrigger", workflow="one", reason="x" * 1001)


# --- firing ----------------------------------------------------------------------------------------------------------


def seen(what="event.body"):
    return f"steps:\n  - {{id: keep, transform: {{seen: '${{{{ {what} }}}}'}}}}\noutput: '${{{{ steps.keep.output.seen }}}}'\n"


async def test_a_payload_and_headers_take_the_place_of_a_delivery(board):
    hook = "name: one\non:\n  hook:\n    webhook: {path: in, verify: {scheme: github, secret: HOOK}}\n    if: event.body.n > 1\n    input: {n: '${{ event.body.n }}'}\ninput: {type: object, properties: {n: {type: integer, maximum: 9}}}\n"
    await board.apply(hook + seen('[input.n, event.headers["x-github-event"], event.path, event.source]'))
    event = await board.fire("one", {"n": 2}, headers={"x-github-event": "push"})
    assert (event.outcome, event.source, event.addressee, event.path) == ("ACCEPTED", "manual", "one/hook", "in")
    assert await board.output(event.runs[0]) == [2, "push", "in", "manual"]
    run = await board.run(event.runs[0])
    assert (run.trigger, run.event_id) == ("hook", event.id)
    low = await board.fire("one", {"n": 1})
    assert (low.outcome, low.runs, low.verdict["one/hook"].clause) == ("FILTERED", [], "event.body.n > 1")
    assert json.loads(low.verdict["one/hook"].values_json) == {"event.body.n": 1}
    misfit = await board.fire("one", {"n": 10})
    assert (misfit.outcome, misfit.reasons[0].partition(":")[0]) == ("FILTERED", "the input does not fit")
    empty = await board.fire("one")
    assert empty.reasons[0].startswith("an expression failed")
    assert empty.body == b"null"


async def test_a_paused_trigger_can_be_fired(board):
    await board.apply("name: one\non: {got: {event: {type: a}}}\n" + seen())
    await board("PauseTrigger", workflow="one")
    assert (await board.fire("one", 1)).outcome == "ACCEPTED"
    assert (await trigger(board, "one")).paused


async def test_what_is_started_by_hand_may_be_inactive(board):
    await board.apply("name: one\non: {got: {event: {type: a}}}\n" + seen())
    await board("SetWorkflowActive", name="one", active=False)
    assert not (await trigger(board, "one")).workflow_active
    await board("StartRun", workflow="one")
    assert (await board.fire("one", 1)).outcome == "ACCEPTED"
    event = await board.publish("a")
    assert (event.outcome, event.reasons) == ("FILTERED", ["the workflow is not active"])


async def test_the_type_of_a_fired_event(board):
    await board.apply("name: exact\non: {got: {event: {type: order.paid}}}\n" + seen("event.type"))
    await board.apply("name: open\non: {got: {event: {type: 'order.*'}}}\n" + seen("event.type"))
    assert await board.output((await board.fire("exact", 1)).runs[0]) == "order.paid"
    assert await board.output((await board.fire("exact", 1, type="order.other")).runs[0]) == "order.other"
    assert await board.output((await board.fire("open", 1)).runs[0]) == ""
    assert await board.output((await board.fire("open", 1, type="order.x")).runs[0]) == "order.x"
    await board.apply("name: hooky\non: {got: {webhook: {path: in, verify: {scheme: none}}}}\n" + seen())
    said = await board.refused("INVALID_ARGUMENT", "FireTrigger", workflow="hooky", type="a")
    assert "only for a trigger on events" in said


async def test_a_cron_trigger_gets_the_present_time_as_its_due_time(board):
    cron = "name: tick\non:\n  at: {cron: {schedule: '0 3 * * *', timezone: Asia/Kolkata}}\n"
    await board.apply(cron + seen("[event.due_time, event.body]"))
    before = dt.datetime.now(dt.UTC)
    event = await board.fire("tick")
    due, body = await board.output(event.runs[0])
    assert due == body["due_time"]
    at = dt.datetime.fromisoformat(due)
    assert before - dt.timedelta(seconds=1) <= at <= dt.datetime.now(dt.UTC)
    assert dt.datetime.fromisoformat(body["local_time"]).utcoffset() == dt.timedelta(hours=5, minutes=30)
    assert (body["timezone"], body["schedule"]) == ("Asia/Kolkata", "0 3 * * *")
    given = await board.fire("tick", {"due_time": "2026-01-02T03:00:00Z"})
    assert (await board.output(given.runs[0]))[0] == "2026-01-02T03:00:00Z"
    assert list((await board("ListScheduleSlots", workflow="tick")).slots) == [], "the ledger is of due times"


async def test_a_request_id_makes_a_firing_repeatable(own):
    await own.apply("name: one\non: {got: {event: {type: a}}}\n" + seen())
    await own.apply("name: tick\non: {at: {cron: '0 3 * * *'}}\n" + seen())
    for workflow, payload in (("one", {"n": 1}), ("tick", None)):
        first = await own.fire(workflow, payload, request_id="r-1")
        assert (await own.fire(workflow, payload, request_id="r-1")).id == first.id
        await own.restart()
        assert (await own.fire(workflow, payload, request_id="r-1")).id == first.id
        at_once = await asyncio.gather(*(own.fire(workflow, payload, request_id="r-2") for _ in range(20)))
        assert len({one.id for one in at_once}) == 1
        assert len(await own.runs(workflow=workflow)) == 2
    said = await own.refused("ALREADY_EXISTS", "FireTrigger", workflow="one", payload_json='{"n": 2}', request_id="r-1")
    assert "evt_" in said
    said = await own.refused(
        "ALREADY_EXISTS", "FireTrigger", workflow="one", payload_json='{"n": 1}', headers={"a": "b"}, request_id="r-1"
    )
    assert "evt_" in said
    await own.refused(
        "ALREADY_EXISTS", "FireTrigger", workflow="one", payload_json='{"n": 1}', type="z", request_id="r-1"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"payload_json": "{"},
        {"payload_json": "NaN"},
        {"headers": {"X-Upper": "x"}},
        {"headers": {"": "x"}},
        {"headers": {f"h{n}": "x" for n in range(101)}},
        {"headers": {"a": "x" * 8193}},
        {"request_id": "x" * 129},
        {"type": "x" * 201},
    ],
)
async def test_what_cannot_be_fired(board, fields):
    await board.apply("name: one\non: {got: {event: {type: a}}}\n" + seen())
    await board.refused("INVALID_ARGUMENT", "FireTrigger", workflow="one", **fields)
    assert await board.listed() == []


# --- versions --------------------------------------------------------------------------------------------------------


async def test_a_trigger_keeps_its_identity_and_its_pause_across_versions(own):
    await own.apply(THREE)
    first = await trigger(own, "three", "hook")
    await own("PauseTrigger", workflow="three", trigger="hook", reason="window")
    await own.apply(THREE.replace("path: in", "path: moved"))
    second = await trigger(own, "three", "hook")
    assert (second.id, second.version, second.create_time) == (first.id, 2, first.create_time)
    assert (second.paused, second.pause_reason, second.detail) == (True, "window", "POST /hooks/default/moved")
    assert (await own.post("in")).status == 404
    assert (await own.post("moved")).body["outcome"] == "FILTERED"
    without = "\n".join(line for line in THREE.splitlines() if "hook:" not in line) + "\n"
    await own.apply(without)
    await own.refused("NOT_FOUND", "GetTrigger", workflow="three", trigger="hook")
    assert (await own.post("moved")).status == 404
    await own.restart()
    assert (await own.post("moved")).status == 404
    assert await keys(own) == ["three/daily", "three/news"]
    await own.apply(THREE)
    back = await trigger(own, "three", "hook")
    assert (back.id, back.paused) == (first.id, True)
    await own("ResumeTrigger", workflow="three", trigger="hook")
    assert (await own.post("in")).body["outcome"] == "ACCEPTED"
    changed = THREE.replace("webhook: {path: in, verify: {scheme: none}}", "event: {type: other}")
    await own.apply(changed)
    other = await trigger(own, "three", "hook")
    assert (other.id, other.kind, other.detail) == (first.id, kind("EVENT"), "other")
    assert (await own.post("in")).status == 404
    assert (await own.publish("other")).outcome == "ACCEPTED"


async def test_the_triggers_of_a_deleted_workflow_are_gone(own):
    await own.apply(THREE)
    for again in (False, True):
        await own("DeleteWorkflow", name="three")
        assert await keys(own) == []
        assert (await own.post("in")).status == 404
        assert (await own.publish("order.x")).outcome == "UNMATCHED"
        await own.restart()
        assert await keys(own) == []
        if not again:
            await own.apply(THREE)
            assert (await own.post("in")).status == 202


async def test_a_definition_that_is_refused_changes_no_trigger(board):
    await board.apply(THREE)
    before = (await board("ListTriggers")).triggers
    bad = THREE.replace("path: in", "path: elsewhere").replace("0 3 * * *", "0 25 * * *")
    await board.refused("INVALID_ARGUMENT", "ApplyWorkflow", source=bad)
    assert (await board("ListTriggers")).triggers == before
    assert (await board.post("in")).status == 202


# --- for each item ---------------------------------------------------------------------------------------------------


def fan(for_each, *, input_="{n: '${{ item }}', i: '${{ index }}'}", contract="{type: object}", name="fan", steps=""):
    return f"""
name: {name}
on:
  got:
    event: {{type: go}}
    for_each: {for_each}
    input: {input_}
input: {contract}
{steps or "steps:" + chr(10) + "  - {id: keep, transform: {seen: '${{ input }}'}}"}
output: "${{{{ steps.keep.output.seen }}}}"
"""


async def outputs(board, event):
    return [await board.output(one) for one in event.runs]


@pytest.mark.parametrize(
    "for_each", ["event.body.list", '"${{ event.body.list }}"', "[a, '${{ event.body.list[1] }}', c]"]
)
async def test_one_run_for_each_item(board, for_each):
    await board.apply(fan(for_each))
    event = await board.publish("go", {"list": ["a", "b", "c"]})
    assert event.outcome == "ACCEPTED"
    assert await outputs(board, event) == [{"i": n, "n": one} for n, one in enumerate("abc")]
    verdict = event.verdict["fan/got"]
    assert list(verdict.run_ids) == event.runs
    assert [(one.index, one.run_id, one.reason) for one in verdict.items] == [
        (n, run_id, "") for n, run_id in enumerate(event.runs)
    ]
    assert {(await board.run(one)).event_id for one in event.runs} == {event.id}


async def test_a_field_that_is_called_namespaces_holds_plain_items(board):
    """The sender's texts must not choose in which namespaces runs start."""
    await board.apply(fan("event.body.namespaces", input_="{n: '${{ item }}'}"))
    await board.apply(fan("event.body.?namespaces.orValue([])", input_="{n: '${{ item }}'}", name="optional"))
    event = await board.publish("go", {"namespaces": ["default", board.namespace]})
    for name in ("fan", "optional"):
        items = event.verdict[f"{name}/got"].items
        assert [(one.namespace, one.reason) for one in items] == [("", "")] * 2
    assert {(await board.run(one)).namespace for one in event.runs} == {board.namespace}


async def test_an_item_that_does_not_fit_does_not_hinder_the_others(board):
    contract = "{type: object, properties: {n: {type: integer, minimum: 0}}}"
    await board.apply(fan("event.body", input_="{n: '${{ 10 / item }}'}", contract=contract))
    event = await board.publish("go", [5, 0, -5, 2])
    assert event.outcome == "ACCEPTED"
    assert await outputs(board, event) == [{"n": 2}, {"n": 5}]
    reasons = [one.reason for one in event.verdict["fan/got"].items]
    assert (reasons[0], reasons[3]) == ("", "")
    assert reasons[1].startswith("an expression failed: ")
    assert reasons[2].startswith("the input does not fit: ")
    said = (await board("ExplainEvent", event_id=event.id)).summary
    assert said[1].startswith("fan/got (version 1) matched, 2 of its items could not be started: an expression failed")
    none = await board.publish("go", [0, -1])
    assert (none.outcome, none.runs) == ("FILTERED", [])
    assert none.reasons[0].startswith("none of 2 items could be started, the first: an expression failed")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "`for_each` has no items"),
        ({"a": 1}, "`for_each` is no list"),
        ("text", "`for_each` is no list"),
        (list(range(1001)), "`for_each` has 1,001 items; the limit is 1,000"),
    ],
)
async def test_what_is_no_list_of_items(board, data, said):
    await board.apply(fan("event.body"))
    event = await board.publish("go", data)
    assert (event.outcome, event.reasons) == ("FILTERED", [said])


async def test_a_thousand_items(board):
    await board.apply(fan("event.body"))
    event = await board.publish("go", list(range(1000)))
    assert (event.outcome, len(set(event.runs))) == ("ACCEPTED", 1000)
    verdict = event.verdict["fan/got"]
    assert [one.index for one in verdict.items] == list(range(1000))
    runs = await eventually(
        lambda: board.runs(workflow="fan"), lambda found: all(state(one) == "SUCCEEDED" for one in found), within_s=60
    )
    assert {one.id for one in runs} == set(event.runs)
    assert [await board.output(event.runs[n]) for n in (0, 999)] == [{"n": n, "i": n} for n in (0, 999)]
    story = await board("ExplainEvent", event_id=event.id)
    assert len(story.runs) == 1000
    assert story.summary[0].startswith("It started 1,000 runs: ")
    assert " and 990 more." in story.summary[0]


# --- for each namespace ----------------------------------------------------------------------------------------------

TENANTS = 'namespaces.filter(n, n.labels.plan == "{0}")'


def tenants(plan, *, name="billing", steps="", trigger="event: {type: go}"):
    text = fan(TENANTS.format(plan), input_="{tenant: '${{ item.name }}', i: '${{ index }}'}", name=name, steps=steps)
    return text.replace("event: {type: go}", trigger)


async def world(board, **labels):
    """Namespaces whose labels only one test knows: the daemon is shared."""
    made = {}
    for plan in ("pro", "free", "pro"):
        one = await board.fresh(**{"plan": f"{plan}-{board.namespace}", **labels})
        made.setdefault(plan, []).append(one)
    await board.fresh()  # has no such label
    return f"pro-{board.namespace}", made["pro"], made["free"]


async def test_one_run_in_each_namespace_that_fits(board):
    plan, pro, free = await world(board)
    await board.apply(tenants(plan))
    event = await board.publish("go")
    assert event.outcome == "ACCEPTED"
    assert await outputs(board, event) == [{"tenant": one.namespace, "i": n} for n, one in enumerate(pro)]
    runs = [await board.run(one) for one in event.runs]
    assert [(one.namespace, one.workflow) for one in runs] == [(one.namespace, "billing") for one in pro]
    for one, run in zip(pro, runs, strict=True):
        assert [found.id for found in await one.runs()] == [run.id]
    assert await board.runs() == []
    assert [await one.runs() for one in free] == [[]]
    items = event.verdict["billing/got"].items
    assert [(one.index, one.namespace, one.run_id) for one in items] == [
        (n, one.namespace, run.id) for n, (one, run) in enumerate(zip(pro, runs, strict=True))
    ]
    assert (await board.publish("go", 1)).id != event.id
    nobody = await board.fresh()
    await nobody.apply(tenants("no-such-plan"))
    assert (await nobody.publish("go")).reasons == ["`for_each` has no items"]


async def test_each_tenants_run_has_the_tenants_secrets(board, effects):
    plan, pro, _ = await world(board)
    for one in pro:
        await one.secret("KEY", f"secret-of-{one.namespace}")
    http = (
        f"steps:\n  - id: keep\n    http:\n      method: POST\n      url: {effects.url}/echo\n"
        "      json: {seen: '${{ secrets.KEY }}'}\n"
    )
    await board.apply(tenants(plan, steps=http).replace("steps.keep.output.seen", "steps.keep.output.body.body"))
    event = await board.publish("go")
    for run_id in event.runs:
        assert state(await board.ended(run_id)) == "SUCCEEDED"
    bodies = sorted(json.loads(call.body)["seen"] for calls in effects.calls().values() for call in calls)
    assert bodies == sorted(f"secret-of-{one.namespace}" for one in pro)


async def test_each_tenants_run_counts_for_the_tenants_limits(own):
    plan, pro, _ = await world(own)
    await own("SetNamespace", name=pro[0].namespace, running_runs_max=1)
    hold = "steps:\n  - {id: keep, wait: {signal: go}}\n"
    await own.apply(tenants(plan, steps=hold).replace("steps.keep.output.seen", "input"))
    first, second = await own.publish("go"), await own.publish("go")
    running = await eventually(
        lambda: asyncio.gather(*(own.run(one) for one in [*first.runs, *second.runs])),
        lambda found: sum(state(one) != "PENDING" for one in found) >= 3,
    )
    states = [state(one) for one in running]
    assert states[2] == "PENDING"
    assert "PENDING" not in (states[0], states[1], states[3])


async def test_a_tenant_that_is_full_does_not_hinder_the_others(own):
    """Tenants are each other's strangers: what one of them lets wait must not keep the others from starting."""
    plan, pro, _ = await world(own)
    await own("SetNamespace", name=pro[0].namespace, running_runs_max=1, pending_runs_max=1)
    hold = "steps:\n  - {id: keep, wait: {signal: go}}\n"
    await own.apply(tenants(plan, steps=hold).replace("steps.keep.output.seen", "input"))
    events = [(await own("PublishEvent", type="go")).event.id for _ in range(4)]
    decided = await eventually(
        lambda: asyncio.gather(*(own.event(one) for one in events)),
        lambda found: all(one.outcome == "ACCEPTED" for one in found),
        within_s=5,
    )
    assert len(await pro[1].runs()) == 4
    assert len(await pro[0].runs()) == 2
    assert "pending" in decided[3].verdict["billing/got"].items[0].reason


async def test_a_token_that_is_confined_sees_its_own_namespace_only(board):
    plan, pro, _ = await world(board)
    inside = pro[0]
    token = (await inside.token("ADMIN")).secret
    await inside.apply(tenants(plan), bearer=token)
    event = await inside.publish("go")
    assert await outputs(board, event) == [{"tenant": inside.namespace, "i": 0}]
    assert [len(await one.runs()) for one in pro] == [1, 0]
    by_name = fan("'[\"default\", namespaces[0].name]'", input_="{tenant: '${{ item }}'}", name="named")
    await inside.apply(by_name, bearer=token)
    event = await inside.publish("go")
    items = event.verdict["named/got"].items
    assert [one.namespace for one in items if one.run_id] == [inside.namespace]
    assert [one.reason for one in items if not one.run_id] == ["item 0 is no namespace that this trigger may use"]


async def test_a_dead_token_starts_nothing_until_a_live_one_applies_again(own):
    plan, pro, _ = await world(own)
    token = await own.token("ADMIN", None)
    await own.apply(tenants(plan), bearer=token.secret)
    assert (await trigger(own, "billing")).applied_by == token.token.id
    assert (await own.publish("go")).outcome == "ACCEPTED"
    await own("RevokeToken", token_id=token.token.id)
    await own.restart()
    event = await own.publish("go")
    assert (event.outcome, event.runs) == ("FILTERED", [])
    said = "the token that applied this version is revoked or expired: apply it again to say whose namespaces"
    assert event.reasons == [said]
    await own.apply(tenants(plan))
    assert (await trigger(own, "billing")).applied_by != token.token.id
    mended = await own.replay(event.id)
    assert (mended.outcome, len(mended.runs)) == ("ACCEPTED", len(pro))
    assert (await trigger(own, "billing")).version == 1, "nothing but who applied it has changed"
    await own.restart()
    assert (await own.publish("go")).outcome == "ACCEPTED"


async def test_a_token_that_expires(own):
    plan, _, _ = await world(own)
    made = await own("CreateToken", name="short", role=1, ttl=Duration(seconds=4))
    await own.apply(tenants(plan), bearer=made.secret)
    event = await eventually(lambda: own.publish("go"), lambda found: found.outcome == "FILTERED")
    assert "revoked or expired" in event.reasons[0]


async def test_a_due_time_whose_token_is_dead_has_failed(own):
    plan, _, _ = await world(own)
    token = await own.token("ADMIN", None)
    cron = "cron: {schedule: '* * * * * *', seconds: true, overlap: allow}"
    await own.apply(tenants(plan, trigger=cron), bearer=token.secret)
    await own("RevokeToken", token_id=token.token.id)

    async def slots():
        return list((await own("ListScheduleSlots", workflow="billing", outcomes=[7])).slots)

    found = await eventually(slots, lambda found: found)
    assert "revoked or expired" in found[0].reason
    await own.apply(tenants(plan, trigger=cron))

    async def fired():
        return list((await own("ListScheduleSlots", workflow="billing", outcomes=[1])).slots)

    newest = max(one.due_time.ToNanoseconds() for one in found)
    again = await eventually(fired, lambda found: found and found[0].due_time.ToNanoseconds() > newest)
    assert len(again[0].run_ids) == 2


async def test_sub_workflows_are_found_beside_their_parents_workflow(board):
    plan, pro, _ = await world(board)
    await board.apply(
        "name: part\ninput: {type: object}\nsteps:\n  - {id: a, transform: '${{ input.tenant }}'}\noutput: 'part of ${{ steps.a.output }}'\n"
    )
    await pro[0].apply("name: part\nsteps:\n  - {id: a, fail: this is the tenant's own}\n")
    steps = "steps:\n  - {id: keep, workflow: {name: part, input: {tenant: '${{ input.tenant }}'}}}\n"
    await board.apply(tenants(plan, steps=steps).replace("steps.keep.output.seen", "steps.keep.output"))
    event = await board.publish("go")
    assert sorted(await outputs(board, event)) == sorted(f"part of {one.namespace}" for one in pro)
    for one in pro:
        parts = await one.runs(workflow="part")
        assert [(found.namespace, found.workflow) for found in await one.runs()] == [
            (one.namespace, "part"),
            (one.namespace, "billing"),
        ], parts


async def test_a_namespace_without_the_label_does_not_break_the_expression(board):
    await board.fresh()
    plan, pro, _ = await world(board)
    for text in (
        f'namespaces.filter(n, n.labels.plan == "{plan}")',
        f'namespaces.filter(n, n.labels["plan"] == "{plan}")',
        f'namespaces.filter(n, n.labels.plan == "{plan}").map(n, n.name)',
        f"\"${{{{ namespaces.filter(n, n.labels.plan == '{plan}') }}}}\"",
    ):
        await board.apply(fan(text, input_="{n: '${{ index }}'}"))
        event = await board.publish("go")
        assert [one.namespace for one in event.verdict["fan/got"].items] == [one.namespace for one in pro], text


async def test_labels_are_read_when_the_event_comes(board):
    plan, pro, free = await world(board)
    await board.apply(tenants(plan))
    await board("SetNamespace", name=free[0].namespace, labels={"plan": plan})
    await board("SetNamespace", name=pro[0].namespace, labels={"plan": ""})
    event = await board.publish("go")
    names = {one.namespace for one in event.verdict["billing/got"].items}
    assert names == {free[0].namespace, pro[1].namespace}
