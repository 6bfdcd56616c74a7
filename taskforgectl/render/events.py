"""Events, and what triggers made of them, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskforgectl.options import Settings
from taskforgectl.render.output import Item, echo
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import Column, age, few, filled, local_time, show_details, show_table, when

__all__ = ["clause_lines", "show_event", "show_events", "show_runs", "show_verdicts"]

_ITEMS_MAX = 50
_RUNS_MAX = 50
_VALUE_MAX = 500


_EVENT_COLUMNS = [
    Column("EVENT", lambda one: one["id"]),
    Column("TYPE", lambda one: one["type"]),
    Column("SOURCE", lambda one: one["source"]),
    Column("PATH", lambda one: one["path"]),
    Column("OUTCOME", lambda one: one["outcome"]),
    Column("RECEIVED", lambda one: when(one["create_time"])),
    Column("RUNS", lambda one: few(one["run_ids"])),
    Column("REASON", lambda one: one["reason"] or one["duplicate_of"]),
]

_RUN_COLUMNS = [
    Column("RUN", lambda one: one["id"]),
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("STATE", lambda one: one["state"]),
    Column("TOOK", lambda one: age(one["create_time"], one["end_time"])),
    Column("ERROR", lambda one: f"{one['error']['code']}: {one['error']['message']}" if one["error"] else ""),
]


def show_events(settings: Settings, events: Sequence[Item], *, empty: str) -> None:
    """Show events, one per line."""
    always = ("EVENT", "TYPE", "SOURCE", "OUTCOME", "RECEIVED", "RUNS")
    show_table(settings, events, filled(_EVENT_COLUMNS, events, *always), empty=empty)


def show_runs(settings: Settings, runs: Sequence[Item], event_id: str) -> None:
    """Show the runs that an event started, as many as a person reads."""
    if not runs:
        return
    echo("")
    show_table(settings, runs[:_RUNS_MAX], filled(_RUN_COLUMNS, runs, "RUN", "WORKFLOW", "STATE", "TOOK"), empty="")
    if len(runs) > _RUNS_MAX:
        echo(safe_line(f"… and {len(runs) - _RUNS_MAX} more: taskforgectl run list --event {event_id} --limit 0"))


def show_event(settings: Settings, event: Item) -> None:
    """Show an event with everything that is known of it."""
    show_details(settings, _details(event))
    show_verdicts(settings, event["verdicts"])


def _details(event: Item) -> list[tuple[str, Any]]:
    return [
        ("event", event["id"]),
        ("type", event["type"]),
        ("source", event["source"]),
        ("path", event["path"]),
        ("origin", event["origin"]),
        ("subject", event["subject"]),
        ("outcome", event["outcome"]),
        ("reason", event["reason"]),
        ("duplicate of", event["duplicate_of"]),
        ("verified by", event["verification"]),
        ("delivery", event["delivery_id"]),
        ("received", local_time(event["create_time"])),
        ("from", event["remote"]),
        ("published by", event["publisher_run_id"]),
        ("sent by", event["created_by"]),
        ("only for", event["addressee"]),
        ("replay of", event["replay_of"]),
        ("replayed by", "\n".join(event["replayed_by"])),
        ("runs", "\n".join(event["run_ids"])),
        ("query", "\n".join(f"{key}={value}" for key, value in (event["query"] or {}).items())),
        ("headers", "\n".join(f"{key}: {value}" for key, value in event["headers"].items())),
        ("body", _body_text(event)),
    ]


def _body_text(event: Item) -> str:
    body = event["body"]
    return body if isinstance(body, str) else f"{event['body_size']} bytes that are not text; -o json shows them"


# --- verdicts --------------------------------------------------------------------------------------------------------


def show_verdicts(settings: Settings, verdicts: Sequence[Item]) -> None:
    """Show what the triggers made of an event: a table, then the clauses that were false and the items."""
    if not verdicts:
        return
    echo("")
    show_table(settings, verdicts, filled(_VERDICT_COLUMNS, verdicts, "WORKFLOW", "TRIGGER", "MATCHED"), empty="")
    for verdict in verdicts:
        name = f"{verdict['workflow']}/{verdict['trigger']}"
        for line in clause_lines(name, verdict["clause"], verdict["values"]):
            echo(line)
        _show_items(settings, name, verdict["items"])


def clause_lines(name: str, clause: str, values: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the part of an `if` that was false and what it saw, one value per line; nothing without a clause."""
    if not clause:
        return
    yield ""
    yield safe_line(f"{name}: this part of its `if` was false")
    yield f"    {safe_line(clause)}"
    for reference, value in (values or {}).items():
        yield f"      {safe_line(f'{reference} = {_short(value)}')}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]}…"


def _show_items(settings: Settings, name: str, items: Sequence[Item]) -> None:
    if not items:
        return
    echo("")
    echo(safe_line(f"{name}: {len(items)} items of its `for_each`"))
    show_table(settings, items[:_ITEMS_MAX], filled(_ITEM_COLUMNS, items, "ITEM", "RUN"), empty="")
    if len(items) > _ITEMS_MAX:
        echo(f"… and {len(items) - _ITEMS_MAX} more: -o json shows them")


def _runs(verdict: Item) -> str:
    return few(verdict["run_ids"]) or str(verdict["run_id"])


_VERDICT_COLUMNS = [
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("TRIGGER", lambda one: one["trigger"]),
    Column("MATCHED", lambda one: one["matched"]),
    Column("RUNS", _runs),
    Column("REASON", lambda one: one["reason"]),
]

_ITEM_COLUMNS = [
    Column("ITEM", lambda one: one["index"]),
    Column("NAMESPACE", lambda one: one["namespace"]),
    Column("RUN", lambda one: one["run_id"]),
    Column("REASON", lambda one: one["reason"]),
]
