"""What a trigger makes of an event. Pure: a definition and an event in, a verdict out; also used without a daemon.

Nothing that goes wrong here loses an event: an expression that fails is a verdict with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskforged.engine.model import ExpressionError, Json
from taskforged.errors import InvalidArgumentError
from taskforged.language.clauses import Clauses
from taskforged.language.definition import Definition, ForEach, Source
from taskforged.language.triggers import ITEMS_MAX

__all__ = ["Judgement", "NamespaceFacts", "Start", "judge", "type_matches"]


class NamespaceFacts(NamedTuple):
    """What `for_each` sees of a namespace."""

    name: str
    labels: Mapping[str, str]


class Start(NamedTuple):
    """A run that a trigger asks for.

    Attributes:
        index: of the item; 0 without `for_each`.
        namespace: the item's; empty: the workflow's own.
        input: held against the contract; means nothing with a reason.
        reason: why there can be no such run. Empty: there can.
        item: of `for_each`.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    namespace: str
    input: Json
    reason: str = ""
    item: Json = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a trigger makes of an event.

    Attributes:
        starts: the runs that it asks for; empty when it did not match.
        reason: why it did not match. Empty when it did.
        clause: the part of its `if` that was false.
        values: what that part saw.
        is_fault: it could not be told: an expression failed or an input did not fit.
        has_items: it has a `for_each`.
    """

    starts: Sequence[Start] = ()
    reason: str = ""
    clause: str = ""
    values: Mapping[str, Json] = field(default_factory=dict)
    is_fault: bool = False
    has_items: bool = False


class _Scope:
    """Trigger expressions see the event, the namespaces in `for_each`, and the item in `input`."""

    __slots__ = ("_variables",)

    def __init__(self, **variables: Json) -> None:
        self._variables = variables

    def resolve(self, name: str) -> Json:
        return self._variables[name]


def judge(
    definition: Definition, trigger: Source, event: Json, namespaces: Sequence[NamespaceFacts] | None = None
) -> Judgement:
    """Decide whether a trigger starts runs, and with which input.

    Args:
        definition: that declares the trigger.
        trigger: what is asked.
        event: as expressions see it.
        namespaces: those that the definition's author may use; None: nobody may tell, so `for_each` over them fails.
    """
    try:
        return _judge_condition(trigger, event) or _judge_items(definition, trigger, event, namespaces)
    except ExpressionError as error:
        return Judgement(reason=f"an expression failed: {error}", is_fault=True)
    except InvalidArgumentError as error:
        return Judgement(reason=f"the input does not fit: {error.message}", is_fault=True)


def _judge_condition(trigger: Source, event: Json) -> Judgement | None:
    condition = trigger.condition
    if condition is None:
        return None
    scope = _Scope(event=event)
    wanted = condition.evaluate(scope)
    if wanted is True:
        return None
    if wanted is not False:
        return Judgement(reason="`if` is neither true nor false", is_fault=True)
    clause, values = condition.why_false(scope) if isinstance(condition, Clauses) else ("", {})
    reason = f"`if` is false: {clause}" if clause else "`if` is false"
    return Judgement(reason=reason, clause=clause, values=values)


def _judge_items(
    definition: Definition, trigger: Source, event: Json, namespaces: Sequence[NamespaceFacts] | None
) -> Judgement:
    if trigger.for_each is None:
        value = {} if trigger.input is None else trigger.input.evaluate(_Scope(event=event))
        return Judgement([Start(0, "", definition.input.accept(value))])
    if trigger.for_each.is_namespaces and namespaces is None:
        reason = "the token that applied this version is revoked or expired: apply it again to say whose namespaces"
        return Judgement(reason=reason, is_fault=True)
    items = trigger.for_each.items.evaluate(_Scope(event=event, namespaces=_listed(trigger.for_each, namespaces or ())))
    fault = _items_fault(items)
    if fault:
        return Judgement(reason=fault, is_fault=True)
    if not items:
        return Judgement(reason="`for_each` has no items")
    names = frozenset(one.name for one in namespaces or ())
    starts = [_start(definition, trigger, event, index, item, names) for index, item in enumerate(items)]
    return Judgement(starts, has_items=True)


def _listed(for_each: ForEach, namespaces: Sequence[NamespaceFacts]) -> Json:
    blank = dict.fromkeys(sorted(for_each.labels), "")
    return [{"name": one.name, "labels": {**blank, **one.labels}} for one in namespaces]


def _items_fault(items: Any) -> str:
    if not isinstance(items, list):
        return "`for_each` is no list"
    return f"`for_each` has {len(items):,} items; the limit is {ITEMS_MAX:,}" if len(items) > ITEMS_MAX else ""


def _start(
    definition: Definition, trigger: Source, event: Json, index: int, item: Json, names: frozenset[str]
) -> Start:
    namespace = ""
    if trigger.for_each is not None and trigger.for_each.is_namespaces:
        named = item.get("name") if isinstance(item, dict) else item
        if not isinstance(named, str) or named not in names:
            return Start(index, "", None, f"item {index} is no namespace that this trigger may use", item)
        namespace = named
    scope = _Scope(event=event, item=item, index=index)
    try:
        value = {} if trigger.input is None else trigger.input.evaluate(scope)
        return Start(index, namespace, definition.input.accept(value), "", item)
    except ExpressionError as error:
        return Start(index, namespace, None, f"an expression failed: {error}", item)
    except InvalidArgumentError as error:
        return Start(index, namespace, None, f"the input does not fit: {error.message}", item)


def type_matches(pattern: str, name: str) -> bool:
    """Whether a type of an event fits a pattern in which `*` stands for any text, also none.

    Linear: each `*` takes the first place where what follows it fits, which is enough for patterns without choices.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    *middle, last = rest
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
