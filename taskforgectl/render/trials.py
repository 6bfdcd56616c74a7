"""What `trigger test` found out, for people."""

from __future__ import annotations

import json

from taskforgectl.options import Settings
from taskforgectl.render.events import clause_lines
from taskforgectl.render.output import Item, echo
from taskforgectl.render.safe import safe_line
from taskforgectl.render.schedules import show_due_times
from taskforgectl.render.tables import Column, filled, show_table

__all__ = ["show_trial"]

_INPUTS_MAX = 50


def show_trial(settings: Settings, verdict: Item) -> None:
    """Show the triggers with their verdicts, then each one's clause, inputs and due times."""
    triggers = verdict["triggers"]
    matched = sum(1 for one in triggers if one["matched"])
    echo(safe_line(f"{verdict['workflow']}: {matched} of {len(triggers)} triggers would start runs"))
    if triggers:
        echo("")
        show_table(settings, triggers, filled(_COLUMNS, triggers, "TRIGGER", "KIND", "MATCHED"), empty="")
    for one in triggers:
        for line in clause_lines(str(one["trigger"]), one.get("clause") or "", one.get("values")):
            echo(line)
        _show_inputs(settings, one)
        if one.get("due_times"):
            echo("")
            echo(safe_line(f"{one['trigger']}: next due"))
            show_due_times(settings, one["due_times"], "", empty="")


def _show_inputs(settings: Settings, trigger: Item) -> None:
    inputs = trigger.get("inputs") or []
    if not inputs:
        return
    echo("")
    echo(safe_line(f"{trigger['trigger']}: runs that it would start"))
    show_table(settings, inputs[:_INPUTS_MAX], filled(_INPUT_COLUMNS, inputs, "INPUT"), empty="")
    if len(inputs) > _INPUTS_MAX:
        echo(f"… and {len(inputs) - _INPUTS_MAX} more: -o json shows them")


def _json(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


_COLUMNS = [
    Column("TRIGGER", lambda one: one["trigger"]),
    Column("KIND", lambda one: one.get("kind", "")),
    Column("MATCHED", lambda one: one["matched"]),
    Column("LISTENS", lambda one: one.get("detail", "")),
    Column("REASON", lambda one: one.get("reason", "")),
]

_INPUT_COLUMNS = [
    Column("NAMESPACE", lambda one: one.get("namespace", "")),
    Column("ITEM", lambda one: _json(one.get("item"))),
    Column("INPUT", lambda one: _json(one.get("input"))),
    Column("REASON", lambda one: one.get("reason", "")),
]
