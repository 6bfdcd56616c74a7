"""The master key: where it comes from, that a wrong one is noticed, and that a rotation is whole at every instant."""

import base64
import contextlib
import os
import sqlite3

import pytest

from taskforged.clock import Clock
from taskforged.control.secrets import Secrets
from taskforged.errors import CorruptStoreError, FailedPreconditionError
from taskforged.keyring import CREDENTIAL, VARIABLE, find_keys, key_id
from taskforged.store.store import Store

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def text(key):
    return base64.b64encode(key).decode() + "\n"


SWAP = """UPDATE secrets SET (nonce, ciphertext) = (SELECT nonce, ciphertext FROM secrets s WHERE s.name = 'B')
WHERE name = 'A'"""


class Home:
    """A folder with a database and keys."""

    def __init__(self, folder):
        self.folder = folder
        self.key = folder / "master.key"
        self.beside = folder / "master.key.new"
        self.environment = {}

    async def open(self, **options):
        keys = find_keys(self.key, self.environment)
        self.store = Store(self.folder / "taskforge.db")
        await self.store.start()
        self.secrets = Secrets(self.store, Clock(), keys)
        try:
            await self.secrets.start(**options)
        except BaseException:
            await self.close()
            raise
        return self.secrets

    async def close(self):
        await self.store.stop()

    async def put(self, value="v-one", name="A", hosts=None):
        await (await self.open()).set(1, name, value, hosts=hosts)
        await self.close()

    async def value(self, name="A"):
        try:
            return await (await self.open()).value(1, name)
        finally:
            await self.close()

    def sql(self, query, *parameters):
        with contextlib.closing(sqlite3.connect(self.folder / "taskforge.db")) as database, database:
            return database.execute(query, parameters).fetchall()


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


async def test_the_first_start_makes_a_private_key(home):
    await home.put()
    assert len(base64.b64decode(home.key.read_text())) == 32
    assert home.key.stat().st_mode & 0o077 == 0
    assert not home.beside.exists()
    assert home.sql("SELECT id FROM master_key") == [(key_id(base64.b64decode(home.key.read_text())),)]
    assert await home.value() == "v-one"


async def test_the_sources_in_their_order(home, tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL).write_text(text(TWO))
    home.key.write_text(text(THREE))
    both = {VARIABLE: text(ONE), "CREDENTIALS_DIRECTORY": str(credentials)}
    assert find_keys(home.key, both).key == ONE
    assert find_keys(home.key, {"CREDENTIALS_DIRECTORY": str(credentials)}).key == TWO
    assert find_keys(home.key, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).key == THREE
    assert find_keys(home.key, {VARIABLE: ""}).key == THREE
    home.key.unlink()
    home.environment = {VARIABLE: text(ONE)}
    await home.put()
    assert not home.key.exists()


@pytest.mark.parametrize("bad", ["", "x", base64.b64encode(bytes(31)).decode(), "\u00e4" * 44])
async def test_what_is_no_key_is_refused(home, bad):
    home.key.write_text(bad)
    with pytest.raises(CorruptStoreError, match="does not hold 32 bytes"):
        await home.open()


@pytest.mark.parametrize("wrong", [TWO, None], ids=["wrong", "none"])
async def test_a_wrong_or_missing_key_is_refused_before_anything_is_read(home, wrong):
    home.key.write_text(text(ONE))
    await home.put()
    before = home.sql("SELECT * FROM secrets")
    home.key.unlink()
    if wrong:
        home.key.write_text(text(wrong))
    with pytest.raises(CorruptStoreError, match=key_id(ONE)) as caught:
        await home.open()
    assert caught.value.reason == "WRONG_MASTER_KEY"
    assert "forget-secrets" in caught.value.message
    assert home.sql("SELECT * FROM secrets") == before
    home.key.write_text(text(ONE))
    assert await home.value() == "v-one"


@pytest.mark.parametrize("left", [TWO, None], ids=["new", "none"])
async def test_a_lost_key_costs_the_secrets_and_nothing_else(home, left):
    home.key.write_text(text(ONE))
    await home.put()
    home.key.unlink()
    if left:
        home.key.write_text(text(left))
    await home.open(forget=True)
    await home.close()
    assert home.sql("SELECT * FROM secrets") == []
    await home.put("v-two")
    assert await home.value() == "v-two"


async def test_a_key_that_fits_forgets_nothing(home):
    await home.put()
    await home.open(forget=True)
    await home.close()
    assert await home.value() == "v-one"


async def test_secrets_of_the_time_before_keys_had_ids(home):
    home.key.write_text(text(ONE))
    await home.put()
    home.sql("DELETE FROM master_key")
    home.sql("UPDATE secrets SET key_id = ''")
    home.key.write_text(text(TWO))
    with pytest.raises(CorruptStoreError):
        await home.open()
    home.key.write_text(text(ONE))
    assert await home.value() == "v-one"
    assert home.sql("SELECT key_id FROM secrets") == home.sql("SELECT id FROM master_key") == [(key_id(ONE),)]


async def test_a_rotation_changes_every_row_and_the_file(home):
    home.key.write_text(text(ONE))
    await home.put()
    await home.put("v-bound", "B", hosts=["a.example"])
    before = home.sql("SELECT nonce, ciphertext FROM secrets ORDER BY name")
    secrets = await home.open()
    assert await secrets.value(1, "A") == "v-one"  # cached under the old key
    done = await secrets.rotate_key()
    assert (done.previous_key_id, done.total) == (key_id(ONE), 2)
    assert await secrets.value(1, "A") == "v-one"
    assert await secrets.secret(1, "B") == ("v-bound", ("a.example",))
    await secrets.set(1, "C", "v-three")
    again = await secrets.rotate_key()
    assert (again.previous_key_id, again.total) == (done.key_id, 3)
    await home.close()
    after = home.sql("SELECT nonce, ciphertext FROM secrets ORDER BY name")
    assert not {row[0] for row in before} & {row[0] for row in after}
    assert {row[0] for row in home.sql("SELECT key_id FROM secrets")} == {again.key_id}
    assert key_id(base64.b64decode(home.key.read_text())) == again.key_id
    assert not home.beside.exists()
    assert await home.value("C") == "v-three"


async def interrupted(home, *, committed, renamed):
    """Leave what a crash leaves in the middle of a rotation from ONE to TWO."""
    home.key.write_text(text(ONE))
    await home.put()
    home.beside.write_text(text(TWO))
    if committed:
        home.environment = {VARIABLE: text(TWO), f"{VARIABLE}_PREVIOUS": text(ONE)}
        await home.value()  # the same transaction as a rotation's
        home.environment = {}
    if renamed:
        home.beside.replace(home.key)


@pytest.mark.parametrize(("committed", "renamed"), [(False, False), (True, False), (True, True)])
async def test_a_crash_anywhere_in_a_rotation_leaves_a_daemon_that_starts(home, committed, renamed):
    await interrupted(home, committed=committed, renamed=renamed)
    assert await home.value() == "v-one"
    wanted = TWO if committed else ONE
    assert home.key.read_text() == text(wanted)
    assert not home.beside.exists()
    assert home.sql("SELECT key_id FROM secrets") == [(key_id(wanted),)]


@pytest.mark.parametrize("cut", ["", "AAAA", text(TWO)[:-5]])
async def test_a_new_key_that_was_cut_while_it_was_written_is_ignored(home, cut):
    home.key.write_text(text(ONE))
    await home.put()
    home.beside.write_text(cut)
    assert await home.value() == "v-one"
    assert home.key.read_text() == text(ONE)


async def test_a_key_from_outside_is_rotated_by_a_restart(home):
    home.environment = {VARIABLE: text(ONE)}
    await home.put()
    secrets = await home.open()
    with pytest.raises(FailedPreconditionError, match=f"{VARIABLE}_PREVIOUS"):
        await secrets.rotate_key()
    await home.close()
    home.environment = {VARIABLE: text(TWO)}
    with pytest.raises(CorruptStoreError):
        await home.open()
    home.environment = {VARIABLE: text(TWO), f"{VARIABLE}_PREVIOUS": text(ONE)}
    assert await home.value() == "v-one"
    home.environment = {VARIABLE: text(TWO)}
    assert await home.value() == "v-one"


async def test_from_the_file_to_the_environment_and_back(home):
    home.key.write_text(text(ONE))
    await home.put()
    home.environment = {VARIABLE: text(TWO), f"{VARIABLE}_PREVIOUS": home.key.read_text()}
    assert await home.value() == "v-one"
    home.key.write_text(text(TWO))
    home.environment = {}
    assert await home.value() == "v-one"


@pytest.mark.parametrize(
    "tamper",
    [
        SWAP,
        "UPDATE secrets SET hosts = '[\"evil.example\"]' WHERE name = 'A'",
        "UPDATE secrets SET hosts = '[]' WHERE name = 'A'",
        "UPDATE secrets SET version = 2 WHERE name = 'A'",
        "UPDATE secrets SET namespace_no = 2 WHERE name = 'A'",
        "UPDATE secrets SET key_id = 'other' WHERE name = 'A'",
    ],
)
async def test_a_row_that_was_tampered_with_does_not_open(home, tamper):
    await home.put(hosts=["a.example"])
    await home.put("v-two", "B", hosts=["b.example"])
    home.sql("INSERT INTO namespaces (no, name, created_at) VALUES (2, 'two', 0)")
    home.sql(tamper)
    secrets = await home.open()
    try:
        with pytest.raises(CorruptStoreError, match="tampered"):
            await secrets.value(2 if "namespace_no" in tamper else 1, "A")
        assert await secrets.value(1, "B") == "v-two"
        if "key_id" not in tamper:  # which only says which key to try
            with pytest.raises(CorruptStoreError, match="tampered"):
                await secrets.rotate_key()
        assert await secrets.value(1, "B") == "v-two"
    finally:
        await home.close()
    assert await home.value("B") == "v-two"


async def test_a_key_never_lies_open(home):
    before = os.umask(0o022)
    try:
        await home.put()
        await (await home.open()).rotate_key()
        assert home.key.stat().st_mode & 0o777 == 0o600
        await home.close()
    finally:
        os.umask(before)
