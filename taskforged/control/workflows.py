"""Definitions: apply, validate, show.

What is live (name, newest version, active flag; triggers are in `trigger_book`) is held in memory and changed only
after the commit that changes it, so that starting a run needs no query. Compiled definitions are cached by version,
which never changes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from taskforged.clock import Clock, new_id
from taskforged.control.trigger_book import Declaration, TriggerBook, change_schedules
from taskforged.engine.graph import Graph, graph_of
from taskforged.engine.model import Json, WorkflowModel
from taskforged.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TaskforgeError,
    Violation,
)
from taskforged.jsonvalue import load_stored, to_text
from taskforged.language import compile_definition
from taskforged.language.definition import Definition
from taskforged.store.audit import about
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store

__all__ = ["Applied", "LiveWorkflow", "VersionRecord", "Workflows"]

_COMPILED_MAX = 500


@dataclass(frozen=True, slots=True)
class LiveWorkflow:
    """A workflow that has not been deleted."""

    no: int
    id: str
    namespace_no: int
    name: str
    active: bool
    latest: int
    created_at: int
    updated_at: int
    concurrency: str = ""
    applied_by: str = ""
    retention: str = ""


class VersionRecord(NamedTuple):
    """A stored version."""

    workflow_no: int
    number: int
    content_hash: str
    source: str
    profile: str
    created_at: int
    created_by: str


class Applied(NamedTuple):
    """What became of a definition."""

    workflow: LiveWorkflow
    version: VersionRecord
    changed: bool


class Workflows:
    """The workflows of all namespaces."""

    def __init__(self, store: Store, clock: Clock, triggers: TriggerBook, namespace_name: Callable[[int], str]) -> None:
        """Create the keeper; `namespace_name` answers the name of a namespace that exists."""
        self._store = store
        self._clock = clock
        self._triggers = triggers
        self._namespace_name = namespace_name
        self._by_no: dict[int, LiveWorkflow] = {}
        self._by_name: dict[tuple[int, str], LiveWorkflow] = {}
        self._compiled: OrderedDict[tuple[int, int], Definition] = OrderedDict()
        self.changing = asyncio.Lock()  # also held for pauses, so that memory follows the order of the commits
        self.queue_exists: Callable[[int, str], bool] = lambda _, __: True

    async def start(self) -> None:
        """Load what is live."""
        for no, workflow_id, namespace_no, name, active, *rest in await self._store.rows("all_workflows"):
            self._remember(LiveWorkflow(no, workflow_id, namespace_no, name, bool(active), *rest))
        await self._triggers.start()

    # --- looking -----------------------------------------------------------------------------------------------------

    def get(self, namespace_no: int, name: str) -> LiveWorkflow:
        """Answer a workflow.

        Raises:
            NotFoundError: there is none.
        """
        found = self._by_name.get((namespace_no, name))
        if found is None:
            raise NotFoundError(
                f"there is no workflow {name!r}; `taskforgectl workflow list` shows what there is",
                metadata={"workflow": name},
            )
        return found

    def find(self, namespace_no: int, name: str) -> LiveWorkflow | None:
        """Answer a workflow, None when there is none."""
        return self._by_name.get((namespace_no, name))

    def by_no(self, workflow_no: int) -> LiveWorkflow | None:
        """Answer a live workflow by its number."""
        return self._by_no.get(workflow_no)

    def name_of(self, workflow_no: int) -> str | None:
        """Answer the name of a live workflow."""
        found = self._by_no.get(workflow_no)
        return None if found is None else found.name

    async def stored_name(self, workflow_no: int) -> str:
        """Answer the name of a workflow, deleted or not."""
        live = self.name_of(workflow_no)
        if live is not None:
            return live
        row = await self._store.row("workflow_by_no", workflow_no)
        return "" if row is None else row[3]

    def page(self, namespace_no: int, *, after: str, limit: int) -> Sequence[LiveWorkflow]:
        """Answer up to `limit` workflows whose names sort behind `after`."""
        names = sorted(name for no, name in self._by_name if no == namespace_no and name > after)
        return [self._by_name[namespace_no, name] for name in names[:limit]]

    async def version(self, workflow: LiveWorkflow, number: int) -> VersionRecord:
        """Answer a version with its source; 0 means the newest.

        Raises:
            NotFoundError: there is none.
        """
        row = await self._store.row("version", workflow.no, number or workflow.latest)
        if row is None:
            raise NotFoundError(
                f"workflow {workflow.name!r} has no version {number}; the newest is {workflow.latest}",
                metadata={"workflow": workflow.name, "version": str(number)},
            )
        return VersionRecord(*row)

    async def versions(self, workflow: LiveWorkflow, *, before: int, limit: int) -> Sequence[VersionRecord]:
        """Answer up to `limit` versions below `before` (0: all), newest first, without sources."""
        rows = await self._store.rows("list_versions", workflow.no, before or workflow.latest + 1, limit)
        return [VersionRecord(*row) for row in rows]

    async def definition(self, workflow_no: int, number: int) -> Definition:
        """Answer a compiled version.

        Raises:
            NotFoundError: there is none.
        """
        key = (workflow_no, number)
        found = self._compiled.get(key)
        if found is not None:
            self._compiled.move_to_end(key)
            return found
        row = await self._store.row("version", *key)
        if row is None:
            raise NotFoundError(f"version {number} of workflow number {workflow_no} is not stored")
        return self._keep_compiled(key, compile_definition(VersionRecord(*row).source))

    async def model(self, workflow_no: int, version: int) -> WorkflowModel:
        """Answer the model that a run of a version executes."""
        return (await self.definition(workflow_no, version)).model

    async def graph(self, namespace_no: int, name: str, number: int = 0, *, source: str = "") -> Graph:
        """Answer the graph of a version, 0 means the newest, or of a definition that need not be stored.

        Raises:
            NotFoundError: there is no such workflow or version.
            InvalidArgumentError: the definition is not valid, or both it and a name or number are given.
        """
        if source:
            if name or number:
                message = "excludes name and number"
                raise InvalidArgumentError(f"source {message}", violations=[Violation("source", message)])
            return graph_of(compile_definition(source).model)
        workflow = self.get(namespace_no, name)
        version = await self.version(workflow, number)
        return graph_of(await self.model(workflow.no, version.number), version.number)

    def _keep_compiled(self, key: tuple[int, int], definition: Definition) -> Definition:
        self._compiled[key] = definition
        if len(self._compiled) > _COMPILED_MAX:
            self._compiled.popitem(last=False)
        return definition

    # --- changing ----------------------------------------------------------------------------------------------------

    def validate(self, source: str) -> tuple[str, Sequence[Violation]]:
        """Answer the name and the problems of a definition; stores nothing."""
        try:
            return compile_definition(source).name, ()
        except InvalidArgumentError as error:
            return "", error.violations or (Violation("", error.message),)

    async def apply(self, namespace_no: int, source: str, by: str) -> Applied:
        """Store a definition as a new version, unless it equals the newest one.

        Raises:
            InvalidArgumentError: it is not valid; nothing is stored.
        """
        definition = compile_definition(source)
        about("workflow", definition.name)
        self._check_surroundings(namespace_no, definition)
        async with self.changing:  # so that two equal definitions at once make one version
            known = self._by_name.get((namespace_no, definition.name))
            if known is not None:
                newest = await self.version(known, 0)
                if newest.content_hash == definition.content_hash and newest.profile == definition.profile:
                    return Applied(await self._apply_again(known, by), newest, changed=False)
            return await asyncio.shield(self._store_version(namespace_no, known, definition, source, by))

    async def _apply_again(self, known: LiveWorkflow, by: str) -> LiveWorkflow:
        """Answer for a definition that is applied already: from now on with the authority of this token."""
        if known.applied_by == by:
            return known
        changed = replace(known, applied_by=by)
        await self._store.journal.execute(lambda c: c.execute(QUERIES["set_applied_by"], (by, known.no)))
        self._remember(changed)
        return changed

    def _check_surroundings(self, namespace_no: int, definition: Definition) -> None:
        """Hold a definition against its namespace: the queue exists, and its concurrency group means one thing."""
        queue = definition.model.queue
        if not self.queue_exists(namespace_no, queue):
            message = f"there is no queue {queue!r}; `taskforgectl queue set {queue}` creates it"
            raise InvalidArgumentError(message, reason="INVALID_DEFINITION", violations=[Violation("queue", message)])
        mine = definition.concurrency
        if mine is None:
            return
        for (number, name), other in self._by_name.items():
            theirs: Json = load_stored(other.concurrency) if other.concurrency else None
            is_rival = number == namespace_no and name != definition.name and theirs and theirs[0] == mine[0]
            if is_rival and theirs != list(mine):
                message = f"workflow {name!r} has the same group with limit {theirs[1]} and on_limit {theirs[2]}"
                raise InvalidArgumentError(
                    f"concurrency: {message}; say the same, or name another group",
                    reason="INVALID_DEFINITION",
                    violations=[Violation("concurrency", message)],
                )

    async def _store_version(
        self, namespace_no: int, known: LiveWorkflow | None, definition: Definition, source: str, by: str
    ) -> Applied:
        now = self._clock.now()
        workflow = self._next_workflow(namespace_no, known, definition, now, by)
        version = VersionRecord(
            workflow.no, workflow.latest, definition.content_hash, source, definition.profile, now, by
        )
        identity = self._identity(workflow)
        declared = self._triggers.declare(namespace_no, workflow.no, identity, definition, is_active=workflow.active)
        await self._store.journal.execute(lambda c: _save_version(c, workflow, version, declared, is_new=known is None))
        self._keep_compiled((workflow.no, workflow.latest), definition)
        self._remember(workflow)
        self._triggers.adopt(declared)
        return Applied(workflow, version, changed=True)

    def _identity(self, workflow: LiveWorkflow) -> str:
        return f"{self._namespace_name(workflow.namespace_no)}/{workflow.name}"

    def _next_workflow(
        self, namespace_no: int, known: LiveWorkflow | None, definition: Definition, now: int, by: str
    ) -> LiveWorkflow:
        concurrency = "" if definition.concurrency is None else to_text(list(definition.concurrency))
        kept = definition.retention
        retention = "" if kept is None else to_text({"age_s": kept.age_s, "count": kept.count})
        if known is not None:
            known = replace(known, latest=known.latest + 1, updated_at=now, applied_by=by)
            return replace(known, concurrency=concurrency, retention=retention)
        no, workflow_id = self._store.next_no("workflows"), new_id("wf", now)
        return LiveWorkflow(
            *(no, workflow_id, namespace_no, definition.name),
            active=True,
            latest=1,
            created_at=now,
            updated_at=now,
            concurrency=concurrency,
            applied_by=by,
            retention=retention,
        )

    async def set_active(self, workflow: LiveWorkflow, *, active: bool) -> LiveWorkflow:
        """Switch a workflow's triggers on or off. Idempotent."""
        if workflow.active == active:
            return workflow
        async with self.changing:
            before = self._still(workflow)
            changed = replace(before, active=active, updated_at=self._clock.now())
            row = (int(active), changed.updated_at, workflow.no)
            crons = [t.no for t in self._triggers.of_workflow(workflow.no) if t.kind == "cron" and not t.paused_at]
            wall = self._clock.wall()

            def write(connection: Connection) -> None:
                connection.execute(QUERIES["set_active"], row)
                change_schedules(connection, crons, wall, is_free=active)

            if not active:  # before the commit: what is decided from here on may be written behind it
                self._remember(changed)
            try:
                await self._store.journal.execute(write)
            except TaskforgeError:
                self._remember(before)
                raise
            self._remember(changed)
            self._triggers.on_schedule()
        return changed

    async def delete(self, workflow: LiveWorkflow) -> None:
        """Remove a workflow from what is live; its versions and runs stay.

        Raises:
            NotFoundError: it was deleted meanwhile.
            FailedPreconditionError: it has open runs.
        """
        async with self.changing:
            self._still(workflow)  # else its name may be another workflow's by now
            now = self._clock.now()
            retire = self._triggers.retire(workflow.no, self._identity(workflow), now)
            # Forgotten first, so that nothing starts a run while it is being deleted; back again when it cannot be.
            live = self._by_no.pop(workflow.no)
            self._by_name.pop((live.namespace_no, live.name), None)
            triggers = self._triggers.forget_workflow(workflow.no)
            try:
                await self._store.journal.execute(lambda c: _delete_workflow(c, workflow, now, retire))
            except BaseException:
                self._remember(live)
                for trigger in triggers:
                    self._triggers.remember(trigger)
                raise
            self._triggers.on_schedule()

    def _still(self, workflow: LiveWorkflow) -> LiveWorkflow:
        """Answer a workflow as it is now; it may have been deleted while its caller waited for its turn."""
        found = self._by_no.get(workflow.no)
        if found is None:
            raise NotFoundError(f"there is no workflow {workflow.name!r}", metadata={"workflow": workflow.name})
        return found

    def _remember(self, workflow: LiveWorkflow) -> None:
        self._by_no[workflow.no] = workflow
        self._by_name[workflow.namespace_no, workflow.name] = workflow


def _save_version(
    connection: Connection,
    workflow: LiveWorkflow,
    version: VersionRecord,
    declared: Declaration,
    *,
    is_new: bool,
) -> None:
    now = version.created_at
    if is_new:
        place = (workflow.no, workflow.id, workflow.namespace_no, workflow.name)
        row = (*place, now, now, workflow.concurrency, workflow.applied_by, workflow.retention)
        connection.execute(QUERIES["insert_workflow"], row)
    else:
        said = (workflow.concurrency, workflow.applied_by, workflow.retention)
        bump = (version.number, now, *said, workflow.no, version.number - 1)
        moved = connection.execute(QUERIES["bump_workflow"], bump)
        if moved.rowcount != 1:
            raise ConflictError(f"workflow {workflow.name!r} was changed by somebody else; apply again")
    connection.execute(QUERIES["insert_version"], version)
    declared.write(connection)


def _delete_workflow(
    connection: Connection, workflow: LiveWorkflow, now: int, retire: Callable[[Connection], None]
) -> None:
    if connection.execute(QUERIES["open_runs_of_workflow"], (workflow.no,)).fetchone()[0]:
        raise FailedPreconditionError(
            f"workflow {workflow.name!r} has open runs; wait for them or cancel them first",
            metadata={"workflow": workflow.name},
        )
    retire(connection)
    connection.execute(QUERIES["delete_workflow"], (now, workflow.no))
