"""A run as its history tells it, event by event: what the live view draws. Pure: no terminal, no clock."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskforge.v1 import run_pb2

from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import span

__all__ = ["Board", "StepLine", "describe_body", "run_state", "step_state"]


def run_state(number: int) -> str:
    """Answer a run's state without its prefix."""
    return _name(run_pb2.Run.State.DESCRIPTOR, number)


def step_state(number: int) -> str:
    """Answer a step's state without its prefix; empty when it has none."""
    return _name(run_pb2.StepRun.State.DESCRIPTOR, number)


def _name(kind: Any, number: int) -> str:
    known = kind.values_by_number.get(number)
    return str(number) if known is None else str(known.name).removeprefix("STATE_").replace("UNSPECIFIED", "")


def describe_body(kind: str, body: Mapping[str, Any] | None) -> str:
    """Answer on one line what an event's body tells a reader."""
    if not body:
        return ""
    if kind == "step.retrying":
        return f"again in {span(float(body.get('delay_s', 0)))}"
    if kind == "step.waiting":
        return f"until {_at(body.get('at'))}"
    if kind == "step.branched":
        return f"case {body.get('case')}"
    error = body.get("error")
    if isinstance(error, dict):
        return safe_line(f"{error.get('code', '')}: {error.get('message', '')}")
    return safe_line(str(body.get("reason", "")))


def _at(micros: Any) -> str:
    if not isinstance(micros, int):
        return "?"
    return dt.datetime.fromtimestamp(micros / 1e6, dt.UTC).astimezone().strftime("%H:%M:%S")


@dataclass(slots=True)
class StepLine:
    """What is known of one step. Times are seconds since 1970."""

    key: str
    kind: str = ""
    state: str = ""
    attempt: int = 0
    attempts_max: int = 0
    began: float = 0.0
    ended: float = 0.0
    detail: str = ""


_FINAL = frozenset({"SUCCEEDED", "FAILED", "DEAD", "SKIPPED", "CANCELLED"})
_QUIET = frozenset({"SUCCEEDED", "RUNNING", "QUEUED", "SKIPPED"})
"""States in which what was said of an earlier one, an error or a pause, is over."""


class Board:
    """The run's header and its steps in the order in which they were reached.

    Args:
        run: as it is when watching begins; gives the kinds of steps and their budgets, which history does not repeat.
    """

    def __init__(self, run: run_pb2.Run) -> None:
        self.run = run
        self.state = run_state(run.state)
        self.began = run.create_time.ToMicroseconds() / 1e6
        self.ended = 0.0
        self.error = ""
        self.steps: dict[str, StepLine] = {}
        self._known = {step.key: step for step in run.steps}

    def learn(self, run: run_pb2.Run) -> None:
        """Take a newer view of the run, with its steps."""
        self._known = {step.key: step for step in run.steps}
        for key, line in self.steps.items():
            self._name(line, key)

    def needs_names(self) -> bool:
        """Answer whether there are steps whose kind is not known."""
        return any(not line.kind for line in self.steps.values())

    def apply(self, event: run_pb2.HistoryEvent) -> None:
        """Take one event."""
        at = event.create_time.ToMicroseconds() / 1e6
        body = json.loads(event.body_json) if event.body_json else {}
        self.state = run_state(event.run_state) or self.state
        if event.step:
            self._apply_step(event, at, body)
        for key in body.get("skipped", ()):
            self._line(key).state = "SKIPPED"
        if event.kind.startswith("run."):
            self.error = describe_body(event.kind, body) or self.error
        if event.kind in {"run.succeeded", "run.failed", "run.dead", "run.cancelled"}:
            self.ended = at

    def _apply_step(self, event: run_pb2.HistoryEvent, at: float, body: Mapping[str, Any]) -> None:
        line = self._line(event.step)
        line.state = step_state(event.step_state) or line.state
        line.attempt = event.attempt or line.attempt
        line.began = line.began or at
        if line.state in _FINAL:
            line.ended = at
        if line.state in _QUIET:
            line.detail = ""
        line.detail = _joined(line, event.kind, describe_body(event.kind, body))

    def _line(self, key: str) -> StepLine:
        if key not in self.steps:
            self.steps[key] = StepLine(key)
            self._name(self.steps[key], key)
        return self.steps[key]

    def _name(self, line: StepLine, key: str) -> None:
        known = self._known.get(key)
        if known is not None:
            line.kind, line.attempts_max = known.kind, known.max_attempts


def _joined(line: StepLine, kind: str, detail: str) -> str:
    """Answer what to show: the pause before a retry stands beside the error that caused it."""
    if kind == "step.retrying" and line.detail:
        return f"{line.detail}; {detail}"
    return detail or line.detail
