"""What arguments and options name, so that shells can complete it. The daemon is asked only when a shell asks."""

from __future__ import annotations

import math
from typing import Any

import click

from taskforgectl.errors import CliError

__all__ = [
    "CONTEXT",
    "EVENT",
    "FILE",
    "FOLDER",
    "NAMESPACE",
    "QUEUE",
    "RUN",
    "SECRET",
    "STEP",
    "TOKEN",
    "TRIGGER",
    "WORKFLOW",
    "Amount",
    "ContextName",
    "FileName",
    "Named",
]

_COMPLETE_S = 0.3
"""Nobody waits longer for a Tab."""


class Named(click.ParamType[str]):
    """The name or id of something that the daemon keeps. Whether it exists is the daemon's to say.

    Args:
        kind: of the thing, as `taskforgectl.names` knows it.
    """

    name = "text"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Answer what begins so; nothing when the daemon is away or says nothing soon."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  only shells need it

        from taskforgectl.names import names  # noqa: PLC0415  loads gRPC

        settings: Any = ctx.find_root().obj  # the global options as they stand on the line
        settings.give("timeout", _COMPLETE_S)
        try:
            found = names(settings, self.kind, incomplete, ctx.params)
        except Exception:  # noqa: BLE001  a shell that completes is no place for errors
            return []
        return [CompletionItem(one.name, help=one.note or None) for one in found]


class ContextName(click.ParamType[str]):
    """The name of a context, which this machine knows by itself."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Answer what begins so."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415

        from taskforgectl.contexts import ContextBook  # noqa: PLC0415

        try:
            known = ContextBook().all()
        except CliError:
            return []
        return [
            CompletionItem(one.name, help=one.address or one.home) for one in known if one.name.startswith(incomplete)
        ]


class Amount(click.FloatRange):
    """A number within bounds; `nan`, which is neither below nor above any, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Answer the number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class FileName(click.ParamType[str]):
    """The name of a file or a folder, or `-` for stdin, or `@FILE`; opened by whoever takes it."""

    name = "file"

    def __init__(self, *, folder: bool = False) -> None:
        self._item = "dir" if folder else "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Leave it to the shell."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415

        return [CompletionItem(incomplete, type=self._item)]


CONTEXT = ContextName()
WORKFLOW = Named("workflow")
RUN = Named("run")
STEP = Named("step")
EVENT = Named("event")
TRIGGER = Named("trigger")
QUEUE = Named("queue")
NAMESPACE = Named("namespace")
SECRET = Named("secret")
TOKEN = Named("token")
FILE = FileName()
FOLDER = FileName(folder=True)
