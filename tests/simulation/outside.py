"""The world outside: what steps have effects on. It survives crashes, remembers everything, and holds it against us."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from simulation.virtual import Disk
from taskforged.steps.base import Failed, Outcome, Succeeded, Task

__all__ = ["Outside", "SimulatedExecutor", "Violation", "expect"]


class Violation(AssertionError):
    """A promise was broken."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)


class Outside:
    """Effects.

    Attributes:
        calls: how often each idempotency key was seen.
        seen: outcomes, for the coverage of a campaign.
        violation: the first promise that was broken while a step was at work.
    """

    def __init__(self, disk: Disk, rng: Random, *, pool: int) -> None:
        self.calls: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.violation: Violation | None = None
        self.trouble = 1.0
        self.namespace_limits: dict[int, int] = {}
        self.queue_limits: dict[tuple[int, str], int] = {}
        self._disk = disk
        self._rng = rng
        self._pool = pool
        self._last_attempt: dict[str, int] = {}
        self._unknown: set[str] = set()
        self._busy: dict[str, tuple[int, str]] = {}

    def died(self) -> None:
        """The daemon is gone: nobody knows what became of what was at work."""
        self._unknown.update(self._busy)
        self._busy.clear()

    def decided_again(self, key: str) -> None:
        """A person has said that a step is to be executed once more."""
        self._unknown.discard(key)

    def begin(self, task: Task, epoch: int) -> None:
        """An attempt begins."""
        key = task.idempotency_key
        try:
            self._check_right(task, epoch)
            self._check_limits(key)
        except Violation as violation:
            self.violation = self.violation or violation
            raise
        self.calls[key] += 1
        self._last_attempt[key] = task.attempt

    def _check_right(self, task: Task, epoch: int) -> None:
        key = task.idempotency_key
        expect(key == f"{task.run_id}/{task.step_key}", f"another key than promised: {key}")
        expect(key not in self._busy, f"{key} is executed twice at the same time")
        last = self._last_attempt.get(key, 0)
        expect(task.attempt > last, f"{key}: attempt {task.attempt} after attempt {last}")
        is_once = "x-once" in (task.config.get("headers") or {})
        expect(not (is_once and key in self._unknown), f"{key} is executed again, though its effect is unknown")
        found = self._disk.rows(
            "SELECT r.no, r.ended_at, s.state, s.attempt FROM runs r JOIN step_runs s ON s.run_no = r.no"
            " WHERE r.id = ? AND s.key = ?",
            *(task.run_id, task.step_key),
        )
        expect(found, f"{key} is executed before its start is on disk")
        no, ended_at, state, attempt = found[0]
        stands = (ended_at is None, state, attempt) == (True, "RUNNING", task.attempt)
        expect(stands, f"{key} is executed, and stands as {state} #{attempt} of a run that ended at {ended_at}")
        epochs = {one for (one,) in self._disk.rows("SELECT epoch FROM commands WHERE run_no = ?", no)}
        expect(epoch in epochs, f"{key} is executed without a claim of boot {epoch}")

    def _check_limits(self, key: str) -> None:
        ((namespace_no, queue),) = self._disk.rows(
            "SELECT namespace_no, queue FROM runs WHERE id = ?", key.partition("/")[0]
        )
        place = (namespace_no, queue)
        self._busy[key] = place
        expect(len(self._busy) <= self._pool, f"{len(self._busy)} attempts in a pool of {self._pool}")
        limit = self.queue_limits.get(place, 0)
        busy = sum(one == place for one in self._busy.values())
        expect(not limit or busy <= limit, f"{busy} attempts in queue {place}, which allows {limit}")
        limit = self.namespace_limits.get(namespace_no, 0)
        busy = sum(one[0] == namespace_no for one in self._busy.values())
        expect(not limit or busy <= limit, f"{busy} attempts in namespace {namespace_no}, which allows {limit}")

    def end(self, task: Task, outcome: Outcome | None) -> None:
        """An attempt has ended; without an outcome it was stopped, and its effect may have happened."""
        key = task.idempotency_key
        self._busy.pop(key, None)
        is_unknown = outcome is None or (isinstance(outcome, Failed) and outcome.is_unknown)
        if is_unknown:
            self._unknown.add(key)
        self.seen["cancelled" if outcome is None else outcome.code if isinstance(outcome, Failed) else "succeeded"] += 1

    def draw(self, task: Task) -> tuple[float, Outcome]:
        """Answer how long an attempt takes and what it comes to."""
        rng, draw = self._rng, self._rng.random() / max(self.trouble, 0.001)
        pause_s = rng.choice((0.0, 0.0, 0.002, 0.05, 0.4, 3.0))
        if draw < 0.12:
            retry_after_s = rng.choice((None, None, 0.2, 4.0))
            return pause_s, Failed("busy", "come back", retryable=True, retry_after_s=retry_after_s)
        if draw < 0.17:
            return pause_s, Failed("refused", "no", retryable=False)
        if draw < 0.22:
            return pause_s, Failed("network", "the answer was cut", retryable=True, is_unknown=True)
        if draw < 0.27:
            return 600.0, Succeeded({"status": 200, "body": {}})  # it stalls
        return pause_s, Succeeded({"status": 200, "body": {"call": self.calls[task.idempotency_key]}})


class SimulatedExecutor:
    """An executor of one boot."""

    name = "http"

    def __init__(self, outside: Outside, epoch: int) -> None:
        self._outside = outside
        self._epoch = epoch

    async def start(self) -> None:
        """It is ready."""

    async def close(self) -> None:
        """It holds nothing."""

    async def execute(self, task: Task) -> Outcome:
        outside = self._outside
        outside.begin(task, self._epoch)
        pause_s, outcome = outside.draw(task)
        done: Outcome | None = None
        try:
            limit_s = 100.0 if task.timeout_s is None else task.timeout_s
            await asyncio.sleep(min(pause_s, limit_s))
            done = outcome if pause_s < limit_s else _TIMED_OUT
            task.log("system", f"{task.step_key} #{task.attempt}: {type(done).__name__}")
            return done
        except asyncio.CancelledError:
            if pause_s == 3.0:
                await asyncio.sleep(0.7)  # it takes its time to stop
            raise
        finally:
            outside.end(task, done)


_TIMED_OUT = Failed("timeout", "no answer in time", retryable=True, is_unknown=True)
