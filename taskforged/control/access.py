"""Who may do what: tokens, roles, namespaces.

A credential is `tfk_<id>_<secret>`; only its SHA-256 is stored. The secret has 256 random bits, so a fast hash is
right: there is nothing to guess. All tokens are held in memory, they are few, and a lookup by id and one constant-time
comparison decide a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import string
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from taskforged.clock import Clock
from taskforged.control.checks import REQUEST_ID_MAX, check_text
from taskforged.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TaskforgeError,
    UnauthenticatedError,
    Violation,
)
from taskforged.store.audit import about
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["GRANTS", "Access", "Principal", "Role", "TokenRecord", "new_credential"]

_ALPHABET = string.ascii_letters + string.digits
_CREDENTIAL = re.compile(r"tfk_([a-z2-7]{12})_([A-Za-z0-9]{43})")
_TOUCH_EVERY_US = 60_000_000
"""Last use is recorded to the minute: exact times would cost a write for every read."""

STREAMS_MAX = 2000

_NO_HASH = bytes(32)
"""The hash of nothing: SHA-256 of no known text."""

GRACE_S_MAX = 30 * 86_400.0


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
    previous_hash: bytes | None = None
    previous_until: int | None = None
    rotated_at: int | None = None
    rotate_request: str = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call. `proof` is the hash of the secret that was shown: a token may have two for a while."""

    token_id: str
    name: str
    role: Role
    namespace_no: int | None
    proof: bytes = b""

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
    return token_id, f"tfk_{token_id}_{_new_secret()}"


def _new_secret() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(43))  # 43 * log2(62) = 256 bits


def _principal(record: TokenRecord, proof: bytes) -> Principal:
    return Principal(record.id, record.name, record.role, record.namespace_no, proof)


def _hash(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()


def _proves(record: TokenRecord | None, digest: bytes, now: int) -> bool:
    """Whether the hash of a credential is that of a token's secret, or of the one before while that still works."""
    present = _NO_HASH if record is None else record.hash
    in_grace = record is not None and (record.previous_until or 0) > now
    previous = (record.previous_hash if record is not None and in_grace else None) or _NO_HASH
    matches = (hmac.compare_digest(present, digest), hmac.compare_digest(previous, digest))
    return any(matches)


class _Stream(NamedTuple):
    """Something that goes on in a token's name."""

    principal: Principal
    limit: asyncio.Timeout


class Access:
    """Tokens and namespaces."""

    def __init__(self, store: Store, clock: Clock, *, streams_max: int = STREAMS_MAX) -> None:
        """Create an empty book; `streams_max` is how many streams and waiting calls of one token may be open."""
        self._streams_max = streams_max
        self._store = store
        self._clock = clock
        self._tokens: dict[str, TokenRecord] = {}
        self._touched: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._streams: dict[str, set[_Stream]] = {}
        self._changing = asyncio.Lock()

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
        about(namespace_no=no)
        return no

    # --- tokens ------------------------------------------------------------------------------------------------------

    def authenticate(self, credential: str) -> Principal:
        """Answer who holds a credential.

        Raises:
            UnauthenticatedError: nobody does; the message does not say why.
        """
        match = _CREDENTIAL.fullmatch(credential)
        record = self._tokens.get(match[1]) if match else None
        digest, now = _hash(credential), self._clock.now()
        if not _proves(record, digest, now) or record is None or not self._is_live(record.id):
            raise UnauthenticatedError("the token is missing, wrong, expired or revoked")
        if now - (record.last_used_at or 0) > _TOUCH_EVERY_US:
            self._tokens[record.id] = replace(record, last_used_at=now)
            self._touched[record.id] = now
        return _principal(record, digest)

    @contextlib.asynccontextmanager
    async def attend(self, principal: Principal) -> AsyncIterator[None]:
        """End what is done inside, also while it waits, as soon as the token is revoked, expires or is rotated away.

        Raises:
            UnauthenticatedError: that happened.
            ResourceExhaustedError: the token has too many of them open.
        """
        limit = asyncio.timeout_at(self._end_of(principal))
        stream = _Stream(principal, limit)
        if len(self._streams.get(principal.token_id, ())) >= self._streams_max:
            raise ResourceExhaustedError(
                f"the token {principal.name!r} has {self._streams_max:,} streams open already: close some, use another"
                " token, or raise [grpc] streams_per_token",
                reason="TOO_MANY_STREAMS",
                metadata={"limit": str(self._streams_max)},
                retry_after_s=5.0,
            )
        streams = self._streams.setdefault(principal.token_id, set())
        try:
            async with limit:
                streams.add(stream)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise UnauthenticatedError("the token has been revoked, has expired or was rotated") from None
        finally:
            streams.discard(stream)
            if not streams and self._streams.get(principal.token_id) is streams:
                del self._streams[principal.token_id]

    def _end_of(self, principal: Principal) -> float | None:
        """Answer when, by the loop's clock, what was begun with a secret must end; None: never, as it looks now."""
        now, loop_now = self._clock.now(), asyncio.get_running_loop().time()
        record = self._tokens[principal.token_id]
        if not self._is_live(record.id) or not _proves(record, principal.proof, now):
            return loop_now
        ends = [] if record.expires_at is None else [record.expires_at]
        if principal.proof != record.hash:
            ends.append(record.previous_until or 0)
        return loop_now + (min(ends) - now) / 1_000_000 if ends else None

    def _end_streams(self, token_id: str) -> None:
        """A token has changed: see when what was begun with it must end."""
        for stream in self._streams.get(token_id, ()):
            if not stream.limit.expired():
                stream.limit.reschedule(self._end_of(stream.principal))

    def reaches(self, token_id: str, namespace_no: int) -> bool:
        """Whether a token, alive or not, is one of all namespaces or of this one."""
        record = self._tokens.get(token_id)
        return record is not None and record.namespace_no in (None, namespace_no)

    def live_principal(self, token_id: str) -> Principal | None:
        """Answer who a token stands for, None when it is dead: what is done later in its name needs a live one."""
        record = self._tokens.get(token_id)
        if record is None or not self._is_live(token_id):
            return None
        return _principal(record, record.hash)

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
        about("token", token_id, namespace_no=namespace_no)
        row = (record.no, token_id, name, role.value, namespace_no, record.hash, record.created_at, expires_at)
        await self._store.journal.execute(lambda c: c.execute(QUERIES["insert_token"], row))
        self._tokens[token_id] = record
        return record

    def page(self, caller: Principal, *, before: int, limit: int, live_only: bool = False) -> Sequence[TokenRecord]:
        """Answer up to `limit` tokens with numbers below `before` (0: all), newest first."""
        found = [t for t in self._tokens.values() if self._manages(caller, t) and (not before or t.no < before)]
        found = [t for t in found if not live_only or self._is_live(t.id)]
        return sorted(found, key=lambda token: -token.no)[:limit]

    def _manages(self, caller: Principal, record: TokenRecord) -> bool:
        return caller.namespace_no is None or caller.namespace_no == record.namespace_no

    def _managed(self, caller: Principal, token_id: str) -> TokenRecord:
        record = self._tokens.get(token_id)
        if record is None or not self._manages(caller, record):
            raise NotFoundError(f"there is no token with the id {token_id!r}", metadata={"token": token_id})
        about("token", token_id, namespace_no=record.namespace_no)
        return record

    async def revoke(self, caller: Principal, token_id: str) -> TokenRecord:
        """End a token, and what is under way with it. Idempotent.

        Raises:
            NotFoundError: there is none, or not for this caller.
            FailedPreconditionError: it is the last administrator; nobody could make another.
        """
        async with self._changing:  # else the last two administrators could be revoked at once
            record = self._managed(caller, token_id)
            if record.revoked_at is not None:
                return record
            if record.role is Role.ADMIN and record.namespace_no is None and self._is_last_admin(record):
                raise FailedPreconditionError("this is the last administrator's token; create another one first")
            now = self._clock.now()
            await self._store.journal.execute(lambda c: _revoke(c, now, token_id))
            self._tokens[token_id] = replace(self._tokens[token_id], revoked_at=now)
            self._end_streams(token_id)
            return self._tokens[token_id]

    async def rotate(
        self, caller: Principal, token_id: str, *, grace_s: float, ttl_s: float | None, request_id: str
    ) -> tuple[TokenRecord, str]:
        """Replace a token's secret; answers the token and the whole new credential, which is not kept.

        A repetition with the same request id replaces the secret that the first call made, and nothing else.

        Raises:
            NotFoundError: there is none, or not for this caller.
            InvalidArgumentError: the grace or the ttl is out of bounds.
            FailedPreconditionError: it is revoked or has expired.
        """
        _check_rotation(grace_s, ttl_s)
        check_text("request_id", request_id, REQUEST_ID_MAX)
        async with self._changing:
            record = self._managed(caller, token_id)
            if not self._is_live(token_id):
                raise FailedPreconditionError(
                    f"token {token_id} is revoked or has expired; create another one", metadata={"token": token_id}
                )
            now = self._clock.now()
            credential = f"tfk_{token_id}_{_new_secret()}"
            fresh = replace(record, hash=_hash(credential), rotated_at=now)
            if not request_id or request_id != record.rotate_request:
                fresh = replace(
                    fresh,
                    previous_hash=record.hash if grace_s else None,
                    previous_until=now + round(grace_s * 1_000_000) if grace_s else None,
                    expires_at=record.expires_at if ttl_s is None else now + round(ttl_s * 1_000_000),
                    rotate_request=request_id,
                )
            row = (fresh.hash, fresh.previous_hash, fresh.previous_until, fresh.expires_at, now, request_id, token_id)
            await self._store.journal.execute(lambda c: c.execute(QUERIES["rotate_token"], row))
            self._tokens[token_id] = replace(fresh, last_used_at=self._tokens[token_id].last_used_at)
            self._end_streams(token_id)
            return self._tokens[token_id], credential

    def _is_last_admin(self, record: TokenRecord) -> bool:
        others = (token for token in self._tokens.values() if token.id != record.id)
        return not any(t.role is Role.ADMIN and t.namespace_no is None and self._is_live(t.id) for t in others)


def _revoke(connection: Connection, now: int, token_id: str) -> None:
    connection.execute(QUERIES["revoke_token"], (now, token_id))


def _check_rotation(grace_s: float, ttl_s: float | None) -> None:
    if not 0 <= grace_s <= GRACE_S_MAX:
        raise InvalidArgumentError("grace must be at most 30 days", violations=[Violation("grace", "range")])
    _check_ttl(ttl_s)


def _check_ttl(ttl_s: float | None) -> None:
    if ttl_s is not None and not 1 <= ttl_s <= 100 * 366 * 86_400:
        raise InvalidArgumentError("ttl must be between 1 s and 100 years", violations=[Violation("ttl", "range")])


def _check_token(name: str, ttl_s: float | None) -> None:
    if not name or len(name) > 63 or not name.isprintable():
        raise InvalidArgumentError(
            "name must have 1 to 63 printable characters", violations=[Violation("name", "length")]
        )
    _check_ttl(ttl_s)
