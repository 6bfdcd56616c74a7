"""`taskforgectl queue`: the lanes in which steps wait for executors."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "queue",
    help="Show and limit the lanes in which steps wait.",
    verbs={
        "list": ("verbs", "List the queues of a namespace by name."),
        "show": ("verbs", "Show a queue."),
        "set": ("verbs", "Create a queue, or change what is given."),
        "pause": ("verbs", "Let no step of a queue start."),
        "resume": ("verbs", "Let the steps of a queue start again."),
        "delete": ("verbs", "Delete a queue and its limits."),
    },
)
