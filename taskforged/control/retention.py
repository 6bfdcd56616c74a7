"""Retention: what is old enough to be deleted, and its deletion in slices that nobody notices.

A pass walks the tables in the order of their numbers, which is the order of time, in chunks that a reader answers in a
few milliseconds, and stops where things are too young. What a chunk finds is deleted by writes of their own, each sized
by how long the one before took, with pauses between them: the journal commits other writes in between, or with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from taskforged.ages import parse_age
from taskforged.clock import Clock
from taskforged.config import Config
from taskforged.engine.events import rfc3339
from taskforged.failpoints import reach
from taskforged.host.feed import Feed
from taskforged.jsonvalue import load_stored
from taskforged.store import purge
from taskforged.store.purge import Slice
from taskforged.store.store import Connection, Row, Store

__all__ = ["KINDS", "Keep", "PruneReport", "Pruner", "RunRule", "keep_from", "with_runs"]

_log = structlog.get_logger(__name__)

KINDS = ("runs", "events", "rejected", "deliveries", "slots", "logs")
"""What is counted of a pass; `deliveries` is what repeated deliveries are recognised by."""

_SLICE_S = 0.003
"""How long a slice may keep the writing connection busy; the number of its rows follows from how the last one went."""

_ROWS_LEAST, _ROWS_MOST = 20, 2000

_PAUSE_RATIO = 3.0
_PAUSE_LEAST_S = 0.002

_FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class RunRule:
    """Which ended runs go: those older than `age_s`, and all but the newest `count`; 0 means that none do."""

    age_s: int
    count: int


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept for how long, in seconds; 0 is for ever.

    Attributes:
        runs: of workflows that say nothing themselves.
        runs_total: newest ended runs of all workflows together that stay; 0: all.
        events: those that had an effect.
        rejected: deliveries without one.
        dedupe: what repeated deliveries are recognised by.
        slots: settled due times.
        logs: lines of steps of ended runs.
        only: number of the one workflow of which `runs` is meant, against what it says itself; 0: all.
    """

    runs: RunRule
    runs_total: int = 0
    events: int = 0
    rejected: int = 0
    dedupe: int = 0
    slots: int = 0
    logs: int = 0
    only: int = 0


def keep_from(config: Config) -> Keep:
    """Answer what the settings say."""
    ages = {name: parse_age(config("retention", name)) for name in ("events", "rejected", "dedupe", "slots", "logs")}
    rule = RunRule(parse_age(config("retention", "runs")), config("retention", "runs_per_workflow"))
    return Keep(rule, config("retention", "runs_total"), **ages)


@dataclass(slots=True)
class PruneReport:
    """What a pass deleted, or would delete, by kind."""

    started_at: int = 0
    ended_at: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    rows: int = 0
    busy_s: float = 0.0

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.counts.values())


class Pruner:
    """Deletes what is old enough and what nobody needs."""

    def __init__(self, *, store: Store, clock: Clock, feed: Feed, keep: Keep) -> None:
        self._store = store
        self._clock = clock
        self._feed = feed
        self._budget = 200
        self._turn = asyncio.Lock()
        self.keep = keep
        self.last: PruneReport | None = None
        self.totals: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._until: dict[str, int] = {}
        self._gone: list[tuple[int, int, int, int]] = []

    async def start(self) -> None:
        """Read what earlier passes have deleted, and finish what they began."""
        await self._remember()

    async def _remember(self) -> None:
        rows = await self._store.rows("all_pruned")
        for what, *_, until in rows:
            self._until[what] = max(self._until.get(what, 0), until)
        self._gone = [(*where, count, until) for what, *where, count, until in rows if what == "runs"]

    # --- what is told ------------------------------------------------------------------------------------------------

    def pruned_runs(self, namespace_no: int | None, workflow_no: int | None) -> tuple[int, int]:
        """Answer how many runs of a workflow, a namespace or all are gone, and when the newest of them was created."""
        found = [
            (count, until)
            for namespace, workflow, count, until in self._gone
            if namespace_no in (None, namespace) and workflow_no in (None, workflow)
        ]
        return sum(count for count, _ in found), max((until for _, until in found), default=0)

    def hint(self, what: str) -> str:
        """Answer the half sentence to add where something is not found; empty when nothing was ever pruned."""
        until = self._until.get(what, 0)
        return f"; {what} up to {rfc3339(until)} have been pruned where nothing needed them" if until else ""

    # --- a pass ------------------------------------------------------------------------------------------------------

    async def run(self, keep: Keep | None = None, *, dry_run: bool = False, repeat_s: int = 0) -> PruneReport:
        """Make a pass; one that comes while another is under way waits for it.

        Args:
            keep: instead of what the settings say.
            dry_run: nothing is deleted.
            repeat_s: for how long after its end a run stays whose start may be asked for again, by its request id.

        Raises:
            TaskforgeError: something could not be written. What is gone is gone, the rest stays.
        """
        keep = self.keep if keep is None else keep
        async with self._turn:
            report = PruneReport(self._clock.now())
            now = self._clock.now()
            spared = now - repeat_s * 1_000_000 if repeat_s else _FAR
            one = _Pass(self._store, keep, report, self._delete, now, spared, dry_run=dry_run)
            try:
                if not dry_run:
                    await self._finish_leaving(report)
                await one.runs(self._is_watched)
                if not keep.only:
                    await one.events()
                    await one.slots()
                    await one.logs()
            finally:
                report.ended_at = self._clock.now()
                if not dry_run:
                    self._count(report)
                    await self._remember()
            return report

    def _count(self, report: PruneReport) -> None:
        self.last = report
        for kind, count in report.counts.items():
            self.totals[kind] += count
        if report.total:
            took_s = (report.ended_at - report.started_at) / 1e6
            _log.info("storage.pruned", **report.counts, rows=report.rows, took_s=round(took_s, 3))

    def _is_watched(self, no: int) -> bool:
        return self._feed.is_watched(no)

    async def _finish_leaving(self, report: PruneReport) -> None:
        while (await self._delete(purge.finish_leaving, report)).used:
            pass

    async def _delete(self, function: Callable[..., Slice], report: PruneReport, *arguments: Any) -> Slice:
        """Write one slice and rest from it."""
        budget = self._budget
        is_sized = function in _SIZED

        def write(connection: Connection) -> Slice:
            return function(connection, *arguments, budget) if is_sized else function(connection, *arguments)

        done = await self._store.journal.execute(write)
        reach("prune.slice_gone")
        report.rows += done.rows
        report.busy_s += done.seconds
        if done.rows and is_sized:
            fitting = int(done.rows * _SLICE_S / max(done.seconds, 1e-6))
            self._budget = min(max(fitting, budget // 2, _ROWS_LEAST), 2 * budget, _ROWS_MOST)
        await asyncio.sleep(max(_PAUSE_LEAST_S, _PAUSE_RATIO * done.seconds))
        return done


_SIZED = frozenset({purge.purge_runs, purge.purge_events, purge.finish_leaving})
"""Functions that take a number of rows."""

_Delete = Callable[..., Any]


class _Pass:
    """One walk through everything."""

    def __init__(
        self, store: Store, keep: Keep, report: PruneReport, delete: _Delete, now: int, spared: int, *, dry_run: bool
    ) -> None:
        self._store = store
        self._keep = keep
        self._report = report
        self._delete = delete
        self._now = now
        self._spared = spared
        self._dry_run = dry_run

    def _before(self, age_s: int) -> int:
        """Answer the time up to which things are old enough; -1: none is."""
        return self._now - age_s * 1_000_000 if age_s else -1

    def _add(self, kind: str, count: int) -> None:
        self._report.counts[kind] += count

    # --- runs

    async def runs(self, is_watched: Callable[[int], bool]) -> None:
        """Delete ended runs, workflow by workflow."""
        total = self._keep.runs_total
        overall = await self._boundary("all_ended_runs_down", (), total) if total else 0
        for no, _, _, retention in await self._store.rows("retained_workflows"):
            if self._keep.only in (0, no):
                await self._runs_of(no, self._rule(retention), overall, is_watched)

    def _rule(self, retention: str) -> RunRule:
        rule = self._keep.runs
        if not retention or self._keep.only:
            return rule
        own: Mapping[str, Any] = load_stored(retention)
        return RunRule(
            rule.age_s if own["age_s"] is None else own["age_s"], rule.count if own["count"] is None else own["count"]
        )

    async def _boundary(self, query: str, parameters: Sequence[int], count: int) -> int:
        """Answer the number of the newest ended run that is one too many; 0: none is."""
        below = _FAR
        while rows := await self._store.rows(query, *parameters, below):
            for no, is_ended in rows:
                count -= is_ended
                if count < 0:
                    return int(no)
            below = rows[-1][0]
        return 0

    async def _runs_of(self, workflow_no: int, rule: RunRule, overall: int, is_watched: Callable[[int], bool]) -> None:
        before = self._before(rule.age_s)
        own = await self._boundary("ended_runs_down", (workflow_no,), rule.count) if rule.count else 0
        boundary = max(own, overall)
        if before < 0 and not boundary:
            return
        after = 0
        while (end := await self._store.value("runs_chunk_end", workflow_no, after)) is not None:
            rows = await self._store.rows("prunable_chunk", workflow_no, after, end, before, boundary, self._spared)
            numbers = [row[0] for row in rows if not is_watched(row[0])]
            if self._dry_run:
                self._add("runs", len(numbers))
            else:
                await self._delete_runs(numbers)
            created_at = await self._store.value("run_created_at", end)
            if end >= boundary and created_at is not None and created_at >= before:
                return
            after = end

    async def _delete_runs(self, numbers: Sequence[int]) -> None:
        while numbers:
            done: Slice = await self._delete(purge.purge_runs, self._report, numbers)
            self._add("runs", done.things)
            numbers = numbers[done.used :]
            while done.is_cut:
                done = await self._delete(purge.finish_leaving, self._report)

    # --- events

    async def events(self) -> None:
        """Forget old deliveries, delete old events."""
        before, rejected = self._before(self._keep.events), self._before(self._keep.rejected)
        dedupe = self._before(self._keep.dedupe)
        last = max(before, rejected, dedupe)
        async for after, end in self._chunks("events_chunk_end", last):
            keys = await self._store.rows("old_deliveries", after, end, dedupe) if dedupe > 0 else []
            self._add("deliveries", len(keys))
            if keys and not self._dry_run:
                await self._delete(purge.forget_deliveries, self._report, keys)
            events = await self._store.rows("prunable_events_chunk", after, end, before, rejected)
            await self._delete_events(events, last)

    async def _delete_events(self, events: Sequence[Row], until: int) -> None:
        kept = {"REJECTED", "DUPLICATE", "HANDSHAKE"}
        for kind, some in (
            ("rejected", [one for one in events if one[2] in kept]),
            ("events", [one for one in events if one[2] not in kept]),
        ):
            left = some
            if self._dry_run:
                self._add(kind, len(some))
                continue
            while left:
                done: Slice = await self._delete(purge.purge_events, self._report, left, until)
                self._add(kind, done.things)
                left = left[done.used :]

    async def _chunks(self, query: str, before: int) -> AsyncIterator[tuple[int, int]]:
        """Yield ranges of numbers, up to the first whose end is not from before a time."""
        after = 0
        while before > 0 and (row := await self._store.row(query, after)) is not None:
            end, at = row
            yield after, end
            if at >= before:
                return
            after = end

    # --- the ledger, logs

    async def slots(self) -> None:
        """Delete old due times."""
        before = self._before(self._keep.slots)
        if before <= 0:
            return
        for (no,) in await self._store.rows("cron_triggers"):
            if self._dry_run:
                self._add("slots", await self._store.value("count_old_slots", no, before, before))
                continue
            while (done := await self._delete(purge.purge_slots, self._report, no, before)).things:
                self._add("slots", done.things)

    async def logs(self) -> None:
        """Delete old lines of ended runs."""
        before = self._before(self._keep.logs)
        async for after, end in self._chunks("logs_chunk_end", before):
            numbers = [row[0] for row in await self._store.rows("old_logs", after, end, before)]
            if self._dry_run:
                self._add("logs", len(numbers))
            elif numbers:
                done: Slice = await self._delete(purge.purge_logs, self._report, numbers)
                self._add("logs", done.things)


def with_runs(keep: Keep, *, age_s: int | None, count: int | None, workflow_no: int) -> Keep:
    """Answer what somebody wants pruned now instead of what the settings say."""
    rule = RunRule(keep.runs.age_s if age_s is None else age_s, keep.runs.count if count is None else count)
    return replace(keep, runs=rule, only=workflow_no)
