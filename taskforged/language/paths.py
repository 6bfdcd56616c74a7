"""Paths of values in a document, for messages: `steps[1].http.headers["X-Id"]`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "join"]

_BARE = re.compile(r"[A-Za-z_$][A-Za-z0-9_-]*\Z", re.ASCII)


def join(path: str, part: str | int) -> str:
    """Answer the path of a part of what stands at `path`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not _BARE.match(part):
        return f"{path}[{json.dumps(part, ensure_ascii=False)}]"
    return f"{path}.{part}" if path else part


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Answer a hint that ends a message: the nearest known name, or all of them when none is near and they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong[:80], names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if 0 < len(names) <= 12:
        return f"; known: {', '.join(names)}"
    return ""
