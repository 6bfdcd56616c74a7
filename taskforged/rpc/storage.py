"""StorageService."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from taskforge.v1 import storage_service_pb2 as pb
from taskforge.v1 import storage_service_pb2_grpc as grpc_base

from taskforged.control.access import Access
from taskforged.control.checks import invalid
from taskforged.control.paging import decode_token, encode_token, page_size
from taskforged.control.retention import Keep, PruneReport, with_runs
from taskforged.control.storage import Storage
from taskforged.control.workflows import Workflows
from taskforged.errors import PermissionDeniedError
from taskforged.rpc import convert
from taskforged.rpc.guard import caller
from taskforged.store.backup import BackupFile

__all__ = ["StorageServicer"]


class StorageServicer(grpc_base.StorageServiceServicer):
    """Check, call control, convert."""

    def __init__(self, storage: Storage, workflows: Workflows, access: Access) -> None:
        self._storage = storage
        self._workflows = workflows
        self._access = access

    async def GetStorage(self, _: pb.GetStorageRequest, __: Any) -> pb.GetStorageResponse:
        view = await self._storage.view()
        pruner, backups, state = self._storage.pruner, self._storage.backups, view.state
        count, until = pruner.pruned_runs(caller().namespace_no, None)
        status = backups.status
        return pb.GetStorageResponse(
            database_bytes=state.database_bytes,
            free_bytes=state.free_bytes,
            wal_bytes=state.wal_bytes,
            budget_bytes=view.budget_bytes,
            can_shrink=state.can_shrink,
            refuses_new_work=view.refuses,
            tables=[pb.TableSize(name=name, size_bytes=size) for name, size in view.tables.items()],
            pruned=pb.PruneCounts(**pruner.totals),
            last_prune_time=convert.stamp(pruner.last.ended_at if pruner.last else 0),
            pruned_runs=count,
            pruned_runs_until=convert.stamp(until),
            backup_folder=str(backups.folder),
            backup_every=Duration(seconds=backups.every_s) if backups.every_s else None,
            last_backup_time=convert.stamp(status.last_at),
            last_backup_path=status.last_path,
            last_backup_bytes=status.last_bytes,
            backup_failure=status.failure,
            backup_failure_time=convert.stamp(status.failed_at),
        )

    async def PruneStorage(self, request: pb.PruneStorageRequest, _: Any) -> pb.PruneStorageResponse:
        self._check_whole()
        report = await self._storage.prune(self._keep(request), dry_run=request.dry_run)
        return pb.PruneStorageResponse(counts=pb.PruneCounts(**report.counts), took=_took(report))

    def _keep(self, request: pb.PruneStorageRequest) -> Keep | None:
        age_s = None
        if request.HasField("runs_older_than"):
            age_s = int(convert.seconds(request.runs_older_than))
            if age_s < 1:
                raise invalid("runs_older_than", "must be at least a second")
        if request.keep < 0:
            raise invalid("keep", "must not be negative")
        only = 0
        if request.workflow:
            only = self._workflows.get(self._access.enter(caller(), request.namespace), request.workflow).no
        if age_s is None and not request.keep and not only:
            return None
        return with_runs(self._storage.pruner.keep, age_s=age_s, count=request.keep or None, workflow_no=only)

    async def CreateBackup(self, _: pb.CreateBackupRequest, __: Any) -> pb.CreateBackupResponse:
        self._check_whole()
        return pb.CreateBackupResponse(backup=_backup(await self._storage.backups.create()))

    async def ListBackups(self, request: pb.ListBackupsRequest, _: Any) -> pb.ListBackupsResponse:
        self._check_whole()
        size, filters = page_size(request.page_size), ["backups"]
        after = decode_token(request.page_token, filters, "")
        found = [one for one in await self._storage.backups.list() if not after or one.path.name < after]
        page = found[:size]
        more = encode_token(page[-1].path.name, filters) if len(found) > size else ""
        return pb.ListBackupsResponse(backups=[_backup(one) for one in page], next_page_token=more)

    def _check_whole(self) -> None:
        """The database is everybody's: who is confined to a namespace has no say in it."""
        principal = caller()
        if principal.namespace_no is not None:
            raise PermissionDeniedError(
                f"this needs a token of all namespaces; {principal.name!r} is of one", metadata={"needs": "admin"}
            )


def _backup(one: BackupFile) -> pb.Backup:
    return pb.Backup(
        path=str(one.path),
        create_time=convert.stamp(one.at),
        schema_version=one.schema,
        size_bytes=one.size,
        is_upgrade=one.is_upgrade,
    )


def _took(report: PruneReport) -> Duration:
    whole, micros = divmod(max(0, report.ended_at - report.started_at), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1000)
