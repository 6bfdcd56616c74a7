"""`taskforgectl config`: the settings in force, of the running daemon or as the next one would have them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import click
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

from taskforgectl.checkup import checkup
from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_NOT_FOUND, EXIT_USAGE, CliError, NotRunningError, RemoteError
from taskforgectl.home import Home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import Item, echo, show_item, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import Column, show_table

__all__ = ["verbs"]

_LIMIT_S = 30.0


@click.command("list", cls=Verb)
@click.option("--changed", is_flag=True, help="Only what does not have its default.")
@click.pass_obj
def _list(settings: Settings, *, changed: bool) -> None:
    """Show every setting, its value in force and where that comes from.

    Asks the running daemon (role admin); while none runs, shows what the next one would have.
    """
    found = _settings(settings)
    shown = [one for one in found if one["source"] != "DEFAULT"] if changed else found
    empty = "Every setting has its default. `taskforgectl config list` shows them."
    show_list(settings, shown, key=_name, table=lambda items: show_table(settings, items, _COLUMNS, empty=empty))


@click.command("get", cls=Verb)
@click.argument("name", metavar="SECTION.KEY")
@click.pass_obj
def _get(settings: Settings, *, name: str) -> None:
    """Print the value of one setting: text as it is, anything else as JSON."""
    found = {_name(one): one for one in _settings(settings)}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else "`taskforgectl config list` shows all"
        raise CliError(f"there is no setting {name}", hint=hint, code=EXIT_NOT_FOUND)
    show_item(settings, found[name], key=_text, people=lambda one: echo(_text(one)))


@click.command("path", cls=Verb)
@click.pass_obj
def _path(settings: Settings) -> None:
    """Print the path of the configuration file, which need not exist."""
    path = _remote_file(settings) if settings.address else str(Home(settings.home).config)
    show_item(settings, {"path": path}, key="path", people=lambda one: echo(one["path"]))


@click.command("check", cls=Verb)
@click.pass_context
def _check(context: click.Context) -> None:
    """Check the configuration file and the variables, as the next start would read them. Exit code 1 on a fault."""
    settings: Settings = context.obj
    if settings.address:
        raise CliError("the file of a remote daemon cannot be checked from here", code=EXIT_USAGE)
    answer = checkup(settings.home, "--settings", limit_s=_LIMIT_S)
    problems: Sequence[Item] = answer["problems"]
    if settings.output == "table":
        for one in problems:
            click.echo(safe_line(one["message"]), err=True)
        if not problems:
            echo(f"{answer['file']} is valid")
    else:
        report = {"file": answer["file"], "valid": not problems, "problems": list(problems)}
        show_item(settings, report, key="valid", people=lambda _: None)
    context.exit(EXIT_FAILED if problems else 0)


def _settings(settings: Settings) -> list[dict[str, Any]]:
    """Answer what a running daemon has, or what one would have.

    Raises:
        CliError: the file has faults.
    """
    try:
        return [plain(one) for one in _ask(settings).settings]
    except NotRunningError:
        pass
    except RemoteError as error:
        if error.status != "UNAVAILABLE" or settings.address:
            raise
    answer = checkup(settings.home, "--settings", limit_s=_LIMIT_S)
    if answer["problems"]:
        raise CliError("\n".join(one["message"] for one in answer["problems"]), hint=f"mend {answer['file']}")
    return list(answer["settings"])


def _remote_file(settings: Settings) -> str:
    return _ask(settings).file


def _ask(settings: Settings) -> pb.GetConfigResponse:
    with Connection(settings) as connection:
        return connection.ask(connection.stub(SystemServiceStub).GetConfig, pb.GetConfigRequest())


def _name(item: Item) -> str:
    return f"{item['section']}.{item['key']}"


def _text(item: Item) -> str:
    value = item["value"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_COLUMNS = (
    Column("SETTING", _name),
    Column("VALUE", _text),
    Column("FROM", lambda item: item["variable"] if item["source"] == "VARIABLE" else item["source"].lower()),
    Column("WHAT IT IS", lambda item: item["help"]),
)

verbs = (_list, _get, _path, _check)
