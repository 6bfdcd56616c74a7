"""`taskforgectl restore`: put a backup in the place of the database."""

from __future__ import annotations

import sys

import click

from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.home import local_home
from taskforgectl.kinds import FILE
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, show_item
from taskforgectl.rescue import key_sentence, rescue

__all__ = ["command"]


@click.command("restore", cls=Verb)
@click.argument("file", type=FILE)
@click.option("--yes", is_flag=True, help="Do not ask whether the database is to be replaced.")
@click.pass_obj
def command(settings: Settings, file: str, yes: bool) -> None:
    """Put a backup in the place of the database.

    FILE is a path, or `latest`. The daemon must be down. The backup is verified first, and the database that it
    replaces stays beside it under another name. Runs that were open when the backup was made go on from there.
    """
    database = local_home(settings, "restore").path / "taskforge.db"
    if database.exists() and not yes:
        if not sys.stdin.isatty():
            hint = "say --yes; the database that is there stays beside it under another name"
            raise CliError(f"{database} would be replaced", hint=hint, code=EXIT_USAGE)
        click.confirm(f"replace {database} by {file}?", abort=True, err=True)
    show_item(settings, rescue(settings, "restore", file), key="database", people=lambda one: _show(settings, one))


def _show(settings: Settings, found: Item) -> None:
    echo(f"restored    {found['file']} to {found['database']}")
    if found["replaced"]:
        echo(f"kept        {found['replaced']}, what was there before; delete it when all is well")
    echo(f"holds       {found['runs']:,} runs, {found['workflows']:,} workflows, {found['secrets']:,} secrets")
    echo(f"secrets     {key_sentence(found['key'])}")
    echo(f"\nNext: {settings.command_line('up')}")
