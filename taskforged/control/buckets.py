"""Token buckets: how often something may happen. Not durable: after a start every bucket is full."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """`rate` tokens come in a second, `size` fit in; it begins full. Times are seconds that never run backwards."""

    __slots__ = ("_at", "_tokens", "rate", "size")

    def __init__(self, rate: float, size: float, now: float) -> None:
        self.rate = rate
        self.size = size
        self._tokens = size
        self._at = now

    def take(self, now: float) -> float:
        """Take a token; answers 0, or the seconds until there is one, and then none is taken."""
        self._tokens = min(self.size, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0
