"""Random definitions: every construct of the engine, small, and often odd on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    Block,
    Case,
    ChildSpec,
    Effect,
    Expression,
    FailSpec,
    FanOutSpec,
    GroupSpec,
    Jitter,
    Json,
    OnTimeout,
    PublishSpec,
    RetryPolicy,
    SleepSpec,
    Step,
    StepSpec,
    SwitchSpec,
    TransformSpec,
    WaitSpec,
    WorkflowModel,
)
from taskforged.engine.states import StepState
from taskforged.testing.fakes import Constant, Failing, IndexBelow, Path, StateIs, Status

__all__ = ["SIGNALS", "random_model"]

SIGNALS = ("go", "stop")
"""Names of the signals that random definitions wait for."""

_DEPTH_MAX = 3
_STATES = (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.DEAD)
_ITEMS: tuple[Json, ...] = ([], [1], [1, 2], [1, 2, 3], list(range(6)), {"b": 1, "a": 2})


def random_model(rng: Random) -> WorkflowModel:
    """Answer a definition of about ten steps, made by `rng` alone."""
    return _Generator(rng).model()


class _Generator:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._names: Iterator[str] = (f"s{number}" for number in range(1, 10_000))
        self._ids: list[str] = []  # those that an expression may name here
        self._is_item = False

    def model(self) -> WorkflowModel:
        main = self._block(0)
        on_failure = self._block(1) if self._chance(0.4) else Block()
        on_cancel = self._block(1) if self._chance(0.4) else Block()
        return WorkflowModel(
            name="random",
            main=main,
            on_failure=on_failure,
            on_cancel=on_cancel,
            cancel_grace_s=self._rng.choice((0.0, 1.0, 60.0)),
            output=self._value() if self._chance(0.5) else None,
            timeout_s=self._rng.choice((0.5, 5.0, 60.0)) if self._chance(0.3) else None,
        )

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _block(self, depth: int) -> Block:
        steps = [self._step(depth) for _ in range(self._rng.randint(0 if depth else 2, 3 if depth else 7))]
        if self._chance(0.5):
            return Block(tuple(replace(step, after=(index - 1,) if index else ()) for index, step in enumerate(steps)))
        return Block(self._graph(steps))

    def _graph(self, steps: list[Step]) -> tuple[Step, ...]:
        """Answer the steps with random needs, also of steps further down, without a cycle."""
        order = list(range(len(steps)))
        self._rng.shuffle(order)
        after: dict[int, tuple[int, ...]] = {}
        for place, index in enumerate(order):
            after[index] = tuple(sorted(before for before in order[:place] if self._chance(0.4)))
        return tuple(replace(step, after=after[index], needs=self._chance(0.8)) for index, step in enumerate(steps))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _step(self, depth: int) -> Step:
        key = next(self._names)
        condition = self._condition() if self._chance(0.3) else None
        if self._chance(0.12):
            condition = Status(self._rng.choice(("always", "success", "failure", "always", "failure")))
        self._ids.append(key)
        spec = self._spec(depth, key)
        is_activity = isinstance(spec, ActivitySpec)
        return Step(
            id=key,
            kind=type(spec).__name__,
            spec=spec,
            condition=condition,
            asks_status=isinstance(condition, Status),
            timeout_s=self._rng.choice((None, 1.0, 30.0)) if is_activity else None,
            retry=self._policy() if is_activity and self._chance(0.6) else None,
            continue_on_error=self._chance(0.2),
            compensate=self._undo(key) if self._chance(0.2) else None,
        )

    def _undo(self, key: str) -> Step:
        spec = self._leaf()
        retry = self._policy() if isinstance(spec, ActivitySpec) and self._chance(0.5) else None
        condition = self._condition() if self._chance(0.1) else None
        return Step(f"{key}:compensate", type(spec).__name__, spec, condition=condition, retry=retry)

    def _spec(self, depth: int, key: str) -> StepSpec:
        draw = self._rng.random()
        if draw < 0.66 or depth >= _DEPTH_MAX:
            return self._leaf()
        if draw < 0.78:
            return self._switch(depth)
        if draw < 0.88:
            return self._group(depth)
        return self._fan_out(depth, key)

    def _leaf(self) -> StepSpec:
        draw = self._rng.random()
        if draw < 0.55:
            return ActivitySpec("fake", self._value(), self._rng.choice(tuple(Effect)))
        if draw < 0.68:
            return TransformSpec(self._value())
        if draw < 0.76:
            return SleepSpec(Constant("long" if self._chance(0.04) else self._rng.choice((0, 0.25, 3, 40))))
        if draw < 0.78:
            return FailSpec(Constant("on purpose"))
        if draw < 0.88:
            return self._wait()
        if draw < 0.95:
            return ChildSpec("missing" if self._chance(0.06) else "child", self._version(), self._value())
        return PublishSpec(Constant("run.x" if self._chance(0.1) else "a.b"), self._value())

    def _version(self) -> int:
        return self._rng.choice((0, 0, 3))

    def _wait(self) -> WaitSpec:
        return WaitSpec(
            signal=self._rng.choice((*SIGNALS, "")),
            message=self._value(),
            timeout_s=self._rng.choice((None, 0.5, 30.0)),
            on_timeout=OnTimeout.FAIL if self._chance(0.3) else OnTimeout.CONTINUE,
        )

    def _switch(self, depth: int) -> SwitchSpec:
        cases = [Case(self._condition(), self._block(depth + 1)) for _ in range(self._rng.randint(0, 2))]
        if self._chance(0.6):
            cases.append(Case(None, self._block(depth + 1)))
        return SwitchSpec(tuple(cases))

    def _group(self, depth: int) -> GroupSpec:
        block = self._block(depth + 1)
        return GroupSpec(block, self._value() if self._chance(0.4) else None)

    def _fan_out(self, depth: int, key: str) -> FanOutSpec:
        """Make a fan-out. What is inside it is seen by nothing outside."""
        items = self._value() if self._chance(0.04) else Constant(self._rng.choice(_ITEMS))
        seen, was_item = list(self._ids), self._is_item
        self._is_item = True
        body = self._body(depth, key)
        self._ids, self._is_item = seen, was_item
        return FanOutSpec(items, body, self._rng.choice((1, 2, 3, 100)), self._rng.choice((0, 0, 1, 2)))

    def _body(self, depth: int, key: str) -> Step:
        draw = self._rng.random()
        spec: StepSpec = self._leaf()
        if draw < 0.4:
            spec = self._group(depth + 1)
        elif draw < 0.5:
            spec = self._switch(depth + 1)
        is_activity = isinstance(spec, ActivitySpec)
        return Step(
            id=f"{key}[]",
            kind=type(spec).__name__,
            spec=spec,
            condition=self._condition() if self._chance(0.2) else None,
            retry=self._policy() if is_activity and self._chance(0.5) else None,
            compensate=self._undo(f"{key}[]") if self._chance(0.2) else None,
        )

    def _policy(self) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=self._rng.randint(1, 4),
            strategy=self._rng.choice(tuple(Backoff)),
            delay_s=self._rng.choice((0.0, 0.1, 2.0)),
            max_delay_s=self._rng.choice((1.0, 60.0)),
            jitter=self._rng.choice(tuple(Jitter)),
            condition=self._condition() if self._chance(0.2) else None,
        )

    # --- expressions -------------------------------------------------------------------------------------------------

    def _condition(self) -> Expression:
        draw = self._rng.random()
        if self._is_item and draw < 0.2:
            return IndexBelow(self._rng.randint(0, 3))
        if draw < 0.5 or not self._ids:
            return Constant(draw < 0.38)
        if draw < 0.99:
            return StateIs(self._rng.choice(self._ids), self._rng.choice(_STATES))
        return Failing() if draw < 0.995 else Constant("not a boolean")

    def _value(self) -> Expression:
        draw = self._rng.random()
        if self._is_item and draw < 0.2:
            return Path("item")
        if draw < 0.7 or not self._ids:
            return Constant({"value": self._rng.randint(0, 9)})
        if draw < 0.995:
            field = self._rng.choice(("output", "state", "error"))
            return Path(f"steps.{self._rng.choice(self._ids)}.{field}")
        return Failing()
