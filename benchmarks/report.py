"""Writes measured figures into docs/benchmarks.md, and growth curves beside it.

    python -m benchmarks.report             from benchmarks/results/, of which the newest figure of each kind wins
    python -m benchmarks.report FILE ...    from these files

The figures go to docs/benchmarks/*.jsonl, which are committed, and the page is made from them: the text between
`<!-- name -->` and `<!-- /name -->`. Results of `--quick` are left out unless they are named.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks import plot
from benchmarks.figures import FIGURES
from benchmarks.peer import PEERS, TITLES, cell
from benchmarks.results import RESULTS, Results, number
from benchmarks.table import HEAD, cells

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
DATA = DOCS / "benchmarks"

CURVES = {
    "stored": ("Stored runs, 0 to a million", "finished runs in the store"),
    "backlog": ("Runs that wait for a slot", "runs that wait"),
    "fan-out": ("One run that fans out", "items"),
    "concurrency": ("Calls in flight", "calls in flight"),
}


def merge(paths: Iterable[Path], *, quick: bool) -> dict[str, Results]:
    """Fold files, the later over the earlier: `rows` (figures), `growth` (points), `peers`."""
    rows, growth, peers = Results(), Results(), Results()
    for path in paths:
        one = Results.read(path)
        if one.machine.get("quick") and not quick:
            continue
        if one.figures:
            rows.machine, rows.bares, rows.speeds = one.machine, one.bares, one.speeds
            rows.figures |= one.figures
        if one.points:
            curves = {point["curve"] for point in one.points}
            growth.machine = one.machine
            growth.points = [point for point in growth.points if point["curve"] not in curves] + one.points
        if one.peers:
            names = {(peer["name"], peer.get("beside")) for peer in one.peers}
            peers.machine = one.machine
            peers.peers = [p for p in peers.peers if (p["name"], p.get("beside")) not in names] + one.peers
    return {"rows": rows, "growth": growth, "peers": peers}


def load() -> dict[str, Results]:
    """The committed figures."""
    paths = {name: DATA / f"{name}.jsonl" for name in ("rows", "growth", "peers")}
    return {name: Results.read(path) if path.exists() else Results() for name, path in paths.items()}


def fill(text: str, found: dict[str, Results]) -> str:
    """The page with its blocks filled."""
    blocks = {
        "machine": _machine(found["rows"]),
        "rows": _rows(found["rows"]),
        "peers": _peers(found["peers"]),
        "engines": _engines(found["peers"]),
        **{name: _curve(name, found["growth"]) for name in CURVES},
    }
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{PAGE.name} has no <!-- {name} --> and <!-- /{name} -->")
        text = pattern.sub(lambda match, block=block: f"{match[1]}\n{block}\n\n{match[2]}", text)
    return text


_NOTHING = "Not measured yet."


def _markdown(head: Iterable[str], lines: list[Iterable[str]]) -> str:
    rows = [tuple(head), *(tuple(line) for line in lines)]
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in rows)


def _machine(results: Results) -> str:
    if not results.machine:
        return _NOTHING
    m = results.machine
    speeds = ", ".join(
        f"{_YARDSTICKS[kind]} {median(results.bares[kind]):,.0f}/s ({speed:.2f} of the reference)"
        for kind, speed in results.speeds.items()
    )
    quick = " These are figures of a quick look, rougher than those of a whole run." if m.get("quick") else ""
    return (
        f"{m['at'][:10]}: {m['cpus']} cores ({m['cpu'] or m['machine']}), {m['memory_gb']:.0f} GB of memory, load "
        f"{m['load_before']} before the start. Python {m['python']}, SQLite {m['sqlite']}, grpcio "
        f"{m['packages']['grpcio']}, aiohttp {m['packages']['aiohttp']}. Bare: {speeds}.{quick}"
    )


_YARDSTICKS = {"grpc": "grpc.aio calls", "http": "aiohttp requests", "sqlite 1": "SQLite commits"}


def _rows(results: Results) -> str:
    known = [(FIGURES[key], results.figures[key]) for key in FIGURES if key in results.figures]
    if not known:
        return _NOTHING
    lines = [cells(figure, measured) for figure, measured in known]
    head = list(HEAD)
    head[3:7] = ["budget", " ", "budget, scaled", " "]
    return _markdown(head, lines)


def _curve(name: str, results: Results) -> str:
    points = [point for point in results.points if point["curve"] == name]
    if not points:
        return _NOTHING
    xs = sorted({point["x"] for point in points})
    values = {(point["metric"], point["x"]): point["value"] for point in points}
    metrics = dict.fromkeys((point["metric"], point["unit"]) for point in points)
    lines = [[f"{metric}, {unit}", *(number(values.get((metric, x))) for x in xs)] for metric, unit in metrics]
    title, across = CURVES[name]
    table = _markdown([across, *(f"{x:,.0f}" for x in xs)], lines)
    return f"![{title}](benchmarks/{name}.svg)\n\n{table}"


def _peers(results: Results) -> str:
    if not results.peers:
        return _NOTHING
    ours = [peer["rows"] for peer in results.peers if peer["name"] == "taskforge"]
    others = {peer["name"]: peer["rows"] for peer in results.peers if peer["name"] != "taskforge"}
    lines = []
    for row, (title, key, unit) in TITLES.items():
        mine = [rows[row][key] for rows in ours if key in rows.get(row, {})]
        whole = f"{number(median(mine))} {unit}" if mine else ""
        if len(mine) > 1:
            whole += f" ({number(min(mine))} to {number(max(mine))})"
        lines.append([title, whole, *(cell(rows.get(row), key, unit) for rows in others.values())])
    names = ["DBOS" if name == "dbos" else name.capitalize() for name in others]
    return _markdown(["what", "Taskforge", *names], lines)


def _engines(results: Results) -> str:
    if not results.peers:
        return _NOTHING
    lines = []
    for peer in results.peers:
        if peer["name"] == "taskforge":
            continue
        versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
        kept = peer["rows"].get("completed", {})
        whole = f"{kept['found']:,} of {kept['asked']:,}" if kept.get("found") is not None else "it does not tell"
        how = peer["rows"].get("accepts", {}).get("how") or "no such thing"
        lines.append([versions, PEERS[peer["name"]].durability, how, whole])
    return _markdown(
        ["version", "default durability", "how 8 KB are taken", "runs that its store says have ended"], lines
    )


def pictures(results: Results) -> dict[str, str]:
    """The SVG documents by name."""
    found = {}
    for name, (title, across) in CURVES.items():
        points = [point for point in results.points if point["curve"] == name]
        if points:
            found[name] = plot.picture(title, across, points)
    return found


def main() -> int:
    """Take the newest figures over, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines of runs, the older first")
    arguments = parser.parse_args()
    if missing := [str(path) for path in arguments.files if not path.exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    paths = arguments.files or sorted(RESULTS.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    fresh = merge([*sorted(DATA.glob("*.jsonl")), *paths], quick=bool(arguments.files))
    for name, results in fresh.items():
        if results.machine:
            results.write(DATA / f"{name}.jsonl")
    for name, text in pictures(fresh["growth"]).items():
        (DATA / f"{name}.svg").write_text(text)
    PAGE.write_text(fill(PAGE.read_text(), load()))
    print(
        f"{PAGE.name} and {DATA.name}/ say what {len(paths)} files of results say; look at the difference and commit it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
