"""`taskforgectl trigger`: what starts runs."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "trigger",
    help="Show, pause, fire and try out what starts runs. TRIGGER is WORKFLOW/TRIGGER, or WORKFLOW with only one.",
    verbs={
        "list": ("show", "List triggers by workflow."),
        "show": ("show", "Show a trigger: where it listens, whether it is paused, when it fired."),
        "next": ("preview", "Show the next due times of a cron trigger or of an expression."),
        "test": ("trial", "Try a definition's triggers on an event, without a daemon."),
        "fire": ("fire", "Ask a trigger by hand, as if what it waits for had happened."),
        "pause": ("show", "Let a trigger start nothing."),
        "resume": ("show", "Let a paused trigger start runs again."),
    },
)
