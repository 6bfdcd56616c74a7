import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule.cases import DAY_US, US, cases, walk
from schedule.zone_data import utc

from taskforged.schedule import Schedule, count_slots, local_text, parse_cron, slots_after, slots_before

spans = (
    st.integers(0, 2 * DAY_US)
    | st.integers(0, 30 * DAY_US).map(lambda n: n if n % 8 == 0 else n // 20)
    | st.integers(0, 400).map(lambda n: n * 600 * US)
)


@given(cases(), spans)
@settings(max_examples=150, deadline=None)
def test_counting_and_walking_backwards_agree_with_walking_forwards(case, span):
    schedule, after = case
    until = after + span
    slots = walk(schedule, after, until)
    assert slots == sorted(set(slots))
    assert all(after < slot.due_at <= until for slot in slots)
    assert count_slots(schedule, after, until) == len(slots)
    assert slots_before(schedule, after, until, 5000) == slots
    for limit in (0, 1, 3, len(slots)):
        assert slots_before(schedule, after, until, limit) == slots[len(slots) - min(limit, len(slots)) :]
        assert slots_after(schedule, after, limit)[: len(slots)] == slots[:limit]


@given(cases(), st.lists(st.integers(0, 2000 * DAY_US), max_size=4))
def test_counts_add_up(case, cuts):
    schedule, after = case
    points = [after, *sorted(after + cut for cut in cuts)]
    parts = [count_slots(schedule, a, b) for a, b in zip(points, points[1:], strict=False)]
    assert sum(parts) == count_slots(schedule, points[0], points[-1])


@given(cases(), st.integers(0, 2000 * DAY_US))
def test_nothing_lies_in_a_span_that_runs_backwards(case, span):
    schedule, after = case
    assert count_slots(schedule, after, after - span) == 0
    assert slots_before(schedule, after, after - span, 9) == []


def test_bounds():
    at = utc("2026-11-22T03:00:00+00:00") * US
    cron = parse_cron("0 3 * * *")
    first = lambda schedule: slots_after(schedule, at - DAY_US, 1)[0].due_at
    assert first(Schedule(cron, start_at=at)) == at
    assert first(Schedule(cron, start_at=at + 1)) == at + DAY_US
    assert slots_after(Schedule(cron, end_at=at), at - DAY_US, 9) == []
    assert [slot.due_at for slot in slots_after(Schedule(cron, end_at=at + 1), at - DAY_US, 9)] == [at]
    assert slots_after(Schedule(cron), at - 1, 1)[0].due_at == at
    assert slots_after(Schedule(cron), at, 1)[0].due_at == at + DAY_US
    assert count_slots(Schedule(cron, start_at=at, end_at=at + 3 * DAY_US), 0, 2 * at) == 3


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 29 2 MON#5", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 */28 2 MON#5", ["2044-02-29", "2072-02-29", "2112-02-29", "2140-02-29"]),
        ("0 0 L 2 *", ["2027-02-28", "2028-02-29"]),
        ("0 0 * * L5", ["2026-11-27", "2026-12-25", "2027-01-29"]),
        ("0 0 * * FRI#5", ["2027-01-29", "2027-04-30", "2027-07-30"]),
        ("0 0 13 * FRI", ["2026-11-27", "2026-12-04", "2026-12-11", "2026-12-13"]),
        ("0 0 */2 * MON", ["2026-11-23", "2026-12-07", "2026-12-21", "2027-01-11"]),
        ("0 0 31 * *", ["2026-12-31", "2027-01-31", "2027-03-31"]),
    ],
)
def test_rare_days(expression, wanted):
    slots = slots_after(Schedule(parse_cron(expression)), utc("2026-11-22T00:00:00+00:00") * US, len(wanted))
    assert [local_text(slot.due_at, "UTC")[:10] for slot in slots] == wanted


def test_a_schedule_that_lies_in_the_gap_alone_ends_the_search():
    schedule = Schedule(parse_cron("30 2 * 3 L0"), "Europe/Berlin", gap="skip")
    assert slots_after(schedule, utc("2026-01-01T00:00:00+00:00") * US, 1) == []
    assert slots_before(schedule, utc("2000-01-01T00:00:00+00:00") * US, utc("2026-01-01T00:00:00+00:00") * US, 1) == []


def test_the_ends_of_time():
    every = Schedule(parse_cron("* * * * *"), "Pacific/Auckland")
    assert slots_after(every, -(10**18), 1)[0].due_at == 0
    assert slots_after(every, 10**18, 1) == []
    assert slots_before(every, -(10**18), 10**18, 1)[0].due_at == utc("2999-12-31T23:59:00+00:00") * US
    assert slots_after(Schedule(parse_cron("0 0 1 1 *"), start_at=utc("2500-06-01T00:00:00+00:00") * US), 0, 1)
    assert slots_after(every, 0, -1) == []


@pytest.mark.parametrize("options", [{"gap": "no"}, {"fold": "no"}, {"delay_us": -1}])
def test_refused(options):
    with pytest.raises(ValueError, match="gap is shift or skip, fold is first, last or both"):
        Schedule(parse_cron("* * * * *"), **options)
