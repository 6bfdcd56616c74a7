"""A run of the benchmarks: rows one after another, each within its time, none hiding another that fails."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import bare
from benchmarks.figures import FIGURES
from benchmarks.results import Sample, number


@dataclass(frozen=True, slots=True)
class Row:
    """One group of figures that are measured together.

    Attributes:
        measure: measures once; reports figures and points.
        seconds: about how long one repeat takes on two slow cores; after `LIMIT` times that it has failed.
        repeats: how often by default.
    """

    name: str
    measure: Callable[[Bench], Awaitable[None]]
    seconds: float
    repeats: int = 3

    @property
    def what(self) -> str:
        """The first line of its docstring."""
        return (self.measure.__doc__ or "").splitlines()[0]


LIMIT = 4
QUICK = 1 / 8


@dataclass(slots=True)
class Bench:
    """What a row is given: how large to measure, a scratch folder, where to report.

    Attributes:
        share: of the whole work that is done: 1, `QUICK`, or less in tests.
        samples: of each figure, one for each repeat.
        points: of growth curves: curve, x, metric, value, unit.
        bares: of each yardstick, everything that was measured.
        failures: rows that did not come to an end, and why.
    """

    share: float
    folder: Path
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    points: list[dict[str, object]] = field(default_factory=list)
    bares: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def count(self, full: int) -> int:
        """How many to do."""
        return max(1, int(full * self.share))

    def seconds(self, full: float) -> float:
        """How long to put load on."""
        return full * self.share

    def report(
        self,
        key: str,
        value: float,
        *,
        bare: float | None = None,
        cpu: tuple[float, float] | None = None,
        note: str = "",
    ) -> None:
        """Report a figure of `figures.py`, its bare cost in the same unit, and milliseconds of daemon and client."""
        sample = Sample(value, bare, *(cpu or (None, None)), note)
        self.samples.setdefault(key, []).append(sample)
        figure = FIGURES[key]
        beside = f", bare {number(bare)}" if bare is not None else ""
        costs = f", CPU of daemon {cpu[0]:.2f} ms, client {cpu[1]:.2f} ms" if cpu else ""
        print(f"  {figure.title}: {number(value)} {figure.unit}{beside}{costs} {note}".rstrip(), flush=True)

    def point(self, curve: str, x: float, metric: str, value: float, unit: str) -> None:
        """Report a point of a growth curve."""
        self.points.append({"curve": curve, "x": x, "metric": metric, "value": value, "unit": unit})
        print(f"  {curve} {x:,.0f}: {metric} {number(value)} {unit}", flush=True)

    async def bare(self, kind: str) -> float:
        """Operations a second of a yardstick, measured now."""
        value = await bare.rate(kind, self.folder, 1.2 * self.share**0.5)
        self.bares.setdefault(kind, []).append(value)
        return value

    async def yardsticks(self) -> None:
        """Measure the yardsticks by which budgets are scaled."""
        for kind in bare.REFERENCE:
            print(f"  bare {kind}: {await self.bare(kind):,.0f}/s", flush=True)

    def speeds(self) -> dict[str, float]:
        """How many times as fast as the reference machine this one is, by each yardstick."""
        return {kind: median(self.bares[kind]) / of for kind, of in bare.REFERENCE.items() if kind in self.bares}


async def run(bench: Bench, rows: list[Row], repeats: int | None) -> None:
    """Measure rows, with the yardsticks before and after."""
    print("bare: what the parts cost without Taskforge", flush=True)
    await bench.yardsticks()
    for row in rows:
        for n in range(repeats or (row.repeats if bench.share == 1 else 1)):
            print(f"{row.name}{f' again ({n + 1})' if n else ''}: {row.what}", flush=True)
            if not await _once(bench, row):
                break
    print("bare again", flush=True)
    await bench.yardsticks()


async def _once(bench: Bench, row: Row) -> bool:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(30 + LIMIT * row.seconds):
            await row.measure(bench)
    except Exception as error:
        said = str(error) or f"not done within {30 + LIMIT * row.seconds:.0f} s"
        bench.failures[row.name] = f"{type(error).__name__}: {said}"
        traceback.print_exc()
        print(f"  FAILED after {time.perf_counter() - began:.0f} s; the other rows go on", flush=True)
        return False
    print(f"  ({time.perf_counter() - began:.1f} s)", flush=True)
    return True
