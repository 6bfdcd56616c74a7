"""Whether the clock may be believed. Retention deletes by it, and what is gone is gone.

A machine without a battery for its clock, or one whose time server answers nonsense, may believe for a while that it is
years later. Nothing tells that from a long sleep but patience: whoever corrects clocks does so within the hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["ClockTrust"]

GAP_US = 86_400_000_000
"""So long without a sign of life is a reason to wait."""

JUMP_US = 3_600_000_000
"""And so is a clock that goes on by so much more than has passed."""

CALM_S = 3600.0
"""How long the clock then has to behave."""


class ClockTrust:
    """Watches the wall clock.

    Args:
        wall: what it shows, in microseconds since 1970.
        monotonic: seconds that pass, whatever the wall clock shows.
    """

    def __init__(self, wall: Callable[[], int], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._calm_from = monotonic()
        self._seen = (wall(), monotonic())

    def start(self, last_sign_of_life: int) -> None:
        """Begin, with when this home was in use last, 0 for never."""
        if last_sign_of_life and self._wall() - last_sign_of_life > GAP_US:
            self._calm_from = self._monotonic() + CALM_S

    def is_earned(self) -> bool:
        """Look again; answer whether the clock has behaved for long enough."""
        wall, passed = self._wall(), self._monotonic()
        if wall - self._seen[0] - (passed - self._seen[1]) * 1_000_000 > JUMP_US:
            self._calm_from = passed + CALM_S
        self._seen = (wall, passed)
        return passed >= self._calm_from
