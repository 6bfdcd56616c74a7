"""The daemon's log, from its file or from the journal: the last lines, and those that come."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from taskforgectl.errors import CliError
from taskforgectl.service.units import SERVICE

__all__ = ["LogFile", "follow_journal", "journal_backwards"]

_CHUNK = 1 << 16
_LINE_MAX = 1 << 20
"""Of a longer line only the end is shown."""

_POLL_S = 0.2


class LogFile:
    """The file of a daemon in the background, as it stands now: what is before that point, and what comes after it.

    Args:
        path: the home's log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._end = self._file.seek(0, os.SEEK_END)

    def backwards(self) -> Iterator[str]:
        """Yield the lines from the last one on, and on into the full files before it."""
        with self._path.open("rb") as file:
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(self._file.fileno())):
                yield from _backwards(file, self._end)
        number = 1
        while (older := self._path.with_name(f"{self._path.name}.{number}")).exists():
            with older.open("rb") as file:
                yield from _backwards(file, file.seek(0, os.SEEK_END))
            number += 1

    def follow(self) -> Generator[str, None, None]:
        """Yield what is written from now on, also into the file that takes the place of a full one."""
        while True:
            with self._file as file:
                yield from _until_replaced(self._path, file)
            while not self._path.exists():
                time.sleep(_POLL_S)
            self._file = self._path.open("rb")


def _backwards(file: BinaryIO, end: int) -> Iterator[str]:
    rest = b""
    while end:
        size = min(_CHUNK, end)
        end -= size
        file.seek(end)
        lines = (file.read(size) + rest).split(b"\n")
        rest = lines[0][-_LINE_MAX:]
        yield from (line.decode(errors="replace") for line in reversed(lines[1:]) if line)
    if rest:
        yield rest.decode(errors="replace")


def _until_replaced(path: Path, file: BinaryIO) -> Iterator[str]:
    rest = b""
    while True:
        is_last = _is_replaced(path, file)  # asked before reading: what was written before it was put away is read
        for line in file:
            rest += line
            if rest.endswith(b"\n"):
                yield rest.decode(errors="replace").rstrip("\n")
                rest = b""
        if is_last:
            return
        time.sleep(_POLL_S)


def _is_replaced(path: Path, file: BinaryIO) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return True


def journal_backwards() -> Generator[str, None, None]:
    """Yield the service's lines from the last one on."""
    yield from _journal("--reverse")


def follow_journal() -> Generator[str, None, None]:
    """Yield what the service writes from now on."""
    yield from _journal("--follow", "--lines=0")


def _journal(*arguments: str) -> Generator[str, None, None]:
    command = ["journalctl", "--user", f"--unit={SERVICE}", "--output=cat", "--no-pager", *arguments]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603
    except OSError as error:
        raise CliError(f"journalctl cannot be run: {error.strerror}", hint="install systemd's journalctl") from None
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            yield from (line.decode(errors="replace").rstrip("\n") for line in lines)
    finally:
        process.terminate()
        process.wait()
