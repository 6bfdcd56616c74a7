"""A wall clock that a test turns under a running daemon; what measures durations goes on as it is.

A preloaded library (`turnclock.c`) moves what CLOCK_REALTIME shows by a number in a file that both have mapped.
libfaketime can do it, too, but reads its file at each look at the clock: the daemon is thirty times slower under it.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SOURCE = Path(__file__).with_name("turnclock.c")

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400


class WallClock:
    """What a daemon that is started with `env` takes for the time."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="tf-clock-")
        folder = Path(self._scratch.name)
        library, state = folder / "turnclock.so", folder / "turned"
        command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, _SOURCE, "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        state.write_bytes(bytes(16))
        with state.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 16)
        self.env = {"LD_PRELOAD": str(library), "TURN_CLOCK": str(state)}
        self._turned_ns = self._still_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared.close()
        self._scratch.cleanup()

    def turn(self, by_s: float) -> None:
        """Set it forward, or back, by so much."""
        if self._still_ns:
            self._still_ns += round(by_s * 1e9)
        else:
            self._turned_ns += round(by_s * 1e9)
        self._show()

    def freeze(self) -> None:
        """Let it stand still from now on, unless it is turned."""
        self._still_ns = round(self.now() * 1e9)
        self._show()

    def _show(self) -> None:
        self._shared[:] = struct.pack("<qq", self._turned_ns, self._still_ns)

    @property
    def turned_s(self) -> float:
        """How far ahead of the right time it goes."""
        return self._turned_ns / 1e9

    def now(self) -> float:
        """What it shows, in seconds since 1970."""
        return (self._still_ns or time.time_ns() + self._turned_ns) / 1e9
