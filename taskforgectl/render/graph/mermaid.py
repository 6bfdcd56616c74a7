"""The graph as a Mermaid flowchart (mermaid.js.org), which GitHub and GitLab show in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from taskforgectl.render.graph.model import Block, Drawing, Step

__all__ = ["draw_mermaid"]

_SPECIAL = re.compile(r"[^\w .,:;/=()\[\]{}+!?…×*-]")  # noqa: RUF001  the sign is meant
"""Characters that Mermaid or the HTML that it makes could take for their own; `#` and `&` and quotes among them."""


def draw_mermaid(drawing: Drawing) -> Iterator[str]:
    """Yield the lines."""
    yield "flowchart TD"
    yield f"  %% {_SPECIAL.sub('', drawing.title)}"
    writer = _Writer()
    for index, (title, block) in enumerate(drawing.phases):
        if not title:
            yield from writer.block(block, "  ")
            continue
        yield f'  subgraph phase{index}["{_text(title)}"]'
        yield from writer.block(block, "    ")
        yield "  end"
    yield from writer.links


def _text(text: str) -> str:
    """Answer a text for a quoted label; Mermaid has entities of its own, `#35;` for example."""
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", text)


class _Writer:
    """Names nodes `n1`, `n2` …: ids of steps may be words that Mermaid keeps for itself, such as `end`."""

    def __init__(self) -> None:
        self.links: list[str] = []
        self._count = 0

    def block(self, block: Block, indent: str) -> Iterator[str]:
        """Yield the nodes of a block, and keep what links them."""
        names: dict[str, str] = {}
        for step in block.steps:
            names[step.id] = self._name()
            yield from self._step(step, names[step.id], indent)
        for edge in block.edges:
            arrow = "==>" if edge.needed else "-->"
            self.links.append(f"  {names[edge.source]} {arrow} {names[edge.target]}")

    def _name(self) -> str:
        self._count += 1
        return f"n{self._count}"

    def _step(self, step: Step, name: str, indent: str) -> Iterator[str]:
        label = _label(step)
        if step.branches and step.kind == "switch":
            yield from self._switch(step, name, label, indent)
        elif step.branches:
            yield f'{indent}subgraph {name}["{label}"]'
            for branch in step.branches:
                yield from self.block(branch.block, indent + "  ")
            yield f"{indent}end"
        elif step.fan_out:
            yield f'{indent}{name}[["{label}"]]'
        else:
            yield f'{indent}{name}["{label}"]'
        if step.compensation is not None:
            undo = self._name()
            yield from self._step(step.compensation, undo, indent)
            self.links.append(f'  {undo} -. "undoes" .-> {name}')

    def _switch(self, step: Step, name: str, label: str, indent: str) -> Iterator[str]:
        yield f'{indent}subgraph {name}["{_text(step.title)}"]'
        choice = self._name()
        yield f'{indent}  {choice}{{"{label}"}}'
        for branch in step.branches:
            case = self._name()
            yield f'{indent}  subgraph {case}["{_text(branch.label)}"]'
            yield from self.block(branch.block, indent + "    ")
            yield f"{indent}  end"
            self.links.append(f"  {choice} --> {case}")
        yield f"{indent}end"


def _label(step: Step) -> str:
    lines = [step.title, " ".join(filter(None, [step.kind, step.label]))]
    if step.condition:
        lines.append(f"if {step.condition}")
    return "<br/>".join(_text(line) for line in lines)
