"""Finds open runs that nothing will ever move, and what should have happened long ago.

No such run can come into being by the rules of the engine: what a run waits for is written in the commit that makes it
wait. But databases are edited by hand, restored in parts and damaged by disks, and programs have bugs. So this looks
now and then, cheaply: of runs that wait for a slot only whether the line knows them, of running ones only those without
command, timer and sub-workflow, and of these the history once, until they move.

A run in transition looks the same for some milliseconds. So only what looks the same at two looks is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import structlog

from taskforged.clock import Clock
from taskforged.engine.run import Run
from taskforged.engine.states import RunState, StepState
from taskforged.host.loop import Loop
from taskforged.host.runner import Runner
from taskforged.jsonvalue import to_text
from taskforged.store.runs import RunStore
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["OVERDUE_S", "REASONS", "STUCK_MAX", "StuckDetector", "StuckRun"]

_log = structlog.get_logger(__name__)

STUCK_MAX = 1000
"""Runs that are reported at once; more would not help anybody."""

OVERDUE_S = 60.0
"""How long after its time something is overdue."""

REASONS = ("lost_work", "idle", "not_in_line", "no_timer")

_LOADS_MAX = 200
"""Histories that one look reads; the others have their turn at the next."""

_SLICE = 2000
_NAMESPACES = 100
_FAILURE_PAUSE_S = 10.0
_NOT_WAITING = "nobody has it in line for a slot"
_NO_TIMER = "its start has no timer"


class StuckRun(NamedTuple):
    """A run that nothing will move.

    Attributes:
        reason: `lost_work`, `idle`, `not_in_line` or `no_timer`: what tells series of the metric apart.
        diagnosis: what is missing, for people.
        since: when it was first seen so.
    """

    no: int
    run_id: str
    namespace_no: int
    workflow: str
    state: str
    sequence: int
    reason: str
    diagnosis: str
    since: int


class _Suspect(NamedTuple):
    """What looks stuck: the run may have moved on by the next look."""

    sequence: int
    reason: str
    since: int


class StuckDetector(Loop):
    """Looks every `pause_s` seconds; 0: never."""

    def __init__(self, *, store: Store, clock: Clock, runner: Runner, pause_s: float) -> None:
        super().__init__("stuck runs", self._look_for_ever)
        self._store = store
        self._runs = RunStore(store)
        self._clock = clock
        self._runner = runner
        self._pause_s = pause_s
        self._suspects: dict[int, _Suspect] = {}
        self._cleared: dict[int, int] = {}
        self._loads = 0
        self._gone: Collection[tuple[int, int]] = frozenset()
        self.found: Mapping[int, StuckRun] = {}
        self.overdue: Mapping[str, int] = {"timer": 0, "command": 0, "event": 0}
        self.looks = 0

    async def _look_for_ever(self) -> None:
        while True:
            pause_s = self._pause_s or 3600.0
            if self._pause_s:
                try:
                    await self.look()
                except Exception as error:  # noqa: BLE001  task boundary: a passing fault must not end it
                    _log.error("stuck.failed", exc_info=error)
                    pause_s = max(pause_s, _FAILURE_PAUSE_S)
            await self.sleep(pause_s)

    async def look(self) -> None:
        """Look once."""
        seen: dict[int, _Suspect] = {}
        self._loads = 0
        for state, judge in (
            (RunState.PENDING, self._pending),
            (RunState.SCHEDULED, self._scheduled),
            (RunState.RUNNING, self._running),
        ):
            place = (0, 0)
            namespaces = [row[0] for row in await self._store.rows("numbers_of_namespaces")]
            while place[0] < len(namespaces):
                numbers, place = await self._slice(namespaces, state, place)
                for no, sequence, reason in await judge(numbers):
                    if not self._runner.is_busy(no):
                        seen[no] = self._suspect(no, sequence, reason)
                await asyncio.sleep(0)
        await self._report(seen)
        await self._look_for_overdue()
        self.looks += 1

    async def _slice(
        self, namespaces: Sequence[int], state: RunState, place: tuple[int, int]
    ) -> tuple[list[int], tuple[int, int]]:
        """Answer the next open runs in a state, and where to go on: index of the namespace, number of the run."""

        def read(connection: Connection) -> tuple[list[int], tuple[int, int]]:
            found: list[int] = []
            index, after = place
            last = min(len(namespaces), index + _NAMESPACES)
            while index < last and len(found) < _SLICE:
                room = _SLICE - len(found)
                rows = connection.execute(
                    QUERIES["open_runs_in_state"], (namespaces[index], state.value, after, room)
                ).fetchall()
                found += [row[0] for row in rows]
                index, after = (index, found[-1]) if len(rows) == room else (index + 1, 0)
            return found, (index, after)

        return await self._store.read(read)

    def _suspect(self, no: int, sequence: int, reason: str) -> _Suspect:
        known = self._suspects.get(no)
        if known is not None and known.sequence == sequence:
            return known._replace(reason=reason)
        return _Suspect(sequence, reason, self._clock.now())

    # --- what is suspicious ------------------------------------------------------------------------------------------

    async def _pending(self, numbers: Sequence[int]) -> list[tuple[int, int, str]]:
        strange = [no for no in numbers if not self._runner.admission.knows(no)]
        if not strange:
            return []
        rows = await self._store.rows("sequences_of_runs", to_text(strange[:STUCK_MAX]))
        return [(no, sequence, "not_in_line") for no, sequence in rows]

    async def _scheduled(self, numbers: Sequence[int]) -> list[tuple[int, int, str]]:
        rows = await self._store.rows("runs_without_work", to_text(list(numbers))) if numbers else []
        return [(no, sequence, "no_timer") for no, sequence in rows]

    async def _running(self, numbers: Sequence[int]) -> list[tuple[int, int, str]]:
        rows = await self._store.rows("runs_without_work", to_text(list(numbers))) if numbers else []
        found: list[tuple[int, int, str]] = []
        for no, sequence in rows:
            if self._cleared.get(no) == sequence or self._runner.is_busy(no):
                continue
            known = self._suspects.get(no)
            if known is not None and known.sequence == sequence:  # what was read of it holds until it moves
                found.append((no, sequence, known.reason))
                continue
            if self._loads >= _LOADS_MAX:
                continue
            self._loads += 1
            loaded = await self._runs.load(no)
            if loaded is None or loaded.run.state is not RunState.RUNNING:
                continue
            reason = "lost_work" if loaded.run.commands or loaded.run.timers else "idle"
            if reason == "idle" and _waits_for_somebody(loaded.run):
                self._clear(no, sequence)
            else:
                found.append((no, sequence, reason))
        return found

    def _clear(self, no: int, sequence: int) -> None:
        if len(self._cleared) > 100 * STUCK_MAX:
            self._cleared.clear()
        self._cleared[no] = sequence

    # --- what is told ------------------------------------------------------------------------------------------------

    async def _report(self, seen: Mapping[int, _Suspect]) -> None:
        reported: dict[int, StuckRun] = {}
        for no, suspect in seen.items():
            before = self._suspects.get(no)
            if before is None or before.sequence != suspect.sequence or len(reported) >= STUCK_MAX:
                continue
            known = self.found.get(no)
            if known is None or known.sequence != suspect.sequence:
                known = await self._diagnose(no, suspect)
            if known is not None:
                reported[no] = known
        self._suspects = dict(seen)
        self.found = reported

    async def _diagnose(self, no: int, suspect: _Suspect) -> StuckRun | None:
        loaded = await self._runs.load(no)
        if loaded is None or loaded.row.sequence != suspect.sequence:
            return None
        row, run = loaded
        stuck = StuckRun(
            *(no, row.id, row.namespace_no, run.workflow, row.state, row.sequence, suspect.reason),
            diagnosis=_describe(run, suspect.reason),
            since=suspect.since,
        )
        _log.error(
            "run.stuck",
            run_id=row.id,
            workflow=run.workflow,
            correlation_id=run.correlation_id,
            reason=suspect.reason,
            diagnosis=stuck.diagnosis,
        )
        return stuck

    async def _look_for_overdue(self) -> None:
        limit, wall = (at - round(OVERDUE_S * 1_000_000) for at in (self._clock.now(), self._clock.wall()))
        gone = {
            (no, seq)
            for no, seq, epoch in await self._store.rows("claimed_commands")
            if epoch != self._runner.epoch or not self._runner.executes(no, seq)
        }
        overdue = {
            "timer": await self._store.value("overdue_timers", limit, wall),
            "command": len(gone & set(self._gone)),
            "event": await self._store.value("overdue_events", limit),
        }
        self._gone = gone
        for kind, count in overdue.items():
            if count and not self.overdue[kind]:
                _log.error("work.overdue", kind=kind, count=count)
        self.overdue = overdue


def _waits_for_somebody(run: Run) -> bool:
    """Whether a person or another program has the next move: a signal, an approval, a decision."""
    return any(
        step.state is StepState.NEEDS_DECISION
        or (
            step.state is StepState.WAITING
            and isinstance(step.input, dict)
            and not {"signal", "approval"}.isdisjoint(step.input)
        )
        for step in run.steps.values()
    )


def _describe(run: Run, reason: str) -> str:
    if reason == "not_in_line":
        return _NOT_WAITING
    if reason == "no_timer":
        return _NO_TIMER
    commands = [f"{key} (command {seq})" for seq, key in list(run.commands.items())[:5]]
    timers = [f"{key or 'the run'} (timer {seq})" for seq, key in list(run.timers.items())[:5]]
    if commands or timers:
        return f"its history waits for what is not in the database: {', '.join(commands + timers)}"
    return "no step is at work, and none waits for anything"
