"""SystemService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1 import system_service_pb2_grpc as grpc_base

from taskforged.control.system import System
from taskforged.rpc import convert

__all__ = ["SystemServicer"]


class SystemServicer(grpc_base.SystemServiceServicer):
    """Check, call control, convert."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def GetInfo(self, _: pb.GetInfoRequest, __: Any) -> pb.GetInfoResponse:
        info = self._system.info()
        return pb.GetInfoResponse(
            state=info.state,
            version=info.version,
            pid=info.pid,
            home=info.home,
            grpc=info.grpc,
            http=info.http,
            start_time=convert.stamp(info.started_at),
            boot_epoch=info.boot_epoch,
            sqlite_version=info.sqlite_version,
            schema_version=info.schema_version,
        )

    async def GetStats(self, _: pb.GetStatsRequest, __: Any) -> pb.GetStatsResponse:
        return pb.GetStatsResponse(**await self._system.stats())
