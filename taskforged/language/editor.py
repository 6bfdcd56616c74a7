"""The definition language as JSON Schema, for editors.

It is made from the tables that the parser uses. It cannot say everything that the compiler checks (references, types
of expressions), but it never refuses what the compiler accepts.
"""

from __future__ import annotations

from typing import Any

from taskforged.language.spec import WORKFLOW

__all__ = ["json_schema"]


def json_schema() -> dict[str, Any]:
    """Answer the schema of a whole definition."""
    defs: dict[str, Any] = {}
    top = WORKFLOW.schema(defs)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Taskforge workflow definition",
        **top,
        "$defs": dict(sorted(defs.items())),
    }
