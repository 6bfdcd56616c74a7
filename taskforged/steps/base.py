"""The seam between the engine's host and the code that has effects: one protocol, one task in, one outcome out.

An executor never decides about retries. It says whether a failure is worth another attempt and, when the other side
asked for a pause, how long; the engine decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from taskforged.engine.model import Json
from taskforged.steps.hosts import fits

__all__ = ["Failed", "Log", "Outcome", "SecretLookup", "SecretValue", "StepExecutor", "Succeeded", "Task"]


class SecretValue(NamedTuple):
    """A secret for whoever uses it.

    Attributes:
        value: the text itself.
        hosts: where it may be sent to, as patterns (see `steps.hosts`). Empty: anywhere.
    """

    value: str
    hosts: tuple[str, ...] = ()

    def may_go_to(self, host: str, port: int) -> bool:
        """Whether the value may be sent to a host, named as in a URL."""
        return not self.hosts or any(fits(pattern, host, port) for pattern in self.hosts)


SecretLookup: TypeAlias = Callable[[str], Awaitable[SecretValue]]
"""Answers a secret of the run's namespace by name; raises `errors.NotFoundError`."""

Log: TypeAlias = Callable[[str, str], None]
"""Takes a line of the attempt's log: the stream (`stdout`, `stderr` or `system`) and the text, secrets masked. Never
blocks; beyond the limits of a log it drops what comes and notes that once."""


def _no_log(_stream: str, _text: str) -> None:
    """For tasks whose log nobody keeps."""


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at one step.

    Attributes:
        run_id: the run, `run_…`.
        namespace: its tenant.
        workflow: name of the workflow.
        step_key: the step within the run.
        attempt: counts from 1.
        config: what the step's definition evaluated to. Secrets are still references, `{"$secret": NAME}` or
            `{"$concat": [text or reference, …]}`.
        timeout_s: limit of this attempt, in seconds; None takes the executor's default.
        idempotency_key: the same for every attempt at this step, `<run id>/<step key>`.
        correlation_id: groups runs that one cause led to.
        secret: looks a secret up.
        traceparent: W3C Trace Context of this attempt, for what it asks others.
        tracestate: what goes with that; empty: nothing.
        log: takes the lines of this attempt's log.
    """

    run_id: str
    namespace: str
    workflow: str
    step_key: str
    attempt: int
    config: Json
    timeout_s: float | None
    idempotency_key: str
    correlation_id: str
    secret: SecretLookup
    traceparent: str = ""
    tracestate: str = ""
    log: Log = _no_log


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The attempt did what it should. `output` is JSON, with every secret's value masked."""

    output: Json


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed.

    Attributes:
        code: stable, lower snake case, for example `timeout`, `network`, `http_status`.
        message: for people; no secret's value in it.
        retryable: another attempt may help.
        retry_after_s: the other side asked for this pause, in seconds.
        details: further evidence, a JSON object.
        is_unknown: the effect may have happened all the same, for example after a timeout. A step that must not happen
            twice (`effect: once`) then waits for a person's decision.
    """

    code: str
    message: str
    retryable: bool
    retry_after_s: float | None = None
    details: Json = None
    is_unknown: bool = False


Outcome: TypeAlias = Succeeded | Failed


class StepExecutor(Protocol):
    """Executes one kind of activity. One instance serves all attempts, concurrently."""

    name: str

    async def start(self) -> object:
        """Make ready."""

    async def execute(self, task: Task) -> Outcome:
        """Try once.

        Must honour `task.timeout_s` (answering `Failed("timeout", …, retryable=True)`) and must stop its effect when
        cancelled, letting `CancelledError` through. Any other exception is a bug and is recorded as a failure that is
        not retryable.
        """

    async def close(self) -> None:
        """Release what it holds. No attempt is running any more."""
