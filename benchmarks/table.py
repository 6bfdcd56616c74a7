"""Figures as a table for terminals."""

from __future__ import annotations

from benchmarks.figures import FIGURES, Figure
from benchmarks.results import Measured, Results, number

HEAD = ("what", "measured", "+-", "budget", "", "scaled", "", "bare", "of bare", "daemon", "client", "bare is")
RIGHT = {1, 2, 3, 5, 7, 8, 9, 10}


def cells(figure: Figure, measured: Measured) -> tuple[str, ...]:
    """One line: in the order of `HEAD`."""
    scaled = figure.scaled(measured.speed)
    return (
        figure.title,
        f"{number(measured.value)} {figure.unit}",
        "" if measured.spread is None else f"{measured.spread:.0%}",
        *_held(figure, measured.value, figure.budget),
        *_held(figure, measured.value, scaled),
        number(measured.bare),
        f"{measured.value / measured.bare:.2f}x" if measured.bare else "",
        "" if measured.daemon_ms is None else f"{measured.daemon_ms:.2f} ms",
        "" if measured.client_ms is None else f"{measured.client_ms:.2f} ms",
        figure.bare_is if measured.bare else "",
    )


def _held(figure: Figure, value: float, budget: float | None) -> tuple[str, str]:
    """A budget, and met or missed and by how much."""
    if budget is None:
        return "", ""
    times = figure.met(value, budget)
    return f"{'>=' if figure.higher else '<='} {number(budget)}", f"{'met' if times >= 1 else 'MISSED'} {times:.2f}x"


def render(results: Results) -> str:
    """The table of all figures of the results, in the order of `figures.py`."""
    body = [cells(figure, results.figures[key]) for key, figure in FIGURES.items() if key in results.figures]
    return align([HEAD, tuple("" for _ in HEAD), *body], RIGHT)


def align(lines: list[tuple[str, ...]], right: set[int]) -> str:
    """Columns; an empty second line becomes a rule."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    lines[1] = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
