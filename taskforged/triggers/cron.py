"""The task that looks whether something is due: one for all schedules, and a comparison a second when nothing is."""

from __future__ import annotations

import asyncio

import structlog

from taskforged.control.schedules import Scheduler

__all__ = ["CronScan"]

_log = structlog.get_logger(__name__)

_FAILURE_PAUSE_S = 1.0


class CronScan:
    """Runs the scheduler for ever."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="cron")

    async def stop(self) -> None:
        """End; what is being written is written or not, as a whole. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """The schedules have changed."""
        self._scheduler.look_again()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                if self._scheduler.is_due:
                    await self._scheduler.run_once()
                pause_s = self._scheduler.pause_s()
            except Exception as error:  # noqa: BLE001  task boundary: a passing fault must not stop all schedules
                _log.error("cron.failed", exc_info=error)
                self._scheduler.look_again()
                pause_s = _FAILURE_PAUSE_S
            await self._sleep(pause_s)

    async def _sleep(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
