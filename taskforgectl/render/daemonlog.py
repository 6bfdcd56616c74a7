"""Lines of the daemon's log for people. They may quote what others sent, so every part is cleaned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from taskforgectl.options import Settings
from taskforgectl.render.output import Item
from taskforgectl.render.safe import safe_line, safe_lines
from taskforgectl.render.tables import local_time

__all__ = ["parsed", "tell_lines"]

_COLORS = {"debug": "bright_black", "info": "green", "warning": "yellow", "error": "red", "critical": "red"}
_HEAD = ("timestamp", "level", "event", "exception")


def parsed(line: str) -> dict[str, Any]:
    """Answer a line as what was logged; one that is no JSON object as `{"text": line}`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"text": line}


def tell_lines(settings: Settings, entries: Sequence[Item]) -> None:
    """Show entries, one a line: time, level, event, and what it is about."""
    for one in entries:
        _tell(settings, one)


def _tell(settings: Settings, entry: Item) -> None:
    if "text" in entry and "event" not in entry:
        click.echo(safe_lines(str(entry["text"])))
        return
    level = safe_line(str(entry.get("level", "")))
    mark = f"{level:<8}"
    if settings.styled and settings.color:
        mark = click.style(mark, fg=_COLORS.get(level.lower()))
    rest = " ".join(f"{name}={_value(value)}" for name, value in entry.items() if name not in _HEAD)
    parts = [_time(entry.get("timestamp")), mark, safe_line(str(entry.get("event", ""))), safe_line(rest)]
    click.echo(" ".join(part for part in parts if part))
    for error in entry.get("exception") or () if isinstance(entry.get("exception"), list) else ():
        click.echo(f"    {safe_line(str(error.get('exc_type', '')))}: {safe_line(str(error.get('exc_value', '')))}")


def _time(stamp: Any) -> str:
    try:
        return local_time(str(stamp)) if stamp else ""
    except ValueError:
        return safe_line(str(stamp))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
