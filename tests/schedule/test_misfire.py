import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule.cases import DAY_US, US, cases, walk
from schedule.zone_data import utc

from taskforged.schedule import Policy, Range, Schedule, parse_cron, plan, slots_after
from taskforged.schedule.misfire import ON_TIME_MAX

HOUR_US = 3600 * US
NOW = utc("2026-11-22T12:00:00+00:00") * US
HOURLY = Schedule(parse_cron("0 * * * *"))

policies = st.builds(
    Policy,
    misfire=st.sampled_from(["latest", "all", "skip"]),
    window_us=st.sampled_from([0, 0, 1, 20 * 60 * US, HOUR_US, DAY_US]),
    cap=st.sampled_from([0, 1, 3, 1000]),
)
spans = st.integers(0, DAY_US) | st.integers(0, 150).map(lambda n: n * 600 * US)
pauses = st.none() | st.tuples(st.integers(-DAY_US, DAY_US), st.integers(-DAY_US, DAY_US))


def expected(schedule, policy, cursor, now, suspended, on_time_us):
    """The rules, slot by slot: (due_at, what becomes of it, why)."""
    slots = walk(schedule, cursor, now - schedule.delay_us)
    late = {slot: now - slot.due_at - schedule.delay_us for slot in slots}
    on_time = [slot for slot in slots if late[slot] <= on_time_us]
    misfired = [slot for slot in slots if late[slot] > on_time_us]
    young = [slot for slot in misfired if not policy.window_us or late[slot] <= policy.window_us]
    if policy.misfire == "skip":
        fires, why = on_time, lambda slot: ("MISSED", "missed; misfire: skip")
    elif policy.misfire == "latest" and (on_time or young):
        fires, why = on_time or young[-1:], lambda slot: ("COALESCED", "coalesced into the next due time that fires")
    else:
        fires = young[max(len(young) - policy.cap, 0) :] + on_time if policy.misfire == "all" else []
        why = lambda slot: (
            "MISSED",
            f"more than the cap of {policy.cap}" if slot in young else "older than the window of",
        )
    paused = lambda slot: suspended is not None and suspended[0] <= slot.due_at < suspended[1]
    return [
        (slot.due_at, "FIRE", "")
        if slot in fires
        else (slot.due_at, "SUPPRESSED", "paused")
        if paused(slot)
        else (slot.due_at, *why(slot))
        for slot in slots
    ]


def settled(schedule, made):
    """The same, from a plan; checks that its ranges are what they say."""
    found = []
    for part in made.ranges:
        slots = walk(schedule, part.first - 1, part.last)
        assert (slots[0].due_at, slots[-1].due_at, len(slots)) == (part.first, part.last, part.count)
        found += [(slot.due_at, part.outcome, part.reason) for slot in slots]
    return found + [(slot.due_at, "FIRE", "") for slot in made.fire]


@given(cases(), policies, spans, pauses, st.sampled_from([0, 5 * US, 5 * US, HOUR_US]))
@settings(max_examples=300, deadline=None)
def test_the_plan_is_the_rules(case, policy, span, pause, on_time_us):
    schedule, cursor = case
    now = cursor + span
    suspended = pause and (cursor + pause[0], cursor + pause[1])
    made = plan(schedule, policy, cursor=cursor, now=now, suspended=suspended, on_time_us=on_time_us)
    wanted = expected(schedule, policy, cursor, now, suspended, on_time_us)
    found = settled(schedule, made)
    assert [(due, outcome) for due, outcome, _ in found] == [(due, outcome) for due, outcome, _ in wanted]
    assert all(reason.startswith(start) for (_, _, reason), (_, _, start) in zip(found, wanted, strict=True))
    assert made.cursor == (wanted[-1][0] if wanted else cursor)
    following = slots_after(schedule, made.cursor, 1)
    assert made.next_at == (following[0].due_at + schedule.delay_us if following else None)
    assert made.next_at is None or made.next_at > now
    assert made.fire == [slot for slot in walk(schedule, cursor, now) if slot in made.fire]
    neighbours = zip(made.ranges, made.ranges[1:], strict=False)
    assert all((a.outcome, a.reason) != (b.outcome, b.reason) for a, b in neighbours)


@given(
    cases(),
    policies,
    st.lists(st.tuples(st.integers(-HOUR_US, 6 * HOUR_US), st.booleans()), min_size=1, max_size=8),
    pauses,
)
@settings(max_examples=150, deadline=None)
def test_every_due_time_is_settled_once(case, policy, steps, pause):
    """Whatever the clock does between plans, and though some plans are lost before they are stored."""
    schedule, start = case
    cursor = now = start
    suspended = pause and (start + pause[0], start + pause[1])
    found, latest = [], start
    for step, lost in steps:
        now += step
        made = plan(schedule, policy, cursor=cursor, now=now, suspended=suspended)
        assert made.cursor >= cursor
        if now < cursor:
            assert (made.fire, made.ranges, made.cursor) == ([], [], cursor)
        if lost:
            continue
        cursor, latest = made.cursor, max(latest, now)
        found += [due for due, _, _ in settled(schedule, made)]
    assert found == [slot.due_at for slot in walk(schedule, start, latest - schedule.delay_us)]


@given(cases(), st.integers(0, 3 * DAY_US))
@settings(max_examples=50, deadline=None)
def test_a_second_plan_at_the_same_time_has_nothing_to_do(case, span):
    schedule, cursor = case
    now = cursor + span
    first = plan(schedule, Policy(), cursor=cursor, now=now)
    assert plan(schedule, Policy(), cursor=first.cursor, now=now) == first._replace(fire=[], ranges=[])


def due(hours):
    return NOW + hours * HOUR_US


def row(made):
    return [*made.fire], made.ranges, made.cursor, made.next_at


@pytest.mark.parametrize(
    ("policy", "ranges", "fires"),
    [
        (Policy(), [Range(due(-3), due(-1), 3, "COALESCED", "coalesced into the next due time that fires")], [due(0)]),
        (Policy("skip"), [Range(due(-3), due(0), 4, "MISSED", "missed; misfire: skip")], []),
        (Policy("all"), [], [due(-3), due(-2), due(-1), due(0)]),
        (Policy("all", cap=2), [Range(due(-3), due(-2), 2, "MISSED", "more than the cap of 2")], [due(-1), due(0)]),
        (Policy("all", cap=0), [Range(due(-3), due(0), 4, "MISSED", "more than the cap of 0")], []),
        (
            Policy("all", window_us=2 * HOUR_US + 30 * 60 * US, cap=1),
            [
                Range(due(-3), due(-2), 2, "MISSED", "older than the window of 2h30m"),
                Range(due(-1), due(-1), 1, "MISSED", "more than the cap of 1"),
            ],
            [due(0)],
        ),
        (
            Policy("all", window_us=50 * 60 * US),
            [Range(due(-3), due(-1), 3, "MISSED", "older than the window of 50m")],
            [due(0)],
        ),
        (Policy(window_us=90 * US), [Range(due(-3), due(0), 4, "MISSED", "older than the window of 1m30s")], []),
        (Policy(window_us=1), [Range(due(-3), due(0), 4, "MISSED", "older than the window of 1us")], []),
    ],
)
def test_misfired(policy, ranges, fires):
    """Down since 08:30, up at 12:50."""
    now = NOW + 50 * 60 * US
    made = plan(HOURLY, policy, cursor=due(-4), now=now)
    assert ([slot.due_at for slot in made.fire], made.ranges, made.cursor, made.next_at) == (
        fires,
        ranges,
        due(0),
        due(1),
    )


def test_what_is_on_time_takes_the_place_of_what_is_late():
    made = plan(HOURLY, Policy(window_us=60 * US), cursor=due(-4), now=NOW + 5 * US)
    assert [slot.due_at for slot in made.fire] == [due(0)]
    assert made.ranges == [Range(due(-3), due(-1), 3, "COALESCED", "coalesced into the next due time that fires")]
    narrow = plan(HOURLY, Policy("all", window_us=US), cursor=due(-4), now=NOW + 5 * US)
    assert narrow.fire == made.fire
    assert narrow.ranges == [Range(due(-3), due(-1), 3, "MISSED", "older than the window of 1s")]
    late = plan(HOURLY, Policy("skip"), cursor=due(-4), now=NOW + 5 * US + 1)
    assert late.fire == []


def test_a_pause_splits_the_ledger():
    made = plan(HOURLY, Policy("skip"), cursor=due(-6), now=due(0), suspended=(due(-4), due(-2)))
    assert [part[2:] for part in made.ranges] == [
        (1, "MISSED", "missed; misfire: skip"), (2, "SUPPRESSED", "paused"), (2, "MISSED", "missed; misfire: skip"),
    ]  # fmt: skip
    assert [slot.due_at for slot in made.fire] == [due(0)]
    assert plan(HOURLY, Policy("skip"), cursor=due(-6), now=due(0), suspended=(due(-2), due(-4))).ranges[0].count == 5


def test_the_delay_moves_the_firing_and_not_the_due_time():
    schedule = Schedule(parse_cron("0 * * * *"), delay_us=90 * US)
    waiting = plan(schedule, Policy(), cursor=due(-1), now=NOW + 90 * US - 1)
    assert row(waiting) == ([], [], due(-1), NOW + 90 * US)
    fired = plan(schedule, Policy("skip"), cursor=due(-1), now=NOW + 90 * US)
    assert row(fired) == ([(NOW, "")], [], NOW, due(1) + 90 * US)


def test_a_schedule_that_has_ended():
    schedule = Schedule(parse_cron("0 * * * *"), end_at=due(-1))
    made = plan(schedule, Policy(), cursor=due(-3), now=NOW)
    assert (row(made)) == ([(due(-2), "")], [], due(-2), None)


def test_sixty_years_of_seconds():
    """The clock said 1970 when the cursor was stored; what fires stays bounded."""
    every = Schedule(parse_cron("* * * * * *", seconds=True), "Europe/Berlin")
    made = plan(every, Policy("all", cap=10), cursor=0, now=NOW)
    assert len(made.fire) == 10 + 6
    assert made.ranges == [Range(US, NOW - 16 * US, NOW // US - 16, "MISSED", "more than the cap of 10")]
    wide = plan(every, Policy(), cursor=0, now=NOW, on_time_us=NOW)
    assert len(wide.fire) == ON_TIME_MAX
    assert sum(part.count for part in wide.ranges) == NOW // US - ON_TIME_MAX


@pytest.mark.parametrize("options", [{"misfire": "no"}, {"window_us": -1}, {"cap": -1}])
def test_refused(options):
    with pytest.raises(ValueError, match="misfire is latest, all or skip"):
        Policy(**options)
