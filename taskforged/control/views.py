"""Showing runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from taskforged.control.access import Access, Principal
from taskforged.control.workflows import Workflows
from taskforged.engine.model import WorkflowModel
from taskforged.engine.run import Run, evolve
from taskforged.engine.states import TERMINAL_RUNS, RunState
from taskforged.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    Violation,
)
from taskforged.host.feed import Feed
from taskforged.store.audit import about
from taskforged.store.changes import StoredEvent
from taskforged.store.events import EventStore
from taskforged.store.runs import LoadedRun, RunFilter, RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["WATCHES_MAX", "RunView", "RunViews", "WatchPortion"]

WATCHES_MAX = 10_000
"""Open watches: each costs a stream and some 30 KiB."""

_WATCH_PORTION = 100

_BOOKMARK_S = 15.0
"""An idle watch says that it is alive this often; a quarter of common proxies' idle limit."""


class RunView(NamedTuple):
    """A run to be shown. `run` is None in lists, where only the row is known."""

    row: RunRow | None
    run: Run | None
    namespace: str
    workflow: str
    model: WorkflowModel | None
    retried_by: str = ""


class WatchPortion(NamedTuple):
    """Events with the state of the run and, where they are about one, of the step after each."""

    events: Sequence[tuple[StoredEvent, RunState, str]]
    view: RunView


class RunViews:
    """Shows runs: one, a page, a history, live."""

    def __init__(self, *, store: Store, access: Access, workflows: Workflows, feed: Feed) -> None:
        self._runs = RunStore(store)
        self._events = EventStore(store)
        self._access = access
        self._workflows = workflows
        self._feed = feed
        self.gone: Callable[[str], str] = lambda _: ""

    # --- showing -----------------------------------------------------------------------------------------------------

    async def get(self, principal: Principal, run_id: str) -> RunView:
        """Answer a run with its steps.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        return await self._view(await self.load(principal, run_id))

    async def load(self, principal: Principal, run_id: str) -> LoadedRun:
        """Answer a run rebuilt from its history; raises NotFoundError as `get` does."""
        loaded = await self._runs.load_by_id(run_id)
        if loaded is None or not principal.sees(loaded.row.namespace_no):
            raise self._missing(run_id)
        about(namespace_no=loaded.row.namespace_no)
        return loaded

    async def row(self, principal: Principal, run_id: str) -> RunRow:
        """Answer a run's row; raises NotFoundError as `get` does."""
        row = await self._runs.by_id(run_id)
        if row is None or not principal.sees(row.namespace_no):
            raise self._missing(run_id)
        about(namespace_no=row.namespace_no)
        return row

    def _missing(self, run_id: str) -> NotFoundError:
        return NotFoundError(f"there is no run {run_id!r}{self.gone('runs')}", metadata={"run": run_id})

    async def _portion(self, row: RunRow, after: int, limit: int) -> list[StoredEvent]:
        """Answer up to `limit` events after sequence `after`: without a gap, though the run be pruned just now.

        Raises:
            NotFoundError: it was.
        """
        found = await self._runs.history(row.no, after, limit)
        if found[0].event.sequence != after + 1 if found else after < row.sequence:
            raise self._missing(row.id)
        return found

    async def _view(self, loaded: LoadedRun) -> RunView:
        row, run = loaded
        model = await self._workflows.model(row.workflow_no, row.version)
        retry = await self._runs.retry_of(row.no) if row.ended_at else None
        name = self._access.namespace_name(row.namespace_no)
        return RunView(row, run, name, run.workflow, model, retry[1] if retry else "")

    async def of_row(self, row: RunRow) -> RunView:
        """Answer a run without its steps."""
        name = await self._workflows.stored_name(row.workflow_no)
        return RunView(row, None, self._access.namespace_name(row.namespace_no), name, None)

    async def page(self, wanted: RunFilter, limit: int) -> Sequence[RunView]:
        """Answer up to `limit` runs, newest first."""
        rows = await self._runs.page(wanted, limit)
        names = {no: await self._workflows.stored_name(no) for no in {row.workflow_no for row in rows}}
        namespace = self._access.namespace_name(wanted.namespace_no)
        return [RunView(row, None, namespace, names[row.workflow_no], None) for row in rows]

    async def event_no(self, principal: Principal, event_id: str) -> int:
        """Answer the number of an event, for a filter.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        row = await self._events.by_id(event_id)
        if row is None or not principal.sees(row.namespace_no):
            raise NotFoundError(f"there is no event {event_id!r}", metadata={"event": event_id})
        return row.no

    async def history(
        self, principal: Principal, run_id: str, *, after: int, limit: int
    ) -> Sequence[tuple[StoredEvent, RunState, str]]:
        """Answer up to `limit` events after sequence `after`, with the states after each."""
        row = await self.row(principal, run_id)
        tracker = await self._tracker(row, after)
        return [tracker.track(stored) for stored in await self._portion(row, after, limit)]

    async def _tracker(self, row: RunRow, until: int) -> _Tracker:
        """Answer a run as it stood at sequence `until`."""
        tracker = _Tracker()
        while tracker.run.sequence < until:
            limit = min(1000, until - tracker.run.sequence)
            for stored in await self._portion(row, tracker.run.sequence, limit):
                tracker.track(stored)
        return tracker

    async def watch(self, principal: Principal, run_id: str, after: int) -> AsyncIterator[WatchPortion]:
        """Yield a run's history from after a sequence number until it has ended; empty portions are signs of life.

        Raises:
            InvalidArgumentError: the number lies in the future.
            UnavailableError: the daemon is stopping; ask again with the last number seen.
        """
        if self._feed.count() >= WATCHES_MAX:
            raise ResourceExhaustedError(f"{WATCHES_MAX:,} watches are open already", retry_after_s=5.0)
        row = await self.row(principal, run_id)
        if not 0 <= after <= row.sequence:
            message = f"must be between 0 and {row.sequence}, the newest sequence of the run"
            raise InvalidArgumentError(f"after_sequence {message}", violations=[Violation("after_sequence", message)])
        tracker = await self._tracker(row, after)
        name = self._access.namespace_name(row.namespace_no)
        with self._feed.watch(row.no) as watch:
            while True:
                portion = await self._portion(row, tracker.run.sequence, _WATCH_PORTION)
                events = [tracker.track(stored) for stored in portion]
                if events:
                    yield WatchPortion(events, RunView(None, tracker.run, name, tracker.run.workflow, None))
                if tracker.run.state in TERMINAL_RUNS:
                    return
                if len(portion) < _WATCH_PORTION and not await self._news(watch.wait_news(_BOOKMARK_S)):
                    yield WatchPortion((), RunView(None, tracker.run, name, tracker.run.workflow, None))

    async def _news(self, waiting: Awaitable[bool]) -> bool:
        news = await waiting
        if self._feed.closed:
            raise UnavailableError("the daemon is stopping; watch again from the last sequence seen")
        return news


class _Tracker:
    """Folds a history and tells the states after each event."""

    def __init__(self) -> None:
        self.run = Run()

    def track(self, stored: StoredEvent) -> tuple[StoredEvent, RunState, str]:
        evolve(self.run, stored.event)
        step = self.run.steps.get(stored.event.step)
        return stored, self.run.state, "" if step is None else step.state.value
