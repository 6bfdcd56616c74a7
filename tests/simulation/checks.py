"""What must hold in every world: after each commit, in the memory of a daemon at rest, and on its disk in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from simulation.daemon import ROOT, Boot
from simulation.definitions import CRON_S
from simulation.outside import expect
from taskforged.engine.states import RUN_TRANSITIONS, STEP_TRANSITIONS, Kind, RunState, StepState

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["CELLS", "after_commit", "at_the_end", "coverage", "in_memory", "transitions"]

_SECOND = 1_000_000


def after_commit(world: World) -> None:
    """No limit of runs is exceeded, and no end is taken back."""
    disk = world.disk
    if world.limits.runs:
        running = disk.value(
            "SELECT count(*) FROM runs WHERE ended_at IS NULL AND started_at IS NOT NULL AND parent_no IS NULL"
        )
        expect(running <= world.limits.runs, f"{running} runs are running, {world.limits.runs} may")
    for group, limit, running in disk.rows(
        "SELECT group_key, min(group_limit), count(*) FROM runs WHERE ended_at IS NULL AND started_at IS NOT NULL"
        " AND group_key <> '' AND group_limit > 0 GROUP BY group_key"
    ):
        widest = max(limit, _widest(world, group))
        expect(running <= widest, f"{running} runs of group {group!r} are running, {widest} may")
    for no, state, sequence in disk.rows("SELECT no, state, sequence FROM runs WHERE ended_at IS NOT NULL"):
        known = world.ended.setdefault(no, (state, sequence))
        expect(known == (state, sequence), f"run {no} had ended as {known} and is now {state} at {sequence}")
    expect(len(world.ended) <= disk.value("SELECT count(*) FROM runs"), "a run is gone")


def _widest(world: World, group: str) -> int:
    """Several workflows may share a group with different limits: each run brings its own."""
    return world.disk.value(
        "SELECT max(group_limit) FROM runs WHERE group_key = ? AND ended_at IS NULL AND started_at IS NOT NULL", group
    )


async def in_memory(world: World, boot: Boot) -> None:
    """A daemon at rest holds nothing: no slot, no line, no entry; and its own verification finds no fault."""
    runner = boot.host.runner
    expect(runner.dispatcher.running == 0, f"slots were not given back: {runner.dispatcher.held_by()}")
    expect(runner.dispatcher.lanes() == [], f"lanes are left: {runner.dispatcher.lanes()}")
    expect(runner.admission.running() == 0, f"{runner.admission.running()} run slots were not given back")
    expect(runner.admission.pending() == 0, f"{runner.admission.pending()} runs wait for a run slot")
    expect(runner.open_entries() == 0, f"{runner.open_entries()} runs are in memory")
    for (run_id,) in world.disk.rows("SELECT id FROM runs ORDER BY no"):
        verdict = await boot.controls.verifier.verify(ROOT, run_id)
        expect(not verdict.faults, f"{run_id}: {verdict.faults}")


def at_the_end(world: World) -> None:
    """Nothing accepted is lost, nothing is left over, nothing has happened twice."""
    disk = world.disk
    faults = disk.rows("PRAGMA integrity_check")
    expect(faults == [("ok",)], f"the database is damaged: {faults}")
    expect(not disk.rows("PRAGMA foreign_key_check"), "a row refers to one that is not there")
    for table in ("commands", "timers", "children"):
        left = disk.rows(f"SELECT * FROM {table}")
        expect(not left, f"{table} are left: {left}")
    open_runs = disk.rows("SELECT id, state FROM runs WHERE ended_at IS NULL")
    expect(not open_runs, f"runs have not ended: {open_runs}")
    expect(not disk.rows("SELECT id FROM events WHERE outcome = 'PENDING'"), "an event was never asked about")
    _check_acknowledged(world)
    _check_histories(world)
    _check_reactions(world)
    _check_ledger(world)


def _check_acknowledged(world: World) -> None:
    runs = {run_id for (run_id,) in world.disk.rows("SELECT id FROM runs")}
    events = {event_id for (event_id,) in world.disk.rows("SELECT id FROM events")}
    requests = dict(world.disk.rows("SELECT request_id, id FROM runs WHERE request_id IS NOT NULL"))
    for key, answer in world.acked.items():
        kind, _, name = key.partition(" ")
        if kind == "run":
            expect(name in runs, f"run {name} was acknowledged and is lost")
        elif kind == "request":
            expect(requests.get(name) == answer, f"request {name} was answered with {answer}: {requests.get(name)}")
        elif kind in ("event", "publication", "delivery"):
            event = name if kind == "event" else answer[0] if kind == "delivery" else answer
            expect(event in events, f"event {event} was acknowledged and is lost")


def _check_histories(world: World) -> None:
    """Each run and each step ends once, and the run's end comes last."""
    ends = ("run.succeeded", "run.failed", "run.dead", "run.cancelled")
    for no, state in world.disk.rows("SELECT no, state FROM runs"):
        history = world.disk.rows("SELECT sequence, kind, step, attempt FROM history WHERE run_no = ? ORDER BY 1", no)
        expect([row[0] for row in history] == list(range(1, len(history) + 1)), f"run {no} has a gap in its history")
        kinds = [row[1] for row in history]
        expect(sum(kind in ends for kind in kinds) == 1, f"run {no} has ended {kinds}")
        expect(kinds[-1] == f"run.{state.lower()}", f"run {no} is {state} after {kinds[-1]}")
        done = Counter((row[2], row[3]) for row in history if row[1] == "step.completed")
        expect(all(count == 1 for count in done.values()), f"an attempt of run {no} was completed twice: {done}")
    open_letters = world.disk.rows(
        "SELECT r.no FROM runs r LEFT JOIN dead_letters d ON d.run_no = r.no WHERE r.state = 'DEAD' AND d.run_no IS NULL"
    )
    expect(not open_letters, f"runs that died without a dead letter: {open_letters}")
    twice = world.disk.rows("SELECT retry_of_no FROM runs WHERE retry_of_no IS NOT NULL GROUP BY 1 HAVING count(*) > 1")
    expect(not twice, f"runs that were retried twice: {twice}")


def _check_reactions(world: World) -> None:
    """Each event has started each trigger's run once, and the end of each run is an event once."""
    twice = world.disk.rows(
        "SELECT event_no, workflow_no, trigger, count(*) FROM runs WHERE event_no IS NOT NULL"
        " AND retry_of_no IS NULL AND rerun_of_no IS NULL AND parent_no IS NULL GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    expect(not twice, f"events that have started a run twice: {twice}")
    started = {row[0] for row in world.disk.rows("SELECT event_no FROM runs WHERE event_no IS NOT NULL")}
    accepted = {row[0] for row in world.disk.rows("SELECT no FROM events WHERE outcome = 'ACCEPTED'")}
    expect(started <= accepted, f"runs were started by events that nobody accepted: {started - accepted}")
    ends: list[tuple[Any, ...]] = world.disk.rows(
        "SELECT run_no, count(*) FROM events WHERE source = 'engine' AND type IN"
        " ('run.succeeded', 'run.failed', 'run.dead', 'run.cancelled') GROUP BY run_no"
    )
    runs = {no for (no,) in world.disk.rows("SELECT no FROM runs")}
    expect(dict(ends) == dict.fromkeys(runs, 1), "the end of a run is not exactly one event")


def _check_ledger(world: World) -> None:
    """Each due time between the first and the last stands in the ledger once."""
    for (trigger_no,) in world.disk.rows("SELECT no FROM triggers WHERE kind = 'cron'"):
        slots = world.disk.rows(
            "SELECT due_at, last_at, count, outcome, event_no FROM schedule_slots"
            " WHERE trigger_no = ? AND backfill = 0 ORDER BY due_at",
            trigger_no,
        )
        step = CRON_S * _SECOND
        for due_at, last_at, count, outcome, event_no in slots:
            expect(due_at % step == 0 and last_at - due_at == (count - 1) * step, f"a slot that is none: {due_at}")
            expect((outcome == "FIRED") <= (event_no is not None), f"slot {due_at} fired without an event")
        for before, after in zip(slots, slots[1:], strict=False):
            expect(after[0] - before[1] == step, f"between {before} and {after} a due time is missing or there twice")


def transitions(history: Iterable[tuple[str, str]]) -> Counter[str]:
    """Answer which cells of the engine's tables a history, as kinds with their steps, has gone through."""
    seen: Counter[str] = Counter()
    run, steps = RunState.NEW, dict[str, StepState]()
    for value, step in history:
        kind = Kind(value)
        if kind in RUN_TRANSITIONS[run] and not step:
            seen[f"run {run} -> {kind}"] += 1
            run = RUN_TRANSITIONS[run][kind]
        elif step:
            before = steps.get(step, StepState.NEW)
            seen[f"step {before} -> {kind}"] += 1
            steps[step] = STEP_TRANSITIONS[before][kind]
    return seen


CELLS = [
    *(f"run {state} -> {kind}" for state, row in RUN_TRANSITIONS.items() for kind in row),
    *(f"step {state} -> {kind}" for state, row in STEP_TRANSITIONS.items() for kind in row),
]
"""All that the tables allow."""


def coverage(world: World) -> Counter[str]:
    """Answer what a world has gone through."""
    seen: Counter[str] = Counter()
    for (no,) in world.disk.rows("SELECT no FROM runs"):
        seen += transitions(world.disk.rows("SELECT kind, step FROM history WHERE run_no = ? ORDER BY sequence", no))
    for what, sql in _COUNTED.items():
        for value, count in world.disk.rows(sql):
            seen[f"{what} {value}"] += count
    return seen


_COUNTED = {
    "ended": "SELECT state, count(*) FROM runs GROUP BY 1",
    "event": "SELECT outcome, count(*) FROM events GROUP BY 1",
    "due time": "SELECT outcome, count(*) FROM schedule_slots GROUP BY 1",
}
