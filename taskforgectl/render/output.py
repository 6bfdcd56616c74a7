"""Results in the format that `-o` asks for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from taskforgectl.options import Settings
from taskforgectl.render.pager import paged
from taskforgectl.render.safe import safe_json, safe_line, safe_lines

__all__ = [
    "Item",
    "Key",
    "echo",
    "echo_json_line",
    "echo_name",
    "echo_parts",
    "echo_text",
    "key_of",
    "note",
    "show_item",
    "show_list",
    "tell_deleted",
    "tell_interruption",
]

Item = Mapping[str, Any]
Key = str | Callable[[Item], Any]
"""What `-o name` prints: a field, or what a function makes of the item."""


def echo(text: str) -> None:
    """Write text for people to stdout."""
    click.echo(safe_lines(text))


def echo_parts(*parts: Any) -> None:
    """Write one line of what somebody else may have named: the parts that are not empty, each cleaned."""
    cleaned = (safe_line(str(part)) for part in parts if part not in (None, ""))
    click.echo("  ".join(cleaned))


def echo_text(text: str) -> None:
    """Write a text that was asked for by itself: exact for files and pipes, cleaned for terminals."""
    click.echo(safe_lines(text) if sys.stdout.isatty() else text, nl=not text.endswith("\n"))


def note(settings: Settings, text: str) -> None:
    """Say on stdout what was done, where the format is for people."""
    if settings.output == "table":
        echo(text)


def tell_deleted(settings: Settings, name: str) -> None:
    """Show that something is gone."""
    item = {"name": name, "deleted": True}
    show_item(settings, item, key="name", people=lambda _: echo_parts(name, "deleted"))


def tell_interruption(reason: str) -> None:
    """Say on stderr that the daemon is away and is looked for."""
    click.echo(f"reconnecting… ({safe_line(reason)})", err=True)


def show_list(settings: Settings, items: Sequence[Item], *, key: Key, table: Callable[[Sequence[Item]], None]) -> None:
    """Show rows: a JSON array, YAML, the bare keys, or what `table` makes of them."""
    with paged(settings.pager):
        if settings.output == "name":
            for item in items:
                echo_name(item, key)
        elif settings.output == "table":
            table(items)
        else:
            _dump(settings, list(items))


def show_item(settings: Settings, item: Item, *, key: Key, people: Callable[[Item], None]) -> None:
    """Show one thing: a JSON object, YAML, its bare key, or what `people` makes of it."""
    with paged(settings.pager):
        if settings.output == "name":
            echo_name(item, key)
        elif settings.output == "table":
            people(item)
        else:
            _dump(settings, dict(item))


def echo_json_line(item: Item) -> None:
    """Write one line of a JSON stream."""
    click.echo(safe_json(json.dumps(item, ensure_ascii=False, separators=(",", ":"))))


def key_of(item: Item, key: Key) -> str:
    """Answer the name or id of an item."""
    return str(item[key] if isinstance(key, str) else key(item))


def echo_name(item: Item, key: Key) -> None:
    """Write the name or id of an item."""
    click.echo(safe_line(key_of(item, key)))


def _dump(settings: Settings, value: Any) -> None:
    if settings.output == "yaml":
        click.echo(_yaml(value), nl=False)
    else:
        click.echo(safe_json(json.dumps(value, ensure_ascii=False, indent=2)))


def _yaml(value: Any) -> str:
    import yaml  # noqa: PLC0415  only this format needs it, and it takes a while to load

    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=1000)
    if text != safe_lines(text):  # the dumper escapes all of it or only what is not printable
        text = yaml.safe_dump(value, allow_unicode=False, sort_keys=False, width=1000)
    return text
