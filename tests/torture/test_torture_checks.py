"""Each invariant of a torture can fail: a world in which all is well, and one thing wrong in it at a time."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from taskforgectl.torture.checks import CHECKS, check_all, effect_fault, most_at_once
from taskforgectl.torture.collect import Call, Entry, Event, Leftover, Run, Slot, Trigger, World, read_world
from taskforgectl.torture.workflows import SCHEDULED

S = 1_000_000
T0 = 1_700_000_040 * S


def history(*told: tuple[str, str] | tuple[str, str, dict], at: int = T0, end: str = "run.succeeded") -> list[Entry]:
    events = [("run.created", ""), ("run.started", ""), *told, (end, "")]
    return [
        Entry(number, at + number * 1000, event[0], event[1], 1, event[2] if len(event) > 2 else {})
        for number, event in enumerate(events, start=1)
    ]


def attempt(step: str, epoch: int = 1) -> list[tuple]:
    return [("step.queued", step), ("step.started", step, {"epoch": epoch}), ("step.completed", step)]


def run(run_id: str, workflow: str, *told: tuple, state: str = "SUCCEEDED", at: int = T0, **more) -> Run:
    events = history(*told, at=at, end=f"run.{state.lower()}")
    return Run(run_id, workflow, state, len(events), events, **more)


def call(key: str, family: str = "work", name: str = "x", *, boot: int = 1, began: float = 1.0, **more) -> Call:
    return Call(key, family, name, boot, began, more.pop("ended", began + 0.1), **more)


def entry(world: World, what: str, **fields) -> None:
    world.ledger[what].append({"t": 1.0, "what": what, **fields})


def healthy() -> World:
    """Answer a world that has a little of everything."""
    world = World(boots=2)
    runs = [
        run(
            "run_1",
            "everything",
            *attempt("left"),
            *attempt("once"),
            ("step.succeeded", "tell"),
            ("step.queued", "left:compensate"),
            ("step.completed", "left:compensate"),
            request="r-1",
        ),
        run("run_2", "flaky", *attempt("before"), state="DEAD", request="r-2"),
        run("run_3", "hooked", ("step.succeeded", "begin"), event="evt_1", trigger="thing"),
        run("run_4", "link", event="evt_2", trigger="begun"),
        run("run_5", "heard", event="evt_3", trigger="exact"),
        run("run_6", "heard", event="evt_3", trigger="even"),
        run("run_7", "solo", *attempt("first"), request="r-7", group="solo-0", group_limit=1),
        run("run_8", "solo", *attempt("first"), request="r-8", group="solo-0", group_limit=1, at=T0 + S),
        run("run_9", "narrow", *attempt("pass"), request="r-9", queue="narrow", at=T0 + S),
        run("run_10", "quick"),
        run("run_11", "child", parent="run_1"),
    ]
    world.runs = {one.id: one for one in runs}
    events = [
        Event("evt_1", "webhook", "", "ACCEPTED", delivery="d-1", runs=["run_3"]),
        Event("evt_2", "internal", "chain.begun", "ACCEPTED", publisher="run_3", runs=["run_4"]),
        Event("evt_3", "internal", "torture.published", "ACCEPTED", runs=["run_5", "run_6"], body='{"n": 2}'),
        Event("evt_4", "internal", "torture.told", "UNMATCHED", publisher="run_1"),
    ]
    for number, name in enumerate(SCHEDULED):
        tick = run(f"run_c{number}", name.partition("/")[0], event=f"evt_c{number}", trigger=name.partition("/")[2])
        world.runs[tick.id] = tick
        events.append(Event(f"evt_c{number}", "cron", "schedule.due", "ACCEPTED", runs=[tick.id]))
        world.triggers.append(ledger(name, f"evt_c{number}", tick.id))
    events += [
        Event(f"end_{one.id}", "engine", one.history[-1].kind, "UNMATCHED", publisher=one.id)
        for one in world.runs.values()
    ]
    world.events = {one.id: one._replace(position=position) for position, one in enumerate(events, start=1)}
    world.dead = ["run_2"]
    for key, family, name, began in (
        ("run_1/left", "work", "left", 1.0),
        ("run_1/once", "once", "charge", 1.2),
        ("run_7/first", "gate", "group-solo-0", 2.0),
        ("run_8/first", "gate", "group-solo-0", 2.2),
        ("run_9/pass", "gate", "queue-narrow", 2.2),
    ):
        world.calls[key] = [call(key, family, name, began=began)]
    world.calls["run_c0/tick"] = [call("run_c0/tick", "tick", "", due="2026-11-21T17:00:00Z")]
    world.runs["run_c0"] = run("run_c0", "ticks", *attempt("tick"), event="evt_c0", trigger="faithful")
    for number in (1, 2, 7, 8, 9):
        entry(world, "asking", request=f"r-{number}")
        entry(world, "started", run=f"run_{number}", request=f"r-{number}")
    entry(world, "batch", size=1)
    entry(world, "batched", run="run_10")
    entry(world, "sending", delivery="d-1")
    entry(world, "delivered", delivery="d-1", event="evt_1", runs=["run_3"])
    entry(world, "publishing", request="p-2", n=2)
    entry(world, "published", request="p-2", event="evt_3")
    entry(world, "ended", run="run_1", state="SUCCEEDED", sequence=world.runs["run_1"].sequence)
    entry(world, "watched", run="run_1", state="SUCCEEDED", last=world.runs["run_1"].sequence, streams=1)
    entry(world, "held", queue="narrow", since=T0 - 100 * S, until=T0 - 90 * S)
    entry(world, "trigger held", trigger="ticks/faithful")
    entry(world, "slots", held={"running steps": 0})
    entry(world, "told", events=[one.id for one in world.events.values()])
    return world


def ledger(name: str, event: str, run_id: str) -> Trigger:
    period = int(SCHEDULED[name][0].split()[0].partition("/")[2] or 1) * S
    slots = [
        Slot(T0, T0, 1, "FIRED", event, "", [run_id]),
        Slot(T0 + period, T0 + 2 * period, 2, "SUPPRESSED", None, "paused", []),
    ]
    return Trigger(name, T0 - period, T0 + 3 * period, slots)


def failed(world: World) -> dict[str, list[str]]:
    return {one.name: list(one.violations) for one in check_all(world) if one.violations}


def test_a_world_in_which_all_is_well():
    assert failed(healthy()) == {}


def test_nothing_is_left_untried():
    checked = {one.name: one.looked_at for one in check_all(healthy())}
    assert [name for name, count in checked.items() if not count] == ["stuck", "service"]


def change_run(world: World, run_id: str, **fields) -> None:
    world.runs[run_id] = world.runs[run_id]._replace(**fields)


def change_event(world: World, event_id: str, **fields) -> None:
    world.events[event_id] = world.events[event_id]._replace(**fields)


def tell(world: World, run_id: str, *told: tuple) -> None:
    """Put events into a history, before its end."""
    known = world.runs[run_id]
    middle = [(one.kind, one.step, dict(one.more)) for one in known.history[2:-1]]
    events = history(*middle, *told, at=known.history[0].at - 1000, end=known.history[-1].kind)
    change_run(world, run_id, history=events)


def change_slot(world: World, number: int, **fields) -> None:
    first = world.triggers[0]
    slots = [slot._replace(**fields) if index == number else slot for index, slot in enumerate(first.slots)]
    world.triggers[0] = first._replace(slots=slots)


def repeat(world: World, key: str, **more) -> None:
    world.calls[key].append(world.calls[key][0]._replace(**more))


Harm = Callable[[World], object]

HARM: list[tuple[str, str, Harm]] = [
    ("runs", "is not stored", lambda w: w.runs.pop("run_9")),
    ("runs", "was answered with run_1 and with run_2", lambda w: entry(w, "started", run="run_2", request="r-1")),
    ("runs", "is stored for r-9", lambda w: change_run(w, "run_1", request="r-9")),
    ("deliveries", "is not stored", lambda w: w.events.pop("evt_1")),
    ("deliveries", "was told ('run_3',)", lambda w: change_event(w, "evt_1", runs=[])),
    (
        "deliveries",
        "accepted 2 times",
        lambda w: w.events.update(again=w.events["evt_1"]._replace(id="again", position=99)),
    ),
    (
        "deliveries",
        "was answered with",
        lambda w: entry(w, "delivered", delivery="d-1", event="evt_2", runs=["run_4"]),
    ),
    ("deliveries", "sent by nobody", lambda w: w.ledger["sending"].clear()),
    ("publications", "is not stored", lambda w: w.events.pop("evt_3")),
    ("publications", "has started", lambda w: change_event(w, "evt_3", runs=["run_5"])),
    ("publications", "stored 2 times", lambda w: w.events.update(again=w.events["evt_3"]._replace(id="again"))),
    ("publications", "by nobody", lambda w: w.ledger["publishing"].clear()),
    ("chains", "never asked", lambda w: change_event(w, "evt_4", outcome="PENDING")),
    ("chains", "and 0 events", lambda w: w.events.pop("evt_4")),
    ("chains", "has started", lambda w: change_event(w, "evt_2", runs=["run_4", "run_4"])),
    ("causes", "nobody asked", lambda w: change_run(w, "run_1", request="r-3")),
    ("causes", "started by nobody", lambda w: w.runs.update(stray=run("stray", "quick"))),
    ("causes", "comes from", lambda w: change_run(w, "run_11", parent="run_0")),
    ("causes", "not started by event", lambda w: change_run(w, "run_4", event="evt_1")),
    ("causes", "has 2 runs", lambda w: change_run(w, "run_2", request="r-1")),
    ("ends", "for ever", lambda w: change_run(w, "run_1", state="RUNNING")),
    ("ends", "went on", lambda w: change_run(w, "run_4", history=w.runs["run_4"].history[:-1])),
    ("ends", "has the ends", lambda w: tell(w, "run_4", ("run.failed", ""))),
    ("ends", "is FAILED", lambda w: change_run(w, "run_4", state="FAILED")),
    ("ends", "told 0 times", lambda w: w.events.pop("end_run_4")),
    ("final", "was seen as", lambda w: change_run(w, "run_1", state="FAILED")),
    ("final", "is not stored", lambda w: w.runs.pop("run_1")),
    ("dead letters", "has 0 dead letters", lambda w: w.dead.clear()),
    ("dead letters", "has 1 dead letters", lambda w: w.dead.append("run_4")),
    ("dead letters", "which is not stored", lambda w: w.dead.append("run_0")),
    ("effects", "2 calls, and 1 attempts", lambda w: repeat(w, "run_1/left")),
    ("effects", "of no run", lambda w: w.calls.update({"run_0/x": [call("run_0/x")]})),
    ("effects", "have ended", lambda w: tell(w, "run_1", ("step.started", "left"))),
    ("attempts", "begun again", lambda w: tell(w, "run_1", *attempt("left"))),
    ("once", "called 2 times", lambda w: repeat(w, "run_1/once", boot=2)),
    ("keys", "was used for", lambda w: repeat(w, "run_1/left", name="right")),
    ("compensations", "without", lambda w: tell(w, "run_2", ("step.queued", "act:compensate"))),
    ("compensations", "was undone, and then once more", lambda w: _taken_over(w, "run_1", "run_3")),
    ("limits", "2 were at it at once", lambda w: w.calls.update({"run_8/first": [_at("run_8/first", 2.05)]})),
    ("recorded limits", "2 at once", lambda w: change_run(w, "run_8", history=w.runs["run_7"].history)),
    ("pauses", "was paused", lambda w: entry(w, "held", queue="narrow", since=T0 - 2 * S, until=T0 + 9 * S)),
    ("schedules", "was expected", lambda w: change_slot(w, 1, due=T0, times=3)),
    ("schedules", "begins too late", lambda w: w.triggers.append(w.triggers.pop()._replace(created_at=T0 - 900 * S))),
    ("schedules", "3 due times", lambda w: change_slot(w, 1, times=3)),
    ("schedules", "FIRED with 0 runs", lambda w: change_slot(w, 0, runs=[])),
    ("schedules", "is MISSED", lambda w: change_slot(w, 1, outcome="MISSED")),
    ("schedules", "is SUPPRESSED", lambda w: w.ledger["trigger held"].clear()),
    ("schedules", "belongs to no due time", lambda w: change_slot(w, 0, event=None)),
    ("schedules", "belongs to 2", lambda w: change_slot(w, 1, event="evt_c0")),
    ("schedules", "is missing", lambda w: w.triggers.pop()),
    ("schedules", "too early", lambda w: w.triggers.append(w.triggers.pop()._replace(removed_at=T0 + 900 * S))),
    ("due calls", "effects of 2 runs", lambda w: w.calls.update(late=[_due("run_c1/tick")])),
    ("slots", "left over", lambda w: w.leftovers.append(Leftover("command", "run_1", "SUCCEEDED", 1))),
    ("slots", "counts", lambda w: entry(w, "violation", check="slots", message="counts 1 running steps")),
    ("watches", "was watched to", lambda w: w.ledger["watched"][0].update(last=3)),
    ("feed", "was told 2 times", lambda w: entry(w, "told", events=["evt_1"])),
    ("feed", "left out", lambda w: w.ledger["told"][0]["events"].remove("evt_1")),
    ("feed", "another order", lambda w: w.ledger["told"][0]["events"].reverse()),
    ("feed", "2 times in the feed", lambda w: change_event(w, "evt_4", told=2)),
    ("stuck", "went on", lambda w: entry(w, "violation", check="stuck", message="nothing went on")),
    ("service", "refused", lambda w: entry(w, "violation", check="refusals", message="refused")),
    ("histories", "does not fit", lambda w: change_run(w, "run_1", faults=["the hash does not fit"])),
    ("database", "malformed", lambda w: setattr(w, "database", ["database disk image is malformed"])),
    ("database", "no whole inventory", lambda w: setattr(w, "database", None)),
]


def _at(key: str, began: float) -> Call:
    return call(key, "gate", "group-solo-0", began=began)


def _taken_over(world: World, before: str, after: str) -> None:
    """Let a run have taken over `left` after a minute, and undo it."""
    undoing = ("step.queued", "left:compensate"), ("step.completed", "left:compensate")
    retry = run(after, "everything", ("step.succeeded", "left", {"pinned": True}), *undoing, at=T0 + 60 * S)
    change_run(world, after, retry_of=before, history=retry.history)


def _due(key: str) -> Call:
    return call(key, "tick", "", due="2026-11-21T17:00:00Z")


@pytest.mark.parametrize(("name", "text", "harm"), HARM, ids=[f"{name}: {text}" for name, text, _ in HARM])
def test_what_is_wrong_is_found(name: str, text: str, harm: Harm):
    world = healthy()
    harm(world)
    found = failed(world)
    assert name in found, found
    assert any(text in one for one in found[name]), found[name]


def test_every_invariant_can_fail():
    assert {name for name, *_ in HARM} == CHECKS.keys()


# --- what may repeat, and why ----------------------------------------------------------------------------------------

STARTED, LOST, FAILED, DONE = "step.started", "step.attempt_lost", "step.attempt_failed", "step.completed"


def steps(*kinds: str | tuple[str, dict]) -> list[Entry]:
    given = [(kind, {}) if isinstance(kind, str) else kind for kind in kinds]
    return [Entry(number, T0, kind, "x", 1, more) for number, (kind, more) in enumerate(given)]


def made(*boots: int, status: int = 200) -> list[Call]:
    return [call("r/x", boot=boot, began=float(number), status=status) for number, boot in enumerate(boots)]


@pytest.mark.parametrize(
    ("told", "calls"),
    [
        (steps(STARTED, DONE), made(1)),
        (steps(STARTED, LOST, STARTED, DONE), made(1, 2)),
        (steps(STARTED, LOST, STARTED, DONE), made(2)),  # killed before it called
        (steps(STARTED, FAILED, STARTED, DONE), made(1, 1)),
        (steps(STARTED, FAILED, "step.dead"), made(1, status=503)),
        (steps(STARTED, FAILED, ("step.resolved", {"outcome": "retry"}), STARTED, DONE), made(1, 1)),
        (steps(STARTED, "step.attempt_cancelled"), []),
    ],
)
def test_effects_that_are_explained(told: list[Entry], calls: list[Call]):
    assert effect_fault(told, calls) == ""


@pytest.mark.parametrize(
    ("told", "calls", "says"),
    [
        (steps(STARTED, DONE), made(1, 2), "2 calls, and 1 attempts"),
        (steps(STARTED, LOST, STARTED, DONE), made(1, 1), "without a crash"),
        (steps(STARTED, DONE), made(1, status=503), "no call was answered well"),
        (steps(STARTED, LOST, STARTED), made(1, 2), "2 attempts have begun and 1 have ended"),
    ],
)
def test_effects_that_are_not_explained(told: list[Entry], calls: list[Call], says: str):
    assert says in effect_fault(told, calls)


def test_most_at_once():
    assert most_at_once([]) == 0
    assert most_at_once([(1, 2), (2, 3), (5, 6)]) == 1
    assert most_at_once([(1, 4), (2, 3), (2.5, 6)]) == 3


def test_a_retry_may_undo_what_it_has_taken_over():
    world = healthy()
    cancelled = run("run_1", "everything", *attempt("left"), *attempt("once"), ("step.succeeded", "tell"))
    change_run(world, "run_1", history=cancelled.history)
    _taken_over(world, "run_1", "run_10")
    assert "compensations" not in failed(world)


def test_an_undoing_that_was_cut_may_be_done_by_the_retry():
    world = healthy()
    cut = [entry for entry in world.runs["run_1"].history if entry.kind != "step.completed" or ":" not in entry.step]
    change_run(world, "run_1", history=cut)
    _taken_over(world, "run_1", "run_10")
    assert "compensations" not in failed(world)


def test_a_caller_that_hung_up_was_gone_a_moment_before():
    world = healthy()
    world.calls["run_7/first"] = [call("run_7/first", "gate", "group-solo-0", began=2.0, ended=2.22, status=0)]
    assert "limits" not in failed(world)


def test_what_is_open_is_not_wrong_when_the_torture_broke_off():
    world = healthy()
    world.ledger["slots"].clear()
    change_run(world, "run_9", state="RUNNING", history=begun(world, "run_9"))
    world.leftovers.append(Leftover("command", "run_9", "RUNNING", 1))
    change_event(world, "evt_3", outcome="PENDING", told=0, runs=[])
    world.runs.pop("run_5")
    world.runs.pop("run_6")
    assert failed(world) == {}
    world.leftovers.append(Leftover("timer", "run_1", "SUCCEEDED", 0))
    assert failed(world).keys() == {"slots"}


def begun(world: World, run_id: str) -> list[Entry]:
    """Answer a history up to the start of its attempt."""
    return [one for one in world.runs[run_id].history if one.kind not in {"step.completed", "run.succeeded"}]


def test_a_clock_that_jumped_leaves_times_out():
    world = healthy()
    entry(world, "clock", jumped_s=3600)
    change_run(world, "run_8", history=world.runs["run_7"].history)
    checked = {one.name: one for one in check_all(world)}
    assert checked["recorded limits"].left_out
    assert checked["pauses"].left_out
    change_slot(world, 1, outcome="MISSED")
    assert "schedules" not in failed(world)
    assert not checked["recorded limits"].violations


# --- files -----------------------------------------------------------------------------------------------------------


def test_reading_what_was_written(tmp_path):
    def put(name: str, *lines: dict) -> object:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    told = {"kind": "run", "id": "run_1", "workflow": "quick", "state": "SUCCEEDED", "sequence": 1, "namespace": "n"}
    told |= {"request_id": "r-1", "event": None, "faults": [], "history": [[1, 5, "run.created", "", 0, {}]]}
    stored = put("inventory", {"kind": "database", "faults": []}, {"kind": "boot", "epoch": 1}, told, {"kind": "end"})
    late = call("run_1/act", began=2.0)._asdict()
    calls = put("calls", late, {**late, "began": 1.0})
    world = read_world(put("ledger", {"t": 1, "what": "boot", "boot": 1}), calls, stored)
    assert world.database == []
    assert world.boots == 1
    assert world.runs["run_1"].request == "r-1"
    assert world.runs["run_1"].history[0].kind == "run.created"
    assert [one.began for one in world.calls["run_1/act"]] == [1.0, 2.0]
    assert len(world.ledger["boot"]) == 1
    cut = put("cut", {"kind": "database", "faults": []}, told)
    assert read_world(tmp_path / "none", tmp_path / "none", cut).database is None
