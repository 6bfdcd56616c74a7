"""`make mutants`: puts each fault into a copy of the sources and demands that its test fails there.

python -m mutants                    # all of them; exit 1 when one survives
python -m mutants --only signature   # those whose name holds a text
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants.table import MUTANTS, Mutant

__all__ = ["Copy", "main"]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("taskforged", "taskforgectl", "protos", "tests", "tools", "docs", "examples", "systemd", "benchmarks")
_LIMIT_S = 600.0
_NO_TESTS = 5


class Copy:
    """A copy of the sources in which faults are put, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis", "results")
        for name in _FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)

    def passes(self, *tests: str) -> bool:
        """Execute tests over the copy, daemons and clients too."""
        paths = [self._folder, self._folder / "protos", self._folder / "tests"]
        environment = {**os.environ, "PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode == _NO_TESTS or "no tests ran" in done.stdout:
            raise LookupError(f"there is no test {' '.join(tests)}")
        return done.returncode == 0

    def kills(self, mutant: Mutant) -> bool:
        """Whether the test notices the fault."""
        path = self._folder / mutant.file
        source = path.read_text()
        assert source.count(mutant.old) == 1, f"{mutant.name}: stands {source.count(mutant.old)} times in {mutant.file}"
        path.write_text(source.replace(mutant.old, mutant.new))
        try:
            return not self.passes(mutant.test)
        finally:
            path.write_text(source)


def _judge(copies: SimpleQueue[Copy], mutant: Mutant) -> tuple[bool, str]:
    copy, began = copies.get(), time.perf_counter()
    try:
        is_caught = copy.kills(mutant)
        return is_caught, f"{'caught' if is_caught else 'SURVIVED'} in {time.perf_counter() - began:.0f} s"
    except (AssertionError, LookupError) as error:
        return False, str(error)
    finally:
        copies.put(copy)


def _failing(copies: SimpleQueue[Copy], some: list[Mutant]) -> list[str]:
    """Answer the tests that fail without any fault: together first, since that is quicker, and alone when need be."""
    tests, copy = list(dict.fromkeys(one.test for one in some)), copies.get()
    try:
        return [] if copy.passes(*tests) else [test for test in tests if not copy.passes(test)]
    finally:
        copies.put(copy)


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="those whose name, file or test holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    some = [one for one in MUTANTS if chosen.only in f"{one.name} {one.file} {one.test}"]
    if not some:
        parser.error(f"no fault has {chosen.only!r} in its name, file or test")  # no tests would mean all of them
    failed = 0
    with tempfile.TemporaryDirectory(prefix="taskforge-mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(chosen.processes):
            copies.put(Copy(Path(folder, str(number))))
        if failing := _failing(copies, some):
            print("These fail without any fault:", *failing, sep="\n  ")
            return 1
        with ThreadPoolExecutor(chosen.processes) as pool:
            for mutant, (caught, how) in zip(some, pool.map(lambda one: _judge(copies, one), some), strict=True):
                failed += not caught
                print(f"{'ok  ' if caught else 'FAIL'}  a Taskforge that {mutant.name}: {how}", flush=True)
                if not caught:
                    print(f"      {mutant.file}, {mutant.test}", flush=True)
    print(f"{len(some) - failed} of {len(some)} faults are noticed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
