"""The invariants. Each is a pure function over what was collected: it counts what it looked at, and names what broke.

None compares times of the driver with times of the daemon. Where times of one daemon's lives are compared with each
other, the wall clock must have been steady; else the check says that it was left out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from taskforgectl.torture.collect import Call, Entry, Event, Run, Trigger, World
from taskforgectl.torture.workflows import SCHEDULED, TENANT, Limit, limits

__all__ = ["CHECKS", "Checked", "check_all", "most_at_once"]

_SECOND = 1_000_000
_CUT_S = 0.1
"""How late the outside world may notice that a caller has hung up."""

_PAUSED_AFTER_US = _SECOND
"""A step whose start was decided before a pause may be recorded a moment after it."""

_ENDS = frozenset({"run.succeeded", "run.failed", "run.dead", "run.cancelled"})
_TERMINAL = frozenset({"SUCCEEDED", "FAILED", "DEAD", "CANCELLED"})
_OVER = frozenset({"step.completed", "step.attempt_failed", "step.attempt_lost", "step.attempt_cancelled"})
_COUNTED = frozenset({"work", "once", "gate", "flaky", "tick"})
"""Effects by POST. What is read may be read again by the HTTP client itself."""


class Checked(NamedTuple):
    """What a check has found.

    Attributes:
        name: of the invariant.
        says: what must hold.
        looked_at: how many things it was held against.
        violations: one sentence each.
        left_out: why it was not checked; empty: it was.
    """

    name: str
    says: str
    looked_at: int
    violations: Sequence[str]
    left_out: str = ""


class _Finding:
    """Collects what one check sees."""

    def __init__(self) -> None:
        self.count = 0
        self.violations: list[str] = []
        self.left_out = ""

    def expect(self, holds: bool, text: str) -> None:
        """Count one thing, and note when it does not hold."""
        self.count += 1
        if not holds:
            self.violations.append(text)


# --- the database ----------------------------------------------------------------------------------------------------


def _database(world: World, found: _Finding) -> None:
    found.expect(world.database is not None, "there is no whole inventory of the database")
    for fault in world.database or ():
        found.expect(False, fault)


def _histories(world: World, found: _Finding) -> None:
    for run in world.runs.values():
        found.expect(not run.faults, f"{run.id}: {'; '.join(run.faults)}")


def _slots(world: World, found: _Finding) -> None:
    found.count += sum(len(entry["held"]) for entry in world.ledger["slots"])
    for row in world.leftovers:
        if not world.came_to_rest and row.state is not None and row.state not in _TERMINAL:
            continue
        owner = f"of {row.run}, which is {row.state}" if row.run else "of a run that is not there"
        found.expect(False, f"a {'claimed ' if row.claimed else ''}{row.what} {owner}, is left over")


# --- nothing lost ----------------------------------------------------------------------------------------------------


def _runs(world: World, found: _Finding) -> None:
    answers: dict[str, str] = {}
    for entry in world.ledger["started"]:
        run_id, request = entry["run"], entry["request"]
        run = world.runs.get(run_id)
        found.expect(run is not None, f"{run_id}, request {request or 'none'}, was acknowledged and is not stored")
        if run is None or not request:
            continue
        before = answers.setdefault(request, run_id)
        found.expect(before == run_id, f"request {request} was answered with {before} and with {run_id}")
        found.expect(run.request == request, f"{run_id} answered {request}, and is stored for {run.request}")


def _causes(world: World, found: _Finding) -> None:
    asked = {entry["request"] for entry in world.ledger["asking"]}
    batched = {entry["run"] for entry in world.ledger["batched"]}
    strays = sum(entry["size"] for entry in world.ledger["batch"]) - len(batched)
    requests: Counter[str] = Counter()
    for run in world.runs.values():
        if run.id in batched:
            continue
        if run.request is not None:
            requests[run.request] += 1
            is_asked = run.request in asked or run.retry_of or run.rerun_of
            found.expect(bool(is_asked), f"{run.id}: nobody asked with request {run.request}")
        elif run.parent is not None or run.retry_of is not None or run.rerun_of is not None:
            before = run.parent or run.retry_of or run.rerun_of
            found.expect(before in world.runs, f"{run.id} comes from {before}, which is not stored")
        elif run.event is None:
            strays -= 1
            found.expect(strays >= 0, f"{run.id} of {run.workflow} was started by nobody")
        else:
            event = world.events.get(run.event)
            is_known = event is not None and run.id in event.runs
            found.expect(is_known, f"{run.id} of {run.workflow} was not started by event {run.event}")
    for request, count in requests.items():
        found.expect(count == 1, f"request {request} has {count} runs")


def _deliveries(world: World, found: _Finding) -> None:
    accepted = defaultdict(list)
    for event in world.events.values():
        if event.source == "webhook" and event.outcome == "ACCEPTED":
            accepted[event.delivery].append(event)
    answered: dict[str, tuple[str, tuple[str, ...]]] = {}
    for entry in world.ledger["delivered"]:
        delivery, told = entry["delivery"], (entry["event"], tuple(entry["runs"]))
        before = answered.setdefault(delivery, told)
        found.expect(before == told, f"{delivery} was answered with {before} and with {told}")
        stored = world.events.get(told[0])
        if stored is None:
            found.expect(False, f"{delivery} was acknowledged as {told[0]}, which is not stored")
            continue
        found.expect(tuple(stored.runs) == told[1], f"{delivery} was told {told[1]}, stored are {stored.runs}")
        found.expect(len(told[1]) == 1, f"{delivery} has {len(told[1])} runs")
    sent = {entry["delivery"] for entry in world.ledger["sending"]}
    for delivery, events in accepted.items():
        found.expect(len(events) == 1, f"{delivery} was accepted {len(events)} times")
        found.expect(delivery in sent, f"{delivery} was sent by nobody")


def _publications(world: World, found: _Finding) -> None:
    answers: dict[str, str] = {}
    for entry in world.ledger["published"]:
        before = answers.setdefault(entry["request"], entry["event"])
        found.expect(before == entry["event"], f"{entry['request']} was answered with {before} and {entry['event']}")
        found.expect(entry["event"] in world.events, f"{entry['event']} was acknowledged and is not stored")
    asked = {entry["n"] for entry in world.ledger["publishing"]}
    seen: Counter[int] = Counter()
    for event in world.events.values():
        if event.type != "torture.published":
            continue
        n = _number(event)
        seen[n] += 1
        found.expect(n in asked, f"event {event.id} was published by nobody")
        if event.outcome == "PENDING":
            continue
        wanted = {"exact", "even"} if n % 2 == 0 else {"exact"}
        _expect_runs(world, found, event, {("heard", trigger) for trigger in wanted})
    for n, count in seen.items():
        found.expect(count == 1, f"publication {n} is stored {count} times")


def _number(event: Event) -> int:
    body = json.loads(event.body or "{}")
    return int(body.get("n", -1)) if isinstance(body, dict) else -1


def _expect_runs(world: World, found: _Finding, event: Event, wanted: set[tuple[str, str]]) -> None:
    """An event starts exactly one run for each trigger that asks for it."""
    runs = [world.runs[run] for run in event.runs if run in world.runs]
    started = Counter((run.workflow, run.trigger) for run in runs if run.retry_of is None and run.rerun_of is None)
    found.expect(started == Counter(wanted), f"{event.type} {event.id} has started {dict(started)}, not {wanted}")


def _chains(world: World, found: _Finding) -> None:
    """What goes on by events goes on once."""
    published: Counter[tuple[str | None, str]] = Counter()
    for event in world.events.values():
        is_decided = event.outcome != "PENDING"
        found.expect(is_decided or not world.came_to_rest, f"event {event.id} was never asked about")
        if event.type in {"chain.begun", "torture.told"}:
            published[event.publisher, event.type] += 1
        if event.type == "chain.begun" and is_decided:
            _expect_runs(world, found, event, {("link", "begun")})
    for run in world.runs.values():
        for step, kind in (("begin", "chain.begun"), ("tell", "torture.told")):
            done = sum(_is_done(entry, step) for entry in run.history)
            count = published.pop((run.id, kind), 0)
            if done or count:
                found.expect(
                    done == count, f"{run.id}: step {step} was done {done} times, and {count} events published"
                )
    for (publisher, kind), count in published.items():
        found.expect(False, f"{count} events {kind} were published by {publisher}, which is not stored")


def _is_done(entry: Entry, step: str) -> bool:
    return entry.kind == "step.succeeded" and entry.step == step and not entry.more.get("pinned")


# --- ends ------------------------------------------------------------------------------------------------------------


def _ends(world: World, found: _Finding) -> None:
    told = Counter(
        event.publisher for event in world.events.values() if event.source == "engine" and event.type in _ENDS
    )
    for run in world.runs.values():
        ends = [entry.kind for entry in run.history if entry.kind in _ENDS]
        if run.state not in _TERMINAL:
            found.expect(not world.came_to_rest, f"{run.id} of {run.workflow} is {run.state} for ever")
            continue
        found.expect(len(ends) == 1, f"{run.id} has the ends {ends}")
        found.expect(bool(run.history) and run.history[-1].kind in _ENDS, f"{run.id} went on after its end")
        found.expect(ends[:1] == [f"run.{run.state.lower()}"], f"{run.id} is {run.state}, its history says {ends}")
        found.expect(told[run.id] == 1, f"the end of {run.id} was told {told[run.id]} times")


def _final(world: World, found: _Finding) -> None:
    for entry in world.ledger["ended"]:
        run = world.runs.get(entry["run"])
        if run is None:
            found.expect(False, f"{entry['run']} had ended and is not stored")
            continue
        now, before = (run.state, run.sequence), (entry["state"], entry["sequence"])
        found.expect(now == before, f"{run.id} was seen as {before[0]} at {before[1]}, and is {now[0]} at {now[1]}")


def _dead_letters(world: World, found: _Finding) -> None:
    letters = Counter(world.dead)
    for run in world.runs.values():
        wanted = int(run.state == "DEAD")
        if wanted or letters[run.id]:
            found.expect(letters[run.id] == wanted, f"{run.id} is {run.state} and has {letters[run.id]} dead letters")
    for run_id in letters.keys() - world.runs.keys():
        found.expect(False, f"there is a dead letter of {run_id}, which is not stored")


# --- effects ---------------------------------------------------------------------------------------------------------


def _effects(world: World, found: _Finding) -> None:
    for key, calls in world.calls.items():
        run = world.runs.get(calls[0].run)
        if not key or run is None:
            found.expect(False, f"{len(calls)} calls of {calls[0].family}/{calls[0].name} with key {key!r} of no run")
            continue
        if calls[0].family in _COUNTED:
            history = [one for one in run.history if one.step == calls[0].step]
            fault = effect_fault(history, calls, is_over=run.state in _TERMINAL)
            found.expect(not fault, f"{key}: {fault}")


def effect_fault(history: Sequence[Entry], calls: Sequence[Call], *, is_over: bool = True) -> str:
    """Answer what is wrong with the calls of one key, beside what the history of its step says; empty: nothing."""
    kinds = Counter(entry.kind for entry in history)
    retried = sum(entry.kind == "step.resolved" and entry.more.get("outcome") == "retry" for entry in history)
    starts, failed = kinds["step.started"], kinds["step.attempt_failed"]
    if len(calls) > starts:
        return f"{len(calls)} calls, and {starts} attempts were recorded"
    in_one_life = sum(one.boot == after.boot for one, after in pairwise(calls))
    if in_one_life > failed + retried:
        return f"repeated {in_one_life} times without a crash, and {failed} failures were recorded"
    ended = sum(kinds[kind] for kind in _OVER)
    if is_over and starts != ended:
        return f"{starts} attempts have begun and {ended} have ended"
    if kinds["step.completed"] and not any(call.status == 200 for call in calls):
        return "it has succeeded, and no call was answered well"
    return ""


def _attempts(world: World, found: _Finding) -> None:
    """Attempts in histories alone: an effect that was recorded as done is not begun again."""
    for run in world.runs.values():
        done: set[str] = set()
        for entry in run.history:
            if entry.kind == "step.started":
                found.expect(entry.step not in done, f"{run.id}/{entry.step} was done, and was begun again")
            elif entry.kind == "step.completed":
                done.add(entry.step)


def _once(world: World, found: _Finding) -> None:
    for key, calls in world.calls.items():
        if calls[0].family != "once":
            continue
        run = world.runs.get(calls[0].run)
        entries: Sequence[Entry] = run.history if run is not None else ()
        decided = sum(
            entry.kind == "step.resolved" and entry.step == calls[0].step and entry.more.get("outcome") == "retry"
            for entry in entries
        )
        found.expect(len(calls) <= 1 + decided, f"{key} was called {len(calls)} times, {decided} repeats were decided")


def _keys(world: World, found: _Finding) -> None:
    for key, calls in world.calls.items():
        used = {(call.family, call.name) for call in calls}
        found.expect(len(used) == 1, f"{key} was used for {sorted(used)}")


def _compensations(world: World, found: _Finding) -> None:
    """What was undone is not undone again; a retry may undo what it has taken over, and what a cancel has cut."""
    undoings: dict[tuple[str | None, str], list[tuple[int, bool]]] = defaultdict(list)
    for run in world.runs.values():
        for entry in run.history:
            step, _, is_undoing = entry.step.partition(":")
            if is_undoing and entry.kind == "step.queued" and entry.sequence == _first_of(run, entry.step):
                doer = _doer(world, run, step)
                is_undone = any(one.kind == "step.completed" and one.step == entry.step for one in run.history)
                undoings[doer, step].append((entry.at, is_undone))
                found.expect(doer is not None, f"{run.id}: {entry.step} without the step having been done")
    for (doer, step), tries in undoings.items():
        again = any(is_undone for _, is_undone in sorted(tries, key=itemgetter(0))[:-1])
        found.expect(not again or doer is None, f"{doer}/{step} was undone, and then once more")


def _first_of(run: Run, step: str) -> int:
    return next(entry.sequence for entry in run.history if entry.step == step)


def _doer(world: World, run: Run | None, step: str) -> str | None:
    """Answer the run that has done a step which this run has done or taken over, None when none has."""
    while run is not None:
        if any(entry.kind == "step.completed" and entry.step == step for entry in run.history):
            return run.id
        if not any(entry.step == step and entry.more.get("pinned") for entry in run.history):
            return None
        run = world.runs.get(run.retry_of or run.rerun_of or "")
    return None


# --- limits ----------------------------------------------------------------------------------------------------------


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """Answer how many spans overlap at most. One that begins when another ends does not overlap it."""
    changes = sorted(change for begin, end in spans for change in ((begin, 1), (max(begin, end), -1)))
    most = present = 0
    for _, change in changes:
        present += change
        most = max(most, present)
    return most


def _limits(world: World, found: _Finding) -> None:
    gate: dict[str, list[Call]] = defaultdict(list)
    for calls in world.calls.values():
        if calls[0].family == "gate":
            gate[calls[0].name] += calls
    gate["runs-tenant"] = gate["steps-tenant"]
    for limit in limits():
        spans = list(_spans(limit, gate[limit.name]))
        found.count += len(spans)
        most = most_at_once(spans)
        if most > limit.most:
            found.violations.append(f"{limit.name} allows {limit.most} {limit.of}, and {most} were at it at once")


def _spans(limit: Limit, calls: Sequence[Call]) -> Iterator[tuple[float, float]]:
    if limit.of == "steps":
        yield from ((call.began, _end(call)) for call in calls)
        return
    by_run = defaultdict(list)
    for call in calls:
        by_run[call.run].append(call)
    for made in by_run.values():
        yield min(call.began for call in made), max(_end(call) for call in made)


def _end(call: Call) -> float:
    return call.ended if call.status else max(call.began, call.ended - _CUT_S)


def _recorded_limits(world: World, found: _Finding) -> None:
    if not world.is_clock_steady:
        found.left_out = "the clock has jumped"
        return
    spans: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for run in world.runs.values():
        for name, limit, held in _held(run):
            spans[f"{run.namespace}, {name}", limit] += held
    for (name, limit), held in spans.items():
        found.count += len(held)
        most = most_at_once(held)
        if most > limit:
            found.violations.append(f"{name}: {most} at once, {limit} are allowed")


def _held(run: Run) -> Iterator[tuple[str, int, list[tuple[float, float]]]]:
    """Yield what a run has held of each limit, and when."""
    attempts, span = list(_attempt_spans(run)), _run_span(run)
    if run.namespace == TENANT:
        yield "running steps", 1, attempts
        yield "running runs", 2, span
    if run.queue == "narrow":
        yield "queue narrow", 1, attempts
    if run.group:
        yield f"group {run.group}", run.group_limit, span


def _attempt_spans(run: Run) -> Iterator[tuple[float, float]]:
    begun: dict[str, int] = {}
    for entry in run.history:
        if entry.kind == "step.started":
            begun[entry.step] = entry.at
        elif entry.kind in _OVER and entry.step in begun:
            yield begun.pop(entry.step), entry.at


def _run_span(run: Run) -> list[tuple[float, float]]:
    return [(entry.at, run.history[-1].at) for entry in run.history if entry.kind == "run.started"]


def _pauses(world: World, found: _Finding) -> None:
    if not world.is_clock_steady:
        found.left_out = "the clock has jumped"
        return
    spans = [(entry["since"] + _PAUSED_AFTER_US, entry["until"]) for entry in world.ledger["held"]]
    found.count += len(spans)
    for run in world.runs.values():
        if run.queue != "narrow":
            continue
        for entry in run.history:
            if entry.kind == "step.started" and any(since < entry.at < until for since, until in spans):
                found.violations.append(f"{run.id}/{entry.step} was begun while its queue was paused")


# --- due times -------------------------------------------------------------------------------------------------------


def _schedules(world: World, found: _Finding) -> None:
    cron = {event.id for event in world.events.values() if event.source == "cron"}
    asked: Counter[str] = Counter()
    held = {entry["trigger"] for entry in world.ledger["trigger held"]}
    for trigger in world.triggers:
        _check_ledger(trigger, found, was_held=trigger.name in held, is_steady=world.is_clock_steady)
        for slot in trigger.slots:
            if slot.event is not None:
                asked[slot.event] += 1
                found.expect(slot.event in world.events, f"{trigger.name}: event {slot.event} is not stored")
    for event_id, count in asked.items():
        found.expect(count == 1, f"event {event_id} belongs to {count} due times")
    for event_id in cron - asked.keys():
        found.expect(False, f"event {event_id} belongs to no due time")
    found.expect({trigger.name for trigger in world.triggers} == SCHEDULED.keys(), "a cron trigger is missing")


def _check_ledger(trigger: Trigger, found: _Finding, *, was_held: bool, is_steady: bool) -> None:
    """Each due time from the first to the last is there once; each that fired has one event and one run."""
    expression, misfire, overlap = SCHEDULED[trigger.name]
    period = _period_s(expression) * _SECOND
    expected = trigger.slots[0].due if trigger.slots else 0
    found.expect(bool(trigger.slots), f"{trigger.name} has no ledger")
    if trigger.slots:
        found.expect(expected - trigger.created_at <= 2 * period, f"{trigger.name} begins too late")
    for slot in trigger.slots:
        found.count += slot.times - 1
        found.expect(slot.due == expected, f"{trigger.name}: {_text(expected)} was expected, {_text(slot.due)} found")
        is_whole = slot.last - slot.due == (slot.times - 1) * period
        found.expect(is_whole, f"{trigger.name}: {slot.times} due times from {_text(slot.due)} to {_text(slot.last)}")
        expected = slot.last + period
        has_run = slot.outcome == "FIRED"
        found.expect(len(slot.runs) == has_run, f"{trigger.name}: {slot.outcome} with {len(slot.runs)} runs")
        found.expect(slot.outcome != "FAILED", f"{trigger.name} at {_text(slot.due)}: {slot.reason}")
        if (misfire, overlap) == ("all", "allow") and is_steady:  # a leap makes more of them due than are caught up
            settled = {"FIRED", "SUPPRESSED"} if was_held else {"FIRED"}
            is_due = slot.outcome in settled or slot.reason == "the trigger was removed"
            found.expect(is_due, f"{trigger.name} at {_text(slot.due)} is {slot.outcome}: {slot.reason}")
    if trigger.removed_at is not None and trigger.slots:
        missing = trigger.removed_at - trigger.slots[-1].last
        found.expect(missing <= 2 * period, f"{trigger.name} ends {missing / _SECOND:.1f} s too early")


def _period_s(expression: str) -> int:
    return int(expression.split(maxsplit=1)[0].partition("/")[2] or 1)


def _text(at: int) -> str:
    return f"second {at // _SECOND}"


def _due_calls(world: World, found: _Finding) -> None:
    runs: dict[str, set[str]] = defaultdict(set)
    for calls in world.calls.values():
        for call in calls:
            if call.family == "tick" and call.due and call.due != "never":
                runs[call.due].add(call.run)
    for due, by in runs.items():
        found.expect(len(by) == 1, f"the due time {due} had effects of {len(by)} runs: {sorted(by)}")


# --- watchers and the service ----------------------------------------------------------------------------------------


def _watches(world: World, found: _Finding) -> None:
    for entry in world.ledger["watched"]:
        run = world.runs.get(entry["run"])
        last = (run.state, run.sequence) if run is not None else None
        told = (entry["state"], entry["last"])
        found.expect(last == told, f"{entry['run']} was watched to {told}, stored is {last}")


def _feed(world: World, found: _Finding) -> None:
    told = [event_id for entry in world.ledger["told"] for event_id in entry["events"]]
    for event_id, count in Counter(told).items():
        found.expect(count == 1, f"event {event_id} was told {count} times")
    positions = [world.events[one].position or 0 for one in told if one in world.events]
    found.expect(positions == sorted(positions), "events were told in another order than they were decided")
    if not world.ledger["told"]:
        return
    known, last = set(told), max(positions, default=0)
    for event in world.events.values():
        is_wanted = event.namespace == "default" and event.outcome in {"ACCEPTED", "FILTERED", "UNMATCHED"}
        if is_wanted and event.id not in known and (event.position or 0) <= last:
            found.expect(False, f"event {event.id} ({event.type or event.source}) was left out")
        is_decided = event.outcome != "PENDING"
        found.expect(event.told == is_decided, f"event {event.id} stands {event.told} times in the feed")
    for event_id in known - world.events.keys():
        found.expect(False, f"event {event_id} was told and is not stored")


def _service(world: World, found: _Finding) -> None:
    found.count += len(world.ledger["boot"]) + len(world.ledger["looked"])


def _stuck(world: World, found: _Finding) -> None:
    """The driver itself looks, all the time."""
    found.count += len(world.ledger["looked"])


CHECKS: Mapping[str, tuple[str, Callable[[World, _Finding], None]]] = {
    "runs": ("every acknowledged run is stored, one for each request", _runs),
    "deliveries": ("every acknowledged webhook is one event with its run", _deliveries),
    "publications": ("every acknowledged event is stored once, with its runs", _publications),
    "chains": ("what goes on by events goes on exactly once", _chains),
    "causes": ("nothing runs that nobody asked for", _causes),
    "ends": ("every run has ended, once", _ends),
    "final": ("no end has changed after it was seen", _final),
    "dead letters": ("every dead run has its one dead letter", _dead_letters),
    "effects": ("effects repeat only after a crash or a recorded failure", _effects),
    "attempts": ("what is recorded as done is not begun again", _attempts),
    "once": ("effects that must not be repeated are not", _once),
    "keys": ("no idempotency key is used by two steps", _keys),
    "compensations": ("only what was done is undone", _compensations),
    "limits": ("no limit is exceeded, as the outside sees it", _limits),
    "recorded limits": ("no limit is exceeded, as the histories have it", _recorded_limits),
    "pauses": ("nothing begins in a queue that is paused", _pauses),
    "schedules": ("every due time is settled once", _schedules),
    "due calls": ("no due time has effects of two runs", _due_calls),
    "slots": ("no slot, lease or timer is left over", _slots),
    "watches": ("watchers of runs see all, in order, once", _watches),
    "feed": ("watchers of events see all, in order, once", _feed),
    "stuck": ("nothing is stuck", _stuck),
    "service": ("every start, stop and answer was as it should be", _service),
    "histories": ("hash chains, replays and projections of all runs agree", _histories),
    "database": ("PRAGMA integrity_check and foreign_key_check find nothing", _database),
}
"""What must hold, in the order of the report."""


def check_all(world: World) -> list[Checked]:
    """Hold everything against all of it; what the driver saw itself is among the violations."""
    seen: Mapping[str, list[Any]] = defaultdict(list)
    for entry in world.ledger["violation"]:
        seen[entry["check"] if entry["check"] in CHECKS else "service"].append(entry["message"])
    checked = []
    for name, (says, check) in CHECKS.items():
        found = _Finding()
        check(world, found)
        violations = [*seen[name], *found.violations]
        checked.append(Checked(name, says, found.count, violations, found.left_out))
    return checked
