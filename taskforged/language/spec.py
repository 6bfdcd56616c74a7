# ruff: noqa: ARG001, ARG002 - readers and builders share one signature, and not each needs all of it
"""The constructs of the language, as tables, and what each becomes in the engine's model.

The order of a table is the order of reading, so what others refer to comes first: `vars` and `input` before any
expression, steps before `output`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    Block,
    Case,
    Expression,
    ExpressionError,
    FailSpec,
    Jitter,
    Json,
    RetryPolicy,
    Scope,
    SleepSpec,
    Step,
    StepSpec,
    SwitchSpec,
    TransformSpec,
    WorkflowModel,
)
from taskforged.language.definition import ManualTrigger, Trigger, Verify, WebhookTrigger
from taskforged.language.durations import DURATION_MAX_S, parse_duration
from taskforged.language.expressions import Static, kind_of
from taskforged.language.input import Contract, SchemaFault, compile_schema
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode, to_json
from taskforged.language.origin import Origin
from taskforged.language.paths import join
from taskforged.language.shape import (
    Choice,
    ConditionText,
    Context,
    Duration,
    Field,
    Flag,
    MapOf,
    Schema,
    Shape,
    Template,
    TemplateTree,
    Text,
    Whole,
)
from taskforged.language.templates import SECRET_NAME, MapTree

__all__ = ["WORKFLOW", "Workflow", "declared_step_ids"]

STEP_ID = r"^[a-z][a-z0-9_]{0,62}$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
STEPS_MAX = 500
"""Most steps in one list."""
KINDS = ("http", "transform", "switch", "sleep", "fail")
TRIGGER_ROOTS = frozenset({"event", "vars"})
RUN_ROOTS = frozenset({"event", "input", "run", "vars", "workflow"})

_TOP_LATER = frozenset({"compensate", "concurrency", "max_parallel", "on_cancel", "priority", "queue"})
_STEP_LATER = _TOP_LATER | {"effect", "event", "for_each", "needs", "shell", "steps", "task", "wait", "workflow"}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_TOKEN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"  # noqa: S105 - RFC 9110's name for a word
_CLASS = re.compile(r"([1-5])xx\Z", re.ASCII)
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Workflow:
    """What the top level of a document says."""

    name: str
    description: str
    labels: dict[str, str]
    model: WorkflowModel
    triggers: dict[str, Trigger]
    input: Contract


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
    config |= {body: values[body] for body in ("json", "text") if body in values}
    if "form" in values:
        config["form"] = _map_tree(values["form"])
    return ActivitySpec("http", _map_tree(config))


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
        "headers": Field(MapOf(_HeaderValue(secrets=True), _TOKEN, "a header name"), "Headers of the request."),
        "json": Field(TemplateTree(secrets=True), "The body, sent as JSON."),
        "form": Field(_PARAMETERS, "The body, sent as a form."),
        "text": Field(Template(secrets=True), "The body, sent as text."),
        "accept": Field(_Accept(), "Status codes that mean success; [2xx] by default."),
        "follow_redirects": Field(Whole(0, 10), "How many redirects are followed; none by default."),
        "max_response_bytes": Field(Whole(0, 64 << 20), "Largest response that is read; 1 MiB by default."),
    },
    _build_http,
    at_most_one_of=("json", "form", "text"),
)


# --- the other kinds -------------------------------------------------------------------------------------------------


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
        raise ValueError(f"must be from 0 to {DURATION_MAX_S:g} seconds, is {value}")
    return float(value)


@dataclass(frozen=True, slots=True)
class _Sleep:
    """`5s`, or `${{ … }}` that says how long."""

    def read(self, node: Node, path: str, context: Context) -> SleepSpec:
        if not isinstance(node, ScalarNode) or "${{" not in node.text:
            return SleepSpec(Static(Duration(0).read(node, path, context)))
        inner = context.templates.tree(node, path, context.names())
        position = Origin(path, node, context.templates.document).position()
        return SleepSpec(_Seconds(inner, node.text.strip(), position))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        expression = {"type": "string", "pattern": r"\$\{\{"}
        return {"anyOf": [Duration(0).schema(defs), expression]}


@dataclass(frozen=True, slots=True)
class _Fail:
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
class _Transform:
    """Any JSON with expressions in it."""

    def read(self, node: Node, path: str, context: Context) -> TransformSpec:
        return TransformSpec(TemplateTree().read(node, path, context))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return TemplateTree().schema(defs)


@dataclass(frozen=True, slots=True)
class _Switch:
    """Cases, tried in order. No case sees another's steps; what follows sees all of them."""

    def read(self, node: Node, path: str, context: Context) -> SwitchSpec | None:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list of cases, each with `if` and `steps`")
            return None
        before = after = context.visible
        cases: list[Case] = []
        for index, item in enumerate(node.items):
            context.visible = before
            case = CASE.read(item, join(path, index), context)
            after |= context.visible
            if case is not None:
                cases.append(case)
        context.visible = after
        self._check_otherwise(node, path, context)
        return SwitchSpec(tuple(cases))

    def _check_otherwise(self, node: SequenceNode, path: str, context: Context) -> None:
        for index, item in enumerate(node.items[:-1]):
            if isinstance(item, MappingNode) and "if" not in item.entries:
                message = "only the last case may be without `if`: no case after it is ever reached"
                context.problem(item, join(path, index), message)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "array", "minItems": 1, "items": CASE.schema(defs)}


# --- steps -----------------------------------------------------------------------------------------------------------


_STEP_ID_TEXT = Text(STEP_ID, "an id: a-z, then a-z, 0-9 and _, at most 63")


@dataclass(frozen=True, slots=True)
class _StepId:
    """The id of a step, unique in the whole definition."""

    def read(self, node: Node, path: str, context: Context) -> str | None:
        found = _STEP_ID_TEXT.read(node, path, context)
        if found is None:
            return None
        if found in context.seen:
            first = context.seen[found]
            context.problem(node, path, f"the id {found!r} is taken, see line {first.line}, column {first.column}")
        context.seen.setdefault(found, node.start)
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _STEP_ID_TEXT.schema(defs)


@dataclass(frozen=True, slots=True)
class _Steps:
    """A list of steps: a chain, each sees the ones before it."""

    def read(self, node: Node, path: str, context: Context) -> Block:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list with at least one step")
            return Block()
        if len(node.items) > STEPS_MAX:
            context.problem(node, path, f"has {len(node.items)} steps; the limit is {STEPS_MAX}")
        steps: list[Step] = []
        for index, item in enumerate(node.items):
            step = STEP.read(item, join(path, index), context)
            # Also after a fault: one mistake in a step must not make every reference to it one more.
            context.visible |= frozenset(_own_id(item))
            if step is not None:
                steps.append(dataclasses.replace(step, after=(index - 1,) if index else ()))
        return Block(tuple(steps))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "array", "minItems": 1, "maxItems": STEPS_MAX, "items": STEP.schema(defs)}


@dataclass(frozen=True, slots=True)
class _OnFailure(_Steps):
    """Steps that see `error` and all main steps. Their results are not seen by `output`: a run has one or the other."""

    def read(self, node: Node, path: str, context: Context) -> Block:
        main, roots = context.visible, context.roots
        context.roots = roots | {"error"}
        block = _Steps.read(self, node, path, context)
        context.visible, context.roots = main, roots
        return block


def _own_id(node: Node) -> list[str]:
    found = node.get("id") if isinstance(node, MappingNode) else None
    return [found.text] if isinstance(found, ScalarNode) and re.match(STEP_ID, found.text) else []


def declared_step_ids(node: Node | None) -> frozenset[str]:
    """Answer the ids of all steps below a node, so that "later" can be told from "unknown"."""
    if isinstance(node, SequenceNode):
        return frozenset[str]().union(*(declared_step_ids(item) for item in node.items))
    if not isinstance(node, MappingNode):
        return frozenset()
    below = (declared_step_ids(node.get(key)) for key in ("steps", "on_failure", "switch"))
    return frozenset(_own_id(node)).union(*below)


def _build_case(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Case:
    return Case(values.get("if"), values["steps"])


def _build_retry(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> RetryPolicy:
    default = RetryPolicy()
    delay_s = values.get("delay", default.delay_s)
    max_delay_s = values.get("max_delay", max(default.max_delay_s, delay_s))
    if max_delay_s < delay_s:
        context.problem(node.entries["max_delay"][1], join(path, "max_delay"), "must not be shorter than `delay`")
    return RetryPolicy(
        max_attempts=values["max_attempts"],
        strategy=Backoff(values.get("strategy", default.strategy)),
        delay_s=delay_s,
        max_delay_s=max_delay_s,
        jitter=Jitter(values.get("jitter", default.jitter)),
        condition=values.get("if"),
    )


def _build_step(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Step:
    kind = next(kind for kind in KINDS if kind in values)
    spec: StepSpec = values[kind]
    for key in ("timeout", "retry"):
        if key in values and not isinstance(spec, ActivitySpec):
            message = f"{key!r} is possible only on http steps in this version, not on {kind}"
            context.problem(node.entries[key][0], join(path, key), message)
    return Step(
        id=values["id"],
        kind=kind,
        spec=spec,
        condition=values.get("if"),
        timeout_s=values.get("timeout"),
        retry=values.get("retry"),
        continue_on_error=values.get("continue_on_error", False),
    )


CASE = Shape(
    "case",
    {
        "if": Field(ConditionText(), "The case is taken when it is the first that is true; without it: otherwise."),
        "steps": Field(_Steps(), "What to do.", required=True),
    },
    _build_case,
)
RETRY = Shape(
    "retry",
    {
        "max_attempts": Field(Whole(1, 100), "Attempts in all, the first included.", required=True),
        "strategy": Field(Choice(tuple(Backoff)), "How the delay grows; exponential by default."),
        "delay": Field(Duration(0, 7 * 86_400), "The first delay; 1s by default."),
        "max_delay": Field(Duration(0, 7 * 86_400), "The longest delay; 60s by default, or `delay` if that is longer."),
        "jitter": Field(Choice(tuple(Jitter)), "How the delay is spread; full by default."),
        "if": Field(ConditionText(frozenset({"error"})), "Decides over `error` whether to try again."),
    },
    _build_retry,
)
STEP = Shape(
    "step",
    {
        "id": Field(_StepId(), "Unique in the definition; others refer to it.", required=True),
        "name": Field(Text(size_max=200), "A label for people."),
        "if": Field(ConditionText(), "The step is skipped when it is false."),
        "http": Field(HTTP, "Send a request."),
        "transform": Field(_Transform(), "Compute JSON from JSON; the value is the step's output."),
        "switch": Field(_Switch(), "Take the first case that is true."),
        "sleep": Field(_Sleep(), "Wait, durably."),
        "fail": Field(_Fail(), "End the run as failed."),
        "timeout": Field(Duration(), "Limit of one attempt."),
        "retry": Field(RETRY, "When a failed attempt is tried again."),
        "continue_on_error": Field(Flag(), "A failure of this step does not fail the run."),
    },
    _build_step,
    one_of=KINDS,
    later=_STEP_LATER,
)


# --- triggers --------------------------------------------------------------------------------------------------------

_SECRET_NAME = "^" + SECRET_NAME.pattern.removesuffix(r"\Z") + "$"
_VERIFY_KEYS = {
    "github": frozenset({"secret"}),
    "hmac": frozenset({"secret", "header", "algorithm", "encoding", "prefix"}),
    "none": frozenset[str](),
}
_VERIFY_REQUIRED = {"github": ("secret",), "hmac": ("secret", "header"), "none": ()}
_VERIFY_HINT = (
    "'verify' is missing: say how the sender is proved, for example {scheme: github, secret: WEBHOOK_SECRET} or "
    "{scheme: hmac, secret: WEBHOOK_SECRET, header: x-signature}; {scheme: none} accepts anybody"
)


def _build_verify(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Verify:
    scheme = values["scheme"]
    for key in values:
        if key != "scheme" and key not in _VERIFY_KEYS[scheme]:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} has no meaning with scheme {scheme}")
    for key in _VERIFY_REQUIRED[scheme]:
        if key not in values:
            context.problem(node, path, f"{key!r} is missing, scheme {scheme} needs it")
    if "secret" in values:
        context.templates.secrets.add(values["secret"])
    if scheme == "github":
        return Verify(scheme, values.get("secret", ""), header="x-hub-signature-256", prefix="sha256=")
    return Verify(
        scheme,
        values.get("secret", ""),
        header=values.get("header", "").lower(),
        algorithm=values.get("algorithm", "sha256"),
        encoding=values.get("encoding", "hex"),
        prefix=values.get("prefix", ""),
    )


VERIFY = Shape(
    "verify",
    {
        "scheme": Field(Choice(("github", "hmac", "none")), "How the sender is proved.", required=True),
        "secret": Field(Text(_SECRET_NAME, "the name of a secret, such as WEBHOOK_SECRET"), "Name of the secret."),
        "header": Field(Text(_TOKEN, "a header name"), "Header with the signature (hmac)."),
        "algorithm": Field(Choice(("sha256", "sha1", "sha512")), "Digest (hmac); sha256 by default."),
        "encoding": Field(Choice(("hex", "base64")), "Encoding of the signature (hmac); hex by default."),
        "prefix": Field(Text(size_max=40), "Text before the signature in the header (hmac)."),
    },
    _build_verify,
)


@dataclass(frozen=True, slots=True)
class _Hook:
    """What `webhook:` says."""

    path: str
    verify: Verify
    delivery_header: str


def _build_webhook(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> _Hook:
    verify: Verify = values["verify"]
    default = "x-github-delivery" if verify.scheme == "github" else ""
    return _Hook(values["path"], verify, values.get("delivery_header", default).lower())


_HOOK_PATH = Text(
    r"^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,7}$",
    "a path such as github or ci/builds: a-z, 0-9, dot, _ and -, without a slash at its ends",
    256,
)
WEBHOOK = Shape(
    "webhook",
    {
        "path": Field(_HOOK_PATH, "Below /hooks/<namespace>/.", required=True),
        "verify": Field(VERIFY, "How the sender is proved, or `none`.", required=True, missing=_VERIFY_HINT),
        "delivery_header": Field(Text(_TOKEN, "a header name"), "Header with the sender's id of the delivery."),
    },
    _build_webhook,
)


def _build_manual(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ManualTrigger:
    return ManualTrigger()


MANUAL = Shape("manual", {}, _build_manual, null_is_empty=True)


def _build_trigger(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Trigger | None:
    """Answer the trigger without its id, which `_Triggers` knows."""
    if "webhook" in values:
        hook: _Hook = values["webhook"]
        return WebhookTrigger("", hook.path, hook.verify, values.get("if"), values.get("input"), hook.delivery_header)
    for key in ("if", "input"):
        if key in values:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} is possible only with webhook")
    return ManualTrigger()


@dataclass(frozen=True, slots=True)
class _TriggerInput:
    """The run's input, made from the event: a map, or one expression that answers a map."""

    def read(self, node: Node, path: str, context: Context) -> Expression | None:
        whole = isinstance(node, ScalarNode) and node.text.startswith("${{")
        if not whole and not isinstance(node, MappingNode):
            context.problem(node, path, "must be a map, the input of the run")
            return None
        return TemplateTree().read(node, path, context)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "object"}, {"type": "string", "pattern": r"^\$\{\{"}]}


TRIGGER = Shape(
    "trigger",
    {
        "manual": Field(MANUAL, "People and programs start it."),
        "webhook": Field(WEBHOOK, "A POST to /hooks/<namespace>/<path> starts it."),
        "if": Field(ConditionText(), "The trigger matches when it is true; sees `event`."),
        "input": Field(_TriggerInput(), "The run's input, made from `event`."),
    },
    _build_trigger,
    one_of=("manual", "webhook"),
    later=frozenset({"cron", "event"}),
)


_TRIGGERS = MapOf(TRIGGER, r"^[a-z][a-z0-9_-]{0,62}$", "a trigger id: a-z, then a-z, 0-9, _ and -, at most 63")


@dataclass(frozen=True, slots=True)
class _Triggers:
    """Triggers by id. The id `manual` belongs to the trigger that every workflow has."""

    def read(self, node: Node, path: str, context: Context) -> dict[str, Trigger]:
        roots, context.roots = context.roots, TRIGGER_ROOTS
        found = _TRIGGERS.read(node, path, context)
        context.roots = roots
        triggers = {key: dataclasses.replace(one, id=key) for key, one in found.items() if one is not None}
        if isinstance(triggers.get("manual"), WebhookTrigger):
            context.problem(node, join(path, "manual"), "the id 'manual' is reserved for the manual trigger")
        self._check_paths(triggers, node, path, context)
        return triggers

    def _check_paths(self, triggers: dict[str, Trigger], node: Node, path: str, context: Context) -> None:
        """One path is one door: whoever proves himself there does so in one way."""
        doors: dict[str, WebhookTrigger] = {}
        for key, one in triggers.items():
            if not isinstance(one, WebhookTrigger):
                continue
            first = doors.setdefault(one.path, one)
            if (first.verify, first.delivery_header) != (one.verify, one.delivery_header):
                message = f"trigger {first.id!r} has the same path; verify and delivery_header must be the same, too"
                at = node.entries[key][0] if isinstance(node, MappingNode) else node
                context.problem(at, join(path, key), message)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _TRIGGERS.schema(defs)


# --- the top level ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vars:
    """Constants."""

    def read(self, node: Node, path: str, context: Context) -> dict[str, Json]:
        if not isinstance(node, MappingNode):
            context.problem(node, path, "must be a map of constants")
            return {}
        _refuse_expressions(node, path, context)
        static: dict[str, Json] = to_json(node)
        context.templates.compiler.static = static
        return static

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "object"}


def _refuse_expressions(node: Node, path: str, context: Context) -> None:
    if isinstance(node, ScalarNode):
        if "${{" in node.text:
            context.problem(node, path, "vars are constants; an expression is not possible here")
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            _refuse_expressions(item, join(path, index), context)
    else:
        for key, (_, value) in node.entries.items():
            _refuse_expressions(value, join(path, key), context)


@dataclass(frozen=True, slots=True)
class _Input:
    """A JSON Schema of the input."""

    def read(self, node: Node, path: str, context: Context) -> Contract | None:
        schema = to_json(node)
        try:
            contract = compile_schema(schema if schema is not None else False)
        except SchemaFault as fault:
            at, where = _descend(node, path, fault.path)
            context.problem(at, where, str(fault))
            return None
        context.templates.compiler.input_schema = schema
        return contract

    def schema(self, defs: dict[str, Schema]) -> Schema:
        meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
        return {"allOf": [meta, {"type": "object", "required": ["type"], "properties": {"type": {"const": "object"}}}]}


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


def _build_workflow(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Workflow:
    model = WorkflowModel(
        name=values["name"],
        main=values["steps"],
        on_failure=values.get("on_failure", Block()),
        output=values.get("output"),
        timeout_s=values.get("timeout"),
    )
    triggers = {"manual": ManualTrigger(), **values.get("on", {})}
    contract = values["input"] if "input" in values else compile_schema(None)
    return Workflow(values["name"], values.get("description", ""), values.get("labels", {}), model, triggers, contract)


_LABELS = MapOf(
    Text(size_max=256), r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$", "a label: letters, digits, dot, _, / and -", 32
)
WORKFLOW = Shape(
    "workflow",
    {
        "name": Field(
            Text(NAME, "a name: a-z, 0-9, then also dot, _ and -, at most 63"), "Name of the workflow.", required=True
        ),
        "description": Field(Text(size_max=4096), "What it is for."),
        "labels": Field(_LABELS, "For selection."),
        "vars": Field(_Vars(), "Constants, read as `vars.<name>`."),
        "input": Field(_Input(), "JSON Schema of the run's input."),
        "on": Field(_Triggers(), "What starts it, besides people."),
        "timeout": Field(Duration(), "Limit of the whole run."),
        "steps": Field(_Steps(), "What it does.", required=True),
        "on_failure": Field(_OnFailure(), "What it does when a step failed; sees `error`."),
        "output": Field(TemplateTree(), "The run's output."),
    },
    _build_workflow,
    later=_TOP_LATER,
)
