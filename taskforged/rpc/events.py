"""EventService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import event_pb2
from taskforge.v1 import event_service_pb2 as pb
from taskforge.v1 import event_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.events import Events
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.rpc import convert
from taskforged.rpc.guard import caller
from taskforged.store.events import EventFilter

__all__ = ["EventServicer"]


class EventServicer(grpc_base.EventServiceServicer):
    """Check, call control, convert."""

    def __init__(self, events: Events, access: Access) -> None:
        self._events = events
        self._access = access

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:
        row, runs = await self._events.get(caller(), request.event_id)
        namespace = self._access.namespace_name(row.namespace_no)
        return pb.GetEventResponse(event=convert.event_to_proto(row, namespace, runs, whole=True))

    async def ListEvents(self, request: pb.ListEventsRequest, _: Any) -> pb.ListEventsResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        outcomes = sorted({event_pb2.Event.Outcome.Name(o).removeprefix("OUTCOME_") for o in request.outcomes if o})
        size, filters = page_size(request.page_size), ["events", namespace_no, outcomes, request.path]
        before = decode_token(request.page_token, filters, 0)
        found = await self._events.page(EventFilter(namespace_no, outcomes, request.path, before), size + 1)
        page = found[:size]
        more = encode_token(page[-1][0].no, filters) if len(found) > size else ""
        name = self._access.namespace_name(namespace_no)
        events = [convert.event_to_proto(row, name, runs, whole=False) for row, runs in page]
        return pb.ListEventsResponse(events=events, next_page_token=more)
