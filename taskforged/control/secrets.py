"""Secrets: encrypted at rest, write-only through the API, decrypted only for the step that uses one.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce for each value. Namespace, name and version are authenticated
with it, so that a ciphertext copied to another row does not open.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from taskforged.clock import Clock
from taskforged.errors import CorruptStoreError, InvalidArgumentError, NotFoundError, Violation
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["SecretRecord", "Secrets"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
VALUE_MAX = 64 * 1024
_CACHED_MAX = 1000


class SecretRecord(NamedTuple):
    """A secret without its value."""

    name: str
    version: int
    created_at: int
    updated_at: int


class Secrets:
    """The secrets of all namespaces."""

    def __init__(self, store: Store, clock: Clock, key: bytes) -> None:
        """Create the keeper with the 32 bytes of the master key."""
        self._store = store
        self._clock = clock
        self._cipher = AESGCM(key)
        self._sealed: dict[tuple[int, str], tuple[int, bytes, bytes]] = {}
        self._generation = 0

    async def set(self, namespace_no: int, name: str, value: str) -> SecretRecord:
        """Create or replace a secret.

        Raises:
            InvalidArgumentError: the name or the size of the value is wrong.
        """
        _check(name, value)
        now = self._clock.now()
        record = await self._store.journal.execute(lambda c: self._save(c, namespace_no, name, value, now))
        self._forget(namespace_no, name)
        return record

    def _save(self, connection: Connection, namespace_no: int, name: str, value: str, now: int) -> SecretRecord:
        known = connection.execute(QUERIES["secret"], (namespace_no, name)).fetchone()
        version = 1 if known is None else known[1] + 1
        created_at = now if known is None else known[4]
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, value.encode(), _bound_to(namespace_no, name, version))
        row = (namespace_no, name, version, nonce, sealed, created_at, now)
        connection.execute(QUERIES["save_secret"], row)
        return SecretRecord(name, version, created_at, now)

    async def value(self, namespace_no: int, name: str) -> str:
        """Answer a secret's value.

        Raises:
            NotFoundError: it is not set.
            CorruptStoreError: it was encrypted with another master key, or tampered with.
        """
        key = (namespace_no, name)
        sealed = self._sealed.get(key)
        if sealed is None:
            sealed = await self._fetch(key)
        version, nonce, ciphertext = sealed
        try:
            return self._cipher.decrypt(nonce, ciphertext, _bound_to(namespace_no, name, version)).decode()
        except InvalidTag:
            raise CorruptStoreError(
                f"the secret {name} cannot be decrypted: the master key has changed or the row was tampered with;"
                f" set it again with `taskforgectl secret set {name}`"
            ) from None

    def _forget(self, namespace_no: int, name: str) -> None:
        self._generation += 1
        self._sealed.pop((namespace_no, name), None)

    async def _fetch(self, key: tuple[int, str]) -> tuple[int, bytes, bytes]:
        generation = self._generation
        row = await self._store.row("secret", *key)
        if row is None:
            raise NotFoundError(f"the secret {key[1]} is not set", metadata={"secret": key[1]})
        if len(self._sealed) >= _CACHED_MAX:
            self._sealed.clear()
        if generation == self._generation:  # else it may have been replaced while it was read
            self._sealed[key] = (row[1], row[2], row[3])
        return row[1], row[2], row[3]

    async def page(self, namespace_no: int, *, after: str, limit: int) -> Sequence[SecretRecord]:
        """Answer up to `limit` secrets whose names sort behind `after`."""
        return [SecretRecord(*row) for row in await self._store.rows("list_secrets", namespace_no, after, limit)]

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


def _bound_to(namespace_no: int, name: str, version: int) -> bytes:
    return f"{namespace_no}/{name}/{version}".encode()


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        message = "must match [A-Z][A-Z0-9_]{0,62}"
        raise InvalidArgumentError(f"the secret's name {message}", violations=[Violation("name", message)])
    if not 1 <= len(value.encode()) <= VALUE_MAX:
        message = f"must have 1 to {VALUE_MAX:,} bytes"
        raise InvalidArgumentError(f"the secret's value {message}", violations=[Violation("value", message)])
