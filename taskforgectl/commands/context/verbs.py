"""`taskforgectl context use`, `list`, `show`, `delete`. Tokens are never shown."""

from __future__ import annotations

from typing import Any

import click

from taskforgectl.contexts import Context, ContextBook
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.kinds import CONTEXT
from taskforgectl.options import LOCAL, Settings, Verb
from taskforgectl.render.output import Item, note, show_item, show_list
from taskforgectl.render.tables import Column, show_details, show_table

__all__ = ["item_of", "show", "verbs"]


@click.command("use", cls=Verb)
@click.argument("name", required=False, type=CONTEXT)
@click.option("--none", "is_none", is_flag=True, help=f"None: the daemon on the home. The same as NAME `{LOCAL}`.")
@click.pass_obj
def _use(settings: Settings, *, name: str | None, is_none: bool) -> None:
    """Work with a daemon from now on.

    What options and variables say still goes before: --context, --address and --home, then TASKFORGE_CONTEXT,
    TASKFORGE_ADDRESS and TASKFORGE_HOME.
    """
    if is_none == (name is not None):
        raise CliError("give a NAME or --none", code=EXIT_USAGE)
    book = ContextBook()
    if is_none or name in {None, LOCAL}:
        book.use("")
        note(settings, "no context: commands work with the daemon on the home")
        return
    assert name is not None
    book.get(name)
    book.use(name)
    note(settings, f"{name}  is used from now on")


@click.command("list", cls=Verb)
@click.pass_obj
def _list(settings: Settings) -> None:
    """List the daemons that are known."""
    book = ContextBook()
    current = book.current()
    columns = [
        Column("CONTEXT", lambda one: one["name"]),
        Column("DAEMON", lambda one: one["address"] or one["home"]),
        Column("NAMESPACE", lambda one: one["namespace"]),
        Column("PROVEN BY", lambda one: one["proof"]),
        Column("TOKEN", lambda one: one["has_token"]),
        Column("CURRENT", lambda one: "*" if one["is_current"] else ""),
    ]
    empty = "no contexts yet; make one with `taskforgectl context add NAME --address HOST:PORT`"
    items = [item_of(one, current) for one in book.all()]
    show_list(settings, items, key="name", table=lambda rows: show_table(settings, rows, columns, empty=empty))


@click.command("show", cls=Verb)
@click.argument("name", required=False, type=CONTEXT)
@click.pass_obj
def _show(settings: Settings, *, name: str | None) -> None:
    """Show one of them; without NAME the one in force."""
    book = ContextBook()
    chosen = book.get(name) if name else settings.context
    if chosen is None:
        raise CliError("no context is in force", hint="name one, or choose it with `taskforgectl context use NAME`")
    show(settings, item_of(chosen, book.current()))


@click.command("delete", cls=Verb)
@click.argument("name", type=CONTEXT)
@click.pass_obj
def _delete(settings: Settings, *, name: str) -> None:
    """Forget a daemon. Its token stays valid there."""
    ContextBook().delete(name)
    note(settings, f"{name}  deleted")


def item_of(context: Context, current: str) -> dict[str, Any]:
    """Answer what may be shown."""
    tls = context.tls
    return {
        "name": context.name,
        "address": context.address or None,
        "home": context.home or None,
        "namespace": context.namespace or None,
        "has_token": bool(context.token),
        "proof": _proof(context),
        "fingerprint": tls.fingerprint or None if tls else None,
        "ca": tls.ca or None if tls else None,
        "cert": tls.cert or None if tls else None,
        "key": tls.key or None if tls else None,
        "is_current": context.name == current,
    }


def _proof(context: Context) -> str:
    if context.tls is None:
        return "home" if context.home else "nothing (plain)"
    if context.tls.fingerprint:
        return "fingerprint"
    return "CA" if context.tls.ca else "the system's CAs"


def show(settings: Settings, item: Item) -> None:
    """Show it in the format asked for."""
    labels = ("address", "home", "namespace", "fingerprint", "ca", "cert", "key")
    pairs = [
        ("context", item["name"]),
        *((label, item[label]) for label in labels),
        ("proven by", item["proof"]),
        ("token", "kept" if item["has_token"] else "none; give one with --token or TASKFORGE_TOKEN"),
        ("current", item["is_current"]),
    ]
    show_item(settings, item, key="name", people=lambda _: show_details(settings, pairs))


verbs = (_use, _list, _show, _delete)
