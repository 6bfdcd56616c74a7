"""`taskforgectl run watch`."""

from __future__ import annotations

import click

from taskforgectl.commands.run.outcome import get_run, watch_run
from taskforgectl.kinds import RUN
from taskforgectl.options import Verb
from taskforgectl.paging import reconnect_option

__all__ = ["verbs"]


@click.command("watch", cls=Verb)
@click.argument("run_id", metavar="RUN", type=RUN)
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin after this sequence number.")
@reconnect_option
@click.pass_context
def _watch(context: click.Context, *, run_id: str, after: int, reconnect_s: float) -> None:
    """Watch a run until it ends. Exit code 0 only if it succeeded. Ctrl-C detaches and leaves the run alone."""
    watch_run(context, get_run(context.obj, run_id), after=after, reconnect_s=reconnect_s)


verbs = (_watch,)
