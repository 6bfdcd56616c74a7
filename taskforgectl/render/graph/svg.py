"""The graph as one SVG picture without scripts, fonts or anything from elsewhere.

The layout is ours, since steps lie inside of steps, which layout libraries do not know. A block is laid out in layers:
a step lies one below the lowest that it follows, and an arrow that passes a layer has a place of its own in it. A
switch lays its cases side by side; what is inside a step makes it as large as it has to be. Figures are pixels.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from taskforgectl.render.graph.model import Block, Branch, Drawing, Step, shortened

__all__ = ["draw_svg"]

_CHAR = 7.2
"""Width of a character in the monospaced font of 12 pixels; the boxes are made for it."""

_LINE = 16
_PAD = 12
_GAP_X = 28
_PASS = 4
"""Width of an arrow's place in a layer that it passes."""

_GAP_Y = 36
_TEXT_MAX = 44

_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#24292f}"
    ".t{font-weight:bold}.k{fill:#57606a}.n{fill:#9a6700}"
    "rect{fill:#fff;stroke:#8c959f;rx:6}.c{fill:#f6f8fa}.s{fill:#ddf4ff;stroke:#54aeff}"
    ".u{stroke-dasharray:4 3;fill:#fff8c5;stroke:#d4a72c}"
    "path{fill:none;stroke:#8c959f;stroke-width:1.5}.w{stroke:#0969da}.d{stroke-dasharray:4 3}"
)


@dataclass(slots=True)
class _Box:
    """A rectangle with lines of text, and boxes inside, placed relative to it."""

    width: float
    height: float
    lines: Sequence[tuple[str, str]] = ()
    style: str = ""
    x: float = 0
    y: float = 0
    inner: list[_Box] = field(default_factory=list)
    arrows: list[_Arrow] = field(default_factory=list)
    has_frame: bool = True


@dataclass(slots=True)
class _Arrow:
    """From a box, through places between others, to a box."""

    source: _Box
    target: _Box
    style: str
    passes: list[_Box] = field(default_factory=list)


def draw_svg(drawing: Drawing) -> Iterator[str]:
    """Yield the lines."""
    title = _Box(_width([drawing.title]), _LINE + _PAD, [("t", drawing.title)], has_frame=False)
    parts = [title, *(_phase(name, block) for name, block in drawing.phases)]
    whole = _stack(parts)
    width, height = whole.width + 2 * _PAD, whole.height + 2 * _PAD
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
    )
    yield f"<title>{_escaped(drawing.title)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:#8c959f;stroke:none"/></marker></defs>'
    )
    yield f'<rect width="{width:.0f}" height="{height:.0f}" style="stroke:none;rx:0"/>'
    yield from _draw(whole, _PAD, _PAD)
    yield "</svg>"


# --- boxes -----------------------------------------------------------------------------------------------------------


def _phase(name: str, block: Block) -> _Box:
    body = _block(block)
    return _framed([("t", name)], [body], "d c") if name else body


def _width(texts: Sequence[str]) -> float:
    return max((len(text) for text in texts), default=0) * _CHAR + 2 * _PAD


def _framed(lines: Sequence[tuple[str, str]], inner: Sequence[_Box], style: str) -> _Box:
    """Answer a box with text on top and boxes side by side below."""
    top = len(lines) * _LINE + _PAD
    x = float(_PAD)
    for box in inner:
        box.x, box.y = x, top + _PAD / 2
        x += box.width + _PAD
    width = max(_width([text for _, text in lines]), x)
    height = top + max((box.height + 1.5 * _PAD for box in inner), default=_PAD)
    return _Box(width, height, lines, style, inner=list(inner))


def _stack(boxes: Sequence[_Box]) -> _Box:
    y = 0.0
    for box in boxes:
        box.y = y
        y += box.height + _GAP_Y / 2
    return _Box(max(box.width for box in boxes), y, inner=list(boxes), has_frame=False)


def _step(step: Step) -> _Box:
    texts = [("t", step.title), ("k", " ".join(filter(None, [step.kind, step.label])))]
    if step.condition:
        texts.append(("n", f"if {step.condition}"))
    lines = [(style, shortened(text, _TEXT_MAX)) for style, text in texts]
    box = _framed(lines, [_branch(branch) for branch in step.branches], _style_of(step))
    if step.compensation is None:
        return box
    undo = _step(step.compensation)
    undo.style = "u"
    undo.x = box.width + _GAP_X
    pair = _Box(undo.x + undo.width, max(box.height, undo.height), inner=[box, undo], has_frame=False)
    pair.arrows.append(_Arrow(undo, box, "d across"))
    return pair


def _style_of(step: Step) -> str:
    if step.branches:
        return "c"
    return "s" if step.fan_out else ""


def _branch(branch: Branch) -> _Box:
    body = _block(branch.block)
    return _framed([("n", shortened(branch.label, _TEXT_MAX))], [body], "d") if branch.label else body


def _block(block: Block) -> _Box:
    """Answer the steps of a block in layers, centred, with arrows."""
    boxes = {step.id: _step(step) for step in block.steps}
    layer_of = _layers(block)
    layers: list[list[_Box]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for step_id, layer in layer_of.items():
        layers[layer].append(boxes[step_id])
    arrows = []
    for edge in block.edges:
        arrow = _Arrow(boxes[edge.source], boxes[edge.target], "w" if edge.needed else "")
        for layer in range(layer_of[edge.source] + 1, layer_of[edge.target]):
            arrow.passes.append(_Box(_PASS, 0, has_frame=False))
            layers[layer].append(arrow.passes[-1])
        arrows.append(arrow)
    width, height = _place(layers)
    return _Box(width, height, inner=list(boxes.values()), arrows=arrows, has_frame=False)


def _place(layers: Sequence[Sequence[_Box]]) -> tuple[float, float]:
    """Give the boxes of layers their places; answer the size of the whole."""
    widths = [sum(box.width for box in row) + _GAP_X * (len(row) - 1) for row in layers]
    width, y = max(widths, default=0), 0.0
    for row, row_width in zip(layers, widths, strict=True):
        x = (width - row_width) / 2
        height = max(box.height for box in row)
        for box in row:
            box.x, box.y = x, y
            box.height = box.height or height  # of a place for an arrow
            x += box.width + _GAP_X
        y += height + _GAP_Y
    return width, max(0.0, y - _GAP_Y)


def _layers(block: Block) -> dict[str, int]:
    found: dict[str, int] = {}
    for step in block.steps:  # none comes before what it follows
        found[step.id] = max((found.get(edge.source, -1) for edge in block.before(step.id)), default=-1) + 1
    return found


# --- drawing ---------------------------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _draw(box: _Box, left: float, top: float) -> Iterator[str]:
    x, y = left + box.x, top + box.y
    if box.has_frame:
        yield (f'<rect class="{box.style}" x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"/>')
    for number, (style, text) in enumerate(box.lines, start=1):
        yield f'<text class="{style}" x="{x + _PAD:.1f}" y="{y + 4 + number * _LINE:.1f}">{_escaped(text)}</text>'
    for inner in box.inner:
        yield from _draw(inner, x, y)
    for arrow in box.arrows:
        yield f'<path class="{arrow.style}" d="{_curve(arrow, x, y)}" marker-end="url(#a)"/>'


def _curve(arrow: _Arrow, left: float, top: float) -> str:
    source, target = _core(arrow.source), _core(arrow.target)
    if arrow.style.endswith("across"):  # from the left side of one to the right side of the other
        y = top + min(source.height, target.height) / 2
        return f"M{left + source.x:.1f} {y:.1f}L{left + target.x + target.width:.1f} {y:.1f}"
    x, y = left + source.x + source.width / 2, top + source.y + source.height
    path = f"M{x:.1f} {y:.1f}"
    for box in [*arrow.passes, target]:
        new_x, new_y = left + box.x + box.width / 2, top + box.y
        bend = max(_GAP_Y / 2, (new_y - y) / 2)
        path += f"C{x:.1f} {y + bend:.1f} {new_x:.1f} {new_y - bend:.1f} {new_x:.1f} {new_y:.1f}"
        x, y = new_x, new_y
        if box is not target:
            y += box.height
            path += f"L{x:.1f} {y:.1f}"
    return path


def _core(box: _Box) -> _Box:
    """Answer where arrows end: of a step with its compensation, the step."""
    if box.has_frame or not box.inner:
        return box
    first = box.inner[0]
    return _Box(first.width, first.height, x=box.x + first.x, y=box.y + first.y)
