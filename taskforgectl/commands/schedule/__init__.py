"""`taskforgectl schedule`: what became of due times."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "schedule",
    help="Show what became of due times, and make up for them. TRIGGER is WORKFLOW/TRIGGER, or WORKFLOW with only one.",
    verbs={
        "explain": ("explain", "Say what became of the due times of a trigger, and what happens next."),
        "slots": ("slots", "List what became of due times, newest first."),
        "backfill": ("backfill", "Start runs for due times of the past, all of them or none."),
    },
)
