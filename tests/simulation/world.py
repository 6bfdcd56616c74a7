"""A simulated world: a daemon that lives, dies and comes back, people and programs around it, and one seed.

`World(seed).run()` plays two acts. In the first everything goes wrong: crashes at any instant and between any two
commits, also while it starts; a disk that is full now and then; executors that fail, stall and answer late; wall clocks
that jump; facts about attempts of the past; callers that repeat what was not answered. In the second the weather is
fair, and people do what runs wait for, until every run has ended. Then the books are checked (`checks`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from random import Random
from typing import Any

from simulation import checks
from simulation.daemon import ROOT, Boot, Limits
from simulation.definitions import SIGNALS, library
from simulation.outside import Outside, Violation, expect
from simulation.virtual import Crash, Disk, Faults, Time, VirtualLoop, bury, ruled
from taskforged.control.delivery import Delivery
from taskforged.control.publishing import Publication
from taskforged.control.repeats import RerunRequest
from taskforged.control.runs import StartRequest
from taskforged.engine.events import (
    ApproveStep,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    Fact,
    RejectStep,
    ResolveStep,
    ResumeRun,
    SignalRun,
    TimerFired,
)
from taskforged.errors import (
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    TaskforgeError,
    UnavailableError,
)
from taskforged.store.runs import LoadedRun, RunStore
from taskforged.testing.people import People

__all__ = ["Report", "SimulationError", "World"]

_ROUNDS_MAX = 400
_BOOTS_MAX = 60


class SimulationError(AssertionError):
    """A world went wrong. The message says how to see it again."""

    def __init__(self, seed: int, reason: str) -> None:
        super().__init__(f"seed {seed}: {reason}\nagain: make simulate HOST={seed}")
        self.seed = seed
        self.reason = reason


@dataclass(frozen=True)
class Report:
    """How a world went."""

    seed: int
    digest: str
    runs: int
    commits: int
    boots: int
    crashes: int
    seen: Counter[str]


class World:
    """One world."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = self._rng = Random(f"world {seed}")
        self.limits = Limits(
            pool=rng.choice((1, 3, 16)), runs=rng.choice((0, 0, 2)), steps=rng.choice((0, 0, 2)), narrow=1
        )
        self.time = Time()
        self.disk = Disk()
        self.disk.on_commit = lambda: checks.after_commit(self)
        self.outside = Outside(self.disk, Random(f"outside {seed}"), pool=self.limits.pool)
        self.outside.namespace_limits[1] = self.limits.steps
        self.outside.queue_limits[1, "narrow"] = self.limits.narrow
        self.definitions = library(rng)
        self.acked: dict[str, Any] = {}
        self.ended: dict[int, tuple[str, int]] = {}
        self.seen: Counter[str] = Counter()
        self.boots = self.crashes = 0
        self._people = People(rng)
        self._actions = rng.randint(6, 22)
        self._crashes_left = rng.choice((0, 1, 2, 4, 8))
        self._full = rng.choice((0.0, 0.0, 0.05, 0.3))
        self._jumps = rng.random() < 0.3
        self._unanswered: list[tuple[str, str]] = []
        self._calm = False
        self._done = False

    def run(self) -> Report:
        """Play it to its end.

        Raises:
            SimulationError: a promise was broken.
        """
        try:
            with ruled(self.time, Random(f"ids {self.seed}")):
                while not self._done:
                    self._live_once()
                checks.at_the_end(self)
        except Exception as error:
            reason = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
            raise SimulationError(self.seed, reason) from error
        seen = self.seen + self.outside.seen
        return Report(
            self.seed,
            self.disk.digest(),
            self.disk.value("SELECT count(*) FROM runs"),
            self.disk.commits,
            self.boots,
            self.crashes,
            seen + checks.coverage(self),
        )

    def _live_once(self) -> None:
        self.boots += 1
        expect(self.boots < _BOOTS_MAX, "it does not come to an end")
        loop = VirtualLoop(self.time)
        faults = Faults(self._rng, full=0.0 if self._calm else self._full, crash_in=self._draw_crash(loop))
        try:
            loop.run_until_complete(self._life(faults))
        except Crash:
            self.crashes += 1
            self.seen["crash"] += 1
        finally:
            self.outside.died()
            found = list(loop.faults)
            bury(loop)
        if self.disk.connection.in_transaction:
            self.disk.connection.execute("ROLLBACK")
        if self.outside.violation is not None:
            raise self.outside.violation
        expect(not found, f"nobody has looked after {found}")
        self.time.now_s += self._rng.choice((0.1, 1.0, 30.0, 700.0))  # how long it was down

    def _draw_crash(self, loop: VirtualLoop) -> int | None:
        if self._calm or not self._crashes_left:
            return None
        self._crashes_left -= 1
        draw = self._rng.random()
        if draw < 0.4:
            loop.call_later(self._rng.choice((0.001, 0.01, 0.1, 1.0, 10.0)) * self._rng.random(), _die)
            return None
        return self._rng.choice((2, 8, 30, 80)) if draw < 0.6 else self._rng.randint(0, 60)

    async def _life(self, faults: Faults) -> None:
        boot = Boot(self.disk, faults, self.time, self.outside, self.limits)
        try:
            await boot.start()
            await boot.furnish(self.definitions)
        except (ResourceExhaustedError, UnavailableError):  # no room: the service manager starts it again
            self.seen["start refused"] += 1
            faults.full = self._full = 0.0
            await boot.stop(0.0)
            return
        act = _Act(self, boot, self._rng, self._people)
        while self._actions > 0 and not self._calm:
            self._actions -= 1
            act.begin()
            await asyncio.sleep(self._rng.choice((0.0, 0.001, 0.02, 0.5, 5.0, 45.0)))
            if self._jumps and self._rng.random() < 0.1:
                self.seen["clock jump"] += 1
                self.time.jump(self._rng.choice((3600.0, -3600.0, -10.0, 0.5, -700.0, 86_400.0)))
            if self._rng.random() < 0.03:
                self.seen["stop"] += 1
                await boot.stop(self._rng.choice((0.0, 1.0, 10.0)))
                return
        if not self._calm:
            self._calm, self._crashes_left = True, 0
            await boot.stop(1.0)  # the second act begins with a start in fair weather
            return
        self.outside.trouble = 0.3
        await act.calm_down()
        await asyncio.sleep(10.0)  # what is on disk is known in memory a moment later
        await checks.in_memory(self, boot)
        await boot.stop(1.0)
        self._done = True


def _die() -> None:
    raise Crash


class _Act:
    """What people and programs do to one boot."""

    def __init__(self, world: World, boot: Boot, rng: Random, people: People) -> None:
        self._world = world
        self._boot = boot
        self._rng = rng
        self._people = people
        self._runs = RunStore(boot.store)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- callers -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let somebody do something; they wait for the answer, and we do not."""
        draw, rng = self._rng.random(), self._rng
        if draw < 0.4:
            work = self._start()
        elif draw < 0.5:
            work = self._deliver()
        elif draw < 0.58:
            work = self._publish()
        elif draw < 0.64:
            work = self._batch()
        elif draw < 0.9:
            work = self._steer()
        else:
            work = self._stale()
        task = asyncio.get_running_loop().create_task(self._told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if rng.random() < 0.05:
            asyncio.get_running_loop().call_later(rng.choice((0.0, 0.0005, 0.01)), task.cancel)  # an impatient caller

    async def _told(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except TaskforgeError as error:
            self._world.seen[f"refused {type(error).__name__}"] += 1
        except Violation as violation:
            self._world.outside.violation = self._world.outside.violation or violation

    def _ack(self, key: str, answer: Any) -> None:
        known = self._world.acked.setdefault(key, answer)
        expect(known == answer, f"{key} was answered with {known}, and then with {answer}")

    def _some_id(self, kind: str) -> str:
        """Answer an id for a request: mostly a new one, else one that was sent before, answered or not."""
        used = f"{kind}{self._rng.randint(0, 6)}"
        return used if self._rng.random() < 0.3 else f"{kind}{self._world.seed}-{self._rng.getrandbits(40)}"

    async def _start(self) -> None:
        name = self._rng.choice(list(self._world.definitions))
        request_id = self._some_id(f"start-{name}-")
        later = self._rng.choice((0, 0, 0, 0, 20))
        run_at = self._boot.base.clock.wall() + later * 1_000_000 if later and "-" in request_id[9:] else 0
        request = StartRequest(name, '{"n": 1}', request_id=request_id, run_at=run_at)
        view = await self._boot.controls.runs.start(ROOT, 1, request, wait_s=self._rng.choice((0, 0, 5)))
        self._ack(f"request {request_id}", view.run.run_id)
        self._ack(f"run {view.run.run_id}", name)

    async def _batch(self) -> None:
        names = [self._rng.choice(list(self._world.definitions)) for _ in range(self._rng.randint(2, 5))]
        ids = await self._boot.controls.runs.start_batch(ROOT, [(1, StartRequest(name, "{}")) for name in names])
        for name, run_id in zip(names, ids, strict=True):
            self._ack(f"run {run_id}", name)

    async def _deliver(self) -> None:
        delivery_id = self._some_id("delivery-")
        body = json.dumps({"id": delivery_id}).encode()
        headers = {"content-type": "application/json", "x-delivery": delivery_id}
        delivery = Delivery("default", "hook", headers, {}, body, "application/json", "127.0.0.1")
        receipt = await self._boot.inbox.receive(delivery)
        if receipt.status not in (200, 202):
            self._world.seen[f"webhook {receipt.status}"] += 1
            return
        self._ack(f"delivery {delivery_id}", (receipt.body["event_id"], sorted(receipt.body["run_ids"])))
        for run_id in receipt.body["run_ids"]:
            self._ack(f"run {run_id}", await self._name_of(run_id))

    async def _name_of(self, run_id: str) -> str:
        loaded = await self._runs.load_by_id(run_id)
        expect(loaded, f"{run_id} was answered and is not stored")
        return loaded.run.workflow

    async def _publish(self) -> None:
        request_id = self._some_id("publish-")
        row = await self._boot.controls.bus.publish(ROOT, 1, Publication("news", '{"n": 1}'), request_id=request_id)
        self._ack(f"publication {request_id}", row.id)
        self._ack(f"event {row.id}", "news")

    # --- people ------------------------------------------------------------------------------------------------------

    async def _some_run(self) -> LoadedRun | None:
        """Answer a run, mostly one that is going."""
        which = "WHERE ended_at IS NULL" if self._rng.random() < 0.8 else ""
        rows = await self._boot.store.read(lambda c: c.execute(f"SELECT no FROM runs {which} ORDER BY no").fetchall())
        return await self._runs.load(self._rng.choice(rows)[0]) if rows else None

    async def _steer(self) -> None:
        loaded = await self._some_run()
        if loaded is None:
            return
        run_id, steering, repeats = loaded.run.run_id, self._boot.controls.steering, self._boot.controls.repeats
        draw = self._rng.random()
        if draw < 0.2:
            await steering.cancel(ROOT, run_id, "by a person")
        elif draw < 0.4:
            await steering.pause(ROOT, run_id, "by a person")
        elif draw < 0.5:
            await steering.resume(ROOT, run_id, "by a person")
        elif draw < 0.6:
            await repeats.retry(ROOT, run_id, self._some_id("retry-"))
        elif draw < 0.65:
            await repeats.rerun(ROOT, RerunRequest(run_id))
        else:
            for fact in self._people.awaited(loaded.run) or self._people.anything(loaded.run)[2:]:
                await self._do(run_id, fact)

    async def _do(self, run_id: str, fact: Fact) -> None:
        """Do what a fact says through the door that people use."""
        steering = self._boot.controls.steering
        match fact:
            case ResumeRun():
                await steering.resume(ROOT, run_id, "")
            case SignalRun(name):
                await steering.signal(ROOT, run_id, name if name in SIGNALS else "go", "{}", "")
            case ApproveStep(key):
                await steering.answer(ROOT, run_id, key, approved=True)
            case RejectStep(key):
                await steering.answer(ROOT, run_id, key, approved=False)
            case ResolveStep(key, outcome):
                if outcome == "retry":
                    self._world.outside.decided_again(f"{run_id}/{key}")
                await steering.resolve(ROOT, run_id, key, outcome)

    async def _stale(self) -> None:
        """Report something about an attempt that is over or never was: it must be refused and change nothing."""
        loaded = await self._some_run()
        if loaded is None:
            return
        run = loaded.run
        old = [seq for seq in range(1, run.sequence + 1) if seq not in run.commands and seq not in run.timers]
        seq = self._rng.choice([*old, 0])
        error = {"code": "late", "message": "late"}
        facts = (
            AttemptCompleted(seq, {"late": True}),
            AttemptFailed(seq, error, retryable=True),
            AttemptLost(seq, "late"),
            TimerFired(seq),
        )
        try:
            await self._boot.host.runner.deliver(loaded.row.no, self._rng.choice(facts))
        except (FailedPreconditionError, NotFoundError):
            self._world.seen["fenced"] += 1
            return
        raise Violation(f"{run.run_id} has accepted a fact about {seq}, which is over")

    # --- fair weather ------------------------------------------------------------------------------------------------

    async def calm_down(self) -> None:
        """Give every run what it waits for, until all have ended."""
        await asyncio.sleep(1300.0)  # due times in fair weather
        await self._boot.close_schedules()
        for turn in range(_ROUNDS_MAX):
            rows = await self._boot.store.read(
                lambda c: c.execute("SELECT no FROM runs WHERE ended_at IS NULL").fetchall()
            )
            if not rows and not self._tasks and not await self._pending_events():
                return
            for (no,) in rows:
                await self._help(no)
            await asyncio.sleep(20.0 if turn < _ROUNDS_MAX / 2 else 400.0)  # a run may be due by a clock set far back
        left = self._world.disk.rows("SELECT id, state FROM runs WHERE ended_at IS NULL")
        raise Violation(f"runs that nobody can help: {left}; callers without an answer: {len(self._tasks)}")

    async def _pending_events(self) -> int:
        return await self._boot.store.read(
            lambda c: c.execute("SELECT count(*) FROM events WHERE outcome = 'PENDING'").fetchone()[0]
        )

    async def _help(self, no: int) -> None:
        loaded = await self._runs.load(no)
        if loaded is None:
            return
        for fact in self._people.awaited(loaded.run):
            try:
                await self._do(loaded.run.run_id, fact)
            except TaskforgeError:  # it has gone on meanwhile
                continue
