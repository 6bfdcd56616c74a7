"""The step `http`: one request to the outside, with everything that can go wrong turned into an outcome.

Redirects are followed here and not by aiohttp: its client keeps headers such as `X-Api-Key` when it is sent to another
origin, and it would follow to any scheme. Whatever comes back is masked, see `steps.secrets`.

Within one attempt a request is sent once. The exception is aiohttp's own: when a reused connection turns out to be
closed, an idempotent method (GET, PUT, DELETE, …) is sent again on a new one. Idle connections are therefore dropped
after a few seconds, before most servers do, so that a POST rarely meets a closed one.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NoReturn
from urllib.parse import urldefrag, urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from taskforged import __version__
from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.jsonvalue import canonical, parse_json, to_text
from taskforged.steps.base import Failed, Outcome, Succeeded, Task
from taskforged.steps.secrets import mask, resolve_references

__all__ = ["HttpExecutor"]

_EXCERPT_MAX = 4096
"""Characters of an unwanted answer's body that are kept as evidence."""
_FAILURE_READ_MAX = 1 << 16
"""Bytes read of an unwanted answer; more than the excerpt, so that no secret is cut in half before it is masked."""
_REDIRECTS_DEFAULT, _REDIRECTS_MAX = 5, 20  # 20 is where browsers stop (Fetch standard)
_IDLE_S = 4.0  # node.js, a common server with a short patience, closes idle connections after 5 s

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PLAIN_URL = re.compile(r"[!-~]+")
_HOST = re.compile(r"([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?")
_FRAMING = frozenset({"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer"}) | {
    "transfer-encoding",
    "upgrade",
}
"""Headers that say where a message ends; only the HTTP library may write them."""
_HARMLESS = frozenset({"accept", "accept-language", "content-type"})
"""The only headers of the caller that go along to another origin."""
_TEXT_TYPES = re.compile(
    r"text/.*|application/(.*\+)?(xml|yaml|x-yaml|javascript|graphql|toml|x-ndjson|x-www-form-urlencoded)"
)
_JSON_TYPES = re.compile(r"(application|text)/json|[^/]+/.*\+json")
_CHARSETS = ("ascii", "utf", "iso8859", "cp", "koi8", "shift_jis", "euc", "gb", "big5", "latin")


class _FailedError(Exception):
    """Ends an attempt from wherever it is."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


def _fail(
    code: str, message: str, *, retryable: bool = False, details: Json = None, is_unknown: bool = False
) -> NoReturn:
    raise _FailedError(Failed(code, message, retryable, details=details, is_unknown=is_unknown)) from None


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent at one hop.

    Attributes:
        method: upper case.
        url: without user and fragment.
        headers: all of them, ours included.
        fallback: what remains of `headers` at another origin.
        body: None for none.
        is_secret: the body holds a secret.
    """

    method: str
    url: URL
    headers: CIMultiDict[str]
    fallback: CIMultiDict[str]
    body: bytes | None
    is_secret: bool


@dataclass(frozen=True, slots=True)
class _Rules:
    """How the answer is judged."""

    accept: tuple[tuple[int, int], ...]
    redirects_max: int
    bytes_max: int

    def accepts(self, status: int) -> bool:
        """Whether this status is a success."""
        return any(low <= status <= high for low, high in self.accept)


class HttpExecutor:
    """Sends HTTP requests over one shared pool of connections. Proxies, cookies and `.netrc` are not used.

    Failure codes: `timeout`, `network`, `tls`, `http_status`, `invalid_request`, `invalid_json`, `response_too_large`,
    `too_many_redirects`, `unsafe_redirect`, `secret_missing`.

    Args:
        connections_max: open at once; further attempts wait, within their timeout.
        timeout_s: for a task that has none of its own, in seconds.
        response_bytes_max: default and upper bound of a task's `max_response_bytes`, after decompression.
        retry_after_max_s: longer pauses are cut to this, in seconds.
        now: the time as a POSIX timestamp, to understand dates in `Retry-After`.
    """

    name = "http"

    def __init__(
        self,
        *,
        connections_max: int = 256,
        timeout_s: float = 30.0,
        response_bytes_max: int = 1 << 20,
        retry_after_max_s: float = 3600.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._connections_max = connections_max
        self._timeout_s = timeout_s
        self._response_bytes_max = response_bytes_max
        self._retry_after_max_s = retry_after_max_s
        self._now = now
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool. Idempotent."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max, keepalive_timeout=_IDLE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),  # none: one deadline per attempt, see `execute`
                headers={"User-Agent": f"taskforge/{__version__}"},
                trust_env=False,
            )

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def execute(self, task: Task) -> Outcome:
        """Send the request that `task.config` describes, and judge the answer.

        Cancellation closes the connection, so that the other side can notice.
        """
        used: set[str] = set()
        timeout_s = self._timeout_s if task.timeout_s is None else task.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return _masked(await self._attempt(task, used), used)
        except TimeoutError:
            return Failed("timeout", f"no complete answer within {timeout_s:g} s", retryable=True, is_unknown=True)
        except _FailedError as error:
            return _masked(error.outcome, used)

    async def _attempt(self, task: Task, used: set[str]) -> Outcome:
        config = task.config
        if not isinstance(config, dict):
            _fail("invalid_request", "the configuration must be an object")
        resolved = await _resolve(config, task, used)
        request = _request(config, resolved, task)
        return await self._exchange(request, _rules(resolved, self._response_bytes_max), used)

    async def _exchange(self, request: _Request, rules: _Rules, used: set[str]) -> Outcome:
        redirects = 0
        while True:
            try:
                async with self._send(request) as response:
                    following = _redirected(request, response) if rules.redirects_max > 0 else None
                    if following is None:
                        return await self._judge(response, rules, used)
                    if redirects == rules.redirects_max:
                        _fail("too_many_redirects", f"more than {rules.redirects_max} redirects", is_unknown=True)
                    request, redirects = following, redirects + 1
            except (aiohttp.ClientError, OSError) as error:
                _raise_network(error, request.url, is_redirected=redirects > 0)

    def _send(self, request: _Request) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("HttpExecutor.start() was not called")
        body = request.body
        return self._session.request(
            request.method,
            request.url,
            headers=request.headers,
            data=io.BytesIO(body) if body is not None and len(body) > 1 << 20 else body,  # aiohttp warns of big bytes
            allow_redirects=False,
            skip_auto_headers=("Content-Type",) if body is None and request.method not in {"GET", "HEAD"} else None,
        )

    async def _judge(self, response: aiohttp.ClientResponse, rules: _Rules, used: set[str]) -> Outcome:
        head = {"status": response.status, "headers": _headers(response)}
        if not rules.accepts(response.status):
            return await self._rejected(response, head, used)
        raw, is_complete = await _read(response, rules.bytes_max)
        if not is_complete:
            message = f"the answer has more than {rules.bytes_max:,} bytes"
            _fail("response_too_large", message, details=head, is_unknown=True)
        try:
            return Succeeded({**head, "body": _body(response, raw, rules.bytes_max)})
        except InvalidArgumentError as error:
            details = {**head, "body": _excerpt(response, raw, used)}
            _fail("invalid_json", error.message, details=details, is_unknown=True)

    async def _rejected(self, response: aiohttp.ClientResponse, head: dict[str, Json], used: set[str]) -> Failed:
        raw, _ = await _read(response, _FAILURE_READ_MAX)
        status = response.status
        retryable = status in {408, 425, 429} or status >= 500
        return Failed(
            "http_status",
            f"{response.method} {_origin_text(response.url)} answered {status}",
            retryable=retryable,
            retry_after_s=self._retry_after_s(response.headers.get("Retry-After", "")) if retryable else None,
            details={**head, "body": _excerpt(response, raw, used)},
            is_unknown=status in {502, 504},  # a gateway speaks of itself, not of the server behind it
        )

    def _retry_after_s(self, text: str) -> float | None:
        text = text.strip()
        if text.isascii() and text.isdigit():
            seconds = float(text[:20])
        else:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._now()
            except (ValueError, OverflowError):
                return None
        return min(max(seconds, 0.0), self._retry_after_max_s)


# What is sent


async def _resolve(config: Mapping[str, Json], task: Task, used: set[str]) -> dict[str, Json]:
    try:
        resolved, values = await resolve_references(config, task.secret)
    except NotFoundError as error:
        _fail("secret_missing", error.message, details=dict(error.metadata))
    except InvalidArgumentError as error:
        _fail("invalid_request", error.message)
    used.update(values)
    return dict(resolved)


def _rules(config: Mapping[str, Json], bytes_max: int) -> _Rules:
    redirects = _whole(config, "max_redirects", _REDIRECTS_DEFAULT)
    return _Rules(
        accept=tuple(map(_status_range, config.get("accept") or [[200, 299]])),
        redirects_max=min(redirects, _REDIRECTS_MAX),
        bytes_max=min(_whole(config, "max_response_bytes", bytes_max), bytes_max),
    )


def _whole(config: Mapping[str, Json], name: str, default: int) -> int:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _fail("invalid_request", f"{name} must be a whole number, at least 0")
    return value


def _status_range(value: Json) -> tuple[int, int]:
    match value:
        case [int(low), int(high)]:
            return low, high
    _fail("invalid_request", "accept must be a list of pairs of statuses")


def _request(config: Mapping[str, Json], resolved: Mapping[str, Json], task: Task) -> _Request:
    method = resolved.get("method", "GET")
    if not isinstance(method, str) or not _TOKEN.fullmatch(method) or method.upper() in {"CONNECT", "TRACE"}:
        _fail("invalid_request", "this method cannot be sent")
    kind, body, content_type = _encoded(resolved)
    url = _url(resolved.get("url"), resolved.get("query"))
    own = {"Idempotency-Key": task.idempotency_key, "X-Correlation-ID": task.correlation_id}
    own.update({"Content-Type": content_type} if content_type else {})
    given = dict(_header_pairs(resolved.get("headers")))
    # A value that differs from what the definition says was filled in from a secret.
    plain = {name: value for name, value in given.items() if name.lower() in _HARMLESS}
    plain = {name: value for name, value in plain.items() if (config["headers"] or {}).get(name) == value}
    return _Request(
        method=method.upper(),
        url=url if url.user is None and url.password is None else url.with_user(None),
        headers=_overlaid(own | _authorization(url), given),
        fallback=_overlaid(own, plain),
        body=body,
        is_secret=kind is not None and config.get(kind) != resolved.get(kind),
    )


def _overlaid(own: Mapping[str, str], given: Mapping[str, str]) -> CIMultiDict[str]:
    headers = CIMultiDict(own)
    headers.update(given)
    return headers


def _authorization(url: URL) -> dict[str, str]:
    # Made here and not by aiohttp, which would make it again, or not, from the URL of each redirect.
    if url.user is None and url.password is None:
        return {}
    credentials = f"{url.user or ''}:{url.password or ''}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def _header_pairs(headers: Json) -> Iterator[tuple[str, str]]:
    for name, value in _pairs(headers, "headers"):
        if not _TOKEN.fullmatch(name) or name.lower() in _FRAMING:
            _fail("invalid_request", f"the header {name[:80]!r} cannot be sent")
        text = value.strip(" \t")
        if _CONTROL.search(text):
            _fail("invalid_request", f"the value of the header {name} holds a control character")
        yield name, text


def _pairs(value: Json, where: str, *, with_lists: bool = False) -> Iterator[tuple[str, str]]:
    """The fields of an object as texts; null leaves a field out, a list repeats it where that is possible."""
    if value is None:
        return
    if not isinstance(value, dict):
        _fail("invalid_request", f"{where} must be an object")
    for name, found in value.items():
        for item in found if with_lists and isinstance(found, list) else [found]:
            if isinstance(item, (dict, list)):
                _fail("invalid_request", f"{where}: {name[:80]!r} must be a text, a number or a boolean")
            if item is not None:
                yield name, item if isinstance(item, str) else to_text(item)


def _encoded(config: Mapping[str, Json]) -> tuple[str | None, bytes | None, str]:
    """The body: the key that holds it, its bytes, their type."""
    kinds = [
        kind for kind in ("json", "form", "text") if kind in config and (kind == "json" or config[kind] is not None)
    ]
    if len(kinds) > 1:
        _fail("invalid_request", f"only one of {' and '.join(kinds)} can be sent")
    match kinds:
        case ["json"]:
            return "json", canonical(config["json"]), "application/json"
        case ["form"]:
            form = urlencode(list(_pairs(config["form"], "form", with_lists=True)))
            return "form", form.encode(), "application/x-www-form-urlencoded"
        case ["text"]:
            if not isinstance(config["text"], str):
                _fail("invalid_request", "text must be a text")
            return "text", config["text"].encode(), "text/plain; charset=utf-8"
    return None, None, ""


def _url(text: Json, query: Json) -> URL:
    if not isinstance(text, str) or _CONTROL.search(text):
        _fail("invalid_request", "the URL is missing or holds a control character")
    base = urldefrag(text.strip()).url
    added = urlencode(list(_pairs(query, "query", with_lists=True)), safe="/:")
    if added:
        base += ("&" if "?" in base else "?") + added
    try:
        url = _parsed(base)
        is_http = _is_http(url)
    except ValueError:
        _fail("invalid_request", "the URL cannot be understood")
    if not is_http:
        _fail("invalid_request", "the URL must be absolute, with http or https")
    return url


@lru_cache(maxsize=512)
def _parsed(text: str) -> URL:
    # Cached, since a URL object computes its parts when asked and keeps them: most steps call the same URL.
    # A URL that is in order goes out byte for byte as it was written: a signed one may not be normalised.
    return URL(text, encoded=_PLAIN_URL.fullmatch(text) is not None)


def _is_http(url: URL) -> bool:
    host = url.raw_host or ""
    # A name that no resolver can look up is refused here, since Python's raises UnicodeError for it.
    is_host = ":" in host or (len(host) <= 253 and _HOST.fullmatch(host) is not None)
    return url.scheme in {"http", "https"} and is_host


# Redirects


def _redirected(request: _Request, response: aiohttp.ClientResponse) -> _Request | None:
    """The request that a redirect asks for, by the rules of the Fetch standard; None when it is no redirect."""
    status, location = response.status, response.headers.get("Location")
    if status not in {301, 302, 303, 307, 308} or location is None:
        return None
    target = _target(request.url, _clean(location))
    is_read = (status == 303 and request.method != "HEAD") or (status in {301, 302} and request.method == "POST")
    following = replace(request, url=target)
    if is_read and request.method != "GET":
        following = replace(_without_body(following), method="GET")
    return following if _origin(target) == _origin(request.url) else _at_other_origin(following)


def _target(base: URL, location: str) -> URL:
    try:
        target = base.join(_parsed(location)).with_fragment(None).with_user(None)
    except ValueError:
        _fail("unsafe_redirect", "the redirect leads to something that is no URL", is_unknown=True)
    if not _is_http(target):
        _fail("unsafe_redirect", f"the redirect leads to the scheme {target.scheme[:20]!r}", is_unknown=True)
    return target


def _without_body(request: _Request) -> _Request:
    headers, fallback = request.headers.copy(), request.fallback.copy()
    for kept in (headers, fallback):
        for name in [name for name in kept if name.lower().startswith("content-")]:
            kept.popall(name, None)
    return replace(request, headers=headers, fallback=fallback, body=None, is_secret=False)


def _at_other_origin(request: _Request) -> _Request:
    if request.is_secret:
        _fail(
            "unsafe_redirect",
            f"the redirect would hand the body's secrets to {_origin_text(request.url)}",
            is_unknown=True,
        )
    return replace(request, headers=request.fallback)


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port


def _origin_text(url: URL) -> str:
    return f"{url.scheme}://{url.raw_authority.rpartition('@')[2]}"


# What came back


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> tuple[bytes, bool]:
    """The body, decompressed, and whether this is all; aiohttp closes a connection whose rest is left unread."""
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > bytes_max:
            return bytes(body[:bytes_max]), False
    return bytes(body), True


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = _clean(name.lower())
        separator = "\n" if key == "set-cookie" else ", "  # a cookie may hold a comma (RFC 6265, section 3)
        headers[key] = f"{headers[key]}{separator}{_clean(value)}" if key in headers else _clean(value)
    return headers


def _clean(text: str) -> str:
    # aiohttp decodes headers with `surrogateescape`; half a character would later break JSON and SQLite.
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _body(response: aiohttp.ClientResponse, raw: bytes, bytes_max: int) -> Json:
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


def _excerpt(response: aiohttp.ClientResponse, raw: bytes, used: Iterable[str]) -> str:
    text: str = mask(_text(response, raw), used)
    return text[:_EXCERPT_MAX]


def _masked(outcome: Outcome, used: set[str]) -> Outcome:
    if not used:
        return outcome
    if isinstance(outcome, Succeeded):
        return Succeeded(mask(outcome.output, used))
    return replace(outcome, message=mask(outcome.message, used), details=mask(outcome.details, used))


_NETWORK: tuple[tuple[type[Exception], str, str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "tls", "the certificate is not valid"),
    (aiohttp.ClientConnectorSSLError, "tls", "there is no common TLS"),
    (aiohttp.ClientConnectorDNSError, "network", "the name cannot be resolved"),
    (aiohttp.ClientConnectorError, "network", "no connection"),
    (aiohttp.ServerDisconnectedError, "network", "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "network", "the answer broke off, or is not encoded as it says"),
    (aiohttp.ClientResponseError, "network", "the answer is no HTTP"),
    (aiohttp.InvalidURL, "invalid_request", "the URL cannot be understood"),
    (aiohttp.ClientError, "network", "the connection broke"),
    (OSError, "network", "the connection broke"),
)
"""The first that fits. The errors' own texts are not used: they hold URLs, and so what was put into the query."""


def _raise_network(error: Exception, url: URL, *, is_redirected: bool) -> NoReturn:
    code, message = next((code, message) for kind, code, message in _NETWORK if isinstance(error, kind))
    reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
    text = f"{_origin_text(url)}: {message}" + (f" ({reason})" if reason else "")
    is_sent = code == "network" and not isinstance(error, aiohttp.ClientConnectorError)
    # With a redirect somebody has answered already; after a POST a 303 means that it was done.
    _fail(code, text, retryable=code == "network", is_unknown=is_sent or is_redirected)
