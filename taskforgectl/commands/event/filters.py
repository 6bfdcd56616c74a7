"""Which events: the options that `list` and `replay --all` have in common."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import click
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import event_pb2

from taskforgectl.times import parse_time

__all__ = ["Selection", "filter_options"]

_OUTCOMES = [one.name.removeprefix("OUTCOME_") for one in event_pb2.Event.Outcome.DESCRIPTOR.values if one.number]
_SOURCES = ["webhook", "cron", "manual", "internal", "engine"]

F = TypeVar("F", bound=Callable[..., Any])


class Selection(NamedTuple):
    """What events have to have in common."""

    outcomes: Sequence[str]
    path: str
    type: str
    sources: Sequence[str]
    since: str | None
    until: str | None

    def fields(self) -> dict[str, Any]:
        """Answer the fields that requests have for it.

        Raises:
            CliError: a time is none.
        """
        now = dt.datetime.now(dt.UTC)
        return {
            "outcomes": [event_pb2.Event.Outcome.Value(f"OUTCOME_{one}") for one in self.outcomes],
            "path": self.path,
            "type": self.type,
            "sources": self.sources,
            "since": _stamp(self.since, "--since", now),
            "until": _stamp(self.until, "--until", now),
        }


def _stamp(text: str | None, option: str, now: dt.datetime) -> Timestamp | None:
    return None if text is None else parse_time(text, option, now)


def filter_options(function: F) -> F:
    """Add the filters to a verb, which gets them as `selection`."""

    @click.option(
        "--outcome",
        "outcomes",
        multiple=True,
        type=click.Choice(_OUTCOMES, case_sensitive=False),
        help="Only events with this outcome.",
    )
    @click.option("--path", default="", help="Only events of this webhook path.")
    @click.option("--type", "kind", metavar="GLOB", default="", help="Only events of this type; * is any text.")
    @click.option(
        "--source",
        "sources",
        multiple=True,
        type=click.Choice(_SOURCES),
        help="Only events from there. Default: all but engine, unless --type is given.",
    )
    @click.option("--since", metavar="TIME|-SPAN", help="Only events received then or later, for example -7d.")
    @click.option("--until", metavar="TIME|-SPAN", help="Only events received earlier.")
    @functools.wraps(function)  # with the options that stand below
    def wrapped(
        *args: Any,
        outcomes: Sequence[str],
        path: str,
        kind: str,
        sources: Sequence[str],
        since: str | None,
        until: str | None,
        **values: Any,
    ) -> Any:
        selection = Selection(outcomes, path, kind, sources, since, until)
        return function(*args, selection=selection, **values)

    return cast(F, wrapped)
