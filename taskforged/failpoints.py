"""Named places at which a test lets the daemon die, fail or stall: crashes where they hurt, and not at random.

`reach("journal.committed")` does nothing at all, unless the daemon was started with a plan in `TASKFORGE_FAILPOINTS`:

    TASKFORGE_FAILPOINTS="journal.committed=kill@3; timer.due=sleep:0.5"

A plan is `NAME=ACTION[@N]`; several are separated by `;`. `kill` ends the process as `kill -9` does, `error` raises
`FailpointError`, `sleep:SECONDS` blocks the thread that came by. `@N` means the N-th time that the place is reached,
`@N+` that and each later one; without it, the first time. The daemon warns at its start, and each time that it acts.
The idea is that of etcd's gofail.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from taskforged.errors import InvalidArgumentError

__all__ = ["FAILPOINTS", "VARIABLE", "FailpointError", "arm", "reach"]

_log = structlog.get_logger(__name__)

VARIABLE = "TASKFORGE_FAILPOINTS"

FAILPOINTS: Mapping[str, str] = {
    "start.token_written": "a home has its token, and no database yet",
    "start.boot_recorded": "the boot has its number; the attempts of earlier boots are not decided",
    "start.recovered": "the attempts of earlier boots are decided; nothing else works yet",
    "start.serving": "the doors are open; nobody was told so",
    "upgrade.backed_up": "the backup before a migration is whole; nothing is migrated",
    "migration.begun": "a migration's transaction has begun",
    "migration.executed": "all statements of a migration are executed, and not committed",
    "migration.committed": "a migration is committed; the next one has not begun",
    "journal.written": "a batch is written, and not committed",
    "journal.committed": "a batch is committed; nobody was told so",
    "journal.told": "the callers of a batch have been told",
    "run.claimed": "a queued command has a slot; its start is not written",
    "run.committed": "a step forward of a run is on disk; nothing has followed from it",
    "attempt.begun": "an attempt's start is on disk; it has had no effect",
    "attempt.done": "an attempt has had its effect; its result is not recorded",
    "timer.due": "a timer is due; its run does not know",
    "timer.fired": "a timer's run has recorded that it fired",
    "child.due": "a parent waits for a sub-workflow whose run is not there yet",
    "child.created": "the run of a sub-workflow is on disk; its parent goes on waiting",
    "child.ended": "the run of a sub-workflow has ended; its parent does not know",
    "inbox.judged": "a delivery is proved and judged, and not stored",
    "inbox.stored": "a delivery is stored with its runs; its sender was not answered",
    "event.judged": "what becomes of an internal event is decided, and not written",
    "event.decided": "what becomes of an internal event is on disk",
    "schedule.planned": "what becomes of a trigger's due times is decided, and not written",
    "schedule.settled": "due times are in the ledger with their runs",
    "secret.stored": "a secret is on disk; its caller was not answered",
    "key.prepared": "a new master key lies beside the present one; nothing is encrypted with it",
    "key.resealed": "all secrets are encrypted with the new master key, and not committed",
    "key.committed": "all secrets are encrypted with the new master key, which lies beside the old one still",
    "key.replaced": "the new master key has taken the old one's place; the folder is not synced",
    "audit.written": "a call that changed nothing is in the audit; its caller was not answered",
    "backup.copied": "a copy is whole, and neither synced nor checked",
    "backup.proved": "a copy is synced and checked, and has no name yet",
    "backup.named": "a backup has its name; the folder is not synced",
    "checkpoint.due": "the log is about to be moved into the database",
    "checkpoint.done": "the log has been moved into the database",
    "prune.run_gone": "a run has left, in a transaction that is not committed; its history is still there",
    "prune.slice_gone": "a slice of what is old is deleted; the next one is not",
    "stop.draining": "the daemon was asked to stop, and does all it did",
    "stop.doors_closed": "nobody can come in any more; attempts go on",
    "stop.drained": "attempts have ended or were cut; the stop is not recorded",
    "stop.recorded": "the stop is recorded; the database is open",
}
"""The places, with what is true there."""


class FailpointError(Exception):
    """What a failpoint raises."""


@dataclass(slots=True)
class _Plan:
    """What happens at a place when it is reached for the `first` time; with `again`, also each time after that."""

    action: str
    seconds: float
    first: int
    again: bool
    visits: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def is_due(self) -> bool:
        visit = next(self.visits)
        return visit >= self.first if self.again else visit == self.first


_plans: dict[str, _Plan] | None = None
_SYNTAX = re.compile(
    r"(?P<name>[a-z_.]+)=(?P<action>kill|error|sleep:(?P<s>\d{1,4}(?:\.\d{1,6})?))(?:@(?P<n>[1-9]\d{0,8})(?P<more>\+)?)?"
)


def arm(text: str) -> None:
    """Read plans, in place of all that were armed before; an empty text disarms.

    Raises:
        InvalidArgumentError: that is no plan, or there is no such place.
    """
    global _plans  # noqa: PLW0603  one process, one set of plans; `reach` has to cost nothing
    found: dict[str, _Plan] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        match = _SYNTAX.fullmatch(part)
        if match is None:
            fault = f"{part[:80]!r} is not NAME=kill|error|sleep:SECONDS, with @N or @N+ behind it"
            raise InvalidArgumentError(f"{VARIABLE}: {fault}")
        if match["name"] not in FAILPOINTS:
            raise InvalidArgumentError(
                f"{VARIABLE}: there is no failpoint {match['name']!r}; there are {', '.join(sorted(FAILPOINTS))}"
            )
        action = match["action"].partition(":")[0]
        found[match["name"]] = _Plan(action, float(match["s"] or 0), int(match["n"] or 1), match["more"] is not None)
    _plans = found or None
    if found:
        _log.warning("failpoints.armed", plans=text, hint=f"this daemon is here to be broken; unset {VARIABLE}")


def reach(name: str) -> None:
    """Come by a place. That costs a tenth of a microsecond when nothing is armed.

    Raises:
        FailpointError: that is the plan.
    """
    if _plans is not None:
        _act(name)


def _act(name: str) -> None:
    plan = None if _plans is None else _plans.get(name)
    if plan is None or not plan.is_due():
        return
    _log.warning("failpoint.reached", name=name, action=plan.action, what=FAILPOINTS[name])
    if plan.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.action == "sleep":
        time.sleep(plan.seconds)
        return
    raise FailpointError(f"failpoint {name}")
