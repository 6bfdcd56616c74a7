"""Figures become a page and pictures, and the committed page is what the committed figures say."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks import plot, report
from benchmarks.figures import FIGURES
from benchmarks.results import Measured, Results

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    {"curve": "stored", "x": x, "metric": metric, "value": value, "unit": unit}
    for x, rate, lag in ((0, 3000.0, 1.0), (10_000, 2900.0, 1.5), (1_000_000, 2950.0, 90.0))
    for metric, value, unit in (("StartRun", rate, "steps/s"), ("one run & more", lag, "ms"))
]
MACHINE = {
    "at": "2026-01-02T03:04:05+00:00",
    "cpus": 2,
    "cpu": "a processor",
    "memory_gb": 8.0,
    "load_before": 0.1,
    "python": "3.11.2",
    "sqlite": "3.40.1",
    "packages": {"grpcio": "1.85.1", "aiohttp": "3.14.5"},
    "quick": False,
}


def test_the_page_is_what_the_committed_figures_say():
    text = report.PAGE.read_text()
    assert report.fill(text, report.load()) == text, "run `python -m benchmarks.report` and commit docs/benchmarks*"
    for name, picture in report.pictures(report.load()["growth"]).items():
        assert (report.DATA / f"{name}.svg").read_text() == picture


def test_a_picture_has_a_panel_for_each_unit_and_a_line_for_each_metric():
    root = ET.fromstring(plot.picture("a < b", "runs", POINTS))  # noqa: S314
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 2
    first, second = panels
    assert [len(panel.findall(f"{SVG}polyline")) for panel in panels] == [1, 1]
    assert len(first.findall(f"{SVG}circle")) == 3
    words = [text.text for text in second.iter(f"{SVG}text")]
    assert "ms (logarithmic)" in words and "one run & more" in words and {"0", "10k", "1M"} <= set(words)
    assert "(logarithmic)" not in first.find(f"{SVG}text").text


def test_a_picture_keeps_to_its_frame_and_higher_is_up():
    root = ET.fromstring(plot.picture("t", "x", POINTS))  # noqa: S314
    for panel in root.findall(f"{SVG}g"):
        for circle in panel.findall(f"{SVG}circle"):
            assert 0 <= float(circle.get("cx")) <= 420 and 0 <= float(circle.get("cy")) <= 230
    heights = [float(circle.get("cy")) for circle in root.findall(f"{SVG}g")[1].findall(f"{SVG}circle")]
    assert heights == sorted(heights, reverse=True)


def test_later_results_win_and_quick_ones_are_left_out(tmp_path):
    def file(name, value, *, quick=False, points=()):
        figures = {"pure": Measured("pure", [value], bare=9000.0, daemon_ms=0.9, client_ms=0.1, speed=0.5)}
        results = Results(machine={**MACHINE, "quick": quick}, figures=figures, points=list(points))
        results.bares, results.speeds = {"grpc": [2300.0]}, {"grpc": 0.5}
        return results.write(tmp_path / name)

    paths = [file("a.jsonl", 1000.0, points=POINTS), file("b.jsonl", 4000.0), file("c.jsonl", 7000.0, quick=True)]
    found = report.merge(paths, quick=False)
    assert found["rows"].figures["pure"].value == 4000
    assert found["growth"].points == POINTS, "a run of the rows does not take the curves away"
    assert report.merge(paths, quick=True)["rows"].figures["pure"].value == 7000
    text = report.fill(report.PAGE.read_text(), found)
    line = next(line for line in text.splitlines() if line.startswith(f"| {FIGURES['pure'].title} "))
    assert "4,000 steps/s" in line and "MISSED 0.59x" in line and ">= 3,375 | met 1.19x" in line
    assert "](benchmarks/stored.svg)" in text and "| StartRun, steps/s | 3,000 | 2,900 | 2,950 |" in text
    assert "2026-01-02: 2 cores (a processor)" in text and "0.50 of the reference" in text


def test_peers_stand_beside_taskforge(tmp_path):
    ours = {"light": {"per_s": 300.0}, "http": {"failed": "x"}, "completed": {"asked": 9, "found": 9}}
    theirs = {"light": {"per_s": 15.0}, "accepts": {"how": "by hand"}, "completed": {"asked": 1234, "found": 1234}}
    peers = [
        {"name": "taskforge", "beside": "dbos", "versions": {}, "rows": ours},
        {"name": "taskforge", "beside": "huey", "versions": {}, "rows": {"light": {"per_s": 500.0}}},
        {"name": "dbos", "versions": {"dbos": "3.4.0"}, "rows": theirs},
    ]
    found = report.merge([Results(machine=MACHINE, peers=peers).write(tmp_path / "p.jsonl")], quick=False)
    text = report.fill(report.PAGE.read_text(), {**report.load(), "peers": found["peers"]})
    assert "| runs of 3 light steps, 64 in flight | 400 runs/s (300 to 500) | 15.0 runs/s |" in text
    assert "dbos 3.4.0" in text and "by hand" in text and "1,234 of 1,234" in text


def test_a_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match="has no <!-- rows -->"):
        report.fill(report.PAGE.read_text().replace("<!-- rows -->", ""), report.load())
