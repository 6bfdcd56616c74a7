"""Secrets: encrypted at rest, write-only through the API, decrypted only for the step that uses one.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce for each value. Namespace, name, version and hosts are
authenticated with it, so that a ciphertext copied to another row, or given other hosts, does not open.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from taskforged.clock import Clock
from taskforged.errors import CorruptStoreError, InvalidArgumentError, NotFoundError, Violation
from taskforged.failpoints import reach
from taskforged.jsonvalue import load_stored, to_text
from taskforged.keyring import KeySource, key_id
from taskforged.steps.base import SecretValue
from taskforged.steps.hosts import normal_pattern
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["Rotated", "SecretRecord", "Secrets"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
VALUE_MAX = 64 * 1024
HOSTS_MAX = 50
_CACHED_MAX = 1000


class SecretRecord(NamedTuple):
    """A secret without its value."""

    name: str
    version: int
    created_at: int
    updated_at: int
    hosts: tuple[str, ...]
    key_id: str


class _Sealed(NamedTuple):
    """A secret as it is stored."""

    version: int
    nonce: bytes
    ciphertext: bytes
    hosts: tuple[str, ...]
    key_id: str

    @classmethod
    def from_row(cls, row: Row) -> _Sealed:
        return cls(row[0], row[1], row[2], _hosts_of(row[3]), row[4])


class Rotated(NamedTuple):
    """What a rotation of the master key has done."""

    key_id: str
    previous_key_id: str
    total: int


class Secrets:
    """The secrets of all namespaces."""

    def __init__(self, store: Store, clock: Clock, keys: KeySource) -> None:
        """Create the keeper; it can be used when it has been started."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._ciphers: dict[str, AESGCM] = {}
        self._key_id = ""
        self._sealed: dict[tuple[int, str], _Sealed] = {}
        self._generation = 0
        self._writing = asyncio.Lock()

    # --- the master key ----------------------------------------------------------------------------------------------

    async def start(self, *, forget: bool = False) -> None:
        """Find out which key the secrets are encrypted with, and go over to the one that is wanted.

        Args:
            forget: delete all secrets when none of the keys fits.

        Raises:
            CorruptStoreError: none of the keys fits. Nothing was changed.
        """
        known = await self._store.value("master_key")
        wanted, other = self._keys.key, self._keys.other
        is_new = known is None and not await self._holds_any()
        if wanted is None and self._keys.file is not None and (is_new or (forget and self._keys.other is None)):
            self._keys = self._keys.create()
            wanted = self._keys.key
        if wanted is not None and await self._fits(wanted, known):
            await self._use(wanted, record=known is None)
        elif other is not None and await self._fits(other, known):
            await self._change_key(other, wanted if self._keys.file is None else None)
        elif wanted is not None and (forget or not await self._holds_any()):
            await self._store.journal.execute(lambda c: _start_afresh(c, key_id(wanted), self._clock.now()))
            await self._use(wanted, record=False)
        else:
            raise _wrong_key(self._keys, known)

    async def _holds_any(self) -> bool:
        return await self._store.value("any_secret") is not None

    async def _fits(self, key: bytes, known: str | None) -> bool:
        """Whether the secrets are encrypted with a key; before keys had ids only trying told."""
        if known is not None:
            return hmac.compare_digest(key_id(key), known)
        row = await self._store.row("any_secret")
        if row is None:
            return True
        sealed = _Sealed.from_row(row[2:])
        try:
            AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, _bound_to(row[0], row[1], sealed.version, ()))
        except InvalidTag:
            return False
        return True

    async def _use(self, key: bytes, *, record: bool) -> None:
        ident = key_id(key)
        if record:
            await self._store.journal.execute(lambda c: _record_key(c, ident, self._clock.now()))
        self._ciphers, self._key_id = {ident: AESGCM(key)}, ident
        self._sealed.clear()
        self._generation += 1
        keys, self._keys = self._keys, replace(self._keys, file=None)  # no other rotation before this one is whole
        self._keys = keys.adopt(key)

    async def _change_key(self, present: bytes, wanted: bytes | None) -> int:
        """Encrypt all secrets with another key, or only record the present one."""
        key = present if wanted is None else wanted
        cipher, fresh, ident = AESGCM(present), AESGCM(key), key_id(key)
        self._ciphers[ident] = fresh  # whoever reads a row right after the commit finds its key

        def change(connection: Connection) -> int:
            rows = connection.execute(QUERIES["all_secrets"]).fetchall() if wanted is not None else []
            connection.executemany(QUERIES["reseal_secret"], [_resealed(row, cipher, fresh, ident) for row in rows])
            _record_key(connection, ident, self._clock.now())
            reach("key.resealed")
            return len(rows)

        count = await self._store.journal.execute(change)
        reach("key.committed")
        await self._use(key, record=False)
        return count

    async def rotate_key(self) -> Rotated:
        """Make a new master key and encrypt all secrets with it.

        The new key lies on disk before anything is encrypted with it, and takes the old one's place after all is, in
        one transaction. Whatever lies there after a crash in between, the database knows which of both it is.

        Raises:
            FailedPreconditionError: the key comes from outside.
            CorruptStoreError: a secret cannot be decrypted with the present key.
        """
        async with self._writing:
            previous = self._key_id
            present, fresh = await asyncio.to_thread(self._keys.prepare)
            self._keys = replace(self._keys, other=fresh)
            reach("key.prepared")
            count = await self._change_key(present, fresh)
            return Rotated(self._key_id, previous, count)

    # --- secrets -----------------------------------------------------------------------------------------------------

    async def set(
        self, namespace_no: int, name: str, value: str, *, hosts: Sequence[str] | None = None
    ) -> SecretRecord:
        """Create or replace a secret; `hosts` says where it may be sent to, empty: anywhere, None: as before.

        Raises:
            InvalidArgumentError: the name, the size of the value or a host is wrong.
        """
        _check(name, value)
        normal = None if hosts is None else _normal_hosts(hosts)
        now = self._clock.now()
        async with self._writing:  # not while the master key changes
            record = await self._store.journal.execute(lambda c: self._save(c, namespace_no, name, value, normal, now))
        reach("secret.stored")
        self._forget(namespace_no, name)
        return record

    def _save(
        self, connection: Connection, namespace_no: int, name: str, value: str, hosts: tuple[str, ...] | None, now: int
    ) -> SecretRecord:
        row = connection.execute(QUERIES["secret"], (namespace_no, name)).fetchone()
        known, created_at = (None, now) if row is None else (_Sealed.from_row(row), row[5])
        version = 1 if known is None else known.version + 1
        if hosts is None:
            hosts = () if known is None else known.hosts
        nonce = os.urandom(12)
        sealed = self._ciphers[self._key_id].encrypt(
            nonce, value.encode(), _bound_to(namespace_no, name, version, hosts)
        )
        place = (namespace_no, name, version, nonce, sealed, created_at, now, to_text(hosts), self._key_id)
        connection.execute(QUERIES["save_secret"], place)
        return SecretRecord(name, version, created_at, now, hosts, self._key_id)

    async def value(self, namespace_no: int, name: str) -> str:
        """Answer a secret's value for a use inside the daemon; see `secret`."""
        return (await self.secret(namespace_no, name)).value

    async def secret(self, namespace_no: int, name: str) -> SecretValue:
        """Answer a secret's value and where it may be sent to.

        Raises:
            NotFoundError: it is not set.
            CorruptStoreError: it was encrypted with another master key, or tampered with.
        """
        key = (namespace_no, name)
        sealed = self._sealed.get(key) or await self._fetch(key)
        if sealed.key_id not in self._ciphers:  # read before the master key changed
            sealed = await self._fetch(key)
        try:
            return SecretValue(_open(self._ciphers[sealed.key_id], key, sealed).decode(), sealed.hosts)
        except (InvalidTag, KeyError):
            raise CorruptStoreError(
                f"the secret {name} cannot be decrypted: its row was tampered with;"
                f" set it again with `taskforgectl secret set {name}`"
            ) from None

    def _forget(self, namespace_no: int, name: str) -> None:
        self._generation += 1
        self._sealed.pop((namespace_no, name), None)

    async def _fetch(self, key: tuple[int, str]) -> _Sealed:
        generation = self._generation
        row = await self._store.row("secret", *key)
        if row is None:
            raise NotFoundError(f"the secret {key[1]} is not set", metadata={"secret": key[1]})
        if len(self._sealed) >= _CACHED_MAX:
            self._sealed.clear()
        sealed = _Sealed.from_row(row)
        if generation == self._generation:  # else it may have been replaced while it was read
            self._sealed[key] = sealed
        return sealed

    async def page(self, namespace_no: int, *, after: str, limit: int) -> Sequence[SecretRecord]:
        """Answer up to `limit` secrets whose names sort behind `after`."""
        found = await self._store.rows("list_secrets", namespace_no, after, limit)
        return [SecretRecord(row[0], row[1], row[2], row[3], _hosts_of(row[4]), row[5]) for row in found]

    async def delete(self, namespace_no: int, name: str) -> None:
        """Remove a secret.

        Raises:
            NotFoundError: it is not set.
        """
        await self._store.journal.execute(lambda c: _delete(c, namespace_no, name))
        self._forget(namespace_no, name)


def _delete(connection: Connection, namespace_no: int, name: str) -> None:
    if not connection.execute(QUERIES["delete_secret"], (namespace_no, name)).rowcount:
        raise NotFoundError(f"the secret {name} is not set", metadata={"secret": name})


def _open(cipher: AESGCM, key: tuple[int, str], sealed: _Sealed) -> bytes:
    return cipher.decrypt(sealed.nonce, sealed.ciphertext, _bound_to(*key, sealed.version, sealed.hosts))


def _resealed(row: Row, present: AESGCM, fresh: AESGCM, ident: str) -> Row:
    """Answer a row of `all_secrets` encrypted anew."""
    key, sealed = (row[0], row[1]), _Sealed.from_row(row[2:])
    try:
        value = _open(present, key, sealed)
    except InvalidTag:
        raise CorruptStoreError(
            f"the secret {key[1]} cannot be decrypted: its row was tampered with; set it again or delete it first"
        ) from None
    nonce = os.urandom(12)
    return nonce, fresh.encrypt(nonce, value, _bound_to(*key, sealed.version, sealed.hosts)), ident, *key


def _record_key(connection: Connection, ident: str, now: int) -> None:
    connection.execute(QUERIES["record_master_key"], (ident, now))
    connection.execute(QUERIES["name_first_key"], (ident,))


def _start_afresh(connection: Connection, ident: str, now: int) -> None:
    connection.execute(QUERIES["forget_secrets"])
    _record_key(connection, ident, now)


def _wrong_key(keys: KeySource, known: str | None) -> CorruptStoreError:
    wanted = f"the key {known}" if known else "another key"
    found = "is missing" if keys.key is None else f"is the key {key_id(keys.key)}"
    return CorruptStoreError(
        f"the secrets are encrypted with {wanted}, and {keys.place} {found}: restore it from your backup."
        " If it is lost for good, start once with `taskforged --forget-secrets`; that deletes all secrets",
        reason="WRONG_MASTER_KEY",
        metadata={"key_id": known or ""},
    )


def _bound_to(namespace_no: int, name: str, version: int, hosts: tuple[str, ...]) -> bytes:
    return "/".join((str(namespace_no), name, str(version), *hosts)).encode()


def _hosts_of(stored: str) -> tuple[str, ...]:
    return tuple(map(str, load_stored(stored)))


def _normal_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    if len(hosts) > HOSTS_MAX:
        message = f"must be at most {HOSTS_MAX}"
        raise InvalidArgumentError(f"the secret's hosts {message}", violations=[Violation("hosts", message)])
    return tuple(sorted({_normal_host(host, f"hosts[{index}]") for index, host in enumerate(hosts)}))


def _normal_host(text: str, path: str) -> str:
    try:
        return normal_pattern(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{text[:80]!r}: a host {error}", violations=[Violation(path, str(error))]) from None


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        message = "must match [A-Z][A-Z0-9_]{0,62}"
        raise InvalidArgumentError(f"the secret's name {message}", violations=[Violation("name", message)])
    if not 1 <= len(value.encode()) <= VALUE_MAX:
        message = f"must have 1 to {VALUE_MAX:,} bytes"
        raise InvalidArgumentError(f"the secret's value {message}", violations=[Violation("value", message)])
