"""A run and its steps for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from taskforgectl.options import Settings
from taskforgectl.render.output import Item, echo
from taskforgectl.render.tables import Column, age, local_time, show_details, show_table

__all__ = ["STEP_COLUMNS", "condensed", "error_text", "note_of", "show_whole"]

_QUIET = frozenset({"SUCCEEDED", "SKIPPED", "CANCELLED", "QUEUED"})
"""States in which the step of a fan-out's item is not worth a line."""

_ITEM_LINES_MAX = 20
_JSON_LINES_MAX = 60
_JSON_TEXT_MAX = 2000


def show_whole(settings: Settings, run: Item) -> None:
    """Show a run with everything that is known of it."""
    show_details(settings, _details(run))
    lines = condensed(run["steps"])
    if lines:
        echo("")
        show_table(settings, lines, STEP_COLUMNS, empty="")
    hidden = max(run["step_count"], len(run["steps"])) - len(lines)
    if hidden:
        echo(f"… and {hidden} more steps: taskforgectl run steps {run['id']} --limit 0")


def _details(run: Item) -> list[tuple[str, Any]]:
    error = run["error"]
    return [
        ("run", run["id"]),
        ("workflow", f"{run['workflow']} v{run['version']}"),
        ("state", run["state"]),
        ("paused by", _joined(run["paused_by"], run["pause_reason"], between=": ")),
        ("trigger", _joined(run["trigger"], run["event_id"])),
        ("queue", _joined(run["queue"], f"priority {run['priority']}", between=", ") if run["queue"] else ""),
        ("concurrency", run["concurrency_group"]),
        ("parent", _joined(run["parent_run_id"], f"(step {run['parent_step']})") if run["parent_run_id"] else ""),
        ("retry of", run["retry_of"]),
        ("rerun of", run["rerun_of"]),
        ("retried by", run["retried_by"]),
        ("created", local_time(run["create_time"])),
        ("starts", local_time(run["run_time"]) if run["state"] == "SCHEDULED" else ""),
        ("took", age(run["create_time"], run["end_time"])),
        ("cancel requested", run["cancel_requested"] or None),
        ("error", error_text(error) if error else None),
        ("input", _pretty(run["input"])),
        ("output", _pretty(run["output"])),
    ]


def _joined(*parts: str, between: str = " ") -> str:
    return between.join(part for part in parts if part)


def error_text(error: Item) -> str:
    """Answer an error on one line."""
    place = f" (step {error['step']})" if error["step"] else ""
    return f"{error['code']}: {error['message']}{place}"


def _pretty(value: Any) -> str:
    """Answer a value as JSON, as much of it as a person reads."""
    if value in (None, {}):
        return ""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    if text.count("\n") < _JSON_LINES_MAX:
        return text
    text = json.dumps(value, ensure_ascii=False)
    return (
        text if len(text) <= _JSON_TEXT_MAX else f"{text[:_JSON_TEXT_MAX]}… ({len(text):,} characters; -o json has all)"
    )


def condensed(steps: Sequence[Item]) -> list[Item]:
    """Answer the steps without those of fan-outs' items that need no attention, and a bounded number of the others."""
    return list(_condensed(steps))


def _condensed(steps: Sequence[Item]) -> Iterator[Item]:
    shown: dict[str, int] = {}
    for step in steps:
        fan_out, bracket, _ = step["key"].partition("[")
        if bracket:
            if step["state"] in _QUIET or shown.get(fan_out, 0) >= _ITEM_LINES_MAX:
                continue
            shown[fan_out] = shown.get(fan_out, 0) + 1
        yield step


def note_of(step: Item) -> str:
    """Answer what is to be said of a step besides its state: an error, what it waits for, how far it is."""
    parts = [_items(step), _waiting(step), "taken over" if step["pinned"] else ""]
    if step["state"] == "NEEDS_DECISION":
        parts.append("its effect may have happened; decide with `run resolve`")
    if step["child_run_id"] and step["state"] != "WAITING":
        parts.append(step["child_run_id"])
    if step["error"]:
        parts.append(error_text({**step["error"], "step": ""}))
    if step["state"] == "RETRYING" and step["next_attempt_time"]:
        parts.append(f"again at {local_time(step['next_attempt_time'])}")
    return "; ".join(part for part in parts if part)


def _items(step: Item) -> str:
    if not step["item_count"]:
        return ""
    failed = f", {step['items_failed']} failed" if step["items_failed"] else ""
    return f"{step['items_ended']}/{step['item_count']} items{failed}"


def _waiting(step: Item) -> str:
    if step["state"] != "WAITING":
        return ""
    until = f"until {local_time(step['next_attempt_time'])}" if step["next_attempt_time"] else ""
    subject = {
        "signal": f"for signal {step['signal']}",
        "approval": _joined("for approval", step["message"], between=": "),
        "workflow": f"for {step['child_run_id'] or 'a sub-workflow'}",
    }.get(step["waiting_for"], "")
    return _joined(subject, until, between=", ")


STEP_COLUMNS = [
    Column("STEP", lambda one: one["key"]),
    Column("KIND", lambda one: one["kind"]),
    Column("STATE", lambda one: one["state"]),
    Column("ATTEMPT", lambda one: f"{one['attempt']}/{one['max_attempts']}" if one["max_attempts"] else ""),
    Column("TOOK", lambda one: age(one["start_time"], one["end_time"])),
    Column("NOTE", note_of),
]
