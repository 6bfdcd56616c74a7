"""`taskforgectl event`: what happened and what became of it; publish and replay."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "event",
    help="Show what happened and what became of it; publish and replay.",
    verbs={
        "list": ("show", "List events, newest first."),
        "watch": ("watch", "Watch events as their triggers are asked, oldest first."),
        "show": ("show", "Show an event with headers, body and what each trigger made of it."),
        "why": ("why", "Say why an event did or did not start runs."),
        "publish": ("publish", "Publish an internal event."),
        "replay": ("replay", "Offer events again to the triggers as they are now."),
    },
)
