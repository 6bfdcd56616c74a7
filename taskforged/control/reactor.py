"""From an event and the triggers that are asked to runs: the one way in which anything but a caller starts a run.

Webhooks, due times, internal events, triggers fired by hand and replays all come here. The event with its outcome,
every trigger's verdict and the runs are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskforged.clock import new_id
from taskforged.control.access import Access
from taskforged.control.judging import Judgement, NamespaceFacts, Start, judge
from taskforged.control.namespaces import Namespaces
from taskforged.control.pressure import Pressure
from taskforged.control.starting import RunRequest, Starter
from taskforged.control.trigger_book import LiveTrigger
from taskforged.control.workflows import LiveWorkflow, Workflows
from taskforged.correlation import trace_from
from taskforged.engine.events import CreateRun, rfc3339
from taskforged.engine.keys import derived_id
from taskforged.engine.model import Json
from taskforged.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from taskforged.host.admission import PENDING_RUNS
from taskforged.host.entry import PreparedRun
from taskforged.jsonvalue import to_text
from taskforged.language.definition import Definition, Source
from taskforged.store.changes import NewRun
from taskforged.store.events import EventRow, event_context, insert_event
from taskforged.store.rows import internal_event
from taskforged.store.store import Connection, Store

__all__ = ["LOOP_DETECTED", "Asked", "Group", "Reaction", "Reactor"]

LOOP_DETECTED = "trigger.loop_detected"
"""Published when a chain of events and runs has become too long to be meant."""


class Asked(NamedTuple):
    """A trigger that is asked, with the version that declares it.

    Attributes:
        refusal: why it is out of the question. Empty: it is not.
        is_proved: the sender of a webhook is proved to this trigger.
    """

    trigger: LiveTrigger
    workflow: LiveWorkflow
    definition: Definition
    source: Source
    refusal: str = ""
    is_proved: bool = True


class Group(NamedTuple):
    """The concurrency group that a trigger puts its runs into, where their workflow has none."""

    name: str
    limit: int = 1


class Reaction(NamedTuple):
    """What an event leads to, decided and not yet written. It must be written, or its runs be discarded.

    Attributes:
        event: with outcome and verdicts.
        prepared: the runs, in order.
        judgements: one for each trigger that was asked.
        refusals: reasons of runs that were asked for and cannot be.
        loop: the event that says that the chain of causes is too long.
    """

    event: EventRow
    prepared: Sequence[PreparedRun]
    judgements: Sequence[Judgement]
    refusals: Sequence[str]
    loop: EventRow | None = None

    @property
    def run_ids(self) -> list[str]:
        """Answer the ids of the runs."""
        return [one.run.run_id for one in self.prepared]


class Reactor:
    """Asks triggers and prepares what they want."""

    def __init__(
        self,
        *,
        store: Store,
        access: Access,
        namespaces: Namespaces,
        workflows: Workflows,
        starter: Starter,
        listens: Callable[[int, str], bool],
        pressure: Pressure,
        depth_max: int,
    ) -> None:
        """Create a reactor; `depth_max` limits the runs in a chain of causes."""
        self._store = store
        self._access = access
        self._namespaces = namespaces
        self._workflows = workflows
        self._starter = starter
        self._listens = listens
        self._pressure = pressure
        self._depth_max = depth_max
        self.on_published: Callable[[], None] = lambda: None

    async def asked(self, trigger: LiveTrigger) -> Asked | None:
        """Answer a trigger with its definition; None when its workflow is gone."""
        workflow = self._workflows.by_no(trigger.workflow_no)
        if workflow is None:
            return None
        definition = await self._workflows.definition(workflow.no, workflow.latest)
        source = definition.sources().get(trigger.key)
        if source is None or source.kind != trigger.kind:
            return None  # another version was applied just now
        return Asked(trigger, workflow, definition, source, _resting(trigger, workflow))

    def again(self, one: Asked, trigger: LiveTrigger | None) -> Asked:
        """Answer what was asked before something was waited for, with a pause or a removal that came meanwhile."""
        if one.refusal:
            return one
        workflow = self._workflows.by_no(one.workflow.no)
        if trigger is None or workflow is None:
            return one._replace(refusal="the trigger was removed just now")
        return one._replace(refusal=_resting(trigger, workflow))

    def react(
        self,
        event: EventRow,
        asked: Sequence[Asked],
        *,
        group: Group | None = None,
        schedule_no: int | None = None,
        skip: Callable[[int], str] = lambda _: "",
        read: tuple[Json, str] | None = None,
    ) -> Reaction:
        """Ask triggers and prepare the runs that they want.

        Args:
            event: what happened; outcome and verdicts are filled in.
            asked: the triggers.
            group: of the runs.
            schedule_no: the cron trigger of which a due time starts them.
            skip: says why no run may start in a namespace now; empty: one may.
            read: what the body means and how that is written, where somebody has read it already.

        Raises:
            ResourceExhaustedError: too many runs wait, or the disk is nearly full; nothing is prepared.
        """
        self._pressure.check()
        context = event_context(event, read)
        looping = self._is_looping(event)
        prepared: list[PreparedRun] = []
        judgements: list[Judgement] = []
        records: list[dict[str, Json]] = []
        refusals: list[str] = []
        try:
            for one in asked:
                judgement = Judgement(reason=_LOOPS) if looping else self._judge(one, context)
                items = [
                    self._start(event, context, one, start, prepared, group, schedule_no, skip)
                    for start in judgement.starts
                ]
                refusals += [item["reason"] for item in items if item["reason"]]
                judgements.append(judgement)
                records.append(_record(one, judgement, items))
        except BaseException:
            self._starter.discard(prepared)
            raise
        outcome = "ACCEPTED" if prepared else "FILTERED"
        decided = event._replace(outcome=outcome, verdicts=to_text(records))
        return Reaction(decided, prepared, judgements, refusals, self._loop_event(event) if looping else None)

    def _judge(self, one: Asked, context: Json) -> Judgement:
        if one.refusal:
            return Judgement(reason=one.refusal)
        return judge(one.definition, one.source, context, self._open_namespaces(one))

    def _open_namespaces(self, one: Asked) -> Sequence[NamespaceFacts] | None:
        """Answer the namespaces that the token may use with which the version was applied; None when it is dead."""
        if one.source.for_each is None or not one.source.for_each.is_namespaces:
            return ()
        principal = self._access.live_principal(one.workflow.applied_by)
        if principal is None:
            return None
        return [NamespaceFacts(view.name, view.labels) for view in self._namespaces.seen_by(principal)]

    def _start(
        self,
        event: EventRow,
        context: Json,
        one: Asked,
        start: Start,
        prepared: list[PreparedRun],
        group: Group | None,
        schedule_no: int | None,
        skip: Callable[[int], str],
    ) -> dict[str, Any]:
        """Prepare the run of one item; what its workflow itself refuses is part of the verdict, too."""
        namespace_no = self._access.namespace_no(start.namespace) if start.namespace else one.workflow.namespace_no
        record = {"index": start.index, "namespace": start.namespace, "run_id": "", "reason": start.reason}
        if namespace_no is None:
            record["reason"] = f"there is no namespace {start.namespace!r} any more"
        if not record["reason"] and namespace_no is not None:
            record["reason"] = skip(namespace_no)
        if record["reason"] or namespace_no is None:
            return record
        try:
            run = self._starter.prepare(self._request(event, context, one, start, namespace_no, group, schedule_no))
        except (InvalidArgumentError, FailedPreconditionError) as error:
            return {**record, "reason": error.message}
        except ResourceExhaustedError as error:
            if not start.namespace and not _fills_the_line(prepared, error):
                raise  # all of it waits
            return {**record, "reason": error.message}  # one tenant without room must not hold up the others
        prepared.append(run)
        return {**record, "run_id": run.run.run_id}

    def _request(
        self,
        event: EventRow,
        context: Json,
        one: Asked,
        start: Start,
        namespace_no: int,
        group: Group | None,
        schedule_no: int | None,
    ) -> RunRequest:
        workflow = one.workflow
        trace = trace_from(context["headers"])
        create = CreateRun(
            run_id=new_id("run", event.created_at),
            namespace="",
            workflow="",
            version=workflow.latest,
            input=start.input,
            trigger=one.trigger.key,
            event_id=event.id,
            correlation_id=trace.correlation_id or event.id,
            created_by=event.created_by,
            hops=event.depth + 1,
            traceparent=trace.traceparent,
            tracestate=trace.tracestate,
            group="" if group is None else group.name,
            group_limit=0 if group is None else group.limit,
        )
        new = NewRun(namespace_no, workflow.no, event.no, trigger_no=schedule_no)
        return RunRequest(workflow, workflow.latest, one.definition.model, new, create, context)

    def discard(self, reactions: Sequence[Reaction]) -> None:
        """Forget what will not be written."""
        for reaction in reactions:
            self._starter.discard(reaction.prepared)

    async def write(self, reactions: Sequence[Reaction], store: Callable[[Connection], None] | None = None) -> None:
        """Write reactions in one transaction. `store` comes first, and stores the events unless it is None.

        Raises:
            ConflictError: a guard refused it; nothing is written.
        """
        loops = [one.loop for one in reactions if one.loop is not None]

        def write(connection: Connection) -> None:
            if store is not None:
                store(connection)
            else:
                for one in reactions:
                    insert_event(connection, one.event, None)
            for loop in loops:
                insert_event(connection, loop, None)

        await self._starter.create([run for one in reactions for run in one.prepared], write)
        if any(loop.outcome == "PENDING" for loop in loops):
            self.on_published()

    # --- loops -------------------------------------------------------------------------------------------------------

    def _is_looping(self, event: EventRow) -> bool:
        """Whether the chain of causes is too long. The event that says so may start one run more, and that is all."""
        return event.depth > self._depth_max or (event.depth == self._depth_max and event.type != LOOP_DETECTED)

    def _loop_event(self, event: EventRow) -> EventRow | None:
        if event.depth != self._depth_max:
            return None
        data = {
            "event_id": event.id,
            "type": event.type,
            "depth": event.depth,
            "message": f"the event has {event.depth} runs in the chain of its causes; no trigger was asked",
        }
        is_heard = self._listens(event.namespace_no, LOOP_DETECTED)
        return internal_event(
            *(self._store.next_no("events"), derived_id("evt", event.created_at, event.id, 1), event.namespace_no),
            *(LOOP_DETECTED, data, event.created_at),
            source="engine",
            outcome="PENDING" if is_heard else "UNMATCHED",
            depth=event.depth,
            run_no=event.run_no,
        )


def _fills_the_line(prepared: Sequence[PreparedRun], error: ResourceExhaustedError) -> bool:
    """Whether one event wants more runs than may ever wait at once: it would wait for room for ever."""
    return error.reason == PENDING_RUNS and len(prepared) >= int(error.metadata["limit"])


_LOOPS = "the chain of events and runs that led here is too long; it looks like a loop"


def _resting(trigger: LiveTrigger, workflow: LiveWorkflow) -> str:
    if trigger.paused_at is not None:
        why = f": {trigger.pause_reason}" if trigger.pause_reason else ""
        return f"the trigger is paused since {rfc3339(trigger.paused_at)}{why}"
    return "" if workflow.active else "the workflow is not active"


def _record(one: Asked, judgement: Judgement, items: Sequence[Mapping[str, Any]]) -> dict[str, Json]:
    """Answer a verdict as it is stored: what is empty is left out, except what every reader asks for."""
    started = [item["run_id"] for item in items if item["run_id"]]
    reason = judgement.reason
    if not judgement.has_items and items:
        reason = items[0]["reason"]
    elif items and not started:
        reason = f"none of {len(items)} items could be started, the first: {items[0]['reason']}"
    record: dict[str, Json] = {
        "workflow": one.workflow.name,
        "version": one.workflow.latest,
        "trigger": one.trigger.key,
        "matched": bool(started),
        "reason": reason,
        "run_id": started[0] if started else "",
    }
    if not one.is_proved:
        record["unproved"] = True  # a replay must not do what the sender could not
    if judgement.clause:
        record |= {"clause": judgement.clause, "values": dict(judgement.values)}
    if judgement.has_items:
        record["items"] = [dict(item) for item in items]
    return record
