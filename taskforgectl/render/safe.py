"""Server text for terminals. Workflows and webhooks are written by others, and a terminal obeys escape sequences.

Besides control characters the bidirectional ones go, which make a text read differently from what it is
(CVE-2021-42574), and those that take no room, with which a name passes for another one.
"""

from __future__ import annotations

import json
import re

__all__ = ["safe_json", "safe_line", "safe_lines"]

_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = r"\u00ad\u180e\u200b-\u200d\u2060-\u2065\ufeff\U000e0000-\U000e007f"
_UNSAFE = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}{_INVISIBLE}\u2028\u2029\ud800-\udfff]")
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
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)
