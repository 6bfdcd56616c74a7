"""The log of a run: what history says in words, merged with what executors said; cursors that resume exactly."""

import asyncio
import contextlib
import random

import pytest

from taskforged.clock import Clock, new_id
from taskforged.control import logs as logs_module
from taskforged.control import views as views_module
from taskforged.control.logs import RunLogs
from taskforged.control.narrator import TEXT_MAX, Narrator, told_request
from taskforged.engine.events import CancelRun
from taskforged.engine.model import Backoff, Effect, Jitter, RetryPolicy
from taskforged.engine.states import TERMINAL_RUNS
from taskforged.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from taskforged.host.feed import Feed
from taskforged.host.limits import Limits
from taskforged.host.logbook import LogBook
from taskforged.host.runner import Runner
from taskforged.jsonvalue import canonical
from taskforged.steps.base import Succeeded
from taskforged.store.changes import NewRun
from taskforged.store.purge import LOGS_ARE_GONE, purge_logs
from taskforged.store.runs import RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    approval,
    child,
    create_run,
    fail,
    fan_out,
    group,
    publish,
    sleep,
    wait,
    with_,
    workflow,
)

SECOND = 1_000_000
HTTP = {"method": "POST", "url": "https://x.example/y", "query": {"q": "1", "key": {"$secret": "KEY"}}}
RETRY = RetryPolicy(max_attempts=3, strategy=Backoff.FIXED, delay_s=2.0, jitter=Jitter.NONE)


class Place:
    """A store with one run whose history and lines a test writes by itself."""

    def __init__(self, store):
        self.store, self.feed = store, Feed()
        self.book = LogBook(store, Clock(), self.feed)
        self.logs = RunLogs(store, self.feed, self.book)
        self.sent = 0
        self.line = 0

    async def create(self):
        values = dict(no=1, id="run_1", namespace_no=1, workflow_no=1, version=1, state="PENDING", sequence=1)
        values |= dict(head_hash=bytes(32), cancel_requested=0, trigger="manual", created_at=1)
        sql = f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
        await self.store.journal.execute(lambda c: c.execute(sql, tuple(values.values())).rowcount)

    async def history(self, events, state="RUNNING"):
        """Append events, with the state of the run after them."""
        rows = [(1, e.sequence, e.at, e.kind.value, e.step, e.attempt, canonical(e.body), bytes(32)) for e in events]
        ended = rows[-1][2] if state in TERMINAL_RUNS else None

        def write(connection):
            connection.executemany(QUERIES["insert_history"], rows)
            sql = "UPDATE runs SET state = ?, ended_at = ?, sequence = ? WHERE no = 1"
            connection.execute(sql, (state, ended, rows[-1][1]))

        await self.store.journal.execute(write)
        self.feed.publish(1)

    async def lines(self, *lines, run_no=1):
        """Append lines: (at, step, text)."""
        rows = [
            (self.store.next_no("step_logs"), run_no, step, 1, at, "stdout", text)
            for at, step, text in lines
        ]  # fmt: skip
        await self.store.journal.execute(lambda c: c.executemany(QUERIES["insert_log"], rows).rowcount)
        self.feed.publish(run_no)

    async def row(self):
        return await RunStore(self.store).by_no(1)

    async def all(self, step="", limit=1000, after=""):
        """Answer all entries, page by page."""
        found = []
        while True:
            page = await self.logs.page(await self.row(), step, after, limit)
            assert len(page.entries) <= limit
            found.extend(page.entries)
            if not page.has_more:
                return found
            assert len(page.entries) == limit
            after = found[-1].cursor

    async def texts(self, step=""):
        return [entry.text for entry in await self.all(step)]


@pytest.fixture
async def place(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    place = Place(store)
    await place.create()
    yield place
    await place.book.stop()
    await store.stop()


def told(run):
    """Answer what a narrator says of a driver's history."""
    narrator = Narrator()
    return [f"{event.step}: {text}" for event in run.history if (text := narrator.tell(event))]


# --- words -----------------------------------------------------------------------------------------------------------


def test_an_http_step_that_is_retried():
    run = Driver.started(workflow(activity("a", HTTP, retry=RETRY)))
    run.begin("a")
    run.wait(0.25)
    run.fail("a")
    run.fire("a")
    run.begin("a")
    run.wait(1.5)
    run.complete("a", {"status": 200, "headers": {"content-length": "1234"}, "body": "x"})
    assert told(run) == [
        "a: attempt 1 started: POST https://x.example/y?q=1&key=***",
        "a: attempt 1 failed after 0.250 s: http_503: a has failed",
        "a: attempt 2 follows in 2 s, at 1970-01-01T00:00:03.250000Z",
        "a: attempt 2 started: POST https://x.example/y?q=1&key=***",
        "a: attempt 2 succeeded: status 200, 1,234 bytes, in 1.500 s",
    ]


def test_a_step_that_gives_up_fails_the_run():
    run = Driver.started(workflow(activity("a", {"command": ["ls", "-l"]}, retry=RetryPolicy(max_attempts=1))))
    run.fail("a")
    assert told(run) == [
        "a: attempt 1 started: ls -l",
        "a: attempt 1 failed after 0.000 s: http_503: a has failed",
        "a: given up after 1 attempt",
        ": the run fails: http_503: a has failed (step a)",
    ]


def test_lost_attempts_and_decisions():
    run = Driver.started(workflow(activity("a"), activity("b", effect=Effect.ONCE)))
    run.lose("a")
    run.complete("a", {"exit_code": 0})
    run.lose("b")
    run.resolve("b", "failed", comment="it is not there")
    assert told(run) == [
        "a: attempt 1 started",
        "a: attempt 1 was lost: the daemon stopped",
        "a: attempt 2 follows",
        "a: attempt 2 started",
        "a: attempt 2 succeeded: exit code 0, in 0.000 s",
        "b: attempt 1 started",
        "b: attempt 1 was lost: the daemon stopped",
        "b: needs a decision, for its effect may or may not have happened: the daemon stopped",
        "b: resolved as failed by tester: it is not there",
        "b: failed: resolved_failed: it is not there",
        ": the run fails: resolved_failed: it is not there (step b)",
    ]


def test_waits_and_people():
    run = Driver.started(workflow(sleep("s", 5), wait("w"), approval("ok", "Go?", timeout_s=60), publish("e")))
    run.fire("s")
    run.pause()
    run.resume()
    run.signal("go")
    run.approve("ok", comment="fine")
    event_id = run.step("e").output["event_id"]
    assert told(run) == [
        "s: sleeps until 1970-01-01T00:00:06.000000Z",
        "w: waits for signal go",
        ": the run was paused by tester: lunch",
        ": the run was resumed by tester",
        ": signal go was sent by tester",
        "w: got signal go from tester",
        "ok: waits for approval until 1970-01-01T00:01:06.000000Z: Go?",
        "ok: approved by tester: fine",
        f"e: published event order.paid, {event_id}",
    ]


def test_rejections_and_sub_workflows():
    run = Driver.started(workflow(with_(child("c", version=2), continue_on_error=True), approval("ok")))
    run.end_child("c", "FAILED", error={"code": "x", "message": "broken"})
    run.reject("ok", comment="no")
    found = told(run)
    assert found[0] == f"c: waits for sub-workflow child v2, run {run.step('c').child}"
    assert found[1] == "c: the sub-workflow is FAILED: x: broken"
    assert found[2].startswith("c: failed: child_failed: the sub-workflow")
    assert found[4:6] == ["ok: rejected by tester: no", "ok: failed: rejected: rejected by tester: no"]


def test_a_cancelled_run():
    run = Driver.started(workflow(activity("a"), on_cancel=[activity("tidy")]))
    run.begin("a")
    run.cancel()
    run.stop("a")
    run.complete("tidy")
    assert told(run)[1:4] == [
        ": the run is to be cancelled by tester: enough",
        "a: attempt 1 was stopped after 0.000 s",
        ": everything has stopped; the steps of on_cancel follow",
    ]


def test_a_line_is_one_line_and_not_endless():
    run = Driver.started(workflow(fail("f", "one\ntwo\t" + "x" * 10_000)))
    for line in told(run):
        assert "\n" not in line
        assert len(line) <= TEXT_MAX + 3
    assert told(run)[0].startswith("f: failed: failed: one two x")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, ""),
        ([], ""),
        ({"x": 1}, ""),
        ({"url": "https://a/b"}, "GET https://a/b"),
        ({"url": "https://u:secret@a/b@c", "method": "PUT"}, "PUT https://***@a/b@c"),
        ({"url": {"$concat": ["https://a/", {"$secret": "X"}, "/b"]}}, "GET https://a/***/b"),
        ({"url": "https://a/?x=1", "query": {"y": {"$secret": "X"}, "z": [1]}}, "GET https://a/?x=1&y=***&z=…"),
        ({"command": "make"}, "make"),
        ({"command": ["make", {"$secret": "X"}, 3]}, "make *** 3"),
    ],
)
def test_requests_without_secrets(config, text):
    assert told_request(config) == text


# --- order -----------------------------------------------------------------------------------------------------------


def story():
    """Answer a driver with a history of some length in which time passes."""
    run = Driver.started(workflow(*(activity(f"s{number}", retry=RETRY) for number in range(12))))
    for number in range(12):
        run.wait(1)
        run.begin(f"s{number}")
        run.wait(1)
        if number % 3 == 0:
            run.fail(f"s{number}")
            run.fire(f"s{number}")
        run.complete(f"s{number}")
    return run


async def test_history_first_then_lines_by_time(place):
    run = Driver.started(workflow(activity("a")))
    run.begin("a")
    run.wait(2)
    run.complete("a")
    start = run.history[-3].at
    await place.history(run.history, "SUCCEEDED")
    await place.lines((start, "a", "same time"), (start + SECOND, "a", "between"), (start + 5 * SECOND, "a", "after"))
    assert await place.texts() == [
        "attempt 1 started",
        "same time",
        "between",
        "attempt 1 succeeded: in 2.000 s",
        "after",
    ]
    entries = await place.all()
    assert [(entry.step, entry.attempt) for entry in entries] == [("a", 1)] * 5
    assert [entry.stream for entry in entries] == ["system", "stdout", "stdout", "system", "stdout"]
    assert len({entry.cursor for entry in entries}) == 5


async def test_a_line_that_comes_late_is_sent_late(place):
    run = story()
    await place.history(run.history[:10])
    first = await place.all()
    await place.lines((5, "s0", "late"))
    rest = await place.all(after=first[-1].cursor)
    assert [entry.text for entry in rest] == ["late"]


@pytest.mark.parametrize("slices", [[[1, 2], [3]], [[1, 2, 3]], [[1], [2], [3]]])
async def test_what_retention_took_is_said_once_and_never_a_silent_gap(place, slices):
    run = story()  # which ends
    await place.history(run.history, "SUCCEEDED")
    far = run.history[-1].at
    await place.lines(*((far + number, f"s{number % 2}", f"line {number}") for number in range(1, 6)))
    whole = await place.all()
    for numbers in slices:
        await place.store.journal.execute(lambda c, numbers=numbers: purge_logs(c, numbers))
    told = [entry.text for entry in await place.all()]
    assert told[-3:] == [LOGS_ARE_GONE, "line 4", "line 5"]
    assert told.count(LOGS_ARE_GONE) == 1
    seen = next(entry for entry in whole if entry.text == "line 1")
    assert [entry.text for entry in await place.all(after=seen.cursor)] == [LOGS_ARE_GONE, "line 4", "line 5"]
    assert (await place.all(step="s0"))[-2].text == LOGS_ARE_GONE
    assert [entry.text for entry in await place.all(after=whole[-2].cursor)] == ["line 5"]
    assert not await place.store.rows("old_logs", 0, 3, far + 100), "it leaves with its run"


async def test_other_runs_lines_are_not_shown(place):
    await place.history(story().history[:5])
    await place.lines((5, "a", "not mine"), run_no=2)
    assert "not mine" not in await place.texts()


async def test_what_is_in_memory_is_shown_as_well(place):
    await place.history(story().history[:2])
    place.book.logger(1, "s0", 1)("stdout", "just said")
    assert await place.texts() == ["just said"]


async def test_one_step_or_a_fan_out_with_all_that_is_inside(place):
    body = group("ignored", activity("send"), activity("check"))
    run = Driver.started(workflow(fan_out("notify", [1, 2], body), activity("notify_more")))
    for index in range(2):
        for step in ("send", "check"):
            run.complete(f"notify[{index}].{step}")
    run.complete("notify_more")
    await place.history(run.history, "SUCCEEDED")
    await place.lines((1, "notify[1].send", "x"), (2, "notify_more", "y"), (3, "notify[10].send", "z"))
    steps = {
        wanted: {entry.step for entry in await place.all(wanted)}
        for wanted in ("notify", "notify[1]", "notify[1].send", "notify_more", "nothing")
    }
    every = {"notify[0].send", "notify[0].check", "notify[1].send", "notify[1].check"}
    assert steps == {
        "notify": every | {"notify[10].send"},
        "notify[1]": {"notify[1].send", "notify[1].check"},
        "notify[1].send": {"notify[1].send"},
        "notify_more": {"notify_more"},
        "nothing": set(),
    }


# --- cursors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(15))
async def test_pages_of_any_size_are_the_whole_log(place, monkeypatch, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(logs_module, "_READ", chance.randint(1, 20))
    run = story()
    last = run.history[-1].at
    await place.history(run.history, "SUCCEEDED")
    lines = sorted(chance.randint(0, last) for _ in range(60))
    await place.lines(*((at, f"s{chance.randint(0, 11)}", f"line {number}") for number, at in enumerate(lines)))
    for step in ("", "s3"):
        whole = await place.all(step)
        place.logs._remembered.clear()
        for limit in (1, 2, 7, chance.randint(3, 50)):
            assert await place.all(step, limit) == whole
        for entry in chance.sample(whole, min(10, len(whole))):
            assert await place.all(step, after=entry.cursor) == whole[whole.index(entry) + 1 :]
        assert [entry.at for entry in whole] == sorted(entry.at for entry in whole)


@pytest.mark.parametrize("seed", range(25))
async def test_nothing_is_missed_and_nothing_repeated_while_the_log_grows(place, monkeypatch, seed):
    """A reader pages on with random sizes and forgets all but its cursor; lines are late at random."""
    chance = random.Random(seed)
    monkeypatch.setattr(logs_module, "_READ", chance.randint(1, 10))
    history, number, found, cursor = story().history, 0, [], ""
    while history:
        if chance.random() < 0.5:
            count = chance.randint(1, 6)
            part, history = history[:count], history[count:]
            await place.history(part, "RUNNING" if history else "SUCCEEDED")
        if chance.random() < 0.5:
            ats = [chance.randint(0, 40 * SECOND) for _ in range(chance.randint(1, 5))]
            await place.lines(*((at, "s1", f"line {number + index}") for index, at in enumerate(ats)))
            number += len(ats)
        if chance.random() < 0.3:
            place.logs = RunLogs(place.store, place.feed, place.book)  # the daemon was started again
        page = await place.logs.page(await place.row(), "", cursor, chance.randint(1, 8))
        found.extend(page.entries)
        cursor = found[-1].cursor if found else ""
    found.extend(await place.all(after=cursor))
    lines = [entry.text for entry in found if entry.stream == "stdout"]
    assert lines == [f"line {index}" for index in range(number)]
    narrator = Narrator()
    words = [text for event in story().history if (text := narrator.tell(event))]
    assert [entry.text for entry in found if entry.stream == "system"] == words
    assert len({entry.cursor for entry in found}) == len(found)


@pytest.mark.parametrize("cursor", ["h99.l0", "h1", "l1", "h1.l1 ", "h-1.l0", "h1.l9999999999999999999", "\0", "h١.l1"])
async def test_what_is_no_cursor_of_this_run_is_refused(place, cursor):
    await place.history(story().history[:3])
    with pytest.raises(InvalidArgumentError):
        await place.logs.page(await place.row(), "", cursor, 10)
    with pytest.raises(InvalidArgumentError):
        async for _ in place.logs.watch(await place.row(), "", cursor):
            pass


# --- watching --------------------------------------------------------------------------------------------------------


async def collect(place, found, *, step="", after="", states=None):
    async for portion in place.logs.watch(await place.row(), step, after):
        assert len(portion.entries) <= 100
        found.extend(portion.entries)
        if states is not None:
            states.append(portion.state)


@pytest.mark.parametrize("seed", range(10))
async def test_a_follower_gets_all_of_it_over_broken_streams(place, seed):
    chance = random.Random(seed)
    history = story().history
    await place.history(history[:1])
    found, task = [], None

    def follow():
        return asyncio.create_task(collect(place, found, after=found[-1].cursor if found else ""))

    task, at, number = follow(), 1, 0
    while at < len(history):
        count = chance.randint(1, 5)
        part = history[at : at + count]
        at += count
        await place.history(part, "RUNNING" if at < len(history) else "SUCCEEDED")
        if at < len(history):
            await place.lines((chance.randint(0, 40 * SECOND), "s1", f"line {number}"))
            number += 1
        if chance.random() < 0.3:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            task = follow()
    await asyncio.wait_for(task, 10.0)
    assert sorted(found, key=lambda entry: entry.cursor) == sorted(
        {entry.cursor: entry for entry in found}.values(), key=lambda entry: entry.cursor
    )
    assert [entry.text for entry in found if entry.stream == "stdout"] == [f"line {index}" for index in range(number)]
    assert [entry.text for entry in found if entry.stream == "system"] == [
        entry.text for entry in await place.all() if entry.stream == "system"
    ]
    assert place.feed.count() == 0


async def test_a_follower_waits_for_what_was_said_last(place, monkeypatch):
    """An attempt that is cancelled reports at once; its last lines are still in memory when the run has ended."""
    await place.history(story().history[:2])
    found = []
    task = asyncio.create_task(collect(place, found))
    await asyncio.sleep(0.01)
    place.book.logger(1, "s0", 1)("stdout", "my last words")
    await place.history(story().history[2:3], "CANCELLED")
    await asyncio.wait_for(task, 5.0)
    assert found[-1].text == "my last words"


async def test_an_ended_run_with_nothing_to_say(place):
    run = Driver.started(workflow())
    await place.history(run.history, "SUCCEEDED")
    states = []
    await asyncio.wait_for(collect(place, [], states=states), 5.0)
    assert states == []


async def test_large_logs_come_in_portions(place):
    run = Driver.started(workflow())
    await place.lines(*((number, "a", str(number)) for number in range(1234)))
    await place.history(run.history, "SUCCEEDED")
    found, states = [], []
    await asyncio.wait_for(collect(place, found, states=states), 5.0)
    assert [entry.text for entry in found] == [str(number) for number in range(1234)]
    assert set(states) == {"SUCCEEDED"}


async def test_signs_of_life(place, monkeypatch):
    monkeypatch.setattr(logs_module, "_ALIVE_S", 0.01)
    await place.history(story().history[:2])
    stream = place.logs.watch(await place.row(), "", "")
    for _ in range(3):
        portion = await asyncio.wait_for(anext(stream), 5.0)
        assert (portion.entries, portion.state) == ((), "RUNNING")
    await stream.aclose()
    assert place.feed.count() == 0


async def test_a_stopping_daemon_sends_followers_away(place):
    await place.history(story().history[:4])
    task = asyncio.create_task(collect(place, []))
    await asyncio.sleep(0.01)
    place.feed.close()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(task, 5.0)


async def test_too_many_followers(place, monkeypatch):
    await place.history(story().history[:4])
    monkeypatch.setattr(logs_module, "WATCHES_MAX", 0)
    assert views_module.WATCHES_MAX
    with pytest.raises(ResourceExhaustedError):
        await collect(place, [])


# --- with a host -----------------------------------------------------------------------------------------------------


class Talker:
    """An executor that says something before it answers, or until it is cancelled."""

    name = "fake"

    async def execute(self, task):
        for number in range(3):
            task.log("stdout", f"{task.step_key} {number}")
        if task.config == "hang":
            await asyncio.Event().wait()
        return Succeeded({"exit_code": 0})


class Models:
    def __init__(self, model):
        self._model = model

    async def model(self, workflow_no, version):
        return self._model


async def host(store, feed, book, model):
    limits = Limits()
    parts = dict(store=store, clock=Clock(), feed=feed, models=Models(model), executors={"fake": Talker()})
    runner = Runner(**parts, secret=None, logs=book, limits=limits, pool_size=4)
    await runner.start(1)
    prepared = runner.prepare(model, NewRun(1, 1), create_run(new_id("run", Clock().now())))
    await runner.create([prepared])
    return runner, prepared


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_follower_of_a_run_at_work_gets_every_line_before_the_end(tmp_path, hangs):
    store, feed = Store(tmp_path / "t.db"), Feed()
    await store.start()
    book = LogBook(store, Clock(), feed)
    logs = RunLogs(store, feed, book)
    model = workflow(activity("a"), activity("b", "hang" if hangs else None))
    runner, prepared = await host(store, feed, book, model)
    found = []

    async def follow():
        row = await RunStore(store).by_no(prepared.no)
        async for portion in logs.watch(row, "", ""):
            found.extend(portion.entries)
            if hangs and any(entry.text == "b 2" for entry in portion.entries):
                await runner.deliver(prepared.no, CancelRun("enough"))

    await asyncio.wait_for(follow(), 10.0)
    texts = [entry.text for entry in found]
    said = [text for text in texts if text[:2] in ("a ", "b ")]
    assert said == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert texts.index("a 2") < next(index for index, text in enumerate(texts) if "succeeded" in text)
    assert any("was stopped" in text for text in texts) == hangs
    assert (await logs.page(await RunStore(store).by_no(prepared.no), "", "", 1000)).entries[-1].cursor
    await runner.drain(0.1)
    await book.stop()
    await store.stop()
