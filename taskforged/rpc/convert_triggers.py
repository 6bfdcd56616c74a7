"""Events, triggers and schedules to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import event_pb2, trigger_pb2

from taskforged.control.events import EventView, runs_of_verdicts
from taskforged.control.ledger import SlotRow
from taskforged.control.triggers import TriggerView
from taskforged.jsonvalue import load_stored, to_text
from taskforged.language.definition import CronTrigger
from taskforged.payload import decode
from taskforged.rpc.convert import stamp, trigger_detail
from taskforged.schedule import Schedule, Slot, is_transition_day, local_text

__all__ = ["due_to_proto", "event_to_proto", "outcome_names", "slot_outcomes", "slot_to_proto", "trigger_to_proto"]


def event_to_proto(view: EventView, namespace: str, *, whole: bool) -> event_pb2.Event:
    """Answer an event; `whole` with headers, query and body."""
    row = view.row
    message = event_pb2.Event(
        id=row.id,
        namespace=namespace,
        source=row.source,
        path=row.path,
        outcome=event_pb2.Event.Outcome.Value(f"OUTCOME_{row.outcome}"),
        reason=row.reason,
        verification=row.verification,
        delivery_id=row.delivery_id,
        duplicate_of=row.duplicate_of,
        body_size=row.body_size,
        content_type=row.content_type,
        remote=row.remote,
        verdicts=[_verdict(one) for one in load_stored(row.verdicts)],
        run_ids=view.run_ids,
        create_time=stamp(row.created_at),
        type=row.type,
        publisher_run_id=view.publisher,
        depth=row.depth,
        replay_of=row.replay_of,
        replayed_by=view.replayed_by,
        addressee=row.addressee,
        created_by=row.created_by,
        origin=row.origin,
        subject=row.subject,
    )
    if whole:
        headers = load_stored(row.headers)
        message.headers.update(headers)
        message.query_json = row.query
        message.body = row.body
        message.encoding = "" if row.body_size != len(row.body) else _encoding(headers, row.content_type, row.body)
    return message


def receipt_to_proto(view: EventView, namespace: str) -> event_pb2.Event:
    """Answer what became of an event for somebody who may cause one and not read: no contents, no values seen."""
    message = event_to_proto(view, namespace, whole=False)
    for verdict in message.verdicts:
        if verdict.clause:
            verdict.reason = "its condition was not met"
        verdict.ClearField("clause")
        verdict.ClearField("values_json")
    return message


def _encoding(headers: Mapping[str, str], content_type: str, body: bytes) -> str:
    try:
        return decode(headers.get("content-type", content_type), body, load_stored)[1]
    except ValueError:
        return ""  # refused for that


def _verdict(one: Mapping[str, Any]) -> event_pb2.Verdict:
    items = one.get("items", ())
    return event_pb2.Verdict(
        workflow=one["workflow"],
        version=one["version"],
        trigger=one["trigger"],
        matched=one["matched"],
        reason=one["reason"],
        run_id=one["run_id"],
        run_ids=runs_of_verdicts(to_text([one])),
        clause=one.get("clause", ""),
        values_json=to_text(one["values"]) if one.get("values") else "",
        items=[event_pb2.ItemVerdict(**item) for item in items],
    )


def trigger_to_proto(view: TriggerView) -> trigger_pb2.Trigger:
    """Answer a trigger."""
    found = view.found
    trigger, workflow = found.trigger, found.workflow
    return trigger_pb2.Trigger(
        id=trigger.id,
        namespace=view.namespace,
        workflow=workflow.name,
        trigger=trigger.key,
        kind=trigger_pb2.Trigger.Kind.Value(f"KIND_{trigger.kind.upper()}"),
        detail=trigger_detail(found.source, view.namespace),
        version=workflow.latest,
        workflow_active=workflow.active,
        paused=trigger.paused_at is not None,
        pause_time=stamp(trigger.paused_at),
        paused_by=trigger.paused_by,
        pause_reason=trigger.pause_reason,
        last_event_id=view.last_event_id,
        last_fire_time=stamp(view.last_fire_at),
        schedule=_schedule(view),
        create_time=stamp(trigger.created_at),
        applied_by=workflow.applied_by,
    )


def _schedule(view: TriggerView) -> trigger_pb2.Schedule | None:
    source, row = view.found.source, view.row
    if not isinstance(source, CronTrigger) or row is None:
        return None
    schedule = view.found.schedule()
    return trigger_pb2.Schedule(
        expression=source.expression,
        seconds=source.seconds,
        timezone=source.zone,
        misfire=source.policy.misfire,
        misfire_window=_span(source.policy.window_us),
        misfire_cap=source.policy.cap,
        overlap=source.overlap,
        delay=_span(schedule.delay_us),
        gap=source.gap,
        fold=source.fold,
        start_time=stamp(source.start_at),
        end_time=stamp(source.end_at),
        cursor_time=stamp(row.cursor),
        next_due_time=stamp(view.next_due_at),
        profile=row.profile,
    )


def _span(micros: int) -> Duration | None:
    if not micros:
        return None
    whole, rest = divmod(micros, 1_000_000)
    return Duration(seconds=whole, nanos=rest * 1000)


def due_to_proto(slot: Slot, schedule: Schedule) -> trigger_pb2.DueTime:
    """Answer a due time."""
    return trigger_pb2.DueTime(
        due_time=stamp(slot.due_at),
        local_time=local_text(slot.due_at, schedule.zone),
        fire_time=stamp(slot.due_at + schedule.delay_us),
        transition=is_transition_day(slot.due_at, schedule.zone),
        dst=slot.dst,
    )


def slot_to_proto(row: SlotRow, zone: str) -> trigger_pb2.ScheduleSlot:
    """Answer an entry of the ledger."""
    is_fired = row.outcome == "FIRED" and row.settled_at and not row.backfill
    return trigger_pb2.ScheduleSlot(
        due_time=stamp(row.due_at),
        last_due_time=stamp(row.last_at),
        count=row.count,
        outcome=trigger_pb2.ScheduleSlot.Outcome.Value(f"OUTCOME_{row.outcome}"),
        local_time=local_text(row.due_at, zone),
        settle_time=stamp(row.settled_at),
        late=_span(max(row.late_us, 1)) if is_fired else None,
        event_id=row.event_id,
        run_ids=runs_of_verdicts(row.verdicts),
        reason=row.reason,
        backfill=bool(row.backfill),
    )


def outcome_names(values: Sequence[int]) -> list[str]:
    """Answer the names of outcomes of events, as the store has them."""
    return sorted({event_pb2.Event.Outcome.Name(o).removeprefix("OUTCOME_") for o in values if o})  # type: ignore[arg-type]


def slot_outcomes(values: Sequence[int]) -> list[str]:
    """Answer the names of outcomes of due times, as the store has them."""
    names = trigger_pb2.ScheduleSlot.Outcome.Name
    return sorted({names(o).removeprefix("OUTCOME_") for o in values if o})  # type: ignore[arg-type]
