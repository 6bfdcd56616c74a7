"""`taskforgectl dead`: runs that exhausted a retry budget, until somebody retries or discards them."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "dead",
    help="Show, retry and discard runs that ran out of retries.",
    verbs={
        "list": ("verbs", "List dead letters, newest first."),
        "show": ("verbs", "Show a dead letter with the steps of its run."),
        "retry": ("verbs", "Retry the runs of dead letters."),
        "discard": ("verbs", "Settle dead letters without doing anything."),
    },
)
