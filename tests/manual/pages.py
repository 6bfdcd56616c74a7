"""The documentation as data: its pages, their links, anchors, code spans and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]))

_MARKDOWN = MarkdownIt("commonmark").enable("table")


class Found(NamedTuple):
    """Something that a page says, and where."""

    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        """`docs/page.md:LINE`, as editors understand it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Block(NamedTuple):
    """A block of code; `kind` is the first word after the fence, empty for an indented one."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        """`docs/page.md:LINE` of its first line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    """Answer the page, taken apart."""
    return _MARKDOWN.parse(page.read_text())


def _inline(page: Path) -> Iterator[tuple[int, Token]]:
    """Answer each part of running text with the line in which its paragraph begins."""
    line = 1
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else line
        for child in token.children or ():
            yield line, child
            line += child.type in {"softbreak", "hardbreak"}


def links(page: Path) -> Iterator[Found]:
    """Answer where the page leads, pictures too."""
    for line, child in _inline(page):
        target = child.attrGet("href" if child.type == "link_open" else "src")
        if target is not None:
            yield Found(page, line, str(target))


def spans(page: Path) -> Iterator[Found]:
    """Answer what stands in backquotes, on one line."""
    for line, child in _inline(page):
        if child.type == "code_inline":
            yield Found(page, line, " ".join(child.content.replace("\\|", "|").split()))


def blocks(page: Path) -> Iterator[Block]:
    """Answer the blocks of code."""
    for token in tokens(page):
        if token.type in {"fence", "code_block"} and token.map:
            is_fence = token.type == "fence"
            kind = (token.info.split() or [""])[0]
            yield Block(page, token.map[0] + 1 + is_fence, kind, token.content)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Answer the names that a link into the page may have after `#`, made as GitHub makes them."""
    found: dict[str, int] = {}
    names = set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text()))
    parts = tokens(page)
    for heading, inline in zip(parts, parts[1:], strict=False):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            seen = found.get(name, 0)
            found[name] = seen + 1
            names.add(f"{name}-{seen}" if seen else name)
    return frozenset(names)
