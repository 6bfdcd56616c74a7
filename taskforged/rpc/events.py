"""EventService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import astuple, replace
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import event_pb2
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1 import event_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.checks import invalid
from taskforged.control.event_watch import EventWatches
from taskforged.control.events import Events, EventView
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.publishing import EventBus, Publication
from taskforged.control.replays import REPLAYS_MAX, ReplayRequest, Replays
from taskforged.control.views import RunViews
from taskforged.rpc import convert
from taskforged.rpc.convert_triggers import event_to_proto, outcome_names, receipt_to_proto
from taskforged.rpc.guard import caller, trace_of_call
from taskforged.store.events import EventFilter

__all__ = ["EventServicer"]

SOURCES = ("webhook", "cron", "manual", "internal", "engine")


class EventServicer(grpc_base.EventServiceServicer):
    """Check, call control, convert."""

    def __init__(
        self,
        *,
        events: Events,
        watches: EventWatches,
        bus: EventBus,
        replays: Replays,
        views: RunViews,
        access: Access,
    ) -> None:
        self._events = events
        self._watches = watches
        self._bus = bus
        self._replays = replays
        self._views = views
        self._access = access

    def _message(self, view: EventView, *, whole: bool = True) -> event_pb2.Event:
        return event_to_proto(view, self._access.namespace_name(view.row.namespace_no), whole=whole)

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:
        return pb.GetEventResponse(event=self._message(await self._events.get(caller(), request.event_id)))

    async def ListEvents(self, request: pb.ListEventsRequest, _: Any) -> pb.ListEventsResponse:
        wanted = self._filter(request)
        size, filters = page_size(request.page_size), ["events", *astuple(wanted)]
        before = decode_token(request.page_token, filters, 0)
        found = await self._events.page(replace(wanted, before=before), size + 1)
        page = found[:size]
        more = encode_token(page[-1].row.no, filters) if len(found) > size else ""
        return pb.ListEventsResponse(events=[self._message(one, whole=False) for one in page], next_page_token=more)

    async def WatchEvents(self, request: pb.WatchEventsRequest, _: Any) -> AsyncIterator[pb.WatchEventsResponse]:
        wanted = self._filter(request.filter)
        if wanted.until:
            raise invalid("filter.until", "cannot be given: a watch has no end")
        async for portion in self._watches.watch(wanted, request.after_cursor):
            entries = [
                pb.WatchEventsResponse.Entry(cursor=cursor, event=self._message(view, whole=False))
                for cursor, view in portion.entries
            ]
            yield pb.WatchEventsResponse(entries=entries, cursor=portion.cursor, removed=portion.removed)

    async def ExplainEvent(self, request: pb.ExplainEventRequest, _: Any) -> pb.ExplainEventResponse:
        story = await self._events.explain(caller(), request.event_id)
        runs = [await self._views.of_row(row) for row in story.runs]
        return pb.ExplainEventResponse(
            event=self._message(story.view),
            summary=story.summary,
            causes=[pb.Cause(**one._asdict()) for one in story.causes],
            runs=[convert.run_to_proto(run, steps=False) for run in runs],
        )

    async def PublishEvent(self, request: pb.PublishEventRequest, context: Any) -> pb.PublishEventResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        wanted = Publication(request.type, request.data_json, subject=request.subject, trace=trace_of_call(context))
        row = await self._bus.publish(caller(), namespace_no, wanted, request_id=request.request_id)
        view = await self._events.view(row)
        if caller().may_read:
            return pb.PublishEventResponse(event=self._message(view))
        return pb.PublishEventResponse(event=receipt_to_proto(view, self._access.namespace_name(namespace_no)))

    async def ReplayEvent(self, request: pb.ReplayEventRequest, _: Any) -> pb.ReplayEventResponse:
        body = request.body if request.HasField("body") else None
        wanted = ReplayRequest(body, request.workflow, request.trigger, request.request_id)
        view = await self._replays.replay(caller(), request.event_id, wanted)
        return pb.ReplayEventResponse(event=self._message(view))

    async def ReplayEvents(self, request: pb.ReplayEventsRequest, _: Any) -> pb.ReplayEventsResponse:
        event_ids, more = await self._selected(request)
        wanted = ReplayRequest(None, request.workflow, request.trigger)
        found = await self._replays.replay_many(caller(), event_ids, wanted, dry_run=request.dry_run)
        results = [
            pb.ReplayEventsResponse.Result(
                event_id=one.event_id,
                replay_id="" if one.replay is None else one.replay.id,
                outcome=event_pb2.Event.Outcome.Value(
                    f"OUTCOME_{'UNSPECIFIED' if one.replay is None else one.replay.outcome}"
                ),
                run_ids=one.run_ids,
                error=one.error,
            )
            for one in found
        ]
        return pb.ReplayEventsResponse(results=results, more=more)

    async def _selected(self, request: pb.ReplayEventsRequest) -> tuple[list[str], bool]:
        if bool(request.event_ids) == request.HasField("filter"):
            raise invalid("event_ids", "or 'filter' is required, and not both")
        if len(request.event_ids) > REPLAYS_MAX or not 0 <= request.max_count <= REPLAYS_MAX:
            raise invalid("event_ids" if request.event_ids else "max_count", f"may be at most {REPLAYS_MAX:,}")
        if request.event_ids:
            wanted = list(dict.fromkeys(request.event_ids))
            most = request.max_count or len(wanted)
            return wanted[:most], len(wanted) > most
        return await self._replays.select(self._filter(request.filter), request.max_count or 100)

    def _filter(self, request: pb.ListEventsRequest | pb.EventFilter) -> EventFilter:
        unknown = sorted(set(request.sources) - set(SOURCES))
        if unknown:
            raise invalid("sources", f"has {unknown[0]!r}; known are {', '.join(SOURCES)}")
        return EventFilter(
            self._access.enter(caller(), request.namespace),
            outcomes=outcome_names(request.outcomes),
            path=request.path,
            type=request.type,
            sources=sorted(set(request.sources)),
            workflow=request.workflow,
            since=_at(request.since),
            until=_at(request.until),
        )


def _at(time: Timestamp) -> int:
    return convert.micros(time)
