"""What the expressions of a run see."""

from __future__ import annotations

from taskforged.engine.events import rfc3339
from taskforged.engine.keys import items_of, split_item
from taskforged.engine.model import Json, WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.states import StepState

__all__ = ["RunScope"]


class RunScope:
    """What the expressions of a step see. `error` is given in retry conditions, `status` in the condition of a step."""

    __slots__ = ("_error", "_items", "_model", "_run", "_status")

    def __init__(
        self, model: WorkflowModel, run: Run, key: str = "", *, error: Json = None, status: Json = None
    ) -> None:
        self._model = model
        self._run = run
        self._items = items_of(key)
        self._error = error
        self._status = status

    def resolve(self, name: str) -> Json:
        """Answer a variable; see `Scope`."""
        run = self._run
        if name.startswith("steps."):
            return self._step(name)
        match name:
            case "input":
                return run.input
            case "event":
                return run.event
            case "item" | "index" if self._items:
                fan_out, index = split_item(self._items[-1])
                return index if name == "index" else run.steps[fan_out].input[index]
            case "run":
                return _run_context(run)
            case "workflow":
                return {"name": run.workflow, "version": run.version}
            case "error":
                return self._error if self._error is not None else run.failing
            case "always__" | "success__" | "failure__" if self._status is not None:
                return self._status[name]
        raise KeyError(name)

    def _step(self, name: str) -> Json:
        _, step_id, field = name.split(".")
        depth = self._model.depth[step_id]
        key = f"{self._items[depth - 1]}.{step_id}" if depth else step_id
        step = self._run.steps.get(key)
        match field:
            case "output":
                return None if step is None else step.output
            case "error":
                return None if step is None else step.error
            case "state":
                return StepState.SKIPPED.text if step is None else step.state.text
        raise KeyError(name)


def _run_context(run: Run) -> Json:
    return {
        "id": run.run_id,
        "namespace": run.namespace,
        "correlation_id": run.correlation_id,
        "trigger": run.trigger,
        "started_at": rfc3339(run.started_at),
        "queue": run.queue,
        "priority": run.priority,
        "attempt": run.attempt,
        "parent": None if run.parent is None else {"run_id": run.parent["run_id"], "step": run.parent["step"]},
    }
