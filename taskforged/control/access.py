"""Who may do what: tokens, roles, namespaces.

A credential is `tfk_<id>_<secret>`; only its SHA-256 is stored. The secret has 256 random bits, so a fast hash is
right: there is nothing to guess. All tokens are held in memory, they are few, and a lookup by id and one constant-time
comparison decide a call.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from taskforged.clock import Clock
from taskforged.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TaskforgeError,
    UnauthenticatedError,
    Violation,
)
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["GRANTS", "Access", "Principal", "Role", "TokenRecord", "new_credential"]

_ALPHABET = string.ascii_letters + string.digits
_CREDENTIAL = re.compile(r"tfk_([a-z2-7]{12})_([A-Za-z0-9]{43})")
_TOUCH_EVERY_US = 60_000_000
"""Last use is recorded to the minute: exact times would cost a write for every read."""

_NO_HASH = bytes(32)


class Role(StrEnum):
    """What a token is for."""

    ADMIN = "admin"
    OPERATOR = "operator"
    TRIGGER = "trigger"
    VIEWER = "viewer"
    WORKER = "worker"


GRANTS: dict[Role, frozenset[Role]] = {
    Role.ADMIN: frozenset({Role.ADMIN, Role.OPERATOR, Role.TRIGGER, Role.VIEWER}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.TRIGGER, Role.VIEWER}),
    Role.TRIGGER: frozenset({Role.TRIGGER}),
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.WORKER: frozenset({Role.WORKER}),
}
"""Which needs a role fulfils. A reader never starts anything, a trigger never reads."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A stored token. Times are microseconds since 1970."""

    no: int
    id: str
    name: str
    role: Role
    namespace_no: int | None
    hash: bytes
    created_at: int
    expires_at: int | None = None
    last_used_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call."""

    token_id: str
    name: str
    role: Role
    namespace_no: int | None

    @property
    def may_read(self) -> bool:
        """Whether this caller may look at what is stored."""
        return Role.VIEWER in GRANTS[self.role]

    def sees(self, namespace_no: int) -> bool:
        """Whether the namespace is open to this caller."""
        return self.namespace_no is None or self.namespace_no == namespace_no


def new_credential() -> tuple[str, str]:
    """Answer a fresh token id and the whole credential."""
    token_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(12))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(43))  # 43 * log2(62) = 256 bits
    return token_id, f"tfk_{token_id}_{secret}"


def _hash(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()


class Access:
    """Tokens and namespaces."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tokens: dict[str, TokenRecord] = {}
        self._touched: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._revoking = asyncio.Lock()

    async def start(self) -> None:
        """Load tokens and namespaces."""
        for row in await self._store.rows("all_tokens"):
            record = TokenRecord(row[0], row[1], row[2], Role(row[3]), *row[4:])
            self._tokens[record.id] = record
        for no, name in await self._store.rows("namespaces"):
            if "~" in name:  # deleted, but revoked tokens still refer to it
                self._names[no] = name
            else:
                self.know_namespace(no, name)

    # --- namespaces --------------------------------------------------------------------------------------------------

    def know_namespace(self, no: int, name: str) -> None:
        """A namespace exists from now on. Idempotent."""
        self._namespaces[name] = no
        self._names[no] = name

    def forget_namespace(self, no: int, name: str) -> None:
        """A namespace was deleted: nobody enters it any more, and what still refers to it shows `name`."""
        self._namespaces.pop(self._names[no], None)
        self._names[no] = name

    def namespace_no(self, name: str) -> int | None:
        """Answer the number of a namespace, or None."""
        return self._namespaces.get(name)

    def namespace_name(self, no: int) -> str:
        """Answer the name of a namespace that is known to exist."""
        return self._names[no]

    def enter(self, principal: Principal, name: str) -> int:
        """Answer the number of the namespace that a call is about.

        Raises:
            NotFoundError: there is none of that name.
            PermissionDeniedError: the token is confined to another one.
        """
        if not name:
            name = "default" if principal.namespace_no is None else self._names[principal.namespace_no]
        no = self._namespaces.get(name)
        if principal.namespace_no is not None and no != principal.namespace_no:
            raise PermissionDeniedError(f"this token may not use namespace {name!r}", metadata={"namespace": name})
        if no is None:
            raise NotFoundError(f"there is no namespace {name!r}", metadata={"namespace": name})
        return no

    # --- tokens ------------------------------------------------------------------------------------------------------

    def authenticate(self, credential: str) -> Principal:
        """Answer who holds a credential.

        Raises:
            UnauthenticatedError: nobody does; the message does not say why.
        """
        match = _CREDENTIAL.fullmatch(credential)
        record = self._tokens.get(match[1]) if match else None
        proven = hmac.compare_digest(_NO_HASH if record is None else record.hash, _hash(credential))
        now = self._clock.now()
        if record is None or not proven or record.revoked_at is not None or (record.expires_at or now + 1) <= now:
            raise UnauthenticatedError("the token is missing, wrong, expired or revoked")
        if now - (record.last_used_at or 0) > _TOUCH_EVERY_US:
            self._tokens[record.id] = replace(record, last_used_at=now)
            self._touched[record.id] = now
        return Principal(record.id, record.name, record.role, record.namespace_no)

    def check_live(self, principal: Principal) -> None:
        """Check again for a stream that outlives the check at its start.

        Raises:
            UnauthenticatedError: the token has been revoked or has expired since.
        """
        if not self._is_live(principal.token_id):
            raise UnauthenticatedError("the token has been revoked or has expired")

    def reaches(self, token_id: str, namespace_no: int) -> bool:
        """Whether a token, alive or not, is one of all namespaces or of this one."""
        record = self._tokens.get(token_id)
        return record is not None and record.namespace_no in (None, namespace_no)

    def live_principal(self, token_id: str) -> Principal | None:
        """Answer who a token stands for, None when it is dead: what is done later in its name needs a live one."""
        record = self._tokens.get(token_id)
        if record is None or not self._is_live(token_id):
            return None
        return Principal(record.id, record.name, record.role, record.namespace_no)

    def _is_live(self, token_id: str) -> bool:
        record = self._tokens.get(token_id)
        return record is not None and record.revoked_at is None and (record.expires_at or 1 << 62) > self._clock.now()

    async def flush_last_used(self) -> None:
        """Write the times of last use that have changed."""
        touched, self._touched = self._touched, {}
        if touched:
            rows = [(at, token_id) for token_id, at in touched.items()]
            try:
                await self._store.journal.execute(lambda c: c.executemany(QUERIES["touch_token"], rows))
            except TaskforgeError:
                self._touched = touched | self._touched  # next time
                raise

    async def adopt(self, credential: str) -> bool:
        """Store the credential of the home's token file as an administrator, unless it is known; False when it was.

        Raises:
            InvalidArgumentError: it has not the form of a credential.
        """
        match = _CREDENTIAL.fullmatch(credential)
        if match is None:
            raise InvalidArgumentError("the token file does not hold a token of the form tfk_<id>_<secret>")
        if match[1] in self._tokens:
            return False
        await self._insert(match[1], credential, "home", Role.ADMIN, None, None)
        return True

    async def create(
        self, caller: Principal, *, name: str, role: Role, namespace: str, ttl_s: float | None
    ) -> tuple[TokenRecord, str]:
        """Make a token; answers it and the whole credential, which is not kept.

        Raises:
            InvalidArgumentError: the name or the ttl is out of bounds.
            PermissionDeniedError: a confined caller asks for another namespace.
        """
        _check_token(name, ttl_s)
        confined = bool(namespace) or caller.namespace_no is not None
        namespace_no = self.enter(caller, namespace) if confined else None
        token_id, credential = new_credential()
        expires_at = None if ttl_s is None else self._clock.now() + round(ttl_s * 1_000_000)
        return await self._insert(token_id, credential, name, role, namespace_no, expires_at), credential

    async def _insert(
        self, token_id: str, credential: str, name: str, role: Role, namespace_no: int | None, expires_at: int | None
    ) -> TokenRecord:
        record = TokenRecord(
            *(self._store.next_no("tokens"), token_id, name, role, namespace_no, _hash(credential)),
            created_at=self._clock.now(),
            expires_at=expires_at,
        )
        row = (record.no, token_id, name, role.value, namespace_no, record.hash, record.created_at, expires_at)
        await self._store.journal.execute(lambda c: c.execute(QUERIES["insert_token"], row))
        self._tokens[token_id] = record
        return record

    def page(self, caller: Principal, *, before: int, limit: int) -> Sequence[TokenRecord]:
        """Answer up to `limit` tokens with numbers below `before` (0: all), newest first."""
        found = [t for t in self._tokens.values() if self._manages(caller, t) and (not before or t.no < before)]
        return sorted(found, key=lambda token: -token.no)[:limit]

    def _manages(self, caller: Principal, record: TokenRecord) -> bool:
        return caller.namespace_no is None or caller.namespace_no == record.namespace_no

    async def revoke(self, caller: Principal, token_id: str) -> TokenRecord:
        """End a token. Idempotent.

        Raises:
            NotFoundError: there is none, or not for this caller.
            FailedPreconditionError: it is the last administrator; nobody could make another.
        """
        async with self._revoking:  # else the last two administrators could be revoked at once
            return await self._revoke_alone(caller, token_id)

    async def _revoke_alone(self, caller: Principal, token_id: str) -> TokenRecord:
        record = self._tokens.get(token_id)
        if record is None or not self._manages(caller, record):
            raise NotFoundError(f"there is no token {token_id!r}", metadata={"token": token_id})
        if record.revoked_at is not None:
            return record
        if record.role is Role.ADMIN and record.namespace_no is None and self._is_last_admin(record):
            raise FailedPreconditionError("this is the last administrator's token; create another one first")
        now = self._clock.now()
        await self._store.journal.execute(lambda c: _revoke(c, now, token_id))
        self._tokens[token_id] = replace(self._tokens[token_id], revoked_at=now)
        return self._tokens[token_id]

    def _is_last_admin(self, record: TokenRecord) -> bool:
        others = (token for token in self._tokens.values() if token.id != record.id)
        return not any(t.role is Role.ADMIN and t.namespace_no is None and self._is_live(t.id) for t in others)


def _revoke(connection: Connection, now: int, token_id: str) -> None:
    connection.execute(QUERIES["revoke_token"], (now, token_id))


def _check_token(name: str, ttl_s: float | None) -> None:
    if not name or len(name) > 63 or not name.isprintable():
        raise InvalidArgumentError(
            "name must have 1 to 63 printable characters", violations=[Violation("name", "length")]
        )
    if ttl_s is not None and not 1 <= ttl_s <= 100 * 366 * 86_400:
        raise InvalidArgumentError("ttl must be between 1 s and 100 years", violations=[Violation("ttl", "range")])
