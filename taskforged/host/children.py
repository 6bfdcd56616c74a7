"""Sub-workflows: their runs are created, cancelled and reported by themselves, in time or by the next boot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from taskforged.engine.events import CancelRun, ChildEnded, Fact, StartChild
from taskforged.engine.run import Run
from taskforged.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, TaskforgeError
from taskforged.failpoints import reach
from taskforged.host.tasks import RELOAD_S, RETRY_S, Tasks
from taskforged.store.changes import Home
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

__all__ = ["Children", "end_of"]

_log = structlog.get_logger(__name__)

_PARENT_STOPPED = "the parent run was stopped"


class Children:
    """Sees to the runs of sub-workflows.

    Attributes:
        start_child: creates the run of a sub-workflow, to be set before anything starts. Given the parent's home, its
            state and the command, it answers when the run is on disk, also when it was there before. It raises
            NotFoundError, InvalidArgumentError or FailedPreconditionError when that run can never be, and other errors
            when it may be possible later.
    """

    def __init__(self, *, store: Store, runs: RunStore, tasks: Tasks, post: Callable[[int, Fact], None]) -> None:
        """Create it; `post` sends a fact to a run."""
        self._store = store
        self._runs = runs
        self._tasks = tasks
        self._post = post
        self._starting: dict[str, asyncio.Task[None]] = {}
        self.start_child: Callable[[Home, Run, StartChild], Awaitable[None]] = _no_child

    def begin(self, parent: Home, run: Run, command: StartChild) -> None:
        """Create the run of a sub-workflow, unless that is under way."""
        if command.run_id not in self._starting and not self._tasks.stopping:
            task = self._tasks.spawn(self._create(parent, run, command), f"start {command.run_id}")
            self._starting[command.run_id] = task
            task.add_done_callback(lambda _: self._starting.pop(command.run_id, None))

    def cancel(self, run_id: str) -> None:
        """Cancel the run of a sub-workflow whose parent was stopped."""
        self._tasks.spawn(self._cancel(run_id), f"cancel {run_id}")

    def recover(self) -> None:
        """Start, cancel or report the sub-workflows that an earlier boot did not get to."""
        self._tasks.spawn(self._recover(), "recover sub-workflows")

    async def _create(self, parent: Home, run: Run, command: StartChild) -> None:
        """Create the run of a sub-workflow, however long that takes; its id is known, so it is created once."""
        while True:
            try:
                reach("child.due")
                await self.start_child(parent, run, command)
                reach("child.created")
            except (NotFoundError, InvalidArgumentError, FailedPreconditionError) as error:
                fault = {"code": _FAULTS.get(type(error), "child_failed"), "message": str(error)}
                self._post(parent.no, ChildEnded(command.seq, "", error=fault))
            except TaskforgeError as error:
                _log.warning("child.not_started", **_pair(run, command), error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            except Exception as error:  # noqa: BLE001  task boundary: the parent would wait for ever
                _log.error("child.not_started", **_pair(run, command), exc_info=error)
                await asyncio.sleep(RELOAD_S)
                continue
            return

    async def _cancel(self, run_id: str) -> None:
        starting = self._starting.get(run_id)
        if starting is not None:
            await asyncio.wait([starting])
        while True:
            try:
                row = await self._runs.by_id(run_id)
            except Exception as error:  # noqa: BLE001  task boundary: the parent would wait for the child for ever
                _log.error("child.not_cancelled", child=run_id, error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if row is not None and row.ended_at is None:
                self._post(row.no, CancelRun(_PARENT_STOPPED))
            return

    async def _recover(self) -> None:
        rows: Sequence[Sequence[Any]] | None = None
        while rows is None:
            try:
                rows = await self._store.rows("all_children")
            except Exception as error:  # noqa: BLE001  task boundary: their parents would wait until the next boot
                _log.error("children.not_read", error=str(error))
                await asyncio.sleep(RELOAD_S)
        for row in rows:
            await self._try(row)

    async def _try(self, row: Sequence[Any]) -> None:
        """Recover a sub-workflow, later again when it cannot be read: one bad run must not stop the others."""
        try:
            await self._recover_one(*row)
        except Exception as error:  # noqa: BLE001  task boundary
            _log.error("child.not_recovered", parent_no=row[0], child=row[2], error=str(error))
            asyncio.get_running_loop().call_later(RELOAD_S, self._try_again, row)

    def _try_again(self, row: Sequence[Any]) -> None:
        if not self._tasks.stopping:
            self._tasks.spawn(self._try(row), f"recover {row[2]}")

    async def _recover_one(
        self,
        parent_no: int,
        seq: int,
        run_id: str,
        workflow: str,
        version: int,
        cancelled: int,
        no: int | None,
        _: str | None,
        ended_at: int | None,
        asked: int | None,
    ) -> None:
        if no is None:
            parent = await self._runs.load(parent_no)
            if parent is None or seq not in parent.run.commands:
                return
            key = parent.run.commands[seq]
            value = parent.run.steps[key].input["input"]
            home = Home(parent_no, parent.row.namespace_no, parent.row.workflow_no)
            self.begin(home, parent.run, StartChild(seq, key, run_id, workflow, version, value))
            if cancelled:
                self.cancel(run_id)
        elif ended_at is not None:
            await self._report(parent_no, seq, no)
        elif cancelled and not asked:
            self._post(no, CancelRun(_PARENT_STOPPED))

    async def _report(self, parent_no: int, seq: int, no: int) -> None:
        loaded = await self._runs.load(no)
        if loaded is not None:
            self._post(parent_no, end_of(seq, loaded.run))


_FAULTS: Mapping[type[TaskforgeError], str] = {
    NotFoundError: "workflow_not_found",
    InvalidArgumentError: "invalid_input",
}


def end_of(seq: int, run: Run) -> ChildEnded:
    """Answer what the parent, whose command it was, is told of a run that has ended."""
    return ChildEnded(seq, run.state.text, run.output, run.failing)


def _pair(run: Run, command: StartChild) -> dict[str, str]:
    return {"run_id": run.run_id, "correlation_id": run.correlation_id, "child": command.run_id}


async def _no_child(_: Home, __: Run, command: StartChild) -> None:
    raise NotFoundError(f"nobody can start {command.workflow!r}")
