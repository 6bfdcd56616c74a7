"""The global options. They may stand before the noun and after the verb; the later one wins."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.kinds import CONTEXT, FOLDER, NAMESPACE, Amount

if TYPE_CHECKING:
    from taskforgectl.contexts import Context

__all__ = ["LOCAL", "VARIABLES", "Settings", "Verb", "global_options"]

_COMMAND = re.compile(r"`taskforgectl (?!context |completion |version|--)")
"""The beginning of a command that works on a home."""

LOCAL = "local"
"""The context that is none: the daemon on the home."""

_TIMEOUT_S = 30.0
_HOME = "~/.taskforge"


VARIABLES: Mapping[str, str] = {
    "TASKFORGE_HOME": "data folder, as `--home`",
    "TASKFORGE_CONTEXT": "a known daemon, as `--context`",
    "TASKFORGE_ADDRESS": "where the daemon listens, as `--address`",
    "TASKFORGE_TOKEN": "credential, as `--token`",
    "TASKFORGE_NAMESPACE": "namespace to work in, as `--namespace`",
    "TASKFORGE_PAGER": "program that shows long output on a terminal; goes before `PAGER`; empty: none",
    "PAGER": "the same for all programs",
    "NO_COLOR": "no colours, as `--no-color`",
}
"""Variables that the program reads, and what they mean."""


class Settings:
    """What the global options and the environment say."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    def give(self, name: str, value: Any) -> None:
        """Take the value of an option."""
        self._given[name] = value

    def _text(self, name: str) -> str:
        return self._option(name) or _variable(name)

    def _option(self, name: str) -> str:
        return str(self._given.get(name) or "")

    @functools.cached_property
    def context(self) -> Context | None:
        """The context in force. What says where the daemon is goes together: options, variables, current context.

        Raises:
            CliError: there is none of this name, or two daemons are named at once.
        """
        from taskforgectl.contexts import ContextBook  # noqa: PLC0415  `--help` needs none

        book = ContextBook()
        name = _choose(self._option, "--{}".format)
        if name is None:
            name = _choose(_variable, _variable_name)
        if name is None:
            name = book.current()
        return book.get(name) if name not in {"", LOCAL} else None

    @property
    def home(self) -> Path:
        """The data folder, absolute."""
        kept = self.context.home if self.context else ""
        return Path(kept or self._text("home") or _HOME).expanduser().absolute()

    def command_line(self, arguments: str) -> str:
        """Answer a command for people that can be typed as it is: on the home of this call."""
        named = self._option("home")
        return f"taskforgectl --home {shlex.quote(named)} {arguments}" if named else f"taskforgectl {arguments}"

    def spell(self, text: str) -> str:
        """Answer a text whose commands in backticks can be typed as they are."""
        return _COMMAND.sub(lambda _: "`" + self.command_line(""), text) if self._option("home") else text

    @property
    def address(self) -> str:
        """Where the daemon listens. Empty: where its run file says."""
        return self.context.address if self.context else self._text("address")

    @property
    def token(self) -> str:
        """The credential. Empty: the one in the home."""
        return self._text("token").strip() or (self.context.token if self.context else "")

    @property
    def namespace(self) -> str:
        """The namespace that is worked in. Empty: the token's own, or `default`."""
        return self._text("namespace") or (self.context.namespace if self.context else "")

    @property
    def output(self) -> str:
        """`table`, `json`, `yaml` or `name`."""
        return str(self._given.get("output") or "table")

    @property
    def timeout_s(self) -> float:
        """How long one call may take."""
        given = self._given.get("timeout")
        return _TIMEOUT_S if given is None else float(given)

    @property
    def styled(self) -> bool:
        """Whether stdout is a terminal that can move its cursor."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def pager(self) -> str:
        """The program for long output; empty: none."""
        if self._given.get("no_pager") or not self.styled:
            return ""
        named = os.environ.get("TASKFORGE_PAGER")
        return os.environ.get("PAGER", "less") if named is None else named

    @property
    def color(self) -> bool:
        """Whether colours are wanted where there is a terminal (no-color.org)."""
        return not self._given.get("no_color") and not os.environ.get("NO_COLOR")


def _variable(name: str) -> str:
    # Not click's `envvar`: it would be read again at the verb and win over an option before the noun.
    return os.environ.get(_variable_name(name)) or ""


def _variable_name(name: str) -> str:
    return f"TASKFORGE_{name.upper()}"


def _choose(said: Callable[[str], str], spell: Callable[[str], str]) -> str | None:
    """Answer the context that is named at one place, empty where another daemon is named there, None: none is."""
    context = said("context")
    others = [name for name in ("address", "home") if said(name)]
    if context not in {"", LOCAL} and others:
        text = f"{spell('context')} and {spell(others[0])} name two daemons"
        raise CliError(text, hint="leave one of them out", code=EXIT_USAGE)
    return context or ("" if others else None)


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and value is not False:
        assert parameter.name is not None
        context.ensure_object(Settings).give(parameter.name, value)
    return value


def _option(*names: str, hidden: bool, **attributes: Any) -> click.Option:
    return click.Option(names, hidden=hidden, expose_value=False, callback=_take, **attributes)


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Answer the options, anew for each command that has them."""
    seconds = Amount(0.1, 86_400)
    formats = click.Choice(["table", "json", "yaml", "name"])
    return [
        _option(
            "--home", hidden=hidden, metavar="DIR", type=FOLDER, help=f"Data folder (TASKFORGE_HOME; default {_HOME})."
        ),
        _option(
            "--address",
            hidden=hidden,
            metavar="ADDR",
            help="Daemon at host:port or unix:/path (TASKFORGE_ADDRESS; default: the one on the home).",
        ),
        _option(
            "--context",
            hidden=hidden,
            metavar="NAME",
            type=CONTEXT,
            help="Known daemon (TASKFORGE_CONTEXT; default: that of `context use`, else the one on the home).",
        ),
        _option("--token", hidden=hidden, metavar="TOKEN", help="Credential (TASKFORGE_TOKEN; default: HOME/token)."),
        _option(
            "-n", "--namespace", hidden=hidden, metavar="NS", type=NAMESPACE, help="Namespace (TASKFORGE_NAMESPACE)."
        ),
        _option("-o", "--output", hidden=hidden, type=formats, help="Output format (default table)."),
        _option("--timeout", hidden=hidden, type=seconds, metavar="SECONDS", help="Limit of each call (default 30)."),
        _option("--no-color", hidden=hidden, is_flag=True, help="No colours (NO_COLOR)."),
        _option("--no-pager", hidden=hidden, is_flag=True, help="Never show long output in a pager."),
    ]


class Verb(click.Command):
    """A command that does something; takes the global options, too."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        own = {name for parameter in self.params for name in parameter.opts}
        for option in global_options(hidden=True):
            option.opts = [name for name in option.opts if name not in own]  # a verb may need a name for itself
            if option.opts:
                self.params.append(option)
        self.epilog = self.epilog or "Takes the global options as well: see `taskforgectl --help`."
