"""`make simulate`: many simulated runs, or one seed again.

python -m simulation --runs 100000          # nightly: so many runs of workflows in all, engine and host
python -m simulation --host 17              # world 17 again, with its log
python -m simulation --engine 4711          # run 4711 of the engine again
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from simulation.campaign import ENGINE, HOST, Tally, campaign, simulate
from simulation.checks import CELLS

_RUNS_IN_A_WORLD = 15
"""About; a campaign counts what there really were."""

_HOST_SHARE = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs in all")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--host", type=int, metavar="SEED", help="simulate one world again, with its log")
    parser.add_argument("--engine", type=int, metavar="SEED", help="simulate one run of the engine again")
    chosen = parser.parse_args()
    for kind, seed in ((HOST, chosen.host), (ENGINE, chosen.engine)):
        if seed is not None:
            return _tell(simulate(kind, [seed]))
    worlds = max(1, round(chosen.runs * _HOST_SHARE / _RUNS_IN_A_WORLD))
    total, whole_s = Tally(), 0.0
    for kind, count in ((HOST, worlds), (ENGINE, round(chosen.runs * (1 - _HOST_SHARE)))):
        tally, took_s = _run(kind, chosen.first, count, chosen.processes)
        total.add(tally)
        whole_s += took_s
    if total.runs < chosen.runs:  # the worlds were smaller than usual: the engine makes up for it
        tally, took_s = _run(ENGINE, chosen.first + chosen.runs, chosen.runs - total.runs, chosen.processes)
        total.add(tally)
        whole_s += took_s
    print(
        f"in all: {total.runs:,} simulated runs, {total.commits:,} commits, {total.crashes:,} crashes, {whole_s:.0f} s"
    )
    return _tell(total, is_campaign=True)


def _run(kind: str, first: int, count: int, processes: int) -> tuple[Tally, float]:
    began, tally = time.perf_counter(), Tally()
    for part in campaign(kind, first, count, processes=processes):
        tally.add(part)
        took_s = time.perf_counter() - began
        if tally.seeds * 10 // count > (tally.seeds - part.seeds) * 10 // count and tally.seeds < count:
            print(
                f"{kind}: {tally.seeds:,} of {count:,} seeds, {len(tally.failures)} failed, {took_s:.0f} s", flush=True
            )
        for failure in part.failures:
            _print_failure(*failure)
    what = "worlds" if kind == HOST else "runs"
    print(
        f"{kind}: seeds {first} to {first + count - 1}, {tally.seeds:,} {what} with {tally.runs:,} runs,"
        f" {tally.commits:,} commits, {tally.crashes:,} crashes in {took_s:.0f} s: {tally.runs / took_s:.0f} runs/s"
    )
    return tally, took_s


def _print_failure(kind: str, seed: int, reason: str) -> None:
    print(f"\nFAILED {kind} seed {seed}: {reason}\n  again: make simulate {kind.upper()}={seed}\n", flush=True)


def _tell(tally: Tally, *, is_campaign: bool = False) -> int:
    if is_campaign:
        for what, count in sorted(tally.seen.items()):
            print(f"  {count:>10,}  {what}")
        missing = tally.missing()
        print(f"of {len(CELLS)} transitions never gone through: {', '.join(missing) or 'none'}")
    else:
        for failure in tally.failures:
            _print_failure(*failure)
        print(f"{tally.runs} runs, {tally.commits} commits, {tally.crashes} crashes")
    print(f"{len(tally.failures)} failed" if tally.failures else "every promise was kept")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
