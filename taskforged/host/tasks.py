"""Tasks that go on by themselves, until the host stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["RELOAD_S", "RETRY_S", "Tasks"]

RETRY_S = 1.0
"""Pause before what could not be written is tried again."""

RELOAD_S = 10.0
"""Pause before a run that could not be read is tried again: its definition may never compile again, so not often."""

T = TypeVar("T")


class Tasks:
    """Holds on to tasks, since a loop alone does not.

    Attributes:
        stopping: nothing new is to begin; the next boot decides about what is cut.
    """

    def __init__(self) -> None:
        """Create an empty set."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.stopping = False

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Let something go on by itself."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all, and wait until they are gone."""
        self.stopping = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=1.0)
