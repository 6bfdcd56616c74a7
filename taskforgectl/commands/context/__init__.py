"""`taskforgectl context`: daemons by name, and how each proves itself."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "context",
    help="Keep the daemons of other machines by name.",
    verbs={
        "add": ("add", "Keep a daemon under a name."),
        "use": ("verbs", "Work with a daemon from now on."),
        "list": ("verbs", "List the daemons that are known."),
        "show": ("verbs", "Show one of them; without NAME the one in force."),
        "trust": ("add", "Accept a daemon's new certificate."),
        "delete": ("verbs", "Forget a daemon."),
    },
)
