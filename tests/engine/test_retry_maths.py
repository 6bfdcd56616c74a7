from __future__ import annotations

import pytest

from taskforged.engine.model import Backoff, Jitter, RetryPolicy
from taskforged.engine.retry import delay_s


def delays(strategy, *, jitter=Jitter.NONE, delay=2.0, cap=60.0, attempts=7, seed="run_1/a"):
    policy = RetryPolicy(max_attempts=99, strategy=strategy, delay_s=delay, max_delay_s=cap, jitter=jitter)
    return [delay_s(policy, attempt=attempt, seed=seed) for attempt in range(1, attempts + 1)]


def test_growth():
    assert delays(Backoff.FIXED) == [2, 2, 2, 2, 2, 2, 2]
    assert delays(Backoff.LINEAR) == [2, 4, 6, 8, 10, 12, 14]
    assert delays(Backoff.EXPONENTIAL) == [2, 4, 8, 16, 32, 60, 60]


def test_cap_and_zero():
    assert delays(Backoff.LINEAR, cap=5.0, attempts=3) == [2, 4, 5]
    assert delays(Backoff.FIXED, cap=0.5, attempts=2) == [0.5, 0.5]
    assert delays(Backoff.EXPONENTIAL, delay=0.0, attempts=3, jitter=Jitter.FULL) == [0, 0, 0]


@pytest.mark.parametrize("attempt", [63, 64, 1_000, 10**9])
def test_huge_attempts_stay_at_the_cap(attempt):
    policy = RetryPolicy(strategy=Backoff.EXPONENTIAL, delay_s=1e-9, max_delay_s=60.0, jitter=Jitter.NONE)
    assert delay_s(policy, attempt=attempt, seed="") == 60.0


def test_jitter_stays_within_its_bounds_and_spreads():
    for jitter, low in ((Jitter.FULL, 0.0), (Jitter.EQUAL, 5.0)):
        policy = RetryPolicy(strategy=Backoff.FIXED, delay_s=10.0, jitter=jitter)
        drawn = [delay_s(policy, attempt=1, seed=f"run_{number}/a") for number in range(2000)]
        assert min(drawn) >= low
        assert max(drawn) < 10.0
        assert abs(sum(drawn) / len(drawn) - (low + 10) / 2) < 0.2
        assert len(set(drawn)) == 2000


def test_jitter_is_a_function_of_ids():
    full = delays(Backoff.FIXED, jitter=Jitter.FULL)
    assert full == delays(Backoff.FIXED, jitter=Jitter.FULL)
    assert len(set(full)) == len(full), "each attempt draws anew"
    assert full != delays(Backoff.FIXED, jitter=Jitter.FULL, seed="run_2/a")
    # A recorded value: replays of old histories must wait exactly as long on every machine and version.
    assert full[0] == pytest.approx(1.4045176633520924, abs=1e-12)
