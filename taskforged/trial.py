"""`python -m taskforged.trial`: asks the triggers of a definition about an event, without a daemon or a store.

One JSON object comes in on stdin, one goes out on stdout; `taskforgectl trigger test` is made of it. In:
`{"source", "event": {"body", "body_is_text", "headers", "query", "type", "path"}, "at", "trigger", "namespaces":
[{"name", "labels"}]}`. Out: `{"ok": true, "workflow", "triggers": [...]}` with what each trigger makes of the event,
or `{"ok": false, "message", "violations"}`. Senders are not proved, as there is no signature to look at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from taskforged.control.judging import NamespaceFacts, Start, judge, type_matches
from taskforged.engine.events import rfc3339
from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, TaskforgeError
from taskforged.jsonvalue import load_stored, parse_json
from taskforged.language import compile_definition
from taskforged.language.definition import CronTrigger, Definition, EventTrigger, Source, WebhookTrigger
from taskforged.language.durations import parse_instant
from taskforged.payload import decode
from taskforged.schedule import Schedule, Slot, local_text, slots_after, utc_text

__all__ = ["main", "trial"]

INPUT_MAX = 4 << 20
_DUE_TIMES = 5


def trial(request: Mapping[str, Any]) -> dict[str, Json]:
    """Answer what the triggers of a definition make of an event.

    Raises:
        InvalidArgumentError: the definition or the request is not valid.
    """
    definition = compile_definition(request["source"])
    wanted = request.get("trigger", "")
    sources = {key: one for key, one in definition.sources().items() if not wanted or key == wanted}
    if wanted and not sources:
        known = ", ".join(definition.sources()) or "none but manual"
        raise InvalidArgumentError(f"the definition has no trigger {wanted!r}; it has {known}")
    at = parse_instant(request["at"]) if request.get("at") else time.time_ns() // 1000
    namespaces = [NamespaceFacts(one["name"], one.get("labels", {})) for one in request.get("namespaces", ())]
    event = request.get("event") or {}
    is_named = bool(wanted or request.get("at"))
    asked = [_ask(definition, one, event, at, namespaces, is_named=is_named) for one in sources.values()]
    return {"ok": True, "workflow": definition.name, "triggers": asked}


def _ask(
    definition: Definition,
    source: Source,
    event: Mapping[str, Any],
    at: int,
    namespaces: Sequence[NamespaceFacts],
    *,
    is_named: bool,
) -> dict[str, Json]:
    answer: dict[str, Json] = {"trigger": source.id, "kind": source.kind, "detail": _detail(source)}
    due: list[Slot] = []
    schedule: Schedule | None = None
    if isinstance(source, CronTrigger):
        schedule = source.schedule(f"default/{definition.name}/{source.id}")
        due = slots_after(schedule, at, _DUE_TIMES)
    elsewhere = _listens_elsewhere(source, event, is_named=is_named)
    verdict = judge(definition, source, _context(source, event, at, schedule, due), namespaces)
    reason = elsewhere or verdict.reason
    return {
        **answer,
        "matched": not reason and any(not start.reason for start in verdict.starts),
        "reason": reason or next((start.reason for start in verdict.starts if start.reason), ""),
        "clause": "" if elsewhere else verdict.clause,
        "values": {} if elsewhere else dict(verdict.values),
        "inputs": [] if elsewhere else [_input(start) for start in verdict.starts],
        "due_times": [_due_time(slot, schedule) for slot in due if schedule is not None],
    }


def _input(start: Start) -> dict[str, Json]:
    return {"namespace": start.namespace, "item": start.item, "input": start.input, "reason": start.reason}


def _due_time(slot: Slot, schedule: Schedule) -> dict[str, Json]:
    return {"due_time": utc_text(slot.due_at), "local_time": local_text(slot.due_at, schedule.zone), "dst": slot.dst}


def _detail(source: Source) -> str:
    match source:
        case WebhookTrigger():
            return f"POST /hooks/<namespace>/{source.path}"
        case CronTrigger():
            return f"{source.expression} {source.zone}"
        case EventTrigger():
            return source.type


def _listens_elsewhere(source: Source, event: Mapping[str, Any], *, is_named: bool) -> str:
    """Say why the event would not come to this trigger at all, as far as the request says where it came from."""
    path, kind = event.get("path", ""), event.get("type", "")
    if isinstance(source, CronTrigger) and not is_named:
        return "it waits for due times, not for events; name it with --trigger to ask it, or give --at"
    if isinstance(source, WebhookTrigger) and kind:
        return "it waits for deliveries, not for internal events"
    if isinstance(source, EventTrigger) and not kind and "*" not in source.type and not is_named:
        return f"it asks for events of type {source.type!r}; give --type"
    if isinstance(source, WebhookTrigger) and path and path != source.path:
        return f"it listens on {source.path!r}, not on {path!r}"
    if isinstance(source, EventTrigger) and kind and not type_matches(source.type, kind):
        return f"it asks for events of type {source.type!r}, not {kind!r}"
    return ""


def _context(source: Source, event: Mapping[str, Any], at: int, schedule: Schedule | None, due: Sequence[Slot]) -> Json:
    """Answer what expressions would see as `event`."""
    body: Json = event.get("body")
    due_time = ""
    if schedule is not None and due:
        due_time = utc_text(due[0].due_at)
        local = local_text(due[0].due_at, schedule.zone)
        body = {
            "due_time": due_time,
            "local_time": local,
            "timezone": schedule.zone,
            "schedule": schedule.cron.expression,
        }
    body, encoding = _decoded(body, event)
    return {
        "id": "evt_00000000000000000000000000",
        "source": {"webhook": "webhook", "cron": "cron", "event": "internal"}[source.kind],
        "path": source.path if isinstance(source, WebhookTrigger) else "",
        "headers": {name.lower(): value for name, value in (event.get("headers") or {}).items()},
        "query": dict(event.get("query") or {}),
        "body": body,
        "encoding": encoding,
        "received_at": rfc3339(at),
        "type": event.get("type", "") or ("schedule.due" if due_time else ""),
        "subject": event.get("subject", ""),
        "origin": "",
        "due_time": due_time or None,
    }


def _decoded(body: Json, event: Mapping[str, Any]) -> tuple[Json, str]:
    """Answer a body as a daemon would see it: text with a content type may be a form."""
    if not event.get("body_is_text") or not isinstance(body, str):
        return body, "empty" if body is None else "json"
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    return decode(headers.get("content-type", "text/plain"), body.encode(), load_stored)


def main() -> int:
    """Answer the request on stdin."""
    try:
        request = parse_json(sys.stdin.buffer.read(INPUT_MAX + 1), where="request", size_max=INPUT_MAX)
        answer = trial(request)
    except TaskforgeError as error:
        violations = [
            {"path": one.path, "message": one.message, "line": one.line, "column": one.column}
            for one in getattr(error, "violations", ())
        ]
        answer = {"ok": False, "message": error.message, "violations": violations}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        answer = {"ok": False, "message": f"the request is not valid: {error!r}", "violations": []}
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
