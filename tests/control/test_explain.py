"""Why a run is where it is: each thing that a run can wait for, in words, with a command that exists."""

import shlex

import click
import pytest

from taskforgectl.__main__ import root
from taskforged.control.explain import REASONS_MAX, ReasonKind, explain
from taskforged.control.explain_facts import ExplainFacts, HistoryFacts, LaneFacts, PendingFacts, collect, scan
from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    Block,
    Effect,
    Jitter,
    OnTimeout,
    RetryPolicy,
    Step,
    WorkflowModel,
)
from taskforged.engine.states import RunState
from taskforged.host.admission import Admission, Ticket
from taskforged.host.dispatcher import Dispatcher, Lane
from taskforged.host.limits import Limits, NamespaceLimits, QueueLimits
from taskforged.store.changes import GENESIS, Home, NewRun, build_change
from taskforged.store.journal import Write
from taskforged.store.runs import RunStore
from taskforged.store.store import Store
from taskforged.testing.driver import Driver
from taskforged.testing.factory import (
    activity,
    approval,
    child,
    dag,
    fail,
    fan_out,
    group,
    sleep,
    wait,
    with_,
    workflow,
)

SECOND = 1_000_000
RETRY = RetryPolicy(max_attempts=3, strategy=Backoff.FIXED, delay_s=90.0, max_delay_s=90.0, jitter=Jitter.NONE)


def explained(run, model, **facts):
    """Explain a driver's run, with what its history tells, and hold the answer against the contract."""
    facts.setdefault("history", scan(run.history))
    found = explain(run.run, model, ExplainFacts(**facts), run.now)
    assert 1 <= len(found.reasons) <= REASONS_MAX
    assert not found.summary[0].islower()
    assert found.summary[-1] in ".…"
    assert (found.run_id, found.state, found.checked_at) == ("run_1", run.state, run.now)
    for reason in found.reasons:
        assert reason.message
        assert reason.until == 0 or reason.until > 0
        if reason.hint:
            assert_is_a_command(reason.hint)
    return found


def assert_is_a_command(hint):
    words = shlex.split(hint)
    assert words[0] == "taskforgectl"
    command = root()
    context = click.Context(command, info_name="taskforgectl")
    while isinstance(command, click.Group):
        name = words.pop(1)
        command = command.get_command(context, name)
        assert command is not None, f"{hint}: there is no {name}"
        context = click.Context(command, info_name=name, parent=context)
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("-") and word not in ("-n",):
            assert word in options, f"{hint}: there is no {word}"


def only(found):
    assert len(found.reasons) == 1, [reason.message for reason in found.reasons]
    return found.reasons[0]


# --- before it starts ------------------------------------------------------------------------------------------------


def test_a_scheduled_run():
    model = workflow(activity("a"))
    run = Driver(model, run_at=100 * SECOND)
    found = explained(run, model)
    reason = only(found)
    assert (reason.kind, reason.until) == (ReasonKind.SCHEDULED, 100 * SECOND)
    assert found.summary == "The run was created for later and starts in 1 min 39 s."
    assert reason.hint == "taskforgectl run cancel run_1"


def test_a_run_whose_group_is_full():
    model = workflow(activity("a"))
    run = Driver(model, group="deploy-x", group_limit=1)
    pending = PendingFacts("group", 1, ["run_2", "run_3"], 2)
    found = explained(run, model, pending=pending)
    reason = only(found)
    assert (reason.kind, reason.limit, reason.position) == (ReasonKind.CONCURRENCY, 1, 2)
    assert reason.limit_name == "concurrency group deploy-x"
    assert reason.holders == ("run_2", "run_3")
    assert reason.hint == "taskforgectl run explain run_2"
    assert found.summary == (
        "The run waits because concurrency group deploy-x may have 1 run at a time, and 2 runs are ahead of it."
    )


def test_a_run_whose_namespace_is_full():
    model = workflow(activity("a"))
    pending = PendingFacts("namespace", 5, [f"run_{number}" for number in range(20)], 1)
    reason = only(explained(Driver(model), model, namespace="team", pending=pending))
    assert (reason.kind, reason.limit) == (ReasonKind.PENDING_LIMIT, 5)
    assert reason.limit_name == "namespace team: running_runs_max"
    assert reason.hint == "taskforgectl namespace set team --running-runs-max 6"
    assert len(reason.holders) == 10
    assert reason.message.endswith(", and 1 run is ahead of it")


@pytest.mark.parametrize("pending", [None, PendingFacts("none", position=3)])
def test_a_run_that_nothing_holds_up(pending):
    model = workflow(activity("a"))
    reason = only(explained(Driver(model), model, pending=pending))
    assert reason.kind is ReasonKind.STARTING
    assert reason.position == (3 if pending else 0)


# --- queued and executed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lane", "kind", "name", "limit", "hint"),
    [
        (
            LaneFacts("slow", paused=True, queue_limit=1, queue_running=1),
            ReasonKind.QUEUE,
            "queue slow: paused",
            0,
            "taskforgectl queue resume slow",
        ),
        (
            LaneFacts("slow", queue_limit=2, queue_running=2, pool_size=2, pool_running=2),
            ReasonKind.QUEUE,
            "queue slow: running_steps_max",
            2,
            "taskforgectl queue set slow --running-steps-max 3",
        ),
        (
            LaneFacts("slow", namespace_limit=4, namespace_running=5),
            ReasonKind.POOL,
            "namespace default: running_steps_max",
            4,
            "taskforgectl namespace set default --running-steps-max 5",
        ),
        (LaneFacts("slow", pool_size=64, pool_running=64), ReasonKind.POOL, "executor: pool_size", 64, ""),
        (LaneFacts("slow", pool_size=64, pool_running=63), ReasonKind.STARTING, "", 0, ""),
        (None, ReasonKind.STARTING, "", 0, ""),
    ],
)
def test_a_queued_step(lane, kind, name, limit, hint):
    model = workflow(activity("a"))
    if lane is not None:
        lane = lane._replace(positions={"a": 7}, holders=["run_2/x"])
    reason = only(explained(Driver.started(model), model, lane=lane))
    assert (reason.kind, reason.step, reason.limit_name, reason.limit, reason.hint) == (kind, "a", name, limit, hint)
    if lane is not None:
        assert (reason.position, reason.holders) == (7, ("run_2/x",))
        assert "7 steps are ahead of it" in reason.message


def test_hints_name_the_namespace_where_that_matters():
    model = workflow(activity("a"))
    reason = only(explained(Driver.started(model), model, namespace="team", lane=LaneFacts("q", paused=True)))
    assert reason.hint == "taskforgectl queue resume q -n team"


def test_an_executed_step():
    model = workflow(activity("a", {"url": "https://x/y"}, retry=RETRY, timeout_s=30.0))
    run = Driver.started(model)
    run.begin("a")
    run.wait(12)
    found = explained(run, model)
    reason = only(found)
    assert (reason.kind, reason.step, reason.until) == (ReasonKind.EXECUTING, "a", run.now + 18 * SECOND)
    assert found.summary == "Step a is being executed for 12 s, attempt 1 of 3: GET https://x/y."
    assert reason.hint == "taskforgectl run logs run_1 a --follow"


def test_a_step_that_is_tried_again():
    model = workflow(activity("a", retry=RETRY))
    run = Driver.started(model)
    run.fail("a")
    reason = only(explained(run, model))
    assert (reason.kind, reason.until) == (ReasonKind.BACKOFF, run.now + 90 * SECOND)
    assert reason.message == "is tried again in 1 min 30 s: attempt 1 of 3 failed with http_503: a has failed"


# --- waits -----------------------------------------------------------------------------------------------------------


def test_a_sleep():
    model = workflow(sleep("s", 9000))
    run = Driver.started(model)
    found = explained(run, model)
    assert (only(found).kind, only(found).until) == (ReasonKind.TIMER, run.now + 9000 * SECOND)
    assert found.summary == "Step s sleeps for another 2 h 30 min."


def test_a_signal():
    model = workflow(wait("w", "paid in full", timeout_s=60, on_timeout=OnTimeout.CONTINUE))
    run = Driver.started(model)
    reason = only(explained(run, model))
    assert (reason.kind, reason.step, reason.until) == (ReasonKind.SIGNAL, "w", run.now + 60 * SECOND)
    assert reason.message == "waits for signal paid in full and goes on without it in 1 min"
    assert reason.hint == "taskforgectl run signal run_1 'paid in full'"


def test_approvals_in_a_fan_out():
    model = workflow(fan_out("ask", [1, 2], approval("x", "Deploy\nit?", timeout_s=60)))
    found = explained(Driver.started(model), model)
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.APPROVAL, "ask[0]"),
        (ReasonKind.APPROVAL, "ask[1]"),
    ]
    assert found.reasons[0].message == "waits for approval and fails without it in 1 min: Deploy it?"
    assert found.reasons[0].hint == "taskforgectl run approve run_1 'ask[0]'"
    assert found.summary == "2 steps wait for approval."


@pytest.mark.parametrize(("state", "ending"), [("PAUSED", ", which is PAUSED"), ("", ", which is about to start")])
def test_a_sub_workflow(state, ending):
    model = workflow(child("c", "report", version=4))
    run = Driver.started(model)
    run_id = run.step("c").child
    reason = only(explained(run, model, children={run_id: state}))
    assert (reason.kind, reason.child_run_id) == (ReasonKind.CHILD, run_id)
    assert reason.message == f"waits for sub-workflow report v4{ending}"
    assert reason.hint == (f"taskforgectl run explain {run_id}" if state else "")


def test_a_decision():
    model = workflow(activity("pay", effect=Effect.ONCE), activity("b"))
    run = Driver.started(model)
    run.lose("pay")
    reason = only(explained(run, model))
    assert (reason.kind, reason.step) == (ReasonKind.DECISION, "pay")
    assert "the daemon stopped" in reason.message
    assert "run_1/pay" in reason.message
    assert reason.hint == "taskforgectl run resolve run_1 pay --as succeeded"


# --- pause, failure, cancellation ------------------------------------------------------------------------------------


def test_a_paused_run_with_something_at_work():
    model = workflow(main=dag((activity("a"), []), (activity("b"), [])))
    run = Driver.started(model)
    run.begin("a")
    run.pause()
    run.wait(5)
    found = explained(run, model, lane=LaneFacts("default"))
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.PAUSED, ""),
        (ReasonKind.PAUSED, "b"),
        (ReasonKind.EXECUTING, "a"),
    ]
    assert found.reasons[0].hint == "taskforgectl run resume run_1"
    assert found.summary == (
        "The run is paused for 5.0 s by tester (lunch); 1 step is held back, 1 step is being executed."
    )


def test_a_paused_run_with_nothing_at_work():
    model = workflow(activity("a"))
    run = Driver.started(model)
    run.pause()
    assert explained(run, model).summary == "The run is paused for 0.0 s by tester (lunch); 1 step is held back."


def test_a_run_that_is_being_cancelled():
    model = workflow(
        main=dag((activity("a"), []), (child("c", version=1), [])), on_cancel=[activity("tidy")], cancel_grace_s=30
    )
    run = Driver.started(model)
    run.begin("a")
    run.wait(3)
    run.cancel()
    run_id = run.step("c").child
    found = explained(run, model, children={run_id: "RUNNING"})
    assert [(reason.kind, reason.step, reason.child_run_id) for reason in found.reasons] == [
        (ReasonKind.CANCELLING, "", ""),
        (ReasonKind.CANCELLING, "a", ""),
        (ReasonKind.CANCELLING, "c", run_id),
    ]
    assert found.summary == (
        "The run is being cancelled by tester (enough); what is at work has been asked to stop; "
        "2 steps are being stopped."
    )
    run.stop("a")
    run.end_child("c", "CANCELLED")
    run.begin("tidy")
    found = explained(run, model)
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.CANCELLING, ""),
        (ReasonKind.EXECUTING, "tidy"),
    ]
    assert found.reasons[0].until == run.now + 30 * SECOND
    run.fire("")
    found = explained(run, model)
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.CANCELLING, ""),
        (ReasonKind.CANCELLING, "tidy"),
    ]
    run.stop("tidy")
    assert explained(run, model).summary == "The run was cancelled after 33 s by tester (enough)."


def test_a_run_that_has_failed_and_clears_up():
    undo = with_(activity("book"), compensate=activity("x"))
    model = workflow(
        main=dag((undo, []), (activity("slow"), []), (activity("bad"), ["book"])), on_failure=[activity("alert")]
    )
    run = Driver.started(model)
    run.complete("book")
    run.begin("slow")
    run.fail("bad", retryable=False)
    run.now += 1
    found = explained(run, model)
    if run.run.failing is not None:
        assert found.reasons[0].kind is ReasonKind.CANCELLING
        assert found.reasons[0].message.startswith("has failed: step bad: http_503: bad has failed; what is at work")
        run.stop("slow")
    else:
        run.complete("slow")
    run.begin("book:compensate")
    found = explained(run, model)
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.EXECUTING, ""),
        (ReasonKind.EXECUTING, "book:compensate"),
    ]
    assert "1 of 1 steps are still to be undone" in found.summary
    run.fail("book:compensate", retryable=False)
    found = explained(run, model)
    assert "the steps of on_failure are executed" in found.summary
    assert found.reasons[1].kind is ReasonKind.STARTING
    run.fail("alert", retryable=False)
    found = explained(run, model)
    assert [(reason.kind, reason.step) for reason in found.reasons] == [
        (ReasonKind.ENDED, "bad"),
        (ReasonKind.ENDED, "book:compensate"),
        (ReasonKind.ENDED, "alert"),
    ]
    assert found.reasons[1].message == "could not undo its step: http_503: book:compensate has failed"
    assert found.reasons[2].message == "failed in on_failure: http_503: alert has failed"


# --- ended -----------------------------------------------------------------------------------------------------------


def test_runs_that_have_ended():
    model = workflow(activity("a", retry=RetryPolicy(max_attempts=1)))
    good, dead, bad = (Driver.started(model) for _ in range(3))
    good.wait(2)
    good.complete("a")
    dead.fail("a")
    bad.fail("a", retryable=False)
    assert explained(good, model).summary == "The run succeeded after 2.0 s."
    assert only(explained(good, model)).hint == ""
    assert explained(dead, model).summary == (
        "The run is dead after 0.0 s, its attempts used up: step a: http_503: a has failed."
    )
    assert only(explained(dead, model)).hint == "taskforgectl run retry run_1"
    assert only(explained(bad, model)).step == "a"
    reason = only(explained(bad, model, retried_by="run_9"))
    assert reason.message.endswith("; run_9 retries it")
    assert reason.hint == "taskforgectl run show run_9"


def test_a_run_that_was_skipped():
    model = workflow(activity("a"))
    run = Driver(model)
    run.cancel()
    assert run.state is RunState.CANCELLED
    found = explained(run, model, history=HistoryFacts(cancel_at=1, cancel_reason="the group is full"))
    assert found.summary == "The run was cancelled after 0.0 s (the group is full)."


def test_a_step_that_fails_on_purpose():
    model = workflow(fail("f", "x" * 5000))
    found = explained(Driver.started(model), model)
    assert len(found.summary) < 500


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_steps_are_counted():
    body = group("ignored", activity("a"), sleep("b", 60))
    model = workflow(fan_out("all", list(range(400)), body, max_parallel=400))
    run = Driver.started(model)
    for index in range(100):
        run.begin(f"all[{index}].a")
    for index in range(150, 200):
        run.complete(f"all[{index}].a")
    found = explained(run, model, lane=LaneFacts("default", pool_size=100, pool_running=100))
    assert len(found.reasons) == REASONS_MAX
    kinds = [reason.kind for reason in found.reasons]
    assert kinds == sorted(kinds, key=[ReasonKind.POOL, ReasonKind.TIMER, ReasonKind.EXECUTING].index)
    counted = [reason.message for reason in found.reasons if not reason.step]
    shown = {kind: kinds.count(kind) - 1 for kind in set(kinds)}
    assert counted == [
        f"and {250 - shown[ReasonKind.POOL]} more steps wait for an executor",
        f"and {50 - shown[ReasonKind.TIMER]} more steps sleep",
        f"and {100 - shown[ReasonKind.EXECUTING]} more steps are being executed",
    ]
    assert min(shown.values()) >= 1
    assert found.summary == "250 steps wait for an executor, 50 steps sleep, 100 steps are being executed."


@pytest.mark.parametrize("count", [49, 50, 51, 52])
def test_at_the_limit_nothing_is_lost(count):
    model = workflow(fan_out("all", list(range(count)), wait("w", "go")))
    found = explained(Driver.started(model), model)
    told = sum(1 for reason in found.reasons if reason.step)
    more = [int(reason.message.split()[1]) for reason in found.reasons if not reason.step]
    assert told + sum(more) == count


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    yield store
    await store.stop()


class Bench:
    """Runs on a real store, and the two lines in which runs and steps wait."""

    def __init__(self, store):
        self.store, self.runs = store, RunStore(store)
        self.limits = Limits()
        self.admission = Admission(limits=self.limits, admit=lambda _: None)
        self.dispatcher = Dispatcher(
            pool_size=2, limits=self.limits, load_queued=None, claim=lambda key: self.claimed.append(key)
        )
        self.claimed = []
        self.admission.open()
        self.dispatcher.open()

    async def keep(self, run, **new):
        """Store a driver's run; answers its number."""
        no = self.store.next_no("runs")
        new = NewRun(1, 1, **new)
        change = build_change(
            Home(no, 1, 1),
            run.run,
            run.history,
            (),
            set(run.run.steps),
            head_hash=GENESIS,
            new=new,
            claims={},
            news=None,
        )
        change.finished_commands, change.cleared_timers, change.ended_children = [], [], []
        await self.store.journal.submit(Write([change]))
        return no

    async def facts(self, no):
        return await collect(
            self.runs,
            await self.runs.load(no),
            namespace="default",
            admission=self.admission,
            dispatcher=self.dispatcher,
            limits=self.limits,
        )


async def test_collecting_for_a_queued_step(store):
    bench = Bench(store)
    bench.limits.set_queue(1, "default", QueueLimits(running_steps=1))
    model = WorkflowModel("sample", Block((Step("a", "fake", ActivitySpec("fake", activity("a").spec.config)),)))
    first, _, _ = runs = [_started(model, number) for number in range(3)]
    numbers = [await bench.keep(run) for run in runs]
    for no, run in zip(numbers, runs, strict=True):
        bench.dispatcher.enqueue((no, run.step("a").command), Lane(1, "default", 5))
    assert bench.claimed == [(numbers[0], first.step("a").command)]
    facts = await bench.facts(numbers[2])
    assert facts.lane == LaneFacts(
        "default",
        queue_limit=1,
        queue_running=1,
        namespace_running=1,
        pool_size=2,
        pool_running=1,
        positions={"a": 1},
        holders=["run_0/a"],
    )
    bench.limits.set_queue(1, "default", QueueLimits(running_steps=1, paused=True))
    assert (await bench.facts(numbers[2])).lane.blocked_by == "paused"
    bench.limits.set_namespace(1, NamespaceLimits(running_steps=1))
    bench.limits.set_queue(1, "default", QueueLimits())
    facts = await bench.facts(numbers[2])
    assert (facts.lane.blocked_by, facts.lane.holders) == ("namespace", ["run_0/a"])
    bench.limits.set_namespace(1, NamespaceLimits())
    facts = await bench.facts(numbers[2])
    assert (facts.lane.blocked_by, facts.lane.holders) == ("pool", ["run_0/a", "run_1/a"])
    assert facts.lane.positions == {"a": 0}


def _started(model, number):
    run = Driver.started(model)
    run.history[0].body["run_id"] = f"run_{number}"
    run.run.run_id = f"run_{number}"
    return run


async def test_collecting_for_a_pending_run(store):
    bench = Bench(store)
    model = workflow(activity("a"))
    runs = []
    for number in range(3):
        run = Driver(model, group="g", group_limit=1) if number else Driver.started(model, group="g", group_limit=1)
        run.run.run_id = run.history[0].body["run_id"] = f"run_{number}"
        runs.append(run)
    numbers = [await bench.keep(run) for run in runs]
    for no in numbers:
        bench.admission.wait(Ticket(no, 1, 5, "g", 1))
    facts = await bench.facts(numbers[2])
    assert facts.pending == PendingFacts("group", 1, ["run_0"], 1)
    assert facts.lane is None
    assert only(explained_as(runs[2], model, facts)).holders == ("run_0",)


def explained_as(run, model, facts):
    return explain(run.run, model, facts, run.now)


async def test_collecting_sub_workflows_and_history(store):
    bench = Bench(store)
    model = workflow(main=dag((child("c", version=1), []), (child("d", version=1), []), (activity("a"), [])))
    run = Driver.started(model)
    run.begin("a")
    run.cancel()
    no = await bench.keep(run)
    other = Driver(workflow())
    other.run.run_id = other.history[0].body["run_id"] = run.step("c").child
    await bench.keep(other, parent_no=no)
    facts = await bench.facts(no)
    assert facts.children == {run.step("c").child: "PENDING", run.step("d").child: ""}
    assert facts.history == HistoryFacts(
        attempt_starts={"a": SECOND}, cancel_at=SECOND, cancel_by="tester", cancel_reason="enough"
    )


async def test_collecting_for_an_ended_run(store):
    bench = Bench(store)
    model = workflow(activity("a"))
    run = Driver.started(model)
    run.fail("a", retryable=False)
    no = await bench.keep(run)
    again = Driver.started(model)
    again.run.run_id = again.history[0].body["run_id"] = "run_2"
    await bench.keep(again, retry_of_no=no)
    facts = await bench.facts(no)
    assert facts == ExplainFacts(retried_by="run_2")


def test_a_scan_in_parts_is_a_scan():
    run = Driver.started(workflow(activity("a", retry=RETRY), on_cancel=[activity("b")]))
    run.fail("a")
    run.pause()
    run.cancel()
    run.begin("b")
    whole = scan(run.history)
    part = None
    for event in run.history:
        part = scan([event], part)
    assert part == whole
    assert whole.grace_until == run.now + 60 * SECOND
    assert set(whole.attempt_starts) == {"b"}
