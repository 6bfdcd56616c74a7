"""Counters and histograms that cost less than a microsecond: plain numbers, read by whoever shows them.

They are changed on the event loop only, and know nothing of how they are exported. What they are told apart by comes
from users (names of namespaces, workflows, queues), so each holds a bounded number of keys: the first that come are
named, and all later ones count together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["LONG_S", "OTHER", "SHORT_S", "SIZES", "Counts", "DoorMeters", "Histogram", "Histograms", "Key"]

SHORT_S: Sequence[float] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds of what should take milliseconds."""

LONG_S: Sequence[float] = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Upper bounds in seconds of what may take a day."""

SIZES: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Upper bounds of sizes of batches."""

OTHER = "other"
"""Stands for all names beyond the bound."""

Key: TypeAlias = tuple[str, ...]
"""What things are told apart by."""


class Histogram:
    """How often values fell between given bounds, and their sum."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float], buckets: Sequence[int] = (), total: float = 0.0) -> None:
        """Create a histogram with upper bounds in ascending order; a last bucket takes what is above all of them."""
        self.bounds = bounds
        self.buckets = list(buckets) or [0] * (len(bounds) + 1)
        self.total = total

    def observe(self, value: float) -> None:
        """Count a value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """Answer what it holds now, for another thread."""
        return Histogram(self.bounds, self.buckets, self.total)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.buckets)


class Counts:
    """Counters by key."""

    __slots__ = ("_most", "by_key")

    def __init__(self, most: int) -> None:
        """Create counters for at most so many keys, and one more for all others."""
        self._most = most
        self.by_key: dict[Key, int] = {}

    def add(self, key: Key, amount: int = 1) -> None:
        """Count."""
        known = self.by_key.get(key)
        if known is None:
            key = bounded(key, self.by_key, self._most)
            known = self.by_key.get(key, 0)
        self.by_key[key] = known + amount


class Histograms:
    """Histograms by key."""

    __slots__ = ("_bounds", "_most", "by_key")

    def __init__(self, bounds: Sequence[float], most: int) -> None:
        """Create histograms for at most so many keys, and one more for all others."""
        self._bounds = bounds
        self._most = most
        self.by_key: dict[Key, Histogram] = {}

    def observe(self, key: Key, value: float) -> None:
        """Count a value."""
        known = self.by_key.get(key)
        if known is None:
            known = self.by_key.setdefault(bounded(key, self.by_key, self._most), Histogram(self._bounds))
        known.observe(value)


def bounded(key: Key, known: dict[Key, int] | dict[Key, Histogram], most: int) -> Key:
    """Answer under which key something new counts."""
    return key if len(known) < most else (OTHER,) * len(key)


class DoorMeters:
    """What is counted at the doors.

    Attributes:
        http: requests by route and status.
        webhooks: deliveries by outcome.
        acks: seconds from a delivery's last byte to its being on disk.
        grpc: calls by method and code.
        grpc_durations: seconds of unary calls by method.
        spans_exported, export_failures: what a collector of traces has taken, and how often it did not.
    """

    __slots__ = ("acks", "export_failures", "grpc", "grpc_durations", "http", "spans_exported", "webhooks")

    def __init__(self) -> None:
        """Create counters. The keys are ours, apart from that nothing here grows with what is asked."""
        self.http = Counts(200)
        self.webhooks = Counts(20)
        self.acks = Histogram(SHORT_S)
        self.grpc = Counts(1000)
        self.grpc_durations = Histograms(SHORT_S, 200)
        self.spans_exported = 0
        self.export_failures = 0
