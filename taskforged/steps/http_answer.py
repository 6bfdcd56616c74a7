"""What came back to the step `http`: its headers and its body as JSON, within limits."""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Collection

import aiohttp

from taskforged.engine.model import Json
from taskforged.jsonvalue import parse_json
from taskforged.steps.secrets import margin_of, mask

__all__ = ["FAILURE_READ_MAX", "clean", "excerpt", "parse_body", "read_body", "read_headers"]

_EXCERPT_MAX = 4096
"""Characters of an unwanted answer's body that are kept as evidence."""
FAILURE_READ_MAX = 1 << 16
"""Bytes read of an unwanted answer; more than the excerpt, so that little is seen of where it was cut."""

_TEXT_TYPES = re.compile(
    r"text/.*|application/(.*\+)?(xml|yaml|x-yaml|javascript|graphql|toml|x-ndjson|x-www-form-urlencoded)"
)
_JSON_TYPES = re.compile(r"(application|text)/json|[^/]+/.*\+json")
_CHARSETS = ("ascii", "utf", "iso8859", "cp", "koi8", "shift_jis", "euc", "gb", "big5", "latin")


async def read_body(response: aiohttp.ClientResponse, bytes_max: int) -> tuple[bytes, bool]:
    """The body, decompressed, and whether this is all; aiohttp closes a connection whose rest is left unread."""
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > bytes_max:
            return bytes(body[:bytes_max]), False
    return bytes(body), True


def read_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers, names in lower case; what is given several times is joined."""
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = clean(name.lower())
        separator = "\n" if key == "set-cookie" else ", "  # a cookie may hold a comma (RFC 6265, section 3)
        headers[key] = f"{headers[key]}{separator}{clean(value)}" if key in headers else clean(value)
    return headers


def clean(text: str) -> str:
    """Text that JSON and SQLite can hold."""
    # aiohttp decodes headers with `surrogateescape`; half a character would later break JSON and SQLite.
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def parse_body(response: aiohttp.ClientResponse, raw: bytes, bytes_max: int) -> Json:
    """JSON as the value, text as text, anything else in base64.

    Raises:
        InvalidArgumentError: it says that it is JSON, and is not.
    """
    if not raw:
        return None
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if _JSON_TYPES.fullmatch(kind):
        text = raw.removeprefix(codecs.BOM_UTF8) if _charset(response) == "utf-8" else _text(response, raw)
        return parse_json(text, where="the answer", size_max=4 * bytes_max)  # UTF-8 may be longer than what came
    if _TEXT_TYPES.fullmatch(kind) or (not kind and _is_utf8(raw)):
        return _text(response, raw)
    return {"base64": base64.b64encode(raw).decode()}


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _charset(response: aiohttp.ClientResponse) -> str:
    if "charset" not in response.headers.get("Content-Type", "").lower():
        return "utf-8"
    try:
        name = codecs.lookup(response.charset or "utf-8").name
    except LookupError:
        return "utf-8"
    # Python knows encodings that are no charsets of the web: idna, unicode_escape, punycode, rot13, …
    return name if name.replace("-", "_").startswith(_CHARSETS) and name != "utf-7" else "utf-8"


def _text(response: aiohttp.ClientResponse, raw: bytes) -> str:
    return raw.decode(_charset(response), "replace").removeprefix("\ufeff")


def excerpt(response: aiohttp.ClientResponse, raw: bytes, used: Collection[str], *, is_complete: bool = True) -> str:
    """The beginning of an unwanted answer, masked before it is cut; where `raw` was cut, a margin goes as well."""
    text: str = mask(_text(response, raw), used)
    margin = 0 if is_complete else margin_of(used)
    return text[: min(_EXCERPT_MAX, max(len(text) - margin, 0))]
