"""Output that is longer than the terminal goes through the pager that the user likes."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["paged"]


@contextlib.contextmanager
def paged(program: str) -> Iterator[None]:
    """Show what is written to stdout meanwhile in a pager when it does not fit on the screen.

    Args:
        program: the pager's command line; empty: none. Whether there is a terminal is the caller's to know.
    """
    command = _command(program)
    if not command:
        yield
        return
    terminal = sys.stdout
    text = _Paged(command)
    sys.stdout = text
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough
        if not text.is_open:
            raise
    finally:
        sys.stdout = terminal
        text.finish(terminal)


def _command(program: str) -> list[str]:
    try:
        words = shlex.split(program)
    except ValueError:  # quotes that do not end
        return []
    if not words or words == ["cat"] or shutil.which(words[0]) is None:
        return []
    return words


class _Paged(io.StringIO):
    """Text that is kept until it is longer than the screen, and then goes to the pager."""

    def __init__(self, command: list[str]) -> None:
        super().__init__()
        self._command = command
        self._room = shutil.get_terminal_size().lines - 1
        self._lines = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the pager was started."""
        return self._process is not None

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._process is None:
            self._lines += text.count("\n")
            if self._lines <= self._room:
                return super().write(text)
            self._open()
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.write(text)

    def _open(self) -> None:
        environment = {"LESS": "FRX", **os.environ}  # colours, and what was read stays on the screen
        self._process = subprocess.Popen(  # noqa: S603  the user's own choice
            self._command, stdin=subprocess.PIPE, env=environment, encoding="utf-8", errors="backslashreplace"
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self.getvalue())

    def flush(self) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.flush()

    def finish(self, terminal: object) -> None:
        """Write what fits, or wait until the reader has read."""
        if self._process is None:
            print(self.getvalue(), end="", file=terminal, flush=True)  # type: ignore[call-overload]
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        while True:
            try:
                self._process.wait()
            except KeyboardInterrupt:  # the pager's: it knows what Ctrl-C means to it
                continue
            return
