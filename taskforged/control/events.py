"""Looking into the inbox, and why an event did or did not start runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskforged.control.access import Principal
from taskforged.control.workflows import Workflows
from taskforged.engine.model import Json
from taskforged.errors import NotFoundError
from taskforged.jsonvalue import load_stored, to_text
from taskforged.store.audit import about
from taskforged.store.events import EventFilter, EventRow, EventStore
from taskforged.store.runs import RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["Cause", "EventStory", "EventView", "Events", "runs_of_verdicts"]

_CAUSES_MAX = 100
_RUNS_MAX = 1_000


class EventView(NamedTuple):
    """An event to be shown."""

    row: EventRow
    run_ids: Sequence[str]
    publisher: str = ""
    replayed_by: Sequence[str] = ()


class Cause(NamedTuple):
    """One link in the chain that led to an event: the run that published it, and the event that started that run."""

    run_id: str
    workflow: str
    event_id: str
    event_type: str
    event_source: str


class EventStory(NamedTuple):
    """Why an event did what it did."""

    view: EventView
    summary: Sequence[str]
    causes: Sequence[Cause]
    runs: Sequence[RunRow]


class Events:
    """The events of all namespaces."""

    def __init__(self, store: Store, workflows: Workflows) -> None:
        self._store = store
        self._events = EventStore(store)
        self._runs = RunStore(store)
        self._workflows = workflows
        self.gone: Callable[[str], str] = lambda _: ""

    async def row(self, principal: Principal, event_id: str) -> EventRow:
        """Answer an event as it is stored.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        row = await self._events.by_id(event_id)
        if row is None or not principal.sees(row.namespace_no):
            raise NotFoundError(f"there is no event {event_id!r}{self.gone('events')}", metadata={"event": event_id})
        about(namespace_no=row.namespace_no)
        return row

    async def get(self, principal: Principal, event_id: str) -> EventView:
        """Answer an event with the runs that it started and its lineage.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        return await self.view(await self.row(principal, event_id))

    async def view(self, row: EventRow) -> EventView:
        """Answer an event to be shown."""
        publisher = await self._runs.id_of(row.run_no)
        replays = [one[0] for one in await self._store.rows("replays_of", row.id)]
        return EventView(row, runs_of_verdicts(row.verdicts), publisher, replays)

    async def page(self, wanted: EventFilter, limit: int) -> Sequence[EventView]:
        """Answer up to `limit` events without headers, query and body."""
        return [await self.summary(row) for row in await self._events.page(wanted, limit)]

    async def summary(self, row: EventRow) -> EventView:
        """Answer an event for a list."""
        return EventView(row, runs_of_verdicts(row.verdicts), await self._runs.id_of(row.run_no))

    async def explain(self, principal: Principal, event_id: str) -> EventStory:
        """Answer why an event did or did not start runs.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        view = await self.get(principal, event_id)
        causes = await self._causes(principal, view.row)
        runs = [await self._runs.by_id(one) for one in view.run_ids[:_RUNS_MAX]]
        visible = [one for one in runs if one is not None and principal.sees(one.namespace_no)]
        return EventStory(view, _summary(view, visible), causes, visible)

    async def _causes(self, principal: Principal, row: EventRow) -> list[Cause]:
        causes: list[Cause] = []
        run_no = row.run_no
        while run_no is not None and len(causes) < _CAUSES_MAX:
            found = await self._store.row("cause_of_run", run_no)
            if found is None or not principal.sees(found[6]):
                break
            run_id, workflow_no, event_id, kind, source, published_by, _, event_namespace_no, parent_no = found
            if event_id is not None and not principal.sees(event_namespace_no):
                event_id = kind = source = published_by = None  # another namespace's, and so is what led to it
            name = await self._workflows.stored_name(workflow_no)
            run_no = parent_no if event_id is None else published_by  # a sub-workflow was started by its parent
            causes.append(Cause(run_id, name, event_id or "", kind or "", source or ""))
        return causes


def runs_of_verdicts(verdicts: str) -> list[str]:
    """Answer the runs that are named in stored verdicts, which were written with them."""
    found: list[str] = []
    for verdict in load_stored(verdicts):
        items = verdict.get("items")
        found += [item["run_id"] for item in items or [verdict] if item["run_id"]]
    return found


def _summary(view: EventView, runs: Sequence[RunRow]) -> list[str]:
    row = view.row
    lines = [_outcome_sentence(view, {one.id: one.state for one in runs})]
    lines += [_verdict_sentence(verdict) for verdict in load_stored(row.verdicts)]
    if row.replay_of:
        lines.append(f"It replays {row.replay_of}.")
    if view.replayed_by:
        lines.append(f"It was replayed as {', '.join(view.replayed_by)}.")
    if row.outcome in _REPLAYABLE and not view.run_ids:
        lines.append(f"`taskforgectl event replay {row.id}` asks the triggers as they are now.")
    return lines


_REPLAYABLE = frozenset({"FILTERED", "UNMATCHED"})


def _outcome_sentence(view: EventView, states: Mapping[str, str]) -> str:
    row = view.row
    match row.outcome:
        case "ACCEPTED":
            runs = ", ".join(f"{one} ({states.get(one, 'not visible to you, or pruned')})" for one in view.run_ids[:10])
            more = f" and {len(view.run_ids) - 10} more" if len(view.run_ids) > 10 else ""
            return f"It started {_count(len(view.run_ids), 'run')}: {runs}{more}."
        case "PENDING":
            return "Its triggers have not been asked yet: they are as soon as there is room for what they start."
        case "UNMATCHED":
            return f"No trigger of its namespace asked for events of type {row.type!r} when it came."
        case "DUPLICATE":
            return f"The sender delivered it again; the first was {row.duplicate_of}, and this one had no effect."
        case "REJECTED":
            return f"It was refused and had no effect: {row.reason}."
        case "HANDSHAKE":
            return "It was the provider's test message: answered, and without effect."
        case _:
            count = len(load_stored(row.verdicts))
            return f"It started no run; {_count(count, 'trigger')} {'was' if count == 1 else 'were'} asked."


def _verdict_sentence(verdict: Mapping[str, Any]) -> str:
    name = f"{verdict['workflow']}/{verdict['trigger']} (version {verdict['version']})"
    if verdict["matched"]:
        failed = [item for item in verdict.get("items", ()) if not item["run_id"]]
        partly = f", {len(failed)} of its items could not be started: {failed[0]['reason']}" if failed else ""
        return f"{name} matched{partly}."
    values: Mapping[str, Json] = verdict.get("values", {})
    seen = "; ".join(f"{reference} was {to_text(value)}" for reference, value in values.items())
    return f"{name} did not match: {verdict['reason']}{f' ({seen})' if seen else ''}."


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
