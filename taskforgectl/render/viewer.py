"""Watching a run: the live view on a terminal, else one line per event, or one JSON object per event."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from taskforge.v1 import run_pb2

from taskforgectl.options import Settings
from taskforgectl.render.board import Board, describe_body, run_state
from taskforgectl.render.output import echo, echo_json_line, tell_interruption
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import local_time, span

__all__ = ["Viewer", "open_viewer"]


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
        from taskforgectl.render.live import live_view  # noqa: PLC0415  loads rich, which only terminals need

        with live_view(board, refresh, color=settings.color) as view:
            yield view
    else:
        yield _PlainLines(board)


class _JsonLines:
    """One JSON object per event, for programs."""

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:  # noqa: ARG002
        for event in events:
            echo_json_line(plain(event))

    def interrupted(self, reason: str) -> None:
        tell_interruption(reason)


class _PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, board: Board) -> None:
        echo(f"{board.run.id}  {board.run.workflow} v{board.run.version}")

    def show(self, events: Sequence[run_pb2.HistoryEvent], run: run_pb2.Run) -> None:
        for event in events:
            echo(_event_line(event))
        if run.HasField("end_time"):
            took_us = run.end_time.ToMicroseconds() - run.create_time.ToMicroseconds()
            echo(f"{run.id}  {run_state(run.state)}  {span(took_us / 1e6)}")

    def interrupted(self, reason: str) -> None:
        tell_interruption(reason)


def _event_line(event: run_pb2.HistoryEvent) -> str:
    row = plain(event)
    attempt = f"attempt {event.attempt}" if event.attempt else ""
    parts = [event.kind, event.step, attempt, describe_body(event.kind, row["body"])]
    return "  ".join(
        [local_time(row["create_time"]), str(event.sequence), *(safe_line(part) for part in parts if part)]
    )
