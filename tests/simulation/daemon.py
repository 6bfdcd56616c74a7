"""One boot of the daemon: all its real parts but the doors and the executors, over a disk that survives it."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from simulation.outside import Outside, SimulatedExecutor
from simulation.virtual import Disk, Faults, Time
from taskforged import wiring
from taskforged.clock import Clock
from taskforged.config import Config, load_config
from taskforged.control.access import Principal, Role
from taskforged.control.inbox import WebhookInbox
from taskforged.control.namespaces import NamespaceChange
from taskforged.control.queues import QueueChange
from taskforged.control.system import Info
from taskforged.errors import TaskforgeError
from taskforged.host.timers import Timers
from taskforged.keyring import KeySource
from taskforged.store.sql import QUERIES
from taskforged.store.store import Store

__all__ = ["ROOT", "Boot", "Limits"]

ROOT = Principal("tok_root", "root", Role.ADMIN, None)


class Limits:
    """What a world allows: figures of `default`, and of its queue `narrow`."""

    def __init__(self, *, pool: int, runs: int, steps: int, narrow: int) -> None:
        self.pool = pool
        self.runs = runs
        self.steps = steps
        self.narrow = narrow


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


class Boot:
    """The daemon from a start to its end. `is_ready` from when its doors would be open."""

    def __init__(self, disk: Disk, faults: Faults, clock: Time, outside: Outside, limits: Limits) -> None:
        self._outside = outside
        self._limits = limits
        config = self._config(limits)
        self._clock = Clock(clock.time_ns, lambda: round(clock.now_s * 1e9))
        with disk.serving(faults):
            self.store = Store(config.database, on_failure=lambda _: None)
        info = Info(version="0", pid=0, home=str(config.home), sqlite_version="")
        self.base = wiring._build_base(config, self._clock, self.store, info, KeySource(bytes(32), None, "none"))
        self.host = wiring._build_host(self.base)
        self.reactions = wiring._build_reactions(self.base, self.host)
        self.controls = wiring._build_controls(self.base, self.host, self.reactions)
        self.timers = Timers(store=self.store, clock=self._clock, runner=self.host.runner)
        self.inbox = self._inbox()
        self.epoch = 0
        self.is_ready = False

    @staticmethod
    def _config(limits: Limits) -> Config:
        return load_config(Path(_home().name), None, {"TASKFORGE_EXECUTOR_POOL_SIZE": str(limits.pool)})

    def _inbox(self) -> WebhookInbox:
        base = self.base
        return WebhookInbox(
            store=self.store,
            clock=self._clock,
            access=base.access,
            triggers=base.triggers,
            reactor=self.reactions.reactor,
            runner=self.host.runner,
            secret=base.secrets.value,
            requests=self.host.namespaces.requests,
            pressure=base.pressure,
            meters=base.meters,
            body_max=1 << 20,
        )

    async def start(self) -> None:
        """Start what `daemon` starts, in its order."""
        await self.store.start()
        self.epoch = await self.store.journal.execute(self._record_boot)
        await self.base.access.start()
        await self.host.namespaces.start()
        await self.host.queues.start()
        await self.base.workflows.start()
        runner = self.host.runner
        runner._executors = {"http": SimulatedExecutor(self._outside, self.epoch)}
        await runner.start(self.epoch)
        await self.timers.start()
        await self.reactions.consumer.start()
        await self.reactions.scheduler.start()
        await self.reactions.cron.start()
        self.is_ready = True

    def _record_boot(self, connection) -> int:
        return connection.execute(QUERIES["insert_boot"], (self._clock.now(), 1, "0")).lastrowid

    async def stop(self, grace_s: float) -> None:
        """Drain, in the daemon's order."""
        self.is_ready = False
        self.base.feed.close()
        self.host.runner.dismiss_waiters()
        await self.timers.stop()
        await self.reactions.cron.stop()
        await self.reactions.consumer.stop()
        await self.host.runner.drain(grace_s)
        await self.host.book.stop()
        await self.store.stop()

    async def furnish(self, definitions: dict[str, str]) -> None:
        """Set limits and apply definitions; all of it is idempotent, and done again after each start."""
        limits, queues = self._limits, self.host.queues
        change = NamespaceChange(running_runs=limits.runs, running_steps=limits.steps)
        await self.host.namespaces.set(ROOT, "default", change)
        await queues.set(1, "narrow", QueueChange(priority=9, running_steps=limits.narrow))
        await queues.set(1, "late", QueueChange(priority=0))
        for source in reversed(definitions.values()):
            await self.base.workflows.apply(1, source, ROOT.token_id)

    async def close_schedules(self) -> None:
        """Let nothing be due any more."""
        for workflow in self.base.workflows.page(1, after="", limit=100):
            try:
                await self.base.workflows.set_active(workflow, active=False)
            except TaskforgeError:
                continue
