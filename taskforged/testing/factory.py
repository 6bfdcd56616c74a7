"""Short ways to write a definition in a test: `workflow(activity("build"), sleep("pause", 5))`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from taskforged.engine.events import CreateRun
from taskforged.engine.model import (
    ActivitySpec,
    Block,
    Case,
    Effect,
    Expression,
    FailSpec,
    Json,
    RetryPolicy,
    SleepSpec,
    Step,
    SwitchSpec,
    TransformSpec,
    WorkflowModel,
)
from taskforged.testing.fakes import Constant

__all__ = ["activity", "case", "chain", "create_run", "dag", "expression", "fail", "sleep", "switch", "transform"]
__all__ += ["workflow"]


def expression(value: Json | Expression) -> Expression:
    """Answer `value` itself when it is an expression, else a constant of it."""
    return value if hasattr(value, "evaluate") else Constant(value)


def _condition(value: Json | Expression | None) -> Expression | None:
    return None if value is None else expression(value)


def activity(
    key: str,
    config: Json | Expression = None,
    *,
    if_: Json | Expression | None = None,
    retry: RetryPolicy | None = None,
    effect: Effect = Effect.IDEMPOTENT,
    timeout_s: float | None = None,
    continue_on_error: bool = False,
) -> Step:
    """Answer a step that an executor named `fake` executes."""
    return Step(
        id=key,
        kind="fake",
        spec=ActivitySpec("fake", expression(config), effect),
        condition=_condition(if_),
        timeout_s=timeout_s,
        retry=retry,
        continue_on_error=continue_on_error,
    )


def transform(
    key: str,
    value: Json | Expression = None,
    *,
    if_: Json | Expression | None = None,
    continue_on_error: bool = False,
) -> Step:
    """Answer a pure step with this value."""
    spec = TransformSpec(expression(value))
    return Step(key, "transform", spec, condition=_condition(if_), continue_on_error=continue_on_error)


def sleep(key: str, seconds: Json | Expression, *, if_: Json | Expression | None = None) -> Step:
    """Answer a durable wait."""
    return Step(key, "sleep", SleepSpec(expression(seconds)), condition=_condition(if_))


def fail(
    key: str,
    message: Json | Expression = "on purpose",
    *,
    code: str = "failed",
    if_: Json | Expression | None = None,
    continue_on_error: bool = False,
) -> Step:
    """Answer a step that fails on purpose."""
    spec = FailSpec(expression(message), code)
    return Step(key, "fail", spec, condition=_condition(if_), continue_on_error=continue_on_error)


def case(condition: Json | Expression | None, *steps: Step) -> Case:
    """Answer a case of a switch, its steps in a chain; without a condition the `otherwise`."""
    return Case(_condition(condition), chain(*steps))


def switch(key: str, *cases: Case, if_: Json | Expression | None = None, continue_on_error: bool = False) -> Step:
    """Answer a switch."""
    return Step(key, "switch", SwitchSpec(cases), condition=_condition(if_), continue_on_error=continue_on_error)


def chain(*steps: Step) -> Block:
    """Answer a block in which each step follows the one above it."""
    return Block(tuple(replace(step, after=(index - 1,) if index else ()) for index, step in enumerate(steps)))


def dag(*steps: tuple[Step, Sequence[str]]) -> Block:
    """Answer a block of steps, each with the ids of those that it needs."""
    index = {step.id: number for number, (step, _) in enumerate(steps)}
    return Block(tuple(replace(step, after=tuple(index[key] for key in needs)) for step, needs in steps))


def workflow(
    *steps: Step,
    main: Block | None = None,
    on_failure: Sequence[Step] = (),
    output: Json | Expression | None = None,
    timeout_s: float | None = None,
) -> WorkflowModel:
    """Answer a definition whose main block is a chain of `steps`, or `main`."""
    return WorkflowModel(
        name="sample",
        main=chain(*steps) if main is None else main,
        on_failure=chain(*on_failure),
        output=None if output is None else expression(output),
        timeout_s=timeout_s,
    )


def create_run(run_id: str = "run_1", data: Json = None, **others: str) -> CreateRun:
    """Answer the first fact of a run."""
    return CreateRun(run_id=run_id, namespace="default", workflow="sample", version=1, input=data, **others)
