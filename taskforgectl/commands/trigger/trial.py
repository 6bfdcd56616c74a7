"""`taskforgectl trigger test`: a definition's triggers on an event, without a daemon.

The program that judges is the daemon's own, as a process: this one imports nothing of the daemon.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from taskforgectl.commands.trigger.payload import event_of
from taskforgectl.errors import EXIT_FAILED, EXIT_USAGE, CliError, Violation
from taskforgectl.files import read_text
from taskforgectl.kinds import FILE
from taskforgectl.options import Settings, Verb
from taskforgectl.program import ask_program
from taskforgectl.render.output import Item, show_item
from taskforgectl.render.safe import safe_line
from taskforgectl.render.trials import show_trial
from taskforgectl.times import parse_time

__all__ = ["verbs"]

_PROGRAM = (sys.executable, "-m", "taskforged.trial")
_LIMIT_S = 30.0


@click.command("test", cls=Verb)
@click.argument("file", metavar="FILE|-", type=FILE)
@click.option(
    "--event", "payload", metavar="PAYLOAD", help="JSON, a file with it, or -; also what `event show` printed."
)
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="One of `event.headers`.")
@click.option("--type", "kind", metavar="TYPE", default="", help="What `event.type` shall be.")
@click.option("--at", metavar="TIME|+SPAN", help="What the present shall be. Default: now.")
@click.option(
    "--namespaces",
    metavar="FILE|-",
    type=FILE,
    help="What `for_each` sees as `namespaces`: JSON as `namespace list -o json` prints it.",
)
@click.option("--trigger", metavar="ID", default="", help="Only this trigger.")
@click.pass_context
def _test(
    context: click.Context,
    *,
    file: str,
    payload: str | None,
    headers: Sequence[str],
    kind: str,
    at: str | None,
    namespaces: str | None,
    trigger: str,
) -> None:
    """Try a definition's triggers on an event, without a daemon. Starts nothing.

    Exit code 0 when a trigger would start runs, 1 when none would, 2 when the definition is not valid.
    """
    settings: Settings = context.obj
    if file == payload == "-":
        raise CliError("the definition and the event cannot both come from stdin", code=EXIT_USAGE)
    question = {
        "source": read_text(file),
        "event": event_of(payload, headers, kind),
        "at": "" if at is None else parse_time(at, "--at", dt.datetime.now(dt.UTC)).ToJsonString(),
        "trigger": trigger,
        "namespaces": [] if namespaces is None else _namespaces(read_text(namespaces)),
    }
    verdict = _ask(question)
    if not verdict.get("ok"):
        raise _invalid(settings, verdict, "<stdin>" if file == "-" else file)
    matched = [one for one in verdict["triggers"] if one["matched"]]
    _show(settings, verdict, matched)
    context.exit(0 if matched else EXIT_FAILED)


def _namespaces(text: str) -> list[Item]:
    """Answer namespaces with their labels.

    Raises:
        CliError: it is not a list of them.
    """
    try:
        found = json.loads(text)
        return [{"name": str(one["name"]), "labels": dict(one.get("labels") or {})} for one in found]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        hint = 'write it like [{"name": "acme", "labels": {"plan": "pro"}}]'
        raise CliError("--namespaces is no JSON list of namespaces", hint=hint, code=EXIT_USAGE) from None


def _show(settings: Settings, verdict: Item, matched: Sequence[Item]) -> None:
    """Show the verdict; `-o name` has the triggers that matched."""
    if settings.output == "name":
        for one in matched:
            click.echo(safe_line(str(one["trigger"])))
        return
    show_item(settings, verdict, key="workflow", people=lambda one: show_trial(settings, one))


def _invalid(settings: Settings, verdict: Item, place: str) -> CliError:
    """Tell the faults of a definition like those of `workflow validate`, and answer the error."""
    if settings.output in {"json", "yaml"}:
        show_item(settings, verdict, key="ok", people=lambda _: None)
    violations = [_violation(one) for one in verdict.get("violations") or ()]
    for violation in violations:
        click.echo(safe_line(violation.describe(place)), err=True)
    message = "the definition is not valid" if violations else verdict.get("message") or "it cannot be tried"
    return CliError(str(message), code=EXIT_USAGE)


def _violation(found: Item) -> Violation:
    line, column = found.get("line") or 0, found.get("column") or 0
    return Violation(str(found.get("path", "")), str(found.get("message", "")), int(line), int(column))


# --- the program that judges -----------------------------------------------------------------------------------------


def _ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the program's verdict.

    Raises:
        CliError: it is not there, takes too long, or answers something else.
    """
    try:
        data = json.dumps(question, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise CliError(f"the event has a value that JSON cannot carry: {error}", code=EXIT_USAGE) from None
    return ask_program(_PROGRAM, what="the trial", limit_s=_LIMIT_S, data=data)


verbs = (_test,)
