"""A second host for the engine: virtual time, and everything that can go wrong, decided by one seed.

It does what the embedded host does (commits facts, obeys commands, rebuilds itself after a crash), but in one loop
without a real clock or disk: "disk" is the committed history with the books of what is open and the runs of
sub-workflows, "memory" is the state, the attempts in flight and the messages under way. Crashes drop memory, before or
after a commit. Executors succeed, fail, hang, report twice, report late; commands are offered twice, timers fire late
and twice; sub-workflows fail, die, are cancelled, or could not be started. People pause, resume, signal, approve,
reject, resolve and cancel, also when that makes no sense; when a run waits for nothing else, they do what it waits for.
After each commit `Checker` compares what the engine says with the books.

The same model, seed and chaos give the same run, event by event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

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
    ChildEnded,
    Command,
    CreateRun,
    Fact,
    HistoryEvent,
    IllegalEventError,
    PauseRun,
    ResolveStep,
    StartChild,
    TimerFired,
)
from taskforged.engine.keys import definition_id
from taskforged.engine.machine import apply
from taskforged.engine.model import Json, WorkflowModel
from taskforged.engine.run import Run
from taskforged.engine.states import TERMINAL_RUNS, RunState, StepState
from taskforged.testing.invariants import Checker, Engine, Violation
from taskforged.testing.people import People
from taskforged.testing.rules import CONTAINERS

__all__ = ["Chaos", "Report", "SimulationError", "Simulator"]

_SECOND = 1_000_000
_START = 1_767_225_600 * _SECOND
_ACTIONS_MAX = 20_000
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Chaos:
    """How likely each trouble is; shares of 1.

    Attributes:
        crash: the host dies, per action.
        cancel: somebody cancels the run, once or twice, at any time.
        retryable: an attempt fails in a way that a retry may mend.
        permanent: an attempt fails for good.
        hang: an attempt does nothing until it is cancelled or times out.
        duplicate: a result is delivered again later.
        stale: something long past or never asked for is reported, per action.
        batch: results that are there at the same time are committed together.
        pause: somebody pauses the run, up to three times.
        person: somebody does something to the run, sensible or not, per action.
        later: the run was created for a later time.
        pinned: outputs of an earlier run are taken over.
    """

    crash: float = 0.02
    cancel: float = 0.2
    retryable: float = 0.15
    permanent: float = 0.04
    hang: float = 0.05
    duplicate: float = 0.1
    stale: float = 0.05
    batch: float = 0.3
    pause: float = 0.25
    person: float = 0.04
    later: float = 0.1
    pinned: float = 0.1


@dataclass(frozen=True, slots=True)
class Report:
    """How a simulated run went."""

    seed: int
    state: RunState
    history: tuple[HistoryEvent, ...]
    commits: int
    crashes: int
    attempts: int
    refused: int
    decisions: int
    pauses: int
    elapsed_s: float

    def fingerprint(self) -> str:
        """Answer a hash of the history, order of keys included."""
        return hashlib.sha256("\n".join(map(repr, self.history)).encode()).hexdigest()


class SimulationError(AssertionError):
    """The engine broke a promise. The message holds the seed, which gives the same run again."""

    def __init__(self, seed: int, reason: str, model: WorkflowModel, history: Sequence[HistoryEvent]) -> None:
        tail = "\n".join(f"  {e.sequence} {e.kind} {e.step} #{e.attempt} {dict(e.body)}" for e in history[-30:])
        super().__init__(f"seed {seed}: {reason}\nthe end of the history:\n{tail}\n{model}")
        self.seed = seed
        self.reason = reason


class _CrashError(Exception):
    """The simulated host dies here."""


@dataclass(slots=True)
class _Attempt:
    """An attempt in flight: what it will report, and when."""

    fact: Fact
    due: int
    is_asked_to_stop: bool = False


class Simulator:
    """One run of one definition.

    Args:
        model: the definition.
        seed: decides everything.
        chaos: how much goes wrong.
        pool: how many attempts are executed at the same time.
        data: input of the run.
        engine: the function under test.
    """

    def __init__(
        self,
        model: WorkflowModel,
        *,
        seed: int,
        chaos: Chaos | None = None,
        pool: int = 3,
        data: Json = None,
        engine: Engine = apply,
    ) -> None:
        self._model = model
        self._seed = seed
        self._chaos = Chaos() if chaos is None else chaos
        self._pool = pool
        self._data = data
        self._engine = engine
        self._rng = Random(seed)  # noqa: S311 - reproducible on purpose
        self._now = _START
        # Disk: survives a crash.
        self._disk = Checker(model)
        # Memory: does not.
        self._run = Run()
        self._epoch = 1
        self._attempts: dict[int, _Attempt] = {}
        self._people = People(self._rng)
        # The world outside: survives, but is not ours.
        self._children: dict[int, _Attempt] = {}
        self._past: list[Fact] = []
        self._echoes: list[Fact] = []
        self._cancels = self._draw_moments(self._chaos.cancel, 1)
        if self._cancels and self._chance(0.5):  # impatient
            self._cancels.append(self._cancels[0] + self._rng.choice((0, 1, 200_000, 2 * _SECOND)))
        self._stops = self._draw_moments(self._chaos.pause, 3)
        self._first = self._draw_creation()
        self._commits = self._crashes = self._started = self._refused = self._decisions = self._pauses = 0

    def run(self) -> Report:
        """Execute the run to its end.

        Raises:
            SimulationError: an invariant did not hold, the engine raised, or the run does not end.
        """
        try:
            self._loop()
            self._disk.end(self._engine)
        except SimulationError:
            raise
        except Violation as violation:
            raise self._failure(str(violation)) from violation
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error
        return Report(
            seed=self._seed,
            state=self._run.state,
            history=tuple(self._disk.history),
            commits=self._commits,
            crashes=self._crashes,
            attempts=self._started,
            refused=self._refused,
            decisions=self._decisions,
            pauses=self._pauses,
            elapsed_s=(self._now - _START) / _SECOND,
        )

    def _failure(self, reason: str) -> SimulationError:
        return SimulationError(self._seed, reason, self._model, self._disk.history)

    def _loop(self) -> None:
        for _ in range(_ACTIONS_MAX):
            if self._run.state in TERMINAL_RUNS:
                people = self._people.anything(self._run)
                for fact in [*self._echoes, CancelRun(), AdmitRun(), self._first, PauseRun(), *people]:
                    self._refuse(fact)
                return
            try:
                self._act()
            except _CrashError:
                self._recover()
        raise self._failure("the run does not end")

    def _act(self) -> None:
        """Do one thing that is possible now; when there is nothing, let time pass until there is."""
        if self._chance(self._chaos.crash):
            raise _CrashError
        if self._chance(self._chaos.stale):
            self._refuse(self._stale_fact())
        if self._chance(self._chaos.person):
            self._interfere()
            return
        if self._echoes and self._chance(0.3):
            self._refuse(self._echoes.pop(self._rng.randrange(len(self._echoes))))
        actions = self._actions()
        if actions:
            self._rng.choice(actions)()
        else:
            self._pass_time()

    def _actions(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        if self._run.state is RunState.NEW:
            return [self._create]
        if self._stops and self._stops[0] <= self._now:
            found.append(self._pause)
        if any(child.due <= self._now for child in self._children.values()):
            found.append(self._end_child)
        if self._run.state is RunState.PENDING:
            found.append(self._admit)
        if self._cancels and self._cancels[0] <= self._now:
            found.append(self._cancel)
        if self._claimable() and len(self._attempts) < self._pool:
            found.append(self._claim)
        if any(attempt.due <= self._now for attempt in self._attempts.values()):
            found.append(self._report)
        if any(at <= self._now for at in self._disk.books.timers.values()):
            found.append(self._fire)
        return found

    def _pass_time(self) -> None:
        moments = [attempt.due for attempt in (*self._attempts.values(), *self._children.values())]
        moments += self._disk.books.timers.values()
        moments += self._cancels[:1]
        moments += self._stops[:1]
        if moments:
            self._now = max(self._now, min(moments)) + self._rng.choice((0, 0, 1, 50_000))
            return
        awaited = self._people.awaited(self._run)
        if not awaited:
            raise self._failure("the run is open, and nothing will ever move it")
        self._commit(self._rng.choice(awaited))

    def _interfere(self) -> None:
        """Let somebody do something. What makes sense must be accepted, everything else refused."""
        awaited = self._people.awaited(self._run)
        if awaited and self._chance(0.5):
            self._commit(self._rng.choice(awaited))
            return
        fact = self._rng.choice(self._people.anything(self._run))
        if self._people.makes_sense(self._run, fact):
            self._commit(fact)
        else:
            self._refuse(fact)

    # --- what a host does --------------------------------------------------------------------------------------------

    def _create(self) -> None:
        self._commit(self._first)

    def _draw_creation(self) -> CreateRun:
        pinned: dict[str, Json] = {}
        if self._chance(self._chaos.pinned):
            leaves = [key for key, step in self._model.steps.items() if not isinstance(step.spec, CONTAINERS)]
            keys = [key.replace("[]", "[0]") for key in leaves if self._model.depth[key] < 2 and ":" not in key]
            pinned = {key: {"value": "old"} for key in keys if self._chance(0.4)}
        later = self._chance(self._chaos.later)
        return CreateRun(
            f"run_{self._seed}",
            "default",
            self._model.name,
            1,
            self._data,
            run_at=_START + self._rng.choice((-1, 0, 1, 9 * _SECOND)) if later else 0,
            pins={"child": 7} if self._chance(0.9) else None,
            pinned=pinned or None,
            items_max=self._rng.choice((4, 10_000, 10_000)),
        )

    def _admit(self) -> None:
        self._commit(AdmitRun())

    def _cancel(self) -> None:
        self._cancels.pop(0)
        self._commit(CancelRun(reason="changed my mind", by="chaos"))

    def _pause(self) -> None:
        self._stops.pop(0)
        self._pauses += 1
        fact = PauseRun("lunch", "chaos")
        if self._people.makes_sense(self._run, fact):
            self._commit(fact)
        else:
            self._refuse(fact)

    def _end_child(self) -> None:
        due = [seq for seq, child in self._children.items() if child.due <= self._now]
        chosen = due if self._chance(self._chaos.batch) else [self._rng.choice(due)]
        facts = [self._children[seq].fact for seq in chosen]
        self._commit(*facts)
        self._echoes += [fact for fact in facts if self._chance(self._chaos.duplicate)]

    def _claimable(self) -> list[int]:
        steps = self._run.steps
        return [seq for seq, key in self._disk.books.commands.items() if steps[key].state is StepState.QUEUED]

    def _claim(self) -> None:
        """Take a command that waits; its start is recorded before the attempt does anything."""
        seq = self._rng.choice(self._claimable())
        start = AttemptStarted(seq, self._epoch)
        attempt = self._draw_attempt(seq)
        if attempt.due <= self._now and self._chance(0.5):
            self._commit(start, attempt.fact)  # done at once: one commit for start and result
        else:
            self._commit(start)
            self._attempts[seq] = attempt
        self._started += 1

    def _report(self) -> None:
        due = [seq for seq, attempt in self._attempts.items() if attempt.due <= self._now]
        self._rng.shuffle(due)
        chosen = due if self._chance(self._chaos.batch) else due[:1]
        facts = [self._attempts[seq].fact for seq in chosen]
        # A result that ends the run leaves none for the others: they are stopped first, so all of these are awaited.
        self._commit(*facts)
        for seq in chosen:
            self._attempts.pop(seq, None)
        self._echoes += [fact for fact in facts if self._chance(self._chaos.duplicate)]

    def _fire(self) -> None:
        due = [seq for seq, at in self._disk.books.timers.items() if at <= self._now]
        self._commit(TimerFired(self._rng.choice(due)))

    def _commit(self, *facts: Fact) -> None:
        """Apply facts and write what follows; the host may die on either side of the write."""
        before = self._run
        outcome = self._engine(self._model, before, facts, self._now)
        if self._chance(self._chaos.crash):
            raise _CrashError
        self._disk.commit(before, facts, outcome, self._now)
        self._commits += 1
        self._past += facts
        self._decisions += sum(isinstance(fact, ResolveStep) for fact in facts)
        self._keep_children(facts, outcome.commands)
        if self._chance(self._chaos.crash):
            raise _CrashError
        self._run = outcome.run
        for command in outcome.commands:
            if isinstance(command, CancelExecution):
                self._ask_to_stop(command.seq)

    def _keep_children(self, facts: Sequence[Fact], commands: Sequence[Command]) -> None:
        """Create and cancel the runs of sub-workflows; that is in the transaction, so no crash comes between."""
        for command in commands:
            if isinstance(command, StartChild):
                self._children[command.seq] = self._draw_child(command.seq)
            elif isinstance(command, CancelChild) and self._chance(0.8):
                ended = ChildEnded(command.seq, "CANCELLED")
                self._children[command.seq] = _Attempt(ended, self._now + self._rng.choice((0, 100_000)))
        for fact in facts:
            if isinstance(fact, ChildEnded):
                del self._children[fact.command]

    def _refuse(self, fact: Fact) -> None:
        """Offer a fact that nobody waits for. It must be refused and change nothing."""
        if self._people.makes_sense(self._run, fact):
            return  # it may be legal again
        try:
            self._engine(self._model, self._run, [fact], self._now)
        except IllegalEventError:
            self._refused += 1
            self._disk.unchanged(self._run)
            return
        raise Violation(f"{fact} is stale and was accepted")

    def _stale_fact(self) -> Fact:
        if self._disk.books.withdrawn and self._chance(0.5):
            return AttemptStarted(self._rng.choice(sorted(self._disk.books.withdrawn)), self._epoch)
        if self._children and self._chance(0.2):
            seq = self._rng.choice(list(self._children))
            return self._rng.choice((AttemptCompleted(seq, 1), AttemptStarted(seq, 1), AttemptCancelled(seq)))
        not_asked = [seq for seq, attempt in self._attempts.items() if not attempt.is_asked_to_stop]
        if not_asked and self._chance(0.3):
            return AttemptCancelled(not_asked[0])
        return self._rng.choice(self._past) if self._past else TimerFired(999)

    def _recover(self) -> None:
        """Start again from disk: attempts of the earlier epoch are lost, commands and timers are still there."""
        self._crashes += 1
        self._epoch += 1
        self._echoes += [attempt.fact for attempt in self._attempts.values() if self._chance(self._chaos.duplicate)]
        self._attempts.clear()
        self._run = self._disk.restart()
        steps = self._run.steps
        cut = [seq for seq, key in self._disk.books.commands.items() if steps[key].state is StepState.RUNNING]
        if not cut:
            return
        try:
            self._commit(*(AttemptLost(seq, f"the daemon stopped in epoch {self._epoch - 1}") for seq in cut))
        except _CrashError:
            self._recover()

    # --- what the world does -----------------------------------------------------------------------------------------

    def _draw_moments(self, share: float, most: int) -> list[int]:
        if not self._chance(share):
            return []
        return sorted(_START + round(self._rng.expovariate(0.2) * _SECOND) for _ in range(self._rng.randint(1, most)))

    def _draw_child(self, seq: int) -> _Attempt:
        due = self._now + self._rng.choice((0, 1, 80_000, 2 * _SECOND, 90 * _SECOND))
        draw = self._rng.random()
        if draw < 0.6:
            return _Attempt(ChildEnded(seq, "SUCCEEDED", {"value": "grown up"}), due)
        if draw < 0.7:
            error = {"code": "too_deep", "message": "the run is nested too deeply"}
            return _Attempt(ChildEnded(seq, "", None, error), due)
        state = self._rng.choice(("FAILED", "DEAD", "CANCELLED"))
        gone = {"code": "http_404", "message": "gone"}
        return _Attempt(ChildEnded(seq, state, None, None if state == "CANCELLED" else gone), due)

    def _draw_attempt(self, seq: int) -> _Attempt:
        chaos, draw = self._chaos, self._rng.random()
        due = self._now + self._rng.choice((0, 1, 80_000, 2 * _SECOND))
        if draw < chaos.retryable:
            after = self._rng.choice((None, None, 0.5, 30.0))
            return _Attempt(AttemptFailed(seq, {"code": "http_503", "message": "busy"}, True, after), due)
        draw -= chaos.retryable
        if draw < chaos.permanent:
            return _Attempt(AttemptFailed(seq, {"code": "http_404", "message": "gone"}, retryable=False), due)
        draw -= chaos.permanent
        if draw < chaos.hang:
            timeout = self._model.steps[definition_id(self._disk.books.commands[seq])].timeout_s or _TIMEOUT_S
            fact = AttemptFailed(seq, {"code": "timeout", "message": "it took too long"}, True, None, is_unknown=True)
            return _Attempt(fact, self._now + round(timeout * _SECOND))
        return _Attempt(AttemptCompleted(seq, {"value": self._rng.randint(0, 9)}), due)

    def _ask_to_stop(self, seq: int) -> None:
        """Most executors stop when asked; some are done before they notice."""
        attempt = self._attempts.get(seq)
        if attempt is None or attempt.is_asked_to_stop:
            return
        attempt.is_asked_to_stop = True
        if self._chance(0.8):
            attempt.fact = AttemptCancelled(seq)
            attempt.due = self._now + self._rng.choice((0, 1, 100_000))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share
