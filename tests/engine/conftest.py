from __future__ import annotations

import pytest

from taskforged.engine.events import (
    AdmitRun,
    ApproveStep,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelRun,
    ChildEnded,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
    TimerFired,
)
from taskforged.testing.factory import activity, create_run, workflow


@pytest.fixture
def some_model():
    return workflow(activity("a"), timeout_s=60)


@pytest.fixture
def some_facts():
    """One fact of each kind, about sequence numbers that are never open; the last two are legal in a run at work."""
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
        ChildEnded(999, "SUCCEEDED"),
        ApproveStep("nowhere", "me"),
        RejectStep("nowhere", "me"),
        ResolveStep("nowhere", "retry", "me"),
        ResumeRun("go on", "me"),
        PauseRun("stand still", "me"),
        SignalRun("go"),
    ]
