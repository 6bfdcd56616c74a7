"""Watching a run: a live view on a terminal, else one line per event, or one JSON object per event."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from taskforge.v1 import run_pb2

from taskforgectl.options import Settings
from taskforgectl.render.board import Board, StepLine, describe_body, run_state
from taskforgectl.render.output import echo, echo_json_line
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import STATE_STYLES, local_time, span

__all__ = ["Viewer", "open_viewer"]

_GLYPHS = {
    "SUCCEEDED": "✓",
    "FAILED": "✗",
    "DEAD": "✗",
    "CANCELLED": "■",
    "SKIPPED": "-",
    "QUEUED": "·",
    "RETRYING": "↻",
    "WAITING": "◷",
    "NEEDS_DECISION": "?",
}
_FRAMES_PER_S = 8
_OTHER_LINES = 5
"""Lines of the view that are not steps; what does not fit on the screen could not be drawn over."""


class Viewer(Protocol):
    """Shows what happens to a run."""

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:
        """Show new events, oldest first, perhaps none: then the run is only known to live."""

    def interrupted(self, reason: str) -> None:
        """Show that the stream is broken and is being mended."""


@contextlib.contextmanager
def open_viewer(settings: Settings, board: Board, refresh: Callable[[], run_pb2.Run]) -> Iterator[Viewer]:
    """Yield the viewer that fits the output.

    Args:
        settings: tell the format and whether there is a terminal.
        board: the run as it is.
        refresh: answers the run with its steps, for the kinds of steps that were reached meanwhile.
    """
    if settings.output != "table":
        yield _JsonLines()
    elif settings.styled:
        console = Console(no_color=not settings.color, highlight=False)
        view = _LiveView(board, refresh, rows_max=max(1, console.height - _OTHER_LINES))
        with Live(console=console, get_renderable=view.render, refresh_per_second=_FRAMES_PER_S):
            yield view
            view.rows_max = sys.maxsize  # the last frame may scroll
    else:
        yield _PlainLines(board)


class _JsonLines:
    """One JSON object per event, for programs."""

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:  # noqa: ARG002
        for event in events:
            echo_json_line(plain(event))

    def interrupted(self, reason: str) -> None:
        click.echo(f"reconnecting… ({safe_line(reason)})", err=True)


class _PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, board: Board) -> None:
        self._board = board
        echo(f"{board.run.id}  {board.run.workflow} v{board.run.version}")

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:
        for event in events:
            self._board.apply(event)
            echo(_event_line(event))
        if run.HasField("end_time"):
            took_us = run.end_time.ToMicroseconds() - run.create_time.ToMicroseconds()
            echo(f"{run.id}  {run_state(run.state)}  {span(took_us / 1e6)}")

    def interrupted(self, reason: str) -> None:
        click.echo(f"reconnecting… ({safe_line(reason)})", err=True)


def _event_line(event: run_pb2.HistoryEvent) -> str:
    body = plain(event)["body"]
    attempt = f"attempt {event.attempt}" if event.attempt else ""
    parts = [event.kind, event.step, attempt, describe_body(event.kind, body)]
    time_text = local_time(event.create_time.ToJsonString())
    return "  ".join([time_text, str(event.sequence), *(safe_line(part) for part in parts if part)])


class _LiveView:
    """The header and a line per step, drawn anew several times a second by a thread of rich."""

    def __init__(self, board: Board, refresh: Callable[[], run_pb2.Run], *, rows_max: int) -> None:
        self.rows_max = rows_max
        self._board = board
        self._refresh = refresh
        self._broken = ""
        self._spinner = Spinner("dots", style="cyan")

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:  # noqa: ARG002
        self._broken = ""
        for event in events:
            self._board.apply(event)
        if self._board.needs_names():
            self._board.learn(self._refresh())

    def interrupted(self, reason: str) -> None:
        self._broken = safe_line(reason)

    def render(self) -> RenderableType:
        """Draw the present frame."""
        now = time.time()
        parts: list[RenderableType] = [self._header(now), self._steps(now)]
        if self._board.error:
            parts.append(Text(self._board.error, style="red"))
        if self._broken:
            parts.append(Text(f"reconnecting… ({self._broken})", style="yellow"))
        return Group(*parts)

    def _header(self, now: float) -> Text:
        board = self._board
        elapsed = span((board.ended or now) - board.began)
        text = Text(f"{board.run.id}  {safe_line(board.run.workflow)} v{board.run.version}  ", style="bold")
        text.append(board.state, style=STATE_STYLES.get(board.state, ""))
        return text.append(f"  {elapsed}", style="not bold dim")

    def _steps(self, now: float) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        steps = list(self._board.steps.values())  # a copy: the other thread adds steps meanwhile
        if len(steps) > self.rows_max:
            table.add_row("", Text(f"… {len(steps) - self.rows_max} earlier steps", style="dim"))
        for step in steps[-self.rows_max :]:
            table.add_row(*self._row(step, now))
        return table

    def _row(self, step: StepLine, now: float) -> Sequence[Any]:
        style = STATE_STYLES.get(step.state, "")
        glyph = self._spinner if step.state == "RUNNING" else Text(_GLYPHS.get(step.state, " "), style=style)
        attempt = f"attempt {step.attempt}/{step.attempts_max}" if step.attempts_max > 1 and step.attempt else ""
        took = span((step.ended or now) - step.began) if step.began else ""
        return [
            glyph,
            Text(safe_line(step.key)),
            Text(safe_line(step.kind), style="dim"),
            Text(step.state, style=style),
            Text(attempt, style="dim"),
            Text(took, style="dim"),
            Text(step.detail, style="dim" if step.state == "SUCCEEDED" else "yellow"),
        ]
