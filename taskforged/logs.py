"""Logging: structlog, JSON lines for machines, pretty lines for a terminal. One line, one event, a stable name."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
from pathlib import Path

import structlog

__all__ = ["LogFile", "configure_logging"]

_STDOUT, _STDERR = 1, 2
_LOOK_S = 5.0


# Without local variables: they hold requests, and with them payloads and secrets.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure_logging(level: str, style: str) -> None:
    """Set up logging to stderr.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        style: `json`, `pretty`, or `auto`: pretty on a terminal.
    """
    pretty = style == "pretty" or (style == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if pretty
        else [_TRACEBACKS, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format='{"level": "%(levelname)s", "event": "%(message)s"}'
    )


class LogFile:
    """The file that stdout and stderr go to, where that is the home's log: kept small by turning it over.

    `taskforgectl up` starts the daemon that way. The descriptors themselves are turned, so that nothing is copied or
    lost, and what the interpreter and libraries print goes along. Under systemd the journal does all this.

    Args:
        path: the home's log.
        bytes_max: how large it may grow; 0: without a bound.
        keep: how many full ones are kept, as `<path>.1`, the newest, and so on.
    """

    def __init__(self, path: Path, *, bytes_max: int, keep: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._keep = keep

    async def look_after(self) -> None:
        """Turn the file over whenever it is full, for ever."""
        while True:
            with contextlib.suppress(OSError):  # the disk is full: logging must not end the daemon
                if self.is_full():
                    self.turn()
            await asyncio.sleep(_LOOK_S)

    def is_full(self) -> bool:
        """Whether stderr is the home's log, and that is as large as it may be."""
        found = os.fstat(_STDERR)
        if not 0 < self._bytes_max <= found.st_size:
            return False
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(found, self._path.stat())
        return False

    def turn(self) -> None:
        """Put the file away and go on in a new one."""
        fresh = self._path.with_name(f"{self._path.name}.new")  # first what can fail: then nothing has changed
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{i + 1}") for i in range(self._keep))]
        try:
            for newer, older in reversed(list(itertools.pairwise(names))):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
            fresh.replace(self._path)
            for standard in (_STDOUT, _STDERR):
                os.dup2(fd, standard)
        finally:
            os.close(fd)
