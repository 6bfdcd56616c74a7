"""`taskforgectl token`: credentials."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "token",
    help="Create, rotate and revoke credentials.",
    verbs={
        "create": ("verbs", "Make a token."),
        "list": ("verbs", "List tokens, newest first."),
        "rotate": ("verbs", "Replace a token's secret."),
        "revoke": ("verbs", "End a token at once."),
    },
)
