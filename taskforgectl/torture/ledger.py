"""What the driver has done and was told, as lines of JSON on disk: what the checks hold the database against.

Times are monotonic seconds since the round began; nothing here relies on the wall clock.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

__all__ = ["Ledger"]


class Ledger:
    """Appends entries. Use as a context manager.

    Attributes:
        counts: how many entries there are of each kind.
        broken: invariants that the driver saw broken while it ran.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1 << 16)
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.broken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def now(self) -> float:
        """Seconds since the round began."""
        return time.monotonic() - self._began

    def write(self, what: str, **fields: Any) -> None:
        """Append an entry."""
        self.counts[what] += 1
        entry = {"t": round(self.now, 4), "what": what, **fields}
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")

    def violation(self, check: str, message: str) -> None:
        """Append that an invariant was seen broken; the report has it with the findings of the checks."""
        self.broken += 1
        self.write("violation", check=check, message=message)

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        self._file.flush()
