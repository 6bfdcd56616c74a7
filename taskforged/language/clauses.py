"""The `if` of a trigger, in parts: who wonders why nothing started wants to know which one was false, and of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from taskforged.engine.model import Expression, ExpressionError, Json, Scope
from taskforged.jsonvalue import to_text
from taskforged.language.expressions import Names, Static, reads_of
from taskforged.language.loader import Node, ScalarNode
from taskforged.language.shape import ConditionText, Context
from taskforged.language.tokens import TOKEN

__all__ = ["Clauses", "TriggerCondition", "split_clauses"]

CLAUSES_MAX = 20
"""Parts of one condition that are looked at one by one."""

_VALUE_MAX = 200
_VALUES_MAX = 10
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")


@dataclass(frozen=True, slots=True)
class Clauses:
    """A condition that can say why it is false.

    Attributes:
        whole: decides.
        parts: what stands between its outermost `&&`, with its text; empty when there is only one.
        text: the whole as it is written.
    """

    whole: Expression
    parts: tuple[tuple[str, Expression], ...]
    text: str

    def evaluate(self, scope: Scope) -> Json:
        """Answer whether it is true."""
        return self.whole.evaluate(scope)

    def why_false(self, scope: Scope) -> tuple[str, Mapping[str, Json]]:
        """Answer the first part that is false, and what it refers to with the values that it saw, abridged."""
        for text, part in self.parts:
            try:
                if part.evaluate(scope) is False:
                    return text, _values(part, scope)
            except ExpressionError:  # another part decided, or the whole would not have been false
                continue
        return self.text, _values(self.whole, scope)


def _values(expression: Expression, scope: Scope) -> dict[str, Json]:
    return {name: _abridged(value) for name, value in list(reads_of(expression, scope).items())[:_VALUES_MAX]}


def _abridged(value: Json) -> Json:
    text = to_text(value)
    return value if len(text) <= _VALUE_MAX else text[:_VALUE_MAX] + "…"


@dataclass(frozen=True, slots=True)
class TriggerCondition(ConditionText):
    """Reads the `if` of a trigger."""

    def read(self, node: Node, path: str, context: Context) -> Clauses | None:
        """Answer the condition with its parts; see `Reader`."""
        whole = ConditionText.read(self, node, path, context)
        if whole is None:
            return None
        assert isinstance(node, ScalarNode)
        if isinstance(whole, Static):
            return Clauses(whole, (), str(node.text))
        text = getattr(whole, "source", node.text)
        return Clauses(whole, tuple(self._parts(text, context)), text)

    def _parts(self, text: str, context: Context) -> Iterator[tuple[str, Expression]]:
        parts = split_clauses(text)
        if not 1 < len(parts) <= CLAUSES_MAX:
            return
        names: Names = replace(context.names(self.extra))
        for part in parts:
            compiled = context.templates.compiler.compile_part(part, names)
            if compiled is not None:
                yield part, compiled


def split_clauses(text: str) -> list[str]:
    """Answer what stands between the outermost `&&` of an expression; all of it when an `||` or `?` is out there."""
    parts, start, depth, at = list[str](), 0, 0, 0
    while at < len(text):
        token = TOKEN.match(text, at)
        assert token is not None  # its last alternative matches any character
        word, end = token[0], token.end()
        depth += (word in _OPENING) - (word in _CLOSING)
        if depth == 0 and (text.startswith("||", at) or word == "?"):
            return [text.strip()]
        if depth == 0 and text.startswith("&&", at):
            parts.append(text[start:at].strip())
            start = end = at + 2
        at = end
    return [*parts, text[start:].strip()]
