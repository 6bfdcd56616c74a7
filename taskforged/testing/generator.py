"""Random definitions: every construct of the engine, small, and often odd on purpose."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    Block,
    Case,
    Effect,
    Expression,
    FailSpec,
    Jitter,
    RetryPolicy,
    SleepSpec,
    Step,
    StepSpec,
    SwitchSpec,
    TransformSpec,
    WorkflowModel,
)
from taskforged.engine.states import StepState
from taskforged.testing.fakes import Constant, Failing, Path, StateIs

__all__ = ["random_model"]

_DEPTH_MAX = 3
_STATES = (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.DEAD)


def random_model(rng: Random) -> WorkflowModel:
    """Answer a definition of about ten steps, made by `rng` alone."""
    return _Generator(rng).model()


class _Generator:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._ids: list[str] = []

    def model(self) -> WorkflowModel:
        main = self._block(0)
        on_failure = self._block(1) if self._chance(0.4) else Block()
        return WorkflowModel(
            name="random",
            main=main,
            on_failure=on_failure,
            output=self._value() if self._chance(0.5) else None,
            timeout_s=self._rng.choice((0.5, 5.0, 60.0)) if self._chance(0.3) else None,
        )

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

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
        return tuple(replace(step, after=after[index]) for index, step in enumerate(steps))

    def _step(self, depth: int) -> Step:
        key = f"s{len(self._ids) + 1}"
        condition = self._condition() if self._chance(0.3) else None
        self._ids.append(key)
        spec = self._spec(depth)
        is_activity = isinstance(spec, ActivitySpec)
        return Step(
            id=key,
            kind=type(spec).__name__,
            spec=spec,
            condition=condition,
            timeout_s=self._rng.choice((None, 1.0, 30.0)) if is_activity else None,
            retry=self._policy() if is_activity and self._chance(0.6) else None,
            continue_on_error=self._chance(0.25),
        )

    def _spec(self, depth: int) -> StepSpec:
        draw = self._rng.random()
        if draw < 0.5:
            return ActivitySpec("fake", self._value(), self._rng.choice(tuple(Effect)))
        if draw < 0.65:
            return TransformSpec(self._value())
        if draw < 0.77:
            return SleepSpec(Constant("long" if self._chance(0.04) else self._rng.choice((0, 0.25, 3, 40))))
        if draw < 0.79:
            return FailSpec(Constant("on purpose"))
        if depth < _DEPTH_MAX:
            return self._switch(depth)
        return TransformSpec(Constant(None))

    def _switch(self, depth: int) -> SwitchSpec:
        cases = [Case(self._condition(), self._block(depth + 1)) for _ in range(self._rng.randint(0, 2))]
        if self._chance(0.6):
            cases.append(Case(None, self._block(depth + 1)))
        return SwitchSpec(tuple(cases))

    def _policy(self) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=self._rng.randint(1, 4),
            strategy=self._rng.choice(tuple(Backoff)),
            delay_s=self._rng.choice((0.0, 0.1, 2.0)),
            max_delay_s=self._rng.choice((1.0, 60.0)),
            jitter=self._rng.choice(tuple(Jitter)),
            condition=self._condition() if self._chance(0.2) else None,
        )

    def _condition(self) -> Expression:
        draw = self._rng.random()
        if draw < 0.5 or not self._ids:
            return Constant(draw < 0.38)
        if draw < 0.97:
            return StateIs(self._rng.choice(self._ids), self._rng.choice(_STATES))
        return Failing() if draw < 0.985 else Constant("not a boolean")

    def _value(self) -> Expression:
        draw = self._rng.random()
        if draw < 0.7 or not self._ids:
            return Constant({"value": self._rng.randint(0, 9)})
        if draw < 0.985:
            field = self._rng.choice(("output", "state", "error"))
            return Path(f"steps.{self._rng.choice(self._ids)}.{field}")
        return Failing()
