"""What came of a torture: for people, and the same for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskforgectl.render.safe import safe_line
from taskforgectl.torture.checks import Checked
from taskforgectl.torture.collect import World

__all__ = ["lines", "merge", "report_of"]

_SHOWN = 5
_GREATEST = frozenset({"slowest_s", "driver_mib"})
"""Figures of which rounds together have the greatest; all others are added up."""

_KEPT = 50
"""Violations of one invariant in a report; the evidence has all of them."""


def report_of(world: World, counts: Mapping[str, Any], checked: Sequence[Checked]) -> dict[str, Any]:
    """Answer the report of one round."""
    starts = counts["starts_s"]
    repeats = sum(len(calls) - 1 for calls in world.calls.values())
    due: Counter[str] = Counter()
    for trigger in world.triggers:
        for slot in trigger.slots:
            due[slot.outcome] += slot.times
    failure = counts["failure"]
    return {
        "ok": not failure and not any(one.violations for one in checked),
        "failure": failure,
        "versions": counts["versions"],
        "lasted_s": counts["lasted_s"],
        "driver_mib": counts["driver_mib"],
        "faults": counts["faults"],
        "starts": {"count": counts["boots"], "ready": len(starts), "slowest_s": max(starts, default=0.0)},
        "runs": dict(Counter(run.state for run in world.runs.values())),
        "workflows": dict(Counter(run.workflow for run in world.runs.values())),
        "events": dict(Counter(event.source for event in world.events.values())),
        "acknowledged": {
            what: len(world.ledger[what]) for what in ("started", "delivered", "published", "watched", "told")
        },
        "acts": counts["acts"],
        "effects": {"calls": counts["calls"], "keys": len(world.calls), "repeated": repeats, "moods": counts["moods"]},
        "lost_attempts": sum(e.kind == "step.attempt_lost" for run in world.runs.values() for e in run.history),
        "due_times": dict(due),
        "repeated_requests": counts["repeats"],
        "clock_steady": world.is_clock_steady,
        "checks": [
            {
                "name": one.name,
                "says": one.says,
                "looked_at": one.looked_at,
                "ok": not one.violations,
                "broken": len(one.violations),
                "violations": list(one.violations[:_KEPT]),
                "left_out": one.left_out,
            }
            for one in checked
        ],
    }


def merge(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Answer the report of all rounds together."""
    merged: dict[str, Any] = dict(reports[0])
    for report in reports[1:]:
        merged = {name: _pick(name, merged[name], report[name]) for name in merged}
    return merged


def _both(one: Any, other: Any) -> Any:
    if isinstance(one, bool):
        return one and other
    if isinstance(one, dict):
        return {name: _pick(name, one.get(name), other.get(name)) for name in {**one, **other}}
    if isinstance(one, list):
        return [_both(left, right) for left, right in zip(one, other, strict=True)] if _are_checks(one) else one + other
    if isinstance(one, str):
        return one or other
    return one + other


def _pick(name: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other) if name in _GREATEST else _both(one, other)


def _are_checks(value: Sequence[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report for people."""
    yield from _what_was_done(report)
    yield ""
    for check in report["checks"]:
        yield f"{_verdict(check):<9} {check['looked_at']:>9,}  {check['name']:<16} {check['says']}"
        if check["left_out"]:
            yield f"{'':<21}{check['left_out']}"
        for violation in check["violations"][:_SHOWN]:
            yield f"{'':<21}! {safe_line(violation)}"
        if check["broken"] > _SHOWN:
            yield f"{'':<21}! and {check['broken'] - _SHOWN:,} more"
    if report["failure"]:
        yield ""
        yield f"FAILED    {safe_line(report['failure'])}"


def _verdict(check: Mapping[str, Any]) -> str:
    if not check["ok"]:
        return "FAILED"
    if check["left_out"]:
        return "left out"
    return "ok" if check["looked_at"] else "not tried"


def _what_was_done(report: Mapping[str, Any]) -> Iterator[str]:
    starts, effects, told = report["starts"], report["effects"], report["acknowledged"]
    yield f"seed      {report['seed']}, {report['lasted_s']:,.0f} s on {report['disk']}"
    yield f"with      {', '.join(f'{name} {version}' for name, version in report['versions'].items())}"
    yield f"faults    {_listed(report['faults'])}"
    slowest = f"{starts['ready']} became ready, the slowest after {starts['slowest_s']:.2f} s"
    yield f"starts    {starts['count']}, of which {slowest}"
    yield f"runs      {_listed(report['runs'])}"
    yield f"events    {_listed(report['events'])}"
    answered = f"{told['started']:,} starts, {told['delivered']:,} webhooks, {told['published']:,} events"
    yield f"answers   {answered}; {report['repeated_requests']:,} requests repeated"
    yield f"acts      {_listed(report['acts'])}"
    made = f"{effects['calls']:,} calls with {effects['keys']:,} keys, {effects['repeated']:,} repeats"
    yield f"effects   {made}; {report['lost_attempts']:,} attempts cut; answered {_listed(effects['moods'])}"
    yield f"due times {_listed(report['due_times'])}"


def _listed(counts: Mapping[str, int]) -> str:
    by_size = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in by_size) or "none"
