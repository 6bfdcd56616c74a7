"""NamespaceService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import namespace_service_pb2 as pb
from taskforge.v1 import namespace_service_pb2_grpc as grpc_base

from taskforged.control.namespaces import NamespaceChange, Namespaces
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.rpc import convert
from taskforged.rpc.guard import caller

__all__ = ["NamespaceServicer"]


class NamespaceServicer(grpc_base.NamespaceServiceServicer):
    """Check, call control, convert."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    async def SetNamespace(self, request: pb.SetNamespaceRequest, _: Any) -> pb.SetNamespaceResponse:
        changed = await self._namespaces.set(caller(), request.name, _change(request))
        return pb.SetNamespaceResponse(namespace=convert.namespace_to_proto(changed))

    async def GetNamespace(self, request: pb.GetNamespaceRequest, _: Any) -> pb.GetNamespaceResponse:
        found = self._namespaces.get(caller(), request.name)
        return pb.GetNamespaceResponse(namespace=convert.namespace_to_proto(found))

    async def ListNamespaces(self, request: pb.ListNamespacesRequest, _: Any) -> pb.ListNamespacesResponse:
        size, filters = page_size(request.page_size), ["namespaces"]
        after = decode_token(request.page_token, filters, "")
        found = self._namespaces.page(caller(), after=after, limit=size + 1)
        page = found[:size]
        more = encode_token(page[-1].record.name, filters) if len(found) > size else ""
        namespaces = [convert.namespace_to_proto(one) for one in page]
        return pb.ListNamespacesResponse(namespaces=namespaces, next_page_token=more)

    async def DeleteNamespace(self, request: pb.DeleteNamespaceRequest, _: Any) -> pb.DeleteNamespaceResponse:
        await self._namespaces.delete(caller(), request.name)
        return pb.DeleteNamespaceResponse()


def _change(request: pb.SetNamespaceRequest) -> NamespaceChange:
    return NamespaceChange(
        labels=dict(request.labels),
        replace_labels=request.replace_labels,
        weight=request.weight if request.HasField("weight") else None,
        running_steps=request.running_steps_max if request.HasField("running_steps_max") else None,
        running_runs=request.running_runs_max if request.HasField("running_runs_max") else None,
        pending_runs=request.pending_runs_max if request.HasField("pending_runs_max") else None,
        requests_per_s=request.requests_per_second if request.HasField("requests_per_second") else None,
    )
