"""`taskforgectl dead`: runs that exhausted a retry budget, until somebody retries or discards them."""

from __future__ import annotations

import datetime as dt
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import click
from taskforge.v1 import dead_letter_pb2
from taskforge.v1 import dead_letter_service_pb2 as pb
from taskforge.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import EXIT_FAILED, EXIT_USAGE, CliError
from taskforgectl.kinds import RUN, WORKFLOW
from taskforgectl.lazy import Noun
from taskforgectl.options import Settings
from taskforgectl.paging import Listing, collect, listing_options
from taskforgectl.render.output import Item, echo, note, show_item, show_list
from taskforgectl.render.plain import plain
from taskforgectl.render.runs import STEP_COLUMNS, condensed, error_text
from taskforgectl.render.tables import Column, local_time, show_details, show_table, tabled, when
from taskforgectl.times import parse_time
from taskforgectl.watching import show_listing

__all__ = ["verbs"]

_STATES = [one.name.removeprefix("STATE_") for one in dead_letter_pb2.DeadLetter.State.DESCRIPTOR.values if one.number]
_ANY = "ANY"

F = TypeVar("F", bound=Callable[..., Any])


@click.group("dead", cls=Noun)
def command() -> None:
    """Show, retry and discard runs that ran out of retries."""


# --- show ------------------------------------------------------------------------------------------------------------


@command.command("list")
@click.option("--workflow", metavar="WORKFLOW", type=WORKFLOW, default="", help="Only runs of this workflow.")
@click.option("--step", metavar="STEP", default="", help="Only runs that died in this step.")
@click.option("--code", metavar="CODE", default="", help="Only runs that died of this error, for example http_status.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*_STATES, _ANY], case_sensitive=False),
    help="Only in this state. Default: OPEN.",
)
@listing_options
@click.pass_obj
def list_(settings: Settings, *, workflow: str, step: str, code: str, states: Sequence[str], listing: Listing) -> None:
    """List dead letters, newest first."""
    wanted = _STATES if _ANY in states else states

    request = pb.ListDeadLettersRequest(
        namespace=settings.namespace,
        workflow=workflow,
        step=step,
        error_code=code,
        states=[dead_letter_pb2.DeadLetter.State.Value(f"STATE_{state}") for state in wanted],
    )

    def read(connection: Connection) -> Sequence[Item]:
        return collect(connection, connection.stub(DeadLetterServiceStub).ListDeadLetters, request, listing.limit)

    empty = (
        "no dead letters fit"
        if workflow or step or code or states
        else "no open dead letters; --state any shows settled ones"
    )
    show_listing(settings, listing, read, key="run_id", table=tabled(settings, _COLUMNS, empty=empty))


def _step_of(letter: Item) -> str:
    return letter["error"]["step"] if letter["error"] else ""


_COLUMNS = [
    Column("RUN", lambda one: one["run_id"]),
    Column("WORKFLOW", lambda one: f"{one['workflow']} v{one['version']}"),
    Column("STATE", lambda one: one["state"]),
    Column("DIED", lambda one: when(one["create_time"])),
    Column("STEP", _step_of),
    Column("ATTEMPTS", lambda one: one["attempts"]),
    Column("ERROR", lambda one: error_text({**one["error"], "step": ""}) if one["error"] else ""),
]


@command.command("show")
@click.argument("run_id", metavar="RUN", type=RUN)
@click.pass_obj
def show(settings: Settings, run_id: str) -> None:
    """Show a dead letter with the steps of its run."""
    with Connection(settings) as connection:
        method = connection.stub(DeadLetterServiceStub).GetDeadLetter
        answer = connection.ask(method, pb.GetDeadLetterRequest(run_id=run_id))
    item = {**plain(answer.dead_letter), "run": plain(answer.run)}
    show_item(settings, item, key="run_id", people=lambda one: _show_whole(settings, one))


def _show_whole(settings: Settings, letter: Item) -> None:
    pairs = [
        ("run", letter["run_id"]),
        ("workflow", f"{letter['workflow']} v{letter['version']}"),
        ("state", letter["state"]),
        ("died", local_time(letter["create_time"])),
        ("attempts", letter["attempts"]),
        ("error", error_text(letter["error"]) if letter["error"] else None),
        ("settled", " by ".join(filter(None, [local_time(letter["settle_time"]), letter["settled_by"]]))),
        ("reason", letter["reason"]),
        ("retried by", letter["retry_run_id"]),
    ]
    show_details(settings, pairs)
    steps = condensed(letter["run"]["steps"])
    if steps:
        echo("")
        show_table(settings, steps, STEP_COLUMNS, empty="")


# --- settle ----------------------------------------------------------------------------------------------------------


class _Selection(NamedTuple):
    """Which dead letters: those of some runs, or all that fit a filter."""

    run_ids: Sequence[str]
    filter: pb.DeadLetterFilter | None
    is_asked_for: bool
    dry_run: bool

    def fields(self, *, dry_run: bool) -> dict[str, Any]:
        """Answer the fields that both requests have in common."""
        return {"run_ids": self.run_ids, "filter": self.filter, "dry_run": dry_run}


def _selection_options(function: F) -> F:
    """Add what selects dead letters to a verb, which gets it as `selection`. Stands below all other options."""

    @click.argument("run_ids", metavar="[RUN]...", nargs=-1, type=RUN)
    @click.option("--all", "everything", is_flag=True, help="All open dead letters, or those that fit the filters.")
    @click.option(
        "--workflow", metavar="WORKFLOW", type=WORKFLOW, default="", help="With --all: only runs of this workflow."
    )
    @click.option("--step", metavar="STEP", default="", help="With --all: only runs that died in this step.")
    @click.option("--code", metavar="CODE", default="", help="With --all: only runs that died of this error.")
    @click.option("--before", metavar="TIME|-SPAN", help="With --all: only runs that died before, for example -2d.")
    @click.option("--dry-run", is_flag=True, help="Only say which it would be.")
    @click.option("--yes", is_flag=True, help="Do not ask, on a terminal, whether --all is meant.")
    @click.pass_context
    def wrapped(
        context: click.Context,
        /,
        *,
        run_ids: Sequence[str],
        everything: bool,
        workflow: str,
        step: str,
        code: str,
        before: str | None,
        dry_run: bool,
        yes: bool,
        **values: Any,
    ) -> Any:
        if bool(run_ids) == everything:
            raise CliError("give the runs, or --all", hint="`taskforgectl dead list` shows them", code=EXIT_USAGE)
        if not everything and (workflow or step or code or before):
            raise CliError("--workflow, --step, --code and --before go with --all", code=EXIT_USAGE)
        settings: Settings = context.obj
        fitting = pb.DeadLetterFilter(namespace=settings.namespace, workflow=workflow, step=step, error_code=code)
        # Always bounded: what is retried may die again while others are still to be retried, and must not come back.
        fitting.before.CopyFrom(parse_time(before or "+0s", "--before", dt.datetime.now(dt.UTC)))
        is_asked_for = everything and not yes and not dry_run and sys.stdin.isatty()
        selection = _Selection(run_ids, fitting if everything else None, is_asked_for, dry_run)
        return function(context, selection=selection, **values)

    return cast(F, functools.update_wrapper(wrapped, function, updated=()))


@command.command("retry")
@_selection_options
def retry(context: click.Context, *, selection: _Selection) -> None:
    """Retry the runs of dead letters. Exit code 1 when one could not be retried."""
    settings: Settings = context.obj

    def settle(connection: Connection, *, dry_run: bool) -> tuple[list[Item], bool]:
        request = pb.RetryDeadLettersRequest(**selection.fields(dry_run=dry_run))
        answer = connection.tell(connection.stub(DeadLetterServiceStub).RetryDeadLetters, request)
        return [plain(one) for one in answer.results], answer.more

    _settle(context, settings, selection, "retry", settle)


@command.command("discard")
@click.option("--reason", default="", help="Kept with the dead letters.")
@_selection_options
def discard(context: click.Context, *, selection: _Selection, reason: str) -> None:
    """Settle dead letters without doing anything. The runs and their history stay."""
    settings: Settings = context.obj

    def settle(connection: Connection, *, dry_run: bool) -> tuple[list[Item], bool]:
        request = pb.DiscardDeadLettersRequest(**selection.fields(dry_run=dry_run), reason=reason)
        answer = connection.tell(connection.stub(DeadLetterServiceStub).DiscardDeadLetters, request)
        return [plain(one) for one in answer.results], answer.more

    _settle(context, settings, selection, "discard", settle)


_Settle = Callable[..., tuple[list[Item], bool]]


def _settle(context: click.Context, settings: Settings, selection: _Selection, verb: str, settle: _Settle) -> None:
    """Settle what is selected, in portions, and show what became of each."""
    results: list[Item] = []
    with Connection(settings) as connection:
        if selection.is_asked_for:
            fitting, more = settle(connection, dry_run=True)
            if not fitting:
                note(settings, "no open dead letters fit")
                return
            count = f"more than {len(fitting)}" if more else f"{len(fitting)}"
            click.confirm(f"{verb} {count} dead letters?", abort=True, err=True)
        more = True
        while more:
            portion, more = settle(connection, dry_run=selection.dry_run)
            results += portion
            # A portion of which nothing was settled would come again, and so would a dry one.
            more = more and not selection.dry_run and any(not one["error"] for one in portion)
    show_list(settings, results, key="run_id", table=lambda rows: _show_results(settings, rows, verb, selection))
    if any(one["error"] for one in results):
        context.exit(EXIT_FAILED)


def _show_results(settings: Settings, rows: Sequence[Item], verb: str, selection: _Selection) -> None:
    done = f"would {verb}" if selection.dry_run else {"retry": "retried", "discard": "discarded"}[verb]
    columns = [
        Column("RUN", lambda one: one["run_id"]),
        Column("OUTCOME", lambda one: "failed" if one["error"] else done),
        Column("NEW RUN", lambda one: one.get("new_run_id", "")),
        Column("ERROR", lambda one: one["error"]),
    ]
    shown = [column for column in columns if column.title not in {"NEW RUN", "ERROR"} or any(map(column.cell, rows))]
    show_table(settings, rows, shown, empty="no open dead letters fit")


verbs = tuple(command.commands.values())
