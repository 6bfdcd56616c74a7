"""The bounded pool of executors and the order in which queued commands get a slot.

A slot is an entry in `_slots`, owned by one command; it is taken before the start is recorded and given back when the
result is taken in, in one place each. The rows are the truth: a claimed command is the one row of a slot, a queued one
the one row of a place in line.

Commands wait in lanes: one per namespace, queue and priority of the run. A lane can go when its queue is not paused
and neither queue nor namespace is at its limit. Of the lanes that can go, the order is

1. the queue's priority, then the run's priority (0 to 9, more is sooner);
2. fair share between the namespaces of that rank, by weight (`FairShare`);
3. age: run number, then sequence. What has begun is finished before new work is begun.

Strict priority can starve: so every 16th hand-out ignores priorities, and only fair share and age decide. Whatever
stands in line is therefore the oldest of its namespace one day, and goes.

Shares are kept per rank. On one account for all of them, hand-outs of a high rank would wipe out again and again what
the namespaces of a lower one are owed, and the oldest of those would always win.

Memory is bounded: of each lane only a window of the oldest commands is held, refilled from the outbox's index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple, TypeAlias

import structlog

from taskforged.host.limits import PRIORITY_MAX, FairShare, Limits

__all__ = ["GUARD_EVERY", "WINDOW", "CommandKey", "Dispatcher", "Lane"]

CommandKey: TypeAlias = tuple[int, int]
"""Run number and sequence: what identifies a command for ever."""

_log = structlog.get_logger(__name__)

GUARD_EVERY = 16
"""One hand-out in so many ignores priorities: 6 % of them for those that would otherwise starve."""

REFILL_RETRY_S = 1.0

WINDOW = 256
"""Commands that one refill of a lane reads; at most twice as many are held. One indexed query each, so plenty."""

_BEGINNING: CommandKey = (-1, -1)
_END: CommandKey = (1 << 63, 0)
_UNLIMITED = 1 << 62
_SWEEP_FROM = 256


class Lane(NamedTuple):
    """Where a command waits: its namespace, its queue and the priority of its run."""

    namespace_no: int
    queue: str
    priority: int


class _Namespace:
    """Slots of one namespace; at `limit` it can take no more."""

    __slots__ = ("limit", "no", "running", "weight")

    def __init__(self, no: int) -> None:
        self.no = no
        self.running = 0
        self.limit = _UNLIMITED
        self.weight = 1.0

    def read(self, limits: Limits) -> bool:
        """Take over the limits; answers whether the weight has changed."""
        mine, old = limits.namespace(self.no), self.weight
        self.limit = mine.running_steps or _UNLIMITED
        self.weight = mine.weight
        return old != mine.weight


class _Queue:
    """Slots of one queue; at `limit`, which is 0 while it is paused, it can take no more."""

    __slots__ = ("limit", "name", "namespace", "rank", "running")

    def __init__(self, namespace: _Namespace, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.running = 0
        self.limit = _UNLIMITED
        self.rank = 0

    def read(self, limits: Limits) -> None:
        mine = limits.queue(self.namespace.no, self.name)
        self.limit = 0 if mine.paused else mine.running_steps or _UNLIMITED
        self.rank = mine.priority * (PRIORITY_MAX + 1)

    @property
    def has_room(self) -> bool:
        return self.running < self.limit and self.namespace.running < self.namespace.limit


class _Line:
    """The commands that wait in one lane.

    All up to `cursor` are in `keys`, and what is beyond it is only on disk; `_END` says that nothing is. `heap` orders
    `keys` and may hold some that are no longer wanted, but never as its head.
    """

    __slots__ = (
        "begun",
        "beyond",
        "cursor",
        "cut",
        "gone",
        "heap",
        "keys",
        "lane",
        "late",
        "priority",
        "queue",
        "refilling",
    )

    def __init__(self, lane: Lane, queue: _Queue) -> None:
        self.lane = lane
        self.priority = lane.priority
        self.queue = queue
        self.keys: set[CommandKey] = set()
        self.heap: list[CommandKey] = []
        self.cursor = _END
        self.beyond = 0  # how many are only on disk: told to people, decided by `cursor`
        self.refilling = False
        self.begun: frozenset[CommandKey] = frozenset()  # had a slot when the refill began
        self.late: set[CommandKey] = set()  # put beyond the cursor while a refill is under way: did it see them?
        self.cut = _END  # the first that did not fit into `late`
        self.gone: set[CommandKey] = set()  # withdrawn beyond the cursor meanwhile: it may have seen them

    @property
    def is_empty(self) -> bool:
        return not self.keys and self.cursor is _END and not self.refilling

    def rewind(self, count: int) -> None:
        """Forget what is in memory: so many commands are on disk."""
        self.keys, self.heap = set(), []
        self.cursor, self.beyond = _BEGINNING, count

    def put(self, key: CommandKey) -> None:
        if key <= self.cursor:
            if key not in self.keys:
                self._hold(key)
            elif self.cursor is not _END:
                self.beyond += 1  # read from disk before we were told of it
            return
        self.beyond += 1
        if self.refilling:
            if key < self.cut:
                self.late.add(key)
            if len(self.late) > 2 * WINDOW:
                late = sorted(self.late)
                self.late, self.cut = set(late[:WINDOW]), late[WINDOW]

    def _hold(self, key: CommandKey) -> None:
        self.keys.add(key)
        heappush(self.heap, key)
        if len(self.keys) > 2 * WINDOW:
            kept = sorted(self.keys)
            self.beyond += len(kept) - WINDOW
            del kept[WINDOW:]
            self.keys, self.heap, self.cursor = set(kept), kept, kept[-1]

    def pop(self) -> CommandKey:
        key = heappop(self.heap)
        self.keys.discard(key)
        self._clean()
        return key

    def remove(self, key: CommandKey) -> None:
        if key in self.keys:
            self.keys.discard(key)
            self._clean()
        elif key > self.cursor:
            self.beyond = max(0, self.beyond - 1)
            if self.refilling:
                self.late.discard(key)
                self.gone.add(key)

    def _clean(self) -> None:
        heap, keys = self.heap, self.keys
        while heap and heap[0] not in keys:
            heappop(heap)
        if len(heap) > 2 * WINDOW + len(keys):
            self.heap = sorted(keys)

    def start_refill(self, slots: Iterable[CommandKey]) -> CommandKey:
        """What has a slot now may still be queued on disk, and be done when the answer comes."""
        self.refilling = True
        self.late, self.cut, self.gone = set(), _END, set()
        self.begun = frozenset(slots)
        return self.cursor

    def end_refill(self, after: CommandKey, read: list[CommandKey]) -> None:
        """Take in what was read beyond `after`, unless too much has changed meanwhile."""
        late, cut, gone, begun = self.late, self.cut, self.gone, self.begun
        self.refilling, self.late, self.gone, self.begun = False, set(), set(), frozenset()
        if self.cursor != after or len(gone) > 4 * WINDOW:
            return
        end = read[-1] if len(read) >= WINDOW else _END
        if cut <= end and cut is not _END:
            end = (cut[0], cut[1] - 1)
        fresh = set(read).difference(gone, begun).union(late)
        fresh = {key for key in fresh if key <= end}
        self.cursor = end
        self.beyond = 0 if end is _END else max(0, self.beyond - len(fresh))
        for key in sorted(fresh):
            if key <= self.cursor:  # it moves back when too many are held
                self._hold(key)
            else:
                self.beyond += 1


class Dispatcher:
    """Hands slots to queued commands."""

    def __init__(
        self,
        *,
        pool_size: int,
        limits: Limits,
        load_queued: Callable[[Lane, CommandKey, int], Awaitable[list[CommandKey]]],
        claim: Callable[[CommandKey], None],
    ) -> None:
        """Create a dispatcher.

        Args:
            pool_size: executors at work at once.
            limits: what namespaces and queues may use; a change takes effect at once, and takes no slot away.
            load_queued: answers up to so many queued commands of a lane after a key, in order, from the outbox.
            claim: asked to start a command whose slot has been taken; it answers later through `release`.
        """
        self.pool_size = pool_size
        self._limits = limits
        self._load_queued = load_queued
        self._claim = claim
        self._slots: dict[CommandKey, _Queue] = {}
        self._lines: dict[Lane, _Line] = {}
        self._queues: dict[tuple[int, str], _Queue] = {}
        self._namespaces: dict[int, _Namespace] = {}
        self._shares = [FairShare() for _ in range((PRIORITY_MAX + 1) ** 2)]
        self._guard = FairShare()
        self._turn = 0
        self._sweep_at = _SWEEP_FROM
        self._refills: set[asyncio.Task[None]] = set()
        self._open = False
        self._pumping = False
        limits.subscribe(self._on_limits)

    # --- life --------------------------------------------------------------------------------------------------------

    def restore(self, lanes: Iterable[tuple[Lane, int]]) -> None:
        """Learn, before `open`, which lanes have how many commands on disk. What was enqueued before is among them."""
        for lane, count in lanes:
            self._line(lane).rewind(count)

    def open(self) -> None:
        """Begin to hand out slots."""
        self._open = True
        self._pump()

    def close(self) -> None:
        """Hand out no more slots. What has one keeps it."""
        self._open = False

    # --- commands ----------------------------------------------------------------------------------------------------

    def try_take(self, key: CommandKey, lane: Lane) -> bool:
        """Take a slot for a command that is about to be created, if one is free and nobody waits who goes first."""
        if not self._open or len(self._slots) >= self.pool_size:
            return False
        queue = self._queue(lane)
        if not queue.has_room or (self._lines and self._is_preceded(queue)):
            return False
        self._take(key, queue)
        return True

    def enqueue(self, key: CommandKey, lane: Lane) -> None:
        """A command has been put into the outbox as queued, or its claim has failed."""
        self._line(lane).put(key)
        self._pump()

    def withdraw(self, key: CommandKey, lane: Lane) -> None:
        """A queued command is no longer wanted, and its row no longer queued. One that has a slot keeps it."""
        line = self._lines.get(lane)
        if line is not None:
            line.remove(key)
            self._forget_if_empty(line)

    def release(self, key: CommandKey) -> None:
        """A command no longer needs its slot, or never got one. Idempotent."""
        queue = self._slots.pop(key, None)
        if queue is not None:
            queue.running -= 1
            queue.namespace.running -= 1
            self._pump()

    # --- questions ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._slots)

    def waiting(self, lane: Lane) -> int:
        """How many commands wait in a lane."""
        line = self._lines.get(lane)
        return 0 if line is None else len(line.keys) + line.beyond

    def lanes(self) -> list[Lane]:
        """The lanes in which commands wait."""
        return list(self._lines)

    def load(self) -> list[tuple[int, str, int, int]]:
        """Answer the queues with work: namespace, name, how many commands have a slot, how many wait for one."""
        waiting: dict[tuple[int, str], int] = {}
        for line in self._lines.values():
            place = line.lane[:2]
            waiting[place] = waiting.get(place, 0) + len(line.keys) + line.beyond
        return [(*place, queue.running, waiting.get(place, 0)) for place, queue in self._queues.items()]

    def held_by(self, namespace_no: int | None = None, queue: str | None = None) -> list[CommandKey]:
        """Who has a slot, oldest first: of all, of a namespace, of a queue. Never more than the pool has."""
        return sorted(
            key
            for key, held in self._slots.items()
            if namespace_no in (None, held.namespace.no) and queue in (None, held.name)
        )

    def position(self, key: CommandKey) -> int | None:
        """How many of its lane go before a command, if it is near enough to the front to be in memory."""
        for line in self._lines.values():
            if key in line.keys:
                return sum(other < key for other in line.keys)
        return None

    # --- hand-out ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        if not self._open or self._pumping:
            return  # a claim may be answered within itself: then the loop below goes on, and the stack does not grow
        self._pumping = True
        try:
            while self._open and self._lines and len(self._slots) < self.pool_size:
                line = self._next()
                if line is None:
                    return
                self._hand_out(line)
        finally:
            self._pumping = False

    def _hand_out(self, line: _Line) -> None:
        key = line.pop()
        if line.cursor is not _END and len(line.keys) < WINDOW // 4:
            self._refill(line)  # ahead of time, so that the pool need not wait for it
        self._forget_if_empty(line)
        if key not in self._slots:
            self._take(key, line.queue)
            self._claim(key)

    def _next(self) -> _Line | None:
        """Choose the lane whose oldest command goes next. Lanes that could go and hold nothing are refilled."""
        is_guard = self._turn % GUARD_EVERY == GUARD_EVERY - 1
        top, firsts = -1, dict[int, _Line]()
        for line in self._lines.values():
            queue = line.queue
            namespace = queue.namespace
            if queue.running >= queue.limit or namespace.running >= namespace.limit:
                continue
            if not line.heap:
                self._refill(line)
                continue
            rank = 0 if is_guard else queue.rank + line.priority
            if rank > top:
                top, firsts = rank, {namespace.no: line}
            elif rank == top:
                other = firsts.get(namespace.no)
                if other is None or line.heap[0] < other.heap[0]:
                    firsts[namespace.no] = line
        if not firsts:
            return None
        self._turn += 1
        return self._fairest(self._guard if is_guard else self._shares[top], firsts)

    def _fairest(self, share: FairShare, firsts: dict[int, _Line]) -> _Line:
        if len(firsts) == 1:
            return next(iter(firsts.values()))  # no competition, no account of it
        pass_of = share.pass_of
        _, _, no = min([(pass_of(no), line.heap[0], no) for no, line in firsts.items()])
        share.charge(no, firsts[no].queue.namespace.weight)
        return firsts[no]

    def _is_preceded(self, queue: _Queue) -> bool:
        """Whether somebody waits who goes before a newcomer to a queue that has room.

        While the pool has room, whoever waits is held up by a limit or a pause of its own, and must hold up nobody
        else. Two can still go: commands in the middle of a hand-out, and those that are being read from disk; the
        latter only hold up what would use up the same limit.
        """
        for line in self._lines.values():
            if line.queue.has_room:
                shares_limit = line.queue is queue or (
                    line.queue.namespace is queue.namespace and queue.namespace.limit != _UNLIMITED
                )
                if line.heap or shares_limit:
                    return True
        return False

    def _take(self, key: CommandKey, queue: _Queue) -> None:
        if key in self._slots:
            return
        self._slots[key] = queue
        queue.running += 1
        queue.namespace.running += 1

    # --- lanes -------------------------------------------------------------------------------------------------------

    def _line(self, lane: Lane) -> _Line:
        line = self._lines.get(lane)
        if line is None:
            line = self._lines[lane] = _Line(lane, self._queue(lane))
        return line

    def _forget_if_empty(self, line: _Line) -> None:
        if line.is_empty:
            self._lines.pop(line.lane, None)

    def _queue(self, lane: Lane) -> _Queue:
        queue = self._queues.get(lane[:2])
        if queue is None:
            self._sweep()
            namespace = self._namespaces.get(lane.namespace_no)
            if namespace is None:
                namespace = self._namespaces[lane.namespace_no] = _Namespace(lane.namespace_no)
                namespace.read(self._limits)
            queue = self._queues[lane[:2]] = _Queue(namespace, lane.queue)
            queue.read(self._limits)
        return queue

    def _sweep(self) -> None:
        """Forget queues and namespaces that nobody uses, now and then: each could be a name of the past."""
        if len(self._queues) < self._sweep_at:
            return
        used = [*self._slots.values(), *(line.queue for line in self._lines.values())]
        self._queues = {(queue.namespace.no, queue.name): queue for queue in used}
        self._namespaces = {queue.namespace.no: queue.namespace for queue in used}
        self._sweep_at = 2 * len(self._queues) + _SWEEP_FROM

    def _on_limits(self) -> None:
        for namespace in self._namespaces.values():
            if namespace.read(self._limits):
                for share in (self._guard, *self._shares):
                    share.forget(namespace.no)
        for queue in self._queues.values():
            queue.read(self._limits)
        self._pump()

    # --- refill ------------------------------------------------------------------------------------------------------

    def _refill(self, line: _Line) -> None:
        if line.refilling or line.cursor is _END:
            return
        load = self._load(line, line.start_refill(self._slots))
        task = asyncio.get_running_loop().create_task(load, name=f"dispatcher.refill {line.lane}")
        self._refills.add(task)
        task.add_done_callback(self._refills.discard)

    async def _load(self, line: _Line, after: CommandKey) -> None:
        try:
            read = await self._load_queued(line.lane, after, WINDOW)
        except Exception as error:  # noqa: BLE001  task boundary: a failed read must not stop the lane for ever
            _log.error("dispatcher.refill_failed", lane=line.lane, error=str(error))
            asyncio.get_running_loop().call_later(REFILL_RETRY_S, self._load_again, line)
            return
        line.end_refill(after, read)
        self._forget_if_empty(line)
        self._pump()

    def _load_again(self, line: _Line) -> None:
        line.refilling = False
        if self._open:
            self._refill(line)
