"""`taskforgectl workflow graph`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from taskforge.v1 import graph_pb2
from taskforge.v1 import workflow_service_pb2 as pb
from taskforge.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_USAGE, CliError, RemoteError
from taskforgectl.files import read_text
from taskforgectl.kinds import FILE, WORKFLOW
from taskforgectl.options import Settings, Verb
from taskforgectl.render.graph.dot import draw_dot
from taskforgectl.render.graph.mermaid import draw_mermaid
from taskforgectl.render.graph.model import Drawing, load
from taskforgectl.render.graph.svg import draw_svg
from taskforgectl.render.graph.text import draw_text
from taskforgectl.render.output import note, show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line

__all__ = ["verbs"]

_FORMATS: Mapping[str, Callable[[Drawing], Iterator[str]]] = {
    "text": draw_text,
    "mermaid": draw_mermaid,
    "dot": draw_dot,
    "svg": draw_svg,
}
_SUFFIXES: Mapping[str, str] = {
    "": "text",
    ".txt": "text",
    ".svg": "svg",
    ".dot": "dot",
    ".gv": "dot",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
}
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "title": {"bold": True},
    "id": {"bold": True},
    "kind": {"dim": True},
    "rail": {"fg": "cyan"},
    "note": {"fg": "yellow"},
}


@click.command("graph", cls=Verb)
@click.argument("name", metavar="[WORKFLOW]", required=False, type=WORKFLOW)
@click.option("-f", "--file", metavar="FILE|-", type=FILE, help="A definition that need not be applied.")
@click.option("--version", "number", type=click.IntRange(min=1), help="Draw this version. Default: the newest.")
@click.option("--format", "form", type=click.Choice(list(_FORMATS)), help="Default: text, or what --out ends with.")
@click.option("--out", metavar="FILE", type=FILE, help="Write to a file: .svg, .dot, .gv, .mmd, or text.")
@click.pass_obj
def graph(
    settings: Settings, *, name: str | None, file: str | None, number: int | None, form: str | None, out: str | None
) -> None:
    """Draw a workflow, or the definition in a file: what follows what, what branches, what is undone."""
    if bool(name) == bool(file):
        raise CliError("give the name of a workflow, or a file with -f", code=EXIT_USAGE)
    if file and number:
        raise CliError("--version goes with a name", code=EXIT_USAGE)
    form = form or _form_of(out)
    source = read_text(file) if file else ""
    request = pb.GetWorkflowGraphRequest(namespace=settings.namespace, name=name or "", number=number or 0)
    request.source = source
    item = plain(_ask(settings, request, file or ""))
    if out is None:
        show_item(settings, item, key="name", people=lambda one: _print(settings, load(one), form))
        return
    text = "\n".join(_FORMATS[form](load(item))) + "\n"
    Path(out).write_text(text, encoding="utf-8")
    note(settings, f"{safe_line(out)}  written")


def _ask(settings: Settings, request: pb.GetWorkflowGraphRequest, place: str) -> graph_pb2.Graph:
    """Answer the graph.

    Raises:
        RemoteError: there is none; the faults of a definition are told like those of `apply`.
    """
    with Connection(settings) as connection:
        try:
            return connection.ask(connection.stub(WorkflowServiceStub).GetWorkflowGraph, request).graph
        except RemoteError as error:
            if not error.violations or not place:
                raise
            for violation in error.violations:
                click.echo(safe_line(violation.describe("<stdin>" if place == "-" else place)), err=True)
            raise CliError("the definition is not valid", code=error.code) from error


def _form_of(out: str | None) -> str:
    """Answer the format that a file's name ends with.

    Raises:
        CliError: it ends with something that cannot be drawn.
    """
    suffix = Path(out or "").suffix.lower()
    if suffix not in _SUFFIXES:
        hint = "use .svg, .dot, .gv, .mmd or .txt, or say --format; `dot -Tpng` makes a PNG of a .dot"
        raise CliError(f"--out {out!r}: {suffix} files cannot be written", hint=hint, code=EXIT_USAGE)
    return _SUFFIXES[suffix]


def _print(settings: Settings, drawing: Drawing, form: str) -> None:
    """Write the drawing. The loader has cleaned its texts, and no other escape sequences than ours are left."""
    is_colored = form == "text" and settings.styled and settings.color and sys.stdout.isatty()
    lines = draw_text(drawing, _styled) if is_colored else _FORMATS[form](drawing)
    for line in lines:
        click.echo(line)


def _styled(text: str, part: str) -> str:
    return click.style(text, **_STYLES[part]) if text.strip() else text


verbs = (graph,)
