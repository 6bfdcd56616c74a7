"""Where text inside a YAML scalar stands in the source: the same characters, minus quotes, escapes and indentation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from taskforged.language.loader import ScalarNode

__all__ = ["Origin"]

_BLOCK_HEADER = re.compile(r"[|>][^\n]*\n")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "e": "\x1b", "a": "\a", "f": "\f", "v": "\v", " ": " "}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an expression comes from.

    Attributes:
        path: of the value in the document.
        node: the scalar that holds it.
        document: the whole source.
        offset: where the expression begins in `node.text`.
    """

    path: str
    node: ScalarNode
    document: str
    offset: int = 0

    def shifted(self, by: int) -> Origin:
        """Answer the origin of what begins `by` characters later."""
        return Origin(self.path, self.node, self.document, self.offset + by)

    def at(self, offset: int = 0) -> tuple[int, int]:
        """Answer line and column of a character of the expression; of the scalar when that cannot be known."""
        start = self.node.start
        index = _locate(self.document, self.node, self.offset + offset)
        if index is None:
            return start.line, start.column
        between = self.document[start.index : index]
        lines = between.count("\n")
        column = len(between) - between.rfind("\n") if lines else start.column + len(between)
        return start.line + lines, column

    def position(self) -> str:
        """Answer the position for messages at run time."""
        line, column = self.at()
        return f"{self.path} (line {line}, column {column})"


def _locate(document: str, node: ScalarNode, offset: int) -> int | None:
    """Answer the index in the document of `node.text[offset]`, by walking along both; None when they part."""
    at, index, quote = _nearest(document, node, offset)
    text = node.text
    while at < offset:
        if text[at].isspace():
            at, index = _after_spaces(text, at), _after_spaces(document, index)
            continue
        width = _width(document, index, text[at], quote)
        if width == 0:
            return None
        at, index = at + 1, index + width
    return index


def _nearest(document: str, node: ScalarNode, offset: int) -> tuple[int, int, str]:
    """Answer where to begin to walk: the last `${{` before the place, as no escape can hide it, or the content."""
    index, quote = _content_start(document, node.start.index)
    opened = node.text.count("${{", 0, offset)
    if opened == 0 or node.text.count("${{") != document.count("${{", index, node.end.index):
        return 0, index, quote
    at = -1
    index -= 1
    for _ in range(opened):
        at, index = node.text.index("${{", at + 1), document.index("${{", index + 1)
    return at, index, quote


def _content_start(document: str, index: int) -> tuple[int, str]:
    header = _BLOCK_HEADER.match(document, index)
    if header:
        return _after_spaces(document, header.end()), ""
    quote = document[index : index + 1]
    return (index + 1, quote) if quote in ('"', "'") else (index, "")


def _after_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _width(document: str, index: int, character: str, quote: str) -> int:
    """Answer how many source characters stand for a character; 0 when they do not."""
    written = document[index : index + 2]
    if quote == "'" and character == "'":
        return 2 if written == "''" else 0
    if quote == '"' and written[:1] == "\\":
        return 2 if _ESCAPES.get(written[1:], written[1:]) == character else 0
    return 1 if written[:1] == character else 0
