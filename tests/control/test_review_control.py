"""Faults that a review found around the control plane and the store: each test failed before its fix."""

import asyncio

import pytest

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal, Role, new_credential
from taskforged.control.paging import decode_token, encode_token
from taskforged.control.trigger_book import TriggerBook
from taskforged.control.workflows import Workflows
from taskforged.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from taskforged.store.journal import Write
from taskforged.store.store import Store

SOURCE = """
name: {name}
steps:
  - id: a
    transform: {{n: {n}}}
"""


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    yield store
    await store.stop()


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, RecursionError])
async def test_whatever_a_write_raises_reaches_its_caller_and_not_the_journal(store, error):
    """SQLite without memory raises MemoryError, and the address space is bounded on purpose."""

    def broken(_):
        raise error

    good = "UPDATE namespaces SET created_at = 7"
    futures = [
        store.journal.submit(Write(function=lambda c: c.execute(good).rowcount)),
        store.journal.submit(Write(function=broken)),
    ]
    done, _ = await asyncio.wait(futures, timeout=2.0)
    assert len(done) == 2
    assert futures[0].result() == 1
    with pytest.raises(Exception, match=error.__name__):
        futures[1].result()
    assert await asyncio.wait_for(store.journal.execute(lambda c: c.execute(good).rowcount), 2.0) == 1


async def test_of_two_last_administrators_one_stays(store):
    access = Access(store, Clock())
    await access.start()
    root = Principal("x", "x", Role.ADMIN, None)
    ids = []
    for _ in range(2):
        token_id, credential = new_credential()
        await access.adopt(credential)
        ids.append(token_id)
    results = await asyncio.gather(*(access.revoke(root, one) for one in ids), return_exceptions=True)
    assert [type(one) for one in results].count(FailedPreconditionError) == 1


async def test_a_last_use_that_cannot_be_written_is_written_later(store, monkeypatch):
    access = Access(store, Clock())
    await access.start()
    _, credential = new_credential()
    await access.adopt(credential)
    access.authenticate(credential)

    async def full(_):
        raise ResourceExhaustedError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store.journal, "execute", full)
        with pytest.raises(ResourceExhaustedError):
            await access.flush_last_used()
    await access.flush_last_used()
    assert await store.read(lambda c: c.execute("SELECT last_used_at FROM tokens").fetchone()[0])


async def test_deleting_twice_leaves_a_new_workflow_of_that_name_alone(store):
    clock = Clock()
    workflows = Workflows(store, clock, TriggerBook(store, clock), str)
    old = (await workflows.apply(1, SOURCE.format(name="w", n=1), "me")).workflow
    results = await asyncio.gather(
        workflows.delete(old),
        workflows.apply(1, SOURCE.format(name="v", n=1), "me"),
        workflows.delete(old),
        workflows.set_active(old, active=False),
        return_exceptions=True,
    )
    assert isinstance(results[2], NotFoundError)
    new = (await workflows.apply(1, SOURCE.format(name="w", n=2), "me")).workflow
    with pytest.raises(NotFoundError):
        await workflows.delete(old)
    assert workflows.get(1, "w") == new


@pytest.mark.parametrize("key", [2**63, 2**64 - 1, -1])
def test_a_made_up_page_token_is_refused(key):
    with pytest.raises(InvalidArgumentError):
        decode_token(encode_token(key, ["runs"]), ["runs"], 0)
