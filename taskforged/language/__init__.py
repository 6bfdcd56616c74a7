"""The definition language: YAML text -> `Definition`. Nothing here knows of databases, networks or clocks.

Reading order: `loader` (text -> nodes with positions), `expressions` and `templates` (CEL and `${{ … }}`), `shape` (how
tables are read), `spec` (the tables), `compile` (the whole).
"""

from taskforged.language.compile import compile_definition
from taskforged.language.definition import (
    Definition,
    InputContract,
    ManualTrigger,
    Trigger,
    Verify,
    WebhookTrigger,
)
from taskforged.language.editor import json_schema
from taskforged.language.expressions import PROFILE

__all__ = [
    "PROFILE",
    "Definition",
    "InputContract",
    "ManualTrigger",
    "Trigger",
    "Verify",
    "WebhookTrigger",
    "compile_definition",
    "json_schema",
]
