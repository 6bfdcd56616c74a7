"""The audit: who changed what, or tried to. Append-only, bounded, without payloads.

A change and its row are one transaction wherever the change is one (see `store.audit`); a call that fails, is denied
or finds nothing to do gets a row of its own. Failed authentications are counted by peer and minute, and so are calls of
a token that is denied one after the other: a flood of them cannot fill the disk, nor push out what was there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import structlog

from taskforged.clock import Clock
from taskforged.control.access import Principal
from taskforged.control.buckets import Bucket
from taskforged.errors import (
    CANONICAL,
    InvalidArgumentError,
    PermissionDeniedError,
    TaskforgeError,
    UnauthenticatedError,
)
from taskforged.failpoints import reach
from taskforged.store.audit import CURRENT, AuditRow, Entry
from taskforged.store.journal import Write
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["Audit", "AuditFilter", "AuditRecord"]

_log = structlog.get_logger(__name__)

T = TypeVar("T")

AUTHENTICATE = "Authenticate"
"""The method of rows that count failed authentications."""

_TEXT_MAX = 200
_NAME = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)
_UNSAFE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]")
_COUNTED_MAX = 1000
_OTHER_PEERS = "others"
_DENIED_RATE, _DENIED_BURST = 1.0, 200.0
"""Denied calls of a token that are told one by one; more are counted."""
_MINUTE_US = 60_000_000
_SLICE = 2000
"""Rows deleted in one write: a few milliseconds of the writer."""
_SLICES_MAX = 50
_WINDOW = 50_000
"""Numbers that one read looks at: a rare filter over a long audit must not hold up other readers."""


class AuditRecord(NamedTuple):
    """A row with its number."""

    no: int
    row: AuditRow


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records to list; empty means all. `method` is the beginning of the whole name or of its last part."""

    namespace_no: int | None = None
    token: str = ""
    method: str = ""
    outcome: str = ""
    since: int = 0
    until: int = 0
    before: int = 0


class Audit:
    """Writes, bounds and reads the audit."""

    def __init__(self, store: Store, clock: Clock, *, keep_days: int, keep_rows: int) -> None:
        self._store = store
        self._clock = clock
        self._keep_us = keep_days * 86_400_000_000
        self._keep_rows = keep_rows
        self._counted: dict[AuditRow, int] = {}
        self._denied: dict[str, Bucket] = {}

    # --- writing -----------------------------------------------------------------------------------------------------

    def begin(self, principal: Principal, remote: str, method: str, request_id: str = "") -> Entry:
        """Begin the record of a call; what is written for it from now on in this context takes the row along."""
        known = request_id if _NAME.fullmatch(request_id) else ""
        facts = (principal.token_id, principal.name, principal.role.value, remote, method, known)
        entry = Entry(self._clock.now, facts, principal.namespace_no)
        CURRENT.set(entry)
        return entry

    def about(self, entry: Entry, resource_type: str, resource: str) -> None:
        """Tell what a call is about in the caller's words; what is no name is left out."""
        if _NAME.fullmatch(resource):
            entry.resource_type, entry.resource = resource_type, resource

    async def over(self, entry: Entry, work: Awaitable[T]) -> T:
        """Await what a call does, and end its record as that ends.

        Raises:
            TaskforgeError: what it raised; or it succeeded without a change, and its row cannot be written.
        """
        try:
            result = await work
        except asyncio.CancelledError:
            self._cut(entry)
            raise
        except Exception as error:
            await self._finish(entry, error)
            raise
        await self._finish(entry, None)
        return result

    async def _finish(self, entry: Entry, error: Exception | None) -> None:
        """When no write has taken the row, write it now."""
        if not entry.is_open:
            return
        row = _row(entry, error)
        if isinstance(error, PermissionDeniedError) and self._is_flooded_by(row.token_id):
            self._count(_of_many(row, self._minute()))
            return
        try:
            await self._insert([row])
        except TaskforgeError as failure:
            if error is None:
                raise
            _log.error("audit.not_written", method=row.method, outcome=row.outcome, error=str(failure))

    def _cut(self, entry: Entry) -> None:
        """The caller went away: do not wait."""
        if not entry.is_open:
            entry.on_return = self._cut
        else:
            row = entry.row("CANCELLED")
            entry.close()
            self._store.journal.submit(Write[None](audit=(row,))).add_done_callback(_note_failure)

    def failed_authentication(self, remote: str) -> None:
        """Count one; `flush` writes them."""
        self._count(_failure(remote, self._minute()))

    def _minute(self) -> int:
        return self._clock.wall() // _MINUTE_US * _MINUTE_US

    def _is_flooded_by(self, token_id: str) -> bool:
        now = time.monotonic()
        bucket = self._denied.get(token_id)
        if bucket is None:
            bucket = self._denied[token_id] = Bucket(_DENIED_RATE, _DENIED_BURST, now)
        return bucket.take(now) > 0

    def _count(self, row: AuditRow, times: int = 1) -> None:
        if row not in self._counted and len(self._counted) >= _COUNTED_MAX:
            row = row._replace(remote=_OTHER_PEERS)
        self._counted[row] = self._counted.get(row, 0) + times

    async def flush(self) -> None:
        """Write what was counted."""
        counted, self._counted = self._counted, {}
        if counted:
            try:
                await self._insert([row._replace(times=times) for row, times in counted.items()])
            except TaskforgeError:
                for row, times in counted.items():
                    self._count(row, times)
                raise

    async def _insert(self, rows: Sequence[AuditRow]) -> None:
        await self._store.journal.submit(Write[None](audit=rows))
        reach("audit.written")

    # --- bounding ----------------------------------------------------------------------------------------------------

    async def prune(self) -> int:
        """Delete what is older than the time to keep and beyond the number to keep, in small slices."""
        deleted = 0
        for _ in range(_SLICES_MAX):
            floor = await self._store.read(self._next_floor)
            if not floor:
                break
            deleted += await self._delete_to(floor)
        return deleted

    async def _delete_to(self, floor: int) -> int:
        return await self._store.journal.execute(lambda c: _delete(c, floor))

    def _next_floor(self, connection: Connection) -> int:
        """Answer the last of the next slice of rows to delete, 0 for none."""
        rows = connection.execute(QUERIES["oldest_audit"], (_SLICE,)).fetchall()
        newest = connection.execute(QUERIES["audit_bounds"]).fetchone()[1]
        cutoff = self._clock.wall() - self._keep_us
        floor = 0
        for no, at in rows:
            if at >= cutoff and no > newest - self._keep_rows:
                break
            floor = no
        return floor

    # --- reading -----------------------------------------------------------------------------------------------------

    async def page(self, wanted: AuditFilter, limit: int) -> list[AuditRecord]:
        """Answer up to `limit` records, newest first."""
        oldest, newest = (await self._store.rows("audit_bounds"))[0]
        clauses, parameters = _clauses(wanted)
        sql = f"{QUERIES['audit_rows']} {clauses} ORDER BY no DESC LIMIT ?"
        found: list[AuditRecord] = []
        high = min(wanted.before or newest + 1, newest + 1)
        while high > oldest and len(found) < limit:
            low = max(oldest, high - _WINDOW)
            found += await self._window(sql, (low, high, *parameters, limit - len(found)))
            high = low
        return found

    async def _window(self, sql: str, parameters: Sequence[Any]) -> list[AuditRecord]:
        rows = await self._store.read(lambda c: c.execute(sql, parameters).fetchall())
        return [AuditRecord(row[0], AuditRow(*row[1:])) for row in rows]


def _of_many(row: AuditRow, minute: int) -> AuditRow:
    text = "denied calls in one minute"
    return row._replace(at=minute, resource_type="", resource="", message=text, request_id="")


def _failure(remote: str, minute: int) -> AuditRow:
    return AuditRow(
        at=minute,
        token_id="",
        token_name="",
        role="",
        remote=remote,
        method=AUTHENTICATE,
        namespace_no=None,
        resource_type="",
        resource="",
        outcome=CANONICAL[UnauthenticatedError],
        message="failed authentications in one minute",
        request_id="",
    )


def _note_failure(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and written.exception() is not None:
        _log.error("audit.not_written", error=str(written.exception()))


def _row(entry: Entry, error: BaseException | None) -> AuditRow:
    entry.close()
    if error is None:
        return entry.row()
    outcome = next((CANONICAL[cls] for cls in type(error).__mro__ if cls in CANONICAL), "INTERNAL")
    if isinstance(error, InvalidArgumentError) and any(one.path in {"name", "value"} for one in error.violations):
        entry.resource = entry.resource_type = ""  # whatever it was, it was no name
    return entry.row(outcome, _brief(error))


def _brief(error: BaseException) -> str:
    """Answer what a refusal was about. Of arguments only the places: a message may repeat what was given."""
    match error:
        case InvalidArgumentError():
            text = ", ".join(dict.fromkeys(one.path for one in error.violations if one.path)) or error.reason
        case TaskforgeError():
            text = error.message
        case _:
            text = "an internal error"
    return _UNSAFE.sub("?", text)[:_TEXT_MAX]


def _delete(connection: Connection, floor: int) -> int:
    connection.execute(QUERIES["raise_audit_floor"], (floor,))
    return connection.execute(QUERIES["delete_audit"], (floor,)).rowcount


def _clauses(wanted: AuditFilter) -> tuple[str, list[Any]]:
    clauses, parameters = "", list[Any]()
    conditions = (
        ("AND namespace_no = ?", (wanted.namespace_no,), wanted.namespace_no is not None),
        ("AND (token_id = ? OR token_name = ?)", (wanted.token, wanted.token), bool(wanted.token)),
        (
            "AND (substr(method, 1, length(?)) = ? OR instr(method, '/' || ?) > 0)",
            (wanted.method,) * 3,
            bool(wanted.method),
        ),
        ("AND outcome = ?", (wanted.outcome,), bool(wanted.outcome)),
        ("AND at >= ?", (wanted.since,), bool(wanted.since)),
        ("AND at < ?", (wanted.until,), bool(wanted.until)),
    )
    for clause, values, is_wanted in conditions:
        if is_wanted:
            clauses += f" {clause}"
            parameters += values
    return clauses, parameters
