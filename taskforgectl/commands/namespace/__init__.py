"""`taskforgectl namespace`: tenants and their limits."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "namespace",
    help="Keep tenants and their limits.",
    verbs={
        "list": ("verbs", "List namespaces by name."),
        "show": ("verbs", "Show a namespace."),
        "set": ("verbs", "Create a namespace, or change what is given."),
        "delete": ("verbs", "Delete a namespace that has nothing in it any more."),
    },
)
