"""`taskforgectl logs`: what the daemon has logged."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from taskforgectl.errors import EXIT_NOT_FOUND, CliError
from taskforgectl.home import Home, local_home
from taskforgectl.logfile import LogFile, follow_journal, journal_backwards
from taskforgectl.options import Settings, Verb
from taskforgectl.render.daemonlog import parsed, tell_lines
from taskforgectl.render.output import echo_json_line, show_list
from taskforgectl.service.manager import in_charge

__all__ = ["command"]

_LEVELS = ("debug", "info", "warning", "error", "critical")


@click.command("logs", cls=Verb)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes. Ctrl-C ends it.")
@click.option(
    "--lines", type=click.IntRange(min=0), default=50, metavar="N", help="Most lines of the past (default 50); 0: all."
)
@click.option("--level", type=click.Choice(_LEVELS), default="debug", help="Only this severe, and more. Default: all.")
@click.pass_obj
def command(settings: Settings, *, follow: bool, lines: int, level: str) -> None:
    """Show the end of the daemon's log: of the journal for a service, else of HOME/taskforged.log.

    With -o json an array of what was logged, with --follow one JSON object per line. A line that is none of the
    daemon's own is under `text`.
    """
    home = local_home(settings, "logs")
    backwards, forwards = _sources(home)
    past = _severe(map(parsed, backwards()), level)
    found = list(itertools.islice(past, lines or None))[::-1]
    if not found and settings.output == "table" and level == _LEVELS[0]:
        click.echo("nothing is logged; a journal is for its user to read when it is stored on disk", err=True)
    if not follow:
        show_list(settings, found, key=_event, table=lambda items: tell_lines(settings, items))
        return
    for one in itertools.chain(found, _severe(map(parsed, forwards()), level)):
        if settings.output in {"json", "yaml"}:
            echo_json_line(one)
        else:
            tell_lines(settings, [one])


_Lines = Callable[[], Iterable[str]]


def _sources(home: Home) -> tuple[_Lines, _Lines]:
    """Answer what yields the lines of the past, from the last one on, and those that come.

    Raises:
        CliError: there is no log.
    """
    if in_charge(home) is not None:
        return journal_backwards, follow_journal
    try:
        file = LogFile(home.log)
    except FileNotFoundError:
        hint = "`taskforgectl up` writes one; a daemon in the foreground writes to its terminal"
        raise CliError(f"there is no log {home.log}", hint=hint, code=EXIT_NOT_FOUND) from None
    return file.backwards, file.follow


def _event(item: Any) -> str:
    return str(item.get("event") or item.get("text") or json.dumps(item))


def _severe(items: Iterable[dict[str, Any]], level: str) -> Iterable[dict[str, Any]]:
    """Leave out what is less severe. A line that says nothing of it, such as a traceback's, is severe enough."""
    least = _LEVELS.index(level)
    rank = {name: index for index, name in enumerate(_LEVELS)}
    return (one for one in items if rank.get(str(one.get("level", "")).lower(), len(_LEVELS)) >= least)
