"""From the history of a run to its spans: one for the run, one for each step and each attempt.

Everything comes from what is recorded: times, states, errors, and ids that are hashes of recorded ids
(`correlation.py`). So the spans of a run are the same whenever they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from taskforged.correlation import attempt_span, run_span, step_span, trace_id_of
from taskforged.engine.events import HistoryEvent
from taskforged.engine.states import Kind

__all__ = ["SPANS_MAX", "Span", "spans_of"]

SPANS_MAX = 5000
"""Spans of one run; a fan-out of 10,000 items shows its first ones, and the run's span says how many are left out."""

Attributes: TypeAlias = dict[str, str | int]

_ATTEMPT_ENDS = {
    Kind.STEP_COMPLETED: "succeeded",
    Kind.STEP_ATTEMPT_FAILED: "failed",
    Kind.STEP_ATTEMPT_LOST: "lost",
    Kind.STEP_ATTEMPT_CANCELLED: "cancelled",
}
_STEP_ENDS = {
    Kind.STEP_COMPLETED: "SUCCEEDED",
    Kind.STEP_SUCCEEDED: "SUCCEEDED",
    Kind.STEP_FAILED: "FAILED",
    Kind.STEP_DEAD: "DEAD",
    Kind.STEP_CANCELLED: "CANCELLED",
    Kind.STEP_ATTEMPT_CANCELLED: "CANCELLED",
}
_RUN_ENDS = {
    Kind.RUN_SUCCEEDED: "SUCCEEDED",
    Kind.RUN_FAILED: "FAILED",
    Kind.RUN_DEAD: "DEAD",
    Kind.RUN_CANCELLED: "CANCELLED",
}
_BAD = frozenset({"FAILED", "DEAD", "failed", "lost"})


@dataclass(slots=True)
class Span:
    """One span. Ids are hexadecimal, times microseconds. `error` is empty unless it failed."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int = 0
    attributes: Attributes = field(default_factory=dict)
    events: list[tuple[str, int, Attributes]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    error: str = ""
    is_remote: bool = False


def spans_of(history: Iterable[HistoryEvent]) -> Sequence[Span]:
    """Answer the spans of a run that has ended, the run's first. None when whoever caused it does not want any."""
    maker = _Maker()
    for event in history:
        maker.take(event)
    return maker.finish()


class _Maker:
    """Reads a history from its beginning."""

    def __init__(self) -> None:
        self._run_id = self._trace_id = ""
        self._run: Span | None = None
        self._is_wanted = True
        self._steps: dict[str, Span] = {}
        self._attempts: dict[str, Span] = {}
        self._spans: list[Span] = []
        self._left_out = 0
        self._error = ""
        self._last = 0

    def take(self, event: HistoryEvent) -> None:
        self._last = event.at
        if event.kind is Kind.RUN_CREATED:
            self._begin_run(event)
        elif event.step:
            self._take_step(event)
        else:
            self._take_run(event)

    def finish(self) -> Sequence[Span]:
        if self._run is None or not self._is_wanted:
            return []
        for span in self._spans:
            span.ended = span.ended or self._last
        if self._left_out:
            self._run.attributes["taskforge.spans_left_out"] = self._left_out
        return self._spans

    # --- the run -----------------------------------------------------------------------------------------------------

    def _begin_run(self, event: HistoryEvent) -> None:
        body = event.body
        traceparent = body.get("traceparent", "")
        self._run_id = run_id = body["run_id"]
        self._trace_id = trace_id_of(run_id, traceparent)
        self._is_wanted = not traceparent or bool(int(traceparent[53:55], 16) & 1)
        attributes: Attributes = {
            "taskforge.run.id": run_id,
            "taskforge.namespace": body["namespace"],
            "taskforge.workflow": body["workflow"],
            "taskforge.workflow.version": body["version"],
            "taskforge.correlation_id": body.get("correlation_id", "") or run_id,
            "taskforge.trigger": body.get("trigger", "manual"),
            "taskforge.queue": body.get("queue", "default"),
        }
        self._run = Span(f"run {body['workflow']}", self._trace_id, run_span(run_id), traceparent[36:52], event.at)
        self._run.is_remote = body.get("parent") is None
        for name in ("event_id", "retry_of", "rerun_of"):
            if body.get(name):
                attributes[f"taskforge.{name}"] = body[name]
        if body.get("retry_of"):  # its run's span is in the same trace, as the span that caused this one
            self._run.links.append((self._trace_id, run_span(body["retry_of"])))
        self._run.attributes = attributes
        self._spans.append(self._run)

    def _take_run(self, event: HistoryEvent) -> None:
        assert self._run is not None
        if event.kind is Kind.RUN_FAILING:
            self._error = _message(event.body)
        state = _RUN_ENDS.get(event.kind)
        if state is not None:
            self._run.ended = event.at
            self._run.attributes["taskforge.state"] = state
            self._run.error = (self._error or _message(event.body) or state) if state in _BAD else ""
        elif event.kind in {Kind.RUN_STARTED, Kind.RUN_PAUSED, Kind.RUN_RESUMED, Kind.RUN_CANCEL_REQUESTED}:
            self._run.events.append((event.kind.value, event.at, {}))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _take_step(self, event: HistoryEvent) -> None:
        if event.kind is Kind.STEP_SKIPPED:
            return
        step = self._steps.get(event.step) or self._begin_step(event)
        if step is None:
            return
        if event.kind is Kind.STEP_STARTED:
            self._begin_attempt(event, step)
        elif event.kind is Kind.STEP_RETRYING:
            step.events.append((event.kind.value, event.at, {"taskforge.attempt": event.attempt}))
        outcome = _ATTEMPT_ENDS.get(event.kind)
        if outcome is not None:
            self._end_attempt(event, outcome)
        state = _STEP_ENDS.get(event.kind)
        if state is not None:
            step.ended = event.at
            step.attributes["taskforge.state"] = state
            step.error = (_message(event.body) or step.error or state) if state in _BAD else ""

    def _begin_step(self, event: HistoryEvent) -> Span | None:
        assert self._run is not None
        span = Span(
            f"step {event.step}", self._trace_id, step_span(self._run_id, event.step), self._run.span_id, event.at
        )
        span.attributes = {"taskforge.run.id": self._run_id, "taskforge.step": event.step}
        if not self._keep(span):
            return None
        self._steps[event.step] = span
        return span

    def _begin_attempt(self, event: HistoryEvent, step: Span) -> None:
        span_id = attempt_span(self._run_id, event.step, event.attempt)
        span = Span(f"attempt {event.step}", self._trace_id, span_id, step.span_id, event.at)
        span.attributes = {**step.attributes, "taskforge.attempt": event.attempt}
        if self._keep(span):
            self._attempts[event.step] = span

    def _end_attempt(self, event: HistoryEvent, outcome: str) -> None:
        span = self._attempts.pop(event.step, None)
        if span is None:
            return
        span.ended = event.at
        span.attributes["taskforge.outcome"] = outcome
        if outcome in _BAD:
            span.error = _message(event.body) or outcome
            self._steps[event.step].error = span.error

    def _keep(self, span: Span) -> bool:
        if len(self._spans) >= SPANS_MAX:
            self._left_out += 1
            return False
        self._spans.append(span)
        return True


def _message(body: Any) -> str:
    """Answer what a history entry says of an error; secrets are masked there already."""
    error = body.get("error")
    text = error.get("message") or error.get("code") or "" if isinstance(error, dict) else body.get("reason", "")
    return str(text)[:500]
