"""`taskforgectl version`."""

from __future__ import annotations

import click

from taskforgectl import __version__
from taskforgectl.home import Home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import echo, show_item

__all__ = ["command"]


@click.command("version", cls=Verb)
@click.pass_obj
def command(settings: Settings) -> None:
    """Show this program's version, and that of the daemon on the home, if one runs."""
    known = None if settings.address else Home(settings.home).run_file()
    item = {"version": __version__, "daemon": known.version if known else None}
    show_item(settings, item, key="version", people=lambda one: _tell(one["version"], one["daemon"]))


def _tell(version: str, daemon: str | None) -> None:
    echo(f"taskforgectl {version}")
    if daemon:
        echo(f"taskforged {daemon}")
