"""Queues: the lanes in which steps wait for executors, and what each may use.

All are held in memory, which is changed only after the commit. `default` exists in every namespace without a row; it
gets one when somebody sets it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taskforged.clock import Clock
from taskforged.control.checks import invalid
from taskforged.control.namespaces import COUNT_MAX, counted
from taskforged.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from taskforged.host.limits import PRIORITY_MAX, Limits, QueueLimits
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["QueueChange", "QueueRecord", "QueueView", "Queues"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DEFAULT = "default"

_QUEUES_MAX = 1000
"""Of one namespace: all are in memory, and the dispatcher looks at each that has work."""

_KINDS = ("waiting step", "executed step", "open run")


class QueueRecord(NamedTuple):
    """A row of `queues`. `created_at` is 0 for `default` as long as nobody has set it."""

    namespace_no: int
    name: str
    priority: int = QueueLimits().priority
    running_steps: int = 0
    paused: bool = False
    created_at: int = 0
    updated_at: int = 0


class QueueView(NamedTuple):
    """A queue to be shown, with how many steps are in it right now."""

    record: QueueRecord
    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class QueueChange:
    """What to set; None leaves it as it is."""

    priority: int | None = None
    running_steps: int | None = None
    paused: bool | None = None


class Queues:
    """The queues of all namespaces."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        limits: Limits,
        waiting: Callable[[int, str], int],
        running: Callable[[int, str], int],
    ) -> None:
        """Create the keeper; the last two answer how many steps of a namespace's queue wait and are executed."""
        self._store = store
        self._clock = clock
        self._limits = limits
        self._waiting = waiting
        self._running = running
        self._known: dict[tuple[int, str], QueueRecord] = {}
        self._changing = asyncio.Lock()  # so that memory follows the order of the commits

    async def start(self) -> None:
        """Load all queues and put their limits in force."""
        for namespace_no, name, priority, running_steps, paused, *times in await self._store.rows("all_queues"):
            self._remember(QueueRecord(namespace_no, name, priority, running_steps, bool(paused), *times))

    def _remember(self, record: QueueRecord) -> None:
        self._known[record.namespace_no, record.name] = record
        limits = QueueLimits(record.running_steps, record.priority, record.paused)
        self._limits.set_queue(record.namespace_no, record.name, limits)

    # --- looking -----------------------------------------------------------------------------------------------------

    def exists(self, namespace_no: int, name: str) -> bool:
        """Whether a definition or a run may name this queue."""
        return name == _DEFAULT or (namespace_no, name) in self._known

    def get(self, namespace_no: int, name: str) -> QueueView:
        """Answer a queue.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._view(self._find(namespace_no, name))

    def page(self, namespace_no: int, *, after: str, limit: int) -> Sequence[QueueView]:
        """Answer up to `limit` queues whose names sort behind `after`."""
        names = {name for number, name in self._known if number == namespace_no} | {_DEFAULT}
        wanted = sorted(name for name in names if name > after)
        return [self.get(namespace_no, name) for name in wanted[:limit]]

    def _find(self, namespace_no: int, name: str) -> QueueRecord:
        if not name:
            raise invalid("name", "is required")
        known = self._known.get((namespace_no, name))
        if known is not None:
            return known
        if name == _DEFAULT:
            return QueueRecord(namespace_no, name)
        raise NotFoundError(
            f"there is no queue {name!r}; `taskforgectl queue list` shows what there is", metadata={"queue": name}
        )

    def _view(self, record: QueueRecord) -> QueueView:
        key = (record.namespace_no, record.name)
        return QueueView(record, self._waiting(*key), self._running(*key))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def set(self, namespace_no: int, name: str, change: QueueChange) -> QueueView:
        """Create a queue, or change what is given. Idempotent.

        Raises:
            InvalidArgumentError: the name or a figure is out of bounds.
        """
        _check(name, change)
        async with self._changing:
            known = self._known.get((namespace_no, name))
            record = _changed(known or self._new(namespace_no, name), change)
            if record != known:
                record = record._replace(updated_at=self._clock.now())
                await self._store.journal.execute(lambda c: _save(c, record))
                self._remember(record)
        return self._view(record)

    def _new(self, namespace_no: int, name: str) -> QueueRecord:
        if sum(number == namespace_no for number, _ in self._known) >= _QUEUES_MAX:
            raise ResourceExhaustedError(f"the namespace has {_QUEUES_MAX:,} queues already")
        return QueueRecord(namespace_no, name, created_at=self._clock.now())

    async def delete(self, namespace_no: int, name: str) -> None:
        """Remove a queue and its limits.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: it is `default`, or steps or open runs are in it.
        """
        async with self._changing:
            self._find(namespace_no, name)
            if name == _DEFAULT:
                raise FailedPreconditionError("the queue 'default' cannot be deleted; set it to what it should be")
            await self._store.journal.execute(lambda c: _delete(c, namespace_no, name))
            del self._known[namespace_no, name]
            self._limits.set_queue(namespace_no, name, QueueLimits())


def _save(connection: Connection, record: QueueRecord) -> None:
    connection.execute(QUERIES["save_queue"], record)


def _delete(connection: Connection, namespace_no: int, name: str) -> None:
    content = connection.execute(QUERIES["queue_content"], {"no": namespace_no, "queue": name}).fetchone()
    found = counted(_KINDS, content)
    if found:
        raise FailedPreconditionError(
            f"queue {name!r} still has {found}; wait until they have ended, or cancel the runs",
            metadata={"queue": name, "content": found},
        )
    connection.execute(QUERIES["delete_queue"], (namespace_no, name))


def _check(name: str, change: QueueChange) -> None:
    if not _NAME.fullmatch(name):
        raise invalid("name", f"must match {_NAME.pattern}")
    if change.priority is not None and not 0 <= change.priority <= PRIORITY_MAX:
        raise invalid("priority", f"must be from 0 to {PRIORITY_MAX}")
    if change.running_steps is not None and not 0 <= change.running_steps <= COUNT_MAX:
        raise invalid("running_steps_max", f"must be from 0 to {COUNT_MAX:,}")


def _changed(record: QueueRecord, change: QueueChange) -> QueueRecord:
    return record._replace(
        priority=record.priority if change.priority is None else change.priority,
        running_steps=record.running_steps if change.running_steps is None else change.running_steps,
        paused=record.paused if change.paused is None else change.paused,
    )
