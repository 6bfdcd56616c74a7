"""RunService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1 import run_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.runs import Runs, StartRequest
from taskforged.control.workflows import Workflows
from taskforged.rpc import convert
from taskforged.rpc.guard import caller
from taskforged.store.runs import RunFilter

__all__ = ["RunServicer"]


class RunServicer(grpc_base.RunServiceServicer):
    """Check, call control, convert."""

    def __init__(self, runs: Runs, workflows: Workflows, access: Access) -> None:
        self._runs = runs
        self._workflows = workflows
        self._access = access

    async def StartRun(self, request: pb.StartRunRequest, _: Any) -> pb.StartRunResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        wait_s = convert.seconds(request.wait) if request.HasField("wait") else 0.0
        view = await self._runs.start(caller(), namespace_no, _wanted(request), wait_s=wait_s)
        return pb.StartRunResponse(run=convert.run_to_proto(view, steps=wait_s > 0))

    async def BatchStartRuns(self, request: pb.BatchStartRunsRequest, _: Any) -> pb.BatchStartRunsResponse:
        wanted = [(self._access.enter(caller(), one.namespace), _wanted(one)) for one in request.requests]
        return pb.BatchStartRunsResponse(run_ids=await self._runs.start_batch(caller(), wanted))

    async def GetRun(self, request: pb.GetRunRequest, _: Any) -> pb.GetRunResponse:
        view = await self._runs.get(caller(), request.run_id)
        return pb.GetRunResponse(run=convert.run_to_proto(view))

    async def ListRuns(self, request: pb.ListRunsRequest, _: Any) -> pb.ListRunsResponse:
        wanted, filters = await self._filter(request)
        size = page_size(request.page_size)
        found = await self._runs.page(wanted, size + 1)
        page = found[:size]
        last = page[-1].row if page else None
        more = encode_token(last.no, filters) if last is not None and len(found) > size else ""
        return pb.ListRunsResponse(runs=[convert.run_to_proto(one) for one in page], next_page_token=more)

    async def _filter(self, request: pb.ListRunsRequest) -> tuple[RunFilter, list[Any]]:
        namespace_no = self._access.enter(caller(), request.namespace)
        workflow_no = self._workflows.get(namespace_no, request.workflow).no if request.workflow else None
        event_no = await self._runs.event_no(caller(), request.event_id) if request.event_id else None
        states = sorted({run_pb2.Run.State.Name(one).removeprefix("STATE_") for one in request.states if one})
        filters = ["runs", namespace_no, workflow_no, event_no, states]
        before = decode_token(request.page_token, filters, 0)
        return RunFilter(namespace_no, workflow_no, states, event_no, before), filters

    async def CancelRun(self, request: pb.CancelRunRequest, _: Any) -> pb.CancelRunResponse:
        view = await self._runs.cancel(caller(), request.run_id, request.reason)
        return pb.CancelRunResponse(run=convert.run_to_proto(view))

    async def GetRunHistory(self, request: pb.GetRunHistoryRequest, _: Any) -> pb.GetRunHistoryResponse:
        size, filters = page_size(request.page_size), ["history", request.run_id]
        after = decode_token(request.page_token, filters, 0)
        found = await self._runs.history(caller(), request.run_id, after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1][0].event.sequence, filters) if len(found) > size else ""
        events = [convert.history_to_proto(one) for one in page]
        return pb.GetRunHistoryResponse(events=events, next_page_token=more)

    async def WatchRun(self, request: pb.WatchRunRequest, _: Any) -> AsyncIterator[pb.WatchRunResponse]:
        async for portion in self._runs.watch(caller(), request.run_id, request.after_sequence):
            yield pb.WatchRunResponse(
                events=[convert.history_to_proto(one) for one in portion.events],
                run=convert.run_to_proto(portion.view, steps=False),
            )

    async def VerifyRun(self, request: pb.VerifyRunRequest, _: Any) -> pb.VerifyRunResponse:
        verdict = await self._runs.verify(caller(), request.run_id)
        return pb.VerifyRunResponse(
            intact=not verdict.faults,
            events=verdict.events,
            head_hash=verdict.head_hash.hex(),
            faults=verdict.faults[:100],
        )


def _wanted(request: pb.StartRunRequest) -> StartRequest:
    return StartRequest(request.workflow, request.input_json, request.request_id, request.correlation_id)
