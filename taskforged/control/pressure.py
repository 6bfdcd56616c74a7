"""Whether there is room for new work. What runs already may go on: it needs little, and ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog

from taskforged.errors import ResourceExhaustedError

__all__ = ["DISK_LOW", "STORAGE_REASONS", "STORE_FULL", "Pressure"]

_log = structlog.get_logger(__name__)

DISK_LOW = "DISK_LOW"
STORE_FULL = "STORE_FULL"

STORAGE_REASONS = frozenset({DISK_LOW, STORE_FULL, "DISK_FULL"})
"""Reasons of a refusal for want of room, the journal's own included."""

_MIB = 1 << 20

_RETRY_S = 30.0

_LOOK_S = 0.05
"""How long a look at a disk with room counts: a busy daemon asks thousands of times a second."""

_EASED = 0.95
"""A full database takes new work again below this part of its budget, so that it does not flutter at the edge."""


class Pressure:
    """Refuses new work while disk or database are nearly full, before a write fails in the middle of something.

    `wal_bytes` and `used_bytes` of the database are measured by somebody else, once a second; the disk is looked at.
    """

    def __init__(self, folder: Path, *, free_mib: int, max_mib: int = 0) -> None:
        """Create a check; 0 means that a limit is none."""
        self._folder = folder
        self._free = free_mib * _MIB
        self._most = max_mib * _MIB
        self._used = 0
        self._is_low = False
        self._looked_s = -_LOOK_S
        self.is_over = False

    @property
    def disk_free_bytes(self) -> int:
        """What must be free on the disk before new work is taken again after it was refused."""
        return self._free + min(self._free // 8, 64 * _MIB)

    @property
    def budget_bytes(self) -> int:
        """What the database may hold; 0: anything."""
        return self._most

    @property
    def is_low(self) -> bool:
        """Whether the disk was nearly full when it was last looked at."""
        return self._is_low

    def measure(self, used_bytes: int) -> None:
        """Take note of how much the database holds: pages in use, without those that wait to be used again."""
        self._used = used_bytes
        if not self._most:
            return
        is_over = used_bytes >= (self._most * _EASED if self.is_over else self._most)
        if is_over != self.is_over:
            self.is_over = is_over
            event = "storage.over_budget" if is_over else "storage.within_budget"
            _log.warning(event, used_bytes=used_bytes, budget_bytes=self._most)

    def check(self) -> None:
        """Look, unless that was just done.

        Raises:
            ResourceExhaustedError: there is less space than is to be kept free, or the database holds too much.
        """
        if self._free:
            self._check_disk()
        if self.is_over:
            raise ResourceExhaustedError(
                f"the database holds {self._used / _MIB:,.1f} MiB, and new work waits until it is below"
                f" {self._most * _EASED / _MIB:,.1f}: shorten [retention], run `taskforgectl prune`,"
                " or raise [store] max_mib",
                reason=STORE_FULL,
                retry_after_s=_RETRY_S,
                metadata={"used_bytes": str(self._used), "budget_bytes": str(self._most)},
            )

    def _check_disk(self) -> None:
        now_s = time.monotonic()
        if not self._is_low and now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        wanted = self.disk_free_bytes if self._is_low else self._free
        is_low = free < wanted
        if is_low != self._is_low:
            self._is_low = is_low
            _log.warning("storage.disk_low" if is_low else "storage.disk_has_room", free_bytes=free)
        if is_low:
            raise ResourceExhaustedError(
                f"the disk has {free // _MIB:,} MiB left, and new work needs {wanted // _MIB:,}: free"
                " some space, or change [limits] disk_free_mib",
                reason=DISK_LOW,
                retry_after_s=_RETRY_S,
                metadata={"free_bytes": str(free)},
            )
