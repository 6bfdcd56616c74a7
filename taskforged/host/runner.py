"""The embedded host's heart: facts in, engine, journal, and only after the commit the consequences.

Each open run has an entry with a mailbox. Whatever facts wait when the entry's last commit is done are applied
together and committed together, so a run with many steps at work pays for few commits, and a run never has two
commits under way. The entry's state moves on only when the commit has succeeded: a commit that fails changes nothing,
its callers are told, and facts without a caller (results, timers) are kept and tried again.

Nothing here blocks and nothing decides: the engine decides, the journal writes, executors have effects.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from taskforged.clock import Clock
from taskforged.engine.events import (
    AdmitRun,
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelChild,
    CancelExecution,
    CancelRun,
    Command,
    CreateRun,
    Execute,
    Fact,
    IllegalEventError,
    SetTimer,
    StartChild,
    Withdraw,
)
from taskforged.engine.machine import apply
from taskforged.engine.model import WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.states import RunState, StepState
from taskforged.errors import (
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    TaskforgeError,
    UnavailableError,
)
from taskforged.failpoints import reach
from taskforged.host.admission import Admission, Ticket
from taskforged.host.attempts import Attempts, Logs
from taskforged.host.children import Children, end_of
from taskforged.host.dispatcher import CommandKey, Dispatcher, Lane
from taskforged.host.entry import NOTHING, Entry, Letter, PreparedRun, Step, named
from taskforged.host.feed import Feed
from taskforged.host.limits import Limits
from taskforged.host.run_meters import NAMES, RunMeters
from taskforged.host.tasks import RELOAD_S, RETRY_S, Tasks
from taskforged.steps.base import SecretValue, StepExecutor
from taskforged.store.audit import taken
from taskforged.store.changes import GENESIS, Home, NewRun, News, RunChange, build_change
from taskforged.store.journal import Write, outlive
from taskforged.store.runs import RunStore
from taskforged.store.store import Store

__all__ = ["IDLE_MAX", "ModelSource", "Runner"]

_log = structlog.get_logger(__name__)

T = TypeVar("T")

IDLE_MAX = 2048
"""Open runs without work whose state is kept in memory; the others are rebuilt from their history when needed."""

ADMIT_AT_ONCE = 64
"""Pending runs that are read and started at the same time."""

_ROUNDS_MAX = 100
"""Commits that a drain waits for: results that arrive while a run is written need one more, and seldom two."""


class ModelSource(Protocol):
    """Answers the compiled model of a stored version."""

    async def model(self, workflow_no: int, version: int) -> WorkflowModel:
        """Answer the model, compiled once and cached."""


class Runner:
    """Runs open runs.

    Attributes:
        epoch: the boot that it belongs to.
        meters: what is counted of runs and attempts.
        dispatcher, admission, children: who gives slots to steps and to runs, and who sees to sub-workflows.
        on_timer: told when a timer is due that a commit has set.
        asks_pending, on_pending: whether somebody decides about the runs of a model that wait in a group, and who.
        listens: whether an event of a type in a namespace is asked about.
        on_published: told when a commit has stored such an event.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        feed: Feed,
        models: ModelSource,
        executors: Mapping[str, StepExecutor],
        secret: Callable[[int, str], Awaitable[SecretValue]],
        logs: Logs,
        limits: Limits,
        pool_size: int,
        names: int = NAMES,
    ) -> None:
        """Create a runner; `secret` looks up a secret by namespace number and name, `names` is for `RunMeters`."""
        self._store = store
        self._runs = RunStore(store)
        self._clock = clock
        self._feed = feed
        self._models = models
        self._entries: dict[int, Entry] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._loading: dict[int, list[Letter]] = {}
        self._tasks = Tasks()
        self._waiters: dict[int, list[asyncio.Future[Run]]] = {}
        self.meters = RunMeters(names)
        self.epoch = 0
        self.on_timer: Callable[[int], None] = lambda _: None
        self.asks_pending: Callable[[WorkflowModel, str], bool] = lambda _, __: False
        self.on_pending: Callable[[int], Awaitable[None]] = _nobody_decides
        self.listens: Callable[[int, str], bool] = lambda _, __: False
        self.on_published: Callable[[], None] = lambda: None
        self._admitted: deque[int] = deque()
        self._admitting = False
        self.dispatcher = Dispatcher(
            pool_size=pool_size, limits=limits, load_queued=self._load_queued, claim=self._claim
        )
        self.admission = Admission(limits=limits, admit=self._admit)
        self.children = Children(
            store=store, runs=self._runs, tasks=self._tasks, post=lambda no, fact: self._post(no, Letter(fact))
        )
        self._attempts = Attempts(
            executors=executors,
            secret=secret,
            logs=logs,
            meters=self.meters,
            tasks=self._tasks,
            on_end=self._attempt_ended,
        )

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self, epoch: int) -> int:
        """Decide what became of the attempts of earlier boots, then begin to work; answers how many there were."""
        self.epoch = epoch
        grouped = await self._restore_admission()  # first: what ends during the recovery gives its slot back
        lost = await self._store.rows("claimed_commands")
        for no, seq, old in lost:
            reason = f"the daemon of boot {old} stopped while the attempt was running"
            self._post(no, Letter(AttemptLost(seq, reason)))
        runs = sorted({row[0] for row in lost})
        results = await asyncio.gather(*(self.deliver(no, None) for no in runs), return_exceptions=True)
        for no, result in zip(runs, results, strict=True):
            if isinstance(result, BaseException):
                _log.error("run.not_recovered", run_no=no, error=str(result))
        lanes = await self._store.rows("queued_lanes")
        self.dispatcher.restore((Lane(*lane), count) for *lane, count in lanes)
        self.dispatcher.open()
        self.admission.open()
        self.children.recover()
        self._tasks.spawn(self._look_at_pending(grouped), "look at pending runs")
        return len(lost)

    async def _restore_admission(self) -> dict[tuple[int, int], list[Ticket]]:
        """Rebuild who has a run slot and who waits; answers those that wait and have a group, by their version."""
        admitted, pending = [], []
        grouped: dict[tuple[int, int], list[Ticket]] = defaultdict(list)
        for row in await self._store.rows("open_runs"):
            no, namespace_no, priority, group, limit, parent_no, state, started_at, workflow_no, version = row
            ticket = Ticket(no, namespace_no, priority, group, limit, parent_no is not None)
            if started_at is not None:
                admitted.append(ticket)
            elif state == RunState.PENDING:
                pending.append(ticket)
                if group:
                    grouped[workflow_no, version].append(ticket)
        self.admission.restore(admitted, pending)
        return grouped

    async def _look_at_pending(self, grouped: Mapping[tuple[int, int], Sequence[Ticket]]) -> None:
        for (workflow_no, version), tickets in grouped.items():
            try:
                model = await self._models.model(workflow_no, version)
            except Exception as error:  # noqa: BLE001  task boundary: the others are looked at all the same
                _log.error("run.pending_not_decided", workflow_no=workflow_no, version=version, error=str(error))
                continue
            for ticket in tickets:
                if self.asks_pending(model, ticket.group):
                    await self._pending(ticket.no)

    async def _pending(self, no: int) -> None:
        """Let somebody decide what becomes of a run whose concurrency group may be full."""
        try:
            await self.on_pending(no)
        except Exception as error:  # noqa: BLE001  task boundary: the run waits for its turn, as others do
            _log.error("run.pending_not_decided", run_no=no, error=str(error))

    async def drain(self, grace_s: float) -> None:
        """Start nothing more, let what runs finish for `grace_s`, then cut it; the next boot decides about that."""
        self.dispatcher.close()
        self.admission.close()
        await self._written()  # starts that are being written become attempts, with their grace
        attempts = [task for entry in self._entries.values() for task in entry.attempts.values()]
        if attempts:
            await asyncio.wait(attempts, timeout=grace_s)
        await self._written()  # what has finished is recorded, else the next boot would do it again
        await self._tasks.stop()

    async def _written(self) -> None:
        """Wait until no run has a commit under way, or the journal takes nothing any more."""
        for _ in range(_ROUNDS_MAX):
            if not any(entry.committing for entry in self._entries.values()):
                return
            try:
                await self._store.journal.execute(lambda _: None)  # behind all that was handed in before
            except TaskforgeError:
                return

    def is_busy(self, no: int) -> bool:
        """Whether something of a run is under way in memory: mail, a commit, an attempt, its being read."""
        entry = self._entries.get(no)
        if entry is None:
            return no in self._loading or no in self._admitted
        return entry.committing or bool(entry.mailbox) or bool(entry.attempts)

    def executes(self, no: int, seq: int) -> bool:
        """Whether a claimed command is being executed, or on its way to be."""
        entry = self._entries.get(no)
        return no in self._loading or (entry is not None and (entry.committing or seq in entry.attempts))

    def open_entries(self) -> int:
        """How many runs are held in memory."""
        return len(self._entries)

    # --- doors -------------------------------------------------------------------------------------------------------

    def prepare(
        self, model: WorkflowModel, new: NewRun, create: CreateRun, event: Any = None, *, skip: str = ""
    ) -> PreparedRun:
        """Decide a new run; it starts when there is a slot for it. `create` writes it, else `discard` it.

        Args:
            model: the definition.
            new: what never changes.
            create: the first fact.
            event: what expressions see as `event`.
            skip: why the run shall end at once, as cancelled; empty: it shall not.

        Raises:
            ResourceExhaustedError: too many runs wait already. Nothing has happened.
        """
        no = self._store.next_no("runs")
        facts = [create, *self._first_facts(no, new, create, skip)]
        entry = Entry(Home(no, new.namespace_no, new.workflow_no), model, Run(event=event), GENESIS, new.parent_no)
        entry.committing = True
        entry.mailbox.extend(Letter(fact) for fact in facts)
        self._entries[no] = entry
        try:
            step = self._advance(entry, entry.take_mail())
            prepared = PreparedRun(no, step.run, self._change(entry, step, new), entry, step)
        except BaseException:
            del self._entries[no]
            self.admission.free(no)
            self._release_unused(entry)
            raise
        if step.run.state is RunState.PENDING:
            self.admission.wait(entry.ticket(step.run))
        return prepared

    def _first_facts(self, no: int, new: NewRun, create: CreateRun, skip: str) -> Sequence[Fact]:
        if skip:
            return [CancelRun(skip)]
        if create.run_at:
            return []
        is_child = new.parent_no is not None
        ticket = Ticket(no, new.namespace_no, create.priority, create.group, create.group_limit, is_child)
        if self.admission.try_admit(ticket):
            return [AdmitRun()]
        if not is_child:  # a parent must not wait for a child that waits for it
            self.admission.check_pending(new.namespace_no)
        return []

    def discard(self, prepared: Sequence[PreparedRun]) -> None:
        """Forget prepared runs that will not be written."""
        for one in prepared:
            self._abandon(one)

    async def create(self, prepared: Sequence[PreparedRun], function: Callable[[Any], T] | None = None) -> T | None:
        """Write prepared runs in one transaction, `function` before them; answers its result.

        The runs go on as soon as they are on disk, also when the caller has been cancelled meanwhile. When they cannot
        be written, they never were.
        """
        write: Write[T] = Write(changes=[one.change for one in prepared], function=function)
        future = self._store.journal.submit(write)
        future.add_done_callback(lambda done: self._created(prepared, done))
        return await asyncio.shield(future)

    def _created(self, prepared: Sequence[PreparedRun], done: asyncio.Future[Any]) -> None:
        written = done.exception() is None
        for one in prepared:
            if written:
                self._committed(one.entry, one.step, one.change)
            else:
                self._abandon(one)

    def _abandon(self, prepared: PreparedRun) -> None:
        for seq in prepared.step.claims:
            self.dispatcher.release((prepared.no, seq))
        del self._entries[prepared.no]
        self.admission.free(prepared.no)

    async def deliver(self, no: int, fact: Fact | None) -> None:
        """Hand a fact to a run and wait until it is on disk. Without a fact: wait for what is under way.

        Raises:
            FailedPreconditionError: the run is in a state that does not allow it.
            NotFoundError: there is no such run.
            UnavailableError, ResourceExhaustedError: it could not be written.
        """
        receipt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        audit = None if fact is None else taken()
        if audit is not None:
            audit.take()
            receipt.add_done_callback(audit.settle)
        self._post(no, Letter(fact if fact is not None else NOTHING, receipt, audit))
        await outlive(receipt)  # the fact arrives also when the caller has been cancelled meanwhile

    async def wait_end(self, prepared: PreparedRun, timeout_s: float) -> Run | None:
        """Wait until a run that was created here has ended, at most `timeout_s`; None when it has not.

        Call it without an await after `create`, so that the end cannot slip by.
        """
        if prepared.entry.run.ended_at:
            return prepared.entry.run
        waiter: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(prepared.no, [])
        waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(prepared.no, None)

    def dismiss_waiters(self) -> None:
        """Send those away who wait for the end of a run: the daemon is stopping, and the runs are safe."""
        error = UnavailableError("the daemon is stopping; the run goes on when it is back")
        for waiter in [one for waiters in self._waiters.values() for one in waiters]:
            if not waiter.done():
                waiter.set_exception(error)

    # --- mail --------------------------------------------------------------------------------------------------------

    def _post(self, no: int, letter: Letter) -> None:
        entry = self._entries.get(no)
        if entry is not None:
            entry.mailbox.append(letter)
            self._pump(entry)
        elif no in self._loading:
            self._loading[no].append(letter)
        else:
            self._loading[no] = [letter]
            self._tasks.spawn(self._load(no), f"load run {no}")

    async def _load(self, no: int) -> None:
        try:
            entry = await self._rebuild(no)
        except Exception as error:  # noqa: BLE001  task boundary: whoever waits for the run is told
            _log.error("run.load_failed", run_no=no, error=str(error))
            self._not_loaded(no, self._loading.pop(no), UnavailableError(f"the run could not be read: {error}"))
            return
        letters = self._loading.pop(no)
        if entry is None:
            self._refuse(letters, NotFoundError("there is no such run"))
            for letter in letters:
                if isinstance(letter.fact, AttemptStarted):
                    self.dispatcher.release((no, letter.fact.command))
            return
        entry.mailbox.extend(letters)
        self._entries[no] = entry
        self._pump(entry)

    def _not_loaded(self, no: int, letters: Sequence[Letter], error: TaskforgeError) -> None:
        """Tell the callers; what has none is tried again later, and a start gives its slot back until then."""
        self._refuse(letters, error)
        for letter in letters:
            if isinstance(letter.fact, AttemptStarted):
                key = (no, letter.fact.command)
                asyncio.get_running_loop().call_later(RELOAD_S, self._offer_stored, key)
                self.dispatcher.release(key)
            elif letter.receipt is None and not self._tasks.stopping:
                asyncio.get_running_loop().call_later(RELOAD_S, self._post, no, letter)

    async def _rebuild(self, no: int) -> Entry | None:
        loaded = await self._runs.load(no)
        if loaded is None:
            return None
        row, run = loaded
        model = await self._models.model(row.workflow_no, row.version)
        home = Home(no, row.namespace_no, row.workflow_no)
        return Entry(home, model, run, row.head_hash, row.parent_no)

    def _refuse(self, letters: Sequence[Letter], error: TaskforgeError) -> None:
        for letter in letters:
            if letter.receipt is not None and not letter.receipt.done():
                letter.receipt.set_exception(error)

    def _pump(self, entry: Entry) -> None:
        """Take the next step with an entry, unless its last one is still being written."""
        while entry.mailbox and not entry.committing:
            self._idle.pop(entry.no, None)
            entry.committing = True  # the mailbox only fills from here: a slot given back below may bring mail at once
            letters = entry.take_mail()
            try:
                step = self._advance(entry, letters)
            except Exception as error:  # noqa: BLE001  a bug must not leave the run and its callers waiting for ever
                self._not_advanced(entry, letters, error)
                continue
            if step.history:
                self._write(entry, step)
                return
            entry.committing = False
            for letter in step.taken:
                if letter.audit is not None:
                    letter.audit.give_back()  # nothing is written for it
            self._acknowledge(step.taken)
            if not entry.mailbox:
                self._settle_entry(entry)

    def _not_advanced(self, entry: Entry, letters: Sequence[Letter], error: Exception) -> None:
        _log.error(
            "run.bug",
            **named(entry.run),
            facts=[type(one.fact).__name__ for one in letters],
            exc_info=error,
        )
        entry.committing = False
        self._refuse(letters, UnavailableError("the run could not be advanced; the daemon's log has the details"))
        self._release_unused(entry)

    def _release_unused(self, entry: Entry) -> None:
        """Give back the step slots of a run in which no attempt is executed."""
        for no, seq in self.dispatcher.held_by():
            if no == entry.no and seq not in entry.attempts:
                self.dispatcher.release((no, seq))

    def _write(self, entry: Entry, step: Step) -> None:
        change = self._change(entry, step, None)
        audit = [letter.audit.row() for letter in step.taken if letter.audit is not None]
        future = self._store.journal.submit(Write[None](changes=[change], audit=audit))
        future.add_done_callback(lambda done: self._on_commit(entry, step, change, done))

    # --- one step forward --------------------------------------------------------------------------------------------

    def _advance(self, entry: Entry, letters: Sequence[Letter]) -> Step:
        """Apply facts together, and claim slots for what they lead to."""
        step = Step(entry.run, [], [], set(), [], {})
        now = self._clock.now()
        try:
            step = self._apply(entry, step, [letter.fact for letter in letters if letter.fact is not NOTHING], now)
            step.taken.extend(letters)
        except IllegalEventError:  # at least one of them is stale: find out which
            for letter in letters:
                step = self._apply_alone(entry, step, letter, now)
        return self._claim_at_once(entry, step, now)

    def _apply_alone(self, entry: Entry, step: Step, letter: Letter, now: int) -> Step:
        try:
            if letter.fact is not NOTHING:
                step = self._apply(entry, step, [letter.fact], now)
        except IllegalEventError as error:
            self._illegal(entry, letter, error)
            return step
        step.taken.append(letter)
        return step

    def _apply(self, entry: Entry, step: Step, facts: Sequence[Fact], now: int) -> Step:
        if not facts:
            return step
        outcome = apply(entry.model, step.run, facts, now)
        for fact in facts:
            if isinstance(fact, AttemptStarted):
                step.claims[fact.command] = fact.epoch
            elif isinstance(fact, (AttemptCompleted, AttemptFailed, AttemptLost, AttemptCancelled)):
                self.dispatcher.release((entry.no, fact.command))
        step.history.extend(outcome.history)
        step.commands.extend(outcome.commands)
        step.touched.update(outcome.touched)
        return step._replace(run=outcome.run)

    def _claim_at_once(self, entry: Entry, step: Step, now: int) -> Step:
        """Record the start of new commands in the very transaction that creates them, while slots are free."""
        for command in list(step.commands):
            if isinstance(command, Execute) and _is_queued(step.run, command):
                key = (entry.no, command.seq)
                if self.dispatcher.try_take(key, Lane(entry.home.namespace_no, step.run.queue, step.run.priority)):
                    step = self._apply(entry, step, [AttemptStarted(command.seq, self.epoch)], now)
        return step

    def _illegal(self, entry: Entry, letter: Letter, error: IllegalEventError) -> None:
        fact = letter.fact
        if isinstance(fact, (AttemptCompleted, AttemptFailed, AttemptCancelled)):  # another attempt took its place
            _log.warning("attempt.fenced", **named(entry.run), command=fact.command, why=str(error))
        else:
            _log.info("run.stale_fact", **named(entry.run), fact=type(fact).__name__, why=str(error))
        if isinstance(fact, (AttemptStarted, AttemptCompleted, AttemptFailed, AttemptCancelled, AttemptLost)):
            self.dispatcher.release((entry.no, fact.command))
        state = entry.run.state.text
        self._refuse([letter], FailedPreconditionError(f"{error}", metadata={"run": entry.run.run_id, "state": state}))

    def _change(self, entry: Entry, step: Step, new: NewRun | None) -> RunChange:
        return build_change(
            entry.home,
            step.run,
            step.history,
            step.commands,
            step.touched,
            head_hash=entry.head_hash,
            new=new,
            claims=step.claims,
            news=News(self._next_event_no, self.listens),
        )

    def _next_event_no(self) -> int:
        return self._store.next_no("events")

    # --- after the commit --------------------------------------------------------------------------------------------

    def _on_commit(self, entry: Entry, step: Step, change: RunChange, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._committed(entry, step, change)
        else:
            self._not_committed(entry, step, error)

    def _committed(self, entry: Entry, step: Step, change: RunChange) -> None:
        reach("run.committed")
        entry.run = step.run
        entry.head_hash = change.head_hash
        entry.committing = False
        self.meters.record(entry.run, entry.model, step.history)
        self._acknowledge(step.taken)
        for seq in step.claims:
            if seq in entry.run.commands:
                self._attempts.launch(entry, seq)
        for command in step.commands:  # after the launches: one of them may already be unwanted
            self._carry_out(entry, command, step.claims)
        self._feed.publish(entry.no)
        if any(row.outcome == "PENDING" for row in change.events):
            self.on_published()
        if entry.run.ended_at:
            self._announce_end(entry)
        elif entry.run.state is RunState.PENDING:
            self.admission.wait(entry.ticket(entry.run))
            if entry.run.group and self.asks_pending(entry.model, entry.run.group):
                self._tasks.spawn(self._pending(entry.no), f"pending run {entry.no}")
        self._pump(entry)
        if not entry.committing:
            self._settle_entry(entry)

    def _carry_out(self, entry: Entry, command: Command, claims: Mapping[int, int]) -> None:
        match command:
            case Execute(seq) if seq not in claims and seq in entry.run.commands:
                self.dispatcher.enqueue((entry.no, seq), entry.lane)
            case Withdraw(seq):
                self.dispatcher.withdraw((entry.no, seq), entry.lane)
            case CancelExecution(seq):
                attempt = entry.attempts.get(seq)
                if attempt is not None:
                    attempt.cancel()
            case SetTimer(_, at):
                self.on_timer(at)
            case StartChild() if command.seq in entry.run.commands:
                self.children.begin(entry.home, entry.run, command)
            case CancelChild(seq) if seq in entry.run.commands:
                self.children.cancel(entry.run.steps[entry.run.commands[seq]].child)
            case _:
                pass  # the rows say it all

    def _not_committed(self, entry: Entry, step: Step, error: BaseException) -> None:
        """Forget the step. Callers are told; facts without a caller are kept."""
        kept = [letter for letter in step.taken if letter.receipt is None and _keeps(letter)]
        entry.mailbox.extendleft(reversed(kept))
        for seq in step.claims:
            if seq in entry.run.commands:  # it still stands in the outbox
                self._offer_later((entry.no, seq), entry.lane)
        if isinstance(error, TaskforgeError):
            self._refuse(step.taken, error)
        if isinstance(error, ConflictError):
            _log.error("run.conflict", **named(entry.run), error=str(error))
            self._tasks.spawn(self._read_again(entry), f"read run {entry.no} again")
        else:
            entry.committing = False
            if not self._tasks.stopping:
                _log.warning(
                    "run.not_written",
                    **named(entry.run),
                    error=str(error),
                )
                asyncio.get_running_loop().call_later(RETRY_S, self._pump_or_settle, entry)
        for seq in step.claims:  # at last: a slot given back may bring mail at once
            self.dispatcher.release((entry.no, seq))

    def _pump_or_settle(self, entry: Entry) -> None:
        self._pump(entry)
        if not entry.committing:
            self._settle_entry(entry)

    def _offer_later(self, key: CommandKey, lane: Lane) -> None:
        """Put a command in line again after a pause: at once, a disk that stays full would be tried without end."""
        asyncio.get_running_loop().call_later(RETRY_S, self.dispatcher.enqueue, key, lane)

    def _offer_stored(self, key: CommandKey) -> None:
        if not self._tasks.stopping:
            self._tasks.spawn(self._enqueue_stored(key), f"offer {key} again")

    async def _enqueue_stored(self, key: CommandKey) -> None:
        """Put a command of a run that is not in memory in line again."""
        row = await self._store.row("lane_of_command", *key)
        if row is not None:
            self.dispatcher.enqueue(key, Lane(*row))

    async def _read_again(self, entry: Entry) -> None:
        """Take the state from the store, since ours is not what is stored. Mail waits, attempts go on."""
        loaded = None
        while loaded is None:
            await asyncio.sleep(RETRY_S)
            try:
                loaded = await self._runs.load(entry.no)
            except Exception as error:  # noqa: BLE001  task boundary: the run would stand still for ever
                _log.error("run.load_failed", run_no=entry.no, error=str(error))
        entry.run, entry.head_hash = loaded.run, loaded.row.head_hash
        entry.committing = False
        if entry.run.ended_at:
            self._announce_end(entry)
        self._pump(entry)
        if not entry.committing:
            self._settle_entry(entry)

    def _announce_end(self, entry: Entry) -> None:
        self.admission.free(entry.no)
        if entry.parent_no is not None:
            reach("child.ended")
            self._post(entry.parent_no, Letter(end_of(entry.run.parent["command"], entry.run)))
        for waiter in self._waiters.pop(entry.no, ()):
            if not waiter.done():
                waiter.set_result(entry.run)

    def _acknowledge(self, letters: Sequence[Letter]) -> None:
        for letter in letters:
            if letter.receipt is not None and not letter.receipt.done():
                letter.receipt.set_result(None)

    def _settle_entry(self, entry: Entry) -> None:
        """Drop an entry that has ended, and the longest idle ones when there are many."""
        if entry.run.ended_at and not entry.attempts:
            self._entries.pop(entry.no, None)
        elif not entry.attempts:
            self._idle[entry.no] = None
            while len(self._idle) > IDLE_MAX:
                no, _ = self._idle.popitem(last=False)
                self._entries.pop(no, None)

    # --- slots -------------------------------------------------------------------------------------------------------

    def _admit(self, no: int) -> None:
        """Start a pending run. One that has to be read first stands in line: a raised limit may admit very many."""
        if no in self._entries:
            self._post(no, Letter(AdmitRun()))
            return
        self._admitted.append(no)
        if not self._admitting:
            self._admitting = True
            self._tasks.spawn(self._start_admitted(), "start admitted runs")

    async def _start_admitted(self) -> None:
        try:
            while self._admitted and not self._tasks.stopping:
                some = [self._admitted.popleft() for _ in range(min(len(self._admitted), ADMIT_AT_ONCE))]
                results = await asyncio.gather(*(self.deliver(no, AdmitRun()) for no in some), return_exceptions=True)
                failed = [no for no, result in zip(some, results, strict=True) if _is_passing(result)]
                if failed:
                    self._admitted.extend(failed)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._admitting = False

    async def _load_queued(self, lane: Lane, after: CommandKey, limit: int) -> list[CommandKey]:
        return [(no, seq) for no, seq in await self._store.rows("queued_commands", *lane, *after, limit)]

    def _claim(self, key: CommandKey) -> None:
        no, seq = key
        reach("run.claimed")
        self._post(no, Letter(AttemptStarted(seq, self.epoch)))

    def _attempt_ended(self, entry: Entry, fact: Fact) -> None:
        entry.mailbox.append(Letter(fact))
        self._pump(entry)


def _is_queued(run: Run, command: Execute) -> bool:
    """Whether a command still waits to be started: later facts of the same batch may have seen to it."""
    return command.seq in run.commands and run.steps[command.step].state is StepState.QUEUED


async def _nobody_decides(_: int) -> None:
    """Without a control plane, a run whose group is full waits."""


def _is_passing(result: BaseException | None) -> bool:
    """Whether a failure says nothing of the run, so that another try may succeed; a run that is gone or over does."""
    return result is not None and not isinstance(result, (FailedPreconditionError, NotFoundError))


def _keeps(letter: Letter) -> bool:
    """A start that was not written did not happen: the dispatcher will offer the command again."""
    return letter.fact is not NOTHING and not isinstance(letter.fact, AttemptStarted)
