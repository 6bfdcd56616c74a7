"""How long to wait before the next attempt. Pure: the same ids give the same delay on any machine.

Jitter terms are those of the AWS Architecture Blog, "Exponential Backoff And Jitter" (Brooker, 2015): `full` draws
from [0, d), `equal` from [d/2, d). The draw is a hash of run, step and attempt, so that many runs that fail at the
same moment spread, while a replay of one run waits exactly as long as it did.
"""

from __future__ import annotations

import hashlib

from taskforged.engine.model import Backoff, Jitter, RetryPolicy

__all__ = ["delay_s"]

_EXPONENT_MAX = 62
"""2**62 seconds exceeds every cap; beyond that a float would only lose precision."""


def delay_s(policy: RetryPolicy, *, attempt: int, seed: str) -> float:
    """Answer the pause in seconds after failed attempt number `attempt` (from 1)."""
    base = min(_growth(policy, attempt), policy.max_delay_s)
    if policy.jitter is Jitter.NONE:
        return base
    share = _fraction(f"{seed}/{attempt}")
    return base * share if policy.jitter is Jitter.FULL else base / 2 * (1 + share)


def _growth(policy: RetryPolicy, attempt: int) -> float:
    if policy.strategy is Backoff.FIXED:
        return policy.delay_s
    if policy.strategy is Backoff.LINEAR:
        return policy.delay_s * attempt
    return policy.delay_s * float(2 ** min(attempt - 1, _EXPONENT_MAX))


def _fraction(seed: str) -> float:
    """Answer a number in [0, 1) with 53 random-looking bits."""
    return (int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 11) / 2**53
