"""Server text for terminals. Workflows and webhooks are written by others, and a terminal obeys escape sequences.

Besides control characters the bidirectional ones go: they make a text read differently from what it is
(CVE-2021-42574).
"""

from __future__ import annotations

import re

__all__ = ["safe_json", "safe_line", "safe_lines"]

_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}\u2028\u2029\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def safe_lines(text: str) -> str:
    """Answer the text without control characters; lines and tabs stay."""
    return _UNSAFE.sub("", text)


def safe_line(text: str) -> str:
    """Answer the text on one line."""
    return _SPACE.sub(" ", safe_lines(text)).strip()


def safe_json(text: str) -> str:
    """Answer JSON text with unsafe characters escaped: the same value, harmless to look at.

    The dump leaves such characters only inside of strings; line feeds between values stay.
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
