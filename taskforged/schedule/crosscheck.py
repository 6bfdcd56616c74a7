"""A second opinion on an expression, from croniter.

Only for the moment at which a definition is registered. What is stored keeps its meaning, so that a new release of
croniter with a new opinion cannot stop a trigger that runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskforged.lean import lazy
from taskforged.schedule.cron import Cron, CronError

if TYPE_CHECKING:
    import croniter
else:
    croniter = lazy("croniter")

__all__ = ["cross_check"]

_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6), (0, 59))
"""Of croniter's columns, in croniter's order."""


def cross_check(cron: Cron) -> None:
    """Compare with what croniter reads in the same text, field by field. Days are compared as far as they are numbers.

    Raises:
        CronError: croniter refuses it, or reads other values: better to ask than to guess.
    """
    columns = cron.resolved.split()
    with_seconds = len(columns) == len(_BOUNDS)
    try:
        expanded, _ = croniter.croniter.expand(cron.resolved.lower(), second_at_beginning=True)
    except croniter.CroniterUnsupportedSyntaxError:
        return  # It understands, but cannot compute it: FRI#2 beside MON, for example.
    except croniter.CroniterBadCronError as error:
        raise CronError(f"croniter refuses it: {error}", 0) from error
    ours = [cron.minutes, cron.hours, None, cron.months, None, cron.seconds if with_seconds else None]
    for values, theirs, bounds in zip(ours, expanded, _BOUNDS, strict=False):
        if values is not None and values != _values(theirs, bounds):
            raise CronError(f"croniter reads {theirs} where Taskforge reads {values}; write it as a list", 0)


def _values(theirs: list[Any], bounds: tuple[int, int]) -> tuple[int, ...]:
    return tuple(range(bounds[0], bounds[1] + 1)) if "*" in theirs else tuple(sorted(theirs))
