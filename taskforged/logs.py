"""Logging: structlog, JSON lines for machines, pretty lines for a terminal. One line, one event, a stable name."""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure_logging"]


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
