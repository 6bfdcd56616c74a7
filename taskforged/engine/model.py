"""What a workflow definition means: the immutable model that the engine executes.

`language/` builds it from YAML. It knows nothing of YAML, CEL, SQLite or asyncio: expressions come in behind the
`Expression` protocol, already compiled and checked, and steps that need the outside world are named `ActivitySpec`s
whose rendered configuration an executor outside the engine understands.

A block is a list of steps. `Step.after` names, by index in the same block, the steps that must have ended before it;
the language derives it (a chain by default), so that the engine has a graph from the first day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

__all__ = [
    "ActivitySpec",
    "Backoff",
    "Block",
    "Case",
    "Effect",
    "Expression",
    "ExpressionError",
    "FailSpec",
    "Jitter",
    "Json",
    "RetryPolicy",
    "Scope",
    "SleepSpec",
    "Step",
    "StepSpec",
    "SwitchSpec",
    "TransformSpec",
    "WorkflowModel",
]

Json: TypeAlias = Any
"""A JSON value: None, bool, int within 64 bits, finite float, str, list of Json, dict of str to Json."""


class ExpressionError(Exception):
    """An expression failed at run time. It fails its step, never the engine.

    Attributes:
        source: the expression as written, without `${{ }}`.
        position: where it stands in the definition, for example `steps[2].transform.version (line 30, column 16)`.
        reason: what the evaluator said.
    """

    def __init__(self, source: str, position: str, reason: str) -> None:
        super().__init__(f"{position}: `{source}`: {reason}")
        self.source = source
        self.position = position
        self.reason = reason


class Scope(Protocol):
    """The values that an expression may see."""

    def resolve(self, name: str) -> Json:
        """Answer a root variable by its dotted name.

        Names: `input`, `event`, `run`, `workflow`, `error`, `steps.<id>.output`, `steps.<id>.state`,
        `steps.<id>.error`. A step that has not been reached, or was skipped, has the output null.

        Raises:
            KeyError: there is no such variable here.
        """


class Expression(Protocol):
    """A compiled expression, or a tree of JSON with expressions inside, or a plain constant."""

    def evaluate(self, scope: Scope) -> Json:
        """Answer the value as JSON.

        Raises:
            ExpressionError: it failed, or its value is no JSON.
        """


class Backoff(StrEnum):
    """How the delay grows with the attempts."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


class Jitter(StrEnum):
    """How the delay is spread. Terms as in the AWS Architecture Blog, "Exponential Backoff And Jitter" (2015)."""

    NONE = "none"
    FULL = "full"
    EQUAL = "equal"


class Effect(StrEnum):
    """What a repeated execution of a step does, and so what is allowed after a crash."""

    PURE = "pure"
    IDEMPOTENT = "idempotent"
    ONCE = "once"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is tried again.

    Attributes:
        max_attempts: attempts in all, the first included; at least 1.
        strategy: growth of the delay.
        delay_s: first delay, in seconds.
        max_delay_s: cap of the delay, in seconds.
        jitter: how the delay is spread.
        condition: if given, decides over `error` whether a failure is retried, in place of the executor's opinion.
    """

    max_attempts: int = 1
    strategy: Backoff = Backoff.EXPONENTIAL
    delay_s: float = 1.0
    max_delay_s: float = 60.0
    jitter: Jitter = Jitter.FULL
    condition: Expression | None = None


@dataclass(frozen=True, slots=True)
class ActivitySpec:
    """Work for an executor outside the engine.

    Attributes:
        executor: its name, for example `http`.
        config: evaluates to the JSON that the executor understands. References to secrets are not values in it but
            stay opaque: `{"$secret": "NAME"}`, or inside a text `{"$concat": ["Bearer ", {"$secret": "NAME"}]}`.
        effect: what a repeated execution does.
    """

    executor: str
    config: Expression
    effect: Effect = Effect.IDEMPOTENT


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """A pure computation of JSON from JSON."""

    value: Expression


@dataclass(frozen=True, slots=True)
class Case:
    """One branch of a switch. Without a condition it is the `otherwise`."""

    condition: Expression | None
    block: Block


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    """The first case whose condition is true is executed; none is fine, too."""

    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class SleepSpec:
    """A durable wait. `duration` evaluates to a number of seconds, at least 0."""

    duration: Expression


@dataclass(frozen=True, slots=True)
class FailSpec:
    """Ends the run as FAILED on purpose. `message` evaluates to a text."""

    message: Expression
    code: str = "failed"


StepSpec: TypeAlias = ActivitySpec | TransformSpec | SwitchSpec | SleepSpec | FailSpec


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a definition. `id` is unique in the whole workflow, `on_failure` included.

    Attributes:
        id: `[a-z][a-z0-9_]{0,62}`.
        kind: the key in the definition, for example `http`.
        spec: what it does.
        after: indexes, in the same block, of the steps that must have ended before this one.
        condition: skip the step when it is false.
        timeout_s: limit of one attempt of an activity, in seconds. None takes the executor's default.
        retry: None means one attempt.
        continue_on_error: a failure of this step does not fail what contains it.
    """

    id: str
    kind: str
    spec: StepSpec
    after: tuple[int, ...] = ()
    condition: Expression | None = None
    timeout_s: float | None = None
    retry: RetryPolicy | None = None
    continue_on_error: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Steps in the order of the document."""

    steps: tuple[Step, ...] = ()

    def ids(self) -> list[str]:
        """All step ids in it, nested ones included, in the order of the document."""
        found: list[str] = []
        for step in self.steps:
            found.append(step.id)
            if isinstance(step.spec, SwitchSpec):
                for case in step.spec.cases:
                    found.extend(case.block.ids())
        return found


@dataclass(frozen=True, slots=True)
class WorkflowModel:
    """A whole definition, as far as a run needs it.

    Attributes:
        name: of the workflow.
        main: the steps.
        on_failure: the steps executed when `main` has failed; they see `error`.
        output: the run's output; None means null.
        timeout_s: limit of the whole run, in seconds.
        steps: every step by id, derived.
    """

    name: str
    main: Block
    on_failure: Block = field(default_factory=Block)
    output: Expression | None = None
    timeout_s: float | None = None
    steps: Mapping[str, Step] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the steps by id."""
        found: dict[str, Step] = {}
        _index(self.main, found)
        _index(self.on_failure, found)
        object.__setattr__(self, "steps", found)


def _index(block: Block, into: dict[str, Step]) -> None:
    for step in block.steps:
        into[step.id] = step
        if isinstance(step.spec, SwitchSpec):
            for case in step.spec.cases:
                _index(case.block, into)
