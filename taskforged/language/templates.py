"""`${{ … }}` in text and in trees of JSON.

A text that is exactly one `${{ … }}` keeps the type of its value. Inside other text scalars are inserted as JSON
writes them (a text without its quotes); null, lists and maps are refused, because whatever they turned into would be a
guess. `$${{` is a literal `${{`.

Secrets never become values: `${{ secrets.NAME }}` is the opaque `{"$secret": "NAME"}`, or inside a text
`{"$concat": [...]}`, and only an executor resolves it. Data could try to look like such a reference, so in the fields
that may hold one, a value that brings those keys along is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from taskforged.engine.model import Expression, ExpressionError, Json, Scope
from taskforged.errors import Violation
from taskforged.language.expressions import SOURCE_SIZE_MAX, Compiler, Names, Static, kind_of
from taskforged.language.loader import Node, ScalarNode, SequenceNode
from taskforged.language.origin import Origin
from taskforged.language.paths import join
from taskforged.language.tokens import TOKEN

__all__ = ["SECRET_NAME", "AsText", "ListTree", "MapTree", "Templates", "as_text", "makes_text"]

SECRET_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,62}\Z", re.ASCII)
"""What a secret may be called."""

_SECRET = re.compile(r"\s*secrets\s*\.\s*([A-Za-z0-9_]+)\s*\Z", re.ASCII)
_RESERVED = ("$secret", "$concat")
_OPENING = re.compile(r"\$?\$\{\{")


@dataclass(frozen=True, slots=True)
class _Inserted:
    """An expression inside a text: its source and where that begins in the text."""

    source: str
    offset: int

    @property
    def start(self) -> int:
        """Where the expression itself begins, after the spaces."""
        return self.offset + len(self.source) - len(self.source.lstrip())


_Part: TypeAlias = "str | _Inserted"


class _UnclosedError(Exception):
    """A `${{` without its `}}`."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset


_FAULTY = Static("")
"""Stands in for what does not compile, so that the rest can be checked, too."""


@dataclass(frozen=True, slots=True)
class _SecretRef:
    name: str

    def evaluate(self, scope: Scope) -> Json:  # noqa: ARG002 - the protocol's signature
        return {"$secret": self.name}


@dataclass(frozen=True, slots=True)
class AsText:
    """The value of an expression as text."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        """Answer a text; raise ExpressionError for null, lists and maps."""
        value = self.inner.evaluate(scope)
        try:
            return as_text(value)
        except ValueError as error:
            raise ExpressionError(self.source, self.position, str(error)) from None


@dataclass(frozen=True, slots=True)
class _Text:
    """Text with values in it."""

    parts: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Json:
        return "".join([part.evaluate(scope) for part in self.parts])


@dataclass(frozen=True, slots=True)
class _Concat:
    """Text with secrets in it: neighbouring pieces of text are joined, secrets stay references."""

    parts: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Json:
        pieces: list[Json] = []
        for part in self.parts:
            value = part.evaluate(scope)
            if isinstance(value, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += value
            elif value != "":
                pieces.append(value)
        return {"$concat": pieces}


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A value for a field that may hold secrets: it must not look like a reference to one."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        value = self.inner.evaluate(scope)
        if _is_forged(value):
            raise ExpressionError(self.source, self.position, "the value contains a key $secret or $concat")
        return value


@dataclass(frozen=True, slots=True)
class ListTree:
    """A list of expressions."""

    items: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Json:
        """Answer a fresh list."""
        return [item.evaluate(scope) for item in self.items]


@dataclass(frozen=True, slots=True)
class MapTree:
    """A map with constant keys."""

    entries: tuple[tuple[str, Expression], ...]

    def evaluate(self, scope: Scope) -> Json:
        """Answer a fresh dict."""
        return {key: value.evaluate(scope) for key, value in self.entries}


@dataclass(slots=True)
class Templates:
    """Compiles values with `${{ … }}` in them. Faults go to the compiler's `problems`."""

    compiler: Compiler
    document: str
    secrets: set[str]

    def tree(self, node: Node, path: str, names: Names, *, secrets: bool = False) -> Expression:
        """Compile a tree of JSON. `secrets` allows references to secrets in it."""
        if isinstance(node, ScalarNode):
            return self._scalar(node, path, names, secrets=secrets)
        if isinstance(node, SequenceNode):
            items = [self.tree(item, join(path, i), names, secrets=secrets) for i, item in enumerate(node.items)]
            return _combine_list(items)
        entries: dict[str, Expression] = {}
        for key, (key_node, value) in node.entries.items():
            self._check_key(key_node, path, secrets=secrets)
            entries[key] = self.tree(value, join(path, key), names, secrets=secrets)
        return _combine_map(entries)

    def text(self, node: ScalarNode, path: str, names: Names, *, secrets: bool = False) -> Expression:
        """Compile a text. What is exactly one `${{ … }}` becomes text, too."""
        if not isinstance(node.value, str):
            return self._static_text(Static(node.value), node, path)
        inner = self._scalar(node, path, names, secrets=secrets)
        if isinstance(inner, Static):
            return self._static_text(inner, node, path)
        if isinstance(inner, (_Text, _Concat, _SecretRef)):
            return inner
        return AsText(inner, node.text.strip(), Origin(path, node, self.document).position())

    def _static_text(self, value: Static, node: ScalarNode, path: str, offset: int = 0) -> Expression:
        try:
            return Static(as_text(value.value))
        except ValueError as error:
            self._problem(node, path, offset, str(error))
            return _FAULTY

    def condition(self, node: ScalarNode, path: str, names: Names) -> Expression | None:
        """Compile bare CEL that must be true or false; one `${{ }}` around it is accepted."""
        if isinstance(node.value, bool):
            return Static(node.value)
        if not isinstance(node.value, str):
            self._problem(node, path, 0, f"must be an expression, is {kind_of(node.value)}")
            return None
        source, offset = node.text, 0
        if "${{" in source:
            unwrapped = self._unwrap(node, path)
            if unwrapped is None:
                return None
            source, offset = unwrapped.source, unwrapped.offset
        origin = Origin(path, node, self.document, offset)
        return self.compiler.compile(source, origin, names, want_bool=True)

    def _unwrap(self, node: ScalarNode, path: str) -> _Inserted | None:
        parts = self._parts(node, path)
        if len(parts) == 1 and isinstance(parts[0], _Inserted):
            return parts[0]
        if parts:
            self._problem(node, path, 0, "this is an expression already: leave out ${{ }}, or put it around all of it")
        return None

    def _scalar(self, node: ScalarNode, path: str, names: Names, *, secrets: bool) -> Expression:
        if not isinstance(node.value, str) or "${{" not in node.text:
            return Static(node.value)
        parts = self._parts(node, path)
        if len(parts) == 1 and isinstance(parts[0], _Inserted):
            return self._inserted(parts[0], node, path, names, secrets=secrets)
        compiled: list[Expression] = []
        for part in parts:
            if isinstance(part, str):
                compiled.append(Static(part))
                continue
            value = self._inserted(part, node, path, names, secrets=secrets)
            compiled.append(value if isinstance(value, _SecretRef) else self._as_text(value, part, node, path))
        return _combine_text(compiled)

    def _as_text(self, value: Expression, part: _Inserted, node: ScalarNode, path: str) -> Expression:
        if isinstance(value, Static):
            return self._static_text(value, node, path, part.start)
        return AsText(value, part.source.strip(), self._position(part, node, path))

    def _inserted(self, part: _Inserted, node: ScalarNode, path: str, names: Names, *, secrets: bool) -> Expression:
        origin = Origin(path, node, self.document, part.offset)
        secret = _SECRET.match(part.source)
        if secret:
            return self._secret(secret, origin, names, allowed=secrets)
        compiled = self.compiler.compile(part.source, origin, names)
        if compiled is None:
            return _FAULTY
        position = self._position(part, node, path)
        return _Guarded(compiled, part.source.strip(), position) if secrets else compiled

    def _secret(self, found: re.Match[str], origin: Origin, names: Names, *, allowed: bool) -> Expression:
        line, column = origin.at(found.start(1) if allowed else found[0].index("secrets"))
        if not allowed:
            self.compiler.problems.append(Violation(origin.path, names.secret_rule, line, column))
        elif not SECRET_NAME.match(found[1]):
            message = "the name of a secret is written like CI_TOKEN: A-Z, 0-9 and _, at most 63"
            self.compiler.problems.append(Violation(origin.path, message, line, column))
        self.secrets.add(found[1])
        return _SecretRef(found[1])

    def _check_key(self, key: ScalarNode, path: str, *, secrets: bool) -> None:
        if secrets and key.text in _RESERVED:
            self._problem(key, join(path, key.text), 0, f"the key {key.text} is reserved for references to secrets")
        if "${{" in key.text:
            self._problem(key, join(path, key.text), 0, "a key cannot contain an expression")

    def _position(self, part: _Inserted, node: ScalarNode, path: str) -> str:
        return Origin(path, node, self.document, part.start).position()

    def _parts(self, node: ScalarNode, path: str) -> list[_Part]:
        try:
            return list(_split(node.text))
        except _UnclosedError as error:
            limit = f" within {SOURCE_SIZE_MAX:,} characters"
            self._problem(node, path, error.offset, f"`${{{{` has no closing `}}}}`{limit}; a literal one is `$${{{{`")
            return []

    def _problem(self, node: ScalarNode, path: str, offset: int, message: str) -> None:
        line, column = Origin(path, node, self.document).at(offset)
        self.compiler.problems.append(Violation(path, message, line, column))


def makes_text(expression: Expression) -> bool:
    """Say whether an expression always answers a text, because it is text with values in it."""
    return isinstance(expression, (_Text, _Concat, _SecretRef, AsText))


def as_text(value: Json) -> str:
    """Answer how a scalar is inserted into text.

    Raises:
        ValueError: it is null, a list or a map.
    """
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (list, dict)):
        raise ValueError(f"{kind_of(value)} cannot be inserted into text")
    return json.dumps(value)


def _split(text: str) -> Iterator[_Part]:
    """Yield the pieces of a text. One line break after the last `}}` does not count: block scalars end with it."""
    at, literal = 0, ""
    text_end = len(text) - 1 if text.endswith("}}\n") else len(text)
    while opening := _OPENING.search(text, at):
        literal += text[at : opening.start()]
        at = opening.end()
        if opening[0].startswith("$$"):
            literal += "${{"
            continue
        if literal:
            yield literal
        literal, end = "", _closing(text, at)
        yield _Inserted(text[at:end], at)
        at = end + 2
        if at == text_end and opening.start() == 0:
            return
    if literal + text[at:]:
        yield literal + text[at:]


def _closing(text: str, start: int) -> int:
    """Answer where the `}}` stands that closes the `${{` before `start`."""
    window = text[start : start + SOURCE_SIZE_MAX + 2]
    depth = at = 0
    while at < len(window):
        if depth == 0 and window.startswith("}}", at):
            return start + at
        token = TOKEN.match(window, at)  # `}}` may also stand in a text or close two maps
        assert token is not None  # its last alternative matches any character
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        at = token.end()
    raise _UnclosedError(start - 3)


def _combine_text(parts: list[Expression]) -> Expression:
    if any(isinstance(part, _SecretRef) for part in parts):
        return _Concat(tuple(parts))
    if all(isinstance(part, Static) for part in parts):
        return Static("".join(part.value for part in parts if isinstance(part, Static)))
    return _Text(tuple(parts))


def _combine_list(items: list[Expression]) -> Expression:
    if all(isinstance(item, Static) for item in items):
        return Static([item.value for item in items if isinstance(item, Static)])
    return ListTree(tuple(items))


def _combine_map(entries: Mapping[str, Expression]) -> Expression:
    if all(isinstance(value, Static) for value in entries.values()):
        return Static({key: value.value for key, value in entries.items() if isinstance(value, Static)})
    return MapTree(tuple(entries.items()))


def _is_forged(value: Json) -> bool:
    if isinstance(value, dict):
        return any(key in value for key in _RESERVED) or any(map(_is_forged, value.values()))
    return isinstance(value, list) and any(map(_is_forged, value))
