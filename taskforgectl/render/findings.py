"""Findings of `doctor` for people: one line each, and how to mend it below."""

from __future__ import annotations

import click

from taskforgectl.options import Settings
from taskforgectl.render.output import Item
from taskforgectl.render.safe import safe_line

__all__ = ["show_findings"]

_MARKS = {"OK": ("ok", "green"), "WARNING": ("warning", "yellow"), "ERROR": ("ERROR", "red")}


def show_findings(settings: Settings, report: Item) -> None:
    """Show all findings, then how many there are."""
    width = max((len(one["check"]) for one in report["findings"]), default=0)
    for one in report["findings"]:
        mark, color = _MARKS.get(one["severity"], ("?", "yellow"))
        text = f"{mark:<7}"
        styled = click.style(text, fg=color) if settings.styled and settings.color else text
        click.echo(f"{styled}  {one['check']:<{width}}  {safe_line(one['message'])}")
        if one["remedy"]:
            click.echo(f"{'':<{width + 9}}  -> {safe_line(one['remedy'])}")
    click.echo(f"\n{_count(report['errors'], 'error')}, {_count(report['warnings'], 'warning')}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}" if number else f"no {what}s"
