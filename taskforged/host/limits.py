"""What namespaces and queues may use: one live table, read by the dispatcher and by admission, and the fair share.

The table holds only what differs from the defaults. Who changes it tells all readers at once, so a limit that is
raised takes effect before the call returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["PRIORITY_MAX", "WEIGHT_MAX", "WEIGHT_MIN", "FairShare", "Limits", "NamespaceLimits", "QueueLimits"]

PRIORITY_MAX = 9
"""Priorities are 0 to 9, more is sooner: as in AMQP, and enough for people to agree on what a figure means."""

WEIGHT_MIN = 0.001
WEIGHT_MAX = 1000.0
"""Beyond these a share is either nothing or everything, and the sums of `FairShare` would lose their precision."""

_SWEEP_FROM = 64


class NamespaceLimits(NamedTuple):
    """What one namespace may use. In every count 0 means no limit."""

    weight: float = 1.0
    running_steps: int = 0
    running_runs: int = 0
    pending_runs: int = 0


class QueueLimits(NamedTuple):
    """What one queue of a namespace may use. 0 running steps means no limit; a paused queue starts nothing."""

    running_steps: int = 0
    priority: int = 5
    paused: bool = False


_NAMESPACE = NamespaceLimits()
_QUEUE = QueueLimits()


class Limits:
    """The live table of limits."""

    def __init__(self, *, pending_runs: int = 0) -> None:
        """Create a table of defaults; `pending_runs` is the limit of the whole daemon, 0 means none."""
        self._pending_runs = _count("pending_runs", pending_runs)
        self._namespaces: dict[int, NamespaceLimits] = {}
        self._queues: dict[tuple[int, str], QueueLimits] = {}
        self._subscribers: list[Callable[[], None]] = []

    @property
    def pending_runs(self) -> int:
        """How many runs of all namespaces may be pending; 0 means no limit."""
        return self._pending_runs

    def namespace(self, namespace_no: int) -> NamespaceLimits:
        """Answer the limits of a namespace, known or not."""
        return self._namespaces.get(namespace_no, _NAMESPACE)

    def queue(self, namespace_no: int, queue: str) -> QueueLimits:
        """Answer the limits of a queue, known or not."""
        return self._queues.get((namespace_no, queue), _QUEUE)

    def set_namespace(self, namespace_no: int, limits: NamespaceLimits) -> None:
        """Replace the limits of a namespace.

        Raises:
            ValueError: a figure is out of range; nothing has changed.
        """
        if not WEIGHT_MIN <= limits.weight <= WEIGHT_MAX:
            raise ValueError(f"weight must be from {WEIGHT_MIN} to {WEIGHT_MAX}, not {limits.weight}")
        _count("running_steps", limits.running_steps)
        _count("running_runs", limits.running_runs)
        _count("pending_runs", limits.pending_runs)
        if limits == self.namespace(namespace_no):
            return
        if limits == _NAMESPACE:
            del self._namespaces[namespace_no]
        else:
            self._namespaces[namespace_no] = limits
        self._notify()

    def set_queue(self, namespace_no: int, queue: str, limits: QueueLimits) -> None:
        """Replace the limits of a queue.

        Raises:
            ValueError: a figure is out of range; nothing has changed.
        """
        _count("running_steps", limits.running_steps)
        if not 0 <= limits.priority <= PRIORITY_MAX:
            raise ValueError(f"priority must be from 0 to {PRIORITY_MAX}, not {limits.priority}")
        if limits == self.queue(namespace_no, queue):
            return
        if limits == _QUEUE:
            del self._queues[namespace_no, queue]
        else:
            self._queues[namespace_no, queue] = limits
        self._notify()

    def forget_namespace(self, namespace_no: int) -> None:
        """A namespace was deleted: it and its queues have the defaults again."""
        self._namespaces.pop(namespace_no, None)
        for key in [key for key in self._queues if key[0] == namespace_no]:
            del self._queues[key]
        self._notify()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back after every change, before the setter returns."""
        self._subscribers.append(callback)

    def _notify(self) -> None:
        for callback in self._subscribers:
            callback()


class FairShare:
    """Stride scheduling (Waldspurger & Weihl, 1995): who has the least pass goes, and pays 1 / weight for it.

    The global pass is the pass of the one that went last, before it paid. Nobody's pass counts as less than that, so
    one that had nothing to do, or could not go, starts where the others are: it has saved nothing up, and owes at most
    one turn. Among those who compete without a break the floor changes nothing, since the one with the least pass goes.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._passes: dict[int, float] = {}
        self._sweep_at = _SWEEP_FROM

    def pass_of(self, member: int) -> float:
        """Answer where a member stands; the least goes first."""
        own = self._passes.get(member, 0.0)
        return own if own > self._now else self._now  # noqa: FURB136  twice as fast as max, and asked of everybody

    def charge(self, member: int, weight: float) -> None:
        """A member goes. It must be the one with the least pass of all that compete."""
        self._now = self.pass_of(member)
        self._passes[member] = self._now + 1.0 / weight
        if len(self._passes) > self._sweep_at:  # who stands at the floor is as good as unknown
            self._passes = {one: at for one, at in self._passes.items() if at > self._now}
            self._sweep_at = 2 * len(self._passes) + _SWEEP_FROM

    def forget(self, member: int) -> None:
        """A member's weight has changed: what it paid by the old one is void."""
        self._passes.pop(member, None)


def _count(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value}")
    return value
