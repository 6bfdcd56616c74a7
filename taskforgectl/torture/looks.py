"""Looks at the living daemon: is what was acknowledged there, has anything ended twice, does it go on?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from taskforge.v1 import event_pb2

from taskforgectl.errors import BROKEN
from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.load import NAMESPACES, Load
from taskforgectl.torture.wire import TERMINAL, RefusedError, Wire, state_name

__all__ = ["STUCK_S", "Looker"]

STUCK_S = 60.0
"""Without any progress for so long, something is stuck."""

_LOOK_S = 1.0
_LOOK_BACK = 2000
"""So many of the newest runs of a namespace are looked at after a restart, more while one is missing."""

_SHOWN = 5
_PENDING = [event_pb2.Event.OUTCOME_PENDING]
_SOURCES = ["engine", "internal", "cron", "webhook", "manual"]


class Looker:
    """Looks at the daemon from outside.

    Attributes:
        ended: state and sequence of each run that was seen to have ended.
    """

    def __init__(self, wire: Wire, load: Load, ledger: Ledger, calls: Callable[[], int]) -> None:
        self._wire = wire
        self._load = load
        self._ledger = ledger
        self._calls = calls
        self._stuck: set[str] = set()
        self.ended: dict[str, tuple[str, int]] = {}
        self.moved_at = ledger.now
        self._moved: tuple[int, int] = (0, 0)

    async def look_on(self) -> None:
        """Look at the counters again and again."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._glance()
            except RefusedError as refusal:
                if refusal.status not in BROKEN:
                    self._ledger.violation("refusals", f"counters: {refusal}")

    async def _glance(self) -> None:
        stats = await self._wire.once("GetStats")
        self._load.open_runs = stats.open_runs
        self.note_progress(stats.open_runs)
        for namespace in NAMESPACES:
            for one in (await self._wire.once("ListStuckRuns", namespace=namespace)).runs:
                if one.id not in self._stuck:
                    self._stuck.add(one.id)
                    self._ledger.violation("stuck", f"{one.id} ({one.workflow}): {one.diagnosis}")

    def note_progress(self, open_runs: int) -> None:
        """Remember when something last went on: a run ended, or an effect was asked for."""
        moved = (open_runs, self._calls())
        if moved != self._moved or not open_runs:
            self._moved, self.moved_at = moved, self._ledger.now

    @property
    def stands_still(self) -> bool:
        """Whether nothing has gone on for too long."""
        return self._ledger.now - self.moved_at > STUCK_S

    async def after_restart(self) -> None:
        """Check that what was acknowledged is there, and that what had ended is as it was."""
        missing = self._load.fresh_runs
        self._load.fresh_runs = set()
        for namespace in NAMESPACES:
            seen = 0
            async for run in self._wire.pages("ListRuns", "runs", namespace=namespace):
                missing.discard(run.id)
                self._note_end(run)
                seen += 1
                if not missing and seen >= _LOOK_BACK:
                    break
        for run_id in sorted(missing):
            self._ledger.violation("runs", f"{run_id} was acknowledged and is gone after a restart")
        await self._look_for_events()
        self._ledger.write("looked", lives=1)

    async def _look_for_events(self) -> None:
        fresh = self._load.fresh_events - {""}
        self._load.fresh_events = set()
        for event_id in sorted(fresh):
            try:
                await self._wire.insist("GetEvent", event_id=event_id)
            except RefusedError as refusal:
                if refusal.status == "NOT_FOUND":
                    self._ledger.violation("publications", f"{event_id} was acknowledged and is gone after a restart")

    async def note_ends(self) -> None:
        """Look at all runs once."""
        for namespace in NAMESPACES:
            async for run in self._wire.pages("ListRuns", "runs", namespace=namespace):
                self._note_end(run)

    def _note_end(self, run: Any) -> None:
        state = state_name(run)
        known = self.ended.get(run.id)
        if known is not None and known != (state, run.sequence):
            self._ledger.violation(
                "final", f"{run.id} had ended as {known[0]} at {known[1]}, and is {state} at {run.sequence}"
            )
        if state in TERMINAL and known is None:
            self.ended[run.id] = (state, run.sequence)
            self._ledger.write("ended", run=run.id, state=state, sequence=run.sequence)

    async def is_quiet(self) -> bool:
        """Answer whether nothing is open any more: no run, no event, no slot."""
        stats = await self._wire.insist("GetStats")
        self._load.open_runs = stats.open_runs
        self.note_progress(stats.open_runs)
        if stats.open_runs or stats.pending_events:
            return False
        for namespace in NAMESPACES:
            wanted = {"namespace": namespace, "outcomes": _PENDING, "sources": _SOURCES}
            if (await self._wire.insist("ListEvents", **wanted)).events:
                return False
        return True

    async def wait_for_feed(self) -> None:
        """Publish a last event, and wait until the watcher of events has come to it."""
        event = (await self._wire.insist("PublishEvent", type="torture.last", request_id="last")).event
        deadline = self._ledger.now + STUCK_S
        while self._load.last_told != event.id:
            if self._ledger.now > deadline:
                self._ledger.violation("feed", f"the watcher never came to the last event, {event.id}")
                return
            await asyncio.sleep(0.1)

    async def check_slots(self) -> None:
        """Check that a daemon without open runs holds no slot."""
        stats = await self._wire.insist("GetStats")
        held = {"running steps": stats.running_steps, "queued steps": stats.queued_steps}
        held["timers"] = stats.pending_timers
        for namespace in NAMESPACES:
            one = (await self._wire.insist("GetNamespace", name=namespace)).namespace
            held[f"running steps of {namespace}"] = one.running_steps
            held[f"running runs of {namespace}"] = one.running_runs
            held[f"pending runs of {namespace}"] = one.pending_runs
        queue = (await self._wire.insist("GetQueue", name="narrow")).queue
        held |= {"running steps of narrow": queue.running, "waiting steps of narrow": queue.waiting}
        self._ledger.write("slots", held=held)
        for what, count in held.items():
            if count:
                self._ledger.violation("slots", f"nothing is open, and the daemon counts {count} {what}")

    async def tell_open(self) -> Sequence[str]:
        """Answer for some open runs what they wait for, with the end of their histories, while the daemon answers."""
        told: list[str] = []
        with contextlib.suppress(RefusedError, TimeoutError):
            async with asyncio.timeout(STUCK_S):
                async for run in self._load.open_now():
                    if len(told) >= _SHOWN:
                        break
                    told.append(await self._tell(run))
        return told

    async def _tell(self, run: Any) -> str:
        explanation = (await self._wire.once("ExplainRun", run_id=run.id)).explanation
        history = [one async for one in self._wire.pages("GetRunHistory", "events", run_id=run.id)][-8:]
        events = "; ".join(f"{one.sequence} {one.kind} {one.step}" for one in history)
        return f"{run.id} {run.workflow} {state_name(run)}: {explanation.summary} [{events}]"
