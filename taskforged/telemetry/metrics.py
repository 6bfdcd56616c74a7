"""Prometheus metrics, read from where things are counted at the moment of a scrape.

Two steps. On the event loop the numbers are gathered: copies of plain dictionaries, some hundred microseconds. In a
thread they are turned into text, which takes longer. So nothing else waits for a scrape, however many series it has.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from taskforged.control.access import Access
from taskforged.control.health import Health
from taskforged.control.schedules import Lateness
from taskforged.control.storage import Storage
from taskforged.control.stuck import REASONS, StuckDetector
from taskforged.control.system import Info
from taskforged.host.feed import Feed
from taskforged.host.pulse import Pulse
from taskforged.host.runner import Runner
from taskforged.meters import OTHER, DoorMeters, Histogram, Key
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store
from taskforged.telemetry.families import FAMILIES, PREFIX, Family

__all__ = ["Metrics", "Sources"]

Values: TypeAlias = Mapping[Key, "float | Histogram"]
Page: TypeAlias = dict[str, Values]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are."""

    store: Store
    runner: Runner
    feed: Feed
    pulse: Pulse
    lateness: Lateness
    doors: DoorMeters
    access: Access
    info: Info
    health: Health
    stuck: StuckDetector
    storage: Storage


class Metrics:
    """Answers scrapes, one at a time. `more` may add values of further families."""

    def __init__(self, sources: Sources, *, names: int) -> None:
        """Create metrics; `names` bounds how many queues are named."""
        self._from = sources
        self._names = names
        self._queues: dict[Key, None] = {}
        self._turn = asyncio.Lock()
        self._shown = _Shown()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._shown)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self.more: list[Callable[[], Page]] = []

    async def render(self, accept: str) -> tuple[str, bytes]:
        """Answer content type and text, in the format that the scraper asks for."""
        encode, content_type = choose_encoder(accept)
        async with self._turn:
            self._shown.page = await self._gather()
            return content_type, await asyncio.to_thread(encode, self._registry)

    async def _gather(self) -> Page:
        page = await self._from.store.read(_stored)
        page["open_runs"] = self._open_runs(page.pop("open_runs"))
        page |= {**self._runs(), **self._steps(), **self._doors(), **self._journal(), **self._process()}
        for more in self.more:
            page |= more()
        return page

    def _open_runs(self, stored: Values) -> Values:
        """Answer how many runs have a slot and wait for one, as memory knows, and the rest: those of a later time."""
        admission, total = self._from.runner.admission, stored[()]
        assert not isinstance(total, Histogram)
        running, pending = admission.running(), admission.pending()
        later = max(0.0, total - running - pending)
        return {("running",): running, ("pending",): pending, ("scheduled",): later}

    def _runs(self) -> Page:
        meters = self._from.runner.meters
        stuck: dict[Key, float] = {(reason,): 0 for reason in REASONS}
        for one in self._from.stuck.found.values():
            stuck[one.reason,] += 1
        return {
            "stuck_runs": stuck,
            "overdue_items": {(kind,): count for kind, count in self._from.stuck.overdue.items()},
            "runs_created": _copy(meters.created.by_key),
            "runs_ended": _copy(meters.ended.by_key),
            "run_duration_seconds": _copies(meters.durations.by_key),
        }

    def _steps(self) -> Page:
        runner = self._from.runner
        queued, running = dict[Key, float](), dict[Key, float]()
        for namespace_no, queue, at_work, waiting in runner.dispatcher.load():
            key = self._named((self._from.access.namespace_name(namespace_no), queue))
            queued[key] = queued.get(key, 0) + waiting
            running[key] = running.get(key, 0) + at_work
        return {
            "queued_steps": queued,
            "running_steps": running,
            "step_slots": _one(runner.dispatcher.pool_size),
            "step_queue_wait_seconds": _copies(runner.meters.waits.by_key),
            "step_attempts": _copy(runner.meters.attempts.by_key),
            "step_attempt_duration_seconds": _copies(runner.meters.attempt_durations.by_key),
            "step_retries": _copy(runner.meters.retries.by_key),
        }

    def _named(self, key: Key) -> Key:
        if key not in self._queues:
            if len(self._queues) >= self._names:
                return (OTHER, OTHER)
            self._queues[key] = None
        return key

    def _doors(self) -> Page:
        doors = self._from.doors
        return {
            "webhook_deliveries": _copy(doors.webhooks.by_key),
            "webhook_ack_duration_seconds": _one(doors.acks.copy()),
            "http_requests": _copy(doors.http.by_key),
            "grpc_requests": _copy(doors.grpc.by_key),
            "grpc_request_duration_seconds": _copies(doors.grpc_durations.by_key),
            "spans_exported": _one(doors.spans_exported),
            "span_export_failures": _one(doors.export_failures),
            "watchers": _one(self._from.feed.count()),
            "schedule_lateness_seconds": _one(self._from.lateness.histogram.copy()),
        }

    def _journal(self) -> Page:
        store = self._from.store
        stats, storage = store.journal.stats, self._from.storage
        backups, moves = storage.backups.status, store.journal.checkpointer
        database, wal = store.sizes()
        disk = os.statvfs(store.path.parent)
        return {
            "commits": _one(stats.commits),
            "commit_failures": _one(stats.failures),
            "commit_duration_seconds": _one(stats.durations.copy()),
            "commit_batch_writes": _one(stats.sizes.copy()),
            "journal_waiting_writes": _one(store.journal.waiting),
            "checkpoints": {("whole",): moves.whole, ("partial",): moves.partial, ("failed",): moves.failed},
            "checkpoint_duration_seconds": _one(moves.durations.copy()),
            "pruned": {(kind,): count for kind, count in storage.pruner.totals.items()},
            "backups": {("made",): backups.made, ("failed",): backups.failed},
            "last_backup_timestamp_seconds": _one(backups.last_at / 1_000_000),
            "database_size_bytes": _one(database),
            "wal_size_bytes": _one(wal),
            "disk_free_bytes": _one(disk.f_bavail * disk.f_frsize),
        }

    def _process(self) -> Page:
        info, pulse = self._from.info, self._from.pulse
        return {
            "build": {(info.version, platform.python_version(), info.sqlite_version, str(info.schema_version)): 1},
            "ready": _one(not self._from.health.unready()),
            "event_loop_lag_seconds": _one(pulse.lag.copy()),
            "event_loop_stalls": _one(pulse.stalls),
        }


def _stored(connection: Connection) -> Page:
    """Read what only the database knows. All of it is counted in indexes."""

    def value(sql: str) -> float:
        return float(connection.execute(sql).fetchone()[0])

    return {
        "open_runs": _one(value(QUERIES["count_open_runs"])),
        "dead_letters_open": _one(value(QUERIES["count_open_dead_letters"])),
        "timers_pending": _one(value(QUERIES["count_timers"])),
        "events_pending": _one(value(QUERIES["count_pending_events"])),
        "schedules_active": _one(value(QUERIES["count_due_triggers"])),
        "database_free_bytes": _one(value("PRAGMA freelist_count") * value("PRAGMA page_size")),
    }


def _one(value: float | Histogram) -> Values:
    return {(): value}


def _copy(by_key: Mapping[Key, int]) -> Values:
    return dict(by_key)


def _copies(by_key: Mapping[Key, Histogram]) -> Values:
    return {key: histogram.copy() for key, histogram in by_key.items()}


class _Shown(Collector):
    """Turns what was gathered into what prometheus_client writes; used in the thread of one scrape at a time."""

    def __init__(self) -> None:
        self.page: Page = {}

    def collect(self) -> Iterable[Metric]:
        """Answer the metrics of the present scrape."""
        for family in FAMILIES:
            if family.name in self.page:
                yield _metric(family, self.page[family.name])


def _metric(family: Family, values: Values) -> Metric:
    name, text, labels = PREFIX + family.name, family.help, family.labels
    if family.kind == "histogram":
        histograms = HistogramMetricFamily(name, text, labels=labels)
        for key, value in values.items():
            assert isinstance(value, Histogram)
            histograms.add_metric(key, _cumulative(value), value.total)
        return histograms
    if family.kind == "info":
        info = InfoMetricFamily(name, text)
        for key in values:
            info.add_metric([], dict(zip(labels, key, strict=True)))
        return info
    simple = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for key, value in values.items():
        assert not isinstance(value, Histogram)
        simple.add_metric(key, value)
    return simple


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Answer for each upper bound how many values were up to it."""
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.buckets), strict=True))
