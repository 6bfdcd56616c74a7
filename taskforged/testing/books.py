"""The books of a host: what the engine has asked for and not had yet, kept by obeying its commands alone."""

from __future__ import annotations

from collections.abc import Sequence

from taskforged.engine.events import (
    AttemptCancelled,
    AttemptCompleted,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    CancelChild,
    CancelExecution,
    ChildEnded,
    ClearTimer,
    Command,
    Execute,
    Fact,
    FinishRun,
    HistoryEvent,
    Publish,
    SetTimer,
    StartChild,
    TimerFired,
    Withdraw,
)
from taskforged.engine.run import Run
from taskforged.engine.states import Kind, RunState, StepState

__all__ = ["Books", "Violation"]

_EXECUTE_KINDS = frozenset({Kind.STEP_QUEUED, Kind.TIMER_FIRED})
_TIMER_KINDS = frozenset({Kind.STEP_RETRYING, Kind.STEP_WAITING, Kind.STEP_YIELDED, Kind.RUN_STARTED}) | {
    *(Kind.RUN_SCHEDULED, Kind.RUN_RESUMED, Kind.RUN_CANCELLING),
}


class Violation(AssertionError):  # noqa: N818 - it is a verdict, and reads as one in a report
    """The engine has broken a promise."""


class Books:
    """What is open.

    Attributes:
        commands: asked for and not withdrawn attempts, sequence to step.
        timers: sequence to due time.
        children: sub-workflows that were started and have not ended.
        withdrawn: attempts that a pause has called back.
        born: ids of the runs of all sub-workflows.
        published: ids of the events that were published, with their step.
        finished: whether the run is over.
    """

    def __init__(self, history: list[HistoryEvent]) -> None:
        self.commands: dict[int, str] = {}
        self.timers: dict[int, int] = {}
        self.children: dict[int, StartChild] = {}
        self.withdrawn: set[int] = set()
        self.born: set[str] = set()
        self.published: dict[str, str] = {}
        self.finished = False
        self._history = history
        self._started: set[int] = set()
        self._asked: set[int] = set()
        self._known: set[int] = set()

    def enter(self, facts: Sequence[Fact], commands: Sequence[Command]) -> None:
        """Enter facts and the commands that they led to.

        One call may start, stop and end the same thing, so the order is: what was started, what is opened and stopped
        in the order of the commands, what has ended.
        """
        for fact in facts:
            if isinstance(fact, AttemptStarted):
                _expect(fact.command not in self._started, f"command {fact.command} was started twice")
                self._started.add(fact.command)
        for command in commands:
            _expect(not self.finished, f"{command} after FinishRun")
            match command:
                case Execute() | SetTimer() | StartChild() | Publish():
                    self._open(command)
                case _:
                    self._stop(command)
        for fact in facts:
            self._close(fact)

    def _open(self, command: Execute | SetTimer | StartChild | Publish) -> None:
        match command:
            case Execute():
                self._execute(command)
            case SetTimer():
                self._set_timer(command)
            case StartChild():
                self._start_child(command)
            case Publish():
                self._publish(command)

    def _execute(self, command: Execute) -> None:
        seq, event = command.seq, self._event_of(command.seq)
        _expect(event.kind in _EXECUTE_KINDS and event.step == command.step, f"{command} does not fit {event}")
        _expect(seq not in self._known or seq in self.withdrawn, f"{command} came twice")
        _expect(seq not in self.commands, f"{command}, which is open")
        self._known.add(seq)
        self.withdrawn.discard(seq)
        self.commands[seq] = command.step

    def _set_timer(self, command: SetTimer) -> None:
        seq, event = command.seq, self._event_of(command.seq)
        due = event.body.get("at", event.body.get("timeout_at"))
        _expect(event.kind in _TIMER_KINDS and due == command.at, f"{command} does not fit {event}")
        _expect(seq not in self._known, f"{command} came twice")
        self._known.add(seq)
        self.timers[seq] = command.at

    def _start_child(self, command: StartChild) -> None:
        event = self._event_of(command.seq)
        named = (command.step, command.run_id, command.workflow, command.version, command.input)
        body = event.body
        _expect(event.kind is Kind.STEP_WAITING and "child" in body, f"{command} does not fit {event}")
        recorded = (event.step, body["child"], body["workflow"], body["version"], body["input"])
        _expect(named == recorded, f"{command} does not fit {event}")
        _expect(command.run_id not in self.born, f"{command} came twice")
        self.born.add(command.run_id)
        self.children[command.seq] = command

    def _publish(self, command: Publish) -> None:
        event = next(one for one in reversed(self._history) if one.step == command.step)
        _expect(event.kind is Kind.STEP_SUCCEEDED and event.body.get("data") == command.data, f"{command}: {event}")
        _expect(event.body["output"] == {"event_id": command.event_id, "type": command.type}, f"{command}: {event}")
        _expect(command.event_id not in self.published, f"{command} came twice")
        self.published[command.event_id] = command.step

    def _stop(self, command: Command) -> None:
        match command:
            case Withdraw(seq):
                _expect(seq not in self._started, f"{command}, which was started")
                _expect(self.commands.pop(seq, None) is not None, f"{command}, which is not open")
                self.withdrawn.add(seq)
            case CancelExecution(seq):
                _expect(seq in self.commands and seq in self._started, f"{command}, which is not executed")
                self._asked.add(seq)
            case CancelChild(seq):
                _expect(seq in self.children, f"{command}, which is not open")
                self._asked.add(seq)
            case ClearTimer(seq):
                _expect(self.timers.pop(seq, None) is not None, f"{command}, which is not open")
            case FinishRun():
                self.finished = True
            case _:
                pass

    def _close(self, fact: Fact) -> None:
        match fact:
            case AttemptCompleted() | AttemptFailed() | AttemptLost() | AttemptCancelled():
                _expect(fact.command in self._started, f"command {fact.command} ended without a start")
                _expect(self.commands.pop(fact.command, None) is not None, "a result was accepted twice")
            case ChildEnded(command=seq):
                _expect(self.children.pop(seq, None) is not None, f"child {seq} ended twice")
            case TimerFired(timer=seq):
                _expect(self.timers.pop(seq, None) is not None, f"timer {seq} fired twice")
            case _:
                pass

    def _event_of(self, seq: int) -> HistoryEvent:
        _expect(0 < seq <= len(self._history), f"there is no event {seq}")
        return self._history[seq - 1]

    def compare(self, run: Run) -> None:
        """Check that the engine's state has the same open; what a paused run has queued is in no host's books."""
        attempts, children = dict[int, str](), dict[int, str]()
        for seq, key in run.commands.items():
            state = run.steps[key].state
            if state is StepState.WAITING:
                children[seq] = key
            elif state is not StepState.QUEUED or run.state is not RunState.PAUSED:
                attempts[seq] = key
        _expect(attempts == self.commands, f"open commands: engine {attempts}, host {self.commands}")
        mine = {seq: child.step for seq, child in self.children.items()}
        _expect(children == mine, f"open sub-workflows: engine {children}, host {mine}")
        _expect(run.timers.keys() == self.timers.keys(), f"open timers: engine {run.timers}, host {self.timers}")

    def was_asked(self, seq: int) -> bool:
        """Say whether an attempt or a sub-workflow was asked to stop."""
        return seq in self._asked


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise Violation(message)
