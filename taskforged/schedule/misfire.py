"""What becomes of due times that have passed: which fire now, and what the ledger says of the others.

Pure: the same cursor, time and pause give the same plan on any machine. The slots that fire are always the newest of
those considered, so that a plan is a list of slots preceded by ranges, and costs days of arithmetic, not slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from taskforged.schedule.slots import SECOND_US, Schedule, Slot, count_slots, slots_after, slots_before

__all__ = ["COALESCED", "MISSED", "ON_TIME_MAX", "SUPPRESSED", "Plan", "Policy", "Range", "plan"]

MISSED = "MISSED"
COALESCED = "COALESCED"
SUPPRESSED = "SUPPRESSED"

ON_TIME_MAX = 1000
"""Most slots of one plan that count as on time; with the default of five seconds there are six at most."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about due times that were missed while nobody looked.

    Attributes:
        misfire: `latest` fires the newest, `all` fires them in order, `skip` none.
        window_us: What is later than this is not caught up; 0: no bound.
        cap: Most that `all` catches up.
    """

    misfire: str = "latest"
    window_us: int = 0
    cap: int = 1000

    def __post_init__(self) -> None:
        if self.misfire not in {"latest", "all", "skip"} or self.window_us < 0 or self.cap < 0:
            raise ValueError("misfire is latest, all or skip; window_us and cap are not negative")


class Range(NamedTuple):
    """Consecutive due times that do not fire: the first, the last, how many, and why."""

    first: int
    last: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    outcome: str
    reason: str


class Plan(NamedTuple):
    """What to do now.

    Attributes:
        fire: Slots to fire, ascending.
        ranges: What does not fire, ascending; all of it is older than what fires.
        cursor: Everything due at or before it is settled; the next plan begins here.
        next_at: When the next slot fires; None: never again.
    """

    fire: list[Slot]
    ranges: list[Range]
    cursor: int
    next_at: int | None


class _Stretch(NamedTuple):
    """Due times in (after, until] that share an outcome."""

    after: int
    until: int
    outcome: str
    reason: str


def plan(
    schedule: Schedule,
    policy: Policy,
    *,
    cursor: int,
    now: int,
    suspended: tuple[int, int] | None = None,
    on_time_us: int = 5 * SECOND_US,
) -> Plan:
    """Settle every slot with cursor < due_at that should have fired by `now`.

    Args:
        schedule: When the trigger is due.
        policy: What to do about misfired slots: those more than `on_time_us` late.
        cursor: Up to where an earlier plan has settled everything.
        now: The time; before the cursor if the clock was set back, and then nothing is due.
        suspended: From when (inclusive) to when (exclusive) the trigger was paused. It only renames what does not fire.
        on_time_us: How late a slot may fire and still count as on time.
    """
    newest = now - schedule.delay_us
    border = max(newest - max(on_time_us, 0) - 1, cursor)
    fire = slots_before(schedule, border, newest, ON_TIME_MAX)
    if len(fire) == ON_TIME_MAX:
        border = fire[0].due_at - 1
    oldest = newest - policy.window_us - 1 if policy.window_us else cursor
    caught_up = _catch_up(schedule, policy, max(oldest, cursor), border, on_time=bool(fire))
    rest = caught_up[0].due_at - 1 if caught_up else border
    fire = caught_up + fire
    stretches = _stretches(policy, cursor, min(oldest, rest), rest, fires=bool(fire))
    ranges = [found for part in stretches for found in _ranges(schedule, part, suspended)]
    settled = fire[-1].due_at if fire else ranges[-1].last if ranges else cursor
    following = slots_after(schedule, settled, 1)
    return Plan(fire, ranges, settled, following[0].due_at + schedule.delay_us if following else None)


def _catch_up(schedule: Schedule, policy: Policy, after: int, until: int, *, on_time: bool) -> list[Slot]:
    """Answer the misfired slots that fire after all."""
    if policy.misfire == "skip" or (policy.misfire == "latest" and on_time):
        return []
    return slots_before(schedule, after, until, 1 if policy.misfire == "latest" else policy.cap)


def _stretches(policy: Policy, cursor: int, oldest: int, until: int, *, fires: bool) -> list[_Stretch]:
    """Say why the due times in (cursor, until] do not fire; those up to `oldest` are older than the window."""
    if policy.misfire == "skip":
        return [_Stretch(cursor, until, MISSED, "missed; misfire: skip")]
    if policy.misfire == "latest" and fires:
        return [_Stretch(cursor, until, COALESCED, "coalesced into the next due time that fires")]
    window = f"older than the window of {_duration(policy.window_us)}"
    capped = f"more than the cap of {policy.cap}"
    split = max(oldest, cursor)
    return [_Stretch(cursor, split, MISSED, window), _Stretch(split, until, MISSED, capped)]


def _ranges(schedule: Schedule, stretch: _Stretch, suspended: tuple[int, int] | None) -> list[Range]:
    """Answer the ledger rows of a stretch: three if the trigger was paused in the middle of it."""
    if suspended is None or suspended[0] >= suspended[1]:
        return _range(schedule, stretch)
    after, until = stretch.after, stretch.until
    first, last = (min(max(at - 1, after), until) for at in suspended)
    return [
        *_range(schedule, stretch._replace(until=first)),
        *_range(schedule, _Stretch(first, last, SUPPRESSED, "paused")),
        *_range(schedule, stretch._replace(after=last)),
    ]


def _range(schedule: Schedule, stretch: _Stretch) -> list[Range]:
    count = count_slots(schedule, stretch.after, stretch.until)
    if not count:
        return []
    first = slots_after(schedule, stretch.after, 1)[0].due_at
    last = slots_before(schedule, stretch.after, stretch.until, 1)[0].due_at
    return [Range(first, last, count, stretch.outcome, stretch.reason)]


def _duration(micros: int) -> str:
    """Write a duration as the language does: `1h30m`."""
    seconds, rest = divmod(micros, SECOND_US)
    text = ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        text += f"{number}{unit}" if number else ""
    return text + (f"{rest // 1000}ms" if rest >= 1000 else "") or f"{rest}us"
