from __future__ import annotations

import pytest

from taskforged.engine.events import (
    AdmitRun,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelRun,
    TimerFired,
)
from taskforged.testing.factory import activity, create_run, workflow


@pytest.fixture
def some_model():
    return workflow(activity("a"), timeout_s=60)


@pytest.fixture
def some_facts():
    """One fact of each kind, about sequence numbers that are never open."""
    return [
        create_run(),
        AdmitRun(),
        CancelRun(),
        AttemptStarted(999, 1),
        AttemptCompleted(999, None),
        AttemptFailed(999, {"code": "c", "message": "m"}, retryable=True),
        AttemptLost(999, "crash"),
        AttemptCancelled(999),
        TimerFired(999),
    ]
