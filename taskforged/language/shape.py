# ruff: noqa: ARG002, D102 - the protocol `Reader` documents its two methods, and not every reader needs all arguments
"""How a construct of the language is read and how an editor is told of it: one table for both, so they cannot drift.

A `Reader` turns a node into a value and reports what is wrong; its `schema` is the same rule as JSON Schema. A `Shape`
is a reader of a mapping, made of a table of fields.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from taskforged.ages import AGE_PATTERN, parse_age
from taskforged.engine.model import Expression, RetryPolicy
from taskforged.errors import Violation
from taskforged.language.durations import DURATION_MAX_S, DURATION_PATTERN, parse_duration
from taskforged.language.expressions import SECRET_RULE, Names, kind_of
from taskforged.language.loader import MappingNode, Node, Position, ScalarNode, SequenceNode, to_json
from taskforged.language.order import Place
from taskforged.language.paths import did_you_mean, join
from taskforged.language.templates import Templates

__all__ = [
    "Age",
    "Choice",
    "ConditionText",
    "Context",
    "Duration",
    "Field",
    "Flag",
    "MapOf",
    "Reader",
    "Schema",
    "Shape",
    "Template",
    "TemplateTree",
    "Text",
    "Whole",
]

Schema = dict[str, Any]


@dataclass(slots=True)
class Context:
    """What readers share while one definition is read.

    Attributes:
        templates: compiles expressions.
        problems: faults found so far.
        roots: variables that are visible now.
        visible: ids of the steps that have been passed.
        seen: where each step id was declared.
        fan_outs: for each step inside a fan-out the fan-outs around it, the outermost first.
        place: the step that is being read.
        phase: `main`, `on_failure`, `on_cancel` or `compensate`.
        retry: of activities that say nothing else.
        timeout_s: of activities that say nothing else, in seconds.
    """

    templates: Templates
    problems: list[Violation]
    roots: frozenset[str] = frozenset()
    visible: frozenset[str] = frozenset()
    seen: dict[str, Position] = field(default_factory=dict)
    fan_outs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    place: Place | None = None
    phase: str = "main"
    retry: RetryPolicy | None = None
    timeout_s: float | None = None

    def names(self, extra: Iterable[str] = ()) -> Names:
        """Answer what an expression may refer to now."""
        return Names(self.roots | frozenset(extra), self.visible, self.why)

    def why(self, step_id: str) -> str:
        """Say why a step cannot be referred to here, if there is something to do about it."""
        place = self.place
        around = frozenset[str]() if place is None else place.fan_outs()
        outside = next((one for one in self.fan_outs.get(step_id, ()) if one not in around), None)
        if outside is not None and outside in self.visible:
            output = f"steps.{outside}.output, a list in the order of the items"
            return f"step {step_id!r} is inside the fan-out {outside!r}: from outside write {output}"
        if place is None:
            return ""
        if self.phase == "compensate" and place.is_fan_out and step_id == place.order.ids[place.index]:
            return "an item cannot refer to its own output here; write for_each with a group (`steps:`) instead"
        missing = place.missing_need(step_id)
        if missing is None:
            return ""
        first = f"step {step_id!r} does not come before this place, so it has no result here"
        return f"{first}; add {missing[1]!r} to the `needs` of {missing[0]!r}"

    def problem(self, node: Node, path: str, message: str) -> None:
        """Report a fault."""
        self.problems.append(Violation(path, message, node.start.line, node.start.column))


class Reader(Protocol):
    """Reads one kind of value."""

    def read(self, node: Node, path: str, context: Context) -> Any:
        """Answer the value; report faults in the context, then the answer means nothing."""

    def schema(self, defs: dict[str, Schema]) -> Schema:
        """Answer the rule as JSON Schema; named parts go to `defs`."""


def _scalar(node: Node, path: str, context: Context, what: str) -> Any:
    if isinstance(node, ScalarNode):
        return node.value
    context.problem(node, path, f"must be {what}, is {'a list' if isinstance(node, SequenceNode) else 'a map'}")
    return None


@dataclass(frozen=True, slots=True)
class Text:
    """A text without expressions."""

    pattern: str = ""
    rule: str = ""
    size_max: int = 1024

    def read(self, node: Node, path: str, context: Context) -> str | None:
        value = _scalar(node, path, context, "a text")
        if value is None and not isinstance(node, ScalarNode):
            return None
        if not isinstance(value, str):
            context.problem(node, path, f"must be a text, is {kind_of(value)}; write it in quotes")
        elif len(value) > self.size_max:
            context.problem(node, path, f"must have at most {self.size_max} characters")
        elif self.pattern and not re.match(self.pattern.removesuffix("$") + r"\Z", value, re.ASCII):
            hint = " (expressions are not possible here)" if "${{" in value else ""
            context.problem(node, path, f"{value[:80]!r} is not {self.rule}{hint}")
        else:
            return value
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "string", "maxLength": self.size_max} | ({"pattern": self.pattern} if self.pattern else {})


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def read(self, node: Node, path: str, context: Context) -> bool | None:
        value = _scalar(node, path, context, "true or false")
        if isinstance(value, bool):
            return value
        if isinstance(node, ScalarNode):
            context.problem(node, path, f"must be true or false, is {node.text[:20]!r}, which YAML 1.2 reads as text")
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number."""

    least: int
    most: int

    def read(self, node: Node, path: str, context: Context) -> int | None:
        value = _scalar(node, path, context, "a whole number")
        if type(value) is int and self.least <= value <= self.most:
            return value
        if isinstance(node, ScalarNode):
            context.problem(node, path, f"must be a whole number from {self.least:,} to {self.most:,}")
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, node: Node, path: str, context: Context) -> str | None:
        value = _scalar(node, path, context, f"one of {', '.join(self.words)}")
        if isinstance(value, str) and value in self.words:
            return value
        if isinstance(node, ScalarNode):
            hint = did_you_mean(node.text, self.words)
            context.problem(node, path, f"{node.text[:40]!r} is not possible{hint}")
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration, in seconds."""

    least_s: float = 0.001
    most_s: float = DURATION_MAX_S

    def read(self, node: Node, path: str, context: Context) -> float | None:
        value = _scalar(node, path, context, "a duration")
        if not isinstance(node, ScalarNode):
            return None
        if not isinstance(value, str):
            context.problem(node, path, f"must be a duration with a unit, for example 30s; is {kind_of(value)}")
            return None
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            context.problem(node, path, str(error))
            return None
        if not self.least_s <= seconds <= self.most_s:
            context.problem(node, path, f"must be from {self.least_s:.12g} to {self.most_s:.12g} seconds")
        return seconds

    def schema(self, defs: dict[str, Schema]) -> Schema:
        defs["duration"] = {
            "type": "string",
            "pattern": DURATION_PATTERN,
            "description": "For example 500ms, 30s, 5m, 1h30m, 2d or PT1H30M.",
        }
        return {"$ref": "#/$defs/duration"}


@dataclass(frozen=True, slots=True)
class Age:
    """How long something is kept, in seconds; 0 is for ever."""

    def read(self, node: Node, path: str, context: Context) -> int | None:
        value = _scalar(node, path, context, "an age")
        if not isinstance(node, ScalarNode):
            return None
        try:
            return parse_age(value if isinstance(value, str) else node.text)
        except ValueError as error:
            context.problem(node, path, str(error))
            return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        defs["age"] = {"type": "string", "pattern": AGE_PATTERN, "description": "For example 30d, 12h, 1y or forever."}
        return {"$ref": "#/$defs/age"}


@dataclass(frozen=True, slots=True)
class ConditionText:
    """Bare CEL that says true or false.

    Attributes:
        extra: variables known only here.
        asks_status: `always()`, `success()` and `failure()` are known here.
    """

    extra: frozenset[str] = frozenset()
    asks_status: bool = False

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if not isinstance(node, ScalarNode):
            _scalar(node, path, context, "an expression")
            return None
        names = dataclasses.replace(context.names(self.extra), asks_status=self.asks_status)
        return context.templates.condition(node, path, names)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        defs["condition"] = {"type": ["string", "boolean"], "description": "A CEL expression: true or false."}
        return {"$ref": "#/$defs/condition"}


@dataclass(frozen=True, slots=True)
class Template:
    """A text with `${{ … }}` in it.

    Attributes:
        secrets: references to secrets are possible.
        secret_rule: what is said of secrets where they are not.
    """

    secrets: bool = False
    secret_rule: str = SECRET_RULE

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if not isinstance(node, ScalarNode):
            _scalar(node, path, context, "a text")
            return None
        names = dataclasses.replace(context.names(), secret_rule=self.secret_rule)
        return context.templates.text(node, path, names, secrets=self.secrets)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        defs["text"] = {"type": ["string", "number", "boolean"], "description": "Text, may contain ${{ … }}."}
        return {"$ref": "#/$defs/text"}


@dataclass(frozen=True, slots=True)
class TemplateTree:
    """Any JSON with `${{ … }}` in it."""

    secrets: bool = False

    def read(self, node: Node, path: str, context: Context) -> Expression:
        return context.templates.tree(node, path, context.names(), secrets=self.secrets)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        defs["json"] = {"description": "Any JSON; texts may contain ${{ … }}."}
        return {"$ref": "#/$defs/json"}


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping from names to values of one kind."""

    value: Reader
    key_pattern: str
    key_rule: str
    entries_max: int = 100

    def read(self, node: Node, path: str, context: Context) -> dict[str, Any]:
        if not isinstance(node, MappingNode):
            context.problem(node, path, f"must be a map, is {_kind_of_node(node)}")
            return {}
        if len(node.entries) > self.entries_max:
            context.problem(node, path, f"has {len(node.entries)} entries; the limit is {self.entries_max}")
        found = {}
        for key, (key_node, value) in node.entries.items():
            if not re.match(self.key_pattern.removesuffix("$") + r"\Z", key, re.ASCII):
                context.problem(key_node, join(path, key), f"{key[:80]!r} is not {self.key_rule}")
            found[key] = self.value.read(value, join(path, key), context)
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        names = {"pattern": self.key_pattern}
        return {
            "type": "object",
            "propertyNames": names,
            "maxProperties": self.entries_max,
            "additionalProperties": self.value.schema(defs),
        }


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a `Shape`. `about` is one sentence for editors; `missing` says more than "is missing" when it is."""

    reader: Reader
    about: str
    required: bool = False
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """A mapping with known keys, read in the order of the table.

    Attributes:
        name: what it is, for messages and `$defs`.
        fields: the table.
        build: makes the value of what was read; called only when that is free of faults.
        one_of: exactly one of these keys must be there.
        at_most_one_of: no two of these keys may be there.
        later: keys of the full language that this release does not have.
        null_is_empty: `key:` without a value means an empty mapping.
    """

    name: str
    fields: Mapping[str, Field]
    build: Callable[[dict[str, Any], MappingNode, str, Context], Any]
    one_of: tuple[str, ...] = ()
    at_most_one_of: tuple[str, ...] = ()
    later: frozenset[str] = frozenset()
    null_is_empty: bool = False

    def read(self, node: Node, path: str, context: Context) -> Any:
        if self.null_is_empty and isinstance(node, ScalarNode) and node.value is None:
            node = MappingNode(node.start)
        if not isinstance(node, MappingNode):
            context.problem(node, path, f"must be a map with {_listed(self.fields)}; is {_kind_of_node(node)}")
            return None
        before = len(context.problems)
        self._check_keys(node, path, context)
        values = {
            key: one.reader.read(node.entries[key][1], join(path, key), context)
            for key, one in self.fields.items()
            if key in node.entries
        }
        return None if len(context.problems) > before else self.build(values, node, path, context)

    def _check_keys(self, node: MappingNode, path: str, context: Context) -> None:
        for key, (key_node, _) in node.entries.items():
            if key in self.later:
                context.problem(key_node, join(path, key), f"{key!r} is not supported by this version yet")
            elif key not in self.fields:
                context.problem(key_node, join(path, key), f"unknown key {key!r}{did_you_mean(key, self.fields)}")
        for key, one in self.fields.items():
            if one.required and key not in node.entries:
                context.problem(node, path, one.missing or f"{key!r} is missing")
        self._check_choices(node, path, context)

    def _check_choices(self, node: MappingNode, path: str, context: Context) -> None:
        given = [key for key in node.entries if key in self.one_of]
        # A kind that comes in a later release is reported as such, a misspelt one as unknown: one message is enough.
        excused = any(key in self.later or key not in self.fields for key in node.entries)
        if self.one_of and not given and not excused:
            context.problem(node, path, f"one of {', '.join(self.one_of)} is missing")
        rivals = given or [key for key in node.entries if key in self.at_most_one_of]
        for key in rivals[1:]:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} and {rivals[0]!r} exclude each other")

    def schema(self, defs: dict[str, Schema]) -> Schema:
        if self.name not in defs:
            defs[self.name] = {}  # breaks the recursion of steps inside steps
            defs[self.name] = self._schema(defs)
        return {"$ref": f"#/$defs/{self.name}"}

    def _schema(self, defs: dict[str, Schema]) -> Schema:
        properties = {key: one.reader.schema(defs) | {"description": one.about} for key, one in self.fields.items()}
        schema: Schema = {
            "type": ["object", "null"] if self.null_is_empty else "object",
            "properties": properties,
            "additionalProperties": False,
        }
        required = [key for key, one in self.fields.items() if one.required]
        if required:
            schema["required"] = required
        if self.one_of:
            schema["oneOf"] = [{"required": [key]} for key in self.one_of]
        if self.at_most_one_of:
            pairs = [(a, b) for i, a in enumerate(self.at_most_one_of) for b in self.at_most_one_of[i + 1 :]]
            schema["allOf"] = [{"not": {"required": list(pair)}} for pair in pairs]
        return schema


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(keys) or "nothing in it"


def _kind_of_node(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return "a list"
    return kind_of(to_json(node)) if isinstance(node, ScalarNode) else "a map"
