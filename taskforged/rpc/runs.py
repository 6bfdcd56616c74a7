"""RunService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as pb
from taskforge.v1 import run_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.explainer import Explainer
from taskforged.control.logs import RunLogs
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.repeats import Repeats, RerunRequest
from taskforged.control.runs import Runs, StartRequest
from taskforged.control.steering import Steering
from taskforged.control.verifying import Verifier
from taskforged.control.views import RunViews
from taskforged.control.workflows import Workflows
from taskforged.correlation import Trace
from taskforged.errors import InvalidArgumentError, Violation
from taskforged.rpc import convert, convert_views
from taskforged.rpc.guard import caller, trace_of_call
from taskforged.store.runs import RunFilter

__all__ = ["RunServicer"]


class RunServicer(grpc_base.RunServiceServicer):
    """Check, call control, convert."""

    def __init__(
        self,
        *,
        views: RunViews,
        runs: Runs,
        steering: Steering,
        repeats: Repeats,
        verifier: Verifier,
        logs: RunLogs,
        explainer: Explainer,
        workflows: Workflows,
        access: Access,
        pruned: Callable[[int | None, int | None], tuple[int, int]],
    ) -> None:
        self._views = views
        self._runs = runs
        self._steering = steering
        self._repeats = repeats
        self._verifier = verifier
        self._logs = logs
        self._explainer = explainer
        self._workflows = workflows
        self._access = access
        self._pruned = pruned

    async def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        wait_s = convert.seconds(request.wait) if request.HasField("wait") else 0.0
        view = await self._runs.start(caller(), namespace_no, _wanted(request, trace_of_call(context)), wait_s=wait_s)
        return pb.StartRunResponse(run=convert.run_to_proto(view, steps=wait_s > 0))

    async def BatchStartRuns(self, request: pb.BatchStartRunsRequest, context: Any) -> pb.BatchStartRunsResponse:
        trace = trace_of_call(context)
        wanted = [(self._access.enter(caller(), one.namespace), _wanted(one, trace)) for one in request.requests]
        return pb.BatchStartRunsResponse(run_ids=await self._runs.start_batch(caller(), wanted))

    async def GetRun(self, request: pb.GetRunRequest, _: Any) -> pb.GetRunResponse:
        view = await self._views.get(caller(), request.run_id)
        return pb.GetRunResponse(run=convert.run_to_proto(view))

    async def ListRuns(self, request: pb.ListRunsRequest, _: Any) -> pb.ListRunsResponse:
        wanted, filters = await self._filter(request)
        size = page_size(request.page_size)
        found = await self._views.page(wanted, size + 1)
        if not found and wanted.workflow_name and not wanted.before:
            self._workflows.get(wanted.namespace_no, request.workflow)  # says that there is none
        page = found[:size]
        last = page[-1].row if page else None
        more = encode_token(last.no, filters) if last is not None and len(found) > size else ""
        pruned, until = (0, 0) if wanted.event_no is not None else self._pruned(wanted.namespace_no, wanted.workflow_no)
        return pb.ListRunsResponse(
            runs=[convert.run_to_proto(one) for one in page],
            next_page_token=more,
            pruned=pruned,
            pruned_until=convert.stamp(until),
        )

    async def _filter(self, request: pb.ListRunsRequest) -> tuple[RunFilter, list[Any]]:
        namespace_no = self._access.enter(caller(), request.namespace)
        own = self._workflows.find(namespace_no, request.workflow)
        workflow_no = None if own is None else own.no
        # Runs that another namespace's workflow has started here are found by its name.
        elsewhere = request.workflow if own is None else ""
        event_no = await self._views.event_no(caller(), request.event_id) if request.event_id else None
        states = sorted({run_pb2.Run.State.Name(one).removeprefix("STATE_") for one in request.states if one})
        filters = ["runs", namespace_no, workflow_no, elsewhere, event_no, states]
        before = decode_token(request.page_token, filters, 0)
        return RunFilter(namespace_no, workflow_no, states, event_no, before, elsewhere), filters

    async def CancelRun(self, request: pb.CancelRunRequest, _: Any) -> pb.CancelRunResponse:
        view = await self._steering.cancel(caller(), request.run_id, request.reason)
        return pb.CancelRunResponse(run=convert.run_to_proto(view))

    async def PauseRun(self, request: pb.PauseRunRequest, _: Any) -> pb.PauseRunResponse:
        view = await self._steering.pause(caller(), request.run_id, request.reason)
        return pb.PauseRunResponse(run=convert.run_to_proto(view, steps=False))

    async def ResumeRun(self, request: pb.ResumeRunRequest, _: Any) -> pb.ResumeRunResponse:
        view = await self._steering.resume(caller(), request.run_id, request.reason)
        return pb.ResumeRunResponse(run=convert.run_to_proto(view, steps=False))

    async def RetryRun(self, request: pb.RetryRunRequest, _: Any) -> pb.RetryRunResponse:
        view = await self._repeats.retry(caller(), request.run_id, request.request_id)
        return pb.RetryRunResponse(run=convert.run_to_proto(view, steps=False))

    async def RerunRun(self, request: pb.RerunRunRequest, _: Any) -> pb.RerunRunResponse:
        wanted = RerunRequest(
            request.run_id, request.from_step, request.version, request.newest_version, request.request_id
        )
        view = await self._repeats.rerun(caller(), wanted)
        return pb.RerunRunResponse(run=convert.run_to_proto(view, steps=False))

    async def SignalRun(self, request: pb.SignalRunRequest, _: Any) -> pb.SignalRunResponse:
        view, step = await self._steering.signal(
            caller(), request.run_id, request.signal, request.payload_json, request.request_id
        )
        return pb.SignalRunResponse(run=convert.run_to_proto(view, steps=False), step=step)

    async def ApproveRun(self, request: pb.ApproveRunRequest, _: Any) -> pb.ApproveRunResponse:
        view = await self._steering.answer(
            caller(),
            request.run_id,
            request.step,
            approved=True,
            payload_json=request.payload_json,
            comment=request.comment,
        )
        return pb.ApproveRunResponse(run=convert.run_to_proto(view, steps=False))

    async def RejectRun(self, request: pb.RejectRunRequest, _: Any) -> pb.RejectRunResponse:
        view = await self._steering.answer(
            caller(), request.run_id, request.step, approved=False, comment=request.comment
        )
        return pb.RejectRunResponse(run=convert.run_to_proto(view, steps=False))

    async def ResolveRun(self, request: pb.ResolveRunRequest, _: Any) -> pb.ResolveRunResponse:
        outcome = _OUTCOMES.get(request.outcome)
        if outcome is None:
            message = "is required: succeeded, failed or retry"
            raise InvalidArgumentError(f"outcome {message}", violations=[Violation("outcome", message)])
        view = await self._steering.resolve(
            caller(),
            request.run_id,
            request.step,
            outcome,
            output_json=request.output_json,
            comment=request.comment,
        )
        return pb.ResolveRunResponse(run=convert.run_to_proto(view, steps=False))

    async def ListRunSteps(self, request: pb.ListRunStepsRequest, _: Any) -> pb.ListRunStepsResponse:
        states = sorted({run_pb2.StepRun.State.Name(one).removeprefix("STATE_") for one in request.states if one})
        size = page_size(request.page_size)
        filters = ["steps", request.run_id, request.key_prefix, states]
        offset = decode_token(request.page_token, filters, 0)
        view = await self._views.get(caller(), request.run_id)
        run = view.run
        assert run is not None
        keys = [
            key
            for key, step in run.steps.items()
            if key.startswith(request.key_prefix) and (not states or step.state.value in states)
        ]
        more = encode_token(offset + size, filters) if len(keys) > offset + size else ""
        steps = [convert.step_to_proto(key, run, view.model) for key in keys[offset : offset + size]]
        return pb.ListRunStepsResponse(steps=steps, next_page_token=more)

    async def ExplainRun(self, request: pb.ExplainRunRequest, _: Any) -> pb.ExplainRunResponse:
        found = await self._explainer.explain(caller(), request.run_id)
        return pb.ExplainRunResponse(explanation=convert_views.explanation_to_proto(found))

    async def GetRunLogs(self, request: pb.GetRunLogsRequest, _: Any) -> pb.GetRunLogsResponse:
        size, filters = page_size(request.page_size), ["logs", request.run_id, request.step]
        after = decode_token(request.page_token, filters, "")
        row = await self._views.row(caller(), request.run_id)
        page = await self._logs.page(row, request.step, after, size)
        more = encode_token(page.entries[-1].cursor, filters) if page.has_more else ""
        entries = [convert_views.log_entry_to_proto(entry) for entry in page.entries]
        return pb.GetRunLogsResponse(entries=entries, next_page_token=more)

    async def WatchRunLogs(self, request: pb.WatchRunLogsRequest, _: Any) -> AsyncIterator[pb.WatchRunLogsResponse]:
        row = await self._views.row(caller(), request.run_id)
        async for portion in self._logs.watch(row, request.step, request.after_cursor):
            yield convert_views.log_portion_to_proto(portion)

    async def GetRunHistory(self, request: pb.GetRunHistoryRequest, _: Any) -> pb.GetRunHistoryResponse:
        size, filters = page_size(request.page_size), ["history", request.run_id]
        after = decode_token(request.page_token, filters, 0)
        found = await self._views.history(caller(), request.run_id, after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1][0].event.sequence, filters) if len(found) > size else ""
        events = [convert.history_to_proto(one) for one in page]
        return pb.GetRunHistoryResponse(events=events, next_page_token=more)

    async def WatchRun(self, request: pb.WatchRunRequest, _: Any) -> AsyncIterator[pb.WatchRunResponse]:
        async for portion in self._views.watch(caller(), request.run_id, request.after_sequence):
            yield pb.WatchRunResponse(
                events=[convert.history_to_proto(one) for one in portion.events],
                run=convert.run_to_proto(portion.view, steps=False),
            )

    async def VerifyRun(self, request: pb.VerifyRunRequest, _: Any) -> pb.VerifyRunResponse:
        verdict = await self._verifier.verify(caller(), request.run_id)
        return pb.VerifyRunResponse(
            intact=not verdict.faults,
            events=verdict.events,
            head_hash=verdict.head_hash.hex(),
            faults=verdict.faults[:100],
        )


_OUTCOMES = {
    pb.RESOLUTION_SUCCEEDED: "succeeded",
    pb.RESOLUTION_FAILED: "failed",
    pb.RESOLUTION_RETRY: "retry",
}


def _wanted(request: pb.StartRunRequest, trace: Trace) -> StartRequest:
    return StartRequest(
        request.workflow,
        request.input_json,
        request.request_id,
        request.correlation_id,
        queue=request.queue,
        priority=request.priority if request.HasField("priority") else None,
        run_at=convert.micros(request.run_time) if request.HasField("run_time") else 0,
        trace=trace,
    )
