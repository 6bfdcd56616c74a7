"""The task that asks triggers about internal events."""

from __future__ import annotations

import asyncio

import structlog

from taskforged.control.publishing import RETRY_S, EventBus
from taskforged.errors import TaskforgeError
from taskforged.host.loop import Loop

__all__ = ["EventConsumer"]

_log = structlog.get_logger(__name__)


class EventConsumer(Loop):
    """Asks for ever; what could not be decided or written is tried again."""

    def __init__(self, bus: EventBus) -> None:
        super().__init__("internal events", self._ask)
        self._bus = bus

    async def _ask(self) -> None:
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
