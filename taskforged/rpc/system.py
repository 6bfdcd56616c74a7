"""SystemService."""

from __future__ import annotations

from typing import Any

from taskforge.v1 import system_pb2
from taskforge.v1 import system_service_pb2 as pb
from taskforge.v1 import system_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.diagnosis import Finding
from taskforged.control.doctor import Doctor
from taskforged.control.settings import SettingView
from taskforged.control.stuck import StuckDetector, StuckRun
from taskforged.control.system import System
from taskforged.rpc import convert
from taskforged.rpc.guard import caller

__all__ = ["SystemServicer"]


class SystemServicer(grpc_base.SystemServiceServicer):
    """Check, call control, convert."""

    def __init__(self, system: System, doctor: Doctor, stuck: StuckDetector, access: Access) -> None:
        self._system = system
        self._doctor = doctor
        self._stuck = stuck
        self._access = access

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

    async def ListStuckRuns(self, request: pb.ListStuckRunsRequest, _: Any) -> pb.ListStuckRunsResponse:
        only = self._access.enter(caller(), request.namespace) if request.namespace else None
        found = sorted(self._stuck.found.values())
        shown = [one for one in found if only in (None, one.namespace_no) and caller().sees(one.namespace_no)]
        return pb.ListStuckRunsResponse(runs=[self._stuck_run(one) for one in shown], looks=self._stuck.looks)

    def _stuck_run(self, one: StuckRun) -> system_pb2.StuckRun:
        return system_pb2.StuckRun(
            id=one.run_id,
            namespace=self._access.namespace_name(one.namespace_no),
            workflow=one.workflow,
            state=one.state,
            reason=one.reason,
            diagnosis=one.diagnosis,
            since=convert.stamp(one.since),
        )

    async def GetConfig(self, _: pb.GetConfigRequest, __: Any) -> pb.GetConfigResponse:
        file, settings = self._doctor.settings(caller())
        return pb.GetConfigResponse(file=file, settings=[_setting(one) for one in settings])

    async def Diagnose(self, request: pb.DiagnoseRequest, _: Any) -> pb.DiagnoseResponse:
        limit_s = convert.seconds(request.database_limit) if request.HasField("database_limit") else None
        found = await self._doctor.diagnose(caller(), database_s=limit_s)
        return pb.DiagnoseResponse(findings=[_finding(one) for one in found])


def _setting(one: SettingView) -> system_pb2.Setting:
    return system_pb2.Setting(
        section=one.section,
        key=one.key,
        value_json=one.value,
        default_json=one.default,
        source=system_pb2.Setting.Source.Value(f"SOURCE_{one.origin.name}"),
        variable=one.variable,
        help=one.help,
    )


def _finding(one: Finding) -> system_pb2.Finding:
    severity = system_pb2.Finding.Severity.Value(f"SEVERITY_{one.severity.name}")
    return system_pb2.Finding(check=one.check, severity=severity, message=one.message, remedy=one.remedy)
