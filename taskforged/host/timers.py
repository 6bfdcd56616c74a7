"""Wakes runs whose time has come: one task, one index, no timer per run.

The table is the truth. The task sleeps until the earliest due time, hands the due timers to their runs in portions
and looks again; a timer's row goes in the transaction that records that it fired, so one that could not be written
is simply found again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from taskforged.clock import Clock
from taskforged.engine.events import TimerFired
from taskforged.errors import FailedPreconditionError, NotFoundError, TaskforgeError
from taskforged.failpoints import reach
from taskforged.host.loop import Loop
from taskforged.host.runner import Runner
from taskforged.store.sql import QUERIES
from taskforged.store.store import Row, Store

__all__ = ["Timers"]

_log = structlog.get_logger(__name__)

PORTION = 500
"""Timers handed out at once: bounds memory when very many are due after a downtime."""

SLEEP_S_MAX = 60.0
"""Look again at least this often, so that a clock that was set forward is noticed."""

_FAILURE_PAUSE_S = 1.0
_BEGINNING = (-1, 0, 0)


class Timers(Loop):
    """The timer service."""

    def __init__(self, *, store: Store, clock: Clock, runner: Runner) -> None:
        super().__init__("timers", self._look)
        self._store = store
        self._clock = clock
        self._runner = runner
        self._next = 0
        runner.on_timer = self._on_timer

    def _on_timer(self, at: int) -> None:
        """A timer was set for `at`."""
        if at < self._next:
            self._next = at
            self.wake()

    async def _look(self) -> None:
        while True:
            try:
                pause_s = await self.run_once()
            except Exception as error:  # noqa: BLE001  task boundary: without it a passing fault would stop all timers
                _log.error("timers.failed", error=str(error))
                pause_s = _FAILURE_PAUSE_S
            await self.sleep(pause_s)

    async def run_once(self) -> float:
        """Fire what is due and answer how long to sleep, in seconds."""
        self._next = self._clock.now() + round(SLEEP_S_MAX * 1_000_000)
        after, any_due, any_failed = _BEGINNING, False, False
        while True:
            rows = await self._store.rows("due_timers", *after, PORTION)
            now = self._clock.now()
            due = [(no, seq) for no, seq, at in rows if at <= now]
            failed = await asyncio.gather(*(self._fire(no, seq) for no, seq in due))
            any_due, any_failed = any_due or bool(due), any_failed or any(failed)
            if len(due) < PORTION:
                return self._pause_s(rows, any_due=any_due, any_failed=any_failed)
            no, seq, at = rows[-1]
            after = (at, no, seq)  # on, and not again from the start: those that cannot fire must not block the others

    def _pause_s(self, rows: Sequence[Row], *, any_due: bool, any_failed: bool) -> float:
        if any_failed:
            return _FAILURE_PAUSE_S
        if any_due:
            return 0.0  # look again at once: what these led to
        if rows:
            self._next = min(self._next, rows[0][2])
        return max(0.0, (self._next - self._clock.now()) / 1_000_000)

    async def _fire(self, no: int, seq: int) -> bool:
        try:
            reach("timer.due")
            await self._runner.deliver(no, TimerFired(seq))
            reach("timer.fired")
        except (FailedPreconditionError, NotFoundError):
            _log.error("timers.orphan", run_no=no, sequence=seq)  # cannot be, by construction; must not stay
            await self._store.journal.execute(lambda c: c.execute(QUERIES["delete_timer"], (no, seq)))
        except TaskforgeError as error:
            _log.warning("timers.not_fired", run_no=no, sequence=seq, error=str(error))
            return True
        return False
