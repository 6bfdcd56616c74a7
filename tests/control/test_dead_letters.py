"""Dead letters on a real store: which are shown, and what becomes of those that somebody settles."""

import asyncio
from types import SimpleNamespace

import pytest

from taskforged.clock import Clock
from taskforged.control.access import Principal, Role
from taskforged.control.dead_letters import SETTLE_MAX, STATES, DeadLetters, LetterFilter, Selection
from taskforged.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from taskforged.jsonvalue import to_text
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

ROOT = Principal("t", "root", Role.ADMIN, None)
ANN = Principal("u", "ann", Role.OPERATOR, 1)
ALL = LetterFilter(1, states=STATES)


class World:
    """Dead letters, and retries that are what control makes of them: a new run and the row settled, at once."""

    def __init__(self, store):
        self.store = store
        self.clock = Clock(lambda: 7_000_000)
        self.next_no = 100
        self.asked = []
        self.at_once = self.most_at_once = 0
        self.refused = {}
        self.desk = DeadLetters(store=store, clock=self.clock, retry=self.retry)

    async def retry(self, principal, run_id):
        self.asked.append(run_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        try:
            if run_id in self.refused:
                raise self.refused[run_id]
            return await self._retry(principal, run_id)
        finally:
            self.at_once -= 1

    async def _retry(self, principal, run_id):
        no = (await self.store.row("run_by_id", run_id))[0]
        known = await self.store.row("retry_of_run", no)
        if known is None:
            self.next_no += 1
            new = self.next_no
            settle = (self.clock.now(), principal.name, no)

            def write(c):
                insert_run(c, new, retry_of_no=no)
                c.execute(QUERIES["retry_dead_letter"], settle)

            await self.store.journal.execute(write)
            known = (new, f"run_{new}")
        return SimpleNamespace(run=SimpleNamespace(run_id=known[1]))

    async def add(self, no, *, namespace_no=1, workflow_no=1, step="a", code="http_503", at=1000):
        def write(c):
            insert_run(c, no, namespace_no=namespace_no, workflow_no=workflow_no, state="DEAD")
            error = to_text({"code": code, "message": "no", "step": step})
            c.execute(QUERIES["insert_dead_letter"], (no, namespace_no, workflow_no, step, code, error, 3, at))

        await self.store.journal.execute(write)

    async def ids(self, wanted=ALL, limit=100):
        return [row.run_no for row in await self.desk.page(wanted, limit)]

    async def states(self):
        return {row.run_no: row.state for row in await self.desk.page(ALL, 1000)}


def insert_run(connection, no, *, namespace_no=1, workflow_no=1, state="PENDING", retry_of_no=None):
    ended = None if state == "PENDING" else 5
    row = (no, f"run_{no}", namespace_no, workflow_no, 4, state, 1, bytes(32), 0, "manual", None, None, None, 1, 2)
    row += (ended, "default", 5, "", 0, 0, None, retry_of_no, None, None)
    connection.execute(QUERIES["insert_run"], row)


def add_tenants(connection):
    connection.execute("INSERT INTO namespaces (no, name, created_at) VALUES (2, 'other', 1)")
    for no, namespace_no, name in ((1, 1, "build"), (2, 1, "deploy"), (3, 2, "build")):
        connection.execute(QUERIES["insert_workflow"], (no, f"wf_{no}", namespace_no, name, 1, 1, "", "", ""))


@pytest.fixture
async def world(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    await store.journal.execute(add_tenants)
    yield World(store)
    await store.stop()


def named(*numbers, **options):
    return Selection(tuple(f"run_{no}" for no in numbers), **options)


def fitting(**options):
    own = {name: options.pop(name) for name in ("max_count", "dry_run") if name in options}
    return Selection(wanted=LetterFilter(1, **options), **own)


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_shown_whole(world):
    await world.add(1)
    row = await world.desk.get(ROOT, "run_1")
    assert row == (1, "run_1", 1, "build", 4, "OPEN", row.error, 3, 1000, None, "", "", "")
    assert '"http_503"' in row.error


async def test_it_is_hidden_from_other_namespaces_and_not_there_for_other_runs(world):
    await world.add(1, namespace_no=2, workflow_no=3)
    await world.store.journal.execute(lambda c: insert_run(c, 2))
    for run_id in ("run_1", "run_2", "run_3", ""):
        with pytest.raises(NotFoundError):
            await world.desk.get(ANN, run_id)
    assert (await world.desk.get(ROOT, "run_1")).workflow == "build"


async def test_filters_pages_and_order(world):
    await world.add(1, step="a", at=1000)
    await world.add(2, step="b", at=900)
    await world.add(3, code="timeout", at=3000)
    await world.add(4, workflow_no=2, at=4000)
    await world.add(5, namespace_no=2, workflow_no=3)
    await world.desk.discard(ROOT, named(2), "")
    await world.desk.retry(ROOT, named(3))
    assert await world.ids() == [4, 3, 2, 1]
    assert await world.ids(limit=2) == [4, 3]
    assert await world.ids(LetterFilter(1, states=STATES, before=3)) == [2, 1]
    assert await world.ids(LetterFilter(1)) == [4, 1]
    assert await world.ids(LetterFilter(2)) == [5]
    assert await world.ids(LetterFilter(1, states=("RETRIED", "DISCARDED"))) == [3, 2]
    assert await world.ids(LetterFilter(1, step="b", states=STATES)) == [2]
    assert await world.ids(LetterFilter(1, code="timeout", states=STATES)) == [3]
    assert await world.ids(LetterFilter(1, died_before=1000, states=STATES)) == [2]
    assert await world.ids(LetterFilter(1, died_before=0, states=STATES)) == []
    assert await world.ids(LetterFilter(1, workflow="build", states=STATES)) == [3, 2, 1]
    assert await world.ids(LetterFilter(1, "deploy", "deploy", "deploy", STATES)) == []
    assert await world.ids(LetterFilter(1, "deploy", "a", "http_503", STATES, 5000, 9)) == [4]


async def test_those_of_a_deleted_workflow_are_found_by_its_name_and_an_unknown_name_is_told(world):
    await world.add(1)
    await world.store.journal.execute(lambda c: c.execute(QUERIES["delete_workflow"], (9, 1)))
    row = (4, "wf_4", 1, "build", 1, 1, "", "", "")
    await world.store.journal.execute(lambda c: c.execute(QUERIES["insert_workflow"], row))
    await world.add(2, workflow_no=4)
    assert await world.ids(LetterFilter(1, "build")) == [2, 1]
    for attempt in (
        world.desk.page(LetterFilter(2, "deploy"), 9),
        world.desk.retry(ROOT, fitting(workflow="biuld")),
        world.desk.discard(ROOT, fitting(workflow="biuld"), ""),
    ):
        with pytest.raises(NotFoundError, match="there is no workflow"):
            await attempt


# --- retrying --------------------------------------------------------------------------------------------------------


async def test_named_ones_are_retried_in_order_and_again_answers_the_same(world):
    for no in (1, 2, 3):
        await world.add(no)
    first = await world.desk.retry(ANN, named(3, 1))
    assert [(v.run_id, v.error) for v in first.verdicts] == [("run_3", ""), ("run_1", "")]
    assert not first.more
    assert await world.states() == {1: "RETRIED", 2: "OPEN", 3: "RETRIED"}
    assert await world.desk.retry(ANN, named(3, 1)) == first
    row = await world.desk.get(ANN, "run_3")
    assert (row.settled_at, row.settled_by, row.retry_run_id) == (7000, "ann", first.verdicts[0].new_run_id)


async def test_a_filter_takes_the_oldest_open_ones_and_says_that_there_are_more(world):
    for no in range(1, 6):
        await world.add(no)
    await world.desk.discard(ROOT, named(1), "")
    found = await world.desk.retry(ROOT, fitting(max_count=2))
    assert [v.run_id for v in found.verdicts] == ["run_2", "run_3"]
    assert found.more
    found = await world.desk.retry(ROOT, fitting(max_count=2))
    assert [v.run_id for v in found.verdicts] == ["run_4", "run_5"]
    assert not found.more
    assert await world.desk.retry(ROOT, fitting()) == ([], False)


async def test_one_that_cannot_be_retried_does_not_hinder_the_others(world):
    for no in (1, 2, 3):
        await world.add(no)
    await world.add(4, namespace_no=2, workflow_no=3)
    await world.desk.discard(ROOT, named(2), "")
    world.refused["run_1"] = ResourceExhaustedError("the namespace has 5 pending runs, and may have 5")
    verdicts, _ = await world.desk.retry(ANN, named(1, 2, 3, 4, 9))
    assert [bool(v.new_run_id) for v in verdicts] == [False, False, True, False, False]
    texts = ["the namespace has 5 pending runs, and may have 5", "discarded by 'root'", "", "no dead letter", "no dead"]
    assert all(text in v.error for text, v in zip(texts, verdicts, strict=True))
    assert await world.states() == {1: "OPEN", 2: "DISCARDED", 3: "RETRIED"}


async def test_a_dry_run_tells_and_does_nothing(world):
    for no in (1, 2):
        await world.add(no)
    await world.desk.discard(ROOT, named(2), "")
    verdicts, _ = await world.desk.retry(ROOT, named(1, 2, dry_run=True))
    assert [(v.new_run_id, bool(v.error)) for v in verdicts] == [("", False), ("", True)]
    assert [v.run_id for v in (await world.desk.retry(ROOT, fitting(dry_run=True))).verdicts] == ["run_1"]
    assert [v.run_id for v in (await world.desk.discard(ROOT, fitting(dry_run=True), "")).verdicts] == ["run_1"]
    assert world.asked == []
    assert await world.states() == {1: "OPEN", 2: "DISCARDED"}


async def test_many_are_retried_a_bounded_number_at_once(world):
    for no in range(1, 81):
        await world.add(no)
    verdicts, more = await world.desk.retry(ROOT, fitting())
    assert len({v.new_run_id for v in verdicts}) == 80
    assert not more
    assert 1 < world.most_at_once <= 64
    assert set((await world.states()).values()) == {"RETRIED"}


# --- discarding ------------------------------------------------------------------------------------------------------


async def test_who_discards_first_and_why_stays(world):
    await world.add(1)
    first = await world.desk.discard(ANN, named(1), "the customer is gone")
    assert first == ([("run_1", "", "")], False)
    assert await world.desk.discard(ROOT, named(1), "something else") == first
    row = await world.desk.get(ROOT, "run_1")
    assert (row.state, row.settled_at, row.settled_by, row.reason) == (
        "DISCARDED",
        7000,
        "ann",
        "the customer is gone",
    )


async def test_what_was_retried_is_not_discarded(world):
    for no in (1, 2):
        await world.add(no)
    await world.desk.retry(ROOT, named(1))
    verdicts, _ = await world.desk.discard(ROOT, named(1, 2, 9), "")
    assert [v.error for v in verdicts] == ["it was retried", "", "there is no dead letter of a run 'run_9'"]
    verdicts, _ = await world.desk.discard(ROOT, named(1, dry_run=True), "")
    assert [v.error for v in verdicts] == ["it was retried"]
    assert await world.states() == {1: "RETRIED", 2: "DISCARDED"}


async def test_a_retry_that_is_faster_wins_over_a_discard(world):
    await world.add(1)
    before = (await world.desk.page(ALL, 1))[0]
    await world.desk.retry(ROOT, named(1))

    async def stale(*_):
        return [before], False

    world.desk._select = stale
    verdicts, _ = await world.desk.discard(ROOT, named(1), "")
    assert verdicts[0].error == "it was retried"
    assert await world.states() == {1: "RETRIED"}


async def test_a_filter_discards_the_oldest_of_its_namespace_only(world):
    for no in (1, 2, 3):
        await world.add(no, at=1000 * no)
    await world.add(4, namespace_no=2, workflow_no=3)
    verdicts, more = await world.desk.discard(ROOT, fitting(died_before=3000, max_count=1), "old")
    assert ([v.run_id for v in verdicts], more) == (["run_1"], True)
    verdicts, more = await world.desk.discard(ROOT, fitting(died_before=3000), "old")
    assert ([v.run_id for v in verdicts], more) == (["run_2"], False)
    assert await world.states() == {1: "DISCARDED", 2: "DISCARDED", 3: "OPEN"}
    assert (await world.desk.get(ROOT, "run_4")).state == "OPEN"


# --- selections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(("run_1",), LetterFilter(1)),
        Selection(tuple(map(str, range(SETTLE_MAX + 1)))),
        Selection(("run_1",), max_count=SETTLE_MAX + 1),
        Selection(("run_1",), max_count=-1),
    ],
)
async def test_a_selection_is_one_thing_and_bounded(world, selection):
    await world.add(1)
    for attempt in (world.desk.retry(ROOT, selection), world.desk.discard(ROOT, selection, "")):
        with pytest.raises(InvalidArgumentError):
            await attempt
    assert await world.states() == {1: "OPEN"}


async def test_a_reason_is_bounded(world):
    await world.add(1)
    for reason in ("x" * 1001, "a\x00b"):
        with pytest.raises(InvalidArgumentError):
            await world.desk.discard(ROOT, named(1), reason)
    await world.desk.discard(ROOT, named(1), "x" * 1000)


async def test_named_ones_beyond_the_count_are_left_and_told(world):
    for no in (1, 2):
        await world.add(no)
    verdicts, more = await world.desk.discard(ROOT, named(2, 1, max_count=1), "")
    assert ([v.run_id for v in verdicts], more) == (["run_2"], True)
    assert await world.states() == {1: "OPEN", 2: "DISCARDED"}


async def test_one_that_is_named_twice_is_settled_once(world):
    await world.add(1)
    verdicts, _ = await world.desk.retry(ROOT, named(1, 1))
    assert [v.new_run_id for v in verdicts] == ["run_101"]
    assert world.asked == ["run_1"]
