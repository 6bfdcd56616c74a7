"""Lines of logs. Programs write escape sequences; they go as a whole, not only their first character."""

from __future__ import annotations

import re

from taskforgectl.render.output import Item
from taskforgectl.render.safe import safe_line, safe_lines
from taskforgectl.render.tables import local_time

__all__ = ["log_line"]

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
"""CSI, OSC and two-character sequences of ECMA-48."""


def log_line(entry: Item, *, alone: bool, timestamps: bool) -> str:
    """Answer an entry as one line.

    Args:
        entry: the entry.
        alone: all entries are of one step, so that its name need not be repeated.
        timestamps: begin with the time.
    """
    again = f" (attempt {entry['attempt']})" if entry["attempt"] > 1 else ""
    name = "" if alone and not again else f"{entry['step']}{again}"
    mark = {"stderr": "!", "system": "#"}.get(entry["stream"], "|")
    text = safe_lines(_ESCAPES.sub("", entry["text"])).replace("\n", " ")
    parts = [local_time(entry["time"]) if timestamps else "", safe_line(name), mark if name else _mark_alone(mark)]
    return " ".join([*(part for part in parts if part), text])


def _mark_alone(mark: str) -> str:
    return "" if mark == "|" else mark
