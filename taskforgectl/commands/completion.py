"""`taskforgectl completion`: what makes a shell complete commands and names."""

from __future__ import annotations

from typing import cast

import click

from taskforgectl.lazy import LazyGroup
from taskforgectl.options import Verb
from taskforgectl.shells import SHELLS, script

__all__ = ["command"]


@click.command("completion", cls=Verb)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, names and ids in a shell: bash, zsh or fish.

    Let your shell execute it when it starts, for example by `source <(taskforgectl completion bash)` in ~/.bashrc.
    """
    click.echo(script(shell, cast(LazyGroup, context.find_root().command)), nl=False)
