"""The graph in the language of Graphviz (graphviz.org)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taskforgectl.render.graph.model import Block, Drawing, Step

__all__ = ["draw_dot"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where edges of a step begin and end: Graphviz joins nodes only, and cuts an edge at a cluster's border."""

    head: str
    tail: str
    cluster: str = ""


def draw_dot(drawing: Drawing) -> Iterator[str]:
    """Yield the lines."""
    yield f"digraph {_quoted(drawing.name)} {{"
    yield f"  label={_quoted(drawing.title)}; labelloc=t; compound=true; rankdir=TB; fontname=Helvetica;"
    yield "  node [shape=box, style=rounded, fontname=Helvetica, fontsize=11];"
    yield "  edge [fontname=Helvetica, fontsize=10];"
    writer = _Writer()
    for index, (title, block) in enumerate(drawing.phases):
        if not title:
            yield from writer.nodes(block, "  ")
            continue
        yield f"  subgraph cluster_phase{index} {{"
        yield f"    label={_quoted(title)}; style=dashed;"
        yield from writer.nodes(block, "    ")
        yield "  }"
    yield from writer.links
    yield "}"


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


class _Writer:
    """Names nodes `n1`, `n2` …, so that nothing in an id can be taken for the language's own."""

    def __init__(self) -> None:
        self.links: list[str] = []
        self._count = 0

    def nodes(self, block: Block, indent: str) -> list[str]:
        """Answer the nodes of a block, and keep what links them."""
        lines: list[str] = []
        self._block(block, indent, lines)
        return lines

    def _block(self, block: Block, indent: str, lines: list[str]) -> dict[str, _Place]:
        places = {step.id: self._step(step, indent, lines) for step in block.steps}
        for edge in block.edges:
            self._link(places[edge.source], places[edge.target], ["style=bold"] if edge.needed else [])
        return places

    def _link(self, source: _Place, target: _Place, attributes: list[str]) -> None:
        if source.cluster:
            attributes = [*attributes, f"ltail={source.cluster}"]
        if target.cluster:
            attributes = [*attributes, f"lhead={target.cluster}"]
        written = f" [{', '.join(attributes)}]" if attributes else ""
        self.links.append(f"  {source.tail} -> {target.head}{written};")

    def _name(self) -> str:
        self._count += 1
        return f"n{self._count}"

    def _step(self, step: Step, indent: str, lines: list[str]) -> _Place:
        name = self._name()
        if step.branches:
            place = self._container(step, name, indent, lines)
        else:
            shape = ", peripheries=2" if step.fan_out else ""
            lines.append(f"{indent}{name} [label={_label(step)}{shape}];")
            place = _Place(name, name)
        if step.compensation is not None:
            undo = self._step(step.compensation, indent, lines)
            self._link(undo, place, ["style=dashed", 'label="undoes"', "constraint=false"])
        return place

    def _container(self, step: Step, name: str, indent: str, lines: list[str]) -> _Place:
        cluster = f"cluster_{name}"
        shape = "diamond" if step.kind == "switch" else "plaintext"
        lines.append(f"{indent}subgraph {cluster} {{")
        lines.append(f"{indent}  label={_quoted(step.title)}; style={'bold' if step.fan_out else 'rounded'};")
        lines.append(f'{indent}  {name} [label={_label(step)}, shape={shape}, style=""];')
        tail = name
        for branch in step.branches:
            places = self._block(branch.block, indent + "  ", lines)
            attributes = [f"label={_quoted(branch.label)}"] if branch.label else ["style=dotted"]
            for first in branch.block.first():
                self._link(_Place(name, name), places[first.id], attributes)
            tail = places[branch.block.last()[-1].id].tail
        lines.append(f"{indent}}}")
        return _Place(name, tail, cluster)


def _label(step: Step) -> str:
    lines = [step.title, " ".join(filter(None, [step.kind, step.label]))]
    if step.condition:
        lines.append(f"if {step.condition}")
    return _quoted(*lines)
