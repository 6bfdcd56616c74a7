"""WorkflowService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import workflow_pb2
from taskforge.v1 import workflow_service_pb2 as pb
from taskforge.v1 import workflow_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.rpc import convert, convert_views
from taskforged.rpc.guard import caller

__all__ = ["WorkflowServicer"]


class WorkflowServicer(grpc_base.WorkflowServiceServicer):
    """Check, call control, convert."""

    def __init__(self, workflows: Workflows, access: Access) -> None:
        self._workflows = workflows
        self._access = access

    async def ApplyWorkflow(self, request: pb.ApplyWorkflowRequest, _: Any) -> pb.ApplyWorkflowResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        applied = await self._workflows.apply(namespace_no, request.source, caller().token_id)
        return pb.ApplyWorkflowResponse(
            workflow=await self._to_proto(applied.workflow),
            version=convert.version_to_proto(applied.workflow, applied.version),
            changed=applied.changed,
        )

    async def ValidateWorkflow(self, request: pb.ValidateWorkflowRequest, _: Any) -> pb.ValidateWorkflowResponse:
        self._access.enter(caller(), request.namespace)
        name, problems = self._workflows.validate(request.source)
        return pb.ValidateWorkflowResponse(name=name, problems=[convert.problem_to_proto(one) for one in problems])

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, _: Any) -> pb.GetWorkflowResponse:
        return pb.GetWorkflowResponse(workflow=await self._to_proto(self._find(request.namespace, request.name)))

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, _: Any) -> pb.ListWorkflowsResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        size, filters = page_size(request.page_size), ["workflows", namespace_no]
        after = decode_token(request.page_token, filters, "")
        found = self._workflows.page(namespace_no, after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1].name, filters) if len(found) > size else ""
        return pb.ListWorkflowsResponse(workflows=[await self._to_proto(one) for one in page], next_page_token=more)

    async def GetWorkflowVersion(self, request: pb.GetWorkflowVersionRequest, _: Any) -> pb.GetWorkflowVersionResponse:
        workflow = self._find(request.namespace, request.name)
        version = await self._workflows.version(workflow, request.number)
        return pb.GetWorkflowVersionResponse(version=convert.version_to_proto(workflow, version))

    async def ListWorkflowVersions(
        self, request: pb.ListWorkflowVersionsRequest, _: Any
    ) -> pb.ListWorkflowVersionsResponse:
        workflow = self._find(request.namespace, request.name)
        size, filters = page_size(request.page_size), ["versions", workflow.no]
        before = decode_token(request.page_token, filters, 0)
        found = await self._workflows.versions(workflow, before=before, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1].number, filters) if len(found) > size else ""
        versions = [convert.version_to_proto(workflow, one) for one in page]
        return pb.ListWorkflowVersionsResponse(versions=versions, next_page_token=more)

    async def SetWorkflowActive(self, request: pb.SetWorkflowActiveRequest, _: Any) -> pb.SetWorkflowActiveResponse:
        workflow = self._find(request.namespace, request.name)
        changed = await self._workflows.set_active(workflow, active=request.active)
        return pb.SetWorkflowActiveResponse(workflow=await self._to_proto(changed))

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, _: Any) -> pb.DeleteWorkflowResponse:
        await self._workflows.delete(self._find(request.namespace, request.name))
        return pb.DeleteWorkflowResponse()

    async def GetWorkflowGraph(self, request: pb.GetWorkflowGraphRequest, _: Any) -> pb.GetWorkflowGraphResponse:
        namespace_no = self._access.enter(caller(), request.namespace)
        graph = await self._workflows.graph(namespace_no, request.name, request.number, source=request.source)
        return pb.GetWorkflowGraphResponse(graph=convert_views.graph_to_proto(graph))

    def _find(self, namespace: str, name: str) -> LiveWorkflow:
        return self._workflows.get(self._access.enter(caller(), namespace), name)

    async def _to_proto(self, workflow: LiveWorkflow) -> workflow_pb2.Workflow:
        definition = await self._workflows.definition(workflow.no, workflow.latest)
        return convert.workflow_to_proto(workflow, self._access.namespace_name(workflow.namespace_no), definition)
