"""Domain values to messages. Domain types and messages never mix anywhere else."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import (
    audit_pb2,
    dead_letter_pb2,
    namespace_pb2,
    queue_pb2,
    run_pb2,
    secret_pb2,
    token_pb2,
    workflow_pb2,
)

from taskforged.control.access import Access, TokenRecord
from taskforged.control.audit import AuditRecord
from taskforged.control.dead_letters import DeadLetterRow
from taskforged.control.namespaces import NamespaceView
from taskforged.control.queues import QueueView
from taskforged.control.secrets import SecretRecord
from taskforged.control.views import RunView
from taskforged.control.workflows import LiveWorkflow, VersionRecord
from taskforged.engine.keys import definition_id, item_key
from taskforged.engine.model import ActivitySpec, FanOutSpec, Json, WorkflowModel
from taskforged.engine.run import Run, StepRun
from taskforged.engine.states import TERMINAL_STEPS, RunState, StepState
from taskforged.errors import Violation
from taskforged.jsonvalue import load_stored, to_text
from taskforged.language.definition import CronTrigger, Definition, EventTrigger, WebhookTrigger
from taskforged.store.changes import StoredEvent
from taskforged.store.runs import RunRow

__all__ = [
    "audit_to_proto",
    "dead_letter_to_proto",
    "history_to_proto",
    "micros",
    "namespace_to_proto",
    "problem_to_proto",
    "queue_to_proto",
    "run_to_proto",
    "seconds",
    "secret_to_proto",
    "stamp",
    "step_to_proto",
    "token_to_proto",
    "trigger_detail",
    "version_to_proto",
    "workflow_to_proto",
]


def stamp(at: int | None) -> Timestamp | None:
    """Answer a time; None for none."""
    if not at:
        return None
    whole, micros = divmod(at, 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def micros(time: Timestamp) -> int:
    """Answer a time in microseconds."""
    return time.seconds * 1_000_000 + time.nanos // 1000


def seconds(duration: Duration) -> float:
    """Answer a duration in seconds."""
    return float(duration.seconds) + duration.nanos / 1e9


def _error(error: Json) -> run_pb2.Error | None:
    if error is None:
        return None
    return run_pb2.Error(
        code=error.get("code", ""),
        message=error.get("message", ""),
        step=error.get("step", ""),
        attempts=error.get("attempts", 0),
        details_json=to_text(error["details"]) if "details" in error else "",
    )


_RUN_STATES = {name.removeprefix("STATE_"): value for name, value in run_pb2.Run.State.items()}
_STEP_STATES = {name.removeprefix("STATE_"): value for name, value in run_pb2.StepRun.State.items()}


def run_state(name: str) -> run_pb2.Run.State.ValueType:
    """Answer the enum value of a run's state."""
    return _RUN_STATES[name]


def step_state(name: str) -> run_pb2.StepRun.State.ValueType:
    """Answer the enum value of a step's state; the empty name is unspecified."""
    return _STEP_STATES[name or "UNSPECIFIED"]


def run_to_proto(view: RunView, *, steps: bool = True) -> run_pb2.Run:
    """Answer a run; with steps, input and output where its state is known and they are wanted."""
    if view.run is None:
        assert view.row is not None
        return _listed_run(view, view.row)
    run = view.run
    message = run_pb2.Run(
        id=run.run_id,
        namespace=view.namespace,
        workflow=view.workflow,
        version=run.version,
        state=run_state(run.state.text),
        trigger=run.trigger,
        event_id=run.event_id,
        sequence=run.sequence,
        create_time=stamp(run.created_at),
        start_time=stamp(run.started_at),
        end_time=stamp(run.ended_at),
        error=_error(run.failing) if run.state is not RunState.CANCELLED else None,
        cancel_requested=run.cancel_requested,
        correlation_id=run.correlation_id,
        created_by=run.created_by,
        queue=run.queue,
        priority=run.priority,
        run_time=stamp(run.run_at),
        concurrency_group=run.group,
        parent_run_id=run.parent["run_id"] if run.parent else "",
        parent_step=run.parent["step"] if run.parent else "",
        retry_of=run.retry_of,
        rerun_of=run.rerun_of,
        retried_by=view.retried_by,
        step_count=len(run.steps),
        paused_by=run.paused_by,
        pause_reason=run.pause_reason,
    )
    if run.state is RunState.SUCCEEDED:
        message.output_json = to_text(run.output)
    if steps:
        message.input_json = to_text(run.input)
        message.steps.extend(step_to_proto(key, run, view.model) for key in _shown(run))
    return message


STEPS_MAX = 1000
"""Steps that one answer carries; `ListRunSteps` has all of them."""


def _shown(run: Run) -> Iterable[str]:
    """Answer which steps of a long run to show: those outside of fan-outs, what is open or failed, then the others."""
    if len(run.steps) <= STEPS_MAX:
        return run.steps
    quiet = (StepState.SUCCEEDED, StepState.SKIPPED)
    first = [key for key, step in run.steps.items() if "[" not in key]
    second = [key for key, step in run.steps.items() if "[" in key and step.state not in quiet]
    third = [key for key, step in run.steps.items() if "[" in key and step.state in quiet]
    wanted = {*first, *(second + third)[: max(0, STEPS_MAX - len(first))]}
    return [key for key in run.steps if key in wanted]


def _listed_run(view: RunView, row: RunRow) -> run_pb2.Run:
    return run_pb2.Run(
        id=row.id,
        namespace=view.namespace,
        workflow=view.workflow,
        version=row.version,
        state=run_state(row.state),
        trigger=row.trigger,
        event_id=row.event_id or "",
        sequence=row.sequence,
        create_time=stamp(row.created_at),
        start_time=stamp(row.started_at),
        end_time=stamp(row.ended_at),
        cancel_requested=bool(row.cancel_requested),
        queue=row.queue,
        priority=row.priority,
        run_time=stamp(row.run_at),
        concurrency_group=row.group_key,
    )


def step_to_proto(key: str, run: Run, model: WorkflowModel | None) -> run_pb2.StepRun:
    """Answer a step of a run."""
    step = run.steps[key]
    known = None if model is None else model.steps.get(definition_id(key))
    attempts = 0
    if known is not None and isinstance(known.spec, ActivitySpec):
        attempts = 1 if known.retry is None else known.retry.max_attempts
    message = run_pb2.StepRun(
        key=key,
        kind="" if known is None else known.kind,
        state=step_state(step.state.text),
        attempt=step.attempt,
        max_attempts=attempts,
        input_json="" if step.input is None else to_text(step.input),
        output_json="" if step.state not in TERMINAL_STEPS or _is_void(step) else to_text(step.output),
        error=_error(step.error),
        start_time=stamp(step.started_at),
        end_time=stamp(step.ended_at),
        next_attempt_time=stamp(step.wake_at),
        waiting_for=_waiting_for(step),
        child_run_id=step.child,
        pinned=step.pinned,
        evidence_json="" if step.evidence is None else to_text(step.evidence),
    )
    if isinstance(step.input, dict) and known is not None and known.kind == "wait":
        message.signal = step.input.get("signal", "")
        message.message = step.input.get("approval", "")
    if known is not None and isinstance(known.spec, FanOutSpec) and isinstance(step.input, list):
        _count_items(message, key, run, step)
    return message


def _is_void(step: StepRun) -> bool:
    """Whether a step that ended has no output: all but those that succeeded, and fan-outs that failed half way."""
    return step.state is not StepState.SUCCEEDED and step.output is None


def _waiting_for(step: StepRun) -> str:
    if step.state is not StepState.WAITING:
        return ""
    if step.child:
        return "workflow"
    waits = step.input if isinstance(step.input, dict) else {}
    return next((what for what in ("signal", "approval") if what in waits), "timer")


def _count_items(message: run_pb2.StepRun, key: str, run: Run, step: StepRun) -> None:
    message.item_count = len(step.input)
    fan = run.fans.get(key)
    if fan is not None:
        message.items_ended, message.items_failed = fan.next - fan.open, fan.failed
        return
    items = (run.steps.get(item_key(key, index)) for index in range(len(step.input)))
    ended = [item.state for item in items if item is not None and item.state in TERMINAL_STEPS]
    message.items_ended = len(ended)
    message.items_failed = sum(state in (StepState.FAILED, StepState.DEAD) for state in ended)


def history_to_proto(entry: tuple[StoredEvent, RunState, str]) -> run_pb2.HistoryEvent:
    """Answer a history event with the states after it."""
    stored, run_after, step_after = entry
    event = stored.event
    return run_pb2.HistoryEvent(
        sequence=event.sequence,
        create_time=stamp(event.at),
        kind=event.kind.text,
        step=event.step,
        step_state=step_state(step_after),
        run_state=run_state(run_after.text),
        attempt=event.attempt,
        body_json=stored.body.decode(),
        hash=stored.hash.hex(),
    )


def workflow_to_proto(workflow: LiveWorkflow, namespace: str, definition: Definition) -> workflow_pb2.Workflow:
    """Answer a workflow as its newest version describes it."""
    return workflow_pb2.Workflow(
        id=workflow.id,
        namespace=namespace,
        name=workflow.name,
        description=definition.description,
        active=workflow.active,
        latest_version=workflow.latest,
        labels=dict(definition.labels),
        triggers=[
            workflow_pb2.TriggerSummary(id=t.id, kind=t.kind, detail=trigger_detail(t, namespace))
            for t in definition.triggers.values()
        ],
        create_time=stamp(workflow.created_at),
        update_time=stamp(workflow.updated_at),
    )


def trigger_detail(trigger: object, namespace: str) -> str:
    """Answer in a few words where a trigger listens."""
    match trigger:
        case WebhookTrigger():
            return f"POST /hooks/{namespace}/{trigger.path}"
        case CronTrigger():
            return f"{trigger.expression} {trigger.zone}"
        case EventTrigger():
            return trigger.type
    return ""


def version_to_proto(workflow: LiveWorkflow, version: VersionRecord) -> workflow_pb2.WorkflowVersion:
    """Answer a version."""
    return workflow_pb2.WorkflowVersion(
        workflow_id=workflow.id,
        workflow=workflow.name,
        number=version.number,
        content_hash=version.content_hash,
        source=version.source,
        profile=version.profile,
        create_time=stamp(version.created_at),
        created_by=version.created_by,
    )


def problem_to_proto(violation: Violation) -> workflow_pb2.DefinitionProblem:
    """Answer one fault of a definition."""
    return workflow_pb2.DefinitionProblem(
        path=violation.path, line=violation.line, column=violation.column, message=violation.message
    )


def token_to_proto(token: TokenRecord, access: Access) -> token_pb2.Token:
    """Answer a token's public part."""
    return token_pb2.Token(
        id=token.id,
        name=token.name,
        role=token_pb2.Token.Role.Value(f"ROLE_{token.role.value.upper()}"),
        namespace="" if token.namespace_no is None else access.namespace_name(token.namespace_no),
        create_time=stamp(token.created_at),
        expire_time=stamp(token.expires_at),
        last_use_time=stamp(token.last_used_at),
        revoke_time=stamp(token.revoked_at),
        rotate_time=stamp(token.rotated_at),
        previous_until=stamp(token.previous_until),
    )


def audit_to_proto(record: AuditRecord, access: Access) -> audit_pb2.AuditRecord:
    """Answer a record of the audit."""
    row = record.row
    return audit_pb2.AuditRecord(
        sequence=record.no,
        time=stamp(row.at),
        token_id=row.token_id,
        token_name=row.token_name,
        role=row.role,
        remote=row.remote,
        method=row.method,
        namespace="" if row.namespace_no is None else access.namespace_name(row.namespace_no),
        resource_type=row.resource_type,
        resource=row.resource,
        outcome=row.outcome,
        message=row.message,
        request_id=row.request_id,
        count=row.times,
    )


def secret_to_proto(secret: SecretRecord, namespace: str) -> secret_pb2.Secret:
    """Answer a secret without its value."""
    return secret_pb2.Secret(
        namespace=namespace,
        name=secret.name,
        version=secret.version,
        create_time=stamp(secret.created_at),
        update_time=stamp(secret.updated_at),
        hosts=secret.hosts,
        key_id=secret.key_id,
    )


def dead_letter_to_proto(row: DeadLetterRow, access: Access) -> dead_letter_pb2.DeadLetter:
    """Answer a dead letter."""
    return dead_letter_pb2.DeadLetter(
        run_id=row.run_id,
        namespace=access.namespace_name(row.namespace_no),
        workflow=row.workflow,
        version=row.version,
        state=dead_letter_pb2.DeadLetter.State.Value(f"STATE_{row.state}"),
        error=_error(load_stored(row.error)),
        attempts=row.attempts,
        create_time=stamp(row.created_at),
        settle_time=stamp(row.settled_at),
        settled_by=row.settled_by,
        reason=row.reason,
        retry_run_id=row.retry_run_id,
    )


def namespace_to_proto(view: NamespaceView) -> namespace_pb2.Namespace:
    """Answer a namespace."""
    record = view.record
    return namespace_pb2.Namespace(
        name=record.name,
        labels=record.labels,
        weight=record.weight,
        running_steps_max=record.running_steps,
        running_runs_max=record.running_runs,
        pending_runs_max=record.pending_runs,
        requests_per_second=record.requests_per_s,
        running_steps=view.running_steps,
        running_runs=view.running_runs,
        pending_runs=view.pending_runs,
        create_time=stamp(record.created_at),
    )


def queue_to_proto(view: QueueView, access: Access) -> queue_pb2.Queue:
    """Answer a queue."""
    record = view.record
    return queue_pb2.Queue(
        namespace=access.namespace_name(record.namespace_no),
        name=record.name,
        priority=record.priority,
        running_steps_max=record.running_steps,
        paused=record.paused,
        waiting=view.waiting,
        running=view.running,
        create_time=stamp(record.created_at),
        update_time=stamp(record.updated_at),
    )
