"""`taskforgectl storage`: what the database holds."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "storage",
    help="Show what the database holds.",
    verbs={"show": ("verbs", "Show sizes and budgets, and what pruning and backups have done.")},
)
