"""The task that asks triggers about internal events."""

from __future__ import annotations

import asyncio

import structlog

from taskforged.control.publishing import RETRY_S, EventBus
from taskforged.errors import TaskforgeError

__all__ = ["EventConsumer"]

_log = structlog.get_logger(__name__)


class EventConsumer:
    """Asks for ever; what could not be decided or written is tried again."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to ask. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="internal events")

    async def stop(self) -> None:
        """End; what is being written is written or not, as a whole. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._bus.wait_news()
            try:
                await self._bus.run_once()
            except TaskforgeError as error:
                _log.warning("events.not_decided", error=error.message)
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001  task boundary: a passing fault must not stop all triggers
                _log.error("events.not_decided", exc_info=error)
                await asyncio.sleep(RETRY_S)
