"""The graph as blocks inside of steps, which is how every format draws it. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskforgectl.render.safe import safe_line

__all__ = ["Block", "Branch", "Drawing", "Edge", "Step", "load", "shortened"]

_PHASES = {"main": "", "on_failure": "on failure", "on_cancel": "on cancel"}
_TEXT_MAX = 60


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` comes after `source`; `needed` when it says so itself."""

    source: str
    target: str
    needed: bool


@dataclass(slots=True)
class Step:
    """A step, what is inside it, and what undoes it. `id` is what edges name, all else is for people."""

    id: str
    name: str
    kind: str
    label: str
    condition: str
    fan_out: bool
    branches: list[Branch] = field(default_factory=list)
    compensation: Step | None = None

    @property
    def title(self) -> str:
        """Its name, and a sign that it is executed for each of many items."""
        return f"{self.name} ×" if self.fan_out else self.name  # noqa: RUF001  the sign is meant


@dataclass(slots=True)
class Block:
    """Steps in an order in which none comes before what it follows, and what follows what among them."""

    steps: list[Step]
    edges: list[Edge]

    def before(self, step_id: str) -> list[Edge]:
        """Answer the edges that lead to a step."""
        return [edge for edge in self.edges if edge.target == step_id]

    def after(self, step_id: str) -> list[str]:
        """Answer the ids of the steps that follow one."""
        return [edge.target for edge in self.edges if edge.source == step_id]

    def first(self) -> list[Step]:
        """Answer the steps that start at once."""
        targets = {edge.target for edge in self.edges}
        return [step for step in self.steps if step.id not in targets]

    def last(self) -> list[Step]:
        """Answer the steps that nothing follows."""
        sources = {edge.source for edge in self.edges}
        return [step for step in self.steps if step.id not in sources]


@dataclass(slots=True)
class Branch:
    """A case of a switch, or what is inside a group or a fan-out; then the label is empty."""

    label: str
    block: Block


@dataclass(slots=True)
class Drawing:
    """The whole. The phases are the main steps, without a name, then those on failure and on cancel."""

    name: str
    version: int
    phases: list[tuple[str, Block]]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} v{self.version}" if self.version else self.name


def load(graph: Mapping[str, Any]) -> Drawing:
    """Answer the drawing of a graph, a `Graph` message as a dictionary; its texts are cleaned and on one line."""
    loader = _Loader(graph)
    phases = [(title, loader.block(loader.top(phase))) for phase, title in _PHASES.items()]
    return Drawing(safe_line(graph["name"]), graph["version"], [one for one in phases if one[1].steps or not one[0]])


def shortened(text: str, most: int = _TEXT_MAX) -> str:
    """Answer a text that is not too long for a drawing."""
    return text if len(text) <= most else text[: most - 1] + "…"


class _Loader:
    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._nodes = {node["id"]: node for node in graph["nodes"]}
        self._edges = [edge for edge in graph["edges"] if edge["kind"] != "COMPENSATES"]
        self._undoes = {edge["to_id"]: edge["from_id"] for edge in graph["edges"] if edge["kind"] == "COMPENSATES"}
        self._children: dict[str, list[str]] = {}
        for node in self._nodes.values():
            if node["phase"] != "compensate" and node["parent"] in self._nodes:
                self._children.setdefault(node["parent"], []).append(node["id"])

    def top(self, phase: str) -> list[str]:
        """Answer the ids of the steps of a phase that nothing encloses. Unknown phases and parents count as none."""
        found = []
        for node in self._nodes.values():
            known = node["phase"] if node["phase"] in {*_PHASES, "compensate"} else "main"
            if known == phase and node["parent"] not in self._nodes:
                found.append(node["id"])
        return found

    def block(self, ids: Sequence[str]) -> Block:
        inside = set(ids)
        edges = [
            Edge(edge["from_id"], edge["to_id"], edge["kind"] == "NEEDS")
            for edge in self._edges
            if edge["from_id"] in inside and edge["to_id"] in inside and edge["from_id"] != edge["to_id"]
        ]
        edges = list(dict.fromkeys(edges))
        return Block([self._step(one) for one in _ordered(ids, edges)], edges)

    def _step(self, step_id: str) -> Step:
        node = self._nodes[step_id]
        step = Step(
            id=step_id,
            name=safe_line(step_id),
            kind=safe_line(node["kind"]),
            label=shortened(safe_line(node["label"])),
            condition=shortened(safe_line(node["condition"])),
            fan_out=node["fan_out"],
            branches=list(self._branches(step_id)),
        )
        undo = self._undoes.get(step_id, "")
        if undo in self._nodes and self._nodes[undo]["phase"] == "compensate":
            step.compensation = self._step(undo)
        return step

    def _branches(self, step_id: str) -> Iterator[Branch]:
        cases: dict[str, list[str]] = {}
        for child in self._children.get(step_id, ()):
            cases.setdefault(self._nodes[child]["case_label"], []).append(child)
        for label, ids in cases.items():
            yield Branch(shortened(safe_line(label)), self.block(ids))


def _ordered(ids: Sequence[str], edges: Sequence[Edge]) -> list[str]:
    """Answer the ids so that none comes before what it follows, else in the order of the document."""
    position = {one: index for index, one in enumerate(ids)}
    missing = dict.fromkeys(ids, 0)
    for edge in edges:
        missing[edge.target] += 1
    ready = [position[one] for one in ids if not missing[one]]
    heapq.heapify(ready)
    found = []
    while ready:
        one = ids[heapq.heappop(ready)]
        found.append(one)
        for edge in edges:
            if edge.source == one:
                missing[edge.target] -= 1
                if not missing[edge.target]:
                    heapq.heappush(ready, position[edge.target])
    return found + [one for one in ids if one not in set(found)]  # a cycle, which a daemon refuses
