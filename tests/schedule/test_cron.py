import datetime as dt

import pytest
from cronsim import CronSim
from hypothesis import assume, given
from hypothesis import strategies as st

from taskforged.schedule import CronError, cross_check, jitter_us, parse_cron
from taskforged.schedule.cron import EXPRESSION_MAX, month_kind

NEVER = "; write L for the last day of a month"
FIVE = "cron has 5 (minute hour day-of-month month day-of-week)"


@pytest.mark.parametrize(
    ("expression", "offset", "message"),
    [
        ("", 0, "is empty; write for example `0 3 * * *` (each day at 03:00)"),
        (" \t ", 0, "is empty; write for example `0 3 * * *` (each day at 03:00)"),
        ("* * * *", 7, f"has 4 fields, {FIVE}"),
        (" *  ", 2, f"has 1 field, {FIVE}"),
        ("* * * * * *", 10, f"has 6 fields, {FIVE}; if the first is meant to be seconds, add `seconds: true`"),
        ("0 0 * * * * 2027", 10, f"has 7 fields, {FIVE}; years are not supported"),
        ("a" * 300, EXPRESSION_MAX, "is longer than 256 characters"),
        ("0 3 * * *\n", 9, "'\\n' is no character of a cron expression"),
        ("0 3 * * *\0", 9, "'\\x00' is no character of a cron expression"),
        ("10–20 * * * *", 2, "'\\u2013' is no character of a cron expression; write -"),
        ("0\u00a03 * * *", 1, "'\\xa0' is no character of a cron expression; write a space"),
        ("٣ * * * *", 0, "'\\u0663' is no character of a cron expression"),
        ("60 * * * *", 0, "60 is out of range: minute is 0-59"),
        ("0,15,75 * * * *", 5, "75 is out of range: minute is 0-59"),
        ("0 24 * * *", 2, "24 is out of range: hour is 0-23; midnight is 0"),
        ("0 0 0 * *", 4, "0 is out of range: day-of-month is 1-31"),
        ("0 0 * 13 *", 6, "13 is out of range: month is 1-12 or JAN-DEC"),
        ("0 0 * 0 *", 6, "0 is out of range: month is 1-12 or JAN-DEC"),
        ("0 0 * * 8", 8, "8 is out of range: day-of-week is 0-7 or SUN-SAT"),
        ("0 0 1-32 * *", 6, "32 is out of range: day-of-month is 1-31"),
        ("5-1 * * * *", 0, "the range 5-1 runs backwards; write 5-59,0-1"),
        ("0 22-5 * * *", 2, "the range 22-5 runs backwards; write 22-23,0-5"),
        ("0 22-0 * * *", 2, "the range 22-0 runs backwards; write 22-23,0"),
        ("0 0 * * FRI-SUN", 8, "the range FRI-SUN runs backwards; write 5-7"),
        ("0 0 * * 6-1", 8, "the range 6-1 runs backwards; write 6,0-1"),
        ("0 0 * NOV-FEB *", 6, "the range NOV-FEB runs backwards; write 11-12,1-2"),
        ("5-5 * * * *", 0, "5-5 is a range from a value to itself; write 5 for one, `*` for all"),
        ("5/15 * * * *", 1, "a step needs a range or `*`: write 5-59/15"),
        ("*/0 * * * *", 2, "a step of 0 never advances; write 1 or more"),
        ("*/61 * * * *", 2, "a step of 61 is larger than its range, which has 60 values of minute"),
        ("0 8-18/12 * * *", 7, "a step of 12 is larger than its range, which has 11 values of hour"),
        ("*/x * * * *", 2, "the step 'X' is no number; write for example */5"),
        ("*/ * * * *", 2, "the step '' is no number; write for example */5"),
        ("*/2/3 * * * *", 2, "the step '2/3' is no number; write for example */5"),
        ("1,,2 * * * *", 2, "the list in minute has an empty element; remove the comma or write a value"),
        ("0 0 1, * *", 6, "the list in day-of-month has an empty element; remove the comma or write a value"),
        ("-1 * * * *", 0, "a value of minute is missing; write 0-59"),
        ("1- * * * *", 2, "a value of minute is missing; write 0-59"),
        ("1.5 * * * *", 0, "1.5 is no minute; write 0-59"),
        ("+5 * * * *", 0, "+5 is no minute; write 0-59"),
        ("** * * * *", 0, "** is no minute; write 0-59"),
        ("0 0 * * MONDAY", 8, "MONDAY is no day-of-week; did you mean MON?"),
        ("0 0 * * mon-fry", 12, "FRY is no day-of-week; did you mean FRI?"),
        ("0 0 * sept *", 6, "SEPT is no month; did you mean SEP?"),
        ("0 0 * MON *", 6, "MON is no month; it belongs into day-of-week; the order is minute hour day-of-month month day-of-week"),
        ("0 0 MAR * *", 4, "MAR is no day-of-month; it belongs into month; the order is minute hour day-of-month month day-of-week"),
        ("0 0 ? * 1", 4, "`?` is not supported; write `*`"),
        ("R * * * *", 0, "`R` (random) is not supported; `H` spreads by a hash that stays the same"),
        ("0 r(0-5) * * *", 2, "`R` (random) is not supported; `H` spreads by a hash that stays the same"),
        ("0 0 15W * *", 4, "`W` (nearest working day) is not supported; write a day, or MON-FRI in day-of-week"),
        ("0 0 LW * *", 4, "`W` (nearest working day) is not supported; write a day, or MON-FRI in day-of-week"),
        ("0 0 L-3 * *", 4, "only `L` alone is supported in day-of-month: the last day"),
        ("0 0 * * L", 8, "`L` in day-of-week needs a day: write L5 for the last Friday"),
        ("0 0 * * 9L", 8, "9 is out of range: day-of-week is 0-7 or SUN-SAT"),
        ("0 0 * * L9", 9, "9 is out of range: day-of-week is 0-7 or SUN-SAT"),
        ("0 0 1#2 * *", 5, "`#` belongs into day-of-week: FRI#2 is the second Friday"),
        ("0 0 * * 5#6", 10, "5#6 is out of range: # takes 1-5, and L5 is the last"),
        ("0 0 * * FRI#0", 12, "FRI#0 is out of range: # takes 1-5, and L5 is the last"),
        ("0 0 * * MON-FRI#2", 8, "`#` takes one day: write FRI#2, and a list for several"),
        ("@reboot", 0, "@reboot is not a time; start the workflow from an event instead"),
        (" @every 5m", 1, "@every is not cron; write for example `*/5 * * * *` for each five minutes"),
        ("@dayly", 0, "@dayly is unknown; did you mean @daily?"),
        ("@", 0, "@ is unknown; known are @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly"),
        ("@daily 3", 7, "@daily stands alone"),
        ("0 @daily * * *", 2, "a name such as @daily stands alone"),
        ("H * * * *", 0, "`H` is spread by a name, and here is none; write a number"),
        ("0 0 30 2 *", 4, f"never occurs: no day of '2' (month) is '30' (day-of-month){NEVER}"),
        ("0 0 31 4 *", 4, f"never occurs: no day of '4' (month) is '31' (day-of-month){NEVER}"),
        ("0 0  31 FEB,APR,6,9,11 *", 5, f"never occurs: no day of 'FEB,APR,6,9,11' (month) is '31' (day-of-month){NEVER}"),
        ("0 0 */30 feb MON#2", 4, "never occurs: no day of 'FEB' (month) is '*/30' (day-of-month) with '1#2' (day-of-week)" + NEVER),
    ],
)  # fmt: skip
def test_refused(expression, offset, message):
    with pytest.raises(CronError) as caught:
        parse_cron(expression)
    assert (caught.value.message, caught.value.offset) == (message, offset)


@pytest.mark.parametrize(
    ("expression", "offset", "message"),
    [
        ("0 3 * * *", 9, "has 5 fields, cron with seconds has 6 (second minute hour day-of-month month day-of-week); write the seconds first, `0` for none"),
        ("60 0 3 * * *", 0, "60 is out of range: second is 0-59"),
        ("* * * * * * *", 12, "has 7 fields, cron with seconds has 6 (second minute hour day-of-month month day-of-week)"),
    ],
)  # fmt: skip
def test_refused_with_seconds(expression, offset, message):
    with pytest.raises(CronError) as caught:
        parse_cron(expression, seconds=True)
    assert (caught.value.message, caught.value.offset) == (message, offset)


@pytest.mark.parametrize(
    ("expression", "offset", "message"),
    [
        ("H(7-0) * * * *", 2, "H(7-0) cannot be drawn: minute is 0-59 for H, the lower first"),
        ("0 0 H(1-31) * *", 6, "H(1-31) cannot be drawn: day-of-month is 1-28 for H, the lower first"),
        ("H-5 * * * *", 0, "H-5 is no hash; write H, H/15, H(0-7) or H(0-29)/10"),
        ("H/0 * * * *", 2, "a step of 0 never advances; write 1 or more"),
        ("0 H(9-17)/10 * * *", 10, "a step of 10 is larger than its range, which has 9 values of hour"),
    ],
)
def test_refused_hashes(expression, offset, message):
    with pytest.raises(CronError) as caught:
        parse_cron(expression, seed="default/release/nightly")
    assert (caught.value.message, caught.value.offset) == (message, offset)


@given(st.text(max_size=40) | st.text("0123456789*,-/#LHRW?@ SUNMONJAdaily()", max_size=40))
def test_a_refusal_points_into_the_text(text):
    try:
        parse_cron(text, seed="s")
    except CronError as error:
        assert 0 <= error.offset <= len(text)
        assert error.message
        assert error.message.isascii()


@pytest.mark.parametrize(
    ("expression", "resolved", "fixed_time"),
    [
        ("@yearly", "0 0 1 1 *", True), ("@annually", "0 0 1 1 *", True), ("@monthly", "0 0 1 * *", True),
        ("@weekly", "0 0 * * 0", True), ("@Daily", "0 0 * * *", True), ("@midnight", "0 0 * * *", True),
        (" @hourly ", "0 * * * *", False),
        ("  0\t 3  * *   mon-Fri ", "0 3 * * MON-FRI", True), ("*/5 3 * * *", "*/5 3 * * *", False),
        ("0-59/5 3 * * *", "0-59/5 3 * * *", True), ("5,* 3 * * *", "5,* 3 * * *", True),
        ("*,5 3 * * *", "*,5 3 * * *", False), ("0 0 * * friL", "0 0 * * L5", True), ("0 0 * * 7#1", "0 0 * * 0#1", True),
    ],
)  # fmt: skip
def test_resolved(expression, resolved, fixed_time):
    cron = parse_cron(expression)
    assert (cron.expression, cron.resolved, cron.fixed_time) == (expression, resolved, fixed_time)
    assert {cron} == {parse_cron(expression)}
    with_seconds = parse_cron(expression if "@" in expression else f"0 {expression}", seconds=True)
    assert with_seconds.resolved == f"0 {resolved}"


# Frozen: a change would move the times of triggers that exist.
@pytest.mark.parametrize(
    ("expression", "seconds", "seed", "resolved"),
    [
        ("H H * * *", False, "default/release/nightly", "20 13 * * *"),
        ("H H * * *", False, "default/release/weekly", "22 13 * * *"),
        ("H/15 * * * *", False, "default/release/nightly", "5-59/15 * * * *"),
        ("H/15 * * * *", False, "default/release/weekly", "7-59/15 * * * *"),
        ("H(0-7) H(9-17)/2 * * *", False, "default/release/nightly", "0 10-17/2 * * *"),
        ("H(0-7) H(9-17)/2 * * *", False, "default/release/weekly", "6 10-17/2 * * *"),
        ("H H H H H", False, "default/release/nightly", "20 13 22 6 3"),
        ("H H H H H", False, "default/release/weekly", "22 13 12 10 0"),
        ("H H H H H H", True, "default/release/nightly", "20 20 13 22 6 3"),
        ("H H H H H H", True, "default/release/weekly", "20 22 13 12 10 0"),
        ("h H(0-6) * * SUN", False, "default/release/nightly", "20 3 * * SUN"),
        ("h H(0-6) * * SUN", False, "default/release/weekly", "22 5 * * SUN"),
        ("H H/8 H/7 * *", False, "default/release/nightly", "20 5-23/8 1-28/7 * *"),
        ("H H/8 H/7 * *", False, "default/release/weekly", "22 5-23/8 5-28/7 * *"),
        ("H,30 0 * * *", False, "default/release/nightly", "20,30 0 * * *"),
        ("H,30 0 * * *", False, "default/release/weekly", "22,30 0 * * *"),
    ],
)  # fmt: skip
def test_hash_vectors(expression, seconds, seed, resolved):
    assert parse_cron(expression, seconds=seconds, seed=seed).resolved == resolved


@pytest.mark.parametrize(
    ("identity", "jitter_s", "delay_us"),
    [
        ("default/release/nightly", 60.0, 59532059),
        ("default/release/weekly", 60.0, 18782952),
        ("ü", 3600.0, 1356397130),
        ("", 0.001, 889),
        ("x", 0.0, 0),
        ("x", 1e-07, 0),
    ],
)  # fmt: skip
def test_jitter_vectors(identity, jitter_s, delay_us):
    assert jitter_us(identity, jitter_s) == delay_us


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 86_400))
def test_jitter_is_in_bounds(identity, jitter_s):
    assert 0 <= jitter_us(identity, jitter_s) < max(round(jitter_s * 1e6), 1)


def test_jitter_spreads():
    drawn = sorted(jitter_us(f"trigger-{number}", 60.0) for number in range(600))
    tenths = [sum(low <= x < low + 6_000_000 for x in drawn) for low in range(0, 60_000_000, 6_000_000)]
    assert min(tenths) > 30


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(["H(1-28)", "H", "H/5", "H/28"]))
def test_hashed_days_exist_in_every_month(seed, day):
    cron = parse_cron(f"0 0 {day} * *", seed=seed)
    assert all(cron.days[kind] for kind in range(28))
    assert {n for days in cron.days for n in days} <= set(range(1, 29))


def test_an_interval_by_hash_is_one_as_with_a_star():
    assert not parse_cron("H/15 3 * * *", seed="s").fixed_time
    assert parse_cron("H(0-59)/15 3 * * *", seed="s").fixed_time
    both = parse_cron("0 0 H/2 * MON", seed="s").days[month_kind(31, 1)]
    assert len(both) in {2, 3}
    either = parse_cron("0 0 H * MON", seed="s").days[month_kind(31, 1)]
    assert {1, 8, 15, 22, 29} <= set(either)


BOUNDS = {"second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}
NAMES = {
    "month": "- JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split(),
    "weekday": "SUN MON TUE WED THU FRI SAT".split(),
}


@st.composite
def terms(draw, field):
    low, high = BOUNDS[field]
    names = NAMES.get(field, [])
    text = lambda n: draw(st.sampled_from([str(n), names[n], names[n].lower()])) if n < len(names) else str(n)
    kind = draw(st.sampled_from(["*", "*/", "one", "one", "range", "range/"]))
    size = min(high, 6 if field == "weekday" else high) - low + 1
    if kind == "*":
        return "*"
    if kind == "*/":
        return f"*/{draw(st.integers(1, size))}"
    first = draw(st.integers(low, high - 1))
    if kind == "one":
        return text(first)
    last = draw(st.integers(first + 1, high))
    step = f"/{draw(st.integers(1, last - first + 1))}" if kind == "range/" else ""
    return f"{text(first)}-{text(last)}{step}"


@st.composite
def days(draw, field):
    if field == "weekday" and draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(["L5", "0L", "FRI#2", "1#5", "MON#1,WED#3", "7#4"]))
    if field == "day" and draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(["L", "1,L", "15,L", "31", "29"]))
    return draw(columns(field))


def columns(field):
    return st.lists(terms(field), min_size=1, max_size=3).map(",".join)


FIELDS = [columns("minute"), columns("hour"), days("day"), columns("month"), days("weekday")]
EXPRESSIONS = st.tuples(*FIELDS).map(" ".join)


@given(EXPRESSIONS)
def test_fields_as_croniter_and_cronsim_read_them(expression):
    cron = accepted(expression)
    cross_check(cron)
    theirs = CronSim(expression.replace("L5", "5L"), dt.datetime(2026, 1, 1))
    assert (set(cron.minutes), set(cron.hours), set(cron.months)) == (theirs.minutes, theirs.hours, theirs.months)


@given(EXPRESSIONS, st.integers(1990, 2090))
def test_days_as_cronsim_reads_them(expression, year):
    cron = accepted(expression)
    theirs = CronSim(expression.replace("L5", "5L"), dt.datetime(2026, 1, 1))
    for number in range(366):
        day = dt.date(year, 1, 1) + dt.timedelta(days=number)
        first = day.replace(day=1)
        length = ((first + dt.timedelta(days=31)).replace(day=1) - first).days
        ours = day.day in cron.days[month_kind(length, (first.weekday() + 1) % 7)]
        assert ours == theirs.match_day(day), day


@given(columns("second"), EXPRESSIONS)
def test_seconds_as_croniter_reads_them(second, expression):
    accepted(expression)
    cross_check(parse_cron(f"{second} {expression}", seconds=True))


def accepted(expression):
    try:
        return parse_cron(expression)
    except CronError as error:
        assert "never occurs" in error.message
        assume(False)


def test_never_occurs_is_exact():
    assert parse_cron("0 0 29 2 *")
    assert parse_cron("0 0 */28 2 MON#5")  # 2044: a 29 February that is a Monday
    assert parse_cron("0 0 31 2 MON")  # one is enough
    for refused in ("0 0 30 2 *", "0 0 30,31 2 *", "0 0 31 4 */2", "0 0 */30 2 MON#2"):
        with pytest.raises(CronError, match="never occurs"):
            parse_cron(refused)


@pytest.mark.parametrize(
    "expression", ["0 0 L * *", "@daily", "0 0 * * 5L,MON", "*/5 1-7 * JAN-MAR,12 MON-7", "H H * * *"]
)
def test_the_cross_check_accepts(expression):
    cross_check(parse_cron(expression, seed="s"))


def test_the_cross_check_refuses_what_croniter_reads_otherwise(monkeypatch):
    cron = parse_cron("5 * * * *")
    object.__setattr__(cron, "minutes", (6,))
    with pytest.raises(CronError, match="croniter reads"):
        cross_check(cron)
    object.__setattr__(cron, "resolved", "60 * * * *")
    with pytest.raises(CronError, match="croniter refuses it"):
        cross_check(cron)
