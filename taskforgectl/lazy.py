"""Groups whose commands are imported when they are used, so that `--help` answers at once."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

from taskforgectl.options import Verb

__all__ = ["LazyGroup", "LazyNoun", "Noun", "PipeClosedError"]

_LIKENESS = 0.5
"""From how much likeness on a word is taken for another one, mistyped: `rnu` for `run`."""


class PipeClosedError(Exception):
    """The reader of stdout went away."""


class Noun(click.Group):
    """A group of verbs."""

    command_class = Verb


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line of help.

    Args:
        lazy: help by command name; the command is `command` of the module `taskforgectl.commands.<name>`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.overview = lazy

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a closed pipe is told from other failures, which click would mix with them.

        Raises:
            PipeClosedError: the reader of stdout went away.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosedError from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Answer the names in the order of the table, which is the order of use."""
        return list(self.overview)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in self.overview:
            return None
        command: click.Command = importlib.import_module(f"taskforgectl.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant.

        Raises:
            UsageError: there is none; the message names those that are like it.
        """
        name = args[0]
        if name in self.overview or ctx.resilient_parsing or name.startswith("-"):
            return super().resolve_command(ctx, args)
        like = difflib.get_close_matches(name, self.overview, cutoff=_LIKENESS)
        meant = f"; did you mean {' or '.join(map(repr, like))}?" if like else ""
        raise click.UsageError(f"there is no command {name!r}{meant}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview from the table; click's own would import every command for its help."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.overview.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Answer the commands that begin so, from the table, and the options."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  only shells need it

        fitting = [(name, text) for name, text in self.overview.items() if name.startswith(incomplete)]
        return [
            *(CompletionItem(name, help=text) for name, text in fitting),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


class LazyNoun(LazyGroup):
    """A group of verbs, of which only the one that is used is imported.

    Args:
        verbs: module and one line of help by verb; the module is `taskforgectl.commands.<module>`, and the command is
            among its `verbs`.
    """

    def __init__(self, name: str, *, verbs: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(name, lazy={verb: text for verb, (_, text) in verbs.items()}, **attributes)
        self._modules = {verb: f"taskforgectl.commands.{name}.{module}" for verb, (module, _) in verbs.items()}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb."""
        if cmd_name not in self._modules:
            return None
        known: Mapping[str | None, click.Command]
        known = {one.name: one for one in importlib.import_module(self._modules[cmd_name]).verbs}
        return known[cmd_name]
