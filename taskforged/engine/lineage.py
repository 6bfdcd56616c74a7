"""What a retry or a rerun takes over from the run before it: the outputs of steps that need not be executed again."""

from __future__ import annotations

from collections.abc import Iterator

from taskforged.engine.keys import compensation_key, definition_id
from taskforged.engine.model import Block, FanOutSpec, GroupSpec, Json, Step, SwitchSpec, WorkflowModel, blocks_of
from taskforged.engine.run import Run, StepRun
from taskforged.engine.states import StepState

__all__ = ["pinned_outputs"]

_CONTAINERS = (SwitchSpec, GroupSpec, FanOutSpec)
"""Steps that contain others are gone through again: what they contain is taken over piece by piece."""


def pinned_outputs(before: WorkflowModel, after: WorkflowModel, run: Run, from_step: str = "") -> dict[str, Json]:
    """Answer the outputs that a new run takes over, by step key.

    These are the outputs of the main steps that have succeeded and were not undone since, without `from_step` and
    whatever comes after it.

    Args:
        before: the definition of the earlier run.
        after: that of the new one. Where it is another, a step must have kept its kind, and items of fan-outs are
            executed again, since their numbers may mean something else.
        run: the earlier run.
        from_step: id or key of a step of `after`; empty: none is left out.

    Raises:
        KeyError: there is no such main step.
    """
    again = _from(after, definition_id(from_step)) if from_step else frozenset[str]()
    is_same = before is after
    outputs = {key: output for key, output in run.pinned.items() if key not in run.steps}  # not reached again yet
    outputs |= {key: known.output for key, known in run.steps.items() if _is_done(run, key, known)}
    found = {}
    for key, output in outputs.items():
        step_id = definition_id(key)
        step = after.steps.get(step_id)
        if step is None or step_id in again or after.phases[step_id] != "main" or isinstance(step.spec, _CONTAINERS):
            continue
        if is_same or ("[" not in key and before.steps[step_id].kind == step.kind):
            found[key] = output
    return found


def _is_done(run: Run, key: str, known: StepRun) -> bool:
    undone = run.steps.get(compensation_key(key))
    return known.state is StepState.SUCCEEDED and (undone is None or undone.state is not StepState.SUCCEEDED)


def _from(model: WorkflowModel, step_id: str) -> frozenset[str]:
    """Answer the ids of a step, of what is inside it, and of all that comes after it."""
    found: set[str] = set()
    if model.phases.get(step_id) != "main" or not _collect(model.main, step_id, found):
        raise KeyError(step_id)
    return frozenset(found)


def _collect(block: Block, step_id: str, found: set[str]) -> bool:
    for index, step in enumerate(block.steps):
        is_it = step.id == step_id
        if is_it:
            found.update(_ids(step))
        elif not any(_collect(inner, step_id, found) for inner in _inner(step)):
            continue
        for other, later in enumerate(block.steps):
            if block.ancestors[other] >> index & 1:
                found.update(_ids(later))
        return True
    return False


def _inner(step: Step) -> Iterator[Block]:
    if isinstance(step.spec, FanOutSpec):
        yield from _inner(step.spec.body)
    yield from blocks_of(step.spec)


def _ids(step: Step) -> Iterator[str]:
    yield step.id
    if isinstance(step.spec, FanOutSpec):
        yield from _ids(step.spec.body)
    for block in blocks_of(step.spec):
        for inner in block.steps:
            yield from _ids(inner)
