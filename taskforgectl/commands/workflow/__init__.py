"""`taskforgectl workflow`: apply, check, show and draw definitions."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "workflow",
    help="Apply, check, show and draw workflows.",
    verbs={
        "apply": ("verbs", "Store definitions as new versions."),
        "validate": ("verbs", "Check definitions like `apply` and store nothing."),
        "list": ("verbs", "List the workflows of a namespace by name."),
        "show": ("verbs", "Show a workflow and the source of its newest version."),
        "versions": ("verbs", "List the versions of a workflow, newest first."),
        "graph": (
            "graph",
            "Draw a workflow, or the definition in a file: what follows what, what branches, what is undone.",
        ),
        "activate": ("verbs", "Let a workflow's triggers start runs."),
        "deactivate": ("verbs", "Stop a workflow's triggers."),
        "delete": ("verbs", "Delete a workflow."),
    },
)
