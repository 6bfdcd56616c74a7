"""An event from the command line, for a trial: JSON, text, or one that `event show -o json` printed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.files import read_text
from taskforgectl.inputs import check_json, pairs_of

__all__ = ["event_of"]

_CONTENT_TYPE = "content-type"


def event_of(payload: str | None, headers: Sequence[str], kind: str) -> dict[str, Any]:
    """Answer the event that a trial shall see.

    Args:
        payload: JSON text, a file with JSON, or `-` for stdin; None for no body.
        headers: `key=value`, on top of the event's own.
        kind: the event's type; empty for the event's own.

    Raises:
        CliError: the payload is not what it must be.
    """
    given = pairs_of(headers, "--header")
    found: dict[str, Any] = {"body": None, "body_is_text": False, "headers": {}, "query": {}}
    found |= {"type": "", "path": "", "subject": ""}
    if payload is not None:
        found |= _read(payload, given)
    found["headers"] = {**found["headers"], **given}
    found["type"] = kind or found["type"]
    return found


def _read(payload: str, headers: Mapping[str, str]) -> dict[str, Any]:
    if payload.lstrip()[:1] in {"{", "["}:
        source, text = "--event", payload
    else:
        source, text = "stdin" if payload == "-" else payload, read_text(payload)
    if not _is_json(headers.get(_CONTENT_TYPE, "")):
        return {"body": text, "body_is_text": True}
    hint = "a body that is no JSON needs --header content-type=text/plain"
    value = check_json(text, source, hint=hint)
    return _taken_apart(value) if _is_stored(value) else {"body": value}


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media in {"", "application/json"} or media.endswith("+json")


# --- a stored event --------------------------------------------------------------------------------------------------


def _is_stored(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("id", "")).startswith("evt_") and {"headers", "body"} <= set(value)


def _taken_apart(event: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the parts of an event as `event show -o json` has it, the body as expressions see it."""
    headers = event["headers"] or {}
    body, is_text = _body(event, headers)
    return {
        "body": body,
        "body_is_text": is_text,
        "headers": headers,
        "query": event.get("query") or {},
        "type": event.get("type") or "",
        "path": event.get("path") or "",
        "subject": event.get("subject") or "",
    }


def _body(event: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Any, bool]:
    raw = event["body"]
    if not raw:
        return None, False
    if isinstance(raw, dict):  # bytes that are not UTF-8
        return raw.get("base64", ""), True
    encoding = event.get("encoding") or _guessed(event.get("content_type") or headers.get(_CONTENT_TYPE, ""))
    if encoding == "base64":  # declared to be something else than text; expressions see it so
        return base64.b64encode(raw.encode()).decode(), True
    if encoding == "form":
        return dict(parse_qsl(raw, keep_blank_values=True, errors="replace")), False
    if encoding == "json":
        return _parsed(raw, str(event["id"])), False
    return raw, True


def _guessed(content_type: str) -> str:
    """Answer the encoding of an event that was stored by a version that did not record it."""
    return "json" if _is_json(content_type) else "text"


def _parsed(raw: str, event_id: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CliError(f"the body of {event_id} is not JSON: {error}", code=EXIT_USAGE) from None
