"""A run's history in words: one line, or none, for each event.

What an event means can depend on those before it: which request an attempt sends stands in the event that queued the
step. So a narrator is told all events in order, and remembers little: something of each step that is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from taskforged.engine.events import HistoryEvent, rfc3339
from taskforged.engine.model import Json
from taskforged.engine.states import Kind
from taskforged.jsonvalue import to_text

__all__ = ["MASK", "TEXT_MAX", "Narrator", "told_request"]

MASK = "***"
"""Stands for the value of a secret, as in outputs."""

TEXT_MAX = 2000
"""Characters of a line."""

_REQUEST_MAX = 500


class Narrator:
    """Puts the events of one run into words."""

    __slots__ = ("_requests", "_started")

    def __init__(self) -> None:
        self._requests: dict[str, str] = {}
        self._started: dict[str, int] = {}

    def copy(self) -> Narrator:
        """Answer one that has been told the same."""
        twin = Narrator()
        twin._requests.update(self._requests)
        twin._started.update(self._started)
        return twin

    def tell(self, event: HistoryEvent) -> str:
        """Answer the line for an event, empty when there is nothing to say."""
        teller = _TELLERS.get(event.kind)
        text = "" if teller is None else teller(self, event)
        if event.kind in _OVER:
            self._requests.pop(event.step, None)
            self._started.pop(event.step, None)
        text = " ".join(text.split())
        return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"

    # --- attempts ----------------------------------------------------------------------------------------------------

    def queued(self, event: HistoryEvent) -> str:
        """Remember the request; tell only of a repetition that nobody paused for."""
        if "input" in event.body:
            request = told_request(event.body["input"])
            if request:
                self._requests[event.step] = request
        return f"attempt {event.attempt} follows" if event.attempt > 1 else ""

    def started(self, event: HistoryEvent) -> str:
        """An attempt begins."""
        self._started[event.step] = event.at
        request = self._requests.get(event.step)
        return f"attempt {event.attempt} started" + (f": {request}" if request else "")

    def completed(self, event: HistoryEvent) -> str:
        """An attempt succeeded."""
        facts = [*_told_output(event.body.get("output")), self._took(event)]
        return f"attempt {event.attempt} succeeded: " + ", ".join(filter(None, facts))

    def attempt_failed(self, event: HistoryEvent) -> str:
        """An attempt failed."""
        effect = "; its effect may have happened all the same" if event.body.get("is_unknown") else ""
        return f"attempt {event.attempt} failed {self._took(event, 'after')}: {_error(event.body.get('error'))}{effect}"

    def lost(self, event: HistoryEvent) -> str:
        """An attempt was cut."""
        return f"attempt {event.attempt} was lost: {event.body.get('reason', '')}"

    def stopped(self, event: HistoryEvent) -> str:
        """An attempt was cancelled."""
        return f"attempt {event.attempt} was stopped {self._took(event, 'after')}"

    def _took(self, event: HistoryEvent, word: str = "in") -> str:
        started = self._started.get(event.step)
        return "" if started is None else f"{word} {(event.at - started) / 1e6:.3f} s"


_Teller: TypeAlias = Callable[[Narrator, HistoryEvent], str]


def told_request(config: Json) -> str:
    """Answer what an executor is asked to do, secrets as `***`: an http request or a command; else nothing."""
    if not isinstance(config, dict):
        return ""
    if "url" in config:
        text = f"{_shown(config.get('method', 'GET'))} {_without_user(_shown(config['url']))}{_query(config)}"
    elif "command" in config:
        command = config["command"]
        text = " ".join(map(_shown, command)) if isinstance(command, list) else _shown(command)
    else:
        return ""
    return text if len(text) <= _REQUEST_MAX else text[: _REQUEST_MAX - 1] + "…"


def _query(config: Mapping[str, Json]) -> str:
    query = config.get("query")
    if not isinstance(query, dict) or not query:
        return ""
    joint = "&" if "?" in str(config["url"]) else "?"
    return joint + "&".join(f"{name}={_shown(value)}" for name, value in query.items())


def _shown(value: Json) -> str:
    """Answer a value as text, references to secrets as `***`."""
    match value:
        case str():
            return value
        case {"$secret": _}:
            return MASK
        case {"$concat": list(pieces)}:
            return "".join(map(_shown, pieces))
        case dict() | list():
            return "…"
    return to_text(value)


def _without_user(url: str) -> str:
    """Answer an address without its password, should somebody have written one."""
    scheme, mark, rest = url.partition("://")
    host = rest.partition("/")[0]
    user, at, _ = host.rpartition("@")
    return f"{scheme}://{MASK}@{rest[len(user) + 1 :]}" if mark and at else url


def _told_output(output: Json) -> Iterator[str]:
    if not isinstance(output, dict):
        return
    if isinstance(output.get("status"), int):
        yield f"status {output['status']}"
        yield f"{_size(output):,} bytes"
    elif isinstance(output.get("exit_code"), int):
        yield f"exit code {output['exit_code']}"


def _size(output: Mapping[str, Json]) -> int:
    """Answer how many bytes an http answer had: what its header says, else what was kept of it."""
    headers = output.get("headers")
    length = headers.get("content-length") if isinstance(headers, dict) else None
    if isinstance(length, str) and length.isascii() and length.isdigit() and len(length) < 16:
        return int(length)
    body = output.get("body")
    if body is None:
        return 0
    return len((body if isinstance(body, str) else to_text(body)).encode())


def _error(error: Json) -> str:
    if not isinstance(error, dict):
        return "no reason is known"
    place = f" (step {error['step']})" if error.get("step") else ""
    return f"{error.get('code', 'failed')}: {error.get('message', '')}{place}"


def _by(event: HistoryEvent) -> str:
    """Answer who did something, and what they said."""
    body = event.body
    said = body.get("comment") or body.get("reason")
    return (f" by {body['by']}" if body.get("by") else "") + (f": {said}" if said else "")


# --- decisions and what else happens to steps ------------------------------------------------------------------------


def _retrying(_: Narrator, event: HistoryEvent) -> str:
    return f"attempt {event.attempt + 1} follows in {event.body['delay_s']:g} s, at {rfc3339(event.body['at'])}"


def _needs_decision(_: Narrator, event: HistoryEvent) -> str:
    reason = (event.body.get("evidence") or {}).get("reason", "")
    return f"needs a decision, for its effect may or may not have happened: {reason}"


def _resolved(_: Narrator, event: HistoryEvent) -> str:
    return f"resolved as {event.body.get('outcome', '')}{_by(event)}"


def _waiting(_: Narrator, event: HistoryEvent) -> str:
    body = event.body
    until = f" until {rfc3339(body['at'])}" if "at" in body else ""
    if "child" in body:
        return f"waits for sub-workflow {body['workflow']} v{body['version']}, run {body['child']}"
    if "signal" in body:
        return f"waits for signal {body['signal']}{until}"
    if "approval" in body:
        asked = f": {body['approval']}" if body["approval"] else ""
        return f"waits for approval{until}{asked}"
    return f"sleeps{until}"


def _child_ended(_: Narrator, event: HistoryEvent) -> str:
    state, error = event.body.get("state"), event.body.get("error")
    why = f": {_error(error)}" if error else ""
    return f"the sub-workflow is {state}{why}" if state else f"the sub-workflow could not be started{why}"


def _succeeded(_: Narrator, event: HistoryEvent) -> str:
    body, output = event.body, event.body.get("output")
    if body.get("pinned"):
        return "its output was taken over from the earlier run"
    if "signal" in body:
        by = f" from {output['by']}" if isinstance(output, dict) and output.get("by") else ""
        return f"got signal {body['signal']}{by}"
    if "data" in body and isinstance(output, dict):
        return f"published event {output.get('type')}, {output.get('event_id')}"
    if output == {"timed_out": True}:
        return "nobody answered in time; the run goes on"
    return ""


def _failed(_: Narrator, event: HistoryEvent) -> str:
    error = event.body.get("error")
    return "failed: " + _error(error) if error else "failed; it is not tried again"


def _dead(_: Narrator, event: HistoryEvent) -> str:
    error = event.body.get("error")
    if error:
        return "dead: " + _error(error)
    return f"given up after {event.attempt} {'attempt' if event.attempt == 1 else 'attempts'}"


def _signalled(_: Narrator, event: HistoryEvent) -> str:
    return f"signal {event.body['signal']} was sent{_by(event)}"


def _failing(_: Narrator, event: HistoryEvent) -> str:
    return "the run fails: " + _error(event.body.get("error"))


def _compensating(_: Narrator, event: HistoryEvent) -> str:
    return "to be undone: " + ", ".join(event.body["steps"])


def _word(text: str) -> _Teller:
    return lambda _, event: text + _by(event)


_TELLERS: Mapping[Kind, _Teller] = {
    Kind.STEP_QUEUED: Narrator.queued,
    Kind.STEP_STARTED: Narrator.started,
    Kind.STEP_COMPLETED: Narrator.completed,
    Kind.STEP_ATTEMPT_FAILED: Narrator.attempt_failed,
    Kind.STEP_ATTEMPT_LOST: Narrator.lost,
    Kind.STEP_ATTEMPT_CANCELLED: Narrator.stopped,
    Kind.STEP_RETRYING: _retrying,
    Kind.STEP_NEEDS_DECISION: _needs_decision,
    Kind.STEP_RESOLVED: _resolved,
    Kind.STEP_WAITING: _waiting,
    Kind.STEP_APPROVED: _word("approved"),
    Kind.STEP_REJECTED: _word("rejected"),
    Kind.STEP_CHILD_ENDED: _child_ended,
    Kind.STEP_SUCCEEDED: _succeeded,
    Kind.STEP_FAILED: _failed,
    Kind.STEP_DEAD: _dead,
    Kind.RUN_PAUSED: _word("the run was paused"),
    Kind.RUN_RESUMED: _word("the run was resumed"),
    Kind.RUN_CANCEL_REQUESTED: _word("the run is to be cancelled"),
    Kind.RUN_CANCELLING: lambda _, __: "everything has stopped; the steps of on_cancel follow",
    Kind.RUN_SIGNALLED: _signalled,
    Kind.RUN_FAILING: _failing,
    Kind.RUN_COMPENSATING: _compensating,
}
"""Kinds that are not here say nothing that those which are do not say: what is pure needs no log."""

_OVER = frozenset({Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_DEAD, Kind.STEP_SUCCEEDED, Kind.STEP_CANCELLED}) | {
    Kind.STEP_ATTEMPT_CANCELLED,
}
"""The step has ended; it is not executed again."""
