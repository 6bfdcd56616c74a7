"""Tables and details for people: by rich on a terminal, else plain aligned text that tools can cut."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskforgectl.options import Settings
from taskforgectl.render.output import Item, echo
from taskforgectl.render.safe import safe_line, safe_lines

__all__ = [
    "STATE_STYLES",
    "Column",
    "age",
    "few",
    "filled",
    "lasting",
    "local_time",
    "show_details",
    "show_table",
    "span",
    "tabled",
    "when",
]

STATE_STYLES: Mapping[str, str] = {
    "SUCCEEDED": "green",
    "RUNNING": "cyan",
    "QUEUED": "cyan",
    "PENDING": "cyan",
    "RETRYING": "yellow",
    "WAITING": "yellow",
    "PAUSED": "yellow",
    "SCHEDULED": "yellow",
    "NEEDS_DECISION": "bold yellow",
    "FAILED": "red",
    "DEAD": "bold red",
    "CANCELLED": "magenta",
    "SKIPPED": "dim",
    "ACCEPTED": "green",
    "REJECTED": "red",
    "FIRED": "green",
    "MISSED": "red",
    "SUPPRESSED": "yellow",
    "ready": "green",
    "stopped": "red",
}
"""Colours of states, of runs, steps, events and the daemon. A state never is told by its colour alone."""


_FEW = 3

_RELATIVE_S = 30 * 86_400
"""Times further away than this are told as dates."""


class Column(NamedTuple):
    """One column: its title, and a cell's text."""

    title: str
    cell: Callable[[Item], Any]


def show_table(settings: Settings, items: Sequence[Item], columns: Sequence[Column], *, empty: str) -> None:
    """Show rows; `empty` says what to do when there are none."""
    if not items:
        echo(empty)
        return
    rows = [[safe_line(_text(column.cell(item))) for column in columns] for item in items]
    titles = [safe_line(column.title) for column in columns]
    if settings.styled:
        _rich_table(settings, titles, rows)
    else:
        echo("\n".join(_aligned([titles, *rows])))


def tabled(settings: Settings, columns: Sequence[Column], *, empty: str) -> Callable[[Sequence[Item]], None]:
    """Answer a function that shows rows as `show_table` does."""
    return lambda items: show_table(settings, items, columns, empty=empty)


def filled(columns: Sequence[Column], items: Sequence[Item], *always: str) -> list[Column]:
    """Answer the columns in which something stands, and those with these titles."""
    return [column for column in columns if column.title in always or any(map(column.cell, items))]


def show_details(settings: Settings, pairs: Sequence[tuple[str, Any]]) -> None:
    """Show labelled values, one per line; empty ones are left out."""
    known = [(label, safe_lines(_text(value))) for label, value in pairs if value not in (None, "", [], {})]
    if settings.styled:
        _rich_details(settings, known)
        return
    width = max((len(label) for label, _ in known), default=0)
    for label, text in known:
        echo(f"{label:<{width}}  {_indented(text, width + 2)}")


def local_time(stamp: str | None) -> str:
    """Answer an RFC 3339 time to the second, in the local zone."""
    if not stamp:
        return ""
    return dt.datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def when(stamp: str | None) -> str:
    """Answer a time for a table: how long ago, or in how long, on a terminal; else as `local_time` has it."""
    if not stamp or not sys.stdout.isatty():
        return local_time(stamp)
    passed = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(stamp)).total_seconds()
    if abs(passed) >= _RELATIVE_S:
        return local_time(stamp)
    return f"{_rough(passed)} ago" if passed >= 0 else f"in {_rough(-passed)}"


def _rough(seconds: float) -> str:
    """Answer a duration in one unit, as people tell it."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def age(begin: str | None, end: str | None) -> str:
    """Answer how long something took, or has taken until now."""
    if not begin:
        return ""
    until = dt.datetime.fromisoformat(end) if end else dt.datetime.now(dt.UTC)
    return span((until - dt.datetime.fromisoformat(begin)).total_seconds())


def span(seconds: float) -> str:
    """Answer a duration with about three digits."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def lasting(duration: str | None) -> str:
    """Answer a span like `1.5s`, as `plain` has it, for people."""
    return span(float(duration.removesuffix("s"))) if duration else ""


def few(names: Sequence[str]) -> str:
    """Answer the first three of many names."""
    more = f" … and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return " ".join(names[:_FEW]) + more


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _indented(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * width)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _rich_table(settings: Settings, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  only terminals need it, and it takes a while to load
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(Text(title), overflow="fold", no_wrap=index == 0)  # an id that is wrapped cannot be copied
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    Console(no_color=not settings.color, highlight=False).print(table)


def _rich_details(settings: Settings, pairs: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in pairs:
        table.add_row(Text(label, style="bold"), Text(text, style=STATE_STYLES.get(text, "")))
    Console(no_color=not settings.color, highlight=False).print(table)
