"""What a workflow definition means: the immutable model that the engine executes.

`language/` builds it from YAML. It knows nothing of YAML, CEL, SQLite or asyncio: expressions come in behind the
`Expression` protocol, already compiled and checked, and steps that need the outside world are named `ActivitySpec`s
whose rendered configuration an executor outside the engine understands.

A block is a list of steps. `Step.after` names, by index in the same block, the steps that must have ended before it;
the language derives it (a chain by default), so that the engine has a graph from the first day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "EVENT_TYPE",
    "EVENT_TYPE_MAX",
    "PRIORITY",
    "RESERVED_TYPES",
    "ActivitySpec",
    "Backoff",
    "Block",
    "Case",
    "ChildSpec",
    "Concurrency",
    "Contract",
    "Effect",
    "Expression",
    "ExpressionError",
    "FailSpec",
    "FanOutSpec",
    "GroupSpec",
    "Jitter",
    "Json",
    "OnLimit",
    "OnTimeout",
    "PublishSpec",
    "RetryPolicy",
    "Scope",
    "SleepSpec",
    "Step",
    "StepSpec",
    "SwitchSpec",
    "TransformSpec",
    "WaitSpec",
    "WorkflowModel",
    "blocks_of",
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

        Names: `input`, `event`, `run`, `workflow`, `error`, `item` and `index` inside a fan-out, `steps.<id>.output`,
        `steps.<id>.state`, `steps.<id>.error`, and in the condition of a step `always__`, `success__`, `failure__`,
        which are the functions of these names. A step that was not reached, or was skipped, has the output null.

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
    """A durable wait: for `duration`, a number of seconds, or `until` a time, microseconds since 1970. One is given."""

    duration: Expression | None = None
    until: Expression | None = None


@dataclass(frozen=True, slots=True)
class FailSpec:
    """Ends the run as FAILED on purpose. `message` evaluates to a text."""

    message: Expression
    code: str = "failed"


class OnTimeout(StrEnum):
    """What becomes of a `wait` that nobody answered in time."""

    FAIL = "fail"
    CONTINUE = "continue"


class Contract(Protocol):
    """A JSON Schema, compiled. The engine keeps it for the control plane and never calls it."""

    def accept(self, value: Json) -> Json:
        """Answer the value with defaults filled in; raises `errors.InvalidArgumentError`."""


@dataclass(frozen=True, slots=True)
class WaitSpec:
    """Waits for a signal, or for somebody's approval.

    Attributes:
        signal: name of the signal; empty: an approval is waited for.
        message: what is asked, shown to whoever approves; evaluates to a text.
        contract: what the payload must look like.
        timeout_s: how long, in seconds; None: for ever.
        on_timeout: what happens then.
    """

    signal: str = ""
    message: Expression | None = None
    contract: Contract | None = None
    timeout_s: float | None = None
    on_timeout: OnTimeout = OnTimeout.FAIL


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A run of another workflow; its output becomes the step's.

    Attributes:
        workflow: its name, in the same namespace.
        version: 0 means the newest one at the time when the parent was created.
        input: evaluates to the child's input.
    """

    workflow: str
    version: int
    input: Expression


EVENT_TYPE_MAX = 200
"""Characters of the type of an event."""

EVENT_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/-]*(\.[A-Za-z0-9_/-]+)*", re.ASCII)
"""How a type is written; CloudEvents of others have capitals and slashes."""

RESERVED_TYPES = ("run.", "trigger.", "schedule.", "taskforge.")
"""Types that begin so are published by the engine alone."""


@dataclass(frozen=True, slots=True)
class PublishSpec:
    """Publishes an internal event, in the transaction that records the step.

    Attributes:
        type: evaluates to the type, for example `order.paid`.
        data: evaluates to the content.
    """

    type: Expression
    data: Expression


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Steps that belong together. Without `output`, the output is a map from the id of each step to its output."""

    block: Block
    output: Expression | None = None


@dataclass(frozen=True, slots=True)
class FanOutSpec:
    """Executes `body` once for each item.

    Attributes:
        items: evaluates to a list, or to a map, of which the items are `{"key", "value"}` in the order of the keys.
        body: the step for one item; its id is that of the fan-out with `[]` behind it.
        max_parallel: items at work at once.
        max_failures: so many items may fail; one more fails the fan-out, and no further item is started.
    """

    items: Expression
    body: Step
    max_parallel: int = 100
    max_failures: int = 0


StepSpec: TypeAlias = (
    ActivitySpec
    | TransformSpec
    | SwitchSpec
    | SleepSpec
    | FailSpec
    | WaitSpec
    | ChildSpec
    | PublishSpec
    | GroupSpec
    | FanOutSpec
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a definition. `id` is unique in the whole workflow, `on_failure` included.

    Attributes:
        id: `[a-z][a-z0-9_]{0,62}`; the body of a fan-out has `[]` behind it, a compensation `:compensate`.
        kind: the key in the definition, for example `http`.
        spec: what it does.
        after: indexes, in the same block, of the steps that must have ended before this one.
        needs: whether `after` was written as `needs`; then a skipped step among them skips this one, too.
        condition: skip the step when it is false.
        asks_status: the condition uses `always()`, `success()` or `failure()`, so a failure before the step does not
            skip it by itself.
        timeout_s: limit of one attempt of an activity, in seconds. None takes the executor's default.
        retry: None means one attempt.
        continue_on_error: a failure of this step does not fail what contains it.
        compensate: undoes the step when it has succeeded and the run fails later.
    """

    id: str
    kind: str
    spec: StepSpec
    after: tuple[int, ...] = ()
    needs: bool = False
    condition: Expression | None = None
    asks_status: bool = False
    timeout_s: float | None = None
    retry: RetryPolicy | None = None
    continue_on_error: bool = False
    compensate: Step | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Steps in the order of the document.

    Attributes:
        steps: the steps.
        ancestors: for each step a bit mask of all that must have ended before it, directly or not; derived.
        asks_status: whether a condition in it asks for the status of what came before; derived.
    """

    steps: tuple[Step, ...] = ()
    ancestors: tuple[int, ...] = field(init=False, repr=False, compare=False)
    asks_status: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive the closure of `after`; the language has refused cycles."""
        masks = [sum(1 << index for index in step.after) for step in self.steps]
        changed = True
        while changed:
            changed = False
            for index, step in enumerate(self.steps):
                mask = masks[index]
                for before in step.after:
                    mask |= masks[before]
                if mask != masks[index]:
                    masks[index] = mask
                    changed = True
        object.__setattr__(self, "ancestors", tuple(masks))
        object.__setattr__(self, "asks_status", any(step.asks_status for step in self.steps))

    def ids(self) -> list[str]:
        """All step ids in it, nested ones included, in the order of the document; not those inside a fan-out."""
        found: list[str] = []
        for step in self.steps:
            found.append(step.id)
            for block in blocks_of(step.spec):
                found.extend(block.ids())
        return found


def blocks_of(spec: StepSpec) -> tuple[Block, ...]:
    """Answer the blocks inside a step, apart from the body of a fan-out."""
    match spec:
        case SwitchSpec(cases):
            return tuple(case.block for case in cases)
        case GroupSpec(block):
            return (block,)
    return ()


class OnLimit(StrEnum):
    """What becomes of a run whose concurrency group is full."""

    QUEUE = "queue"
    SKIP = "skip"
    CANCEL_RUNNING = "cancel_running"


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `limit` runs of a group, across workflows, run at the same time in a namespace.

    Attributes:
        group: evaluates to the name of the group; sees `input`, `event`, `run`, `workflow`.
        limit: runs at the same time.
        on_limit: what becomes of one more.
    """

    group: Expression
    limit: int = 1
    on_limit: OnLimit = OnLimit.QUEUE


PRIORITY = 5
"""The priority of a run that asks for none; 0 is the least urgent, 9 the most."""


@dataclass(frozen=True, slots=True)
class WorkflowModel:
    """A whole definition, as far as a run needs it.

    Attributes:
        name: of the workflow.
        main: the steps.
        on_failure: the steps executed when `main` has failed; they see `error`.
        on_cancel: the steps executed when the run has been cancelled and everything has stopped.
        cancel_grace_s: limit of `on_cancel`, in seconds.
        output: the run's output; None means null.
        timeout_s: limit of the whole run, in seconds.
        concurrency: how many runs of a group may run at the same time.
        queue: the lane of its activities.
        priority: 0 to 9, more is sooner.
        steps: every step by id, derived.
        depth: for every step id, how many fan-outs it is inside of; derived.
        phases: for every step id, the block it belongs to: `main`, `on_failure`, `on_cancel`, `compensate`; derived.
        children: names of the sub-workflows that are pinned when a run is created; derived.
        compensates: whether any step has a compensation; derived.
    """

    name: str
    main: Block
    on_failure: Block = field(default_factory=Block)
    on_cancel: Block = field(default_factory=Block)
    cancel_grace_s: float = 60.0
    output: Expression | None = None
    timeout_s: float | None = None
    concurrency: Concurrency | None = None
    queue: str = "default"
    priority: int = PRIORITY
    steps: Mapping[str, Step] = field(init=False, repr=False, compare=False)
    depth: Mapping[str, int] = field(init=False, repr=False, compare=False)
    phases: Mapping[str, str] = field(init=False, repr=False, compare=False)
    children: frozenset[str] = field(init=False, repr=False, compare=False)
    compensates: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the steps by id."""
        index = _Index({}, {}, {})
        index.add_block(self.main, 0, "main")
        index.add_block(self.on_failure, 0, "on_failure")
        index.add_block(self.on_cancel, 0, "on_cancel")
        specs = (step.spec for step in index.steps.values())
        pinned = frozenset(spec.workflow for spec in specs if isinstance(spec, ChildSpec) and not spec.version)
        object.__setattr__(self, "steps", index.steps)
        object.__setattr__(self, "depth", index.depth)
        object.__setattr__(self, "phases", index.phases)
        object.__setattr__(self, "children", pinned)
        object.__setattr__(self, "compensates", "compensate" in index.phases.values())


class _Index(NamedTuple):
    """Steps by id, how deep they are inside fan-outs, and which phase of a run they belong to."""

    steps: dict[str, Step]
    depth: dict[str, int]
    phases: dict[str, str]

    def add_block(self, block: Block, depth: int, phase: str) -> None:
        for step in block.steps:
            self.add(step, depth, phase)

    def add(self, step: Step, depth: int, phase: str) -> None:
        self.steps[step.id] = step
        self.depth[step.id] = depth
        self.phases[step.id] = phase
        if step.compensate is not None:
            self.add(step.compensate, depth, "compensate")
        if isinstance(step.spec, FanOutSpec):
            self.add(step.spec.body, depth + 1, phase)
            return
        for block in blocks_of(step.spec):
            self.add_block(block, depth, phase)
