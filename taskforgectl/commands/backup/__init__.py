"""`taskforgectl backup`: copies of the database."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "backup",
    help="Make, list and verify copies of the database.",
    verbs={
        "create": ("verbs", "Make a backup while the daemon works."),
        "list": ("verbs", "List the finished backups, newest first."),
        "verify": ("verbs", "Check a backup from its first page to its last."),
    },
)
