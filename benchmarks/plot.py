"""Growth curves as small SVG pictures: one panel for each unit, one line for each metric."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.results import number

_WIDE, _HIGH = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 58, 34
_COLOURS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989")
_LOG_FROM = 40.0
"""A panel of which the largest value is so many times the smallest has a logarithmic axis."""


def picture(title: str, across: str, points: Iterable[dict[str, Any]]) -> str:
    """The points of one curve, as an SVG document."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        panels.setdefault(point["unit"], {}).setdefault(point["metric"], []).append((point["x"], point["value"]))
    drawn = [
        f'<g transform="translate({n % 2 * _WIDE} {26 + n // 2 * _HIGH})">{_panel(unit, across, lines)}</g>'
        for n, (unit, lines) in enumerate(panels.items())
    ]
    width, height = _WIDE * min(2, len(panels)), 26 + _HIGH * ((len(panels) + 1) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="#24292f">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="12" y="18" font-size="13" font-weight="600">{escape(title)}</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _panel(unit: str, across: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    lines = {name: sorted(line) for name, line in lines.items()}
    xs = sorted({x for line in lines.values() for x, _ in line})
    values = [value for line in lines.values() for _, value in line]
    logarithmic = min(values) > 0 and max(values) / min(values) > _LOG_FROM
    low, high = (min(values) / 1.5, max(values) * 1.5) if logarithmic else (0.0, (max(values) or 1.0) * 1.15)

    def at_x(x: float) -> float:
        share = xs.index(x) / max(1, len(xs) - 1)
        return round(_LEFT + share * (_WIDE - _LEFT - _RIGHT), 1)

    def at_y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return round(_HIGH - _BOTTOM - share * (_HIGH - _TOP - _BOTTOM), 1)

    parts = [f'<text x="{_LEFT}" y="14" fill="#57606a">{escape(unit)}{" (logarithmic)" if logarithmic else ""}</text>']
    for value in _ticks(low, high, logarithmic):
        y = at_y(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDE - _RIGHT}" y2="{y}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{number(value)}</text>')
    parts += [f'<text x="{at_x(x)}" y="{_HIGH - 18}" text-anchor="middle">{_short(x)}</text>' for x in xs]
    parts.append(
        f'<text x="{(_LEFT + _WIDE) / 2}" y="{_HIGH - 4}" text-anchor="middle" fill="#57606a">{escape(across)}</text>'
    )
    for n, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        path = " ".join(f"{at_x(x)},{at_y(value)}" for x, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at_x(x)}" cy="{at_y(value)}" r="3" fill="{colour}"/>' for x, value in line]
        x, y = _LEFT + 115 * (n % 3), 28 + 13 * (n // 3)
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        first = math.ceil(math.log10(low))
        return [10.0**n for n in range(first, math.floor(math.log10(high)) + 1)]
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough)
    return [n * step for n in range(int(high / step) + 1)]


def _short(x: float) -> str:
    if x >= 1_000_000:
        return f"{x / 1_000_000:g}M"
    return f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"
