"""Text that the user names: a file, or stdin as `-`."""

from __future__ import annotations

import sys
from pathlib import Path

from taskforgectl.errors import EXIT_USAGE, CliError

__all__ = ["read_text"]


def read_text(name: str) -> str:
    """Answer the text of a file, of stdin for `-`.

    Raises:
        CliError: it cannot be read or is not UTF-8.
    """
    label = "stdin" if name == "-" else name
    try:
        # Bytes, since Python decodes stdin after the locale.
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode()
    except FileNotFoundError:
        raise CliError(f"there is no file {label}", code=EXIT_USAGE) from None
    except UnicodeDecodeError:
        raise CliError(f"{label} is not UTF-8 text", code=EXIT_USAGE) from None
    except OSError as error:
        raise CliError(f"cannot read {label}: {error.strerror}", code=EXIT_USAGE) from None
