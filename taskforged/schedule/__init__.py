"""Cron schedules: pure, no clock, no I/O but the reading of time zone data.

Reading order: `cron` (what an expression means), `wall` (local times), `zones` (what a zone makes of them), `slots`
(due times), `misfire` (what becomes of them when nobody looked).
"""

from taskforged.schedule.cron import PROFILE, Cron, CronError, parse_cron
from taskforged.schedule.crosscheck import cross_check
from taskforged.schedule.misfire import Plan, Policy, Range, plan
from taskforged.schedule.slots import Schedule, Slot, count_slots, jitter_us, slots_after, slots_before
from taskforged.schedule.zones import ZoneError, is_transition_day, load_zone, local_text, utc_text

__all__ = [
    "PROFILE",
    "Cron",
    "CronError",
    "Plan",
    "Policy",
    "Range",
    "Schedule",
    "Slot",
    "ZoneError",
    "count_slots",
    "cross_check",
    "is_transition_day",
    "jitter_us",
    "load_zone",
    "local_text",
    "parse_cron",
    "plan",
    "slots_after",
    "slots_before",
    "utc_text",
]
