"""The task that looks whether something is due: one for all schedules, and a comparison a second when nothing is."""

from __future__ import annotations

import structlog

from taskforged.control.schedules import Scheduler
from taskforged.host.loop import Loop

__all__ = ["CronScan"]

_log = structlog.get_logger(__name__)

_FAILURE_PAUSE_S = 1.0


class CronScan(Loop):
    """Runs the scheduler for ever."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__("cron", self._look)
        self._scheduler = scheduler

    def wake(self) -> None:
        """The schedules have changed."""
        self._scheduler.look_again()
        super().wake()

    async def _look(self) -> None:
        while True:
            try:
                if self._scheduler.is_due:
                    await self._scheduler.run_once()
                pause_s = self._scheduler.pause_s()
            except Exception as error:  # noqa: BLE001  task boundary: a passing fault must not stop all schedules
                _log.error("cron.failed", exc_info=error)
                self._scheduler.look_again()
                pause_s = _FAILURE_PAUSE_S
            await self.sleep(pause_s)
