"""Whether there is room for new work. What runs already may go on: it needs little, and ends."""

from __future__ import annotations

import os
from pathlib import Path

from taskforged.errors import ResourceExhaustedError

__all__ = ["DISK_LOW", "Pressure"]

DISK_LOW = "DISK_LOW"

_MIB = 1 << 20


class Pressure:
    """Refuses new work while the disk is nearly full, before a write fails in the middle of something."""

    def __init__(self, folder: Path, *, free_mib: int) -> None:
        """Create a check; `free_mib` of 0 means none."""
        self._folder = folder
        self._free = free_mib * _MIB

    def check(self) -> None:
        """Look; two microseconds.

        Raises:
            ResourceExhaustedError: there is less space than is to be kept free.
        """
        if not self._free:
            return
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if free < self._free:
            raise ResourceExhaustedError(
                f"the disk has {free // _MIB:,} MiB left, and new work needs {self._free // _MIB:,}: free some space,"
                " or change [limits] disk_free_mib",
                reason=DISK_LOW,
                retry_after_s=30.0,
                metadata={"free_bytes": str(free)},
            )
