"""Measures Taskforge, each figure beside its budget and beside the bare cost of its parts in the same run.

    make bench                          the rows of design section 7 and more
    make bench ARGS="--quick"           a short look
    make bench ARGS="--only pure,http"  some rows
    make bench-growth                   a million stored runs, growth curves

The daemon is a process of its own, as are the servers it calls; this process is the load client. Nothing is asserted:
figures depend on the machine, so they are compared, not tested. README.md says what each row is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks import measure, results, table
from benchmarks.measure import Bench, Row
from benchmarks.results import Results
from benchmarks.rows import BY_NAME, GROWTH, ROWS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="the rows with a million runs, and growth curves")
    parser.add_argument(
        "--only", metavar="ROW,...", default="", help="rows to measure, of either kind; --list names them"
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of the work, once; figures are rougher")
    parser.add_argument("--repeats", type=int, metavar="N", help="how often each row is measured; the median counts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where JSON lines go, benchmarks/results/ by default")
    parser.add_argument("--list", action="store_true", help="show the rows and about how long each takes")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BY_NAME]:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats is 1 or more")
    arguments.rows = [BY_NAME[name] for name in names] or list(GROWTH if arguments.growth else ROWS)
    return arguments


def _show(rows: tuple[Row, ...], command: str) -> None:
    whole = sum(row.seconds * row.repeats for row in rows)
    print(f"{command}: about {whole / 60:.0f} minutes on two slow cores")
    for row in rows:
        print(f"  {row.name:<12} {row.repeats} x {row.seconds:>4.0f} s  {row.what}")


def main() -> int:
    """Measure and report; 1 when a row failed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled, so what is measured is, too
    arguments = _arguments()
    if arguments.list:
        _show(ROWS, "make bench")
        _show(GROWTH, "make bench-growth")
        return 0
    machine = results.machine()
    print(f"{machine['cpus']} cores, load {machine['load_before']} before the start, SQLite {machine['sqlite']}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as folder:
        bench = Bench(measure.QUICK if arguments.quick else 1, Path(folder))
        uvloop.run(measure.run(bench, arguments.rows, arguments.repeats))
    machine |= {"quick": arguments.quick, "seconds": round(time.perf_counter() - began)}
    found = Results(
        machine=machine,
        bares=bench.bares,
        speeds=bench.speeds(),
        figures=results.gather(bench.samples, bench.speeds()),
        points=bench.points,
        failures=bench.failures,
    )
    kind = "growth" if arguments.growth else "rows"
    path = found.write(arguments.out or results.fresh_path(kind if not arguments.only else "some"))
    print(f"\n{table.render(found)}\n")
    for kind, speed in found.speeds.items():
        print(f"this machine's {kind} is {speed:.2f} times the reference's: budgets that it scales are under `scaled`")
    for row, error in found.failures.items():
        print(f"FAILED {row}: {error}")
    print(f"{machine['seconds']} s; written to {path}")
    return bool(found.failures)


if __name__ == "__main__":
    sys.exit(main())
