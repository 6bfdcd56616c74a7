"""Short ways to write a definition in a test: `workflow(activity("build"), sleep("pause", 5))`.

`with_` gives a step what any step may have: `with_(activity("a"), needs=True, compensate=activity("undo"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taskforged.engine.events import CreateRun
from taskforged.engine.model import (
    ActivitySpec,
    Block,
    Case,
    ChildSpec,
    Effect,
    Expression,
    FailSpec,
    FanOutSpec,
    GroupSpec,
    Json,
    OnTimeout,
    PublishSpec,
    RetryPolicy,
    SleepSpec,
    Step,
    SwitchSpec,
    TransformSpec,
    WaitSpec,
    WorkflowModel,
)
from taskforged.testing.fakes import Constant, Status

__all__ = ["activity", "approval", "case", "chain", "child", "create_run", "dag", "expression", "fail", "fan_out"]
__all__ += ["group", "publish", "sleep", "sleep_until", "switch", "transform", "wait", "with_", "workflow"]


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


def sleep_until(key: str, at: Json | Expression) -> Step:
    """Answer a durable wait for a time, microseconds since 1970."""
    return Step(key, "sleep", SleepSpec(until=expression(at)))


def wait(
    key: str, signal: str = "go", *, timeout_s: float | None = None, on_timeout: OnTimeout = OnTimeout.FAIL
) -> Step:
    """Answer a step that waits for a signal."""
    return Step(key, "wait", WaitSpec(signal, timeout_s=timeout_s, on_timeout=on_timeout))


def approval(
    key: str,
    message: Json | Expression = "may I?",
    *,
    timeout_s: float | None = None,
    on_timeout: OnTimeout = OnTimeout.FAIL,
) -> Step:
    """Answer a step that waits for somebody's approval."""
    return Step(key, "wait", WaitSpec("", expression(message), None, timeout_s, on_timeout))


def child(key: str, name: str = "child", value: Json | Expression = None, *, version: int = 0) -> Step:
    """Answer a step that runs another workflow."""
    return Step(key, "workflow", ChildSpec(name, version, expression(value)))


def publish(key: str, name: Json | Expression = "order.paid", data: Json | Expression = None) -> Step:
    """Answer a step that publishes an internal event."""
    return Step(key, "event", PublishSpec(expression(name), expression(data)))


def group(
    key: str, *steps: Step, block: Block | None = None, output: Json | Expression | None = None, **others: Any
) -> Step:
    """Answer a group of steps in a chain, or of `block`."""
    spec = GroupSpec(chain(*steps) if block is None else block, None if output is None else expression(output))
    return with_(Step(key, "steps", spec), **others)


def fan_out(
    key: str,
    items: Json | Expression,
    body: Step,
    *,
    max_parallel: int = 100,
    max_failures: int = 0,
    **others: Any,
) -> Step:
    """Answer a step that executes `body` once for each item, under the id that the language would give it."""
    body = replace(body, id=f"{key}[]")
    if body.compensate is not None:
        body = replace(body, compensate=replace(body.compensate, id=f"{key}[]:compensate"))
    return with_(Step(key, body.kind, FanOutSpec(expression(items), body, max_parallel, max_failures)), **others)


def with_(step: Step, *, if_: Json | Expression | None = None, compensate: Step | None = None, **others: Any) -> Step:
    """Answer a step with more of what any step may have. A condition made of `Status` asks for the status."""
    if if_ is not None:
        others.update(condition=expression(if_), asks_status=isinstance(if_, Status))
    if compensate is not None:
        others["compensate"] = replace(compensate, id=f"{step.id}:compensate")
    return replace(step, **others)


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
    on_cancel: Sequence[Step] = (),
    cancel_grace_s: float = 60.0,
    output: Json | Expression | None = None,
    timeout_s: float | None = None,
) -> WorkflowModel:
    """Answer a definition whose main block is a chain of `steps`, or `main`."""
    return WorkflowModel(
        name="sample",
        main=chain(*steps) if main is None else main,
        on_failure=chain(*on_failure),
        on_cancel=chain(*on_cancel),
        cancel_grace_s=cancel_grace_s,
        output=None if output is None else expression(output),
        timeout_s=timeout_s,
    )


def create_run(run_id: str = "run_1", data: Json = None, **others: Any) -> CreateRun:
    """Answer the first fact of a run."""
    return CreateRun(run_id=run_id, namespace="default", workflow="sample", version=1, input=data, **others)
