"""A definition as a graph to be drawn: its steps, what encloses them, and what follows what.

A fan-out and its body are one node, and what the body contains is enclosed by that node: for whoever reads the
definition they are one step, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from taskforged.engine.model import (
    ActivitySpec,
    Block,
    ChildSpec,
    Expression,
    FailSpec,
    FanOutSpec,
    GroupSpec,
    Json,
    PublishSpec,
    SleepSpec,
    Step,
    StepSpec,
    SwitchSpec,
    TransformSpec,
    WaitSpec,
    WorkflowModel,
)

__all__ = ["LABEL_MAX", "Edge", "EdgeKind", "Graph", "Node", "graph_of"]

LABEL_MAX = 120
"""Characters of a label: a line of a drawing."""


class EdgeKind(StrEnum):
    """What an edge means."""

    FOLLOWS = "follows"
    NEEDS = "needs"
    COMPENSATES = "compensates"


class Node(NamedTuple):
    """One step.

    Attributes:
        id: of the step; a compensation has that of its step with `:compensate` behind it.
        kind: the key in the definition, for example `http`.
        label: what it does; empty when there is nothing to say.
        parent: id of the switch, group or fan-out that encloses it; empty at the top.
        case_label: the branch of the enclosing switch; empty outside of a switch.
        phase: `main`, `on_failure`, `on_cancel` or `compensate`.
        fan_out: it is executed once for each of many items.
        condition: its `if`, as written; empty when it has none.
    """

    id: str
    kind: str
    label: str
    parent: str
    case_label: str
    phase: str
    fan_out: bool
    condition: str


class Edge(NamedTuple):
    """An order between two steps of the same parent and branch, or from a compensation to its step."""

    from_id: str
    to_id: str
    kind: EdgeKind


class Graph(NamedTuple):
    """A workflow. A step that may start at once with what encloses it has no edge that leads to it."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    version: int = 0


class _Place(NamedTuple):
    """Where a step stands."""

    parent: str
    case_label: str
    phase: str


def graph_of(model: WorkflowModel, version: int = 0) -> Graph:
    """Answer the graph of a definition: nodes in the order of the document, each before what it encloses."""
    drawing = _Drawing([], [])
    for phase, block in (("main", model.main), ("on_failure", model.on_failure), ("on_cancel", model.on_cancel)):
        drawing.add_block(block, _Place("", "", phase))
    return Graph(model.name, tuple(drawing.nodes), tuple(drawing.edges), version)


class _Drawing(NamedTuple):
    """A graph in the making."""

    nodes: list[Node]
    edges: list[Edge]

    def add_block(self, block: Block, place: _Place) -> None:
        ids = [_id_of(step) for step in block.steps]
        for index, step in enumerate(block.steps):
            self.add_step(step, ids[index], place)
            kind = EdgeKind.NEEDS if step.needs else EdgeKind.FOLLOWS
            self.edges.extend(Edge(ids[before], ids[index], kind) for before in step.after)

    def add_step(self, step: Step, node_id: str, place: _Place) -> None:
        body, label = _unfolded(step)
        kind = body.kind or step.kind
        condition = "" if step.condition is None else _told(step.condition)
        is_fan = isinstance(step.spec, FanOutSpec)
        self.nodes.append(Node(node_id, kind, label, *place, fan_out=is_fan, condition=condition))
        self.add_inner(body.spec, node_id, place.phase)
        undo = step.compensate or body.compensate  # of a fan-out its items are undone
        if undo is not None:
            undo_id = f"{node_id}:compensate"
            self.add_step(undo, undo_id, place._replace(phase="compensate"))
            self.edges.append(Edge(undo_id, node_id, EdgeKind.COMPENSATES))

    def add_inner(self, spec: StepSpec, parent: str, phase: str) -> None:
        match spec:
            case SwitchSpec(cases):
                for number, case in enumerate(cases, 1):
                    label = "otherwise" if case.condition is None else _told(case.condition) or f"case {number}"
                    self.add_block(case.block, _Place(parent, label, phase))
            case GroupSpec(block):
                self.add_block(block, _Place(parent, "", phase))


def _id_of(step: Step) -> str:
    return step.id.replace("[]", "")


def _unfolded(step: Step) -> tuple[Step, str]:
    """Answer what a step does for each item, or itself, and its label."""
    parts: list[str] = []
    while isinstance(step.spec, FanOutSpec):
        spec = step.spec
        items = _told(spec.items)
        parts.append(f"for each of {items}" if items else "for each item")
        parts.append(f"{spec.max_parallel} at a time")
        if spec.max_failures:
            parts.append(f"{spec.max_failures} may fail")
        step = spec.body
    text = _label(step)
    return step, _cut("; ".join([text, *parts] if text else parts))


# --- labels ----------------------------------------------------------------------------------------------------------


def _label(step: Step) -> str:
    match step.spec:
        case ActivitySpec(executor, config):
            return _activity_label(executor, config)
        case TransformSpec(value):
            return ", ".join(name for name, _ in _entries(value))
        case SleepSpec(duration, until):
            return f"until {_told(until)}" if until is not None else _seconds(duration)
        case WaitSpec() as spec:
            return _wait_label(spec)
        case ChildSpec(workflow, version):
            return f"{workflow} v{version}" if version else workflow
        case PublishSpec(name):
            return _text(name)
        case FailSpec(message):
            return _text(message)
    return ""


def _activity_label(executor: str, config: Expression) -> str:
    known = dict(_entries(config))
    if executor == "http":
        return " ".join(filter(None, (_text(known.get("method")), _text(known.get("url")))))
    return next((text for name in _TELLING if (text := _text(known.get(name)))), "")


_TELLING = ("command", "run", "script", "argv", "program", "task", "type", "name")
"""Keys of an executor's configuration that say best what it does."""


def _wait_label(spec: WaitSpec) -> str:
    asked = _text(spec.message)
    what = f"signal {spec.signal}" if spec.signal else ": ".join(filter(None, ("approval", asked)))
    return what if spec.timeout_s is None else f"{what}; at most {spec.timeout_s:g} s"


def _seconds(duration: Expression | None) -> str:
    value = getattr(duration, "value", None)
    return f"{value:g} s" if isinstance(value, (int, float)) and not isinstance(value, bool) else _told(duration)


def _entries(expression: Expression) -> Iterator[tuple[str, Json]]:
    """Yield the entries of a map with constant keys; each value is an expression, or for a constant map JSON."""
    entries = getattr(expression, "entries", None)
    if isinstance(entries, tuple):
        yield from entries
    value = getattr(expression, "value", None)
    if isinstance(value, dict):
        yield from value.items()


def _told(expression: Json) -> str:
    """Answer an expression as it was written, as far as it says so itself.

    The engine knows expressions only by their protocol. Those that carry `source`, `value`, `parts` or `why`, as the
    language's do, can be told; of others there is nothing to tell.
    """
    match expression:
        case None:
            return ""
        case str():
            return expression
        case bool() | int() | float():
            return str(expression).lower()
        case list() | tuple():
            return " ".join(filter(None, map(_told, expression)))
        case dict():
            return ""
    source = getattr(expression, "source", None) or getattr(getattr(expression, "why", None), "source", None)
    if isinstance(source, str):
        return " ".join(source.split())
    parts = getattr(expression, "parts", None)
    if isinstance(parts, tuple):
        return "".join(map(_text, parts))
    items = getattr(expression, "items", None)
    return _told(items) if isinstance(items, tuple) else _told(getattr(expression, "value", None))


def _text(part: Json) -> str:
    """Answer a text, or a piece of one: a constant as it is, anything else as an insertion."""
    is_written = isinstance(part, str) or hasattr(part, "value") or hasattr(part, "parts") or hasattr(part, "items")
    text = _told(part)
    return text if is_written or not text or "${{" in text else f"${{{{ {text} }}}}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LABEL_MAX else text[: LABEL_MAX - 1] + "…"
