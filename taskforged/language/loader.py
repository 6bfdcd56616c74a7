"""YAML text -> a tree of nodes that know where they stand, and nothing dangerous on the way.

PyYAML's *pure* scanner and parser deliver events (its C parser crashes the whole process on deep nesting). Everything
that a definition may not contain is refused while the events come in, before anything recursive sees the document:
size, depth, number of nodes, aliases and what they expand to. Scalars are resolved by the YAML 1.2 core schema, not by
PyYAML's YAML 1.1 rules: `on`, `no`, `1:30` and dates are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.loader import SafeLoader

from taskforged.errors import Violation
from taskforged.language.paths import join

__all__ = [
    "ALIASES_MAX",
    "DEPTH_MAX",
    "NODES_MAX",
    "SIZE_MAX",
    "MappingNode",
    "Node",
    "Position",
    "ScalarNode",
    "SequenceNode",
    "load",
    "to_json",
]

SIZE_MAX = 256 * 1024
"""Largest definition, in bytes of UTF-8."""
DEPTH_MAX = 32
"""Deepest nesting; real definitions have 10 to 15 levels."""
ALIASES_MAX = 20
"""Most `*alias` uses in a definition."""
NODES_MAX = 20_000
"""Most nodes. The pure parser needs some 50 us for each, so this also bounds the time."""
EXPANDED_MAX = 1024 * 1024
"""Largest document after aliases are expanded, in characters: nested aliases grow exponentially."""

_NODE_SIZE = 16
"""What a node counts for in `EXPANDED_MAX`, besides its text: it also bounds the nodes after expansion."""

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
# `012` is 12 in YAML 1.2 and 10 in YAML 1.1: with a leading zero a number is text, so that no reader can be wrong.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z", re.ASCII)
_INT_OTHER = re.compile(r"0o([0-7]+)\Z|0x([0-9a-fA-F]+)\Z", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
# Characters that show something else than what is there: controls, bidirectional overrides ("Trojan Source",
# CVE-2021-42574) and the line breaks that YAML 1.1 knows and YAML 1.2 does not.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_FORBIDDEN_VALUE = re.compile("[\x00\ud800-\udfff]")
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the source. `index` counts characters from 0, line and column count from 1."""

    index: int
    line: int
    column: int


@dataclass(slots=True, eq=False)
class ScalarNode:
    """A scalar: `value` is the JSON value, `text` the characters behind it, `plain` whether it was written unquoted."""

    start: Position
    end: Position
    value: Any
    text: str
    plain: bool


@dataclass(slots=True, eq=False)
class SequenceNode:
    """A list."""

    start: Position
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class MappingNode:
    """A mapping in the order of the document."""

    start: Position
    entries: dict[str, tuple[ScalarNode, Node]] = field(default_factory=dict)

    def get(self, key: str) -> Node | None:
        """Answer the value of a key, None when it is absent."""
        entry = self.entries.get(key)
        return entry[1] if entry else None


Node: TypeAlias = ScalarNode | SequenceNode | MappingNode


class _FatalError(Exception):
    """The document cannot be read any further."""

    def __init__(self, message: str, at: Position) -> None:
        super().__init__(message)
        self.violation = Violation("", message, at.line, at.column)


def load(source: str, problems: list[Violation]) -> Node | None:
    """Answer the root node; report all faults in `problems`.

    None means that the document cannot be read at all; with other faults the tree holds what could be understood.
    """
    try:
        _check_text(source)
        return _Composer(problems).compose(_events(source))
    except _FatalError as error:
        problems.append(error.violation)
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_error(error))
    except yaml.YAMLError as error:
        problems.append(Violation("", f"not YAML: {error}"))
    return None


def to_json(node: Node) -> Any:
    """Answer the plain JSON value of a node."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, SequenceNode):
        return [to_json(item) for item in node.items]
    return {key: to_json(value) for key, (_, value) in node.entries.items()}


def _check_text(source: str) -> None:
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > SIZE_MAX:
        raise _FatalError(f"the definition has {size:,} bytes; the limit is {SIZE_MAX:,}", Position(0, 1, 1))
    found = _FORBIDDEN.search(source, 1 if source.startswith("\ufeff") else 0)
    if found:
        message = f"the character U+{ord(found[0]):04X} is not allowed here; in double quotes write it as an escape"
        raise _FatalError(message, _position_of(source, found.start()))


def _position_of(source: str, index: int) -> Position:
    line_start = source.rfind("\n", 0, index) + 1
    return Position(index, source.count("\n", 0, index) + 1, index - line_start + 1)


def _events(source: str) -> Iterator[yaml.Event]:
    loader = SafeLoader(source)
    try:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]
    except (ValueError, OverflowError):  # chr() of an escape such as "\U00110000"
        mark = loader.get_mark()
        raise _FatalError("not YAML: an escape names no character", _from_mark(mark)) from None
    finally:
        loader.dispose()


def _syntax_error(error: yaml.MarkedYAMLError) -> Violation:
    mark = error.problem_mark or error.context_mark
    context = f" ({error.context})" if error.context else ""
    at = _from_mark(mark) if mark else Position(0, 0, 0)
    return Violation("", f"not YAML: {error.problem or error.context}{context}", at.line, at.column)


def _from_mark(mark: Any) -> Position:
    return Position(mark.index, mark.line + 1, mark.column + 1)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    node: SequenceNode | MappingNode
    path: str
    anchor: str | None
    size_before: int
    key: ScalarNode | None = None
    skip_value: bool = False


class _Composer:
    """Builds the tree from events, with an explicit stack: depth is bounded by a limit, not by Python's stack."""

    def __init__(self, problems: list[Violation]) -> None:
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._root: Node | None = None
        self._documents = 0
        self._nodes = 0
        self._aliases = 0
        self._size = 0

    def compose(self, events: Iterator[yaml.Event]) -> Node | None:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._document(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
        if self._root is None and not self._problems:
            raise _FatalError("the definition is empty", Position(0, 1, 1))
        return self._root

    def _document(self, event: yaml.DocumentStartEvent) -> None:
        at = _from_mark(event.start_mark)
        self._documents += 1
        if self._documents > 1:
            raise _FatalError("more than one document; write one definition per file", at)
        if event.tags or (event.version and event.version != (1, 2)):
            raise _FatalError("directives other than %YAML 1.2 are not supported", at)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        at = self._begin(event, len(event.value))
        plain = event.style is None or event.style == ""
        text = _join_surrogates(event.value)
        if event.tag is not None and event.tag.startswith("!"):  # reported; most likely `!x` is meant as text
            text, plain = f"{event.tag} {text}".rstrip(), False
        node = ScalarNode(at, _from_mark(event.end_mark), text, text, plain)
        if plain:
            self._resolve(node)
        elif _FORBIDDEN_VALUE.search(text):
            self._problem("the text contains NUL or half of a surrogate pair, which JSON stores cannot hold", at)
        self._remember(event.anchor, node, len(event.value) + _NODE_SIZE)
        self._add(node)

    def _resolve(self, node: ScalarNode) -> None:
        try:
            node.value = _resolve_plain(node.text)
        except ValueError as error:
            self._problem(str(error), node.start)

    def _open(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        at = self._begin(event, 0)
        if len(self._stack) >= DEPTH_MAX:
            raise _FatalError(f"nested deeper than {DEPTH_MAX} levels", at)
        node = SequenceNode(at) if isinstance(event, yaml.SequenceStartEvent) else MappingNode(at)
        self._stack.append(_Open(node, self._path(), event.anchor, self._size))

    def _close(self) -> None:
        done = self._stack.pop()
        self._remember(done.anchor, done.node, self._size - done.size_before + _NODE_SIZE)
        self._add(done.node)

    def _alias(self, event: yaml.AliasEvent) -> None:
        at = _from_mark(event.start_mark)
        self._aliases += 1
        if self._aliases > ALIASES_MAX:
            raise _FatalError(f"more than {ALIASES_MAX} aliases", at)
        if event.anchor not in self._anchors:
            inside = any(open_.anchor == event.anchor for open_ in self._stack)
            raise _FatalError(f"*{event.anchor} {'contains itself' if inside else 'names no anchor before it'}", at)
        node, size = self._anchors[event.anchor]
        self._grow(size, at)
        self._add(node)

    def _begin(self, event: Any, size: int) -> Position:
        at = _from_mark(event.start_mark)
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _FatalError(f"more than {NODES_MAX:,} values", at)
        self._grow(size + _NODE_SIZE, at)
        if event.tag is not None:
            self._problem(_tag_message(event.tag), at)
        return at

    def _grow(self, size: int, at: Position) -> None:
        self._size += size
        if self._size > EXPANDED_MAX:
            raise _FatalError("the aliases expand to more than 1 MiB", at)

    def _remember(self, anchor: str | None, node: Node, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (node, size)

    def _add(self, node: Node) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        if isinstance(top.node, SequenceNode):
            top.node.items.append(node)
        elif top.key is None and not top.skip_value:
            self._key(top, top.node, node)
        else:
            if top.key is not None:
                top.node.entries[top.key.text] = (top.key, node)
            top.key, top.skip_value = None, False

    def _key(self, top: _Open, mapping: MappingNode, node: Node) -> None:
        fault = _key_fault(mapping, node)
        if fault:
            self._problem(fault, node.start)
            top.skip_value = True
        elif isinstance(node, ScalarNode):
            top.key = node

    def _path(self) -> str:
        """Where the next value stands, for messages."""
        if not self._stack:
            return ""
        top = self._stack[-1]
        if isinstance(top.node, SequenceNode):
            return join(top.path, len(top.node.items))
        return join(top.path, top.key.text) if top.key is not None else top.path

    def _problem(self, message: str, at: Position) -> None:
        self._problems.append(Violation(self._path(), message, at.line, at.column))


def _join_surrogates(text: str) -> str:
    r"""Answer the text with escapes such as `"\ud83d\ude80"`, JSON's way to write one character, made one character."""
    if not _SURROGATE_PAIR.search(text):
        return text
    return _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _tag_message(tag: str) -> str:
    hint = "" if tag.startswith("tag:") else "; an expression that starts with ! must be written in quotes"
    return f"tags are not supported: {tag}{hint}"


def _key_fault(mapping: MappingNode, node: Node) -> str | None:
    if not isinstance(node, ScalarNode):
        return "a key must be text, not a list or a map"
    if node.plain and node.text == "<<":
        return "merge keys (<<) are not part of YAML 1.2; repeat the values or use an alias for the whole value"
    if not isinstance(node.value, str):
        return f'a key must be text; write "{node.text}" in quotes'
    if node.text in mapping.entries:
        first = mapping.entries[node.text][0].start
        return f"duplicate key {node.text!r}; the first one is at line {first.line}, column {first.column}"
    return None


def _resolve_plain(text: str) -> Any:
    """Answer what a plain scalar means in the YAML 1.2 core schema, restricted to JSON.

    Raises:
        ValueError: it means something that JSON cannot say.
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text in ("true", "True", "TRUE")
    if _INT.match(text) or _INT_OTHER.match(text):
        return _integer(text)
    if _NOT_FINITE.match(text):
        raise ValueError(f"{text} is no JSON number; write it in quotes if text is meant")
    if _FLOAT.match(text):
        return _number(text)
    return text


def _integer(text: str) -> int:
    # 20 characters hold every 64-bit number; int() of a huge text would be slow before it is refused.
    value = int(text, 0) if len(text.lstrip("+-0ox")) <= 20 else _INT64
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"the number {text[:20]}… does not fit into 64 bits; write it in quotes if text is meant")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value
