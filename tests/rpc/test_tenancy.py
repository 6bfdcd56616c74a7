"""Namespaces, queues and dead letters through the API, and calls counted against the limit of a namespace.

The server is the real one on a real store, in this process; only what retries a run is played.
"""

from dataclasses import fields
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from taskforge.v1 import dead_letter_pb2
from taskforge.v1 import dead_letter_service_pb2 as letters
from taskforge.v1 import dead_letter_service_pb2_grpc as letters_grpc
from taskforge.v1 import namespace_service_pb2 as namespaces
from taskforge.v1 import namespace_service_pb2_grpc as namespaces_grpc
from taskforge.v1 import queue_service_pb2 as queues
from taskforge.v1 import queue_service_pb2_grpc as queues_grpc
from taskforge.v1 import token_service_pb2 as tokens
from taskforge.v1 import token_service_pb2_grpc as tokens_grpc

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal, Role, new_credential
from taskforged.control.audit import Audit
from taskforged.control.dead_letters import DeadLetters
from taskforged.control.doorman import Doorman
from taskforged.control.namespaces import Namespaces, RequestLimits
from taskforged.control.queues import Queues
from taskforged.control.views import RunView
from taskforged.host.limits import Limits
from taskforged.meters import DoorMeters
from taskforged.rpc.server import Controls, RpcServer
from taskforged.store.runs import RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

ROOT = Principal("t", "root", Role.ADMIN, None)
State = dead_letter_pb2.DeadLetter


class Views:
    def __init__(self, store):
        self._runs = RunStore(store)

    async def get(self, _, run_id):
        return RunView(await self._runs.by_id(run_id), None, "default", "w", None)


class World:
    """A server with what it needs for these services, and clients of it."""

    def __init__(self, store):
        self.store = store
        self.clock = Clock()
        self.access = Access(store, self.clock)
        self.limits = Limits()
        self.seconds = 0.0
        self.namespaces = Namespaces(
            store=store,
            clock=self.clock,
            access=self.access,
            limits=self.limits,
            requests=RequestLimits(lambda: self.seconds),
            running_steps=lambda _: 1,
            running_runs=lambda _: 2,
            pending_runs=lambda _: 3,
        )
        self.queues = Queues(
            store=store, clock=self.clock, limits=self.limits, waiting=lambda *_: 4, running=lambda *_: 5
        )
        audit = Audit(store, self.clock, keep_days=1, keep_rows=1000)
        given = {
            "access": self.access,
            "namespaces": self.namespaces,
            "queues": self.queues,
            "dead_letters": DeadLetters(store=store, clock=self.clock, retry=self.retry),
            "views": Views(store),
            "meters": DoorMeters(),
            "audit": audit,
            "doorman": Doorman(audit),
            "storage": SimpleNamespace(pruner=SimpleNamespace(pruned_runs=None)),
        }
        controls = SimpleNamespace(**dict.fromkeys(field.name for field in fields(Controls)) | given)
        self.server = RpcServer(controls, certificates=None, connections_max=100)
        self.channel = None
        self.credential = new_credential()[1]

    async def retry(self, _, run_id):
        return SimpleNamespace(run=SimpleNamespace(run_id=f"{run_id}_again"))

    async def start(self, tmp_path):
        await self.access.start()
        await self.access.adopt(self.credential)
        await self.namespaces.start()
        await self.queues.start()
        self.address = (await self.server.start(listen="127.0.0.1:0", socket=tmp_path / "s"))[-1]
        self.channel = grpc.aio.insecure_channel(self.address)

    async def stop(self):
        await self.channel.close()
        await self.server.stop(0)

    async def call(self, stub, method, request, *, credential=None):
        made = getattr(stub(self.channel), method)
        return await made(request, metadata=(("authorization", f"Bearer {credential or self.credential}"),), timeout=10)

    async def namespace(self, method, **fields):
        request = getattr(namespaces, f"{method}Request")(**fields)
        return await self.call(namespaces_grpc.NamespaceServiceStub, method, request)

    async def queue(self, method, *, credential=None, **fields):
        request = getattr(queues, f"{method}Request")(**fields)
        return await self.call(queues_grpc.QueueServiceStub, method, request, credential=credential)

    async def letter(self, method, *, credential=None, **fields):
        request = getattr(letters, f"{method}Request")(**fields)
        return await self.call(letters_grpc.DeadLetterServiceStub, method, request, credential=credential)

    async def token(self, namespace="", role=Role.ADMIN):
        _, credential = await self.access.create(ROOT, name="t", role=role, namespace=namespace, ttl_s=None)
        return credential


@pytest.fixture
async def world(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    world = World(store)
    await world.start(tmp_path)
    yield world
    await world.stop()
    await store.stop()


async def refused(awaitable, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def detail(error, kind):
    found = kind()
    assert any(one.Unpack(found) for one in rpc_status.from_call(error).details)
    return found


# --- namespaces and queues -------------------------------------------------------------------------------------------


async def test_a_namespace_is_set_shown_listed_and_deleted(world):
    made = await world.namespace("SetNamespace", name="a", labels={"x": "1"}, weight=2, running_steps_max=7)
    one = made.namespace
    assert (one.name, dict(one.labels), one.weight, one.running_steps_max) == ("a", {"x": "1"}, 2, 7)
    assert (one.running_steps, one.running_runs, one.pending_runs) == (1, 2, 3)
    assert one.create_time.seconds > 0
    again = await world.namespace("SetNamespace", name="a", running_runs_max=0, running_steps_max=0)
    assert (again.namespace.weight, again.namespace.running_steps_max) == (2, 0)
    assert (await world.namespace("GetNamespace", name="a")).namespace == again.namespace
    first = await world.namespace("ListNamespaces", page_size=1)
    second = await world.namespace("ListNamespaces", page_token=first.next_page_token)
    assert [one.name for one in (*first.namespaces, *second.namespaces)] == ["a", "default"]
    assert not second.next_page_token
    await world.namespace("DeleteNamespace", name="a")
    await refused(world.namespace("GetNamespace", name="a"), grpc.StatusCode.NOT_FOUND)
    await refused(world.namespace("DeleteNamespace", name="default"), grpc.StatusCode.FAILED_PRECONDITION)
    await refused(world.namespace("SetNamespace", name="a b"), grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_queue_is_set_paused_listed_and_deleted(world):
    made = (await world.queue("SetQueue", name="q", priority=7, running_steps_max=2)).queue
    assert (made.namespace, made.name, made.priority, made.running_steps_max) == ("default", "q", 7, 2)
    assert (made.waiting, made.running, made.paused) == (4, 5, False)
    paused = (await world.queue("SetQueue", name="q", paused=True)).queue
    assert (paused.priority, paused.paused) == (7, True)
    assert (await world.queue("GetQueue", name="q")).queue == paused
    resumed = (await world.queue("SetQueue", name="q", paused=False, priority=0)).queue
    assert (resumed.priority, resumed.paused) == (0, False)
    first = await world.queue("ListQueues", page_size=1)
    second = await world.queue("ListQueues", page_size=1, page_token=first.next_page_token)
    assert [one.name for one in (*first.queues, *second.queues)] == ["default", "q"]
    assert not first.queues[0].HasField("create_time")
    await world.queue("DeleteQueue", name="q")
    await refused(world.queue("GetQueue", name="q"), grpc.StatusCode.NOT_FOUND)
    await refused(world.queue("GetQueue"), grpc.StatusCode.INVALID_ARGUMENT)
    await refused(world.queue("SetQueue", namespace="nobody", name="q"), grpc.StatusCode.NOT_FOUND)


# --- requests --------------------------------------------------------------------------------------------------------


async def test_calls_beyond_the_limit_are_refused_with_the_time_to_wait(world):
    await world.namespace("SetNamespace", name="a", requests_per_second=0.5)
    mine = await world.token("a")
    await world.queue("ListQueues", credential=mine)
    error = await refused(world.queue("ListQueues", credential=mine), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert detail(error, error_details_pb2.ErrorInfo).reason == "RATE_LIMITED"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2000
    world.seconds += 2
    await world.queue("ListQueues", credential=mine)
    await world.namespace("SetNamespace", name="a", requests_per_second=0)
    for _ in range(5):
        await world.queue("ListQueues", credential=mine)


async def test_who_is_not_confined_is_counted_where_a_call_names_the_namespace(world):
    await world.namespace("SetNamespace", name="a", requests_per_second=1)
    await world.namespace("SetNamespace", name="default", requests_per_second=1)
    for namespace in ("a", "a", "", "default"):
        await world.letter("ListDeadLetters", namespace=namespace)
    for namespace in ("a", "", "default"):
        await refused(world.letter("ListDeadLetters", namespace=namespace), grpc.StatusCode.RESOURCE_EXHAUSTED)
    await refused(world.letter("ListDeadLetters", namespace="nobody"), grpc.StatusCode.NOT_FOUND)
    await refused(world.letter("GetDeadLetter", run_id="x"), grpc.StatusCode.NOT_FOUND)


async def test_who_keeps_all_namespaces_can_mend_one_that_is_exhausted(world):
    await world.namespace("SetNamespace", name="a", requests_per_second=0.001)
    await world.letter("ListDeadLetters", namespace="a")
    await refused(world.letter("ListDeadLetters", namespace="a"), grpc.StatusCode.RESOURCE_EXHAUSTED)
    await world.queue("SetQueue", namespace="a", name="q", paused=True)
    create = tokens.CreateTokenRequest(name="t", role=1, namespace="a")
    await world.call(tokens_grpc.TokenServiceStub, "CreateToken", create)
    await world.namespace("SetNamespace", name="a", requests_per_second=0)
    await world.letter("ListDeadLetters", namespace="a")


async def test_a_call_that_may_not_be_made_is_not_counted(world):
    await world.namespace("SetNamespace", name="a", requests_per_second=0.5)
    viewer = await world.token("a", Role.VIEWER)
    for _ in range(5):
        await refused(world.queue("SetQueue", name="q", credential=viewer), grpc.StatusCode.PERMISSION_DENIED)
        await refused(world.queue("ListQueues", credential=viewer[:-1] + "~"), grpc.StatusCode.UNAUTHENTICATED)
    await world.queue("ListQueues", credential=viewer)


# --- dead letters ----------------------------------------------------------------------------------------------------


async def add_letters(world, count):
    def write(c):
        c.execute(QUERIES["insert_workflow"], (1, "wf_1", 1, "w", 1, 1, "", "", ""))
        for no in range(1, count + 1):
            row = (no, f"run_{no}", 1, 1, 4, "DEAD", 1, bytes(32), 0, "manual", None, None, None, 1, 2, 5)
            c.execute(QUERIES["insert_run"], (*row, "default", 5, "", 0, 0, None, None, None, None))
            error = '{"attempts":3,"code":"http_503","message":"no","step":"a"}'
            c.execute(QUERIES["insert_dead_letter"], (no, 1, 1, "a", "http_503", error, 3, no * 1_000_000))

    await world.store.journal.execute(write)


async def test_dead_letters_are_listed_in_pages_and_shown(world):
    await add_letters(world, 3)
    first = await world.letter("ListDeadLetters", page_size=2, workflow="w", step="a", error_code="http_503")
    token = first.next_page_token
    second = await world.letter("ListDeadLetters", workflow="w", step="a", error_code="http_503", page_token=token)
    found = [*first.dead_letters, *second.dead_letters]
    assert [one.run_id for one in found] == ["run_3", "run_2", "run_1"]
    one = found[0]
    assert (one.namespace, one.workflow, one.version, one.attempts) == ("default", "w", 4, 3)
    assert (one.state, one.error.code, one.error.step) == (State.STATE_OPEN, "http_503", "a")
    assert one.create_time.seconds == 3
    assert not one.HasField("settle_time")
    whole = await world.letter("GetDeadLetter", run_id="run_3")
    assert whole.dead_letter == one
    assert whole.run.id == "run_3"
    await refused(world.letter("ListDeadLetters", page_token=token), grpc.StatusCode.INVALID_ARGUMENT)
    await refused(world.letter("ListDeadLetters", states=[9]), grpc.StatusCode.INVALID_ARGUMENT)


async def test_dead_letters_are_discarded_and_found_by_state(world):
    await add_letters(world, 3)
    wanted = letters.DeadLetterFilter()
    wanted.before.FromSeconds(2)
    made = await world.letter("DiscardDeadLetters", filter=wanted, reason="old")
    assert [(one.run_id, one.error) for one in made.results] == [("run_1", "")]

    async def listed(*states):
        return [one.run_id for one in (await world.letter("ListDeadLetters", states=states)).dead_letters]

    assert await listed() == await listed(State.STATE_OPEN) == ["run_3", "run_2"]
    assert await listed(State.STATE_DISCARDED) == ["run_1"]
    assert await listed(State.STATE_UNSPECIFIED) == ["run_3", "run_2", "run_1"]
    gone = (await world.letter("GetDeadLetter", run_id="run_1")).dead_letter
    assert (gone.state, gone.settled_by, gone.reason) == (State.STATE_DISCARDED, "home", "old")
    assert gone.HasField("settle_time")


async def test_dead_letters_are_retried(world):
    await add_letters(world, 3)
    made = await world.letter("RetryDeadLetters", run_ids=["run_2", "run_9"])
    assert [(one.run_id, one.new_run_id) for one in made.results] == [("run_2", "run_2_again"), ("run_9", "")]
    assert made.results[1].error
    made = await world.letter("RetryDeadLetters", filter={}, max_count=2, dry_run=True)
    assert [(one.run_id, one.new_run_id, one.error) for one in made.results] == [("run_1", "", ""), ("run_2", "", "")]
    assert made.more
    await refused(world.letter("RetryDeadLetters"), grpc.StatusCode.INVALID_ARGUMENT)
    both = world.letter("RetryDeadLetters", run_ids=["run_1"], filter={})
    await refused(both, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_confined_token_reaches_no_dead_letter_of_others(world):
    await add_letters(world, 1)
    await world.namespace("SetNamespace", name="a")
    mine = await world.token("a", Role.OPERATOR)
    await refused(world.letter("GetDeadLetter", credential=mine, run_id="run_1"), grpc.StatusCode.NOT_FOUND)
    made = await world.letter("DiscardDeadLetters", credential=mine, run_ids=["run_1"])
    assert "no dead letter" in made.results[0].error
    others = letters.DeadLetterFilter(namespace="default")
    denied = world.letter("DiscardDeadLetters", credential=mine, filter=others)
    await refused(denied, grpc.StatusCode.PERMISSION_DENIED)
    assert not (await world.letter("ListDeadLetters", credential=mine)).dead_letters
