"""The benchmarks run: tiny ones, with a real daemon, to see that they do, and not how fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bare, fill, growth, measure, results
from benchmarks.client import serving
from benchmarks.figures import FIGURES
from benchmarks.measure import Bench, Row
from benchmarks.peer import TITLES, table, work
from benchmarks.results import Results
from benchmarks.rows import BY_NAME, GROWTH, ROWS
from benchmarks.table import render

ROOT = Path(__file__).resolve().parents[2]
TINY = 0.01
pytestmark = pytest.mark.timeout(300)


async def broken(b):
    """Reports a figure and fails."""
    b.report("pure", 1.0)
    raise RuntimeError("on purpose")


async def steady(b):
    """Reports 1, then 2, then 3."""
    b.report("webhook", 1.0 + len(b.samples.get("webhook", ())), bare=10.0)


async def test_a_row_that_fails_hides_no_other(tmp_path, capsys):
    bench = Bench(TINY, tmp_path)
    await measure.run(bench, [Row("broken", broken, 1), BY_NAME["http"]], None)
    assert bench.failures == {"broken": "RuntimeError: on purpose"}
    found = results.gather(bench.samples, bench.speeds())
    http = found["http"]
    assert http.value > 0 and http.bare > 0 and http.daemon_ms > 0 and http.client_ms > 0
    assert http.speed == bench.speeds()["http"] > 0
    assert len(bench.bares["grpc"]) == 2, "before and after"
    path = Results(machine=results.machine(), figures=found, failures=bench.failures).write(tmp_path / "out.jsonl")
    again = Results.read(path)
    assert again.figures == found and again.failures == bench.failures
    line = next(line for line in render(again).splitlines() if line.startswith(FIGURES["http"].title))
    assert ">= 2,700" in line and line.count("x") >= 3
    assert "FAILED" in capsys.readouterr().out


async def test_the_median_of_the_repeats_counts(tmp_path, monkeypatch):
    async def nothing(self):  # noqa: ARG001
        """In place of the yardsticks."""

    monkeypatch.setattr(Bench, "yardsticks", nothing)
    bench = Bench(1, tmp_path)
    await measure.run(bench, [Row("broken", broken, 1), Row("steady", steady, 1)], None)
    assert len(bench.samples["pure"]) == 1, "a row that failed is not repeated"
    webhook = results.gather(bench.samples, {"http": 0.5})["webhook"]
    assert (webhook.values, webhook.value, webhook.spread, webhook.speed) == ([1, 2, 3], 2, 0.5, 0.5)


async def test_a_row_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    async def endless(b):  # noqa: ARG001
        """Never ends."""
        await measure.asyncio.Event().wait()

    monkeypatch.setattr(measure, "LIMIT", -29.99)
    bench = Bench(TINY, tmp_path)
    assert not await measure._once(bench, Row("endless", endless, 1))
    assert "not done within 0 s" in bench.failures["endless"]


async def test_the_curve_of_stored_runs(tmp_path, monkeypatch):
    """The daemon starts on a store that was multiplied by SQL."""
    monkeypatch.setattr(growth, "_STORED", (0, 100_000))
    bench = Bench(TINY, tmp_path)
    await BY_NAME["stored"].measure(bench)
    by_metric = {(point["metric"], point["x"]): point["value"] for point in bench.points}
    assert {x for _, x in by_metric} == {0, 1000}
    assert by_metric["disk", 1000] > by_metric["disk", 0]
    assert by_metric.keys() >= {(metric, 1000) for metric in growth._UNITS}
    assert {key for key in FIGURES if key.startswith("stored")} == bench.samples.keys()
    assert not list(tmp_path.iterdir()), "homes of gigabytes are removed at once"


async def test_a_multiplied_store_has_so_many_runs_with_ids_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "SEED", 100)
    await fill.fill(tmp_path / "home", 2330)
    async with serving(home=tmp_path / "home") as client:
        ids, token = [], ""
        while True:
            page = await client.list_page(token, 1000)
            ids += [run.id for run in page.runs]
            token = page.next_page_token
            if not token:
                break
        assert len(ids) == len(set(ids)) == 2330
        for run_id in (ids[0], ids[-1]):
            run = await client.show(run_id)
            assert run.id == run_id and len((await client.history(run_id)).events) == run.sequence
        assert (await client.start("pure", '{"n":1}', wait=True)).id not in ids


def test_peers_get_the_same_work():
    """Taskforge's own adapter: what the others are compared with."""
    with bare.server("echo") as port:
        rows = work("taskforge", Path(sys.executable), f"http://127.0.0.1:{port}/echo", 0.1, {})
    assert not {row: figures["failed"] for row, figures in rows.items() if "failed" in figures}
    assert rows.keys() >= TITLES.keys()
    assert rows["completed"]["asked"] == rows["completed"]["found"] > 0
    other = {
        row: {key: 2.0 * figures[key] for key in figures if isinstance(figures[key], float)}
        for row, figures in rows.items()
    }
    text = table("twice", rows, {**other, "fan": {"failed": "why"}, "accept": {}})
    assert "0.50 x as fast" in text and "2.00 x as fast" in text and "failed" in text


def test_the_command_line_tells_rows_and_refuses_what_it_does_not_know():
    def run(*words):
        return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)

    listed = run("benchmarks", "--list")
    assert listed.returncode == 0
    assert all(f"  {row.name} " in listed.stdout and row.what for row in (*ROWS, *GROWTH))
    unknown = run("benchmarks", "--only", "pure,speed")
    assert unknown.returncode == 2 and "there is no row speed" in unknown.stderr
    assert "invalid choice" in run("benchmarks.peer", "excel").stderr


def test_the_whole_of_make_bench_is_bounded():
    assert sum(row.seconds * row.repeats for row in ROWS) <= 600


def test_budgets_are_scaled_the_right_way():
    assert FIGURES["pure"].scaled(0.5) == 3375
    assert FIGURES["latency.p50"].scaled(0.5) == 5.6
    assert FIGURES["memory"].scaled(None) is None
    assert FIGURES["latency.p50"].met(1.4, 2.8) == 2
    assert all(figure.scale in {"", *bare.REFERENCE} for figure in FIGURES.values())


@pytest.mark.parametrize("name", ["dbos", "huey", "prefect", "restate", "temporal"])
def test_an_adapter_imports_nothing_of_taskforge(name):
    text = (ROOT / "benchmarks" / "peers" / f"{name}.py").read_text()
    assert "taskforge.v1" not in text and "harness" not in text and "ENGINE = " in text
