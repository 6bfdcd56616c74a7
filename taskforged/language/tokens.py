"""Just enough of CEL's tokens to tell code from texts and comments, and the functions that ask how it went.

`always()`, `success()` and `failure()` are written as in GitHub Actions. CEL gets them as variables of the same length
(`always__`), so that every position in its messages stays true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["STATUS_FUNCTIONS", "STATUS_NAMES", "TOKEN", "rewrite_status"]

TOKEN = re.compile(
    r'[rR][bB]?(?:"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"[^"\n]*"|\'[^\'\n]*\')'
    r'|"""(?:[^\\]|\\[\s\S])*?"""|\'\'\'(?:[^\\]|\\[\s\S])*?\'\'\''
    r'|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\''
    r"|//[^\n]*|\w+|[\s\S]"
)
"""A literal text, a comment, a word, or any other character."""

STATUS_FUNCTIONS = ("always", "success", "failure")
"""How a condition asks what became of the steps before."""
STATUS_NAMES = frozenset(f"{name}__" for name in STATUS_FUNCTIONS)
"""The variables that stand for them."""

_NO_ARGUMENTS = re.compile(r"\s*\(\s*\)")


def rewrite_status(source: str) -> tuple[str, frozenset[str]]:
    """Answer an expression, as long as before, in which status functions are variables, and which ones it uses."""
    used: set[str] = set()
    rewritten = "".join(_rewritten(source, used))
    return rewritten, frozenset(used)


def _rewritten(source: str, used: set[str]) -> Iterator[str]:
    at, before = 0, ""
    while at < len(source):
        token = TOKEN.match(source, at)
        assert token is not None  # its last alternative matches any character
        word, at = token[0], token.end()
        call = _NO_ARGUMENTS.match(source, at) if word in STATUS_FUNCTIONS and before != "." else None
        if call is None:
            yield word
        else:
            used.add(f"{word}__")
            yield f"{word}__".ljust(call.end() - token.start())
            at = call.end()
        if not word.isspace():
            before = word
