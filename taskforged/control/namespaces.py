"""Namespaces: what each is called, what it may use, and how many requests it may make.

They are few and asked for with every call, so all are held in memory, which is changed only after the commit.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskforged.clock import Clock
from taskforged.control.access import Access, Principal
from taskforged.control.buckets import Bucket
from taskforged.control.checks import invalid
from taskforged.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from taskforged.host.limits import Limits, NamespaceLimits
from taskforged.jsonvalue import load_stored, to_text
from taskforged.store.audit import about
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Row, Store

__all__ = [
    "COUNT_MAX",
    "NamespaceChange",
    "NamespaceRecord",
    "NamespaceView",
    "Namespaces",
    "RequestLimits",
    "counted",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABELS_MAX = 32
_LABEL_VALUE_MAX = 256
"""The same as labels of a workflow."""

_WEIGHT_MIN, _WEIGHT_MAX = 0.01, 1000.0

COUNT_MAX = 10_000_000
"""The largest limit that says anything."""

_RATE_MIN, _RATE_MAX = 0.001, 1_000_000.0
"""Requests a second; below the least, one would wait for hours and should be refused by its role instead."""

_NAMESPACES_MAX = 10_000
"""All are in memory."""

_CONTENT_MAX = 1000  # as the query counts
_KINDS = ("workflow", "run", "event", "token", "secret", "queue")


class NamespaceRecord(NamedTuple):
    """A row of `namespaces`. A limit of 0 means none."""

    no: int
    name: str
    created_at: int
    labels: Mapping[str, str]
    weight: float = 1.0
    running_steps: int = 0
    running_runs: int = 0
    pending_runs: int = 0
    requests_per_s: float = 0.0


class NamespaceView(NamedTuple):
    """A namespace to be shown, with what it uses right now."""

    record: NamespaceRecord
    running_steps: int
    running_runs: int
    pending_runs: int


@dataclass(frozen=True, slots=True)
class NamespaceChange:
    """What to set; None leaves a figure as it is. A label with an empty value is removed."""

    labels: Mapping[str, str] = field(default_factory=dict)
    replace_labels: bool = False
    weight: float | None = None
    running_steps: int | None = None
    running_runs: int | None = None
    pending_runs: int | None = None
    requests_per_s: float | None = None


class RequestLimits:
    """How many requests each namespace may make: token buckets that hold two seconds' worth.

    Unlike other limits they are not durable: after a start every bucket is full.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Create limits of nobody. `now` answers seconds that never run backwards or stand still."""
        self._now = now
        self._buckets: dict[int, Bucket] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no namespace has a limit, so that nothing need be counted."""
        return not self._buckets

    def set(self, namespace_no: int, rate: float) -> None:
        """Set the requests a second that a namespace may make; 0 means no limit. A new bucket is full."""
        known = self._buckets.get(namespace_no)
        if not rate:
            self._buckets.pop(namespace_no, None)
        elif known is None or known.rate != rate:
            self._buckets[namespace_no] = Bucket(rate, max(1.0, 2 * rate), self._now())

    def take(self, namespace_no: int) -> None:
        """Count a request.

        Raises:
            ResourceExhaustedError: the namespace has made too many; says when the next will do.
        """
        bucket = self._buckets.get(namespace_no)
        if bucket is None:
            return
        wait_s = bucket.take(self._now())
        if wait_s:
            raise ResourceExhaustedError(
                f"the namespace may make {bucket.rate:g} requests a second, and made more",
                reason="RATE_LIMITED",
                retry_after_s=wait_s,
                metadata={"requests_per_second": f"{bucket.rate:g}"},
            )


class Namespaces:
    """All namespaces."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        limits: Limits,
        requests: RequestLimits,
        running_steps: Callable[[int], int],
        running_runs: Callable[[int], int],
        pending_runs: Callable[[int], int],
    ) -> None:
        """Create the keeper; the last three answer what the namespace of a number uses right now."""
        self._store = store
        self._clock = clock
        self._access = access
        self._limits = limits
        self._running_steps = running_steps
        self._running_runs = running_runs
        self._pending_runs = pending_runs
        self._by_name: dict[str, NamespaceRecord] = {}
        self._changing = asyncio.Lock()  # so that memory follows the order of the commits
        self.requests = requests

    async def start(self) -> None:
        """Load all namespaces and put their limits in force."""
        for no, name, created_at, labels, *figures in await self._store.rows("all_namespaces"):
            self._remember(NamespaceRecord(no, name, created_at, load_stored(labels), *figures))

    def _remember(self, record: NamespaceRecord) -> None:
        self._by_name[record.name] = record
        self._access.know_namespace(record.no, record.name)
        limits = NamespaceLimits(record.weight, record.running_steps, record.running_runs, record.pending_runs)
        self._limits.set_namespace(record.no, limits)
        self.requests.set(record.no, record.requests_per_s)

    # --- looking -----------------------------------------------------------------------------------------------------

    def get(self, principal: Principal, name: str) -> NamespaceView:
        """Answer a namespace.

        Raises:
            NotFoundError: there is none of that name.
            PermissionDeniedError: the token is confined to another one.
        """
        if not name:
            raise invalid("name", "is required")
        self._access.enter(principal, name)
        return self._view(self._by_name[name])

    def seen_by(self, principal: Principal) -> Sequence[NamespaceRecord]:
        """Answer all namespaces that somebody may use, by name."""
        return sorted((one for one in self._by_name.values() if principal.sees(one.no)), key=lambda one: one.name)

    def page(self, principal: Principal, *, after: str, limit: int) -> Sequence[NamespaceView]:
        """Answer up to `limit` namespaces that the caller sees, whose names sort behind `after`."""
        found = [one for one in self._by_name.values() if one.name > after and principal.sees(one.no)]
        return [self._view(one) for one in sorted(found, key=lambda one: one.name)[:limit]]

    def _view(self, record: NamespaceRecord) -> NamespaceView:
        no = record.no
        return NamespaceView(record, self._running_steps(no), self._running_runs(no), self._pending_runs(no))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def set(self, principal: Principal, name: str, change: NamespaceChange) -> NamespaceView:
        """Create a namespace, or change what is given. Idempotent.

        Raises:
            InvalidArgumentError: the name, a label or a figure is out of bounds.
            PermissionDeniedError: the token is confined to a namespace: it may not lift its own limits.
        """
        _check_unconfined(principal)
        if not _NAME.fullmatch(name):
            raise invalid("name", f"must match {_NAME.pattern}")
        _check_change(change)
        async with self._changing:
            known = self._by_name.get(name)
            record = _changed(known or self._new(name), change)
            about(namespace_no=record.no)
            if record != known:
                row: Row = (record.no, name, record.created_at, to_text(dict(record.labels)), *record[4:])
                await self._store.journal.execute(lambda c: _save(c, row))
                self._remember(record)
        return self._view(record)

    def _new(self, name: str) -> NamespaceRecord:
        if len(self._by_name) >= _NAMESPACES_MAX:
            raise ResourceExhaustedError(f"there are {_NAMESPACES_MAX:,} namespaces already")
        return NamespaceRecord(self._store.next_no("namespaces"), name, self._clock.now(), {})

    async def delete(self, principal: Principal, name: str) -> None:
        """Remove an empty namespace; its name can be used again.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: it is `default`, or holds something.
            PermissionDeniedError: the token is confined to a namespace.
        """
        _check_unconfined(principal)
        if not name:
            raise invalid("name", "is required")
        async with self._changing:
            known = self._by_name.get(name)
            if known is None:
                raise NotFoundError(f"there is no namespace {name!r}", metadata={"namespace": name})
            about(namespace_no=known.no)
            if name == "default":
                raise FailedPreconditionError("the namespace 'default' cannot be deleted")
            now = self._clock.now()
            await self._store.journal.execute(lambda c: _delete(c, known, now))
            del self._by_name[name]
            self._access.forget_namespace(known.no, _tombstone(known))
            self._limits.forget_namespace(known.no)
            self.requests.set(known.no, 0)


def _tombstone(record: NamespaceRecord) -> str:
    return f"{record.name}~{record.no}"


def _save(connection: Connection, row: Row) -> None:
    connection.execute(QUERIES["save_namespace"], row)


def _delete(connection: Connection, record: NamespaceRecord, now: int) -> None:
    content = connection.execute(QUERIES["namespace_content"], {"no": record.no, "now": now}).fetchone()
    found = counted(_KINDS, content)
    if found:
        raise FailedPreconditionError(
            f"namespace {record.name!r} still has {found}", metadata={"namespace": record.name, "content": found}
        )
    connection.execute(QUERIES["delete_namespace"], (_tombstone(record), record.no, record.name))


def counted(kinds: Sequence[str], counts: Sequence[int]) -> str:
    """Answer `2 workflows and 1 run`; empty when all counts are 0. Counts end at 1,000."""
    parts = [
        f"{count:,}{' or more' * (count >= _CONTENT_MAX)} {kind}{'s' * (count != 1)}"
        for kind, count in zip(kinds, counts, strict=True)
        if count
    ]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _check_unconfined(principal: Principal) -> None:
    if principal.namespace_no is not None:
        raise PermissionDeniedError("a token that is confined to a namespace may not change namespaces")


def _check_change(change: NamespaceChange) -> None:
    for key, value in change.labels.items():
        if not _LABEL.fullmatch(key):
            raise invalid(f"labels[{key[:70]!r}]", "must have a name of letters, digits, dot, _, / and -, at most 63")
        if len(value) > _LABEL_VALUE_MAX or not value.isprintable():
            raise invalid(f"labels[{key!r}]", f"must have at most {_LABEL_VALUE_MAX} printable characters")
    if change.weight is not None and not _WEIGHT_MIN <= change.weight <= _WEIGHT_MAX:
        raise invalid("weight", f"must be from {_WEIGHT_MIN:g} to {_WEIGHT_MAX:,g}")
    for name in ("running_steps", "running_runs", "pending_runs"):
        count = getattr(change, name)
        if count is not None and not 0 <= count <= COUNT_MAX:
            raise invalid(f"{name}_max", f"must be from 0 to {COUNT_MAX:,}")
    rate = change.requests_per_s
    if rate is not None and rate != 0 and not _RATE_MIN <= rate <= _RATE_MAX:
        raise invalid("requests_per_second", f"must be 0, or from {_RATE_MIN:g} to {_RATE_MAX:,.0f}")


def _changed(record: NamespaceRecord, change: NamespaceChange) -> NamespaceRecord:
    before = {} if change.replace_labels else record.labels
    labels = {key: value for key, value in {**before, **change.labels}.items() if value}
    if len(labels) > _LABELS_MAX:
        raise invalid("labels", f"must be at most {_LABELS_MAX}")
    wanted = {name: getattr(change, name) for name in NamespaceRecord._fields[4:]}
    return record._replace(labels=labels, **{name: value for name, value in wanted.items() if value is not None})
