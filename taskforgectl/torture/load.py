"""Who works with the daemon: clients that start runs, senders, publishers, people who steer, operators, watchers."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from taskforge.v1 import run_pb2

from taskforgectl.errors import BROKEN
from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.outside import Sender
from taskforgectl.torture.plan import Plan, Wish
from taskforgectl.torture.wire import TERMINAL, RefusedError, Wire, message, state_name
from taskforgectl.torture.workflows import SCHEDULED, TENANT

__all__ = ["NAMESPACES", "Load"]

NAMESPACES = ("default", TENANT)
OPEN_MAX = 120
"""Open runs from which on nobody starts further ones."""

_CLIENTS = 3
_SENDERS = 2
_STEERERS = 2
_WATCHERS = 3
_NAP_S = 0.1
_AT_ONCE = 12
"""Runs that somebody who steers looks at in one go."""

_TOO_LATE = frozenset({"FAILED_PRECONDITION", "INVALID_ARGUMENT", "ABORTED", "NOT_FOUND", "ALREADY_EXISTS"})
"""What people are told who act at random."""

_OPEN = [run_pb2.Run.STATE_SCHEDULED, run_pb2.Run.STATE_PENDING, run_pb2.Run.STATE_RUNNING, run_pb2.Run.STATE_PAUSED]


class Load:
    """Everybody at once.

    Args:
        plan: what they want.
        wire: how they ask for it.
        sender: sends webhooks.
        ledger: learns what they were told.
        rate: runs and events per second that they ask for.

    Attributes:
        is_over: nobody starts anything any more; people only help what is open to its end.
        open_runs: how many there are, as somebody has told who looks.
        fresh_runs: acknowledged, and not looked for since; `fresh_events` likewise.
        last_told: the newest event that the watcher of events has seen.
    """

    def __init__(self, plan: Plan, wire: Wire, sender: Sender, ledger: Ledger, rate: float) -> None:
        self._plan = plan
        self._wire = wire
        self._sender = sender
        self._ledger = ledger
        self._rate = rate
        self.is_over = False
        self.open_runs = 0
        self.acts: Counter[str] = Counter()
        self.fresh_runs: set[str] = set()
        self.fresh_events: set[str] = set()
        self.last_told = ""

    def starters(self) -> list[Callable[[], Awaitable[None]]]:
        """Answer those who go home when it is over."""
        clients = [self._actor(self._client, number) for number in range(1, _CLIENTS + 1)]
        senders = [self._actor(self._send, number) for number in range(_SENDERS)]
        return [*clients, *senders, self._publish, self._operate, self._requeue]

    def helpers(self) -> list[Callable[[], Awaitable[None]]]:
        """Answer those who stay until they are sent away."""
        steerers = [self._actor(self._steer, number) for number in range(_STEERERS)]
        watchers = [self._actor(self._watch_runs, number) for number in range(_WATCHERS)]
        return [*steerers, *watchers]

    @staticmethod
    def _actor(work: Callable[[int], Awaitable[None]], number: int) -> Callable[[], Awaitable[None]]:
        return lambda: work(number)

    async def _pace(self, chance: random.Random, share: float) -> None:
        """Wait until the next thing may be asked for, longer while there is much to do; no longer once it is over."""
        left = chance.expovariate(self._rate * share)
        while not self.is_over and (left > 0 or self.open_runs > OPEN_MAX):
            nap = min(left, _NAP_S) if left > 0 else _NAP_S
            await asyncio.sleep(nap)
            left -= nap

    # --- starting ----------------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        chance = self._plan.stream(f"pace {number}")
        for wish in self._plan.wishes(number):
            await self._pace(chance, 0.6 / _CLIENTS)
            if self.is_over:
                return
            for _ in range(2 if wish.again and len(wish.numbers) == 1 else 1):
                await self._ask_for(wish)

    async def _ask_for(self, wish: Wish) -> None:
        requests = [_request(wish, n) for n in wish.numbers]
        try:
            if len(requests) > 1:
                await self._ask_for_many([message("StartRun", **one) for one in requests])
                return
            request = f"r-{wish.numbers[0]}"
            self._ledger.write("asking", request=request)
            run = (await self._wire.insist("StartRun", request_id=request, **requests[0])).run
            self._acknowledge(run.id, request)
        except RefusedError as refusal:
            self._unexpected(f"{wish.workflow} {wish.numbers}", refusal)

    async def _ask_for_many(self, requests: Sequence[Any]) -> None:
        """A batch has no request id: whoever gets no answer does not know, and does not ask again."""
        self._ledger.write("batch", size=len(requests))
        for run_id in (await self._wire.once("BatchStartRuns", requests=requests)).run_ids:
            self._acknowledge(run_id)
            self._ledger.write("batched", run=run_id)

    def _acknowledge(self, run_id: str, request: str = "") -> None:
        self._ledger.write("started", run=run_id, request=request)
        self.fresh_runs.add(run_id)

    def _unexpected(self, what: str, refusal: RefusedError) -> None:
        """Whoever gave up because it is over was not refused."""
        if refusal.status not in BROKEN:
            self._ledger.violation("refusals", f"{what}: {refusal}")

    async def _send(self, number: int) -> None:
        chance = self._plan.stream(f"sender {number}")
        n = (10 + number) * 1_000_000
        while True:
            await self._pace(chance, 0.25 / _SENDERS)
            if self.is_over:
                return
            n += 1
            for _ in range(2 if chance.random() < 0.15 else 1):  # a sender that did not believe the answer
                self.fresh_events.add(await self._sender.deliver(n))

    async def _publish(self) -> None:
        chance = self._plan.stream("publisher")
        n = 20_000_000
        while True:
            await self._pace(chance, 0.15)
            if self.is_over:
                return
            n += 1
            fields = {"type": "torture.published", "data_json": json.dumps({"n": n}), "request_id": f"p-{n}"}
            self._ledger.write("publishing", request=f"p-{n}", n=n)
            for _ in range(2 if chance.random() < 0.15 else 1):
                try:
                    event = (await self._wire.insist("PublishEvent", **fields)).event
                except RefusedError as refusal:
                    self._unexpected(f"event {n}", refusal)
                    break
                self._ledger.write("published", request=f"p-{n}", event=event.id)
                self.fresh_events.add(event.id)

    # --- people who steer runs ---------------------------------------------------------------------------------------

    async def open_now(self) -> AsyncIterator[run_pb2.Run]:
        """Yield the open runs."""
        for namespace in NAMESPACES:
            async for run in self._wire.pages("ListRuns", "runs", namespace=namespace, states=_OPEN):
                yield run

    async def _steer(self, number: int) -> None:
        chance = self._plan.stream(f"steerer {number}")
        while True:
            await asyncio.sleep(0.3 if self.is_over else 0.6)
            try:
                found = [run async for run in self.open_now() if run.workflow != "mixed" or self.is_over]
                chance.shuffle(found)
                for run in found[: 5 * _AT_ONCE if self.is_over else _AT_ONCE]:
                    await self._touch(run.id, chance)
            except RefusedError as refusal:
                if refusal.status not in BROKEN and refusal.status not in _TOO_LATE:
                    self._unexpected("somebody who steers", refusal)

    async def _touch(self, run_id: str, chance: random.Random) -> None:
        run = (await self._wire.insist("GetRun", run_id=run_id)).run
        for method, fields in self._steps_to_take(run, chance):
            await self._act(method, run_id=run_id, **fields)

    async def _act(self, method: str, **fields: Any) -> Any:
        """Do something that may be too late."""
        try:
            answer = await self._wire.insist(method, **fields)
        except RefusedError as refusal:
            if refusal.status not in _TOO_LATE:
                raise
            return None
        self.acts[method] += 1
        return answer

    def _steps_to_take(self, run: run_pb2.Run, chance: random.Random) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        if run.state == run_pb2.Run.STATE_PAUSED:
            if self.is_over or chance.random() < 0.5:
                found.append(("ResumeRun", {}))
        elif not self.is_over and chance.random() < 0.05:
            found.append(("PauseRun", {"reason": "to look"}))
        if not self.is_over and chance.random() < 0.03:
            found.append(("CancelRun", {"reason": "at random"}))
        for step in run.steps:
            if step.waiting_for == "approval":
                verb = "RejectRun" if not self.is_over and chance.random() < 0.1 else "ApproveRun"
                found.append((verb, {"step": step.key}))
            elif step.waiting_for == "signal":
                found.append(("SignalRun", {"signal": step.signal, "request_id": f"{run.id}-word"}))
            elif step.state == run_pb2.StepRun.STATE_NEEDS_DECISION:
                found.append(("ResolveRun", {"step": step.key, "outcome": chance.choice([1, 2, 3])}))
        return found

    # --- operators ---------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        """Pause and let go what many depend on: the queue, a workflow, a trigger."""
        chance = self._plan.stream("operator")
        while not self.is_over:
            await asyncio.sleep(chance.uniform(0.5, 3.0))
            verb = chance.choice([self._hold_queue, self._hold_workflow, self._hold_trigger])
            await verb(chance)

    async def _rest(self, chance: random.Random) -> None:
        for _ in range(round(chance.uniform(3, 40))):
            if not self.is_over:
                await asyncio.sleep(0.1)

    async def _hold_queue(self, chance: random.Random) -> None:
        held = (await self._insist("SetQueue", name="narrow", paused=True)).queue
        await self._rest(chance)
        free = (await self._insist("SetQueue", name="narrow", paused=False)).queue
        since, until = held.update_time.ToMicroseconds(), free.update_time.ToMicroseconds()
        self._ledger.write("held", queue="narrow", since=since, until=until)

    async def _hold_workflow(self, chance: random.Random) -> None:
        await self._insist("SetWorkflowActive", name="mixed", active=False)
        await self._rest(chance)
        await self._insist("SetWorkflowActive", name="mixed", active=True)

    async def _hold_trigger(self, chance: random.Random) -> None:
        name = chance.choice(sorted(SCHEDULED))
        workflow, _, trigger = name.partition("/")
        self._ledger.write("trigger held", trigger=name)
        await self._insist("PauseTrigger", workflow=workflow, trigger=trigger, reason="to look")
        await self._rest(chance)
        await self._insist("ResumeTrigger", workflow=workflow, trigger=trigger)

    async def _insist(self, method: str, **fields: Any) -> Any:
        """Do what must be undone again, also when it is over."""
        while True:
            try:
                answer = await self._wire.insist(method, **fields)
            except RefusedError as refusal:
                if refusal.status not in BROKEN:
                    raise
                await asyncio.sleep(0.2)
                continue
            self.acts[method] += 1
            return answer

    async def _requeue(self) -> None:
        """Retry and discard dead letters, repeat runs that have ended."""
        chance = self._plan.stream("requeue")
        while not self.is_over:
            await asyncio.sleep(chance.uniform(1.0, 3.0))
            try:
                wanted = {"filter": {"workflow": chance.choice(["flaky", "everything"])}, "max_count": 2}
                if chance.random() < 0.2:
                    await self._act("DiscardDeadLetters", reason="not needed", **wanted)
                    continue
                answer = await self._act("RetryDeadLetters", **wanted)
                for one in answer.results if answer is not None else ():
                    if one.new_run_id:
                        self._acknowledge(one.new_run_id)
                await self._repeat(chance)
            except RefusedError as refusal:
                self._unexpected("somebody who retries", refusal)

    async def _repeat(self, chance: random.Random) -> None:
        ended = [run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED]
        found = (await self._wire.insist("ListRuns", workflow="everything", states=ended, page_size=20)).runs
        if not found:
            return
        run, verb = chance.choice(list(found)), chance.choice(["RetryRun", "RerunRun"])
        answer = await self._act(verb, run_id=run.id, request_id=f"{verb}-{run.id}")
        if answer is not None:
            self._acknowledge(answer.run.id)

    # --- watchers ----------------------------------------------------------------------------------------------------

    async def _watch_runs(self, number: int) -> None:
        chance = self._plan.stream(f"watcher {number}")
        while True:
            try:
                found = [run async for run in self.open_now() if run.workflow in {"everything", "flaky", "solo"}]
                if found:
                    await self._watch_run(chance.choice(found).id)
            except RefusedError as refusal:
                if refusal.status not in BROKEN:
                    self._unexpected("a watcher", refusal)
            await asyncio.sleep(0.5)

    async def _watch_run(self, run_id: str) -> None:
        """Follow a run to its end over all restarts."""
        last, streams, state = 0, 0, ""
        while True:
            streams += 1
            try:
                async for portion in self._wire.stream("WatchRun", run_id=run_id, after_sequence=last):
                    for event in portion.events:
                        if event.sequence != last + 1:
                            text = f"{run_id}: {event.sequence} came after {last} in stream {streams}"
                            self._ledger.violation("watches", text)
                        last = event.sequence
                    state = state_name(portion.run)
            except RefusedError as refusal:
                if refusal.status not in BROKEN:
                    raise
                await asyncio.sleep(0.2)
                continue
            if state in TERMINAL:
                self._ledger.write("watched", run=run_id, last=last, state=state, streams=streams)
                return

    async def watch_events(self) -> None:
        """Follow all events of the first namespace over all restarts, from the first one on."""
        cursor = "0"
        wanted = {"sources": ["webhook", "cron", "manual", "internal", "engine"]}
        while True:
            try:
                async for portion in self._wire.stream("WatchEvents", filter=wanted, after_cursor=cursor):
                    if portion.entries:
                        self._ledger.write("told", events=[one.event.id for one in portion.entries])
                        self.last_told = portion.entries[-1].event.id
                    cursor = portion.cursor or (portion.entries[-1].cursor if portion.entries else cursor)
            except RefusedError as refusal:
                if refusal.status not in BROKEN:
                    self._unexpected("the watcher of events", refusal)
                await asyncio.sleep(0.2)


def _request(wish: Wish, n: int) -> dict[str, Any]:
    return {
        "namespace": TENANT if wish.workflow == "rented" else "",
        "workflow": wish.workflow,
        "input_json": json.dumps({"n": n}),
        "priority": wish.priority,
    }
