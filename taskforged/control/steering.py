"""Steering runs: cancel, pause, resume, signal, approve, reject, resolve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskforged.control.access import Principal
from taskforged.control.checks import INPUT_MAX, REASON_MAX, REQUEST_ID_MAX, check_text, invalid
from taskforged.control.views import RunView, RunViews
from taskforged.control.workflows import Workflows
from taskforged.engine.events import (
    ApproveStep,
    CancelRun,
    Fact,
    PauseRun,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
)
from taskforged.engine.keys import definition_id
from taskforged.engine.model import Json, WaitSpec
from taskforged.engine.run import Run
from taskforged.engine.states import RunState, StepState
from taskforged.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    Violation,
)
from taskforged.host.runner import Runner
from taskforged.jsonvalue import parse_json
from taskforged.store.runs import RunRow, RunStore
from taskforged.store.store import Store

__all__ = ["Steering"]


class Steering:
    """What people do with runs that are under way."""

    def __init__(self, *, store: Store, workflows: Workflows, runner: Runner, views: RunViews) -> None:
        self._runs = RunStore(store)
        self._workflows = workflows
        self._runner = runner
        self._views = views

    # --- steering ----------------------------------------------------------------------------------------------------

    async def cancel(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Ask a run to stop. Idempotent.

        Raises:
            FailedPreconditionError: it has ended in another way.
        """
        check_text("reason", reason, REASON_MAX)
        row = await self._views.row(principal, run_id)
        if not row.cancel_requested:
            await self._steer(row, CancelRun(reason, principal.name), lambda now: bool(now.cancel_requested))
        return await self._views.get(principal, run_id)

    async def pause(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Let a run finish what is at work and start nothing more. Idempotent.

        Raises:
            FailedPreconditionError: it is neither running nor paused, or is being cancelled.
        """
        check_text("reason", reason, REASON_MAX)
        row = await self._views.row(principal, run_id)
        if row.state != RunState.PAUSED:
            await self._steer(row, PauseRun(reason, principal.name), lambda now: now.state == RunState.PAUSED)
        return await self._views.get(principal, run_id)

    async def resume(self, principal: Principal, run_id: str, reason: str) -> RunView:
        """Let a paused run go on. Idempotent.

        Raises:
            FailedPreconditionError: it is neither paused nor running.
        """
        check_text("reason", reason, REASON_MAX)
        row = await self._views.row(principal, run_id)
        if row.state != RunState.RUNNING:
            await self._steer(row, ResumeRun(reason, principal.name), lambda now: now.state == RunState.RUNNING)
        return await self._views.get(principal, run_id)

    async def _steer(self, row: RunRow, fact: Fact, is_done: Callable[[RunRow], bool]) -> None:
        """Deliver a fact; when the run refuses it, see whether it is where the caller wants it all the same."""
        try:
            if row.ended_at is not None:
                raise _illegal(row, fact)
            await self._runner.deliver(row.no, fact)
        except FailedPreconditionError:
            now = await self._runs.by_no(row.no) or row
            if not is_done(now):
                raise _illegal(now, fact) from None

    async def signal(
        self, principal: Principal, run_id: str, name: str, payload_json: str, request_id: str
    ) -> tuple[RunView, str]:
        """Send a signal; answers the run and the step that took it, empty when it is kept for a later one.

        Raises:
            FailedPreconditionError: the workflow waits for no such signal, or the run has ended.
            InvalidArgumentError: the payload does not fit the schema.
        """
        check_text("request_id", request_id, REQUEST_ID_MAX)
        loaded = await self._views.load(principal, run_id)
        model = await self._workflows.model(loaded.row.workflow_no, loaded.row.version)
        payload = _payload(payload_json)
        waits = [step.spec for step in model.steps.values() if isinstance(step.spec, WaitSpec) and step.spec.signal]
        fitting = [spec for spec in waits if spec.signal == name]
        if not fitting:
            known = ", ".join(sorted({spec.signal for spec in waits})) or "none"
            raise FailedPreconditionError(
                f"workflow {loaded.run.workflow!r} waits for no signal {name!r}; it knows {known}",
                metadata={"run": run_id, "signal": name},
            )
        if request_id and request_id in loaded.run.signal_ids:  # a repetition, perhaps of the one that ended the run
            return await self._views.get(principal, run_id), ""
        payload = _accept(fitting, payload)
        before = loaded.run.sequence
        await self._deliver(loaded.row, SignalRun(name, payload, principal.name, request_id))
        view = await self._views.get(principal, run_id)
        return view, await self._taken_by(loaded.row, before, name)

    async def _taken_by(self, row: RunRow, after: int, name: str) -> str:
        for stored in await self._runs.history(row.no, after, 200):
            event = stored.event
            if event.step and event.body.get("signal") == name and event.kind == "step.succeeded":
                return event.step
        return ""

    async def answer(
        self, principal: Principal, run_id: str, step: str, *, approved: bool, payload_json: str = "", comment: str = ""
    ) -> RunView:
        """Approve or reject what a step asks for; without a step the only one that asks. Idempotent.

        Raises:
            FailedPreconditionError: nothing asks, or it was answered in another way.
            InvalidArgumentError: several steps ask and none is named, or the payload does not fit the schema.
        """
        check_text("comment", comment, REASON_MAX)
        loaded = await self._views.load(principal, run_id)
        row, run = loaded
        key = step or _only_asking(run)
        known = run.steps.get(key)
        if known is not None and _is_answered(known.state, known.output, known.error, approved=approved):
            return await self._views.get(principal, run_id)
        if approved:
            model = await self._workflows.model(row.workflow_no, row.version)
            definition = model.steps.get(definition_id(key))
            payload = _payload(payload_json)
            if definition is not None and isinstance(definition.spec, WaitSpec):
                payload = _accept([definition.spec], payload)
            await self._deliver(row, ApproveStep(key, principal.name, payload, comment))
        else:
            await self._deliver(row, RejectStep(key, principal.name, comment))
        return await self._views.get(principal, run_id)

    async def resolve(
        self, principal: Principal, run_id: str, step: str, outcome: str, *, output_json: str = "", comment: str = ""
    ) -> RunView:
        """Say what became of an attempt whose effect is unknown: `succeeded`, `failed`, or `retry` it.

        Raises:
            FailedPreconditionError: the step needs no decision.
        """
        check_text("comment", comment, REASON_MAX)
        if output_json and outcome != "succeeded":
            raise invalid("output_json", "is possible only for a step that succeeded")
        row = await self._views.row(principal, run_id)
        output = _payload(output_json, "output_json")
        if row.ended_at is None:
            await self._check_undecided(principal, run_id, step)
        await self._deliver(row, ResolveStep(step, outcome, principal.name, output, comment))
        return await self._views.get(principal, run_id)

    async def _check_undecided(self, principal: Principal, run_id: str, step: str) -> None:
        """Refuse a step that needs no decision in words of its own; the engine would refuse it as well."""
        run = (await self._views.get(principal, run_id)).run
        known = run.steps.get(step) if run else None
        if known is not None and known.state is StepState.NEEDS_DECISION:
            return
        where = f"step {step!r} of {run_id}"
        state = f"{where} is {known.state.value}" if known else f"{where} was not reached"
        raise FailedPreconditionError(
            f"{state} and needs no decision; `taskforgectl run steps {run_id} --state needs_decision` shows what does",
            metadata={"run": run_id, "step": step},
        )

    async def _deliver(self, row: RunRow, fact: Fact) -> None:
        if row.ended_at is not None:
            raise _illegal(row, fact)
        await self._runner.deliver(row.no, fact)


_LEGAL: dict[type[Fact], str] = {
    CancelRun: "only an open run can be cancelled",
    PauseRun: "only a RUNNING run can be paused",
    ResumeRun: "only a PAUSED run can be resumed",
}


def _illegal(row: RunRow, fact: Fact) -> FailedPreconditionError:
    state = f"{row.state} and being cancelled" if row.cancel_requested and row.ended_at is None else row.state
    hint = _LEGAL.get(type(fact), "it waits for nothing any more")
    return FailedPreconditionError(f"run {row.id} is {state}; {hint}", metadata={"run": row.id, "state": row.state})


def _payload(text: str, where: str = "payload_json") -> Json:
    return parse_json(text, where=where, size_max=INPUT_MAX) if text else None


def _accept(waits: Sequence[WaitSpec], payload: Json) -> Json:
    """Hold a payload against the schemas of the steps that may take it: one that fits is enough."""
    fault: InvalidArgumentError | None = None
    for spec in waits:
        if spec.contract is None:
            return payload
        try:
            return spec.contract.accept(payload)
        except InvalidArgumentError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _only_asking(run: Run) -> str:
    asking = [
        key for key, step in run.steps.items() if step.state is StepState.WAITING and "approval" in (step.input or {})
    ]
    if len(asking) == 1:
        return asking[0]
    if not asking:
        raise FailedPreconditionError(
            f"run {run.run_id} is {run.state} and waits for no approval",
            metadata={"run": run.run_id, "state": run.state.value},
        )
    message = f"is required: {', '.join(asking[:20])} wait for approval"
    raise InvalidArgumentError(f"step {message}", violations=[Violation("step", message)])


def _is_answered(state: StepState, output: Json, error: Json, *, approved: bool) -> bool:
    """Whether a step has this very answer already."""
    if approved:
        return state is StepState.SUCCEEDED and isinstance(output, dict) and output.get("approved") is True
    return state is StepState.FAILED and isinstance(error, dict) and error.get("code") == "rejected"
