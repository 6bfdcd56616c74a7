"""Namespaces and queues on a real store: what is set holds at once and after a restart, and what is full stays."""

import asyncio
import math

import pytest

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal, Role
from taskforged.control.namespaces import NamespaceChange, Namespaces, RequestLimits
from taskforged.control.queues import QueueChange, Queues
from taskforged.control.secrets import Secrets
from taskforged.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from taskforged.host.limits import Limits, NamespaceLimits, QueueLimits
from taskforged.keyring import KeySource
from taskforged.store.events import EventRow, insert_event
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

ROOT = Principal("t", "root", Role.ADMIN, None)


class World:
    """Everything that knows of namespaces and queues, on one store."""

    def __init__(self, store):
        self.store = store
        self.clock = Clock()
        self.access = Access(store, self.clock)
        self.limits = Limits()
        self.seconds = 0.0
        self.requests = RequestLimits(lambda: self.seconds)
        self.namespaces = Namespaces(
            store=store,
            clock=self.clock,
            access=self.access,
            limits=self.limits,
            requests=self.requests,
            running_steps=lambda no: 10 * no,
            running_runs=lambda no: 20 * no,
            pending_runs=lambda no: 30 * no,
        )
        self.queues = Queues(
            store=store,
            clock=self.clock,
            limits=self.limits,
            waiting=lambda no, name: no + len(name),
            running=lambda no, name: no,
        )
        self.secrets = Secrets(store, self.clock, KeySource(bytes(32), None, "a test"))

    async def start(self):
        await self.access.start()
        await self.secrets.start()
        await self.namespaces.start()
        await self.queues.start()
        return self

    async def set(self, name, **change):
        return (await self.namespaces.set(ROOT, name, NamespaceChange(**change))).record

    def names(self, principal=ROOT):
        return [one.record.name for one in self.namespaces.page(principal, after="", limit=100)]


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def world(store):
    return await World(store).start()


async def insert_run(store, no, *, namespace_no=1, queue="default", state="RUNNING"):
    ended = 5 if state in {"SUCCEEDED", "DEAD"} else None
    row = (no, f"run_{no}", namespace_no, 1, 1, state, 1, bytes(32), 0, "manual", None, None, None, 1, 2, ended)
    row += (queue, 5, "", 0, 0, None, None, None, None)
    await store.journal.execute(lambda c: c.execute(QUERIES["insert_run"], row))


def event(no, namespace_no, outcome):
    texts = ("webhook", "p", outcome, "", "", "", "", "{}", "{}")
    return EventRow(no, f"evt_{no}", namespace_no, *texts, b"", 0, "", "", "[]", 1)


# --- namespaces ------------------------------------------------------------------------------------------------------


async def test_what_is_set_holds_at_once_and_after_a_restart(world):
    made = await world.set(
        "team-a", labels={"owner": "ann"}, weight=2.5, running_steps=3, running_runs=4, pending_runs=5, requests_per_s=6
    )
    expected = NamespaceLimits(2.5, 3, 4, 5)
    assert world.limits.namespace(made.no) == expected
    assert not world.requests.is_empty
    assert world.access.enter(ROOT, "team-a") == made.no
    again = await World(world.store).start()
    assert again.limits.namespace(made.no) == expected
    assert not again.requests.is_empty
    assert again.namespaces.get(ROOT, "team-a").record == made
    assert again.names() == ["default", "team-a"]


async def test_what_is_not_given_stays_and_nothing_new_is_no_write(world):
    first = await world.set("default", weight=3, running_steps=7)
    assert first.no == 1
    second = await world.set("default", running_steps=0)
    assert (second.weight, second.running_steps) == (3, 0)
    writes = world.store.journal.stats.writes
    assert await world.set("default", weight=3) == second
    assert world.store.journal.stats.writes == writes


async def test_labels_are_merged_removed_and_replaced(world):
    await world.set("n", labels={"a": "1", "b": "2"})
    assert (await world.set("n", labels={"b": "", "c": "3"})).labels == {"a": "1", "c": "3"}
    assert (await world.set("n", labels={"d": "4"}, replace_labels=True)).labels == {"d": "4"}
    assert (await world.set("n", replace_labels=True)).labels == {}


@pytest.mark.parametrize(
    ("name", "change", "path"),
    [
        ("", {}, "name"),
        ("Team", {}, "name"),
        ("-a", {}, "name"),
        ("a.b", {}, "name"),
        ("a~1", {}, "name"),
        ("a\n", {}, "name"),
        ("a" * 64, {}, "name"),
        ("n", {"weight": 0.0}, "weight"),
        ("n", {"weight": 1000.5}, "weight"),
        ("n", {"weight": math.nan}, "weight"),
        ("n", {"running_steps": -1}, "running_steps_max"),
        ("n", {"running_runs": 10_000_001}, "running_runs_max"),
        ("n", {"pending_runs": -1}, "pending_runs_max"),
        ("n", {"requests_per_s": -1.0}, "requests_per_second"),
        ("n", {"requests_per_s": 1e-300}, "requests_per_second"),
        ("n", {"requests_per_s": math.inf}, "requests_per_second"),
        ("n", {"requests_per_s": math.nan}, "requests_per_second"),
        ("n", {"labels": {"": "x"}}, "labels['']"),
        ("n", {"labels": {"a": "x" * 257}}, "labels['a']"),
        ("n", {"labels": {"a": "x\n"}}, "labels['a']"),
        ("n", {"labels": {f"l{i}": "x" for i in range(33)}}, "labels"),
    ],
)
async def test_what_is_out_of_bounds_is_refused_and_changes_nothing(world, name, change, path):
    with pytest.raises(InvalidArgumentError) as caught:
        await world.set(name, **change)
    assert [violation.path for violation in caught.value.violations] == [path]
    assert world.names() == ["default"]


@pytest.mark.parametrize("change", [{"weight": 0.01}, {"weight": 1000}, {"running_runs": 10_000_000}])
async def test_what_is_just_within_bounds_is_taken(world, change):
    record = await world.set("n" * 63, **change)
    assert {name: getattr(record, name) for name in change} == change


async def test_two_who_create_the_same_at_once_make_one(world):
    made = await asyncio.gather(*(world.set("n", weight=i + 1) for i in range(8)))
    assert len({record.no for record in made}) == 1
    assert world.limits.namespace(made[0].no).weight == world.namespaces.get(ROOT, "n").record.weight == 8


async def test_memory_stays_when_nothing_could_be_written(world, monkeypatch):
    async def broken(_):
        raise UnavailableError("no disk")

    before = await world.set("n", weight=2)
    with monkeypatch.context() as patch:
        patch.setattr(world.store.journal, "execute", broken)
        for attempt in (world.set("n", weight=3), world.set("m"), world.namespaces.delete(ROOT, "n")):
            with pytest.raises(UnavailableError):
                await attempt
    assert world.namespaces.get(ROOT, "n").record == before
    assert world.limits.namespace(before.no).weight == 2
    assert world.names() == ["default", "n"]
    assert world.access.namespace_no("m") is None


async def test_a_view_tells_what_is_used(world):
    view = world.namespaces.get(ROOT, "default")
    assert (view.running_steps, view.running_runs, view.pending_runs) == (10, 20, 30)


async def test_pages_go_by_name(world):
    for name in ("c", "a", "b"):
        await world.set(name)
    assert [v.record.name for v in world.namespaces.page(ROOT, after="a", limit=2)] == ["b", "c"]


async def test_a_confined_token_sees_its_own_and_changes_none(world):
    a, _ = await world.set("a"), await world.set("b")
    mine = Principal("t", "t", Role.ADMIN, a.no)
    assert world.names(mine) == ["a"]
    assert world.namespaces.get(mine, "a").record == a
    for name in ("b", "default", "nobody"):
        with pytest.raises(PermissionDeniedError):
            world.namespaces.get(mine, name)
    with pytest.raises(PermissionDeniedError):
        await world.namespaces.set(mine, "a", NamespaceChange(running_steps=0))
    with pytest.raises(PermissionDeniedError):
        await world.namespaces.delete(mine, "a")


async def test_default_and_what_is_not_there_cannot_be_deleted(world):
    with pytest.raises(FailedPreconditionError):
        await world.namespaces.delete(ROOT, "default")
    for name in ("nobody", "default~1"):
        with pytest.raises(NotFoundError):
            await world.namespaces.delete(ROOT, name)
        with pytest.raises(NotFoundError):
            world.namespaces.get(ROOT, name)


async def put_workflow(world, no):
    row = (world.store.next_no("workflows"), "wf_1", no, "w", 1, 1, "", "", "")
    await world.store.journal.execute(lambda c: c.execute(QUERIES["insert_workflow"], row))


async def put_run(world, no):
    await insert_run(world.store, 1, namespace_no=no, state="SUCCEEDED")


async def put_event(world, no):
    await world.store.journal.execute(lambda c: insert_event(c, event(1, no, "FILTERED"), None))


async def put_token(world, no):
    await world.access.create(ROOT, name="ci", role=Role.VIEWER, namespace=world.access.namespace_name(no), ttl_s=None)


async def put_secret(world, no):
    await world.secrets.set(no, "KEY", "v")


async def put_queue(world, no):
    await world.queues.set(no, "default", QueueChange(paused=True))


CONTENT = {
    "workflow": put_workflow,
    "run": put_run,
    "event": put_event,
    "token": put_token,
    "secret": put_secret,
    "queue": put_queue,
}


@pytest.mark.parametrize("kind", CONTENT)
async def test_a_namespace_that_holds_something_stays_and_says_what(world, kind):
    record = await world.set("n", weight=2)
    await CONTENT[kind](world, record.no)
    with pytest.raises(FailedPreconditionError, match=f"namespace 'n' still has 1 {kind}$"):
        await world.namespaces.delete(ROOT, "n")
    assert world.limits.namespace(record.no).weight == 2
    assert (await World(world.store).start()).names() == ["default", "n"]


async def test_everything_that_is_in_the_way_is_told_at_once(world):
    record = await world.set("n")
    for put in CONTENT.values():
        await put(world, record.no)
    await world.secrets.set(record.no, "OTHER", "v")
    with pytest.raises(FailedPreconditionError) as caught:
        await world.namespaces.delete(ROOT, "n")
    assert caught.value.metadata["content"] == "1 workflow, 1 run, 1 event, 1 token, 2 secrets and 1 queue"


async def test_an_empty_namespace_goes_with_its_limits_and_its_name_is_free(world):
    old = await world.set("n", weight=2, requests_per_s=1)
    await world.namespaces.delete(ROOT, "n")
    assert world.limits.namespace(old.no) == NamespaceLimits()
    assert world.requests.is_empty
    with pytest.raises(NotFoundError):
        world.access.enter(ROOT, "n")
    with pytest.raises(NotFoundError):
        await world.namespaces.delete(ROOT, "n")
    again = await World(world.store).start()
    assert again.names() == ["default"]
    assert again.access.namespace_no("n") is None
    new = await again.set("n")
    assert new.no != old.no
    assert new.weight == 1


async def test_what_is_over_does_not_keep_a_namespace_and_can_still_be_shown(world):
    """Revoked and expired tokens, deleted workflows and deliveries without effect outlive their namespace."""
    record = await world.set("n")
    revoked, _ = await world.access.create(ROOT, name="ci", role=Role.VIEWER, namespace="n", ttl_s=None)
    await world.access.revoke(ROOT, revoked.id)
    await put_workflow(world, record.no)
    await world.store.journal.execute(lambda c: c.execute(QUERIES["delete_workflow"], (5, 1)))
    await world.store.journal.execute(lambda c: insert_event(c, event(1, record.no, "REJECTED"), None))
    await world.namespaces.delete(ROOT, "n")
    gone = f"n~{record.no}"
    for one in (world, await World(world.store).start()):
        assert [
            one.access.namespace_name(token.namespace_no) for token in one.access.page(ROOT, before=0, limit=9)
        ] == [gone]
        assert one.access.namespace_no(gone) is None
        with pytest.raises(NotFoundError):
            one.access.enter(ROOT, gone)


# --- requests --------------------------------------------------------------------------------------------------------


async def test_a_bucket_holds_two_seconds_and_refills(world):
    no = (await world.set("n", requests_per_s=2)).no
    for _ in range(4):
        world.requests.take(no)
    with pytest.raises(ResourceExhaustedError) as caught:
        world.requests.take(no)
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after_s == pytest.approx(0.5)
    world.seconds += 0.5
    world.requests.take(no)
    with pytest.raises(ResourceExhaustedError):
        world.requests.take(no)
    world.seconds += 1000
    for _ in range(4):
        world.requests.take(no)
    with pytest.raises(ResourceExhaustedError):
        world.requests.take(no)


async def test_a_slow_bucket_holds_one_and_says_when_the_next_comes(world):
    no = (await world.set("n", requests_per_s=0.1)).no
    world.requests.take(no)
    with pytest.raises(ResourceExhaustedError) as caught:
        world.requests.take(no)
    assert caught.value.retry_after_s == pytest.approx(10)


async def test_others_are_not_counted_and_an_unchanged_limit_gives_no_new_tokens(world):
    no = (await world.set("n", requests_per_s=0.5)).no
    world.requests.take(no)
    for _ in range(1000):
        world.requests.take(1)
    await world.set("n", weight=2)
    with pytest.raises(ResourceExhaustedError):
        world.requests.take(no)
    await world.set("n", requests_per_s=0)
    assert world.requests.is_empty
    world.requests.take(no)


# --- queues ----------------------------------------------------------------------------------------------------------


async def test_a_queue_holds_at_once_and_after_a_restart(world):
    assert not world.queues.exists(1, "deploy")
    view = await world.queues.set(1, "deploy", QueueChange(priority=7, running_steps=2, paused=True))
    assert (view.waiting, view.running) == (7, 1)
    assert view.record.created_at > 0
    again = await World(world.store).start()
    for one in (world, again):
        assert one.queues.exists(1, "deploy")
        assert not one.queues.exists(2, "deploy")
        assert one.limits.queue(1, "deploy") == QueueLimits(2, 7, paused=True)
        assert one.queues.get(1, "deploy").record == view.record


async def test_a_queue_keeps_what_is_not_given_and_is_paused_and_resumed(world):
    first = (await world.queues.set(1, "q", QueueChange(priority=7, running_steps=2))).record
    paused = (await world.queues.set(1, "q", QueueChange(paused=True))).record
    assert paused == first._replace(paused=True, updated_at=paused.updated_at)
    assert world.limits.queue(1, "q").paused
    writes = world.store.journal.stats.writes
    assert (await world.queues.set(1, "q", QueueChange(paused=True))).record == paused
    assert world.store.journal.stats.writes == writes
    await world.queues.set(1, "q", QueueChange(paused=False))
    assert world.limits.queue(1, "q") == QueueLimits(2, 7)


async def test_default_is_there_without_a_row_can_be_set_and_not_deleted(world):
    assert world.queues.exists(9, "default")
    assert world.queues.get(1, "default").record.created_at == 0
    await world.queues.set(1, "default", QueueChange(running_steps=3))
    assert world.queues.get(1, "default").record.created_at > 0
    with pytest.raises(FailedPreconditionError):
        await world.queues.delete(1, "default")
    assert world.limits.queue(1, "default").running_steps == 3


async def test_queues_are_listed_by_name_of_one_namespace(world):
    for no, name in ((1, "z"), (1, "a"), (2, "other")):
        if no == 2:
            await world.set("n")
        await world.queues.set(no, name, QueueChange())
    assert [v.record.name for v in world.queues.page(1, after="", limit=9)] == ["a", "default", "z"]
    assert [v.record.name for v in world.queues.page(1, after="a", limit=1)] == ["default"]


@pytest.mark.parametrize(
    ("name", "change", "path"),
    [
        ("", {}, "name"),
        ("Q", {}, "name"),
        ("q" * 64, {}, "name"),
        ("q", {"priority": 10}, "priority"),
        ("q", {"priority": -1}, "priority"),
        ("q", {"running_steps": -1}, "running_steps_max"),
        ("q", {"running_steps": 10_000_001}, "running_steps_max"),
    ],
)
async def test_a_queue_out_of_bounds_is_refused(world, name, change, path):
    with pytest.raises(InvalidArgumentError) as caught:
        await world.queues.set(1, name, QueueChange(**change))
    assert [violation.path for violation in caught.value.violations] == [path]


@pytest.mark.parametrize(("epoch", "text"), [(0, "1 waiting step"), (3, "1 executed step")])
async def test_a_queue_with_steps_stays(world, epoch, text):
    await world.queues.set(1, "q", QueueChange(running_steps=1))
    await world.store.journal.execute(lambda c: c.execute(QUERIES["insert_command"], (1, 1, epoch, 1, "q", 5)))
    with pytest.raises(FailedPreconditionError, match=f"queue 'q' still has {text};"):
        await world.queues.delete(1, "q")
    assert world.limits.queue(1, "q").running_steps == 1
    await world.store.journal.execute(lambda c: c.execute(QUERIES["delete_command"], (1, 1)))
    await world.queues.delete(1, "q")
    assert world.limits.queue(1, "q") == QueueLimits()
    assert not (await World(world.store).start()).queues.exists(1, "q")


async def test_a_queue_with_open_runs_stays_and_runs_that_ended_do_not_keep_it(world):
    await world.queues.set(1, "q", QueueChange())
    await insert_run(world.store, 1, queue="q", state="SUCCEEDED")
    await insert_run(world.store, 2, queue="other")
    await insert_run(world.store, 3, queue="q")
    with pytest.raises(FailedPreconditionError, match="1 open run;"):
        await world.queues.delete(1, "q")
    end = "UPDATE runs SET state = 'SUCCEEDED', ended_at = 9 WHERE no = 3"
    await world.store.journal.execute(lambda c: c.execute(end))
    await world.queues.delete(1, "q")
    with pytest.raises(NotFoundError):
        await world.queues.delete(1, "q")
    with pytest.raises(NotFoundError):
        world.queues.get(1, "q")
