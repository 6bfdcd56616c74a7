"""SIGKILL around due times and in the middle of deliveries: what starts runs by itself loses nothing and doubles nothing.

Twenty schedules that are due every second, signed webhooks, published events and workflows that are chained by events.
Every due time must be in the ledger exactly once, and whatever was acknowledged or fired must have exactly its runs.
`TASKFORGE_TEST_SEED` repeats the instants, `TASKFORGE_TEST_CYCLES` sets how many kills (`make soak`: more).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import hmac
import json
import os
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import grpc.aio
import pytest
from harness import RETRYABLE, Daemon, seeded
from taskforge.v1 import (
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

CYCLES = int(os.environ.get("TASKFORGE_TEST_CYCLES", "6"))
SENDERS = 3
PUBLISHERS = 3
PAUSE_S = 0.05
"""Between two deliveries of one client: two cores have other work, too."""

SECRET = "nobody-knows"
SECOND = 1_000_000

FAITHFUL = [f"f{number}" for number in range(12)]
"""Triggers that catch up everything that they have missed: each of their due times has a run."""

MIXED = {
    "latest-0": ("latest", "allow"),
    "latest-1": ("latest", "allow"),
    "none": ("skip", "allow"),
    "all-queue": ("all", "queue"),
    "latest-queue": ("latest", "queue"),
    "all-skip": ("all", "skip"),
    "latest-skip": ("latest", "skip"),
    "newest": ("latest", "cancel_running"),
}


def _cron(key: str, misfire: str, overlap: str) -> str:
    return f"  {key}: {{cron: {{schedule: '* * * * * *', seconds: true, misfire: {misfire}, overlap: {overlap}}}}}"


FAITHFUL_STEPS = """
steps:
  - id: look
    transform: {at: "${{ event.body.due_time }}"}
output: ${{ steps.look.output }}
"""

MIXED_STEPS = """
steps:
  - id: nap
    sleep: 600ms
"""

REACTIONS = (
    """
name: hooked
on:
  thing:
    webhook:
      path: things
      verify: {scheme: hmac, secret: HOOK, header: x-signature}
      delivery_header: x-delivery
    input: {n: "${{ event.body.n }}"}
input: {type: object, required: [n], properties: {n: {type: integer}}}
steps:
  - id: begin
    event: {type: chain.begun, data: {n: "${{ input.n }}"}}
""",
    """
name: link
on:
  begun:
    event: {type: chain.begun}
    input: {n: "${{ event.body.n }}"}
input: {type: object, required: [n], properties: {n: {type: integer}}}
steps:
  - id: nap
    sleep: 20ms
  - id: end
    event: {type: chain.ended, data: {n: "${{ input.n }}"}}
""",
    """
name: journal
on:
  entry:
    event: {type: "chain.*"}
steps:
  - id: look
    transform: {type: "${{ event.type }}"}
""",
    """
name: after
on:
  done:
    event: {type: run.succeeded}
    if: event.body.workflow == "link"
steps:
  - id: look
    transform: {run: "${{ event.body.run_id }}"}
""",
    """
name: heard
on:
  exact: {event: {type: test.told}}
  wild: {event: {type: "test.*"}}
  even:
    event: {type: test.told}
    if: event.body.n % 2 == 0
steps:
  - id: look
    transform: {n: "${{ event.body.n }}"}
""",
)


def _definition(name: str, triggers: list[str], steps: str) -> str:
    return "\n".join([f"name: {name}", "on:", *triggers, steps])


class Pause(NamedTuple):
    """When a trigger was surely paused: from the answer to its pause to the request of its resumption; wall clock."""

    workflow: str
    trigger: str
    since: float
    until: float


class Load:
    """Everybody outside: senders of webhooks, publishers, and somebody who pauses triggers."""

    def __init__(self, daemon: Daemon, chance: random.Random) -> None:
        self._daemon = daemon
        self._chance = chance
        self._count = 0
        self.over = False
        self.delivered: dict[str, set[str]] = defaultdict(set)
        """The events that each delivery was answered with."""
        self.runs: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        self.published: dict[str, tuple[int, set[str]]] = {}
        self.pauses: list[Pause] = []
        self.repeats = 0

    async def run(self) -> None:
        """Act until `over`; what is under way is repeated until it is answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._send())
            for _ in range(PUBLISHERS):
                group.create_task(self._publish())
            group.create_task(self._pause())

    def _next(self) -> int:
        self._count += 1
        return self._count

    async def _send(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while not self.over:
                n = self._next()
                await self._deliver(session, n)
                if n % 7 == 0:
                    await self._deliver(session, n)  # a sender that did not believe the answer
                await asyncio.sleep(PAUSE_S)

    async def _deliver(self, session: aiohttp.ClientSession, n: int) -> None:
        body = json.dumps({"n": n}).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "X-Signature": signature, "X-Delivery": f"d-{n}"}
        while True:
            try:
                url = f"{self._daemon.http}/hooks/default/things"
                async with session.post(url, data=body, headers=headers) as response:
                    answer, status = await response.json(), response.status
            except (aiohttp.ClientError, TimeoutError, OSError, KeyError):  # KeyError: nobody knows its port yet
                self.repeats += 1
                await asyncio.sleep(0.02)
                continue
            if status == 503:
                await asyncio.sleep(0.02)
                continue
            assert status in {200, 202}, (status, answer)
            self.delivered[f"d-{n}"].add(answer["event_id"])
            self.runs[f"d-{n}"].add(tuple(answer["run_ids"]))
            return

    async def _publish(self) -> None:
        stub = self._daemon.stub(event_service_pb2_grpc.EventServiceStub)
        while not self.over:
            n = self._next()
            request = event_service_pb2.PublishEventRequest(
                type="test.told", data_json=json.dumps({"n": n}), request_id=f"p-{n}"
            )
            self.published[f"p-{n}"] = (n, set())
            for _ in range(2 if n % 7 == 0 else 1):
                answer = await self._insist(lambda r=request: stub.PublishEvent(r, timeout=10))
                self.published[f"p-{n}"][1].add(answer.event.id)
            await asyncio.sleep(PAUSE_S)

    async def _pause(self) -> None:
        stub = self._daemon.stub(trigger_service_pb2_grpc.TriggerServiceStub)
        while not self.over:
            await asyncio.sleep(self._chance.uniform(0.0, 0.7))
            workflow, trigger = self._chance.choice([("faithful", FAITHFUL[0]), *(("mixed", key) for key in MIXED)])
            named = {"workflow": workflow, "trigger": trigger}
            pause = trigger_service_pb2.PauseTriggerRequest(**named, reason="to look")
            await self._insist(lambda r=pause: stub.PauseTrigger(r, timeout=10))
            since = time.time()
            await asyncio.sleep(self._chance.choice([0.1, 1.0, 2.5, 9.0]))
            self.pauses.append(Pause(workflow, trigger, since, time.time()))
            resume = trigger_service_pb2.ResumeTriggerRequest(**named)
            await self._insist(lambda r=resume: stub.ResumeTrigger(r, timeout=10))

    async def _insist(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                self.repeats += 1
                await asyncio.sleep(0.02)


@pytest.mark.timeout(180 + 10 * CYCLES)
async def test_kill9_around_due_times_and_deliveries() -> None:
    chance = seeded("test_kill9_triggers")
    daemon = Daemon()
    feeding: asyncio.Task[None] | None = None
    try:
        await asyncio.to_thread(daemon.start)
        await _apply_all(daemon)
        load = Load(daemon, chance)
        feeding = asyncio.create_task(load.run())
        for cycle in range(CYCLES):
            await _wait_for_instant(chance)
            await asyncio.to_thread(daemon.kill)
            if cycle % 4 == 3:  # a crash while it catches up
                await asyncio.to_thread(daemon.start_and_kill, chance.uniform(0.3, 1.5))
            await asyncio.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 3.0), 6.5]))  # 5 s late is a misfire
            await asyncio.to_thread(daemon.start)
            if feeding.done():
                feeding.result()
        await asyncio.sleep(1.5)
        load.over = True
        await asyncio.wait_for(feeding, 60)
        listed = await _end_schedules(daemon)
        await _wait_until_quiet(daemon)
        assert await asyncio.to_thread(daemon.terminate) == 0
        uri = f"file:{daemon.home / 'taskforge.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            told = _Check(connection, load, listed).all()
        print(
            f"{len(daemon.kills)} kills, {load.repeats} calls repeated; {told}; slowest start {max(daemon.ready_s):.2f} s"
        )
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        await daemon.aclose()


async def _apply_all(daemon: Daemon) -> None:
    secrets = daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
    await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="HOOK", value=SECRET))
    for source in REACTIONS:
        await daemon.apply(source)
    await daemon.apply(_definition("faithful", [_cron(key, "all", "allow") for key in FAITHFUL], FAITHFUL_STEPS))
    await daemon.apply(_definition("mixed", [_cron(key, *how) for key, how in MIXED.items()], MIXED_STEPS))


async def _wait_for_instant(chance: random.Random) -> None:
    """Most kills come when many schedules are just due, the others whenever."""
    await asyncio.sleep(chance.uniform(0.3, 2.5))
    if chance.random() < 0.7:
        left = 1.0 - time.time() % 1.0
        await asyncio.sleep(max(0.0, left + chance.uniform(-0.03, 0.25)))


async def _end_schedules(daemon: Daemon) -> dict[str, list[Any]]:
    """Let the schedules end, so that it can become quiet; answers what the API says of some ledgers before.

    Where a trigger is removed, its ledger is closed: complete up to that instant.
    """
    workflows = daemon.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
    await workflows.SetWorkflowActive(workflow_service_pb2.SetWorkflowActiveRequest(name="mixed", active=False))
    listed = {f"mixed/{key}": await _slots(daemon, "mixed", key) for key in MIXED}
    await daemon.apply("name: mixed\n" + MIXED_STEPS)
    await daemon.apply("name: faithful\n" + FAITHFUL_STEPS.replace("event.body.due_time", "'now'"))
    return listed


async def _slots(daemon: Daemon, workflow: str, trigger: str) -> list[Any]:
    stub = daemon.stub(trigger_service_pb2_grpc.TriggerServiceStub)
    found: list[Any] = []
    token = ""
    while True:
        request = trigger_service_pb2.ListScheduleSlotsRequest(
            workflow=workflow, trigger=trigger, page_size=50, page_token=token
        )
        page = await stub.ListScheduleSlots(request, timeout=20)
        found += page.slots
        token = page.next_page_token
        if not token:
            return found[::-1]


async def _wait_until_quiet(daemon: Daemon) -> None:
    system = daemon.stub(system_service_pb2_grpc.SystemServiceStub)
    events = daemon.stub(event_service_pb2_grpc.EventServiceStub)
    pending = event_service_pb2.ListEventsRequest(
        outcomes=[event_pb2.Event.OUTCOME_PENDING], sources=["engine", "internal", "cron", "webhook", "manual"]
    )
    quiet = 0
    for _ in range(1200):
        stats = await system.GetStats(system_service_pb2.GetStatsRequest(), timeout=20)
        waiting = (await events.ListEvents(pending, timeout=20)).events
        quiet = 0 if stats.open_runs or waiting else quiet + 1
        if quiet == 3:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(
        f"{stats.open_runs} runs are open, {[one.type for one in waiting]} wait to be asked about\n{daemon.tail(20)}"
    )


class _Run(NamedTuple):
    """What is compared of a run."""

    no: int
    id: str
    workflow: str
    trigger: str
    trigger_no: int | None
    state: str
    created_at: int


class _Event(NamedTuple):
    """What is compared of an event."""

    no: int
    id: str
    source: str
    type: str
    outcome: str
    addressee: str
    run_no: int | None
    body: Any


class _Check:
    """Holds the database against what must be true of it."""

    def __init__(self, connection: sqlite3.Connection, load: Load, listed: dict[str, list[Any]]) -> None:
        self._connection = connection
        self._load = load
        self._listed = listed
        sql = (
            "SELECT r.no, r.id, w.name, r.trigger, r.trigger_no, r.state, r.created_at, r.event_no"
            " FROM runs r JOIN workflows w ON w.no = r.workflow_no"
        )
        self.runs: dict[int, _Run] = {}
        self.runs_of: dict[int, list[_Run]] = defaultdict(list)
        for *row, event_no in connection.execute(sql):
            run = self.runs[row[0]] = _Run(*row)
            self.runs_of[event_no].append(run)
        rows = connection.execute("SELECT no, id, source, type, outcome, addressee, run_no, body FROM events")
        self.events = {row[0]: _Event(*row[:7], json.loads(row[7] or b"null")) for row in rows}

    def all(self) -> str:
        """Check everything; answers what there was, in a sentence."""
        self._check_database()
        outcomes = self._check_schedules()
        self._check_deliveries()
        self._check_published()
        self._check_chains()
        assert outcomes["FIRED"] > 12 * CYCLES, f"this test has proved little: {outcomes}"
        return (
            f"{len(self.runs)} runs of {len(self.events)} events; due times {dict(outcomes)};"
            f" {len(self._load.delivered)} deliveries, {len(self._load.published)} publications,"
            f" {len(self._load.pauses)} pauses"
        )

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters).fetchall()

    def _check_database(self) -> None:
        assert self._rows("PRAGMA integrity_check") == [("ok",)]
        assert self._rows("PRAGMA foreign_key_check") == []
        for table in ("commands", "timers", "children"):
            assert self._rows(f"SELECT count(*) FROM {table}") == [(0,)], f"{table} left behind"
        assert not [one for one in self.events.values() if one.outcome == "PENDING"], "an event was never asked about"
        assert self._rows("SELECT count(*) FROM boots")[0][0] >= CYCLES + 1
        states = Counter(run.state for run in self.runs.values() if run.trigger != "newest")
        assert states.keys() == {"SUCCEEDED"}, states
        ends = Counter(one.run_no for one in self.events.values() if one.type.startswith("run."))
        assert ends == Counter(self.runs.keys()), "every run has one end, and every end one event"

    # --- schedules ---------------------------------------------------------------------------------------------------

    def _check_schedules(self) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        asked: Counter[int] = Counter()
        triggers = self._rows(
            "SELECT t.no, w.name, t.key, t.created_at, t.removed_at, t.cursor FROM triggers t"
            " JOIN workflows w ON w.no = t.workflow_no WHERE t.key IN (SELECT value FROM json_each(?))",
            json.dumps([*FAITHFUL, *MIXED]),
        )
        assert len(triggers) == len(FAITHFUL) + len(MIXED)
        for no, workflow, key, created_at, removed_at, _ in triggers:
            name = f"{workflow}/{key}"
            rows = self._rows(
                "SELECT due_at, last_at, count, outcome, event_no, reason, settled_at FROM schedule_slots"
                " WHERE trigger_no = ? ORDER BY due_at",
                no,
            )
            self._check_complete(name, rows, created_at, removed_at)
            if workflow == "faithful":
                self._check_faithful(name, rows)
            else:
                self._check_listed(name, rows)
            for due_at, _, count, outcome, event_no, reason, settled_at in rows:
                outcomes[outcome] += count
                if event_no is not None:
                    asked[event_no] += 1
                self._check_slot(no, name, due_at, outcome, event_no, reason)
                assert settled_at >= due_at, f"{name} was settled before it was due"
            self._check_pauses(no, workflow, key, rows)
        cron = {one.no for one in self.events.values() if one.source == "cron"}
        assert asked == Counter(cron), "every event of a due time belongs to one slot"
        by_schedule = {run.no for run in self.runs.values() if run.trigger_no is not None}
        assert by_schedule == {run.no for no in cron for run in self.runs_of[no]}, "a run without a due time"
        return outcomes

    def _check_complete(self, name: str, rows: list[tuple[Any, ...]], created_at: int, removed_at: int) -> None:
        """Every second between the first and the last is there once."""
        expected = created_at // SECOND * SECOND + SECOND
        assert rows[0][0] - expected in {0, SECOND}, f"{name} begins {(rows[0][0] - expected) / SECOND} s late"
        expected = rows[0][0]
        for due_at, last_at, count, outcome, *_ in rows:
            assert due_at == expected, f"{name}: {_time(expected)} was expected, {_time(due_at)} {outcome} found"
            assert last_at - due_at == (count - 1) * SECOND, f"{name}: {count} due times from {due_at} to {last_at}"
            expected = last_at + SECOND
        last = removed_at // SECOND * SECOND
        assert last - rows[-1][1] in {0, SECOND}, f"{name} ends at {_time(rows[-1][1])}, removed at {_time(removed_at)}"

    def _check_faithful(self, name: str, rows: list[tuple[Any, ...]]) -> None:
        other = [row for row in rows if row[3] != "FIRED" and row[5] != "the trigger was removed"]
        assert not other, f"{name} has misfire: all and overlap: allow, and yet: {other[:3]}"

    def _check_listed(self, name: str, rows: list[tuple[Any, ...]]) -> None:
        """The API has told the same."""
        listed = [
            (one.due_time.ToMicroseconds(), one.last_due_time.ToMicroseconds(), one.count) for one in self._listed[name]
        ]
        assert listed == [row[:3] for row in rows][: len(listed)], name
        stored = [(one.event_id, list(one.run_ids)) for one in self._listed[name]]
        assert stored == [
            ("", []) if row[4] is None else (self.events[row[4]].id, [run.id for run in self.runs_of[row[4]]])
            for row in rows[: len(stored)]
        ], name

    def _check_slot(self, no: int, name: str, due_at: int, outcome: str, event_no: int | None, reason: str) -> None:
        if outcome in {"MISSED", "COALESCED", "SUPPRESSED"}:
            assert event_no is None
            return
        assert event_no is not None, f"{name} at {_time(due_at)} is {outcome} and has no event: {reason}"
        event, runs = self.events[event_no], self.runs_of[event_no]
        assert (event.source, event.type, event.addressee) == ("cron", "schedule.due", name)
        assert _micros(event.body["due_time"]) == due_at, f"{name}: the event of another due time"
        assert outcome in {"FIRED", "SKIPPED"}, f"{name} at {_time(due_at)}: {outcome}: {reason}"
        assert len(runs) == (outcome == "FIRED"), f"{name} at {_time(due_at)} is {outcome} and has {len(runs)} runs"
        assert event.outcome == ("ACCEPTED" if runs else "FILTERED")
        assert all(run.trigger_no == no and f"{run.workflow}/{run.trigger}" == name for run in runs)

    def _check_pauses(self, no: int, workflow: str, key: str, rows: list[tuple[Any, ...]]) -> None:
        """Nothing was started between the answer to a pause and its end."""
        for pause in self._load.pauses:
            if (pause.workflow, pause.trigger) != (workflow, key):
                continue
            since, until = pause.since * SECOND, pause.until * SECOND
            fired = [row for row in rows if row[3] == "FIRED" and since < row[6] < until]
            started = [run for run in self.runs.values() if run.trigger_no == no and since < run.created_at < until]
            assert not fired, f"{workflow}/{key} fired while it was paused: {fired}"
            assert not started, f"{workflow}/{key} has started runs while it was paused: {started}"

    # --- deliveries and events ---------------------------------------------------------------------------------------

    def _check_deliveries(self) -> None:
        ids = {one.id: one for one in self.events.values() if one.source == "webhook" and one.outcome == "ACCEPTED"}
        answered: set[str] = set()
        for delivery, events in self._load.delivered.items():
            assert len(events) == 1, f"{delivery} was answered with {events}"
            assert len(self._load.runs[delivery]) == 1, f"{delivery} was answered with {self._load.runs[delivery]}"
            (event_id,), (run_ids,) = events, self._load.runs[delivery]
            assert event_id in ids, f"{delivery}: {event_id} is lost"
            assert delivery == f"d-{ids[event_id].body['n']}"
            assert [run.id for run in self.runs_of[ids[event_id].no]] == list(run_ids), delivery
            assert len(run_ids) == 1, f"{delivery} has {len(run_ids)} runs"
            answered.add(event_id)
        assert answered == ids.keys(), "a delivery became two"
        assert {one.outcome for one in self.events.values() if one.source == "webhook"} <= {"ACCEPTED", "DUPLICATE"}

    def _check_published(self) -> None:
        told = {one.id: one for one in self.events.values() if one.type == "test.told"}
        answered: set[str] = set()
        for request, (n, events) in self._load.published.items():
            assert len(events) == 1, f"{request} was answered with {events}"
            event = told[next(iter(events))]
            assert event.body == {"n": n}
            answered |= events
            self._check_runs_of(
                event, {("heard", "exact"), ("heard", "wild")} | ({("heard", "even")} if n % 2 == 0 else set())
            )
        assert answered == told.keys(), "a publication became two"

    def _check_chains(self) -> None:
        begun = self._published_by("hooked", "chain.begun")
        for event in begun:
            self._check_runs_of(event, {("link", "begun"), ("journal", "entry")})
        ended = self._published_by("link", "chain.ended")
        for event in ended:
            self._check_runs_of(event, {("journal", "entry")})
        assert len(begun) == len(ended) == len(self._load.delivered)
        for event in self.events.values():
            if event.source == "engine" and event.type.startswith("run."):
                is_link = event.type == "run.succeeded" and self.runs[event.run_no or 0].workflow == "link"
                self._check_runs_of(event, {("after", "done")} if is_link else set())

    def _published_by(self, workflow: str, kind: str) -> list[_Event]:
        """Answer the events of a type: each run of the workflow has published one, and nobody else has."""
        found = [one for one in self.events.values() if one.type == kind]
        runs = [run.no for run in self.runs.values() if run.workflow == workflow]
        assert Counter(one.run_no for one in found) == Counter(runs), f"{kind}: {len(found)} of {len(runs)} runs"
        return found

    def _check_runs_of(self, event: _Event, wanted: set[tuple[str, str]]) -> None:
        found = [(run.workflow, run.trigger) for run in self.runs_of[event.no]]
        assert Counter(found) == Counter(wanted), f"{event.type} {event.id} has started {found}"
        if wanted:
            assert event.outcome == "ACCEPTED"
        else:
            assert event.outcome in {"FILTERED", "UNMATCHED"}


def _micros(text: str) -> int:
    return round(dt.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()) * SECOND


def _time(micros: int) -> str:
    return dt.datetime.fromtimestamp(micros / SECOND, dt.UTC).strftime("%H:%M:%S.%f")
