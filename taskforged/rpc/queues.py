"""QueueService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import queue_service_pb2 as pb
from taskforge.v1 import queue_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.queues import QueueChange, Queues
from taskforged.rpc import convert
from taskforged.rpc.guard import caller

__all__ = ["QueueServicer"]


class QueueServicer(grpc_base.QueueServiceServicer):
    """Check, call control, convert."""

    def __init__(self, queues: Queues, access: Access) -> None:
        self._queues = queues
        self._access = access

    async def SetQueue(self, request: pb.SetQueueRequest, _: Any) -> pb.SetQueueResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        changed = await self._queues.set(namespace_no, request.name, _change(request))
        return pb.SetQueueResponse(queue=convert.queue_to_proto(changed, self._access))

    async def GetQueue(self, request: pb.GetQueueRequest, _: Any) -> pb.GetQueueResponse:
        found = self._queues.get(self._access.enter(caller(), request.namespace), request.name)
        return pb.GetQueueResponse(queue=convert.queue_to_proto(found, self._access))

    async def ListQueues(self, request: pb.ListQueuesRequest, _: Any) -> pb.ListQueuesResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        size, filters = page_size(request.page_size), ["queues", namespace_no]
        after = decode_token(request.page_token, filters, "")
        found = self._queues.page(namespace_no, after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1].record.name, filters) if len(found) > size else ""
        queues = [convert.queue_to_proto(one, self._access) for one in page]
        return pb.ListQueuesResponse(queues=queues, next_page_token=more)

    async def DeleteQueue(self, request: pb.DeleteQueueRequest, _: Any) -> pb.DeleteQueueResponse:
        await self._queues.delete(self._access.enter(caller(), request.namespace), request.name)
        return pb.DeleteQueueResponse()


def _change(request: pb.SetQueueRequest) -> QueueChange:
    return QueueChange(
        priority=request.priority if request.HasField("priority") else None,
        running_steps=request.running_steps_max if request.HasField("running_steps_max") else None,
        paused=request.paused if request.HasField("paused") else None,
    )
