"""A run as its history tells it, event by event: what the live view draws. Pure: no terminal, no clock."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from taskforge.v1 import run_pb2

from taskforgectl.render.safe import safe_line
from taskforgectl.render.tables import span

__all__ = ["Board", "Fan", "StepLine", "describe_body", "run_state", "step_state"]


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
    describe = _DESCRIBED.get(kind)
    if describe is not None:
        return safe_line(describe(body))
    error = body.get("error")
    if isinstance(error, dict):
        return safe_line(f"{error.get('code', '')}: {error.get('message', '')}")
    return safe_line(str(body.get("reason", "")))


def _waiting(body: Mapping[str, Any]) -> str:
    parts = []
    if body.get("signal"):
        parts.append(f"for signal {body['signal']}")
    elif "approval" in body:
        parts.append(f"for approval: {body['approval']}" if body["approval"] else "for approval")
    elif "workflow" in body:
        parts.append(f"for {body['workflow']} v{body.get('version', '?')} {body.get('child', '')}")
    if "at" in body:
        parts.append(f"until {_at(body['at'])}")
    return ", ".join(parts)


def _said(body: Mapping[str, Any]) -> str:
    """Answer what a person decided, who, and why."""
    parts = [str(body.get("outcome", "")), f"by {body['by']}" if body.get("by") else ""]
    words = body.get("comment") or body.get("reason") or ""
    return ": ".join(part for part in (" ".join(filter(None, parts)), str(words)) if part)


_DESCRIBED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "run.scheduled": lambda body: f"until {_at(body.get('at'))}",
    "run.paused": _said,
    "run.resumed": _said,
    "run.cancel_requested": _said,
    "run.signalled": lambda body: " ".join(filter(None, [str(body.get("signal", "")), _said(body)])),
    "step.retrying": lambda body: f"again in {span(float(body.get('delay_s', 0)))}",
    "step.waiting": _waiting,
    "step.branched": lambda body: f"case {body.get('case')}",
    "step.expanded": lambda body: f"{_count(body.get('items'))} items",
    "step.yielded": lambda _: "",
    "step.approved": _said,
    "step.rejected": _said,
    "step.resolved": _said,
    "step.needs_decision": lambda _: "its effect may have happened: `taskforgectl run resolve` decides",
    "step.child_ended": lambda body: str(body.get("state", "")),
}


def _count(items: Any) -> int | str:
    return len(items) if isinstance(items, list) else "?"


def _at(micros: Any) -> str:
    if not isinstance(micros, int):
        return "?"
    at = dt.datetime.fromtimestamp(micros / 1e6, dt.UTC).astimezone()
    is_near = abs((at - dt.datetime.now(dt.UTC)).total_seconds()) < 12 * 3600
    return at.strftime("%H:%M:%S" if is_near else "%Y-%m-%d %H:%M:%S")


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


@dataclass(slots=True)
class Fan:
    """How far a fan-out is. Of its items only those that are at work, or have failed, are kept, and few of the latter.

    Attributes:
        count: items in all; 0 while that is not known.
        ended: how many have ended, as history tells.
        failed: how many of those failed.
        known: both of these, as the daemon told when it was asked; history may be behind, or begin later.
        open: lines of steps at work, by key.
        lost: lines of steps that failed, by key; at most `_FAILED_MAX`.
    """

    count: int = 0
    ended: int = 0
    failed: int = 0
    known: tuple[int, int] = (0, 0)
    open: dict[str, StepLine] = field(default_factory=dict)
    lost: dict[str, StepLine] = field(default_factory=dict)

    def describe(self) -> str:
        """Answer the counts."""
        ended, failed = max(self.ended, self.known[0]), max(self.failed, self.known[1])
        return f"{ended}/{self.count or '?'} items" + (f", {failed} failed" if failed else "")


_FINAL = frozenset({"SUCCEEDED", "FAILED", "DEAD", "SKIPPED", "CANCELLED"})
_FAILED = frozenset({"FAILED", "DEAD"})
_BUSY = frozenset({"RUNNING", "RETRYING", "WAITING", "NEEDS_DECISION"})
_QUIET = frozenset({"SUCCEEDED", "RUNNING", "QUEUED", "SKIPPED"})
"""States in which what was said of an earlier one, an error or a pause, is over."""

_FAILED_MAX = 100
_ITEM_ROWS = 8
"""Lines of a fan-out's items that are shown of those at work, and of those that failed."""

_INDEX = re.compile(r"\[\d+\]")


def _definition_id(key: str) -> str:
    """Answer what the steps of all items have in common; it gives them their kind."""
    return _INDEX.sub("[]", key)


class Board:
    """The run's header and its steps in the order in which they were reached; of fan-outs a bounded view.

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
        self.fans: dict[str, Fan] = {}
        self._known: dict[str, tuple[str, int]] = {}
        self._wanted: set[str] = set()
        self._asked: set[str] = set()
        self._remember(run)

    def learn(self, run: run_pb2.Run) -> None:
        """Take a newer view of the run, with its steps. Steps that are not in it are not asked for again."""
        self._remember(run)
        self._asked |= self._wanted
        self._wanted.clear()
        for line in [*self.steps.values(), *(one for fan in self.fans.values() for one in fan.open.values())]:
            self._name(line)

    def _remember(self, run: run_pb2.Run) -> None:
        for step in run.steps:
            self._known[_definition_id(step.key)] = (step.kind, step.max_attempts)
            if step.item_count and "[" not in step.key:
                fan = self.fans.setdefault(step.key, Fan())
                fan.count = step.item_count
                fan.known = (step.items_ended, step.items_failed)

    def needs_names(self) -> bool:
        """Answer whether there are steps whose kind is not known and was not asked for."""
        return bool(self._wanted)

    def apply(self, event: run_pb2.HistoryEvent) -> None:
        """Take one event."""
        at = event.create_time.ToMicroseconds() / 1e6
        body = json.loads(event.body_json) if event.body_json else {}
        self.state = run_state(event.run_state) or self.state
        if event.step:
            self._apply_step(event, at, body)
        for key in body.get("skipped", ()):
            if "[" not in key:
                self._line(key).state = "SKIPPED"
        if event.kind.startswith("run."):
            self.error = self._error(event, body)
        if event.kind in {"run.succeeded", "run.failed", "run.dead", "run.cancelled"}:
            self.ended = at

    def _error(self, event: run_pb2.HistoryEvent, body: Mapping[str, Any]) -> str:
        """Answer what went wrong with the run, or why it stands still; the latter is over when it goes on."""
        if event.kind in {"run.signalled", "run.scheduled"}:
            return self.error
        if event.kind == "run.resumed":
            return ""
        return describe_body(event.kind, body) or self.error

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
        if event.kind == "step.expanded" and "[" not in event.step:
            items = body.get("items")
            self.fans.setdefault(event.step, Fan()).count = len(items) if isinstance(items, list) else 0
        if "[" in event.step:
            self._sort(event.step, line)

    def _sort(self, key: str, line: StepLine) -> None:
        """Keep the line of an item's step where it belongs, or nowhere."""
        fan = self.fans[key.partition("[")[0]]
        if line.state not in _BUSY:
            fan.open.pop(key, None)
        is_told = any(one.startswith(f"{key}.") for one in fan.lost)  # by the step inside that failed
        if line.state in _FAILED and len(fan.lost) < _FAILED_MAX and not is_told:
            fan.lost[key] = line
        if line.state in _FINAL and key.endswith("]") and key.count("[") == 1:
            fan.ended += 1
            fan.failed += line.state in _FAILED

    def rows(self) -> Iterator[StepLine]:
        """Yield the lines to be shown; another thread may take events meanwhile."""
        for line in list(self.steps.values()):
            fan = self.fans.get(line.key)
            if fan is None:
                yield line
                continue
            detail = line.detail if line.state in _FAILED else ""
            yield replace(line, detail="; ".join(filter(None, [fan.describe(), detail])))
            yield from _some(list(fan.lost.values()), "failed")
            if line.state not in _FINAL:
                yield from _some(list(fan.open.values()), "at work")

    def _line(self, key: str) -> StepLine:
        fan_out, bracket, _ = key.partition("[")
        if bracket:
            self._line(fan_out)  # watching may have begun after it
            lines = self.fans.setdefault(fan_out, Fan()).open
        else:
            lines = self.steps
        if key not in lines:
            lines[key] = StepLine(key)
            self._name(lines[key])
        return lines[key]

    def _name(self, line: StepLine) -> None:
        known = self._known.get(_definition_id(line.key))
        if known is not None:
            line.kind, line.attempts_max = known
        elif _definition_id(line.key) not in self._asked:
            self._wanted.add(_definition_id(line.key))


def _some(lines: Sequence[StepLine], state: str) -> Iterator[StepLine]:
    """Yield some of the lines, and one that counts the others."""
    yield from lines[:_ITEM_ROWS]
    rest = len(lines) - _ITEM_ROWS
    if rest > 0:
        plus = "+" if len(lines) >= _FAILED_MAX and state == "failed" else ""
        yield StepLine(f"… {rest}{plus} more {state}")


def _joined(line: StepLine, kind: str, detail: str) -> str:
    """Answer what to show: the pause before a retry stands beside the error that caused it."""
    if kind == "step.retrying" and line.detail:
        return f"{line.detail}; {detail}"
    return detail or line.detail
