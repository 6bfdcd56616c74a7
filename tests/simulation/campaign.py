"""Many simulated runs: seeds shared between processes, what was reached, and how to see a failure again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import structlog

from simulation.checks import CELLS, transitions
from simulation.world import SimulationError, World
from taskforged.engine import machine
from taskforged.testing import simulator
from taskforged.testing.generator import random_model

__all__ = ["ENGINE", "HOST", "Tally", "campaign", "engine", "host"]

ENGINE, HOST = "engine", "host"
_CHUNK = {ENGINE: 200, HOST: 10}


@dataclass
class Tally:
    """What a campaign has come to. `runs` counts runs of workflows; a world has many."""

    seeds: int = 0
    runs: int = 0
    commits: int = 0
    crashes: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.runs += other.runs
        self.commits += other.commits
        self.crashes += other.crashes
        self.seen += other.seen
        self.failures += other.failures

    def missing(self) -> list[str]:
        """Answer which cells of the engine's tables were never gone through."""
        return [cell for cell in CELLS if not self.seen[cell]]


def engine(seed: int, tally: Tally) -> None:
    """Simulate one run under the pure host. Every other seed has small portions, so that fan-outs yield."""
    saved = machine.PORTION
    machine.PORTION = 2 if seed % 2 else saved
    try:
        report = simulator.Simulator(random_model(Random(seed)), seed=seed).run()
    finally:
        machine.PORTION = saved
    tally.runs += 1
    tally.commits += report.commits
    tally.crashes += report.crashes
    tally.seen += transitions((event.kind.value, event.step) for event in report.history)
    tally.seen[f"ended {report.state}"] += 1


def host(seed: int, tally: Tally) -> None:
    """Simulate one world."""
    report = World(seed).run()
    tally.runs += report.runs
    tally.commits += report.commits
    tally.crashes += report.crashes
    tally.seen += report.seen


def simulate(kind: str, seeds: Iterable[int]) -> Tally:
    """Simulate some seeds in this process."""
    one: Callable[[int, Tally], None] = host if kind == HOST else engine
    tally = Tally()
    for seed in seeds:
        tally.seeds += 1
        try:
            one(seed, tally)
        except (SimulationError, simulator.SimulationError) as error:
            tally.failures.append((kind, seed, error.reason))
    return tally


def campaign(kind: str, first: int, count: int, *, processes: int) -> Iterator[Tally]:
    """Simulate `count` seeds from `first` on in some processes, and answer the tally of each portion."""
    chunk = _CHUNK[kind]
    portions = [range(start, min(start + chunk, first + count)) for start in range(first, first + count, chunk)]
    with ProcessPoolExecutor(processes, initializer=quiet) as pool:
        yield from pool.map(partial(simulate, kind), portions)


def quiet() -> None:
    """Let the product log nothing: crashes and full disks are what a simulation is made of."""
    structlog.configure(processors=[_drop])


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent
