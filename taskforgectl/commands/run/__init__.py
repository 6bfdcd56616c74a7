"""`taskforgectl run`: start, watch, show and steer runs."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "run",
    help="Start, watch, show and steer runs.",
    verbs={
        "start": ("start", "Start a run of the newest version of a workflow."),
        "list": ("show", "List runs, newest first."),
        "show": ("show", "Show a run with its steps."),
        "watch": ("watch", "Watch a run until it ends."),
        "steps": ("show", "List a run's steps in the order in which they were reached."),
        "logs": ("logs", "Show what the steps of a run wrote, or STEP alone."),
        "history": ("show", "List a run's history, oldest first."),
        "explain": ("explain", "Say what a run waits for and who holds it up, or why it ended as it did."),
        "signal": ("steer", "Send a signal to a run."),
        "approve": ("decide", "Approve a step."),
        "reject": ("decide", "Refuse a step, which then fails."),
        "resolve": ("decide", "Say what became of a step that needs a decision."),
        "pause": ("steer", "Let no further step of a run start."),
        "resume": ("steer", "Let a paused run go on."),
        "cancel": ("steer", "Ask a run to stop."),
        "retry": (
            "repeat",
            "Retry a run that failed, died or was cancelled.",
        ),
        "rerun": (
            "repeat",
            "Run one that has ended once more.",
        ),
        "verify": ("show", "Prove that a run's history is unbroken and decides the same again."),
    },
)
