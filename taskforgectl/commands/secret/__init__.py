"""`taskforgectl secret`: values that workflows use and nobody reads back."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "secret",
    help="Set and delete secrets.",
    verbs={
        "list": ("verbs", "List secrets by name."),
        "set": ("verbs", "Create or replace a secret."),
        "delete": ("verbs", "Delete a secret."),
        "rotate-key": ("verbs", "Encrypt all secrets with a new master key."),
    },
)
