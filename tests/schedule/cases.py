"""Schedules to draw from, and the plain walk that everything clever is compared with."""

from __future__ import annotations

from hypothesis import strategies as st

from taskforged.schedule import Schedule, Slot, parse_cron, slots_after

US = 1_000_000
DAY_US = 86_400 * US

CRONS = [
    *map(
        parse_cron,
        ["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 0 * * *", "15,45 1-3 * * *", "0 */5 * * *"],
    ),
    *map(
        parse_cron, ["0 9 * * MON-FRI", "0 0 1 * *", "59 23 L * *", "0 12 * * FRI#2,L1", "30 1 13 * FRI", "0 0 29 2 *"]
    ),
    parse_cron("10,50 30 2 * * *", seconds=True),
    parse_cron("*/20 59 * * * *", seconds=True),
]
# Each zone with instants at which its clocks change, or at which nothing does.
PLACES = {
    "UTC": [1_798_761_600, 1_709_164_800],  # a new year, a leap day
    "Europe/Berlin": [1_774_746_000, 1_792_890_000],
    "Australia/Lord_Howe": [1_775_314_800, 1_791_041_400],
    "Antarctica/Troll": [1_774_746_000, 1_792_890_000],
    "America/Sao_Paulo": [1_541_300_400, 1_518_919_200],
    "Pacific/Apia": [1_325_239_200],
    "Pacific/Chatham": [1_775_311_200, 1_790_431_200],
    "Africa/Monrovia": [63_593_070],
    "Asia/Kathmandu": [1_798_761_600],
}
shifts = st.integers(-2 * DAY_US, 2 * DAY_US) | st.integers(-20, 20).map(lambda n: n * 900 * US)


@st.composite
def cases(draw):
    """A schedule, and an instant near a change in its zone."""
    zone = draw(st.sampled_from([*PLACES]))
    near = lambda: draw(st.sampled_from(PLACES[zone])) * US + draw(shifts)
    schedule = Schedule(
        draw(st.sampled_from(CRONS)),
        zone,
        gap=draw(st.sampled_from(["shift", "skip"])),
        fold=draw(st.sampled_from(["first", "last", "both"])),
        start_at=near() if draw(st.integers(0, 3)) == 0 else 0,
        end_at=near() if draw(st.integers(0, 3)) == 0 else 0,
        delay_us=draw(st.sampled_from([0, 0, 1, 59_999_999, 400 * US])),
    )
    return schedule, near()


def walk(schedule: Schedule, after: int, until: int) -> list[Slot]:
    """One slot at a time, forwards."""
    found = []
    while following := slots_after(schedule, after, 1):
        after = following[0].due_at
        if after > until:
            break
        found += following
    return found
