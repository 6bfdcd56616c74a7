"""Results as JSON lines: what machine, which yardsticks, figures with their repeats, points of curves, failures."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import FIGURES

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: the value, what its parts cost bare, processor milliseconds for each unit of work."""

    value: float
    bare: float | None = None
    daemon_ms: float | None = None
    client_ms: float | None = None
    note: str = ""


@dataclass(slots=True)
class Measured:
    """A figure over its repeats: medians, and how far the repeats lie apart."""

    key: str
    values: list[float]
    bare: float | None = None
    daemon_ms: float | None = None
    client_ms: float | None = None
    note: str = ""
    speed: float | None = None
    """How many times as fast as the reference machine this one was, by the yardstick that scales the budget."""

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def spread(self) -> float | None:
        """Half of the distance between the least and the most, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2 / self.value if len(self.values) > 1 and self.value else None


@dataclass(slots=True)
class Results:
    """What a file of results says."""

    machine: dict[str, Any] = field(default_factory=dict)
    bares: dict[str, list[float]] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Measured] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def records(self) -> Iterable[dict[str, Any]]:
        """One object for each line."""
        yield {"kind": "machine", **self.machine}
        yield {"kind": "bare", "per_s": {name: [round(one, 1) for one in found] for name, found in self.bares.items()}}
        yield {"kind": "speed", "of_reference": self.speeds}
        for one in self.figures.values():
            yield {"kind": "figure"} | {name: getattr(one, name) for name in Measured.__slots__}
        yield from ({"kind": "point", **point} for point in self.points)
        yield from ({"kind": "peer", **peer} for peer in self.peers)
        yield from ({"kind": "failure", "row": row, "error": error} for row, error in self.failures.items())

    def write(self, path: Path) -> Path:
        """Write them; answers the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in self.records()))
        return path

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote; later lines of a figure win."""
        results = cls()
        for line in path.read_text().splitlines():
            record = json.loads(line)
            kind = record.pop("kind")
            if kind == "machine":
                results.machine = record
            elif kind == "bare":
                results.bares = record["per_s"]
            elif kind == "speed":
                results.speeds = record["of_reference"]
            elif kind == "figure":
                results.figures[record["key"]] = Measured(**record)
            elif kind == "failure":
                results.failures[record["row"]] = record["error"]
            else:
                {"point": results.points, "peer": results.peers}[kind].append(record)
        return results


def gather(samples: dict[str, list[Sample]], speeds: dict[str, float]) -> dict[str, Measured]:
    """Fold the repeats of each figure."""
    return {
        key: Measured(
            key,
            [one.value for one in found],
            _median(one.bare for one in found),
            _median(one.daemon_ms for one in found),
            _median(one.client_ms for one in found),
            found[-1].note,
            speeds.get(FIGURES[key].scale),
        )
        for key, found in samples.items()
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def fresh_path(kind: str) -> Path:
    """Where results of now go: `results/KIND-TIME.jsonl`."""
    return RESULTS / f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"


def machine() -> dict[str, object]:
    """What this is measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gb": round(memory / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in ("grpcio", "aiohttp", "uvloop", "taskforge")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def number(value: float | None) -> str:
    """A figure as people read it, three digits or more."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
