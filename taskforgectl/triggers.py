"""Triggers by the names that people type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from taskforgectl.errors import EXIT_USAGE, CliError

__all__ = ["TriggerName", "full_name", "parse_trigger"]


class TriggerName(NamedTuple):
    """A trigger by its workflow and its id; an empty id means the only one that fits."""

    workflow: str
    trigger: str


def full_name(trigger: Mapping[str, Any]) -> str:
    """Answer the name by which commands take a trigger."""
    return f"{trigger['workflow']}/{trigger['trigger']}"


def parse_trigger(text: str) -> TriggerName:
    """Answer the trigger that `WORKFLOW/TRIGGER` names, or `WORKFLOW` where it has only one that fits.

    Raises:
        CliError: it is neither.
    """
    workflow, slash, trigger = text.partition("/")
    if not workflow or (slash and not trigger) or "/" in trigger:
        hint = "for example deploy/nightly; `taskforgectl trigger list -o name` shows them"
        raise CliError(f"{text!r} is not WORKFLOW/TRIGGER or WORKFLOW", hint=hint, code=EXIT_USAGE)
    return TriggerName(workflow, trigger)
