# ruff: noqa: ARG001, ARG002, D102 - readers and builders share one signature, and not each needs all of it; the protocol
# `Reader` documents its methods
"""Steps: what each may say besides its kind, lists of them with their order, and the kinds that contain others."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    Block,
    Case,
    Effect,
    Expression,
    FailSpec,
    FanOutSpec,
    GroupSpec,
    Jitter,
    RetryPolicy,
    Step,
    StepSpec,
    SwitchSpec,
)
from taskforged.language.expressions import Static, kind_of
from taskforged.language.kinds import EVENT, HTTP, SHELL, STEP_ID, WAIT, Child, Fail, Sleep, Transform
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode
from taskforged.language.order import Order, Place, own_id, read_order, steps_inside
from taskforged.language.paths import join
from taskforged.language.shape import (
    Choice,
    ConditionText,
    Context,
    Duration,
    Field,
    Flag,
    Reader,
    Schema,
    Shape,
    TemplateTree,
    Text,
    Whole,
)
from taskforged.language.templates import makes_text
from taskforged.language.tokens import rewrite_status

__all__ = [
    "CASE",
    "COMPENSATE",
    "DEFAULTS",
    "KINDS",
    "RETRY",
    "STEP",
    "STEPS_MAX",
    "Phase",
    "Steps",
    "declared_step_ids",
]

STEPS_MAX = 500
"""Most steps in one list."""
KINDS = ("http", "shell", "transform", "switch", "sleep", "wait", "workflow", "event", "steps", "fail")

_LATER = frozenset({"task"})
_ITEM_ROOTS = frozenset({"item", "index"})


# --- lists of steps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steps:
    """A list of steps. Each sees those that have certainly ended before it; what follows the list sees all of them."""

    def read(self, node: Node, path: str, context: Context) -> Block:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list with at least one step")
            return Block()
        if len(node.items) > STEPS_MAX:
            context.problem(node, path, f"has {len(node.items)} steps; the limit is {STEPS_MAX}")
        return _Reading(node.items, path, context, read_order(node.items, path, context.problem)).read()

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "array", "minItems": 1, "maxItems": STEPS_MAX, "items": STEP.schema(defs)}


class _Reading:
    """Reads the steps of one list in the order in which they are executed, so that each sees what it may."""

    def __init__(self, items: list[Node], path: str, context: Context, order: Order) -> None:
        self._items = items
        self._path = path
        self._context = context
        self._order = order
        self._outside = context.visible
        self._outer = context.place
        self._inside = [declared_step_ids(item) - {own_id(item)} for item in items]
        self._shown: list[frozenset[str]] = [frozenset()] * len(items)

    def read(self) -> Block:
        context, order = self._context, self._order
        found = {index: self._read_step(index) for index in order.sequence}
        context.place = self._outer
        context.visible = self._outside.union(*self._shown)
        steps = [
            dataclasses.replace(step, after=order.after[index], needs=order.needs[index])
            for index, step in sorted(found.items())
            if step is not None
        ]
        # With a fault nobody will execute it, and the indexes would not fit.
        return Block(tuple(steps)) if len(steps) == len(found) and not order.is_faulty else Block()

    def _read_step(self, index: int) -> Step | None:
        context, item = self._context, self._items[index]
        is_fan_out = isinstance(item, MappingNode) and "for_each" in item.entries
        context.place = Place(self._order, self._inside, index, is_fan_out, self._outer)
        if self._order.is_faulty:
            # One mistake in `needs` must not make every reference one more.
            context.visible = self._outside.union(self._order.ids, *self._inside)
        else:
            context.visible = self._outside.union(*(self._shown[other] for other in self._order.before(index)))
        before = context.visible
        step: Step | None = STEP.read(item, join(self._path, index), context)
        # Also after a fault: one mistake in a step must not make every reference to it one more.
        own = frozenset({own_id(item)} - {""})
        self._shown[index] = own if is_fan_out else own | (context.visible - before)
        return step


@dataclass(frozen=True, slots=True)
class Phase(Steps):
    """Steps after the main ones, all of which they see. What `output` sees stays as it was: a run has one or the other.

    Attributes:
        name: `on_failure` or `on_cancel`.
        extra: variables that only they see.
    """

    name: str = ""
    extra: frozenset[str] = frozenset()

    def read(self, node: Node, path: str, context: Context) -> Block:
        visible, roots = context.visible, context.roots
        context.roots, context.phase = roots | self.extra, self.name
        block = Steps.read(self, node, path, context)
        context.visible, context.roots, context.phase = visible, roots, "main"
        return block


def declared_step_ids(node: Node | None) -> frozenset[str]:
    """Answer the ids of all steps below a node, so that "later" can be told from "unknown"."""
    return frozenset(own for item in steps_inside(node) if re.match(STEP_ID, own := own_id(item)))


# --- switch ----------------------------------------------------------------------------------------------------------


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


def _build_case(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Case:
    return Case(values.get("if"), values["steps"])


CASE = Shape(
    "case",
    {
        "if": Field(ConditionText(), "The case is taken when it is the first that is true; without it: otherwise."),
        "steps": Field(Steps(), "What to do.", required=True),
    },
    _build_case,
)


# --- what a step says ------------------------------------------------------------------------------------------------

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
class _Needs:
    """Ids of steps of the same list; `read_order` has read and checked them before."""

    def read(self, node: Node, path: str, context: Context) -> None:
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        one = {"type": "string", "pattern": STEP_ID}
        return {"anyOf": [one, {"type": "array", "uniqueItems": True, "items": one}]}


class _If(NamedTuple):
    """A condition, and whether it asks for the status of what came before."""

    condition: Expression | None = None
    asks_status: bool = False


@dataclass(frozen=True, slots=True)
class _StepIf:
    """The condition of a step."""

    def read(self, node: Node, path: str, context: Context) -> _If:
        condition = _CONDITION.read(node, path, context)
        return _If(condition, isinstance(node, ScalarNode) and bool(rewrite_status(node.text)[1]))

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _CONDITION.schema(defs)


_CONDITION = ConditionText(asks_status=True)


@dataclass(frozen=True, slots=True)
class _ForEach:
    """A list or a map, with expressions inside or as a whole."""

    def read(self, node: Node, path: str, context: Context) -> Expression:
        before = len(context.problems)
        items = TemplateTree().read(node, path, context)
        if len(context.problems) == before and isinstance(node, ScalarNode):
            kind = "a text" if makes_text(items) else kind_of(items.value) if isinstance(items, Static) else ""
            if kind not in ("", "a list", "a map"):
                context.problem(node, path, f"must be a list or a map, is {kind}")
        return items

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "array"}, {"type": "object"}, {"type": "string", "pattern": r"\$\{\{"}]}


@dataclass(frozen=True, slots=True)
class _OfItem:
    """What belongs to each item, if the step is a fan-out."""

    inner: Reader

    def read(self, node: Node, path: str, context: Context) -> Any:
        roots, place = context.roots, context.place
        if place is not None and place.is_fan_out:
            context.roots = roots | _ITEM_ROOTS
        value = self.inner.read(node, path, context)
        context.roots = roots
        return value

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return self.inner.schema(defs)


@dataclass(frozen=True, slots=True)
class _Compensate:
    """What undoes the step. It sees the step itself, unless that is the item of a fan-out, and `error`."""

    def read(self, node: Node, path: str, context: Context) -> Step | None:
        visible, roots, phase, place = context.visible, context.roots, context.phase, context.place
        if place is not None and not place.is_fan_out:
            context.visible = visible | {place.order.ids[place.index]}
        context.roots, context.phase = roots | {"error"}, "compensate"
        found: Step | None = COMPENSATE.read(node, path, context)
        context.visible, context.roots, context.phase = visible, roots, phase
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return COMPENSATE.schema(defs)


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


def _build_defaults(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> None:
    context.retry, context.timeout_s = values.get("retry"), values.get("timeout")


def _build_compensation(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Step:
    """Answer the step without its id, which the step that it undoes knows."""
    kind = next(kind for kind in KINDS if kind in values)
    return _with_limits(Step("", kind, values[kind]), values, node, path, context)


def _with_limits(step: Step, values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Step:
    """Answer the step with what only activities have: a limit of time, retries, an effect."""
    spec = step.spec
    if not isinstance(spec, ActivitySpec):
        for key in ("timeout", "retry", "effect"):
            if key in values:
                hint = "; write it inside of `wait`" if (key, step.kind) == ("timeout", "wait") else ""
                message = f"{key!r} is possible only on http and shell steps, not on {step.kind}{hint}"
                context.problem(node.entries[key][0], join(path, key), message)
        return step
    effect = Effect(values.get("effect", spec.effect))
    retry: RetryPolicy | None = values.get("retry")
    if effect is Effect.ONCE and retry is not None and retry.max_attempts > 1:
        message = "a step that must not happen twice (`effect: once`) cannot be retried by itself"
        context.problem(node.entries["retry"][0], join(path, "retry"), message)
    if retry is None and effect is not Effect.ONCE:
        retry = context.retry
    spec = dataclasses.replace(spec, effect=effect)
    return dataclasses.replace(step, spec=spec, timeout_s=values.get("timeout", context.timeout_s), retry=retry)


def _build_step(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Step:
    kind = next(kind for kind in KINDS if kind in values)
    spec: StepSpec = GroupSpec(values["steps"], values.get("output")) if kind == "steps" else values[kind]
    _check_step(kind, spec, node, path, context)
    is_fan_out = "for_each" in values
    body_id = f"{values['id']}[]" if is_fan_out else values["id"]
    step = _with_limits(Step(body_id, kind, spec), values, node, path, context)
    if "compensate" in values:
        undo = dataclasses.replace(values["compensate"], id=f"{body_id}:compensate")
        step = dataclasses.replace(step, compensate=undo)
    if is_fan_out:
        parallel, failures = values.get("max_parallel", _PARALLEL), values.get("max_failures", 0)
        step = Step(values["id"], kind, FanOutSpec(values["for_each"], step, parallel, failures))
    when: _If = values.get("if", _If())
    return dataclasses.replace(
        step,
        condition=when.condition,
        asks_status=when.asks_status,
        continue_on_error=values.get("continue_on_error", False),
    )


def _check_step(kind: str, spec: StepSpec, node: MappingNode, path: str, context: Context) -> None:
    faults: dict[str, str] = {}
    if "for_each" not in node.entries:
        faults |= dict.fromkeys(("max_parallel", "max_failures"), "means nothing without `for_each`")
    if kind != "steps":
        faults["output"] = "is possible only on a group (`steps:`); write a `transform` after this step"
    if isinstance(spec, GroupSpec | SwitchSpec | FailSpec):
        inside = "" if isinstance(spec, FailSpec) else "; write it on the steps inside"
        faults["compensate"] = f"is not possible on {kind}{inside}"
    elif context.phase != "main":
        faults["compensate"] = f"is possible only on the main steps, not in {context.phase}"
    for key, message in faults.items():
        if key in node.entries:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} {message}")


_PARALLEL = 100
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
_LIMITS = {
    "timeout": Field(Duration(), "Limit of one attempt (http, shell)."),
    "retry": Field(_OfItem(RETRY), "When a failed attempt is tried again (http, shell)."),
    "effect": Field(Choice(tuple(Effect)), "What executing it twice would do (http, shell)."),
}
COMPENSATE = Shape(
    "compensate",
    {
        "http": Field(HTTP, "Send a request."),
        "shell": Field(SHELL, "Execute a program."),
        "event": Field(EVENT, "Publish an event."),
        **_LIMITS,
    },
    _build_compensation,
    one_of=("http", "shell", "event"),
)
DEFAULTS = Shape(
    "defaults",
    {
        "retry": Field(RETRY, "Of every http and shell step that has none of its own; not of `effect: once`."),
        "timeout": Field(Duration(), "Of every http and shell step that has none of its own."),
    },
    _build_defaults,
)
STEP = Shape(
    "step",
    {
        "id": Field(_StepId(), "Unique in the definition; others refer to it.", required=True),
        "name": Field(Text(size_max=200), "A label for people."),
        "needs": Field(_Needs(), "Steps of this list that come before it; by default the one above."),
        "if": Field(_StepIf(), "The step is skipped when it is false."),
        "for_each": Field(_ForEach(), "A list or a map: the step is executed for each item."),
        "max_parallel": Field(Whole(1, 10_000), "Items at work at once; 100 by default."),
        "max_failures": Field(Whole(0, 1_000_000), "Items that may fail; none by default."),
        "http": Field(_OfItem(HTTP), "Send a request."),
        "shell": Field(_OfItem(SHELL), "Execute a program."),
        "transform": Field(_OfItem(Transform()), "Compute JSON from JSON; the value is the step's output."),
        "switch": Field(_OfItem(_Switch()), "Take the first case that is true."),
        "sleep": Field(_OfItem(Sleep()), "Wait for a time, durably."),
        "wait": Field(_OfItem(WAIT), "Wait for a signal or an approval."),
        "workflow": Field(_OfItem(Child()), "Run another workflow; its output is the step's."),
        "event": Field(_OfItem(EVENT), "Publish an event."),
        "steps": Field(_OfItem(Steps()), "Steps that belong together."),
        "fail": Field(_OfItem(Fail()), "End the run as failed."),
        "output": Field(_OfItem(TemplateTree()), "The output of a group; by default those of its steps, by id."),
        **_LIMITS,
        "continue_on_error": Field(Flag(), "A failure of this step does not fail the run."),
        "compensate": Field(_OfItem(_Compensate()), "Undoes the step when it has succeeded and the run fails later."),
    },
    _build_step,
    one_of=KINDS,
    later=_LATER,
)
