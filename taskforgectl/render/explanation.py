"""Why a run is where it is, for people."""

from __future__ import annotations

from collections.abc import Iterator

from taskforgectl.render.output import Item
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import local_time

__all__ = ["explanation_lines"]


def explanation_lines(explanation: Item) -> Iterator[str]:
    """Yield lines: the run, the sentence, then each reason with what belongs to it indented below."""
    yield f"{explanation['run_id']}  {explanation['state']}"
    if explanation["summary"]:
        yield safe_line(explanation["summary"])
    for reason in explanation["reasons"]:
        yield ""
        yield from _reason_lines(reason)


def _reason_lines(reason: Item) -> Iterator[str]:
    kind = str(reason["kind"] or "").lower().replace("_", " ")
    place = f" {reason['step']}" if reason["step"] else ""
    yield safe_line(f"{kind}{place}: {reason['message']}")
    for label, text in _facts(reason):
        if text:
            yield "    " + safe_line(f"{label} {text}")


def _facts(reason: Item) -> Iterator[tuple[str, str]]:
    yield "until", local_time(reason["until"])
    if reason["limit_name"]:
        yield "limit", f"{reason['limit_name']} = {reason['limit']}" if reason["limit"] else reason["limit_name"]
    if reason["position"]:
        yield "ahead", str(reason["position"])
    yield "held by", ", ".join(reason["holders"])
    yield "sub-workflow", reason["child_run_id"]
    yield "→", reason["hint"]
