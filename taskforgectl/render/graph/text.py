"""The graph for terminals: one line per step, with rails on the left that fork and join like those of `git log`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from taskforgectl.render.graph.model import Block, Drawing, Step
from taskforgectl.render.safe import safe_line

__all__ = ["Styler", "draw_text"]

Styler = Callable[[str, str], str]
"""Answers a text in the style of its part: `title`, `id`, `kind`, `note`, `rail`."""

_MARKS = {"switch": "◆", "sleep": "◷", "wait": "◷", "workflow": "▣", "fail": "✗"}


def draw_text(drawing: Drawing, style: Styler = lambda text, _: text) -> Iterator[str]:
    """Yield the lines."""
    yield style(drawing.title, "title")
    for title, block in drawing.phases:
        if title:
            yield ""
            yield style(title, "title")
        yield from _draw_block(block, style)


def _draw_block(block: Block, style: Styler) -> Iterator[str]:
    rails = _Rails(block)
    for rail, step in rails.rows():
        if step is None:
            yield style(rail, "rail")
            continue
        yield f"{style(rail, 'rail')} {_line(step, block, style)}"
        inner = style(rails.between(), "rail")
        if step.compensation is not None:
            undo = step.compensation
            yield f"{inner} {style('↶ undone by', 'note')} {_name(undo, style)}"
            yield from (f"{inner}   {line}" for line in _draw_inside(undo, style))
        yield from (f"{inner} {line}" for line in _draw_inside(step, style))


def _draw_inside(step: Step, style: Styler) -> Iterator[str]:
    for number, branch in enumerate(step.branches, start=1):
        is_last = number == len(step.branches)
        if branch.label:
            yield f"{style('╰─' if is_last else '├─', 'rail')} {style(branch.label, 'note')}"
            indent = style("   " if is_last else "│  ", "rail")
        else:
            indent = style("┊ ", "rail")
        yield from (f"{indent}{line}" for line in _draw_block(branch.block, style))


def _line(step: Step, block: Block, style: Styler) -> str:
    edges = block.before(step.id)
    needs = [safe_line(edge.source) for edge in edges if edge.needed]
    notes = []
    if step.condition:
        notes.append(f"if {step.condition}")
    if needs:
        notes.append(f"needs {', '.join(needs)}")
    return "  ".join([_name(step, style), *(style(note, "note") for note in notes)])


def _name(step: Step, style: Styler) -> str:
    each = [style("× for each", "note")] if step.fan_out else []  # noqa: RUF001  the sign is meant
    label = [step.label] if step.label else []
    return "  ".join([style(step.name, "id"), *each, style(step.kind, "kind"), *label])


class _Rails:
    """Lanes from left to right, each on its way to one step, or free.

    A step stands in the leftmost lane that leads to it; the others join there in a row above. What follows it goes on
    in its lane, and in new ones that fork off in a row below.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._lanes: list[str | None] = []

    def between(self) -> str:
        """Answer the rails of a row without a step, as wide as they are with one."""
        return " ".join(" " if target is None else "│" for target in self._lanes)

    def rows(self) -> Iterator[tuple[str, Step | None]]:
        """Yield rows: the rails, and the step that stands in it, if one does."""
        starts = [step.id for step in self._block.first()]
        self._lanes = [*starts]
        if len(starts) > 1:
            yield self._fork(0, range(1, len(starts)), start="╭"), None
        for step in self._block.steps:
            mine = [index for index, target in enumerate(self._lanes) if target == step.id] or [self._free(0)]
            for index in mine[1:]:
                self._lanes[index] = None
            if len(mine) > 1:
                yield self._join(mine[0], mine[1:]), None
            self._lanes[mine[0]] = None
            self._trim(mine[0] + 1)
            after = self._block.after(step.id)
            row = self._row({mine[0]: _MARKS.get(step.kind, "●")})
            self._lanes[mine[0]] = after[0] if after else None
            yield row, step
            forks = []
            for target in after[1:]:
                forks.append(self._free(mine[0] + 1))
                self._lanes[forks[-1]] = target
            if forks:
                yield self._fork(mine[0], forks), None
            self._trim(0)

    def _trim(self, at_least: int) -> None:
        while len(self._lanes) > at_least and self._lanes[-1] is None:
            self._lanes.pop()

    def _free(self, at_least: int) -> int:
        for index in range(at_least, len(self._lanes)):
            if self._lanes[index] is None:
                return index
        self._lanes.extend([None] * (max(0, at_least - len(self._lanes)) + 1))
        return len(self._lanes) - 1

    def _row(self, marks: dict[int, str]) -> str:
        lanes = enumerate(self._lanes)
        return " ".join(marks.get(index, " " if target is None else "│") for index, target in lanes).rstrip()

    def _join(self, home: int, others: Sequence[int]) -> str:
        return self._bridge(home, others, start="├", middle="┴", end="╯")

    def _fork(self, home: int, others: Sequence[int], start: str = "├") -> str:
        return self._bridge(home, others, start=start, middle="┬", end="╮")

    def _bridge(self, home: int, others: Sequence[int], *, start: str, middle: str, end: str) -> str:
        """Answer a row in which a lane is tied to others on its right, across those between."""
        last = others[-1]
        cells = []
        for index in range(max(len(self._lanes), last + 1)):
            target = self._lanes[index] if index < len(self._lanes) else None
            plain = " " if target is None else "│"
            if not home <= index <= last:
                cells.append(plain + " ")
            elif index == home:
                cells.append(start + "─")
            elif index == last:
                cells.append(end + " ")
            elif index in others:
                cells.append(middle + "─")
            else:
                cells.append(("─" if target is None else "┼") + "─")
        return "".join(cells).rstrip()
