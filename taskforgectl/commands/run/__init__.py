"""`taskforgectl run`: start, watch, show and steer runs."""

from __future__ import annotations

import click

from taskforgectl.commands.run import decide, explain, logs, repeat, show, start, steer, watch
from taskforgectl.lazy import Noun

__all__ = ["command"]


@click.group("run", cls=Noun)
def command() -> None:
    """Start, watch, show and steer runs."""


for _verbs in (start, watch, show, explain, logs, steer, decide, repeat):
    for _verb in _verbs.verbs:
        command.add_command(_verb)
