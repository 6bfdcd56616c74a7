"""The bounded pool of executors and the order in which queued commands get a slot.

A slot is an entry in `_slots`, owned by one command; it is taken before the start is recorded and given back when the
result is taken in, in one place each. Memory is bounded: of a long backlog only a window is held, refilled from the
outbox's index. The order is by run, oldest first: what has begun is finished before new work is begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

__all__ = ["CommandKey", "Dispatcher"]

CommandKey: TypeAlias = tuple[int, int]
"""Run number and sequence: what identifies a command for ever."""

_log = structlog.get_logger(__name__)

REFILL_RETRY_S = 1.0

WINDOW = 1024
"""Queued commands held in memory. A refill costs one indexed query, so several pool sizes are plenty."""


class Dispatcher:
    """Hands slots to queued commands."""

    def __init__(
        self,
        *,
        pool_size: int,
        load_queued: Callable[[int], Awaitable[list[CommandKey]]],
        claim: Callable[[CommandKey], None],
    ) -> None:
        """Create a dispatcher.

        Args:
            pool_size: executors at work at once.
            load_queued: answers up to so many queued commands from the outbox, in order.
            claim: asked to start a command whose slot has been taken; it answers later through `release`.
        """
        self.pool_size = pool_size
        self._load_queued = load_queued
        self._claim = claim
        self._slots: set[CommandKey] = set()
        self._window: deque[CommandKey] = deque()
        self._more_on_disk = True
        self._missed = False
        self._refilling: asyncio.Task[None] | None = None
        self._open = False
        self._pumping = False

    def open(self) -> None:
        """Begin to hand out slots."""
        self._open = True
        self._pump()

    def close(self) -> None:
        """Hand out no more slots. What has one keeps it."""
        self._open = False

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._slots)

    def try_take(self, key: CommandKey) -> bool:
        """Take a slot for a command that is about to be created, if one is free and nobody waits for it."""
        if not self._open or self._window or self._more_on_disk or len(self._slots) >= self.pool_size:
            return False
        self._slots.add(key)
        return True

    def enqueue(self, key: CommandKey) -> None:
        """A command has been put into the outbox as queued."""
        if self._more_on_disk or len(self._window) >= WINDOW:
            self._more_on_disk = self._missed = True  # missed: a refill under way may have read before it was there
        else:
            self._window.append(key)
        self._pump()

    def release(self, key: CommandKey) -> None:
        """A command no longer needs its slot, or never got one. Idempotent."""
        if key in self._slots:
            self._slots.discard(key)
            self._pump()

    def _pump(self) -> None:
        if not self._open or self._pumping:
            return  # a claim may be answered within itself: then the loop below goes on, and the stack does not grow
        self._pumping = True
        try:
            self._hand_out()
        finally:
            self._pumping = False
        if not self._window and self._more_on_disk and self._refilling is None and len(self._slots) < self.pool_size:
            self._refilling = asyncio.create_task(self._refill(), name="dispatcher.refill")

    def _hand_out(self) -> None:
        while self._window and len(self._slots) < self.pool_size:
            key = self._window.popleft()
            if key not in self._slots:
                self._slots.add(key)
                self._claim(key)

    async def _refill(self) -> None:
        limit = WINDOW + self.pool_size
        self._missed = False
        try:
            keys = await self._load_queued(limit)
        except Exception as error:  # noqa: BLE001  task boundary: a failed read must not stop the pool for ever
            _log.error("dispatcher.refill_failed", error=str(error))
            asyncio.get_running_loop().call_later(REFILL_RETRY_S, self._pump)
            return
        finally:
            self._refilling = None
        self._more_on_disk = len(keys) == limit or self._missed
        self._window.extend(key for key in keys if key not in self._slots)
        self._pump()
