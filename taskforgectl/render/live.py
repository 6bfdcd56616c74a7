"""The live view of a run: what a person at a terminal watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from taskforge.v1 import run_pb2

from taskforgectl.errors import CliError
from taskforgectl.render.board import Board, StepLine
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import STATE_STYLES, span

__all__ = ["LiveView", "live_view"]

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


@contextlib.contextmanager
def live_view(board: Board, refresh: Callable[[], run_pb2.Run], *, color: bool) -> Iterator[LiveView]:
    """Yield the view and draw it until the block ends.

    Args:
        board: the run as it is.
        refresh: answers the run with its steps, for the kinds of steps that were reached meanwhile.
        color: whether colours are wanted.
    """
    console = Console(no_color=not color, highlight=False)
    view = LiveView(board, refresh, rows_max=max(1, console.height - _OTHER_LINES))
    with Live(console=console, get_renderable=view.render, refresh_per_second=_FRAMES_PER_S):
        yield view
        view.rows_max = sys.maxsize  # the last frame may scroll


class LiveView:
    """The header and a line per step, drawn anew several times a second by a thread of rich."""

    def __init__(self, board: Board, refresh: Callable[[], run_pb2.Run], *, rows_max: int) -> None:
        self.rows_max = rows_max
        self._board = board
        self._refresh = refresh
        self._broken = ""
        self._spinner = Spinner("dots", style="cyan")

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:  # noqa: ARG002  as Viewer has it
        """Take new events."""
        self._broken = ""
        for event in events:
            self._board.apply(event)
        if self._board.needs_names():
            with contextlib.suppress(CliError):  # the daemon is away again; the next events bring the next try
                self._board.learn(self._refresh())

    def interrupted(self, reason: str) -> None:
        """Say below the steps that the stream is broken."""
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
        steps = list(self._board.rows())
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
