"""TriggerService."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

from taskforge.v1 import trigger_pb2
from taskforge.v1 import trigger_service_pb2 as pb
from taskforge.v1 import trigger_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.checks import invalid
from taskforged.control.events import Events
from taskforged.control.ledger import BackfillRequest, Ledger, PreviewRequest, SlotFilter
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.triggers import FireRequest, Identified, Triggers
from taskforged.rpc.convert import micros
from taskforged.rpc.convert_triggers import (
    due_to_proto,
    event_to_proto,
    receipt_to_proto,
    slot_outcomes,
    slot_to_proto,
    trigger_to_proto,
)
from taskforged.rpc.guard import caller

__all__ = ["TriggerServicer"]

_CRON = ("cron",)


class TriggerServicer(grpc_base.TriggerServiceServicer):
    """Check, call control, convert."""

    def __init__(self, *, triggers: Triggers, ledger: Ledger, events: Events, access: Access) -> None:
        self._triggers = triggers
        self._ledger = ledger
        self._events = events
        self._access = access

    async def _named(self, request: Any, kinds: tuple[str, ...] = ()) -> Identified:
        namespace_no = self._access.enter(caller(), request.namespace)
        return await self._triggers.identify(namespace_no, request.workflow, request.trigger, kinds)

    async def _message(self, found: Identified) -> trigger_pb2.Trigger:
        return trigger_to_proto(await self._triggers.view(found))

    async def ListTriggers(self, request: pb.ListTriggersRequest, _: Any) -> pb.ListTriggersResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        kinds = sorted({trigger_pb2.Trigger.Kind.Name(k).removeprefix("KIND_").lower() for k in request.kinds if k})
        size, filters = page_size(request.page_size), ["triggers", namespace_no, request.workflow, kinds]
        workflow, _slash, key = decode_token(request.page_token, filters, "").partition("/")
        found = self._triggers.page(
            namespace_no, workflow=request.workflow, kinds=kinds, after=(workflow, key), limit=size + 1
        )
        page = found[:size]
        more = encode_token(f"{page[-1][0].name}/{page[-1][1].key}", filters) if len(found) > size else ""
        views = [await self._triggers.view_listed(*one) for one in page]
        triggers = [trigger_to_proto(view) for view in views if view is not None]
        return pb.ListTriggersResponse(triggers=triggers, next_page_token=more)

    async def GetTrigger(self, request: pb.GetTriggerRequest, _: Any) -> pb.GetTriggerResponse:
        return pb.GetTriggerResponse(trigger=await self._message(await self._named(request)))

    async def PauseTrigger(self, request: pb.PauseTriggerRequest, _: Any) -> pb.PauseTriggerResponse:
        found = await self._triggers.pause(caller(), await self._named(request), request.reason)
        return pb.PauseTriggerResponse(trigger=await self._message(found))

    async def ResumeTrigger(self, request: pb.ResumeTriggerRequest, _: Any) -> pb.ResumeTriggerResponse:
        found = await self._triggers.resume(caller(), await self._named(request))
        return pb.ResumeTriggerResponse(trigger=await self._message(found))

    async def FireTrigger(self, request: pb.FireTriggerRequest, _: Any) -> pb.FireTriggerResponse:
        found = await self._named(request)
        wanted = FireRequest(request.payload_json, dict(request.headers), request.type, request.request_id)
        row = await self._triggers.fire(caller(), found, wanted)
        view, namespace = await self._events.view(row), self._access.namespace_name(row.namespace_no)
        may_read = caller().may_read
        event = event_to_proto(view, namespace, whole=True) if may_read else receipt_to_proto(view, namespace)
        return pb.FireTriggerResponse(event=event)

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, _: Any) -> pb.PreviewScheduleResponse:
        if bool(request.expression) == bool(request.workflow):
            raise invalid("expression", "or 'workflow' is required, and not both")
        after = micros(request.after)
        if request.workflow:
            schedule = (await self._named(request, _CRON)).schedule()
            slots = self._ledger.next(schedule, after=after, count=request.count)
        else:
            wanted = PreviewRequest(
                *(request.expression, request.seconds, request.timezone or "UTC"),
                *(request.gap or "shift", request.fold or "first"),
            )
            schedule, slots = self._ledger.preview(wanted, after=after, count=request.count)
        due_times = [due_to_proto(slot, schedule) for slot in slots]
        return pb.PreviewScheduleResponse(due_times=due_times, timezone=schedule.zone)

    async def ListScheduleSlots(self, request: pb.ListScheduleSlotsRequest, _: Any) -> pb.ListScheduleSlotsResponse:
        found = await self._named(request, _CRON)
        wanted = SlotFilter(
            *(found.trigger.no, micros(request.since), micros(request.until)), slot_outcomes(request.outcomes)
        )
        size, filters = page_size(request.page_size), ["slots", *astuple(wanted)]
        token = decode_token(request.page_token, filters, "")
        before = tuple(int(part) for part in token.split("/")) if token else None
        rows = await self._ledger.slots(replace(wanted, before=before), size + 1)  # type: ignore[arg-type]
        page = rows[:size]
        more = encode_token(f"{page[-1].due_at}/{page[-1].backfill}", filters) if len(rows) > size else ""
        zone = found.schedule().zone
        return pb.ListScheduleSlotsResponse(slots=[slot_to_proto(row, zone) for row in page], next_page_token=more)

    async def ExplainSchedule(self, request: pb.ExplainScheduleRequest, _: Any) -> pb.ExplainScheduleResponse:
        found = await self._named(request, _CRON)
        story = await self._ledger.explain(found, since=micros(request.since))
        schedule = found.schedule()
        outcome = trigger_pb2.ScheduleSlot.Outcome.Value
        return pb.ExplainScheduleResponse(
            trigger=trigger_to_proto(story.view),
            summary=story.summary,
            counts=[
                pb.ExplainScheduleResponse.Count(outcome=outcome(f"OUTCOME_{name}"), count=count)
                for name, count in sorted(story.counts.items())
            ],
            slots=[slot_to_proto(row, schedule.zone) for row in story.slots],
            waiting=story.waiting,
            next=[due_to_proto(slot, schedule) for slot in story.following],
        )

    async def BackfillSchedule(self, request: pb.BackfillScheduleRequest, _: Any) -> pb.BackfillScheduleResponse:
        found = await self._named(request, _CRON)
        wanted = BackfillRequest(
            since=micros(getattr(request, "from")),
            until=micros(request.to),
            max_parallel=request.max_parallel,
            include_fired=request.include_fired,
            dry_run=request.dry_run,
            request_id=request.request_id,
        )
        done = await self._ledger.backfill(caller(), found, wanted)
        zone = found.schedule().zone
        return pb.BackfillScheduleResponse(slots=[slot_to_proto(row, zone) for row in done.slots], omitted=done.omitted)
