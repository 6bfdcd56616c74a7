"""The care of the database: measures it, prunes, shrinks it, cuts the log, makes backups, and tells of all that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from taskforged.clock import Clock
from taskforged.control.backups import Backups
from taskforged.control.clock_trust import ClockTrust
from taskforged.control.pressure import Pressure
from taskforged.control.retention import Keep, Pruner, PruneReport
from taskforged.errors import TaskforgeError
from taskforged.host.loop import Loop
from taskforged.store.store import Pages, Store

__all__ = ["WAL_BYTES_MAX", "Storage", "StorageState", "StorageView"]

_log = structlog.get_logger(__name__)

_LOOK_S = 1.0

PRUNE_EVERY_S = 600.0
_PRUNE_FIRST_S = 60.0
_PRUNE_PRESSED_S = 30.0
"""Between two passes while the database is over its budget."""

_REPEAT_S = 600
"""Who got no answer to a StartRun asks again, with the same request id: a pass must not make a second run of that."""

WAL_BYTES_MAX = 32 << 20
"""A log whose file is longer is moved and cut; the journal moves it every 16 MiB where no reader stands in the way, and
goes on writing from its start."""

_IDLE_S = 3.0
"""After so long without a commit the log is cut to nothing."""

_SHRINK_PAGES = 64
_SHRINK_SLICE_S = 0.005
"""How long giving back may keep the writing connection busy. SQLite looks through the list of free pages for each page
that it gives back, so the number of pages follows from how long the last ones took."""

_SHRINK_PAUSE_S = 0.01
_SHRINK_PAUSE_RATIO = 2.0
_SHRINK_TURN_S = 20.0
"""After so long it is the turn of backups and retention again."""

_SLACK_PAGES = 256
_SLACK_PART = 20
"""Free pages that stay for what is written next: at least 1 MiB, and a twentieth of the file."""

_SIZES_S = 3.0
"""How long the sizes of tables may take: they are counted page by page."""

_SIZES_REST = 5.0
"""So many times as long as counting took, what was counted is told again: while it lasts, the log cannot be cut."""


@dataclass(slots=True)
class StorageState:
    """What is known of the database, measured once a second."""

    page_size: int = 0
    pages: int = 0
    free_pages: int = 0
    can_shrink: bool = True
    wal_bytes: int = 0
    pages_given_back: int = 0
    measured_at: int = 0

    @property
    def database_bytes(self) -> int:
        """The file, and what of the log is not in it yet."""
        return self.pages * self.page_size

    @property
    def free_bytes(self) -> int:
        """What waits in the file to be used again."""
        return self.free_pages * self.page_size


class StorageView(NamedTuple):
    """Everything that is told of storage. `tables` is empty where counting would take too long."""

    state: StorageState
    tables: Mapping[str, int]
    budget_bytes: int
    refuses: str


@dataclass(slots=True)
class _Checkpoints:
    """When the log was cut last."""

    commits: int = 0
    busy_since: float = field(default_factory=time.monotonic)


class Storage:
    """Two tasks: one looks once a second, the other does what takes longer."""

    def __init__(self, *, store: Store, clock: Clock, pressure: Pressure, pruner: Pruner, backups: Backups) -> None:
        self._store = store
        self._clock = clock
        self.pressure = pressure
        self.pruner = pruner
        self.backups = backups
        self.state = StorageState()
        self._log_cut = _Checkpoints()
        self._next_prune = time.monotonic() + _PRUNE_FIRST_S
        self._trust = ClockTrust(clock.wall)
        self._waits_for_clock = False
        self._shrink_pages = _SHRINK_PAGES
        self._counting: asyncio.Task[Mapping[str, int]] | None = None
        self._count_again = 0.0
        self._watch = Loop("storage", self._look_for_ever)
        self._care = Loop("storage care", self._care_for_ever)

    async def start(self) -> None:
        """Begin. Idempotent."""
        await self.pruner.start()
        self._trust.start(await self._store.value("last_sign_of_life") or 0)
        await self.backups.start()
        await self._measure()
        await self._watch.start()
        await self._care.start()

    async def stop(self) -> None:
        """End; a backup that is under way is cut short. Idempotent."""
        await self._watch.stop()
        await self._care.stop()
        if self._counting is not None:
            await asyncio.gather(self._counting, return_exceptions=True)

    # --- what is told ------------------------------------------------------------------------------------------------

    async def view(self) -> StorageView:
        """Answer everything, measured now."""
        await self._measure()
        refuses = "STORE_FULL" if self.pressure.is_over else "DISK_LOW" if self.pressure.is_low else ""
        return StorageView(self.state, await self._table_sizes(), self.pressure.budget_bytes, refuses)

    async def _table_sizes(self) -> Mapping[str, int]:
        """Count for all who ask meanwhile, and for those who ask soon after."""
        if self._counting is None or (self._counting.done() and time.monotonic() >= self._count_again):
            self._counting = asyncio.create_task(self._count_tables(), name="table sizes")
        return await asyncio.shield(self._counting)

    async def _count_tables(self) -> Mapping[str, int]:
        began = time.monotonic()
        try:
            return await asyncio.to_thread(self._store.table_sizes, _SIZES_S)
        finally:
            ended = time.monotonic()
            self._count_again = ended + _SIZES_REST * (ended - began)

    async def prune(self, keep: Keep | None, *, dry_run: bool) -> PruneReport:
        """Make a pass now, and shrink the file; see `Pruner.run`."""
        report = await self.pruner.run(keep, dry_run=dry_run)
        if not dry_run:
            self._care.wake()
        return report

    # --- once a second -----------------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        while True:
            await self._watch.sleep(_LOOK_S)
            try:
                await self._measure()
                await self._cut_log()
            except TaskforgeError as error:
                _log.info("storage.not_measured", error=error.message)
            except Exception as error:  # noqa: BLE001  task boundary: a fault here must not stop the daemon
                _log.error("storage.not_measured", exc_info=error)

    async def _measure(self) -> None:
        found = await self._store.measure()
        _, wal = self._store.sizes()
        self._take(found, wal)
        self.pressure.measure(found.used_bytes)

    def _take(self, found: Pages, wal_bytes: int) -> None:
        state = self.state
        state.page_size, state.pages, state.free_pages, state.can_shrink = found
        state.wal_bytes = wal_bytes
        state.measured_at = self._clock.now()

    async def _cut_log(self) -> None:
        """Keep the log short: under load when it has grown, else when nothing is written any more."""
        cut, commits = self._log_cut, self._store.journal.stats.commits
        if commits != cut.commits:
            cut.commits, cut.busy_since = commits, time.monotonic()
        is_idle = time.monotonic() - cut.busy_since >= _IDLE_S
        if self.state.wal_bytes > (0 if is_idle else WAL_BYTES_MAX):
            await self._store.checkpoint()

    # --- what takes longer -------------------------------------------------------------------------------------------

    async def _care_for_ever(self) -> None:
        while True:
            await self._care.sleep(_LOOK_S)
            try:
                if self.backups.is_due():
                    await self.backups.create_scheduled()
                if self._is_pruning_due():
                    await self.pruner.run(repeat_s=_REPEAT_S)
                await self._shrink()
            except TaskforgeError as error:
                _log.warning("storage.care_failed", error=error.message, reason=error.reason)
            except Exception as error:  # noqa: BLE001  task boundary: a fault here must not stop the daemon
                _log.error("storage.care_failed", exc_info=error)

    def _is_pruning_due(self) -> bool:
        now = time.monotonic()
        if self.pressure.is_over:
            self._next_prune = min(self._next_prune, now + _PRUNE_PRESSED_S)
        if not self._trust.is_earned():
            if not self._waits_for_clock:
                self._waits_for_clock = True
                _log.warning("retention.waits", why="the clock has jumped, or the daemon was away for more than a day")
            return False
        self._waits_for_clock = False
        if now < self._next_prune:
            return False
        self._next_prune = now + (_PRUNE_PRESSED_S if self.pressure.is_over else PRUNE_EVERY_S)
        return True

    async def _shrink(self) -> None:
        """Give free pages at the end of the file back to the disk, a few at a time."""
        found = await self._store.measure()
        until = time.monotonic() + _SHRINK_TURN_S
        while found.can_shrink and found.free_pages > max(_SLACK_PAGES, found.pages // _SLACK_PART):
            took_s = await self._store.shrink(self._shrink_pages)
            fitting = int(self._shrink_pages * _SHRINK_SLICE_S / max(took_s, 1e-6))
            self._shrink_pages = min(max(fitting, 1), 2 * self._shrink_pages, _SHRINK_PAGES)
            before, found = found, await self._store.measure()
            self.state.pages_given_back += max(0, before.pages - found.pages)
            if found.free_pages >= before.free_pages or time.monotonic() > until:
                return
            await asyncio.sleep(max(_SHRINK_PAUSE_S, _SHRINK_PAUSE_RATIO * took_s))
