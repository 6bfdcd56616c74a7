"""One round: a daemon from nothing, load and faults for a while, quiet, and the inventory of what is left."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import platform
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from taskforgectl.errors import CliError
from taskforgectl.program import run_program
from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.load import Load
from taskforgectl.torture.looks import STUCK_S, Looker
from taskforgectl.torture.outside import EffectServer, Sender
from taskforgectl.torture.plan import FAULTS_MIN, Fault, Plan
from taskforgectl.torture.process import DaemonError, Subject
from taskforgectl.torture.wire import RefusedError, Wire
from taskforgectl.torture.workflows import HOOK_SECRET, TENANT, sources, without_schedules

__all__ = ["Files", "Progress", "drive"]

_SHELL = "/bin/sh"
_INVENTORY_S = 1800.0
_CLOCK_STEADY_S = 0.25
_QUIET_LOOKS = 3
_POLL_S = 0.2
_SETTLE_S = 1800.0
"""How long it may take until nothing is open any more, once nobody asks for anything."""


class Files(NamedTuple):
    """Where the evidence of a round lies."""

    folder: Path

    @property
    def home(self) -> Path:
        """The daemon's home."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """What the daemon wrote, over all its lives."""
        return self.folder / "daemon.log"

    @property
    def ledger(self) -> Path:
        """What the driver did and was told."""
        return self.folder / "driver.jsonl"

    @property
    def calls(self) -> Path:
        """What the effect server saw."""
        return self.folder / "calls.jsonl"

    @property
    def inventory(self) -> Path:
        """What the database held in the end."""
        return self.folder / "inventory.jsonl"

    @property
    def report(self) -> Path:
        """What came of it."""
        return self.folder / "report.json"


class Progress(NamedTuple):
    """What is shown while it goes on."""

    phase: str
    at_s: float
    length_s: float
    boots: int
    faults: int
    started: int
    open_runs: int
    calls: int
    broken: int


class _OverError(Exception):
    """The load has ended early."""


class _Driver:
    """Drives one round; see `drive`."""

    def __init__(
        self,
        plan: Plan,
        files: Files,
        *,
        rate: float,
        program: Sequence[str],
        stop: asyncio.Event,
        show: Callable[[Progress], None],
    ) -> None:
        self._plan = plan
        self._stop = stop
        self._show = show
        self._is_over = False
        self._phase = "starting"
        self._began = 0.0
        self._versions: dict[str, str] = {}
        self.faults: Counter[str] = Counter()
        self.ledger = Ledger(files.ledger)
        self._has_shell = os.access(_SHELL, os.X_OK)
        settings = {"TASKFORGE_SHELL_ALLOW": _SHELL} if self._has_shell else {}
        self.subject = Subject(files.home, files.log, settings, program)
        self.wire = Wire(lambda: self._is_over)
        self.outside = EffectServer(plan, files.calls, lambda: self.ledger.now, lambda: self.subject.boots)
        self._sender = Sender(self.ledger, lambda: self.subject.http)
        self.load = Load(plan, self.wire, self._sender, self.ledger, rate)
        self.looker = Looker(self.wire, self.load, self.ledger, lambda: self.outside.calls)

    async def run(self) -> None:
        """Do all of it. What is broken is in the ledger; only what makes going on pointless is raised."""
        with self.ledger:
            async with self.outside, self._sender:
                try:
                    await self._first_start()
                    async with self._tasks([self._watch_clock, self._show_on, self.looker.look_on]):
                        await self._torture()
                except DaemonError:
                    await self.subject.dump_stacks()
                    raise
                finally:
                    self._is_over = True
                    await self.wire.disconnect()
                    await self.subject.close()

    @asynccontextmanager
    async def _tasks(self, works: Sequence[Callable[[], Awaitable[None]]]) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Have these done in the background until the block ends; what one of them raises is raised here."""
        tasks = [asyncio.ensure_future(work()) for work in works]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self.ledger.violation("driver", f"{type(outcome).__name__}: {outcome}")

    def counts(self) -> dict[str, Any]:
        """Answer what was done."""
        return {
            "versions": self._versions,
            "faults": dict(self.faults),
            "boots": self.subject.boots,
            "starts_s": [round(life.ready_s, 3) for life in self.subject.lives],
            "acts": dict(self.load.acts),
            "calls": self.outside.calls,
            "moods": dict(self.outside.moods),
            "repeats": self.wire.repeats + self._sender.repeats,
            "lasted_s": round(self.ledger.now, 1),
            "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }

    # --- the phases --------------------------------------------------------------------------------------------------

    async def _first_start(self) -> None:
        life = await self.subject.start()
        await self._connect(life.ready_s)
        await self.while_it_lives(self._prepare())

    async def _prepare(self) -> None:
        info = await self.wire.insist("GetInfo")
        python, sqlite = platform.python_version(), info.sqlite_version
        self._versions = {"taskforged": info.version, "SQLite": sqlite, "Python": python, "system": platform.platform()}
        await self.wire.insist("SetSecret", name="HOOK", value=HOOK_SECRET)
        await self.wire.insist("SetNamespace", name=TENANT, running_runs_max=2, running_steps_max=1)
        await self.wire.insist("SetQueue", name="narrow", running_steps_max=1)
        for source in sources(self.outside.url, shell=self._has_shell):
            await self.wire.insist("ApplyWorkflow", namespace=source.namespace, source=source.text)

    async def _torture(self) -> None:
        helpers = [*self.load.helpers(), self.load.watch_events]
        async with self._tasks(helpers):
            async with self._tasks(self.load.starters()) as starters:
                self._phase = "torture"
                self._began = self.ledger.now
                with contextlib.suppress(_OverError):
                    await self._do_faults()
                self.load.is_over = True
                self._phase = "settling"
                self.outside.kind = True
                await self._wait_for(starters)
            await self.while_it_lives(self._settle(), limit_s=_SETTLE_S)
        self._phase = "stopping"
        code = await self.subject.terminate()
        self._note_exit(code)
        self.faults["term"] += 1

    async def _do_faults(self) -> None:
        for fault in self._plan.faults():
            if self.ledger.now - self._began > self._plan.length_s and self.faults.total() >= FAULTS_MIN:
                return
            await self._pause(fault.after_s)
            self.ledger.write("fault", kind=fault.kind, for_s=round(fault.for_s, 3), boot=self.subject.boots)
            self.faults[fault.kind] += 1
            await self._inflict(fault)
        await self._pause(max(0.0, self._began + self._plan.length_s - self.ledger.now))

    async def _pause(self, for_s: float) -> None:
        """Let the load work for a while.

        Raises:
            _OverError: somebody wants to end early.
            DaemonError: the daemon has ended by itself, or nothing goes on any more.
        """
        until = self.ledger.now + for_s
        while True:
            self._check_alive()
            if self._stop.is_set():
                raise _OverError
            if self.looker.stands_still:
                raise await self._stuck(f"nothing went on for {STUCK_S:g} s")
            left = until - self.ledger.now
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(left, 0.5))

    def _check_alive(self) -> None:
        code = self.subject.ended()
        if code is not None:
            raise DaemonError(f"the daemon has ended by itself with {code}")

    async def while_it_lives(self, work: Coroutine[Any, Any, None], *, limit_s: float = math.inf) -> None:
        """Do what only a daemon that answers can do: clients repeat their calls for as long as nobody answers.

        Raises:
            DaemonError: the daemon has ended by itself, nothing goes on any more, or it goes on for ever.
        """
        until = self.ledger.now + limit_s
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._check_alive()
                if self.looker.stands_still:
                    raise await self._stuck(f"nothing went on for {STUCK_S:g} s")
                if self.ledger.now > until:
                    raise await self._stuck(f"{limit_s:g} s were not enough to come to rest")
                await asyncio.wait([task], timeout=_POLL_S)
            task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _wait_for(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait until everybody who starts something has gone home."""
        _, late = await asyncio.wait(tasks, timeout=STUCK_S)
        for task in late:
            self.ledger.violation("driver", f"a client still waits for its answer: {task.get_coro()}")

    async def _settle(self) -> None:
        """End the schedules, and help everything to its end."""
        for source in without_schedules(self.outside.url):
            await self.wire.insist("ApplyWorkflow", namespace=source.namespace, source=source.text)
        self.looker.moved_at = self.ledger.now
        quiet = 0
        while quiet < _QUIET_LOOKS:
            quiet = quiet + 1 if await self.looker.is_quiet() else 0
            await asyncio.sleep(0.2)
        await self.looker.note_ends()
        await self.looker.check_slots()
        await self.looker.wait_for_feed()

    async def _stuck(self, why: str) -> DaemonError:
        """Note what is open and what it waits for; answers what to raise."""
        for one in (why, *await self.looker.tell_open()):
            self.ledger.violation("stuck", one)
        return DaemonError(why)

    # --- the faults --------------------------------------------------------------------------------------------------

    async def _inflict(self, fault: Fault) -> None:
        if fault.kind == "stop":
            await self.subject.stand_still(fault.for_s)
            return
        if fault.kind == "term":
            self._note_exit(await self.subject.terminate())
        else:
            await self.subject.kill()
        await self.wire.disconnect()
        if fault.kind == "kill in start":
            await self.subject.spawn()
        await asyncio.sleep(fault.for_s)
        if fault.kind == "kill in start":
            self._check_alive()
            await self.subject.kill()
        life = await self.subject.start()
        await self._connect(life.ready_s)
        await self.while_it_lives(self.looker.after_restart())

    async def _connect(self, ready_s: float) -> None:
        self.ledger.write("boot", boot=self.subject.boots, ready_s=round(ready_s, 3))
        await self.wire.connect(self.subject.target, self.subject.home.token())
        self.looker.moved_at = self.ledger.now

    def _note_exit(self, code: int) -> None:
        if code != 0:
            self.ledger.violation("stops", f"after SIGTERM the daemon ended with {code}")

    # --- in the background -------------------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """Note when the wall clock jumps: then the times in histories cannot be compared."""
        ahead = time.time() - time.monotonic()
        while True:
            await asyncio.sleep(1)
            present = time.time() - time.monotonic()
            if abs(present - ahead) > _CLOCK_STEADY_S:
                self.ledger.write("clock", jumped_s=round(present - ahead, 3))
            ahead = present

    async def _show_on(self) -> None:
        while True:
            ledger, counts = self.ledger, self.ledger.counts
            self._show(
                Progress(
                    phase=self._phase,
                    at_s=ledger.now,
                    length_s=self._plan.length_s,
                    boots=self.subject.boots,
                    faults=self.faults.total(),
                    started=counts["started"] + counts["delivered"],
                    open_runs=self.load.open_runs,
                    calls=self.outside.calls,
                    broken=ledger.broken,
                )
            )
            await asyncio.sleep(0.5)


async def drive(
    plan: Plan,
    files: Files,
    *,
    rate: float,
    program: Sequence[str],
    stop: asyncio.Event,
    show: Callable[[Progress], None],
) -> dict[str, Any]:
    """Drive a round to its end, and write its inventory; answers what the driver itself has counted.

    Args:
        plan: what is going to happen.
        files: where the evidence goes.
        rate: what the load asks for, per second.
        program: the command instead of `taskforged`.
        stop: is set by whoever wants to end early.
        show: takes the progress.

    Raises:
        CliError: the daemon never started.
    """
    driver = _Driver(plan, files, rate=rate, program=program, stop=stop, show=show)
    failure = ""
    try:
        await driver.run()
    except DaemonError as error:
        if not driver.subject.lives:
            raise CliError(f"{error.message}:\n{driver.subject.tail()}") from None
        failure = error.message
    except RefusedError as refusal:
        failure = f"the daemon has refused: {refusal}"
    try:
        await asyncio.to_thread(_take_inventory, ["--home", str(files.home), str(files.inventory)])
    except CliError as error:
        failure = f"{failure}; {error.message}".removeprefix("; ")
    return {"failure": failure, **driver.counts()}


def _take_inventory(arguments: Sequence[str]) -> None:
    answer = run_program(
        "inventory", arguments, what="the inventory", limit_s=_INVENTORY_S, with_variables=False, apart=True
    )
    if not answer["ok"]:
        raise CliError(answer["message"])
