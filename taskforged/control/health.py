"""Whether the daemon lives, and whether it takes new work: what supervisors and load balancers ask.

Alive means that a restart would not help: it is said as long as the event loop answers at all, the journal has not
failed and no commit takes for ever. Ready means that a webhook or a StartRun sent now would be taken. A disk without
room refuses both, so it is a reason here, while reads and running work go on.
"""

from __future__ import annotations

from taskforged.control.pressure import STORE_FULL, Pressure
from taskforged.control.system import Info
from taskforged.errors import ResourceExhaustedError
from taskforged.host.pulse import Pulse
from taskforged.store.journal import Journal

__all__ = ["COMMIT_S_MAX", "Health"]

COMMIT_S_MAX = 60.0
"""A commit that takes longer will not come back: the disk hangs."""


class Health:
    """Answers with reasons, in words that give nothing away to a stranger: probes have no token."""

    def __init__(self, *, info: Info, journal: Journal, pulse: Pulse, pressure: Pressure) -> None:
        self._info = info
        self._journal = journal
        self._pulse = pulse
        self._pressure = pressure

    def ailments(self) -> list[str]:
        """Say why the daemon should be restarted; empty: it should not."""
        if self._journal.has_failed:
            return ["the journal has failed"]
        if self._pulse.journal_silence_s() > COMMIT_S_MAX:
            return ["the journal does not get its commit done"]
        return []

    def unready(self) -> list[str]:
        """Say why the daemon takes no new work; empty: it does."""
        found = self.ailments()
        if self._info.state != "ready":
            found.append(f"the daemon is {self._info.state}")
        try:
            self._pressure.check()
        except ResourceExhaustedError as full:
            found.append("the database is full" if full.reason == STORE_FULL else "the disk is nearly full")
        return found
