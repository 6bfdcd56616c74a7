"""The rules of blocks, computed once more and in another way than the engine does.

`Plan` knows where each step of a definition stands. `Plan.verdict` says what must become of a step, from nothing but
the states of the steps before it; no bit masks, no passes, no bookkeeping. `invariants` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from taskforged.engine.model import Block, ExpressionError, FanOutSpec, GroupSpec, Json, Step, SwitchSpec, WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.scope import RunScope
from taskforged.engine.states import FAILED_STEPS, TERMINAL_STEPS, StepState
from taskforged.testing.fakes import Constant, Failing, IndexBelow, Path, StateIs, Status

__all__ = ["CONTAINERS", "Place", "Plan", "Verdict"]

Verdict: TypeAlias = Literal["wait", "skip", "begin", "begin or skip", "fail"]

CONTAINERS = (SwitchSpec, GroupSpec, FanOutSpec)
"""The specifications of steps that contain others."""

_EVALUABLE = (Constant, StateIs, Status, Failing, IndexBelow, Path)
_KEY = re.compile(r"(?P<prefix>(?:\w+\[\d+\]\.)*)(?P<name>\w+)(?P<item>\[\d+\])?(?P<undo>:compensate)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands in its definition.

    Attributes:
        step: the step.
        block: its block; None for the body of a fan-out and for a compensation.
        home: id of the step that contains it; empty at the top.
        case: which case of a switch; -1 elsewhere.
        phase: `main`, `on_failure`, `on_cancel` or `compensate`.
    """

    step: Step
    block: Block | None
    home: str
    case: int
    phase: str


class Plan:
    """A definition, seen by what stands where."""

    def __init__(self, model: WorkflowModel) -> None:
        self.model = model
        self.places: dict[str, Place] = {}
        self.tops = {"main": model.main, "on_failure": model.on_failure, "on_cancel": model.on_cancel}
        for phase, block in self.tops.items():
            self._add_block(block, "", -1, phase)

    def _add_block(self, block: Block, home: str, case: int, phase: str) -> None:
        for step in block.steps:
            self._add(step, Place(step, block, home, case, phase))

    def _add(self, step: Step, place: Place) -> None:
        self.places[step.id] = place
        if step.compensate is not None:
            self._add(step.compensate, Place(step.compensate, None, "", -1, "compensate"))
        match step.spec:
            case SwitchSpec(cases):
                for index, case in enumerate(cases):
                    self._add_block(case.block, step.id, index, place.phase)
            case GroupSpec(block):
                self._add_block(block, step.id, -1, place.phase)
            case FanOutSpec(body=body):
                self._add(body, Place(body, None, step.id, -1, place.phase))
            case _:
                pass

    # --- keys --------------------------------------------------------------------------------------------------------

    def place(self, key: str) -> Place:
        """Answer where the step with this key stands."""
        parts = _parts(key)
        return self.places[parts["name"] + ("[]" if parts["item"] else "") + (parts["undo"] or "")]

    def container(self, key: str) -> str:
        """Answer the key of the step that contains this one; empty at the top."""
        home, prefix = self.place(key).home, _parts(key)["prefix"]
        if not home:
            return ""
        return prefix[:-1] if home.endswith("[]") else prefix + home

    def inside(self, key: str, case: int) -> tuple[Block, str] | None:
        """Answer the block inside the switch or group with this key, and what stands before the keys in it."""
        prefix = f"{key}." if key.endswith("]") else _parts(key)["prefix"]
        match self.place(key).step.spec:
            case SwitchSpec(cases):
                return (cases[case].block, prefix) if case >= 0 else None
            case GroupSpec(block):
                return block, prefix
        return None

    def all_inside(self, key: str) -> Iterator[str]:
        """Yield the keys of all steps inside a switch or group, apart from those of items."""
        prefix = f"{key}." if key.endswith("]") else _parts(key)["prefix"]
        for step_id, place in self.places.items():
            if self._is_inside(place, self.place(key).step.id):
                yield prefix + step_id

    def _is_inside(self, place: Place, owner: str) -> bool:
        if place.block is None or not place.home:
            return False
        return place.home == owner or self._is_inside(self.places[place.home], owner)

    # --- rules -------------------------------------------------------------------------------------------------------

    def verdict(self, run: Run, key: str) -> Verdict:
        """Say what must become of a step that was not reached, by the steps of its block and its condition."""
        place, prefix = self.place(key), _parts(key)["prefix"]
        if place.block is None:
            return self._wanted(run, key, place.step, None)
        before = [run.steps.get(prefix + place.block.steps[index].id) for index in place.step.after]
        if any(known is None or known.state not in TERMINAL_STEPS for known in before):
            return "wait"
        failed = self.failed_before(run, key)
        skipped = place.step.needs and any(known and known.state is StepState.SKIPPED for known in before)
        if not place.step.asks_status:
            return "skip" if failed or skipped else self._wanted(run, key, place.step, None)
        status = {"always__": True, "success__": not (failed or skipped), "failure__": failed}
        return self._wanted(run, key, place.step, status)

    def failed_before(self, run: Run, key: str) -> bool:
        """Say whether a step that this one depends on, however far away, has failed."""
        place, prefix = self.place(key), _parts(key)["prefix"]
        assert place.block is not None
        todo, seen = list(place.step.after), set[int]()
        while todo:
            index = todo.pop()
            if index not in seen:
                seen.add(index)
                todo += place.block.steps[index].after
        return any(self.has_failed(run, prefix, place.block.steps[index]) for index in seen)

    def has_failed(self, run: Run, prefix: str, step: Step) -> bool:
        """Say whether a step has failed what contains it."""
        known = run.steps.get(prefix + step.id)
        return known is not None and known.state in FAILED_STEPS and not step.continue_on_error

    def first_failed(self, run: Run, block: Block, prefix: str) -> StepState | None:
        """Answer the state of the first step, in the order of the document, that has failed the block."""
        for step in block.steps:
            if self.has_failed(run, prefix, step):
                return run.steps[prefix + step.id].state
        return None

    def is_over(self, run: Run, block: Block, prefix: str) -> bool:
        """Say whether nothing in a block is open and nothing can begin in it any more."""
        return all(self._is_out(run, step, block, prefix) for step in block.steps)

    def _is_out(self, run: Run, step: Step, block: Block, prefix: str) -> bool:
        known = run.steps.get(prefix + step.id)
        if known is not None:
            return known.state in TERMINAL_STEPS
        return self.failed_before(run, prefix + step.id) and not any(one.asks_status for one in block.steps)

    def _wanted(self, run: Run, key: str, step: Step, status: Json) -> Verdict:
        if key in run.pinned and not isinstance(step.spec, CONTAINERS):
            return "begin"
        if step.condition is None:
            return "begin"
        if not isinstance(step.condition, _EVALUABLE):
            return "begin or skip"
        try:
            value = step.condition.evaluate(RunScope(self.model, run, key, status=status))
        except ExpressionError:
            return "fail"
        return "begin" if value is True else "skip" if value is False else "fail"


def _parts(key: str) -> dict[str, str]:
    found = _KEY.fullmatch(key)
    assert found is not None, key
    return found.groupdict()
