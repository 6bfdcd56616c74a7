"""Prints the language's JSON Schema: `python -m taskforged.language.schema > docs/taskforge.schema.json`."""

from __future__ import annotations

import json
import sys

from taskforged.language.editor import json_schema

__all__ = ["main"]


def main() -> None:
    """Print the schema."""
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
