"""Which pending runs may start, and in what order.

A run slot is an entry in `_admitted`, owned by one run from `admit` (or `try_admit`) until `free`. The rows are the
truth: an admitted open run is the one row of a slot, a pending run the one row of a place in line.

Two limits hold: the namespace's `running_runs`, and that of the run's concurrency group. A run that rides on its
parent's slot is exempt from the first. Each namespace has two lines, one of runs that need a namespace slot and one of
the exempt ones: an exempt run must never stand behind one that waits for the very slot of its parent.

Of a group only the first in line can be next, so a group shows at most one run per line of its namespace, and only
while it has room; all others are parked with the group. A full group thus holds up nobody else, and each slot that it
gets back moves one run forward. Within a group nobody overtakes: a run may carry a smaller limit than the one behind
it, when the definition has changed between them.

The order is the run's priority, then fair share between the namespaces, then age. Nothing is shared between namespaces
here, so the fair share only shows when several can go at the same moment: after a start, or when limits are raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

from taskforged.errors import ResourceExhaustedError
from taskforged.host.limits import PRIORITY_MAX, FairShare, Limits

__all__ = ["HOLDERS_MAX", "PENDING_RUNS", "RETRY_AFTER_S", "Admission", "Blocker", "Ticket"]

HOLDERS_MAX = 20
"""Holders that an explanation names: more than a person reads."""

RETRY_AFTER_S = 5.0
"""What a caller is told who meets a full line. Nobody knows better: it depends on how long others run."""

PENDING_RUNS = "PENDING_RUNS"
"""The reason of the error for a full line."""

_NO_MASK = (1 << 60) - 1
_UNLIMITED = 1 << 62
_SLACK = 64
_SWEEP_FROM = 256


class Ticket(NamedTuple):
    """What admission needs to know of a run.

    Attributes:
        no: the run's number, its age.
        namespace_no: whose it is.
        priority: 0 to 9, more is sooner.
        group: its concurrency group within the namespace; empty: none.
        limit: how many of the group may run; 0: no limit.
        exempt: it rides on its parent's slot, so the namespace's limit does not count it.
    """

    no: int
    namespace_no: int
    priority: int
    group: str = ""
    limit: int = 0
    exempt: bool = False


class Blocker(NamedTuple):
    """What a pending run waits for.

    Attributes:
        kind: `group`, `namespace`, or `none`: nothing is in its way, it is about to be admitted.
        limit: the limit that is reached; 0 with `none`.
        holders: who holds the slots that it waits for, oldest first, at most HOLDERS_MAX.
        position: how many wait in front of it for the same.
    """

    kind: Literal["group", "namespace", "none"]
    limit: int
    holders: list[int]
    position: int


def _place(ticket: Ticket) -> int:
    """Priority and number in one integer: a heap of integers is a third of the size of one of tuples, and faster."""
    return (PRIORITY_MAX - ticket.priority) << 60 | ticket.no


class _Group:
    """One concurrency group: who runs, and who waits in each of the two lines (not exempt, exempt)."""

    __slots__ = ("lines", "name", "running", "shown", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running: set[int] | None = None
        self.waiting = 0
        self.lines: list[list[int] | None] = [None, None]  # like `running` made when needed: there may be very many
        self.shown: list[int | None] = [None, None]

    def room(self, limit: int) -> bool:
        return not limit or self.running is None or len(self.running) < limit


class _Namespace:
    """One namespace: how many run, and the places of those that could be next."""

    __slots__ = ("groups", "limit", "lines", "no", "running", "waiting", "weight")

    def __init__(self, no: int) -> None:
        self.no = no
        self.running = 0
        self.waiting = 0
        self.limit = _UNLIMITED
        self.weight = 1.0
        self.groups: dict[str, _Group] = {}
        self.lines: tuple[list[int], list[int]] = ([], [])

    def read(self, limits: Limits) -> bool:
        """Take over the limits; answers whether the weight has changed."""
        mine, old = limits.namespace(self.no), self.weight
        self.limit = mine.running_runs or _UNLIMITED
        self.weight = mine.weight
        return old != mine.weight

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting and not self.groups


class Admission:
    """Gives run slots to runs."""

    def __init__(self, *, limits: Limits, admit: Callable[[int], None]) -> None:
        """Create an admission.

        Args:
            limits: what namespaces may use; a change takes effect at once, and takes no slot away.
            admit: called with the number of a pending run that has got its slot, which counts from then on.
        """
        self._limits = limits
        self._admit = admit
        self._admitted: dict[int, Ticket] = {}
        self._pending: dict[int, Ticket] = {}
        self._namespaces: dict[int, _Namespace] = {}
        self._shares = [FairShare() for _ in range(PRIORITY_MAX + 1)]
        self._changed: set[_Namespace] = set()
        self._sweep_at = _SWEEP_FROM
        self._open = False
        self._pumping = False
        limits.subscribe(self._on_limits)

    # --- life --------------------------------------------------------------------------------------------------------

    def restore(self, admitted: Iterable[Ticket], pending: Iterable[Ticket]) -> None:
        """Learn, before `open`, who runs and who waits. What runs keeps its slot, whatever the limits are now."""
        for ticket in admitted:
            if ticket.no not in self._admitted:
                self._leave(ticket.no)
                self._take(ticket)
        for ticket in pending:
            self._join(ticket)

    def open(self) -> None:
        """Begin to admit."""
        self._open = True
        self._changed.update(self._namespaces.values())
        self._pump()

    def close(self) -> None:
        """Admit nobody more. Who has a slot keeps it."""
        self._open = False

    # --- runs --------------------------------------------------------------------------------------------------------

    def try_admit(self, ticket: Ticket) -> bool:
        """Take a slot for a run about to be created, if there is room and nobody waits who goes first.

        When it answers False the caller makes the run pending and calls `wait`.
        """
        if not self._open or ticket.no in self._pending:
            return False
        if ticket.no in self._admitted:
            return True
        namespace = self._namespace(ticket.namespace_no)
        if not (ticket.exempt or namespace.running < namespace.limit) or not self._group_admits(namespace, ticket):
            return False
        if namespace.waiting and self._first(namespace) is not None:
            return False  # in the middle of admitting: it has only not been their turn yet
        self._take(ticket)
        return True

    def wait(self, ticket: Ticket) -> None:
        """A pending run stands in line from now on. Idempotent."""
        self._join(ticket)
        self._pump()

    def free(self, no: int) -> None:
        """A run has ended, or has not come into being: it gives back its slot or leaves the line. Idempotent."""
        ticket = self._admitted.pop(no, None)
        if ticket is None:
            self._leave(no)
        else:
            namespace = self._namespace(ticket.namespace_no)
            namespace.running -= not ticket.exempt
            self._changed.add(namespace)
            group = namespace.groups.get(ticket.group)
            if group is not None and group.running is not None:
                group.running.discard(no)
                self._show(namespace, group)
        self._pump()

    def check_pending(self, namespace_no: int, count: int = 1) -> None:
        """Make sure that so many more runs may wait.

        Raises:
            ResourceExhaustedError: the namespace or the daemon would have more pending runs than it may.
        """
        mine, limit = self.pending(namespace_no), self._limits.namespace(namespace_no).pending_runs
        if limit and mine + count > limit:
            raise _full("the namespace", mine, limit)
        if self._limits.pending_runs and len(self._pending) + count > self._limits.pending_runs:
            raise _full("the daemon", len(self._pending), self._limits.pending_runs)

    # --- questions ---------------------------------------------------------------------------------------------------

    def running(self, namespace_no: int | None = None) -> int:
        """How many runs have a slot: all, or those that a namespace's limit counts."""
        if namespace_no is None:
            return len(self._admitted)
        namespace = self._namespaces.get(namespace_no)
        return 0 if namespace is None else namespace.running

    def pending(self, namespace_no: int | None = None) -> int:
        """How many runs wait: of all namespaces or of one."""
        if namespace_no is None:
            return len(self._pending)
        namespace = self._namespaces.get(namespace_no)
        return 0 if namespace is None else namespace.waiting

    def knows(self, no: int) -> bool:
        """Whether a run has a slot or waits for one."""
        return no in self._pending or no in self._admitted

    def group_size(self, namespace_no: int, group: str) -> int:
        """Answer how many run or wait in a group."""
        known = self._known_group(namespace_no, group)
        return 0 if known is None else len(known.running or ()) + known.waiting

    def group_members(self, namespace_no: int, group: str) -> tuple[list[int], list[int]]:
        """Answer who runs and who waits in a group, each oldest first."""
        known = self._known_group(namespace_no, group)
        if known is None:
            return [], []
        places = {place for line in known.lines for place in line or () if self._waits(place)}
        return sorted(known.running or ()), sorted(place & _NO_MASK for place in places)

    def _known_group(self, namespace_no: int, group: str) -> _Group | None:
        namespace = self._namespaces.get(namespace_no)
        return None if namespace is None else namespace.groups.get(group)

    def blockers(self, no: int) -> Blocker | None:
        """Say what a pending run waits for; None when it does not wait. It looks at everybody in line."""
        ticket = self._pending.get(no)
        if ticket is None:
            return None
        namespace, place = self._namespace(ticket.namespace_no), _place(ticket)
        group = namespace.groups.get(ticket.group)
        if group is not None:
            in_group = self._blocked_in(group, ticket)
            if in_group is not None:
                return in_group
        ahead = sum(
            _place(other) < place and other.exempt == ticket.exempt and self._group_has_room(namespace, other)
            for other in self._pending.values()
            if other.namespace_no == ticket.namespace_no
        )
        if ticket.exempt or namespace.running < namespace.limit:
            return Blocker("none", 0, [], ahead)
        holders = sorted(
            one.no for one in self._admitted.values() if one.namespace_no == namespace.no and not one.exempt
        )
        return Blocker("namespace", namespace.limit, holders[:HOLDERS_MAX], ahead)

    def _blocked_in(self, group: _Group, ticket: Ticket) -> Blocker | None:
        line, shown = group.lines[ticket.exempt] or [], group.shown[ticket.exempt]
        ahead = len({place for place in line if place < _place(ticket) and self._waits(place)})
        running = sorted(group.running or ())
        if shown is None and line:  # the first in line cannot go, by its own limit, and nobody overtakes it
            limit = self._pending[line[0] & _NO_MASK].limit
        elif ticket.limit and len(running) + ahead >= ticket.limit:
            limit = ticket.limit
        else:
            return None
        return Blocker("group", limit, running[:HOLDERS_MAX], ahead)

    # --- admitting ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Admit whoever can go. Between two calls nobody can, so only namespaces that have changed are looked at."""
        if not self._open or self._pumping:
            return  # an admission may lead to another call within itself: then the loop below goes on
        self._pumping = True
        ready: list[tuple[int, float, int, _Namespace]] = []
        try:
            while self._open:
                while self._changed:
                    self._push_ready(ready, self._changed.pop())
                if not ready:
                    return
                rank, _, no, namespace = entry = heappop(ready)
                if entry == self._entry(namespace):  # else it is out of date: the namespace has changed since
                    self._shares[rank].charge(namespace.no, namespace.weight)
                    self._start(no)
        finally:
            self._changed.update(entry[3] for entry in ready)
            self._pumping = False

    def _push_ready(self, ready: list[tuple[int, float, int, _Namespace]], namespace: _Namespace) -> None:
        entry = self._entry(namespace)
        if entry is not None:
            heappush(ready, entry)

    def _entry(self, namespace: _Namespace) -> tuple[int, float, int, _Namespace] | None:
        """Answer a namespace's place among those that can go: rank, pass, the number of its first run."""
        place = self._first(namespace)
        if place is None:
            return None
        rank = place >> 60
        return rank, self._shares[rank].pass_of(namespace.no), place & _NO_MASK, namespace

    def _start(self, no: int) -> None:
        ticket = self._pending[no]
        self._leave(no)
        self._take(ticket)
        self._admit(no)

    def _first(self, namespace: _Namespace) -> int | None:
        """Answer the place of the run that is next in a namespace, None when none can go."""
        exempt = self._head(namespace, exempt=True)
        counted = self._head(namespace, exempt=False) if namespace.running < namespace.limit else None
        if exempt is None or counted is None:
            return counted if exempt is None else exempt
        return min(exempt, counted)

    def _head(self, namespace: _Namespace, *, exempt: bool) -> int | None:
        line = namespace.lines[exempt]
        while line and not self._is_next(namespace, line[0], exempt=exempt):
            heappop(line)
        return line[0] if line else None

    def _is_next(self, namespace: _Namespace, place: int, *, exempt: bool) -> bool:
        """Whether a place in a namespace's line still stands: who has left or is parked leaves it behind."""
        ticket = self._pending.get(place & _NO_MASK)
        if ticket is None or ticket.exempt != exempt or _place(ticket) != place:
            return False
        return not ticket.group or namespace.groups[ticket.group].shown[exempt] == place

    def _waits(self, place: int) -> bool:
        ticket = self._pending.get(place & _NO_MASK)
        return ticket is not None and _place(ticket) == place

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _take(self, ticket: Ticket) -> None:
        namespace = self._namespace(ticket.namespace_no)
        self._admitted[ticket.no] = ticket
        namespace.running += not ticket.exempt
        self._changed.add(namespace)
        if ticket.group:
            group = self._group(namespace, ticket.group)
            if group.running is None:
                group.running = set()
            group.running.add(ticket.no)
            self._show(namespace, group)

    def _join(self, ticket: Ticket) -> None:
        if ticket.no in self._pending or ticket.no in self._admitted:
            return
        namespace = self._namespace(ticket.namespace_no)
        self._pending[ticket.no] = ticket
        namespace.waiting += 1
        if ticket.group:
            group = self._group(namespace, ticket.group)
            group.waiting += 1
            line = group.lines[ticket.exempt]
            if line is None:
                line = group.lines[ticket.exempt] = []
            heappush(line, _place(ticket))
            self._show(namespace, group)
        else:
            self._push(namespace, _place(ticket), exempt=ticket.exempt)

    def _leave(self, no: int) -> None:
        ticket = self._pending.pop(no, None)
        if ticket is None:
            return
        namespace = self._namespace(ticket.namespace_no)
        namespace.waiting -= 1
        self._changed.add(namespace)
        self._compact(namespace, exempt=ticket.exempt)
        if ticket.group:
            group = namespace.groups[ticket.group]
            group.waiting -= 1
            line = group.lines[ticket.exempt]
            if line is not None and len(line) > 2 * group.waiting + _SLACK:
                line[:] = sorted({place for place in line if self._waits(place)})
            self._show(namespace, group)

    def _show(self, namespace: _Namespace, group: _Group) -> None:
        """Let a group's first in each line stand in the namespace's line while there is room, and nobody else."""
        for exempt in (False, True):
            line = group.lines[exempt]
            while line and not self._stands(line[0], exempt=exempt):
                heappop(line)
            if not line:
                group.lines[exempt] = group.shown[exempt] = None
                continue
            first = line[0] if group.room(self._pending[line[0] & _NO_MASK].limit) else None
            if first != group.shown[exempt]:
                group.shown[exempt] = first
                if first is not None:
                    self._push(namespace, first, exempt=exempt)
        if not group.running and not group.waiting:
            namespace.groups.pop(group.name, None)

    def _stands(self, place: int, *, exempt: bool) -> bool:
        return self._waits(place) and self._pending[place & _NO_MASK].exempt == exempt

    def _push(self, namespace: _Namespace, place: int, *, exempt: bool) -> None:
        heappush(namespace.lines[exempt], place)
        self._changed.add(namespace)
        self._compact(namespace, exempt=exempt)

    def _compact(self, namespace: _Namespace, *, exempt: bool) -> None:
        """Drop what has been left behind in a namespace's line, once it is more than half of it."""
        line = namespace.lines[exempt]
        if len(line) > 2 * namespace.waiting + _SLACK:
            line[:] = {place for place in line if self._is_next(namespace, place, exempt=exempt)}
            heapify(line)

    def _group_admits(self, namespace: _Namespace, ticket: Ticket) -> bool:
        """Whether a newcomer's group has room, and nobody in the same line of it waits."""
        group = namespace.groups.get(ticket.group)
        return group is None or (group.lines[ticket.exempt] is None and group.room(ticket.limit))

    def _group_has_room(self, namespace: _Namespace, ticket: Ticket) -> bool:
        group = namespace.groups.get(ticket.group)
        return group is None or group.room(ticket.limit)

    def _group(self, namespace: _Namespace, name: str) -> _Group:
        group = namespace.groups.get(name)
        if group is None:
            group = namespace.groups[name] = _Group(name)
        return group

    def _namespace(self, no: int) -> _Namespace:
        namespace = self._namespaces.get(no)
        if namespace is None:
            if len(self._namespaces) >= self._sweep_at:  # now and then: each could be a name of the past
                self._namespaces = {known.no: known for known in self._namespaces.values() if not known.is_idle}
                self._changed.intersection_update(self._namespaces.values())
                self._sweep_at = 2 * len(self._namespaces) + _SWEEP_FROM
            namespace = self._namespaces[no] = _Namespace(no)
            namespace.read(self._limits)
        return namespace

    def _on_limits(self) -> None:
        for namespace in self._namespaces.values():
            if namespace.read(self._limits):
                for share in self._shares:
                    share.forget(namespace.no)
        self._changed.update(self._namespaces.values())
        self._pump()


def _full(who: str, pending: int, limit: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{who} has {pending} pending runs, and may have {limit}",
        retry_after_s=RETRY_AFTER_S,
        reason=PENDING_RUNS,
        metadata={"pending": str(pending), "limit": str(limit)},
    )
