"""Dead letters: looking at the runs that exhausted a retry budget, and settling them.

A dead letter is OPEN until it is retried or discarded, which is final. It is RETRIED in the transaction that creates
the new run, so this module only asks for the retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from taskforged.clock import Clock
from taskforged.control.access import Principal
from taskforged.control.checks import REASON_MAX, check_text, invalid
from taskforged.control.views import RunView
from taskforged.errors import NotFoundError, TaskforgeError
from taskforged.store.audit import about
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = [
    "SETTLE_MAX",
    "STATES",
    "DeadLetterRow",
    "DeadLetters",
    "LetterFilter",
    "Selection",
    "Settled",
    "Verdict",
]

STATES = ("OPEN", "RETRIED", "DISCARDED")

SETTLE_MAX = 1000
"""Dead letters that one call settles."""

_AT_ONCE = 64
"""Retries under way at the same moment, so that they share commits; each is a whole run in memory."""


class DeadLetterRow(NamedTuple):
    """A dead letter with what is known of its run."""

    run_no: int
    run_id: str
    namespace_no: int
    workflow: str
    version: int
    state: str
    error: str
    attempts: int
    created_at: int
    settled_at: int | None
    settled_by: str
    reason: str
    retry_run_id: str


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters. Empty texts, 0 and None mean any.

    Attributes:
        died_before: only those that died earlier than this.
        before: the number of the last run of the page before.
    """

    namespace_no: int
    workflow: str = ""
    step: str = ""
    code: str = ""
    states: Sequence[str] = ("OPEN",)
    died_before: int | None = None
    before: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters to settle: either these, or the oldest OPEN ones of a filter."""

    run_ids: Sequence[str] = ()
    wanted: LetterFilter | None = None
    max_count: int = 0
    dry_run: bool = False


class Verdict(NamedTuple):
    """What became of one: retried by a new run, or discarded, unless there is an error."""

    run_id: str
    error: str = ""
    new_run_id: str = ""


class Settled(NamedTuple):
    """What became of a selection; `more` fit, or were named, than the call was allowed to settle."""

    verdicts: Sequence[Verdict]
    more: bool


class DeadLetters:
    """The dead letters of all namespaces."""

    def __init__(
        self, *, store: Store, clock: Clock, retry: Callable[[Principal, str], Coroutine[Any, Any, RunView]]
    ) -> None:
        """Create the desk. `retry` starts the run that retries a run, or answers the one that does already."""
        self._store = store
        self._clock = clock
        self._retry_run = retry

    # --- looking -----------------------------------------------------------------------------------------------------

    async def get(self, principal: Principal, run_id: str) -> DeadLetterRow:
        """Answer the dead letter of a run.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        row = await self._store.row("dead_letter_by_run", run_id)
        found = None if row is None else DeadLetterRow(*row)
        if found is None or not principal.sees(found.namespace_no):
            raise NotFoundError(f"there is no dead letter of a run {run_id!r}", metadata={"run": run_id})
        return found

    async def page(self, wanted: LetterFilter, limit: int) -> Sequence[DeadLetterRow]:
        """Answer up to `limit` dead letters, newest run first.

        Raises:
            NotFoundError: there has never been a workflow of that name.
        """
        return await self._read(wanted, limit, "DESC")

    async def _read(self, wanted: LetterFilter, limit: int, order: str) -> list[DeadLetterRow]:
        if (
            wanted.workflow
            and await self._store.row("workflow_was_known", wanted.namespace_no, wanted.workflow) is None
        ):
            raise NotFoundError(f"there is no workflow {wanted.workflow!r}", metadata={"workflow": wanted.workflow})
        sql, parameters = _list_query(wanted, limit, order)
        return [DeadLetterRow(*row) for row in await self._store.read(lambda c: c.execute(sql, parameters).fetchall())]

    # --- settling ----------------------------------------------------------------------------------------------------

    async def retry(self, principal: Principal, selection: Selection) -> Settled:
        """Retry the runs of dead letters. One that cannot be retried does not hinder the others. Idempotent.

        Raises:
            InvalidArgumentError: the selection is neither or both, or too large.
        """
        chosen, more = await self._select(principal, selection)
        _tell(chosen)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def settle(one: DeadLetterRow | Verdict) -> Verdict:
            if isinstance(one, Verdict):
                return one
            async with turns:
                return await self._retry(principal, one, dry_run=selection.dry_run)

        return Settled(await asyncio.gather(*map(settle, chosen)), more)

    async def _retry(self, principal: Principal, letter: DeadLetterRow, *, dry_run: bool) -> Verdict:
        if letter.state == "DISCARDED":
            hint = f"`taskforgectl run retry {letter.run_id}` retries the run all the same"
            return Verdict(letter.run_id, f"it was discarded by {letter.settled_by!r}; {hint}")
        if dry_run:
            return Verdict(letter.run_id)
        try:
            view = await self._retry_run(principal, letter.run_id)
        except TaskforgeError as error:
            return Verdict(letter.run_id, error.message)
        assert view.run is not None
        return Verdict(letter.run_id, new_run_id=view.run.run_id)

    async def discard(self, principal: Principal, selection: Selection, reason: str) -> Settled:
        """Settle dead letters without doing anything. Idempotent: who discarded one first, and why, stays.

        Raises:
            InvalidArgumentError: the selection is neither or both, or too large, or the reason is too long.
        """
        check_text("reason", reason, REASON_MAX)
        chosen, more = await self._select(principal, selection)
        _tell(chosen)
        letters = [one for one in chosen if isinstance(one, DeadLetterRow)]
        states = {one.run_no: one.state for one in letters}
        if not selection.dry_run and letters:
            settle = (self._clock.now(), principal.name, reason)
            states = await self._store.journal.execute(lambda c: _discard(c, settle, list(states)))
        verdicts = [one if isinstance(one, Verdict) else _discarded(one, states[one.run_no]) for one in chosen]
        return Settled(verdicts, more)

    async def _select(self, principal: Principal, selection: Selection) -> tuple[list[DeadLetterRow | Verdict], bool]:
        """Answer what to settle, with a verdict in the place of what is not there; and whether there is more."""
        limit = _check(selection)
        if selection.wanted is not None:
            wanted = replace(selection.wanted, states=("OPEN",), before=0)
            found = await self._read(wanted, limit + 1, "ASC")
            return [*found[:limit]], len(found) > limit
        named = list(dict.fromkeys(selection.run_ids))  # each once
        ids = named[:limit]
        rows = await self._store.read(lambda c: _by_ids(c, ids))
        chosen: list[DeadLetterRow | Verdict] = []
        for run_id in ids:
            row = rows.get(run_id)
            seen = row is not None and principal.sees(row.namespace_no)
            chosen.append(row if row and seen else Verdict(run_id, f"there is no dead letter of a run {run_id!r}"))
        return chosen, len(named) > limit


def _tell(chosen: Sequence[DeadLetterRow | Verdict]) -> None:
    """Tell the audit whose dead letters are settled."""
    found = [one for one in chosen if isinstance(one, DeadLetterRow)]
    namespaces = {one.namespace_no for one in found}
    about("run", f"{found[0].run_id}+{len(found) - 1}" if len(found) > 1 else found[0].run_id if found else "")
    if len(namespaces) == 1:
        about(namespace_no=namespaces.pop())


def _check(selection: Selection) -> int:
    """Answer how many may be settled."""
    if selection.run_ids and selection.wanted is not None:
        raise invalid("filter", "and run_ids exclude each other")
    if not selection.run_ids and selection.wanted is None:
        raise invalid("run_ids", "or filter is required; an empty filter means all OPEN ones of the namespace")
    if len(selection.run_ids) > SETTLE_MAX:
        raise invalid("run_ids", f"must be at most {SETTLE_MAX:,}")
    if not 0 <= selection.max_count <= SETTLE_MAX:
        raise invalid("max_count", f"must be from 0 to {SETTLE_MAX:,}")
    return selection.max_count or SETTLE_MAX


def _discarded(letter: DeadLetterRow, state: str) -> Verdict:
    return Verdict(letter.run_id, "it was retried" if state == "RETRIED" else "")


def _discard(connection: Connection, settle: tuple[int, str, str], numbers: Sequence[int]) -> dict[int, str]:
    """Discard those that are OPEN; answer the states of all after that."""
    connection.executemany(QUERIES["discard_dead_letter"], [(*settle, no) for no in numbers])
    return {no: connection.execute(QUERIES["dead_letter_state"], (no,)).fetchone()[0] for no in numbers}


def _by_ids(connection: Connection, run_ids: Sequence[str]) -> dict[str, DeadLetterRow]:
    found = (connection.execute(QUERIES["dead_letter_by_run"], (run_id,)).fetchone() for run_id in run_ids)
    return {row[1]: DeadLetterRow(*row) for row in found if row is not None}


_COLUMNS = """d.run_no, r.id, d.namespace_no, w.name, r.version, d.state, d.error, d.attempts, d.created_at,
  d.settled_at, d.settled_by, d.reason, coalesce((SELECT t.id FROM runs t WHERE t.retry_of_no = d.run_no), '')"""

_OF_WORKFLOW = "workflow_no IN (SELECT no FROM workflows WHERE namespace_no = ? AND name = ?)"


def _list_query(wanted: LetterFilter, limit: int, order: str) -> tuple[str, list[Any]]:
    """One branch for each state: each walks the index in order, and SQLite merges them instead of sorting all."""
    further: list[tuple[bool, str, list[Any]]] = [
        (wanted.before > 0, "run_no < ?", [wanted.before]),
        (wanted.died_before is not None, "created_at < ?", [wanted.died_before]),
        (wanted.step != "", "step = ?", [wanted.step]),
        (wanted.code != "", "code = ?", [wanted.code]),
        (wanted.workflow != "", _OF_WORKFLOW, [wanted.namespace_no, wanted.workflow]),
    ]
    asked = [(clause, values) for is_asked, clause, values in further if is_asked]
    where = " AND ".join(["namespace_no = ?", "state = ?", *(clause for clause, _ in asked)])
    shared = [value for _, values in asked for value in values]
    parameters = [value for state in wanted.states for value in (wanted.namespace_no, state, *shared)]
    branches = [f"SELECT run_no FROM dead_letters WHERE {where}"] * len(wanted.states)  # noqa: S608  constants
    chosen = f"{' UNION ALL '.join(branches)} ORDER BY run_no {order} LIMIT ?"
    sql = (
        f"SELECT {_COLUMNS} FROM dead_letters d JOIN runs r ON r.no = d.run_no"  # noqa: S608
        f" JOIN workflows w ON w.no = d.workflow_no WHERE d.run_no IN ({chosen}) ORDER BY d.run_no {order}"
    )
    return sql, [*parameters, limit]
