"""What the daemon knows of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from taskforged.control.schedules import Lateness
from taskforged.host.feed import Feed
from taskforged.host.runner import Runner
from taskforged.store.store import Store

__all__ = ["Info", "System"]


@dataclass(slots=True)
class Info:
    """Where and what the daemon is; filled in while it starts."""

    state: str = "starting"
    version: str = ""
    pid: int = 0
    home: str = ""
    grpc: list[str] = field(default_factory=list)
    http: str = ""
    started_at: int = 0
    boot_epoch: int = 0
    sqlite_version: str = ""
    schema_version: int = 0


class System:
    """Info and statistics."""

    def __init__(self, *, store: Store, runner: Runner, feed: Feed, lateness: Lateness, info: Info) -> None:
        self._store = store
        self._runner = runner
        self._feed = feed
        self._lateness = lateness
        self._info = info

    def info(self) -> Info:
        """Answer where and what the daemon is."""
        return self._info

    async def stats(self) -> dict[str, Any]:
        """Answer counters and gauges by name."""
        database, wal = self._store.sizes()
        median_ms, worst_ms = self._lateness.figures_ms()
        dispatcher, journal = self._runner.dispatcher, self._store.journal.stats
        return {
            "running_steps": dispatcher.running,
            "queued_steps": await self._store.value("count_commands"),
            "pool_size": dispatcher.pool_size,
            "pending_timers": await self._store.value("count_timers"),
            "open_runs": await self._store.value("count_open_runs"),
            "commits": journal.commits,
            "writes": journal.writes,
            "watchers": self._feed.count(),
            "database_bytes": database,
            "wal_bytes": wal,
            "cron_triggers": await self._store.value("count_due_triggers"),
            "fired_slots": self._lateness.count,
            "lateness_p50_ms": median_ms,
            "lateness_max_ms": worst_ms,
            "pending_events": await self._store.value("count_pending_events"),
        }
