"""`taskforgectl event watch`, and what `event list --watch` prints into a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import click
from taskforge.v1 import event_service_pb2 as pb

from taskforgectl.commands.event.filters import Selection, filter_options
from taskforgectl.errors import EXIT_INTERRUPTED, EXIT_USAGE, CliError
from taskforgectl.follow import Interruption, follow_events
from taskforgectl.kinds import WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.paging import reconnect_option
from taskforgectl.render.output import Item, echo_json_line, echo_name, echo_parts, tell_interruption
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import few, local_time

__all__ = ["newest_cursor", "stream", "verbs"]


@click.command("watch", cls=Verb)
@filter_options
@click.option(
    "--workflow",
    metavar="WORKFLOW",
    type=WORKFLOW,
    default="",
    help="Only events that a trigger of it was asked about.",
)
@click.option(
    "--after", metavar="CURSOR", default="", help="Go on behind this cursor; 0: from the oldest. Default: now."
)
@reconnect_option
@click.pass_obj
def _watch(settings: Settings, *, selection: Selection, workflow: str, after: str, reconnect_s: float) -> None:
    """Watch events as their triggers are asked, oldest first. Ctrl-C ends it.

    With -o json each line is one event with its `cursor`, behind which --after goes on. Nothing is missed or repeated,
    also when the daemon restarts meanwhile.
    """
    if selection.until is not None:
        raise CliError("--until is for lists; a watch has no end", code=EXIT_USAGE)
    stream(settings, wanted(settings, selection, workflow), after=after, reconnect_s=reconnect_s, known=())


def wanted(settings: Settings, selection: Selection, workflow: str) -> pb.EventFilter:
    """Answer the filter of a request."""
    return pb.EventFilter(namespace=settings.namespace, workflow=workflow, **selection.fields())


def newest_cursor(settings: Settings, fitting: pb.EventFilter, reconnect_s: float) -> str:
    """Answer the cursor behind the newest event."""
    with contextlib.closing(follow_events(settings, fitting, after="", reconnect_s=reconnect_s)) as updates:
        return next(update.cursor for update in updates if not isinstance(update, Interruption))


def stream(
    settings: Settings, fitting: pb.EventFilter, *, after: str, reconnect_s: float, known: Collection[str]
) -> None:
    """Write events until Ctrl-C, which raises click's Exit.

    Args:
        settings: where to ask, and the format.
        fitting: which events.
        after: the last cursor that was seen.
        reconnect_s: how long the daemon may stay away.
        known: ids of events that were written already.
    """
    show = _writer(settings)
    cursor = after
    try:
        with contextlib.closing(follow_events(settings, fitting, after=after, reconnect_s=reconnect_s)) as updates:
            for update in updates:
                if isinstance(update, Interruption):
                    tell_interruption(update.reason)
                    continue
                if update.removed:
                    click.echo(f"removed by retention, whether they would fit or not: {update.removed:,}", err=True)
                for entry in update.entries:
                    if entry.event.id not in known:
                        show({"cursor": entry.cursor, **plain(entry.event)})
                cursor = update.cursor
    except KeyboardInterrupt:
        if cursor:
            click.echo(safe_line(f"go on with: taskforgectl event watch --after {cursor}"), err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _writer(settings: Settings) -> Callable[[Item], None]:
    if settings.output == "table":
        return _write_line
    if settings.output == "name":
        return lambda event: echo_name(event, "id")
    return echo_json_line


def _write_line(event: Item) -> None:
    reason = event["reason"] or event["duplicate_of"]
    parts: Sequence[Any] = [event["id"], event["type"] or event["path"], event["source"], event["outcome"]]
    echo_parts(local_time(event["create_time"]), *parts, few(event["run_ids"]), reason)


verbs = (_watch,)
