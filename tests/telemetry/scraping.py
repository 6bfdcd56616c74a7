"""Scrapes a daemon and answers samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from switchboard import Board


@dataclass
class Scrape:
    """What one scrape said."""

    text: str
    families: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The value of the one series that has these labels, and perhaps others."""
        found = [one.value for one in self.samples.get(name, ()) if labels.items() <= one.labels.items()]
        assert len(found) == 1, f"{name} {labels}: {len(found)} series"
        return float(found[0])

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series that have these labels."""
        return sum(one.value for one in self.samples.get(name, ()) if labels.items() <= one.labels.items())


def parse(text: str) -> Scrape:
    """Parse what Prometheus would; it raises where Prometheus would refuse."""
    scrape = Scrape(text)
    for family in text_string_to_metric_families(text):
        scrape.families[family.name] = family
        for sample in family.samples:
            scrape.samples.setdefault(sample.name, []).append(sample)
    return scrape


async def fetch(board: Board, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """GET a page: status, content type, text."""
    async with board.http.get(f"{board.daemon.http}{path}", headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def scrape(board: Board) -> Scrape:
    """Scrape with the administrator's token."""
    status, _, text = await fetch(board, Authorization=f"Bearer {board.daemon.token}")
    assert status == 200, text
    return parse(text)
