"""`taskforgectl audit`: who changed what."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "audit",
    help="Show who changed what, or tried to.",
    verbs={"list": ("verbs", "List what was changed or tried, newest first.")},
)
