"""Secrets: encrypted at rest, write-only through the API, decrypted only for the step that uses one.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce for each value. Namespace, name, version and hosts are
authenticated with it, so that a ciphertext copied to another row, or given other hosts, does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from taskforged.clock import Clock
from taskforged.errors import CorruptStoreError, InvalidArgumentError, NotFoundError, Violation
from taskforged.jsonvalue import load_stored, to_text
from taskforged.steps.base import SecretValue
from taskforged.steps.hosts import normal_pattern
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = ["SecretRecord", "Secrets", "key_id"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
VALUE_MAX = 64 * 1024
HOSTS_MAX = 50
_CACHED_MAX = 1000


def key_id(key: bytes) -> str:
    """Answer a key's fingerprint: it tells keys apart, and nothing of the key."""
    return hmac.digest(key, b"taskforge master key", hashlib.sha256).hex()[:16]


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

    @classmethod
    def from_row(cls, row: Row) -> _Sealed:
        return cls(row[0], row[1], row[2], _hosts_of(row[3]))


class Secrets:
    """The secrets of all namespaces."""

    def __init__(self, store: Store, clock: Clock, key: bytes) -> None:
        """Create the keeper with the 32 bytes of the master key."""
        self._store = store
        self._clock = clock
        self._cipher = AESGCM(key)
        self._key_id = key_id(key)
        self._sealed: dict[tuple[int, str], _Sealed] = {}
        self._generation = 0

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
        record = await self._store.journal.execute(lambda c: self._save(c, namespace_no, name, value, normal, now))
        self._forget(namespace_no, name)
        return record

    def _save(
        self, connection: Connection, namespace_no: int, name: str, value: str, hosts: tuple[str, ...] | None, now: int
    ) -> SecretRecord:
        row = connection.execute(QUERIES["secret"], (namespace_no, name)).fetchone()
        known, created_at = (None, now) if row is None else (_Sealed.from_row(row), row[4])
        version = 1 if known is None else known.version + 1
        if hosts is None:
            hosts = () if known is None else known.hosts
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, value.encode(), _bound_to(namespace_no, name, version, hosts))
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
        sealed = self._sealed.get(key)
        if sealed is None:
            sealed = await self._fetch(key)
        try:
            bound = _bound_to(namespace_no, name, sealed.version, sealed.hosts)
            return SecretValue(self._cipher.decrypt(sealed.nonce, sealed.ciphertext, bound).decode(), sealed.hosts)
        except InvalidTag:
            raise CorruptStoreError(
                f"the secret {name} cannot be decrypted: the master key has changed or the row was tampered with;"
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
        gone = await self._store.journal.execute(lambda c: _delete(c, namespace_no, name))
        self._forget(namespace_no, name)
        if not gone:
            raise NotFoundError(f"the secret {name} is not set", metadata={"secret": name})


def _delete(connection: Connection, namespace_no: int, name: str) -> int:
    return connection.execute(QUERIES["delete_secret"], (namespace_no, name)).rowcount


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
