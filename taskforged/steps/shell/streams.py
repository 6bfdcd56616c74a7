"""What a program prints: kept, logged and dropped, within bounds and without secrets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterator

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError
from taskforged.jsonvalue import parse_json
from taskforged.steps.base import Log
from taskforged.steps.secrets import margin_of, mask

__all__ = ["LINES_MAX", "Stream"]

_EXCERPT_MAX = 4096
"""Bytes of the end of each stream that a failure keeps as evidence."""
_PIECE_MAX = 4096
"""Bytes of one line of the log; a longer line becomes several."""
_LINE_MAX = 1 << 16
"""Bytes of a line that are logged at all. A line is held until it is complete, as secrets are masked in whole lines."""
LINES_MAX = 50_000
"""Lines of each stream that are logged: a program that floods would otherwise keep the event loop busy with masking."""
_READ_LOGGED, _READ_DROPPED = 1 << 13, 1 << 16
"""Bytes read at once while lines are logged and after: 8 KiB may be 8,192 lines, which take some milliseconds."""


class Stream:
    """Reads one stream: keeps its beginning and its end, logs its lines, drops the rest.

    What is cut off is cut by a margin more than asked, then masked, then the margin is cut: at the edge there may be a
    part of a secret, which masking cannot find. No form of a secret is longer than the margin.

    Attributes:
        ended: everything was read.
    """

    def __init__(self, name: str, fd: int, kept_max: int, used: Collection[str], log: Log) -> None:
        self.ended = asyncio.Event()
        self._name, self._fd, self._log = name, fd, log
        self._used = frozenset(used)
        self._margin = margin_of(self._used)
        self._kept_max = kept_max
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        self._pending = bytearray()  # the line that is not complete yet
        self._is_skipping = False  # the rest of a line that is too long
        self._lines_left = LINES_MAX
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        os.set_blocking(fd, False)

    @property
    def is_truncated(self) -> bool:
        """Whether there was more than is kept."""
        return self._total > self._kept_max

    def start(self) -> None:
        """Read whenever there is something."""
        self._loop.add_reader(self._fd, self._read)

    def finish(self) -> None:
        """Read what is there without waiting, log the line that was not completed, close. Idempotent."""
        for _ in range((1 << 20) // _READ_LOGGED):  # the largest pipe
            if self.ended.is_set() or not self._read():
                break
        self._flush()
        self.close()

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def text(self) -> str:
        """The beginning, up to the bytes to keep, masked."""
        text = self._mask(self._head)
        if self._total > len(self._head) and self._margin:
            text = text[: -self._margin]
        return text.encode()[: self._kept_max].decode("utf-8", "ignore")

    def tail(self) -> str:
        """The last bytes, masked."""
        text = self._mask(self._tail[-_EXCERPT_MAX - self._margin :])
        if self._total > _EXCERPT_MAX + self._margin:
            text = text[self._margin :]
        return text.encode()[-_EXCERPT_MAX:].decode("utf-8", "ignore")

    def json(self) -> Json:
        """All of it as a JSON value, not masked.

        Raises:
            InvalidArgumentError: it is no JSON, or more than is kept.
        """
        if self.is_truncated:
            raise InvalidArgumentError(f"stdout has more than {self._kept_max:,} bytes; raise max_output")
        return parse_json(bytes(self._head), where="stdout", size_max=self._kept_max)

    def _mask(self, raw: bytes | bytearray) -> str:
        return str(mask(raw.decode("utf-8", "replace"), self._used))

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _READ_LOGGED if self._lines_left > 0 else _READ_DROPPED)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
            self.ended.set()
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._total += len(data)
        self._head += data[: max(self._kept_max + self._margin - len(self._head), 0)]
        self._tail += data
        if len(self._tail) > 4 * (_EXCERPT_MAX + self._margin) + _READ_DROPPED:
            del self._tail[: -_EXCERPT_MAX - self._margin]
        if self._lines_left > 0:
            self._pending += data
            self._log_lines()

    def _log_lines(self) -> None:
        if self._is_skipping:
            line_end = self._pending.find(b"\n")
            del self._pending[: line_end + 1 if line_end >= 0 else len(self._pending)]
            self._is_skipping = line_end < 0
        end = self._pending.rfind(b"\n")
        if end >= 0:  # all complete lines at once: a secret of several lines is found as a whole
            self._emit(self._mask(self._pending[:end]))
            del self._pending[: end + 1]
        if len(self._pending) > _LINE_MAX + self._margin:
            text = self._mask(self._pending)
            self._emit(text[: -self._margin] if self._margin else text)
            self._note("the rest of this line is not logged")
            self._pending.clear()
            self._is_skipping = True

    def _flush(self) -> None:
        if self._pending and not self._is_skipping and self._lines_left > 0:
            self._emit(self._mask(self._pending))
        self._pending.clear()

    def _emit(self, text: str) -> None:
        for line in text.split("\n"):
            for piece in _pieces(line.removesuffix("\r")):
                if self._lines_left <= 0:
                    return
                self._lines_left -= 1
                self._log(self._name, piece)
                if self._lines_left == 0:
                    self._note("further lines are not logged")

    def _note(self, text: str) -> None:
        self._log("system", f"{self._name}: {text}")


def _pieces(line: str) -> Iterator[str]:
    size = _PIECE_MAX if line.isascii() else _PIECE_MAX // 4
    yield line[:size]
    for at in range(size, len(line), size):
        yield line[at : at + size]
