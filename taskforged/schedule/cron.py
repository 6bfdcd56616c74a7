"""Cron expressions: a strict gate in front, and the set of local times that an expression means.

What an expression means under a profile never changes; it is therefore read here and not by a library. croniter's
meaning moved between its releases (59/15, Jan-Jan), and it accepts what means nothing (`0 0 30 2 *`) or something else
on each load (`R * * * *`). Where Debian's cron, croniter and cronsim disagree, the gate refuses and says what to write
instead. `crosscheck` compares with croniter when a definition is registered.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

__all__ = ["EXPRESSION_MAX", "PROFILE", "Cron", "CronError", "parse_cron"]

PROFILE = "cron/1"
"""Names the grammar and the rules for clock changes; stored with each trigger, and part of what `H` hashes."""

EXPRESSION_MAX = 256
"""Characters in an expression. A list of all 60 minutes has 169."""


class CronError(ValueError):
    """An expression that is refused.

    Attributes:
        message: What is wrong and what to write instead.
        offset: Index of the offending character in the expression.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. `expression` and `resolved` say everything; the rest is derived from them.

    Attributes:
        expression: As written.
        resolved: The same with `H` and `@daily` replaced by what they stand for.
        seconds, minutes, hours, months: Values, ascending.
        days: The matching days of each kind of month, see `month_kind`.
        fixed_time: Neither minute nor hour starts with `*`: the job means a time of day, not an interval.
    """

    expression: str
    resolved: str
    seconds: tuple[int, ...] = field(compare=False, repr=False)
    minutes: tuple[int, ...] = field(compare=False, repr=False)
    hours: tuple[int, ...] = field(compare=False, repr=False)
    months: tuple[int, ...] = field(compare=False, repr=False)
    days: tuple[tuple[int, ...], ...] = field(compare=False, repr=False)
    fixed_time: bool = field(compare=False, repr=False)


def month_kind(length: int, first_weekday: int) -> int:
    """Answer the index into `Cron.days` of a month with so many days that begins on a weekday (0: Sunday)."""
    return (length - 28) * 7 + first_weekday


class _Spec(NamedTuple):
    """One column: its name, its bounds and the names of its values."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    first: int = 0

    @property
    def top(self) -> int:
        """The largest number that may be written: Sunday is 0 and 7."""
        return 7 if self.name == "day-of-week" else self.high


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_SECOND = _Spec("second", 0, 59)
_MINUTE = _Spec("minute", 0, 59)
_HOUR = _Spec("hour", 0, 23)
_DAY = _Spec("day-of-month", 1, 31)
_MONTH = _Spec("month", 1, 12, _MONTHS, 1)
_WEEKDAY = _Spec("day-of-week", 0, 6, _WEEKDAYS, 0)
_COLUMNS = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)

_HASHED_DAY_MAX = 28
"""`H` in day-of-month stays in the days that every month has."""

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_LOOKALIKES = {"–": "-", "—": "-", "−": "-", "∗": "*", "＊": "*", "×": "*", "，": ",", "／": "/", "\u00a0": "a space"}  # noqa: RUF001
_FEBRUARY = 2
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HASH = re.compile(r"H(?:\((\d+)-(\d+)\))?(?:/(\d+))?\Z", re.ASCII)
_LAST_WEEKDAY = re.compile(r"L(?P<after>\w+)\Z|(?P<before>\w+)L\Z", re.ASCII)
_WORD = re.compile(r"\S+", re.ASCII)


class _Column(NamedTuple):
    """What one column means."""

    values: frozenset[int]
    text: str
    starred: bool = False
    last: bool = False
    nth: frozenset[tuple[int, int]] = frozenset()
    """(weekday, n) of `FRI#2`; n is 0 for the last one of the month."""


def parse_cron(expression: str, *, seconds: bool = False, seed: str = "") -> Cron:
    """Read an expression of five columns, or of six with seconds first.

    Args:
        expression: What the user wrote.
        seconds: Whether there is a sixth column, in front.
        seed: What `H` is the hash of, for example namespace, workflow and trigger; empty: `H` is refused.

    Raises:
        CronError: It is refused; the message says what to write instead.
    """
    _check_characters(expression)
    words = _words(expression, seconds=seconds)
    specs = (_SECOND, *_COLUMNS) if seconds else _COLUMNS
    columns = [_column(spec, word, at, seed) for spec, (word, at) in zip(specs, words, strict=True)]
    second = columns[0] if seconds else _Column(frozenset((0,)), "0")
    minute, hour, day, month, weekday = columns[-5:]
    days = _days(day, weekday)
    if not _occurs(days, month.values):
        raise CronError(
            f"never occurs: no day of {month.text!r} (month) is {day.text!r} (day-of-month)"
            + ("" if weekday.text == "*" else f" with {weekday.text!r} (day-of-week)")
            + "; write L for the last day of a month",
            words[-3][1],
        )
    return Cron(
        expression=expression,
        resolved=" ".join(column.text for column in columns),
        seconds=tuple(sorted(second.values)),
        minutes=tuple(sorted(minute.values)),
        hours=tuple(sorted(hour.values)),
        months=tuple(sorted(month.values)),
        days=days,
        fixed_time=not (minute.starred or hour.starred),
    )


def _check_characters(expression: str) -> None:
    if len(expression) > EXPRESSION_MAX:
        raise CronError(f"is longer than {EXPRESSION_MAX} characters", EXPRESSION_MAX)
    for at, char in enumerate(expression):
        if not (" " <= char <= "~" or char == "\t"):
            hint = f"; write {_LOOKALIKES[char]}" if char in _LOOKALIKES else ""
            raise CronError(f"{char!a} is no character of a cron expression{hint}", at)


def _words(expression: str, *, seconds: bool) -> list[tuple[str, int]]:
    """Answer the columns, in capitals, with their offsets."""
    words = [(found[0].upper(), found.start()) for found in _WORD.finditer(expression)]
    if not words:
        raise CronError("is empty; write for example `0 3 * * *` (each day at 03:00)", 0)
    if words[0][0].startswith("@"):
        return _alias(words, seconds=seconds)
    wanted = 6 if seconds else 5
    if len(words) != wanted:
        at = words[wanted][1] if len(words) > wanted else len(expression.rstrip())
        raise CronError(_miscounted(len(words), seconds=seconds), at)
    return words


def _miscounted(count: int, *, seconds: bool) -> str:
    names = "minute hour day-of-month month day-of-week"
    plural = "field" if count == 1 else "fields"
    if seconds:
        hint = "; write the seconds first, `0` for none" if count == len(_COLUMNS) else ""
        return f"has {count} {plural}, cron with seconds has 6 (second {names}){hint}"
    hint = "; if the first is meant to be seconds, add `seconds: true`" if count == len(_COLUMNS) + 1 else ""
    hint = "; years are not supported" if count == len(_COLUMNS) + 2 else hint
    return f"has {count} {plural}, cron has 5 ({names}){hint}"


def _alias(words: list[tuple[str, int]], *, seconds: bool) -> list[tuple[str, int]]:
    name, at = words[0][0].lower(), words[0][1]
    if name == "@reboot":
        raise CronError("@reboot is not a time; start the workflow from an event instead", at)
    if name == "@every":
        raise CronError("@every is not cron; write for example `*/5 * * * *` for each five minutes", at)
    if name not in _ALIASES:
        raise CronError(f"{name} is unknown{_did_you_mean(name, _ALIASES)}", at)
    if len(words) > 1:
        raise CronError(f"{name} stands alone", words[1][1])
    text = f"0 {_ALIASES[name]}" if seconds else _ALIASES[name]
    return [(word, at) for word in text.split()]


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _column(spec: _Spec, text: str, at: int, seed: str) -> _Column:
    parts = []
    for term in text.split(","):
        parts.append(_term(spec, term, at, seed))
        at += len(term) + 1
    return _Column(
        frozenset().union(*(part.values for part in parts)),
        ",".join(part.text for part in parts),
        # Debian's cron looks at the first character of a column only, and so do `*/2` and `*,5` count.
        starred=parts[0].starred,
        last=any(part.last for part in parts),
        nth=frozenset().union(*(part.nth for part in parts)),
    )


def _term(spec: _Spec, term: str, at: int, seed: str) -> _Column:
    """Read one element of a list."""
    _refuse_foreign(spec, term, at)
    if term.startswith("H"):
        return _hashed(spec, term, at, seed)
    if spec is _DAY and term == "L":
        return _Column(frozenset(), "L", last=True)
    if spec is _WEEKDAY and ("#" in term or _LAST_WEEKDAY.match(term)):
        return _nth_weekday(term, at)
    base, slash, step_text = term.partition("/")
    if base == "*":
        values = range(spec.low, spec.high + 1)
    elif "-" in base:
        values = _range(spec, base, at)
    elif slash:
        raise CronError(f"a step needs a range or `*`: write {base}-{spec.high}/{step_text}", at + len(base))
    else:
        values = range(number := _value(spec, base, at), number + 1)
    if slash:
        values = values[:: _step(spec, step_text, at + len(base) + 1, len(values))]
    return _Column(_wrapped(spec, values), term, starred=base == "*")


def _wrapped(spec: _Spec, values: Iterable[int]) -> frozenset[int]:
    return frozenset(value % 7 for value in values) if spec is _WEEKDAY else frozenset(values)


def _refuse_foreign(spec: _Spec, term: str, at: int) -> None:
    """Refuse what other schedulers know and we do not, by its name."""
    if not term:
        raise CronError(f"the list in {spec.name} has an empty element; remove the comma or write a value", at)
    if "?" in term:
        raise CronError("`?` is not supported; write `*`", at + term.index("?"))
    if term.startswith("@"):
        raise CronError("a name such as @daily stands alone", at)
    if re.match(r"R(?:[(/]|\Z)", term):
        raise CronError("`R` (random) is not supported; `H` spreads by a hash that stays the same", at)
    if spec is _DAY and re.match(r"(?:\d+W|W\d+|LW|WL|W)\Z", term, re.ASCII):
        raise CronError("`W` (nearest working day) is not supported; write a day, or MON-FRI in day-of-week", at)
    if spec is _DAY and "L" in term and term != "L":
        raise CronError("only `L` alone is supported in day-of-month: the last day", at)
    if spec is _WEEKDAY and term == "L":
        raise CronError("`L` in day-of-week needs a day: write L5 for the last Friday", at)
    if "#" in term and spec is not _WEEKDAY:
        raise CronError("`#` belongs into day-of-week: FRI#2 is the second Friday", at + term.index("#"))


def _value(spec: _Spec, text: str, at: int) -> int:
    """Read a number or a name; Sunday may still be 7."""
    if text in spec.names:
        return spec.names.index(text) + spec.first
    if not text:
        raise CronError(f"a value of {spec.name} is missing; write {_bounds(spec)}", at)
    if not text.isdigit():
        raise CronError(f"{text} is no {spec.name}; {_name_hint(spec, text)}", at)
    value = int(text)
    if not spec.low <= value <= spec.top:
        hint = "; midnight is 0" if spec is _HOUR and value == spec.high + 1 else ""
        raise CronError(f"{text} is out of range: {spec.name} is {_bounds(spec)}{hint}", at)
    return value


def _bounds(spec: _Spec) -> str:
    names = f" or {spec.names[0]}-{spec.names[-1]}" if spec.names else ""
    return f"{spec.low}-{spec.top}{names}"


def _name_hint(spec: _Spec, text: str) -> str:
    if spec.names and text.isalpha():
        near = [name for name in spec.names if text.startswith(name)]
        near = near or difflib.get_close_matches(text, spec.names, n=1, cutoff=0.5)
        if near:
            return f"did you mean {near[0]}?"
    other = _WEEKDAY if text in _WEEKDAYS else _MONTH if text in _MONTHS else None
    if other is not None:
        return f"it belongs into {other.name}; the order is minute hour day-of-month month day-of-week"
    return f"write {_bounds(spec)}"


def _range(spec: _Spec, base: str, at: int) -> range:
    low_text, _, high_text = base.partition("-")
    low = _value(spec, low_text, at)
    high_at = at + len(low_text) + 1
    high = _value(spec, high_text, high_at)
    if low == high:
        raise CronError(f"{base} is a range from a value to itself; write {low_text} for one, `*` for all", at)
    if low < high:
        return range(low, high + 1)
    if spec is _WEEKDAY and high == 0:
        mended = f"{low}-7"
    else:
        mended = ",".join(f"{a}-{b}" if a < b else str(a) for a, b in ((low, spec.high), (spec.low, high)))
    raise CronError(f"the range {base} runs backwards; write {mended}", at)


def _step(spec: _Spec, text: str, at: int, size: int) -> int:
    if not text.isdigit():
        raise CronError(f"the step {text!r} is no number; write for example */5", at)
    step = int(text)
    if step == 0:
        raise CronError("a step of 0 never advances; write 1 or more", at)
    if step > size:
        raise CronError(f"a step of {step} is larger than its range, which has {size} values of {spec.name}", at)
    return step


def _nth_weekday(term: str, at: int) -> _Column:
    """Read `FRI#2`, `L5` or `5L`."""
    last = _LAST_WEEKDAY.match(term)
    if last is not None:
        text = last["after"] or last["before"]
        day = _value(_WEEKDAY, text, at + (1 if last["after"] else 0)) % 7
        return _Column(frozenset(), f"L{day}", nth=frozenset(((day, 0),)))
    text, _, number = term.partition("#")
    if "-" in text or "*" in text or "/" in term:
        raise CronError("`#` takes one day: write FRI#2, and a list for several", at)
    day = _value(_WEEKDAY, text, at) % 7
    if number not in {"1", "2", "3", "4", "5"}:
        raise CronError(f"{text}#{number} is out of range: # takes 1-5, and L{day} is the last", at + len(text) + 1)
    return _Column(frozenset(), f"{day}#{number}", nth=frozenset(((day, int(number)),)))


def _hashed(spec: _Spec, term: str, at: int, seed: str) -> _Column:
    """Read `H`, `H(0-7)`, `H/15` or `H(0-29)/10`. `H/n` is an interval as `*/n` is; `H` and `H(a-b)` are times."""
    if not seed:
        raise CronError("`H` is spread by a name, and here is none; write a number", at)
    found = _HASH.match(term)
    if found is None:
        raise CronError(f"{term} is no hash; write H, H/15, H(0-7) or H(0-29)/10", at)
    low, high = _hash_bounds(spec, found, at)
    number = _hash(spec.name, seed)
    if found[3] is None:
        value = low + number % (high - low + 1)
        return _Column(frozenset((value,)), str(value))
    step = _step(spec, found[3], at + found.start(3), high - low + 1)
    first = low + number % step
    values = range(first, high + 1, step)
    text = f"{first}-{high}/{step}" if len(values) > 1 else str(first)
    return _Column(frozenset(values), text, starred=found[1] is None)


def _hash_bounds(spec: _Spec, found: re.Match[str], at: int) -> tuple[int, int]:
    top = _HASHED_DAY_MAX if spec is _DAY else spec.high
    if found[1] is None:
        return spec.low, top
    low, high = int(found[1]), int(found[2])
    if not spec.low <= low < high <= top:
        raise CronError(
            f"H({found[1]}-{found[2]}) cannot be drawn: {spec.name} is {spec.low}-{top} for H, the lower first", at + 2
        )
    return low, high


def _hash(name: str, seed: str) -> int:
    """Answer 64 bits that depend on the column, too: else minute and hour of one trigger would go together."""
    return int.from_bytes(hashlib.sha256(f"{PROFILE}/{name}/{seed}".encode()).digest()[:8], "big")


def _days(day: _Column, weekday: _Column) -> tuple[tuple[int, ...], ...]:
    """Answer the matching days for each kind of month.

    Debian's rule: both columns must match if one of them starts with `*`, else one is enough.
    """
    both = day.starred or weekday.starred
    return _days_of(day.values, day.last, weekday.values, weekday.nth, both)


@lru_cache(maxsize=512)
def _days_of(
    numbers: frozenset[int], last: bool, weekdays: frozenset[int], nth: frozenset[tuple[int, int]], both: bool
) -> tuple[tuple[int, ...], ...]:
    """Answer the days. Cached: thousands of triggers share a few patterns, most often `* *`."""
    kinds = []
    for length in range(28, 32):
        by_date = numbers | {length} if last else numbers
        for first in range(7):
            by_week = _weekdays(weekdays, nth, length, first)
            chosen = by_date & by_week if both else by_date | by_week
            kinds.append(tuple(sorted(number for number in chosen if number <= length)))
    return tuple(kinds)


def _weekdays(weekdays: frozenset[int], nth: frozenset[tuple[int, int]], length: int, first: int) -> frozenset[int]:
    """Answer the days of a month on the weekdays, and on the n-th weekdays."""
    found = {number for number in range(1, length + 1) if (first + number - 1) % 7 in weekdays}
    for weekday, which in nth:
        earliest = (weekday - first) % 7 + 1
        # The last one lies in the last seven days.
        number = earliest + 7 * ((length - earliest) // 7 if which == 0 else which - 1)
        if number <= length:
            found.add(number)
    return frozenset(found)


def _occurs(days: tuple[tuple[int, ...], ...], months: frozenset[int]) -> bool:
    """Whether there is a matching day at all. A month of given length begins on each weekday in some year."""
    return any(
        days[month_kind(length, first)]
        for month in months
        for length in ({28, 29} if month == _FEBRUARY else {_LENGTHS[month - 1]})
        for first in range(7)
    )
