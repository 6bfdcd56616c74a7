# ruff: noqa: TRY004 - what is of the wrong type here is a value that was sent, not an argument of ours
"""What the body of a request means: JSON, a form, text or bytes; and CloudEvents 1.0.

Nothing here guesses: what is not declared, or not what it is declared to be, stays bytes, in base64. CloudEvents follow
https://github.com/cloudevents/spec, its JSON format and its HTTP protocol binding.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from taskforged.errors import InvalidArgumentError

__all__ = ["BATCH_MAX", "FIELDS_MAX", "CloudEvent", "cloud_event_json", "decode", "is_json", "parse_cloud_events"]

FIELDS_MAX = 1_000
"""Fields of a form; the figure is Django's."""

BATCH_MAX = 100
"""Events in one batch of CloudEvents."""

ParseJson = Callable[[bytes], Any]
"""Parses a document, and refuses halves of surrogate pairs, as `jsonvalue` does."""

_FORM = "application/x-www-form-urlencoded"
_TEXTS = frozenset({"application/xml", "application/javascript", "application/x-javascript", "application/ecmascript"})
_CHARSETS = {
    "": "utf-8",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "iso-8859-1": "iso-8859-1",
    "latin1": "iso-8859-1",
    "us-ascii": "ascii",
    "ascii": "ascii",
}
"""Encodings of text that are understood. Few, since each is a way to read the same bytes differently."""


def is_json(content_type: str) -> bool:
    """Whether a content type says JSON: `application/json` or a `+json` type, RFC 6839."""
    media = _media(content_type)
    return media == "application/json" or media.endswith("+json")


def decode(content_type: str, body: bytes, parse_json: ParseJson) -> tuple[Any, str]:
    """Answer what a body means, and how that is written.

    ========= =====================================================================================
    `empty`   None: there is no body
    `json`    what `parse_json` answers
    `form`    a map from text to text; of a repeated name the last
    `text`    text, XML, JavaScript, and what declares no type and is valid UTF-8
    `base64`  everything else, also text that is not what it is declared to be or contains NUL
    ========= =====================================================================================

    Args:
        content_type: as the header says, with its parameters.
        body: the raw bytes.
        parse_json: for bodies that say they are JSON; what it raises is raised.

    Raises:
        InvalidArgumentError: a form has more than `FIELDS_MAX` fields.
    """
    if not body:
        return None, "empty"
    if is_json(content_type):
        return parse_json(body), "json"
    text = _text_of(content_type, body)
    if text is None:
        return base64.b64encode(body).decode(), "base64"
    if _media(content_type) == _FORM:
        return _form(text), "form"
    return text, "text"


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _charset(content_type: str) -> str | None:
    """Answer the codec of a content type, None when its charset is not one of the few."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return _CHARSETS.get(value.strip().strip('"').lower())
    return "utf-8"


def _text_of(content_type: str, body: bytes) -> str | None:
    """Answer a body as text, None when it is no text."""
    media, charset = _media(content_type), _charset(content_type)
    is_text = media.startswith("text/") or media.endswith("+xml") or media in _TEXTS or media in {"", _FORM}
    if not is_text or charset is None or b"\0" in body:
        return None
    try:
        return body.decode(charset)
    except UnicodeDecodeError:
        return None


def _form(text: str) -> dict[str, str]:
    if text.count("&") >= FIELDS_MAX:
        raise InvalidArgumentError(f"the form has more than {FIELDS_MAX:,} fields", reason="INVALID_FORM")
    # Percent signs may hide bytes that are no UTF-8: they become U+FFFD, never half a character.
    return dict(parse_qsl(text, keep_blank_values=True, errors="replace"))


# --- CloudEvents -----------------------------------------------------------------------------------------------------

_PREFIX = "ce-"
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_FAMILY = "application/cloudevents"
_BINARY = "application/octet-stream"

_REQUIRED = ("id", "source", "type")
_OPTIONAL = ("subject", "time", "datacontenttype", "dataschema")
_SIZES = {"type": 200}
_SIZE_MAX = 1024
_INT_MAX = 2**31 - 1
_EXTENSION = re.compile(r"[a-z0-9]{1,20}\Z", re.ASCII)
# Unicode's controls, halves of surrogate pairs and noncharacters: CloudEvents allow none of them in any text.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(;.*)?\Z", re.ASCII)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)\Z", re.ASCII
)


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event as CloudEvents 1.0 describe it. Texts that are not set are empty.

    Attributes:
        id: of the event; unique together with `source`.
        source: where it happened, a reference to a URI.
        type: what happened, for example `com.github.pull_request.opened`.
        subject: what it happened to, within the source.
        time: when it happened, RFC 3339.
        data: JSON when `datacontenttype` is empty or a JSON type; else base64 of the bytes. None: there is none.
        datacontenttype: media type of the data.
        dataschema: URI of the schema of the data.
        extensions: further attributes: texts, whole numbers of 32 bits, and truth values.
    """

    id: str
    source: str
    type: str
    subject: str = ""
    time: str = ""
    data: Any = None
    datacontenttype: str = ""
    dataschema: str = ""
    extensions: dict[str, str | int | bool] = field(default_factory=dict)


def parse_cloud_events(
    content_type: str, headers: Mapping[str, str], body: bytes, parse_json: ParseJson
) -> list[CloudEvent]:
    """Answer the events of a request: of a structured or binary one exactly one, of a batch up to `BATCH_MAX`.

    Args:
        content_type: as the header says, with its parameters.
        headers: names in lower case.
        body: the raw bytes.
        parse_json: for what is JSON.

    Raises:
        ValueError: an event is not valid; the message says which of its attributes, and why.
    """
    media = _media(content_type)
    if media == _STRUCTURED:
        return [_from_json(_json(body, "the body", parse_json), "the event", parse_json)]
    if media == _BATCH:
        return _from_batch(_json(body, "the body", parse_json), parse_json)
    if media.startswith(_FAMILY):
        raise ValueError(f"the format {media[:80]!r} is not supported; use {_STRUCTURED} or {_BATCH}")
    return [_from_headers(content_type, headers, body, parse_json)]


def cloud_event_json(event: CloudEvent) -> dict[str, Any]:
    """Answer an event in the JSON format, for `application/cloudevents+json`."""
    found: dict[str, Any] = {"specversion": "1.0"}
    found |= {name: getattr(event, name) for name in _REQUIRED}
    found |= {name: getattr(event, name) for name in _OPTIONAL if getattr(event, name)}
    found |= event.extensions
    if event.data is not None:
        found["data" if _holds_json(event.datacontenttype) else "data_base64"] = event.data
    return found


def _holds_json(datacontenttype: str) -> bool:
    """Whether data is JSON. CloudEvents count every `…/json`, and what declares no type."""
    return not datacontenttype or is_json(datacontenttype) or _media(datacontenttype).endswith("/json")


def _json(raw: bytes, what: str, parse_json: ParseJson) -> Any:
    try:
        return parse_json(raw)
    except (ValueError, InvalidArgumentError) as error:
        raise ValueError(f"{what} is not acceptable JSON: {error}") from None


def _from_batch(found: Any, parse_json: ParseJson) -> list[CloudEvent]:
    if not isinstance(found, list):
        raise ValueError("a batch must be a list of events")
    if len(found) > BATCH_MAX:
        raise ValueError(f"the batch has {len(found):,} events; the limit is {BATCH_MAX}")
    return [_from_json(one, f"event {index} of the batch", parse_json) for index, one in enumerate(found, 1)]


def _from_json(found: Any, what: str, parse_json: ParseJson) -> CloudEvent:
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be a JSON object")
    # JSON may spell out what is not set.
    attributes = {name: value for name, value in found.items() if value is not None and name not in _DATA}
    event = _event(attributes, what)
    data, datacontenttype = _data(found, event.datacontenttype, what, parse_json)
    return _with_data(event, data, datacontenttype)


_DATA = frozenset({"data", "data_base64"})


def _data(found: Mapping[str, Any], datacontenttype: str, what: str, parse_json: ParseJson) -> tuple[Any, str]:
    """Answer the data of an event in the JSON format, and of which type it is."""
    data, encoded = found.get("data"), found.get("data_base64")
    if data is not None and encoded is not None:
        raise ValueError(f"{what}: 'data' and 'data_base64' exclude each other")
    if encoded is not None:
        return _from_bytes(_unbase64(encoded, what), datacontenttype or _BINARY, what, parse_json)
    if data is None or _holds_json(datacontenttype):
        return data, datacontenttype
    if not isinstance(data, str):
        raise ValueError(f"{what}: 'data' must be a text, as datacontenttype {datacontenttype!r} is no JSON")
    try:
        raw = data.encode(_charset(datacontenttype) or "utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what}: 'data' cannot be written as datacontenttype {datacontenttype!r} says") from None
    return base64.b64encode(raw).decode(), datacontenttype


def _unbase64(encoded: Any, what: str) -> bytes:
    try:
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except ValueError:
        pass
    raise ValueError(f"{what}: 'data_base64' is not base64")


def _from_bytes(raw: bytes, datacontenttype: str, what: str, parse_json: ParseJson) -> tuple[Any, str]:
    if _holds_json(datacontenttype):
        return _json(raw, f"{what}: 'data'", parse_json), datacontenttype
    return base64.b64encode(raw).decode(), datacontenttype


def _from_headers(content_type: str, headers: Mapping[str, str], body: bytes, parse_json: ParseJson) -> CloudEvent:
    what = "the event"
    found = {
        name.removeprefix(_PREFIX): _unquote(name, value) for name, value in headers.items() if name.startswith(_PREFIX)
    }
    for name in ("datacontenttype", "data", "data_base64"):
        if name in found:
            raise ValueError(f"{what}: the header {_PREFIX}{name} is not possible; content-type and the body say that")
    if content_type.strip():
        found["datacontenttype"] = content_type.strip()
    event = _event(found, what)
    if not body:
        return event
    data, datacontenttype = _from_bytes(body, event.datacontenttype or _BINARY, what, parse_json)
    return _with_data(event, data, datacontenttype)


_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\Z')


def _unquote(name: str, value: str) -> str:
    """Answer the value of a header: its quotes, of older senders, are undone, then exactly once its percent signs."""
    quoted = _QUOTED.match(value)
    plain = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
    try:
        return unquote_to_bytes(plain).decode()
    except UnicodeError:
        raise ValueError(f"the event: the header {name[:80]} is not percent-encoded UTF-8") from None


def _event(found: Mapping[str, Any], what: str) -> CloudEvent:
    """Answer an event without its data."""
    version = found.get("specversion")
    if version != "1.0":
        said = "is missing; is this a CloudEvent?" if version is None else "must be '1.0'"
        raise ValueError(f"{what}: attribute 'specversion' {said}")
    known = {name: _known(found, name, what) for name in (*_REQUIRED, *_OPTIONAL)}
    others = [name for name in found if name not in known and name != "specversion"]
    extensions = {name: _extension(name, found[name], what) for name in others}
    return CloudEvent(**known, extensions=extensions)


def _known(found: Mapping[str, Any], name: str, what: str) -> str:
    """Answer an attribute that the specification knows, empty when it is not set."""
    value = found.get(name)
    if value is None and name in _REQUIRED:
        raise ValueError(f"{what}: attribute {name!r} is missing")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{what}: attribute {name!r} must be a text")
    if not value:
        raise ValueError(f"{what}: attribute {name!r} must not be empty")
    _check_text(value, name, what)
    if name == "time" and not _is_time(value):
        raise ValueError(f"{what}: attribute 'time' must be a time such as 2026-12-24T18:00:00Z")
    if name == "datacontenttype" and not _MEDIA_TYPE.match(value):
        raise ValueError(f"{what}: attribute 'datacontenttype' must be a media type such as application/json")
    return value


def _check_text(value: str, name: str, what: str) -> None:
    limit = _SIZES.get(name, _SIZE_MAX)
    if len(value) > limit:
        raise ValueError(f"{what}: attribute {name!r} has {len(value):,} characters; the limit is {limit:,}")
    if _FORBIDDEN.search(value):
        raise ValueError(f"{what}: attribute {name!r} contains a control character, or half of a character")


def _is_time(text: str) -> bool:
    found = _TIME.match(text)
    try:
        return found is not None and dt.date.fromisoformat(found[1]) is not None
    except ValueError:
        return False


def _extension(name: str, value: Any, what: str) -> str | int | bool:
    if not _EXTENSION.match(name):
        raise ValueError(f"{what}: {name[:40]!r} is no name of an attribute: a-z and 0-9, at most 20")
    if isinstance(value, str):
        _check_text(value, name, what)
        return value
    if isinstance(value, bool) or (isinstance(value, int) and -_INT_MAX - 1 <= value <= _INT_MAX):
        return value
    raise ValueError(f"{what}: attribute {name!r} must be a text, a whole number of 32 bits, true or false")


def _with_data(event: CloudEvent, data: Any, datacontenttype: str) -> CloudEvent:
    return replace(event, data=data, datacontenttype=datacontenttype)
