"""Counters and histograms that cost less than a microsecond: plain numbers, read by whoever shows them.

They are changed on the event loop only, and know nothing of how they are exported.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["COUNTS", "LONG_S", "SHORT_S", "Histogram", "Histograms"]

SHORT_S: Sequence[float] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds of what should take milliseconds."""

LONG_S: Sequence[float] = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Upper bounds in seconds of what may take a day."""

COUNTS: Sequence[float] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of sizes of batches."""


class Histogram:
    """How often values fell between given bounds, and their sum."""

    __slots__ = ("_bounds", "_buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Create an empty histogram with upper bounds in ascending order; one without a bound is added."""
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """Answer each upper bound as text with the number of values up to it, as Prometheus wants them."""
        found, so_far = list[tuple[str, float]](), 0
        for bound, count in zip([*map(_text, self._bounds), "+Inf"], self._buckets, strict=True):
            so_far += count
            found.append((bound, so_far))
        return found


def _text(bound: float) -> str:
    return repr(float(bound))


class Histograms:
    """Histograms by the value of a label; the number of values is bounded, and what is beyond it counts as `other`."""

    OTHER = "other"

    def __init__(self, bounds: Sequence[float], most: int) -> None:
        self._bounds = bounds
        self._most = most
        self.by_label: dict[str, Histogram] = {}

    def observe(self, label: str, value: float) -> None:
        """Count a value under a label."""
        histogram = self.by_label.get(label)
        if histogram is None:
            if len(self.by_label) >= self._most:
                label = self.OTHER
            histogram = self.by_label.setdefault(label, Histogram(self._bounds))
        histogram.observe(value)
