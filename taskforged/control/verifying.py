"""Proving that a history is unbroken and that the engine decides the same again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskforged.control.access import Principal
from taskforged.control.views import RunViews
from taskforged.control.workflows import Workflows
from taskforged.engine.events import (
    HistoryEvent,
    IllegalEventError,
)
from taskforged.engine.machine import replay
from taskforged.engine.model import Json, WorkflowModel
from taskforged.engine.run import Run, evolve
from taskforged.jsonvalue import canonical
from taskforged.store.changes import GENESIS, StoredEvent, chain_hash
from taskforged.store.runs import RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["Verdict", "Verifier", "run_faults", "unreadable"]

_UNLIKE = (AttributeError, IllegalEventError, LookupError, TypeError, ValueError)
"""What the engine raises over bodies that it has not written."""


class Verdict(NamedTuple):
    """What a verification found."""

    events: int
    head_hash: bytes
    faults: Sequence[str]


class Verifier:
    """Verifies runs."""

    def __init__(self, *, store: Store, workflows: Workflows, views: RunViews) -> None:
        self._store = store
        self._runs = RunStore(store)
        self._workflows = workflows
        self._views = views

    # --- verifying ---------------------------------------------------------------------------------------------------

    async def verify(self, principal: Principal, run_id: str) -> Verdict:
        """Prove that the history is unbroken, that the engine decides the same again, that the projection agrees."""
        row = await self._views.row(principal, run_id)
        try:
            stored = await self._whole_history(row)
        except ValueError as error:
            return Verdict(0, GENESIS, [unreadable(error)])
        try:
            loaded = await self._runs.load(row.no)
        except _UNLIKE as error:
            return Verdict(len(stored), stored[-1].hash, [*_chain_faults(stored), _unlike(error)])
        event = None if loaded is None else loaded.run.event
        model = await self._workflows.model(row.workflow_no, row.version)
        now = await self._runs.by_id(row.id)
        steps = None
        if now is not None and now.sequence == row.sequence:
            steps = {r[0]: (r[1], r[2]) for r in await self._store.rows("steps_of_run", row.no)}
        faults = run_faults(row, stored, model=model, event=event, steps=steps)
        return Verdict(len(stored), stored[-1].hash if stored else GENESIS, faults)

    async def _whole_history(self, row: RunRow) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        while portion := await self._runs.history(row.no, len(found), min(1000, row.sequence - len(found)) or 1):
            found.extend(portion)
            if len(found) >= row.sequence:
                break
        return found


def run_faults(
    row: RunRow,
    stored: Sequence[StoredEvent],
    *,
    model: WorkflowModel,
    event: Json,
    steps: Mapping[str, tuple[str, int]] | None,
) -> list[str]:
    """Answer what does not hold of a run.

    Args:
        row: its projection.
        stored: its whole history.
        model: of its version.
        event: what its expressions see as `event`.
        steps: state and attempt by key, as the projection has them; None: they belong to another moment.
    """
    faults = _chain_faults(stored)
    try:
        faults.extend(_replay_faults(stored, model, event))
        faults.extend(_projection_faults(row, stored, steps))
    except _UNLIKE as error:
        faults.append(_unlike(error))
    return faults


def _unlike(error: Exception) -> str:
    return f"a recorded event is unlike any that the engine records: {error!r}"


def unreadable(error: ValueError) -> str:
    """Say that an event is of a kind that does not exist, or its body is no JSON."""
    return f"an event cannot be read, it was changed after it was recorded: {error}"


def _replay_faults(stored: Sequence[StoredEvent], model: WorkflowModel, event: Json) -> list[str]:
    recorded = [one.event for one in stored]
    try:
        again = replay(model, recorded, event=event)
    except IllegalEventError as error:
        return [f"the engine refuses a recorded fact: {error}"]
    for old, new in zip(recorded, again, strict=False):
        if not _same(old, new):
            return [f"at sequence {old.sequence} the engine decides {new.kind}, recorded is {old.kind}"]
    if len(recorded) != len(again):
        return [f"the engine gives {len(again)} events, recorded are {len(recorded)}"]
    return []


def _projection_faults(
    row: RunRow, stored: Sequence[StoredEvent], steps: Mapping[str, tuple[str, int]] | None
) -> list[str]:
    if not stored:
        return ["there is no history"]
    run = Run()
    for one in stored:
        evolve(run, one.event)
    faults = []
    if (run.state.value, run.sequence, stored[-1].hash) != (row.state, row.sequence, row.head_hash):
        faults.append(f"the run's row says {row.state} at {row.sequence}, its history {run.state} at {run.sequence}")
    if steps is not None:
        folded = {key: (step.state.value, step.attempt) for key, step in run.steps.items()}
        faults.extend(
            f"step {key}: {steps.get(key)} is stored, {folded.get(key)} follows from history"
            for key in sorted({*steps, *folded})
            if steps.get(key) != folded.get(key)
        )
    return faults


def _same(old: HistoryEvent, new: HistoryEvent) -> bool:
    """Compare as recorded: what came back from JSON with what has not been JSON yet."""
    head = (old.sequence, old.at, old.kind, old.step, old.attempt) == (
        new.sequence,
        new.at,
        new.kind,
        new.step,
        new.attempt,
    )
    return head and canonical(old.body) == canonical(new.body)


def _chain_faults(stored: Sequence[StoredEvent]) -> list[str]:
    previous, faults = GENESIS, []
    for expected, one in enumerate(stored, start=1):
        if one.event.sequence != expected:
            faults.append(f"sequence {expected} is missing")
            break
        if chain_hash(previous, one.event, one.body) != one.hash:
            faults.append(f"the hash of sequence {expected} does not fit: the event was changed after it was recorded")
        previous = one.hash
    return faults
