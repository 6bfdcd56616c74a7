"""CEL behind one door: compile, check what is referred to, evaluate to JSON.

Three facts about `cel_expr_python` 0.1.3 shape this module:

* Errors of an evaluation are *values* of type ERROR, except the budgets, which are raised.
* Converting a null with `Value.plain_value()` drops a reference to Python's None each time; after a few thousand of
  them the interpreter aborts ("deallocating None"). So results are converted piece by piece, and a null is recognised
  by its type, never converted.
* Binding a variable copies all of it. So only the parts that an expression uses are bound, and a plain chain of
  selections is followed in Python; CEL is then asked only to say why it fails.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cel_expr_python import cel  # type: ignore[import-untyped]
from cel_expr_python.ext import (  # type: ignore[import-untyped]
    ext_encoders,
    ext_math,
    ext_optional,
    ext_strings,
)

from taskforged.engine.model import Expression, ExpressionError, Json, Scope
from taskforged.errors import Violation
from taskforged.language.checked import Checked, Key, Reference, read_checked
from taskforged.language.origin import Origin
from taskforged.language.paths import did_you_mean
from taskforged.language.tokens import STATUS_FUNCTIONS, STATUS_NAMES, rewrite_status

__all__ = [
    "LOOPS_MAX",
    "PROFILE",
    "RESULT_SIZE_MAX",
    "SECRET_RULE",
    "SOURCE_SIZE_MAX",
    "Compiler",
    "Condition",
    "Names",
    "Static",
    "kind_of",
    "reads_of",
]

PROFILE = "cel/1"
"""Language, functions and conversions of this release. What an old version means may never change under this name."""

SOURCE_SIZE_MAX = 4096
"""Longest expression, in characters."""
LOOPS_MAX = 8
"""Most macros (`map`, `filter`, `all` …) in one expression: each may double the data, and a chain of 26 took 2 GB."""
RESULT_SIZE_MAX = 4 * 1024 * 1024
"""Largest value, in characters plus 16 for each value."""

SECRET_RULE = (
    "a secret may only be written as ${{ secrets.NAME }}, in headers, query, json, form, text or tls of http, "  # noqa: S105
    "or in env or stdin of shell"
)
"""What is said wherever a secret is used in another way."""

_NODE_SIZE = 16
_INT64_MAX = 2**63 - 1
_ROOTS = ("error", "event", "index", "input", "item", "namespaces", "run", "vars", "workflow")
_STEP_FIELDS = ("error", "output", "state")
_FIELDS: Mapping[str, frozenset[str]] = {
    "error": frozenset({"attempts", "code", "details", "message", "step"}),
    "event": frozenset(
        {
            *("body", "due_time", "encoding", "headers", "id", "origin", "path", "query", "received_at", "source"),
            *("subject", "type"),
        }
    ),
    "run": frozenset(
        {"attempt", "correlation_id", "id", "namespace", "parent", "priority", "queue", "started_at", "trigger"}
    ),
    "workflow": frozenset({"name", "version"}),
}
_WHERE = {
    "error": "it exists only in on_failure, in compensate and in retry.if",
    "index": "it exists only inside a for_each",
    "item": "it exists only inside a for_each",
    "input": "a trigger sees only event and vars",
    "run": "a trigger sees only event and vars",
    "namespaces": "it exists only in the for_each of a trigger",
    "workflow": "a trigger sees only event and vars",
}
_PROBLEM = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*?)(?=\n \||\nERROR: |\s*\[[A-Z_]+\]\Z|\Z)", re.DOTALL)
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
_STATUS = re.compile(r"\A[A-Z_]+: ")
_REASONS = (
    (re.compile(r"Key not found in map : (.*)", re.DOTALL), r"there is no key \1"),
    (re.compile(r"Applying SELECT to non-message type"), "a field is selected from a value that is no map"),
    (re.compile(r"Iteration budget exceeded"), "it loops too often"),
)

_Tree: TypeAlias = "dict[Key, _Tree] | None"
"""Which parts of a value are used, by key; None means all of it."""


@dataclass(frozen=True, slots=True)
class Names:
    """What an expression may refer to where it stands.

    Attributes:
        roots: variables such as `input`.
        steps: ids of the steps that have been passed before.
        why: says more about a step that is not among them; empty when there is no more to say.
        asks_status: `always()`, `success()` and `failure()` are known.
        secret_rule: what is said when a secret is used where it must not be.
    """

    roots: frozenset[str]
    steps: frozenset[str] = frozenset()
    why: Callable[[str], str] = field(default=lambda _: "", compare=False)
    asks_status: bool = False
    secret_rule: str = SECRET_RULE


@dataclass(frozen=True, slots=True)
class _Cel:
    """An expression that CEL evaluates."""

    source: str
    position: str
    program: cel.Expression
    uses: Mapping[str, _Tree]
    static: Mapping[str, Json]

    def evaluate(self, scope: Scope) -> Json:
        data = {name: _prune(self._value(name, scope), tree) for name, tree in self.uses.items()}
        try:
            result = self.program.eval(data=data)
            return _Converter().convert(result)
        except _NoJsonError as error:
            raise ExpressionError(self.source, self.position, str(error)) from None
        except MemoryError:
            raise ExpressionError(self.source, self.position, "it needs too much memory") from None
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            # Budgets are raised as RuntimeError; the others are values that the binding cannot take or give.
            raise ExpressionError(self.source, self.position, _readable(str(error))) from None

    def _value(self, name: str, scope: Scope) -> Json:
        if name in self.static:
            return self.static[name]
        try:
            return scope.resolve(name)
        except KeyError:
            raise ExpressionError(self.source, self.position, f"{name} is not known here") from None


@dataclass(frozen=True, slots=True)
class _Path:
    """A variable with constant keys, followed without CEL. `why` is the same expression for CEL, to say what failed."""

    name: str
    keys: tuple[Key, ...]
    why: _Cel

    def evaluate(self, scope: Scope) -> Json:
        try:
            value = scope.resolve(self.name)
        except KeyError:
            return self.why.evaluate(scope)
        for key in self.keys:
            kind = type(value)
            if (kind is dict and key in value) or (kind is list and type(key) is int and key < len(value)):
                value = value[key]
            else:
                return self.why.evaluate(scope)
        return value


@dataclass(frozen=True, slots=True)
class Static:
    """A value that depends on nothing of a run."""

    value: Json

    def evaluate(self, scope: Scope) -> Json:  # noqa: ARG002 - the protocol's signature
        """Answer the value; lists and maps as fresh copies, so that no caller can change the definition."""
        return _fresh(self.value)


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression that must say true or false."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        """Answer a bool; raise ExpressionError for anything else."""
        value = self.inner.evaluate(scope)
        if value is True or value is False:
            return value
        raise ExpressionError(self.source, self.position, f"must be true or false, is {kind_of(value)}")


@dataclass(slots=True)
class Compiler:
    """Compiles the expressions of one definition and collects what is wrong with them.

    Attributes:
        step_ids: all steps of the definition, to tell "later" from "unknown".
        static: the values of `vars`.
        input_schema: the input contract as JSON, to check `input.<name>`; None when there is none.
        problems: faults found so far.
    """

    step_ids: frozenset[str]
    static: Mapping[str, Json]
    input_schema: Json
    problems: list[Violation]
    _env: cel.Env = field(init=False)
    _declared: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        steps = (f"steps.{step}.{name}" for step in self.step_ids for name in _STEP_FIELDS)
        self._declared = STATUS_NAMES.union(_ROOTS, steps)
        self._env = _environment(self._declared)

    def compile(self, source: str, origin: Origin, names: Names, *, want_bool: bool = False) -> Expression | None:
        """Compile one expression; None when it is faulty, the faults are in `problems`."""
        lead = len(source) - len(source.lstrip())
        written, origin = source.strip(), origin.shifted(lead)
        source, used = rewrite_status(written) if names.asks_status else (written, frozenset[str]())
        names = replace(names, roots=names.roots | used) if used else names
        fault = _size_fault(source)
        if fault:
            self.problem(origin, 0, fault)
            return None
        try:
            program = self._env.compile(source)
        except RuntimeError as error:
            self._explain(str(error), source, origin, names)
            return None
        checked = read_checked(program.serialize(), self._declared)
        known = [self._check(reference, source, origin, names) for reference in checked.references]
        fault = _type_fault(program, want_bool=want_bool) or _loops_fault(checked)
        if fault:
            self.problem(origin, 0, fault)
        if fault or not all(known):
            return None
        expression = self._expression(written, origin, program, checked)
        return Condition(expression, written, origin.position()) if want_bool else expression

    def compile_part(self, source: str, names: Names) -> Expression | None:
        """Compile a part of a condition that has been compiled already; None when it means nothing alone."""
        try:
            program = self._env.compile(source)
        except RuntimeError:
            return None
        checked = read_checked(program.serialize(), self._declared)
        if any(one.name.partition(".")[0] not in names.roots for one in checked.references):
            return None
        uses = _uses(checked.references)
        by_cel = _Cel(source, "", program, uses, {"vars": self.static} if "vars" in uses else {})
        return Condition(by_cel, source, "")

    def _expression(self, source: str, origin: Origin, program: cel.Expression, checked: Checked) -> Expression:
        uses = _uses(checked.references)
        static = {"vars": self.static} if "vars" in uses else {}
        by_cel = _Cel(source, origin.position(), program, uses, static)
        if checked.is_path and not static:
            return _Path(checked.references[0].name, checked.references[0].keys, by_cel)
        if len(uses) == len(static):
            return self._fold(by_cel, origin)
        return by_cel

    def _fold(self, expression: _Cel, origin: Origin) -> Expression:
        """Evaluate now what no run can change; a fault of it is a fault of the definition."""
        try:
            return Static(expression.evaluate(_NO_SCOPE))
        except ExpressionError as error:
            self.problem(origin, 0, f"always fails: {error.reason}")
            return expression

    def _check(self, reference: Reference, source: str, origin: Origin, names: Names) -> bool:
        root, _, rest = reference.name.partition(".")
        at = source.rfind(root, 0, reference.offset + len(root))
        if root == "steps":
            fault = self._step_fault(rest.partition(".")[0], names)
        elif root not in names.roots:
            fault = f"{root!r} is not known here: {_WHERE.get(root, 'it does not exist at this place')}"
        else:
            fault = self._key_fault(root, reference.keys)
        if fault:
            self.problem(origin, max(at, 0), fault)
        return fault is None

    def _step_fault(self, step_id: str, names: Names) -> str | None:
        if step_id in names.steps:
            return None
        return names.why(step_id) or f"step {step_id!r} does not come before this place, so it has no result here"

    def _key_fault(self, root: str, keys: tuple[Key, ...]) -> str | None:
        if root == "input":
            return _schema_fault(self.input_schema, keys)
        known = frozenset(self.static) if root == "vars" else _FIELDS.get(root)
        if known is None or not keys or keys[0] in known:
            return None
        return f"{root} has no {keys[0]!r}{did_you_mean(str(keys[0]), known)}"

    def _explain(self, text: str, source: str, origin: Origin, names: Names) -> None:
        """Report each error of the compiler where it stands."""
        found = _PROBLEM.findall(text) or [("1", "1", _STATUS.sub("", text))]
        seen: set[str] = set()
        for line, column, message in found:
            # After one syntax error the parser reports its own confusion; the first one is the cause.
            if message in seen or ("Syntax error" in message and seen):
                continue
            seen.add(message)
            offset = _offset(source, int(line), int(column))
            undeclared = _UNDECLARED.match(message)
            if undeclared:
                name = undeclared[1]
                offset = max(source.rfind(name.partition(".")[0], 0, offset + len(name)), 0)
                message = self._unknown(name, source, offset, names)  # noqa: PLW2901 - the better message
            self.problem(origin, offset, message)

    def _unknown(self, name: str, source: str, offset: int, names: Names) -> str:
        parts = name.split(".")
        if parts[0] == "steps":
            return self._unknown_step(parts[1:], names)
        if parts[0] == "secrets":
            return names.secret_rule
        if source[offset + len(name) :].lstrip().startswith("("):
            if name in STATUS_FUNCTIONS:
                where = "takes no arguments" if names.asks_status else "exists only in the `if` of a step"
                return f"the function {name}() {where}"
            clock = "; there is no clock, use run.started_at" if name == "now" else ""
            return f"there is no function {name!r} for these arguments{clock}"
        if "." not in name and offset and source[offset - 1] == ".":
            return f"there is no function {name!r}"
        if parts[0] in self.step_ids:
            return f"unknown name {parts[0]!r}; did you mean 'steps.{parts[0]}.output'?"
        known = [*names.roots, "steps"] if names.steps else names.roots
        return f"unknown name {parts[0]!r}{did_you_mean(parts[0], known)}"

    def _unknown_step(self, parts: list[str], names: Names) -> str:
        if not parts:
            return "write steps.<id>.output, steps.<id>.state or steps.<id>.error"
        if parts[0] not in self.step_ids:
            return f"there is no step {parts[0]!r}{did_you_mean(parts[0], names.steps)}"
        if len(parts) == 1:
            return f"write steps.{parts[0]}.output, steps.{parts[0]}.state or steps.{parts[0]}.error"
        return f"a step has no {parts[1]!r}{did_you_mean(parts[1], _STEP_FIELDS)}"

    def problem(self, origin: Origin, offset: int, message: str) -> None:
        """Report a fault of what stands `offset` characters behind an origin."""
        line, column = origin.at(offset)
        self.problems.append(Violation(origin.path, message, line, column))


def reads_of(expression: Expression, scope: Scope) -> dict[str, Json]:
    """Answer what an expression refers to, by the text of the reference, with the values that a scope has for it."""
    if isinstance(expression, Condition):
        return reads_of(expression.inner, scope)
    by_cel = expression.why if isinstance(expression, _Path) else expression
    if not isinstance(by_cel, _Cel):
        return {}
    found: dict[str, Json] = {}
    for name, tree in by_cel.uses.items():
        if name not in by_cel.static:
            _collect_reads(name, scope.resolve(name), tree, found)
    return found


def _collect_reads(name: str, value: Json, tree: _Tree, found: dict[str, Json]) -> None:
    if tree is None:
        found[name] = value
        return
    for key, part in tree.items():
        plain = type(key) is str and key.isidentifier()
        inner = f"{name}.{key}" if plain else f"{name}[{json.dumps(key)}]"
        there = (type(value) is dict and key in value) or (
            type(value) is list and type(key) is int and key < len(value)
        )
        _collect_reads(inner, value[key] if there else None, part if there else None, found)


def _fresh(value: Json) -> Json:
    if type(value) is dict:
        return {key: _fresh(part) for key, part in value.items()}
    if type(value) is list:
        return [_fresh(part) for part in value]
    return value


class _NoScope:
    """The scope of an expression that refers to nothing."""

    def resolve(self, name: str) -> Json:
        raise KeyError(name)


_NO_SCOPE = _NoScope()


def _environment(declared: Iterable[str]) -> cel.Env:
    variables = {name: cel.Type.BOOL if name in STATUS_NAMES else cel.Type.DYN for name in sorted(declared)}
    extensions = [ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional(), ext_encoders.ExtEncoders()]
    return cel.NewEnv(variables=variables, extensions=extensions)


def _size_fault(source: str) -> str | None:
    if not source:
        return "the expression is empty"
    if len(source) > SOURCE_SIZE_MAX:
        return f"the expression has {len(source):,} characters; the limit is {SOURCE_SIZE_MAX:,}"
    return None


def _loops_fault(checked: Checked) -> str | None:
    if checked.loops > LOOPS_MAX:
        return f"the expression has {checked.loops} loops (map, filter, all …); the limit is {LOOPS_MAX}"
    return None


def _type_fault(program: cel.Expression, *, want_bool: bool) -> str | None:
    name = program.return_type().name()
    if want_bool:
        return None if name in ("BOOL", "DYN") else f"must be true or false, is {name.lower()}"
    if name.startswith("optional_type"):
        return "an optional is no JSON; add .orValue(…)"
    if name == "BYTES":
        return "bytes are no JSON; wrap them in base64.encode(…)"
    return "a type is no JSON; wrap it in string(…)" if name.startswith("TYPE") else None


def _schema_fault(schema: Json, keys: tuple[Key, ...]) -> str | None:
    """Say which key the input contract does not have, as far as `properties` tell."""
    where = "input"
    for key in keys:
        if not _is_closed(schema) or not isinstance(key, str):
            return None
        properties = schema["properties"]
        if key not in properties:
            return f"{where} has no {key!r}{did_you_mean(key, properties)}"
        schema, where = properties[key], f"{where}.{key}"
    return None


def _is_closed(schema: Json) -> bool:
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return False
    opening = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas")
    return not any(key in schema for key in opening) and schema.get("additionalProperties", False) is False


def _uses(references: Iterable[Reference]) -> dict[str, _Tree]:
    uses: dict[str, _Tree] = {}
    for reference in references:
        _add_use(uses, (reference.name, *reference.keys))
    return uses


def _add_use(tree: Any, keys: tuple[Key, ...]) -> None:
    for key in keys[:-1]:
        if key in tree and tree[key] is None:
            return
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = None


def _prune(value: Json, tree: _Tree) -> Json:
    """Answer the used parts of a value. A key that is absent stays absent, so nothing can tell the difference."""
    if tree is None or type(value) is not dict:
        return value
    return {key: _prune(value[key], part) for key, part in tree.items() if key in value}


def _offset(source: str, line: int, column: int) -> int:
    lines = source.split("\n")
    if not 1 <= line <= len(lines):
        return 0
    return min(sum(len(text) + 1 for text in lines[: line - 1]) + max(column - 1, 0), len(source))


def _readable(text: str) -> str:
    text = _STATUS.sub("", text)
    for pattern, better in _REASONS:
        found = pattern.match(text)
        if found:
            return found.expand(better).strip()
    return "the result is no JSON value" if "Unable to convert" in text else text[:500]


def kind_of(value: Json) -> str:
    """Answer what a JSON value is, for messages."""
    names = {type(None): "null", str: "a text", int: "a number", float: "a number", list: "a list", dict: "a map"}
    return names.get(type(value), "a bool")


class _NoJsonError(Exception):
    """Why a result of CEL is no JSON, or the error that it is."""


class _Converter:
    """CEL value -> JSON, piece by piece, within `RESULT_SIZE_MAX`."""

    def __init__(self) -> None:
        self._size = 0

    def convert(self, value: cel.Value) -> Json:
        name = value.type().name()
        self._grow(_NODE_SIZE)
        if name == "NULL":
            return None  # never converted: see the top of this module
        convert = _CONVERTERS.get(name)
        if convert is not None:
            return convert(value.value())
        if name == "STRING":
            text = value.value()
            self._grow(len(text))
            return text
        if name.startswith("LIST"):
            return [self.convert(item) for item in value.value()]
        if name.startswith("MAP"):
            return self._map(value.value())
        if name == "ERROR":
            raise _NoJsonError(_readable(str(value.value())))
        raise _NoJsonError(_NO_JSON.get(name, f"a value of type {name.lower()} is no JSON"))

    def _map(self, entries: Mapping[Any, cel.Value]) -> Json:
        for key in entries:
            if type(key) is not str:
                raise _NoJsonError(f"the key {key!r} of a map is no text")
            self._grow(len(key))
        # CEL does not keep the order of keys; sorted is the one order that any machine finds again.
        return {key: self.convert(entries[key]) for key in sorted(entries)}

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > RESULT_SIZE_MAX:
            raise _NoJsonError(f"the result is larger than {RESULT_SIZE_MAX:,} characters")


def _double(value: float) -> Json:
    if not math.isfinite(value):
        raise _NoJsonError(f"{value} is no JSON number")
    return value


def _uint(value: int) -> Json:
    if value > _INT64_MAX:
        raise _NoJsonError(f"the number {value} does not fit into 64 bits")
    return value


def _timestamp(value: dt.datetime) -> Json:
    return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _duration(value: dt.timedelta) -> Json:
    """Answer seconds as CEL's own `string(duration)` does: `90s`, `1.5s`."""
    micros = value // dt.timedelta(microseconds=1)
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    fraction = f".{micros % 1_000_000:06d}".rstrip("0").rstrip(".")
    return f"{sign}{micros // 1_000_000}{fraction}s"


_CONVERTERS: Mapping[str, Callable[[Any], Json]] = {
    "BOOL": bool,
    "DOUBLE": _double,
    "DURATION": _duration,
    "INT": int,
    "TIMESTAMP": _timestamp,
    "UINT": _uint,
}
_NO_JSON = {
    "BYTES": "bytes are no JSON; wrap them in base64.encode(…)",
    "TYPE": "a type is no JSON; wrap it in string(…)",
}
