"""A part of the terminal that is drawn over, and output that is caught before it gets there."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator

__all__ = ["Screen", "captured"]

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class _Text(io.StringIO):
    """Text in memory that takes itself for a terminal, or does not."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def captured(show: Callable[[], None], *, styled: bool) -> str:
    """Answer what a function writes to stdout.

    Args:
        show: writes.
        styled: let it write as if to a terminal.
    """
    with _replaced(_Text(is_terminal=styled)) as text:
        show()
    return text.getvalue()


@contextlib.contextmanager
def _replaced(text: _Text) -> Iterator[_Text]:
    before, sys.stdout = sys.stdout, text
    try:
        yield text
    finally:
        sys.stdout = before


class Screen:
    """Draws over what it drew before. The cursor is hidden until it is closed."""

    def __init__(self) -> None:
        self._lines = 0

    def draw(self, body: str, foot: str) -> None:
        """Draw as much of a text as fits, and a line below it."""
        _, height = shutil.get_terminal_size()
        lines = body.splitlines()
        room = max(1, height - 2)
        if len(lines) > room:
            foot = f"… {len(lines) - room} more lines; {foot}"
        up = _UP_AND_CLEAR.format(self._lines) if self._lines else ""
        shown = [*lines[:room], foot]
        sys.stdout.write(_HIDE + up + "\n".join(shown) + "\n")
        sys.stdout.flush()
        self._lines = len(shown)

    def close(self) -> None:
        """Show the cursor again."""
        if self._lines:
            sys.stdout.write(_SHOW)
            sys.stdout.flush()
