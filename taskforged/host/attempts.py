"""Attempts of steps: each is a task that an executor works in, and ends as a fact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import structlog
from structlog.contextvars import bind_contextvars

from taskforged.correlation import attempt_span, parent_of
from taskforged.engine.events import AttemptCancelled, AttemptCompleted, AttemptFailed, Fact
from taskforged.engine.keys import definition_id
from taskforged.engine.model import ActivitySpec
from taskforged.failpoints import reach
from taskforged.host.entry import Entry, named
from taskforged.host.run_meters import RunMeters
from taskforged.host.tasks import Tasks
from taskforged.steps.base import Log, Outcome, SecretLookup, SecretValue, StepExecutor, Succeeded, Task

__all__ = ["Attempts", "Logs"]

_log = structlog.get_logger(__name__)


class Logs(Protocol):
    """Keeps the logs of attempts."""

    def logger(self, run_no: int, step_key: str, attempt: int) -> Log:
        """Answer what takes the lines of an attempt."""

    def has_lines(self, run_no: int, step_key: str, attempt: int) -> bool:
        """Whether lines of the attempt are not on disk yet."""

    def end(self, run_no: int, step_key: str, attempt: int) -> None:
        """The attempt says no more."""

    async def flush(self, run_no: int | None = None) -> None:
        """Write what waits."""


class Attempts:
    """Executes claimed commands."""

    def __init__(
        self,
        *,
        executors: Mapping[str, StepExecutor],
        secret: Callable[[int, str], Awaitable[SecretValue]],
        logs: Logs,
        meters: RunMeters,
        tasks: Tasks,
        on_end: Callable[[Entry, Fact], None],
    ) -> None:
        """Create it; `secret` looks up a secret by namespace number and name, `on_end` is told how an attempt ended."""
        self._executors = executors
        self._secret = secret
        self._logs = logs
        self._meters = meters
        self._tasks = tasks
        self._on_end = on_end

    def launch(self, entry: Entry, seq: int) -> None:
        """Begin the attempt of a command whose claim is on disk."""
        if self._tasks.stopping:
            return  # the next boot decides
        key = entry.run.commands[seq]
        task = self._tasks.spawn(self._execute(entry, key), f"attempt {entry.run.run_id}/{key}")
        entry.attempts[seq] = task
        began = time.monotonic()
        task.add_done_callback(lambda done: self._ended(entry, seq, key, began, done))

    def _ended(self, entry: Entry, seq: int, key: str, began: float, done: asyncio.Task[Outcome]) -> None:
        """Report how an attempt ended.

        A callback and not code around it: a task cancelled before its first step never gets to its own `except`.
        """
        entry.attempts.pop(seq, None)
        self._logs.end(entry.no, key, entry.run.steps[key].attempt)
        if done.cancelled() and self._tasks.stopping:
            return  # the next boot decides
        fact = _fact_of_end(entry, seq, key, done)
        kind = entry.model.steps[definition_id(key)].kind
        self._meters.attempted(kind, _OUTCOMES[type(fact)], time.monotonic() - began)
        self._on_end(entry, fact)

    async def _execute(self, entry: Entry, key: str) -> Outcome:
        run, step = entry.run, entry.model.steps[definition_id(key)]
        spec, attempt = step.spec, run.steps[key].attempt
        assert isinstance(spec, ActivitySpec)
        bind_contextvars(
            run_id=run.run_id, correlation_id=run.correlation_id, workflow=run.workflow, step=key, attempt=attempt
        )
        task = Task(
            run_id=run.run_id,
            namespace=run.namespace,
            workflow=run.workflow,
            step_key=key,
            attempt=attempt,
            config=run.steps[key].input,
            timeout_s=step.timeout_s,
            idempotency_key=f"{run.run_id}/{key}",
            correlation_id=run.correlation_id,
            traceparent=parent_of(run.run_id, run.traceparent, attempt_span(run.run_id, key, attempt)),
            tracestate=run.tracestate,
            secret=self._secret_lookup(entry.home.namespace_no),
            log=self._logs.logger(entry.no, key, attempt),
        )
        reach("attempt.begun")
        outcome = await self._executors[spec.executor].execute(task)
        reach("attempt.done")
        if self._logs.has_lines(entry.no, key, attempt):
            await self._logs.flush(entry.no)  # who sees the result finds the whole log
        return outcome

    def _secret_lookup(self, namespace_no: int) -> SecretLookup:
        async def lookup(name: str) -> SecretValue:
            return await self._secret(namespace_no, name)

        return lookup


_OUTCOMES: Mapping[type[Fact], str] = {
    AttemptCompleted: "succeeded",
    AttemptFailed: "failed",
    AttemptCancelled: "cancelled",
}


def _fact_of_end(entry: Entry, seq: int, key: str, done: asyncio.Task[Outcome]) -> Fact:
    if done.cancelled() and done.cancelling():
        return AttemptCancelled(seq)
    if done.cancelled():  # by something inside it, and not by us
        message = "the executor gave up by itself"
    elif (error := done.exception()) is not None:
        _log.error("executor.bug", **named(entry.run), step=key, exc_info=error)
        message = f"the executor failed in an unexpected way: {type(error).__name__}"
    else:
        return _fact_of(seq, done.result())
    return AttemptFailed(seq, {"code": "internal", "message": message}, retryable=False)


def _fact_of(seq: int, outcome: Outcome) -> Fact:
    if isinstance(outcome, Succeeded):
        return AttemptCompleted(seq, outcome.output)
    error: dict[str, Any] = {"code": outcome.code, "message": outcome.message}
    if outcome.details is not None:
        error["details"] = outcome.details
    return AttemptFailed(
        seq,
        error,
        retryable=outcome.retryable,
        retry_after_s=outcome.retry_after_s,
        is_unknown=outcome.is_unknown,
    )
