"""Wakes runs whose time has come: one task, one index, no timer per run.

The table is the truth. The task sleeps until the earliest due time, hands the due timers to their runs in portions
and looks again; a timer's row goes in the transaction that records that it fired, so one that could not be written
is simply found again.

Most timers are the end of a pause: a back-off, a sleep, a timeout. A clock that is set must neither shorten nor
lengthen them, so such rows are moved with it: when it jumps forward, before anybody sees the new time; when it was set
back while no daemon ran, at the start. (Within a process the engine's time does not run backwards.) Times that somebody
has named, `sleep: {until: ...}` and the start of a scheduled run, come when the wall clock shows them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass, field

import structlog

from taskforged.clock import Clock
from taskforged.engine.events import TimerFired
from taskforged.errors import FailedPreconditionError, NotFoundError, TaskforgeError
from taskforged.failpoints import reach
from taskforged.host.loop import Loop
from taskforged.host.runner import Runner
from taskforged.store.journal import Write
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["Timers"]

_log = structlog.get_logger(__name__)

PORTION = 500
"""Timers handed out at once: bounds memory when very many are due after a downtime."""

SLEEP_S_MAX = 60.0
"""Look again at least this often, so that a clock that was set forward is noticed."""

_FAILURE_PAUSE_S = 1.0
_BEGINNING = (-1, 0, 0)


@dataclass(slots=True)
class _Jump:
    """The clock was set forward `by` so much, `to` that time; `written` when the rows have been moved with it."""

    by: int
    to: int
    written: asyncio.Future[None] = field(init=False)


class Timers(Loop):
    """The timer service."""

    def __init__(self, *, store: Store, clock: Clock, runner: Runner) -> None:
        super().__init__("timers", self._look)
        self._store = store
        self._clock = clock
        self._runner = runner
        self._next = 0
        self._jumps: deque[_Jump] = deque()
        runner.on_timer = self._on_timer

    async def start(self) -> None:
        """Begin. Idempotent."""
        self._clock.watch(self._on_jump)
        now = {"now": self._clock.now()}
        moved = await self._store.journal.execute(lambda c: c.execute(QUERIES["begin_timers_again"], now).rowcount)
        if moved:
            _log.warning("clock.set_back", pauses_begun_again=moved)
        await super().start()

    async def stop(self) -> None:
        """End; what is just being written is written or not, as a whole. Idempotent."""
        self._clock.watch(None)
        await super().stop()

    def _on_jump(self, by: int, to: int) -> bool:
        """The clock was set forward."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False  # asked by another thread: the loop will notice, too
        _log.warning("clock.jumped", forward_s=round(by / 1_000_000, 3))
        jump = _Jump(by, to)
        jump.written = self._move(jump)  # ahead of everything that is decided at the new time
        self._jumps.append(jump)
        self.wake()
        return True

    def _move(self, jump: _Jump) -> asyncio.Future[None]:
        def move(connection: Connection) -> None:
            connection.execute(QUERIES["shift_timers"], {"by": jump.by, "to": jump.to})

        # In a context of its own: whoever asked for the time has a record of the audit to write, and not with this.
        future = contextvars.Context().run(self._store.journal.submit, Write[None](function=move))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at below, if anybody looks
        return future

    async def _moved(self) -> None:
        """Wait until the rows fit the clock; until then nothing may fire.

        They are moved twice: what was decided before the jump may have come into the same commit behind the first time.
        """
        while self._jumps:
            jump = self._jumps[0]
            try:
                await asyncio.shield(jump.written)
                await asyncio.shield(self._move(jump))
            except TaskforgeError:
                jump.written = self._move(jump)
                raise
            self._jumps.popleft()

    def _on_timer(self, at: int) -> None:
        """A timer was set for `at`."""
        if at < self._next:
            self._next = at
            self.wake()

    async def _look(self) -> None:
        while True:
            try:
                pause_s = await self.run_once()
            except Exception as error:  # noqa: BLE001  task boundary: without it a passing fault would stop all timers
                _log.error("timers.failed", error=str(error))
                pause_s = _FAILURE_PAUSE_S
            await self.sleep(pause_s)

    async def run_once(self) -> float:
        """Fire what is due and answer how long to sleep, in seconds."""
        left = round(SLEEP_S_MAX * 1_000_000)
        self._next = self._clock.now() + left
        after, any_due, any_failed = _BEGINNING, False, False
        while True:
            now = self._clock.now()
            wall = min(now, self._clock.wall())
            await self._moved()
            rows = await self._store.rows("due_timers", *after, PORTION)
            waits = [at - (wall if by_wall else now) for _, _, at, by_wall in rows]
            due = [(no, seq) for (no, seq, _, _), wait in zip(rows, waits, strict=True) if wait <= 0]
            left = min([left, *(wait for wait in waits if wait > 0)])
            failed = await asyncio.gather(*(self._fire(no, seq) for no, seq in due))
            any_due, any_failed = any_due or bool(due), any_failed or any(failed)
            if len(rows) < PORTION or rows[-1][2] > now:
                break
            no, seq, at, _ = rows[-1]
            after = (at, no, seq)  # on, and not again from the start: those that cannot fire must not block the others
        if any_failed:
            return _FAILURE_PAUSE_S
        if any_due:
            return 0.0  # look again at once: what these led to
        self._next = min(self._next, now + left)
        return max(0.0, (self._next - self._clock.now()) / 1_000_000)

    async def _fire(self, no: int, seq: int) -> bool:
        try:
            reach("timer.due")
            await self._runner.deliver(no, TimerFired(seq))
            reach("timer.fired")
        except (FailedPreconditionError, NotFoundError):
            _log.error("timers.orphan", run_no=no, sequence=seq)  # cannot be, by construction; must not stay
            await self._store.journal.execute(lambda c: c.execute(QUERIES["delete_timer"], (no, seq)))
        except TaskforgeError as error:
            _log.warning("timers.not_fired", run_no=no, sequence=seq, error=str(error))
            return True
        return False
