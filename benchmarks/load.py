"""Load: so many calls in flight, for a number of seconds or of calls, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles

IN_FLIGHT = 64


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values are."""
    if len(values) < 2:
        return values[0]
    return quantiles(values, n=1000, method="inclusive")[min(998, round(share * 1000) - 1)]


@dataclass(slots=True)
class Load:
    """What a load was: seconds in all, and of each call."""

    elapsed: float = 0.0
    took: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many calls were answered."""
        return len(self.took)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.count / self.elapsed

    def ms(self, share: float) -> float:
        """A percentile of the calls' times, in milliseconds."""
        return percentile(self.took, share) * 1e3


async def load(
    call: Callable[[int], Awaitable[object]],
    *,
    seconds: float = 0.0,
    count: int = 0,
    width: int = IN_FLIGHT,
) -> Load:
    """Make calls, `width` at a time, until `count` of them are made or `seconds` are over; then wait for the last."""
    done = Load()
    began = time.perf_counter()
    numbers = _numbers(began + seconds, count)

    async def client() -> None:
        for number in numbers:
            at = time.perf_counter()
            await call(number)
            done.took.append(time.perf_counter() - at)

    await asyncio.gather(*(client() for _ in range(width)))
    done.elapsed = time.perf_counter() - began
    return done


def _numbers(until: float, count: int) -> Iterator[int]:
    number = 0
    while number < count if count else time.perf_counter() < until:
        yield number
        number += 1
