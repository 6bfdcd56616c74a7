# ruff: noqa: ARG001, ARG002, D102 - readers and builders share one signature, and not each needs all of it; the protocol
# `Reader` documents its methods
"""What a single step can do: the tables of the kinds that contain no other steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from taskforged.engine.model import (
    EVENT_TYPE,
    EVENT_TYPE_MAX,
    RESERVED_TYPES,
    ActivitySpec,
    ChildSpec,
    Effect,
    Expression,
    ExpressionError,
    FailSpec,
    Json,
    OnTimeout,
    PublishSpec,
    Scope,
    SleepSpec,
    TransformSpec,
    WaitSpec,
)
from taskforged.language.durations import DURATION_MAX_S, INSTANT_PATTERN, parse_duration, parse_instant
from taskforged.language.expressions import Static, kind_of
from taskforged.language.input import Contract, SchemaFault, compile_schema
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode, to_json
from taskforged.language.origin import Origin
from taskforged.language.paths import join
from taskforged.language.shape import (
    Choice,
    Context,
    Duration,
    Field,
    MapOf,
    Schema,
    Shape,
    Template,
    TemplateTree,
    Text,
    Whole,
)
from taskforged.language.templates import ListTree, MapTree

__all__ = [
    "CHILD",
    "EVENT",
    "FAIL",
    "HTTP",
    "NAME",
    "SHELL",
    "SLEEP",
    "STEP_ID",
    "TOKEN_PATTERN",
    "WAIT",
    "Child",
    "Fail",
    "InputMap",
    "Sleep",
    "Transform",
    "read_contract",
]

STEP_ID = r"^[a-z][a-z0-9_]{0,62}$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
TOKEN_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"  # noqa: S105 - RFC 9110's name for a word

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CLASS = re.compile(r"([1-5])xx\Z", re.ASCII)
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?\Z", re.ASCII)


# --- http ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Accept:
    """Status codes: `200`, `2xx` or `200-299`; becomes a list of pairs, both ends included."""

    def read(self, node: Node, path: str, context: Context) -> list[list[int]]:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list of status codes, for example [2xx, 404, 409-410]")
            return []
        return [self._range(item, join(path, index), context) for index, item in enumerate(node.items)]

    def _range(self, node: Node, path: str, context: Context) -> list[int]:
        text = node.text if isinstance(node, ScalarNode) else ""
        if found := _CLASS.match(text):
            return [int(found[1]) * 100, int(found[1]) * 100 + 99]
        found = _RANGE.match(text)
        if found and int(found[1]) <= int(found[2] or found[1]):
            return [int(found[1]), int(found[2] or found[1])]
        context.problem(node, path, f"{text[:20]!r} is no status code; write 404, 2xx or 200-299")
        return []

    def schema(self, defs: dict[str, Schema]) -> Schema:
        texts = {"type": "string", "pattern": "^([1-5]xx|[1-5][0-9]{2}(-[1-5][0-9]{2})?)$"}
        number = {"type": "integer", "minimum": 100, "maximum": 599}
        return {"type": "array", "minItems": 1, "items": {"anyOf": [number, texts]}}


@dataclass(frozen=True, slots=True)
class _Url(Template):
    """An absolute http or https address; what can be seen of it now is checked now."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if isinstance(node, ScalarNode) and not node.text.strip().startswith("${{"):
            scheme = node.text.lower().startswith(("http://", "https://"))
            if not scheme or re.search(r"\s", node.text.partition("${{")[0]):
                context.problem(node, path, "must be an absolute address that begins with http:// or https://")
        # Called by name: a dataclass with slots is a new class, which a bare super() does not know.
        return Template.read(self, node, path, context)


@dataclass(frozen=True, slots=True)
class _HeaderValue(Template):
    """The value of a header: one line."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if isinstance(node, ScalarNode) and re.search(r"[\r\n]", node.text):
            context.problem(node, path, "a header has one line; write a block scalar as >- or use quotes")
        return Template.read(self, node, path, context)


@dataclass(frozen=True, slots=True)
class _Key(Template):
    """A private key, which must not stand in a definition: those are stored and shown."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if isinstance(node, ScalarNode) and not re.fullmatch(r"\s*\$\{\{\s*secrets\.\w+\s*\}\}\s*", node.text):
            context.problem(node, path, "a key is a secret; write ${{ secrets.NAME }}")
        return Template.read(self, node, path, context)


def _build_tls(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> MapTree:
    if ("cert" in values) != ("key" in values):
        context.problem(node, path, "cert and key belong together; one of them is missing")
    return _map_tree(values)


_TLS = Shape(
    "tls",
    {
        "ca": Field(Template(secrets=True), "The only authorities that the server may be proved by, in PEM."),
        "cert": Field(Template(secrets=True), "The certificate that the server is shown, in PEM."),
        "key": Field(_Key(secrets=True), "Its key in PEM; a secret."),
    },
    _build_tls,
)


def _build_http(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ActivitySpec:
    _check_header_names(node.get("headers"), join(path, "headers"), context)
    config: dict[str, Expression] = {
        "method": Static(values.get("method", "GET")),
        "url": values["url"],
        "query": _map_tree(values.get("query", {})),
        "headers": _map_tree(values.get("headers", {})),
        "accept": Static(values.get("accept", [[200, 299]])),
        "max_redirects": Static(values.get("follow_redirects", 0)),
        "max_response_bytes": Static(values.get("max_response_bytes", 1 << 20)),
    }
    config |= {name: values[name] for name in ("json", "text", "tls") if name in values}
    if "form" in values:
        config["form"] = _map_tree(values["form"])
    effect = Effect.PURE if values.get("method", "GET") in _SAFE_METHODS else Effect.IDEMPOTENT
    return ActivitySpec("http", _map_tree(config), effect)


def _check_header_names(node: Node | None, path: str, context: Context) -> None:
    """Header names do not care for case, so YAML's check for duplicate keys is not enough."""
    seen: set[str] = set()
    for name, (key, _) in node.entries.items() if isinstance(node, MappingNode) else ():
        if name.lower() in seen:
            context.problem(key, join(path, name), f"the header {name!r} is given twice")
        seen.add(name.lower())


def _map_tree(entries: dict[str, Expression]) -> MapTree:
    return MapTree(tuple(entries.items()))


_PARAMETERS = MapOf(Template(secrets=True), r"^[\s\S]{1,200}$", "a name of 1 to 200 characters")
HTTP = Shape(
    "http",
    {
        "method": Field(Choice(_METHODS), "The method; GET by default."),
        "url": Field(_Url(), "Where to; an absolute http or https address, without secrets.", required=True),
        "query": Field(_PARAMETERS, "Parameters added to the address."),
        "headers": Field(MapOf(_HeaderValue(secrets=True), TOKEN_PATTERN, "a header name"), "Headers of the request."),
        "json": Field(TemplateTree(secrets=True), "The body, sent as JSON."),
        "form": Field(_PARAMETERS, "The body, sent as a form."),
        "text": Field(Template(secrets=True), "The body, sent as text."),
        "tls": Field(_TLS, "How the server is verified, and what it is shown."),
        "accept": Field(_Accept(), "Status codes that mean success; [2xx] by default."),
        "follow_redirects": Field(Whole(0, 10), "How many redirects are followed; none by default."),
        "max_response_bytes": Field(Whole(0, 64 << 20), "Largest response that is read; 1 MiB by default."),
    },
    _build_http,
    at_most_one_of=("json", "form", "text"),
)


# --- sleep, fail and transform ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seconds:
    """A duration that is computed: a number of seconds, or a text such as `5m`."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        value = self.inner.evaluate(scope)
        try:
            return _seconds(value)
        except ValueError as error:
            raise ExpressionError(self.source, self.position, str(error)) from None


def _seconds(value: Json) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be seconds or a duration, is {kind_of(value)}")  # noqa: TRY004 - a value, not an argument
    if not (math.isfinite(value) and 0 <= value <= DURATION_MAX_S):
        raise ValueError(f"must be from 0 to {DURATION_MAX_S:.12g} seconds, is {value}")
    return float(value)


@dataclass(frozen=True, slots=True)
class _Instant:
    """A time that is computed: RFC 3339, or seconds since 1970. Answers microseconds since 1970."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        value = self.inner.evaluate(scope)
        try:
            return _instant(value)
        except ValueError as error:
            raise ExpressionError(self.source, self.position, str(error)) from None


def _instant(value: Json) -> int:
    if isinstance(value, str):
        return parse_instant(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a time such as {_TIME_EXAMPLE}, is {kind_of(value)}")  # noqa: TRY004 - a value
    if not (math.isfinite(value) and 0 <= value <= _SECONDS_MAX):
        raise ValueError(f"must be seconds since 1970, is {value}")
    return round(value * 1_000_000)


@dataclass(frozen=True, slots=True)
class _Duration:
    """`5m`, or `${{ … }}` that says how long."""

    def read(self, node: Node, path: str, context: Context) -> Expression:
        if not isinstance(node, ScalarNode) or "${{" not in node.text:
            return Static(Duration(0).read(node, path, context))
        inner = context.templates.tree(node, path, context.names())
        return _Seconds(inner, node.text.strip(), Origin(path, node, context.templates.document).position())

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [Duration(0).schema(defs), _EXPRESSION]}


@dataclass(frozen=True, slots=True)
class _Until:
    """A time with its offset from UTC, or `${{ … }}` that says when."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if not isinstance(node, ScalarNode):
            context.problem(node, path, f"must be a time such as {_TIME_EXAMPLE}")
            return None
        if "${{" in node.text:
            inner = context.templates.tree(node, path, context.names())
            return _Instant(inner, node.text.strip(), Origin(path, node, context.templates.document).position())
        try:
            return Static(parse_instant(node.text))
        except ValueError as error:
            context.problem(node, path, str(error))
            return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "string", "pattern": INSTANT_PATTERN}, _EXPRESSION]}


@dataclass(frozen=True, slots=True)
class Sleep:
    """`5s`, `{for: 5s}` or `{until: TIME}`."""

    def read(self, node: Node, path: str, context: Context) -> SleepSpec | None:
        if isinstance(node, MappingNode):
            found: SleepSpec | None = SLEEP.read(node, path, context)
            return found
        return SleepSpec(_Duration().read(node, path, context))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [*_Duration().schema(defs)["anyOf"], SLEEP.schema(defs)]}


def _build_sleep(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> SleepSpec:
    return SleepSpec(values.get("for"), values.get("until"))


_EXPRESSION = {"type": "string", "pattern": r"\$\{\{"}
_TIME_EXAMPLE = "2026-12-24T18:00:00Z"
_SECONDS_MAX = 253_402_300_799  # the end of the year 9999
SLEEP = Shape(
    "sleep",
    {
        "for": Field(_Duration(), "How long."),
        "until": Field(_Until(), "Until when: a time with its offset, such as 2026-12-24T18:00:00+01:00."),
    },
    _build_sleep,
    one_of=("for", "until"),
)


@dataclass(frozen=True, slots=True)
class Fail:
    """A message, or a message with a code."""

    def read(self, node: Node, path: str, context: Context) -> FailSpec | None:
        if isinstance(node, MappingNode):
            found: FailSpec | None = FAIL.read(node, path, context)
            return found
        message = Template().read(node, path, context)
        return FailSpec(message) if message is not None else None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [Template().schema(defs), FAIL.schema(defs)]}


def _build_fail(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> FailSpec:
    return FailSpec(values["message"], values.get("code", "failed"))


FAIL = Shape(
    "fail",
    {
        "message": Field(Template(), "Why the run fails.", required=True),
        "code": Field(Text(STEP_ID, "a code such as not_ready"), "For programs; `failed` by default."),
    },
    _build_fail,
)


@dataclass(frozen=True, slots=True)
class Transform:
    """Any JSON with expressions in it."""

    def read(self, node: Node, path: str, context: Context) -> TransformSpec:
        return TransformSpec(TemplateTree().read(node, path, context))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return TemplateTree().schema(defs)


# --- wait ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PayloadSchema:
    """A JSON Schema of what is sent to the step."""

    def read(self, node: Node, path: str, context: Context) -> Contract | None:
        return read_contract(node, path, context, "payload")

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"allOf": [{"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "object"}]}


def read_contract(node: Node, path: str, context: Context, what: str) -> Contract | None:
    """Compile a JSON Schema of `what`, or report what is wrong with it where that stands."""
    schema = to_json(node)
    try:
        return compile_schema(schema if schema is not None else False, what)
    except SchemaFault as fault:
        at, where = _descend(node, path, fault.path)
        context.problem(at, where, str(fault))
        return None


def _descend(node: Node, path: str, parts: list[str | int]) -> tuple[Node, str]:
    """Follow a path as far as it leads; answer the node there and where it is."""
    for part in parts:
        if isinstance(node, MappingNode) and part in node.entries:
            node = node.entries[str(part)][1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            break
        path = join(path, part)
    return node, path


def _build_wait(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> WaitSpec:
    if "on_timeout" in values and "timeout" not in values:
        context.problem(node.entries["on_timeout"][0], join(path, "on_timeout"), "means nothing without `timeout`")
    return WaitSpec(
        signal=values.get("signal", ""),
        message=values.get("approval"),
        contract=values.get("schema"),
        timeout_s=values.get("timeout"),
        on_timeout=OnTimeout(values.get("on_timeout", OnTimeout.FAIL)),
    )


_SIGNAL = Text(r"^[a-z][a-z0-9._-]{0,62}$", "the name of a signal: a-z, then also 0-9, dot, _ and -, at most 63")
WAIT = Shape(
    "wait",
    {
        "signal": Field(_SIGNAL, "Name of the signal that is waited for."),
        "approval": Field(Template(), "What somebody is asked to approve."),
        "schema": Field(_PayloadSchema(), "JSON Schema of what is sent along."),
        "timeout": Field(Duration(), "How long it waits; for ever by default."),
        "on_timeout": Field(Choice(tuple(OnTimeout)), "What happens then; `fail` by default."),
    },
    _build_wait,
    one_of=("signal", "approval"),
)


# --- workflow and event ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputMap:
    """The input of a run: a map, or one expression that answers a map."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        whole = isinstance(node, ScalarNode) and node.text.startswith("${{")
        if not whole and not isinstance(node, MappingNode):
            context.problem(node, path, "must be a map, the input of the run")
            return None
        return TemplateTree().read(node, path, context)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "object"}, {"type": "string", "pattern": r"^\$\{\{"}]}


_WORKFLOW_NAME = Text(NAME, "a name: a-z, 0-9, then also dot, _ and -, at most 63")


@dataclass(frozen=True, slots=True)
class Child:
    """The name of a workflow, or a map with its name, version and input."""

    def read(self, node: Node, path: str, context: Context) -> ChildSpec | None:
        if isinstance(node, MappingNode):
            found: ChildSpec | None = CHILD.read(node, path, context)
            return found
        name = _WORKFLOW_NAME.read(node, path, context)
        return None if name is None else ChildSpec(name, 0, Static({}))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [_WORKFLOW_NAME.schema(defs), CHILD.schema(defs)]}


def _build_child(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ChildSpec:
    return ChildSpec(values["name"], values.get("version", 0), values.get("input", Static({})))


CHILD = Shape(
    "child",
    {
        "name": Field(_WORKFLOW_NAME, "Name of the workflow, in the same namespace.", required=True),
        "version": Field(Whole(1, 2**31 - 1), "Its version; by default the newest when the parent was created."),
        "input": Field(InputMap(), "The input of the sub-workflow."),
    },
    _build_child,
)


@dataclass(frozen=True, slots=True)
class _CheckedType:
    """The type of an event, computed."""

    inner: Expression
    source: str
    position: str

    def evaluate(self, scope: Scope) -> Json:
        value = self.inner.evaluate(scope)
        fault = event_type_fault(value)
        if fault:
            raise ExpressionError(self.source, self.position, fault)
        return value


def event_type_fault(name: str) -> str | None:
    """Say why an event of this type cannot be published by anybody but Taskforge; None when it can."""
    if not EVENT_TYPE.fullmatch(name) or len(name) > EVENT_TYPE_MAX:
        return f"{name[:80]!r} is no type of an event; write for example order.paid"
    if name.startswith(RESERVED_TYPES):
        return f"{name[:80]!r}: types that begin with {', '.join(RESERVED_TYPES)} are those of Taskforge itself"
    return None


@dataclass(frozen=True, slots=True)
class _EventType(Template):
    """The type of an event, such as `order.paid`."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        before = len(context.problems)
        found = Template.read(self, node, path, context)
        if found is None or not isinstance(node, ScalarNode) or len(context.problems) > before:
            return None
        if isinstance(found, Static):
            fault = event_type_fault(found.value)
        else:
            start = node.text.partition("${{")[0]
            fault = event_type_fault(start + "x") if start.startswith(RESERVED_TYPES) else None
        if fault:
            context.problem(node, path, fault)
        if isinstance(found, Static):
            return found
        return _CheckedType(found, node.text.strip(), Origin(path, node, context.templates.document).position())


def _build_event(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> PublishSpec:
    return PublishSpec(values["type"], values.get("data", Static({})))


EVENT = Shape(
    "publish",
    {
        "type": Field(_EventType(), "What happened, for example order.paid.", required=True),
        "data": Field(TemplateTree(), "What there is to say about it."),
    },
    _build_event,
)


# --- shell -----------------------------------------------------------------------------------------------------------

_ARGUMENT = Template(
    secret_rule="a secret cannot be an argument, as `ps` shows those to everybody; pass it in env: X: ${{ secrets.X }}"  # noqa: S106 - a message
)


@dataclass(frozen=True, slots=True)
class _Command:
    """A program and its arguments."""

    def read(self, node: Node, path: str, context: Context) -> list[Expression]:
        if isinstance(node, ScalarNode):
            words = ", ".join(node.text.split()[:4]) or "/usr/bin/true"
            message = f"must be a list: there is no shell that would take a line apart; write [{words}]"
            context.problem(node, path, message)
            return []
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list: the program, then its arguments")
            return []
        if len(node.items) > _ARGUMENTS_MAX:
            context.problem(node, path, f"has {len(node.items)} entries; the limit is {_ARGUMENTS_MAX}")
        program = Static(_PROGRAM.read(node.items[0], join(path, 0), context))
        rest = enumerate(node.items[1:], 1)
        arguments = [_ARGUMENT.read(item, join(path, index), context) for index, item in rest]
        return [program, *(one for one in arguments if one is not None)]

    def schema(self, defs: dict[str, Schema]) -> Schema:
        first, rest = _PROGRAM.schema(defs), _ARGUMENT.schema(defs)
        return {"type": "array", "minItems": 1, "maxItems": _ARGUMENTS_MAX, "prefixItems": [first], "items": rest}


@dataclass(frozen=True, slots=True)
class _ExitCodes:
    """Exit codes that mean success."""

    def read(self, node: Node, path: str, context: Context) -> list[int | None]:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list of exit codes, for example [0, 1]")
            return []
        return [Whole(0, 255).read(item, join(path, index), context) for index, item in enumerate(node.items)]

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "array", "minItems": 1, "items": Whole(0, 255).schema(defs)}


@dataclass(frozen=True, slots=True)
class _Folder(Template):
    """An absolute path; what can be seen of it now is checked now."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        if isinstance(node, ScalarNode) and not node.text.startswith(("/", "${{")):
            context.problem(node, path, "must be an absolute path")
        return Template.read(self, node, path, context)


def _build_shell(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ActivitySpec:
    _check_variables(node.get("env"), join(path, "env"), context)
    config: dict[str, Expression] = {
        "command": ListTree(tuple(values["command"])),
        "env": _map_tree(values.get("env", {})),
        "cwd": values.get("cwd", Static(None)),
        "stdin": values.get("stdin", Static(None)),
        "output": Static(values.get("output", "text")),
        "exit_codes": Static(values.get("exit_codes", [0])),
        "max_output": Static(values.get("max_output", 1 << 16)),
    }
    return ActivitySpec("shell", _map_tree(config))


def _check_variables(node: Node | None, path: str, context: Context) -> None:
    for name, (key, _) in node.entries.items() if isinstance(node, MappingNode) else ():
        if name.startswith("TASKFORGE_"):
            context.problem(key, join(path, name), "variables that start with TASKFORGE_ are set by Taskforge")


_ARGUMENTS_MAX = 256
_PROGRAM = Text(r"^(/[^${}]+|[^/${}]+)$", "a program: an absolute path, or a name without a slash", 4096)
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,199}$"
SHELL = Shape(
    "shell",
    {
        "command": Field(_Command(), "The program and its arguments, as a list; no shell is involved.", required=True),
        "env": Field(MapOf(Template(secrets=True), _VARIABLE, "the name of a variable"), "Variables of the program."),
        "cwd": Field(_Folder(), "Folder in which it is executed; by default an empty one of its own."),
        "stdin": Field(Template(secrets=True), "What it reads from its standard input."),
        "output": Field(Choice(("text", "json", "none")), "What becomes of its standard output; `text` by default."),
        "exit_codes": Field(_ExitCodes(), "Exit codes that mean success; [0] by default."),
        "max_output": Field(Whole(1, 1 << 20), "Bytes of each stream that are kept; 64 KiB by default."),
    },
    _build_shell,
)
