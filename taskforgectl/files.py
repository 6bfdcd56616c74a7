"""Text that the user names: a file, or stdin as `-`."""

from __future__ import annotations

import sys
from pathlib import Path

from taskforgectl.errors import EXIT_USAGE, CliError

__all__ = ["read_bytes", "read_text"]


def read_text(name: str) -> str:
    """Answer the text of a file, of stdin for `-`.

    Raises:
        CliError: it cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(name).decode()  # not by sys.stdin, which decodes after the locale
    except UnicodeDecodeError:
        raise CliError(f"{_label(name)} is not UTF-8 text", code=EXIT_USAGE) from None


def read_bytes(name: str) -> bytes:
    """Answer the content of a file, of stdin for `-`.

    Raises:
        CliError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError:
        raise CliError(f"there is no file {name}", code=EXIT_USAGE) from None
    except OSError as error:
        raise CliError(f"cannot read {_label(name)}: {error.strerror}", code=EXIT_USAGE) from None


def _label(name: str) -> str:
    return "stdin" if name == "-" else name
