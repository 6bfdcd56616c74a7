"""An open run in memory, its mail, and one step forward of it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskforged.engine.events import Command, Fact, HistoryEvent
from taskforged.engine.model import WorkflowModel
from taskforged.engine.run import Run
from taskforged.host.admission import Ticket
from taskforged.host.dispatcher import Lane
from taskforged.steps.base import Outcome
from taskforged.store.audit import Entry as AuditEntry
from taskforged.store.changes import Home, RunChange

__all__ = ["NOTHING", "Entry", "Letter", "PreparedRun", "Step", "named"]

NOTHING: Any = object()
"""The fact that says nothing: it only waits for its turn."""


class Letter(NamedTuple):
    """A fact on its way to a run; `receipt` is done when it is on disk or refused, `audit` tells who sent it."""

    fact: Fact
    receipt: asyncio.Future[None] | None = None
    audit: AuditEntry | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """One open run in memory."""

    home: Home
    model: WorkflowModel
    run: Run
    head_hash: bytes
    parent_no: int | None = None
    mailbox: deque[Letter] = field(default_factory=deque)
    committing: bool = False
    attempts: dict[int, asyncio.Task[Outcome]] = field(default_factory=dict)

    @property
    def no(self) -> int:
        """The run's number."""
        return self.home.no

    @property
    def lane(self) -> Lane:
        """Where its commands wait."""
        return Lane(self.home.namespace_no, self.run.queue, self.run.priority)

    def ticket(self, run: Run) -> Ticket:
        """Answer with what the run, in a state of it, asks for a slot."""
        is_child = self.parent_no is not None
        return Ticket(self.no, self.home.namespace_no, run.priority, run.group, run.group_limit, is_child)

    def take_mail(self) -> list[Letter]:
        """Empty the mailbox."""
        letters = list(self.mailbox)
        self.mailbox.clear()
        return letters


class Step(NamedTuple):
    """One step forward of an entry: computed, not yet on disk."""

    run: Run
    history: list[HistoryEvent]
    commands: list[Command]
    touched: set[str]
    taken: list[Letter]
    claims: dict[int, int]


class PreparedRun(NamedTuple):
    """A run that has been decided on and not yet written. Its change goes into the caller's own write."""

    no: int
    run: Run
    change: RunChange
    entry: Entry
    step: Step


def named(run: Run) -> dict[str, str]:
    """Answer what log lines call a run by."""
    return {"run_id": run.run_id, "correlation_id": run.correlation_id, "workflow": run.workflow}
