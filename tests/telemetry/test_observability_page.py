"""The page, the dashboard and the alert rules speak of metrics that exist, and of all of them."""

from __future__ import annotations

import json
import re

import yaml
from harness import ROOT

from taskforged.telemetry.families import FAMILIES

from .scraping import scrape

FOLDER = ROOT / "docs" / "observability"
NAME = re.compile(r"\b(?:taskforge|process)_[a-z_]+\b")


def base(name: str) -> str:
    """The name of the metric that a series belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def expressions() -> dict[str, str]:
    """Every expression of the dashboard and of the alert rules, by what it is for."""
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    found = {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]:
        found |= {f"alert {rule['alert']}": rule["expr"] for rule in group["rules"]}
    return found


async def test_a_real_scrape_has_what_is_spoken_of(own):
    scraped = await scrape(own)
    known = set(scraped.families) | {f"{name}_total" for name in scraped.families} | set(scraped.samples)
    for place, text in expressions().items():
        names = NAME.findall(text)
        assert names, place
        for name in names:
            assert name in known or base(name) in known, f"{place}: {name}"


async def test_every_metric_of_a_real_scrape_is_in_the_table_and_the_other_way_round(own):
    page = (ROOT / "docs" / "observability.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `taskforge_")}
    scraped = {name for name in (await scrape(own)).families if name.startswith("taskforge_")}
    names = {one.full_name.removesuffix("_total") for one in FAMILIES}
    assert scraped == names
    assert set(rows) == {one.full_name for one in FAMILIES}
    for one in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        assert rows[one.full_name] == f"| `{one.full_name}` | {one.kind} | {labels} | {one.help} |"


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert():
    spoken = {base(name) for text in expressions().values() for name in NAME.findall(text)}
    assert {one.full_name for one in FAMILIES} <= spoken


def test_panels_do_not_lie_upon_each_other():
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
