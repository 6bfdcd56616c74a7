"""What the step `http` sends: a task's configuration becomes a request, a redirect makes the next one of it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import urldefrag, urlencode

from multidict import CIMultiDict
from yarl import URL

from taskforged.engine.model import Json
from taskforged.jsonvalue import canonical, to_text
from taskforged.steps.base import Task
from taskforged.steps.failure import FailedError, fail
from taskforged.steps.http_failure import origin_text, place_text
from taskforged.steps.secrets import MASK, blanked
from taskforged.steps.tls_contexts import Tls

__all__ = ["Request", "Rules", "build_request", "read_rules", "redirected", "targets_of"]

_PEM_MAX = 1 << 17
_REDIRECTS_DEFAULT, _REDIRECTS_MAX = 5, 20  # 20 is where browsers stop (Fetch standard)

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


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent at one hop.

    Attributes:
        method: upper case.
        url: without user and fragment.
        headers: all of them, ours included.
        fallback: what remains of `headers` at another origin.
        body: None for none.
        is_secret: the body holds a secret.
        tls: how the server is verified and what it is shown; None: as everywhere.
        place: what is asked of whom, as messages show it.
    """

    method: str
    url: URL
    headers: CIMultiDict[str]
    fallback: CIMultiDict[str]
    body: bytes | None
    is_secret: bool
    tls: Tls | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How the answer is judged."""

    accept: tuple[tuple[int, int], ...]
    redirects_max: int
    bytes_max: int

    def accepts(self, status: int) -> bool:
        """Whether this status is a success."""
        return any(low <= status <= high for low, high in self.accept)


def read_rules(config: Mapping[str, Json], bytes_max: int) -> Rules:
    """How the task wants its answer judged."""
    redirects = _whole(config, "max_redirects", _REDIRECTS_DEFAULT)
    return Rules(
        accept=tuple(map(_status_range, config.get("accept") or [[200, 299]])),
        redirects_max=min(redirects, _REDIRECTS_MAX),
        bytes_max=min(_whole(config, "max_response_bytes", bytes_max), bytes_max),
    )


def _whole(config: Mapping[str, Json], name: str, default: int) -> int:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        fail("invalid_request", f"{name} must be a whole number, at least 0")
    return value


def _status_range(value: Json) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value)):
        fail("invalid_request", "accept must be a list of pairs of statuses")
    return value[0], value[1]


def build_request(config: Mapping[str, Json], resolved: Mapping[str, Json], task: Task) -> Request:
    """The first request; `config` still holds references to secrets where `resolved` holds their values."""
    method = resolved.get("method", "GET")
    if not isinstance(method, str) or not _TOKEN.fullmatch(method) or method.upper() in {"CONNECT", "TRACE"}:
        fail("invalid_request", "this method cannot be sent")
    kind, body, content_type = _encoded(resolved)
    url = _url(resolved.get("url"), resolved.get("query"))
    given = dict(_header_pairs(resolved.get("headers")))
    has_trace = any(name.lower() == "traceparent" for name in given)  # then ours says nothing of its state either
    own = _own_headers(task, has_trace=has_trace) | ({"Content-Type": content_type} if content_type else {})
    return Request(
        method=method.upper(),
        url=url if url.user is None and url.password is None else url.with_user(None),
        headers=_overlaid(own | _authorization(url), given),
        fallback=_overlaid(own, _plain(given, config["headers"]) if given else {}),
        body=body,
        is_secret=kind is not None and config.get(kind) != resolved.get(kind),
        tls=_tls(resolved.get("tls")),
        place=_place(method.upper(), url, config.get("url")),
    )


def _plain(given: Mapping[str, str], written: Json) -> dict[str, str]:
    """The harmless headers; a value that differs from what the definition says was filled in from a secret."""
    harmless = {name: value for name, value in given.items() if name.lower() in _HARMLESS}
    return {name: value for name, value in harmless.items() if (written or {}).get(name) == value}


def _place(method: str, url: URL, written: Json) -> str:
    """Secrets are left out beforehand: what a URL makes of one, in part perhaps, masking may not find."""
    if isinstance(written, str):
        return place_text(method, url)
    try:
        return place_text(method, _url(blanked(written), None))
    except FailedError:  # the name of the host has a secret in it
        return f"{method} {url.scheme}://{MASK}"


def targets_of(config: Mapping[str, Json]) -> list[tuple[str, int]]:
    """Host and port that the first request goes to, by its URL and by a header `Host`; secrets have no part in them."""
    url = _url(config.get("url"), None)
    headers = config.get("headers")
    hosts = [value for name, value in headers.items() if name.lower() == "host"] if isinstance(headers, dict) else []
    urls = [url, *(_url(f"{url.scheme}://{host}" if isinstance(host, str) else None, None) for host in hosts)]
    return [(one.raw_host or "", one.port or 0) for one in urls]


def _tls(value: Json) -> Tls | None:
    given = dict(_pairs(value, "tls"))
    if not given:
        return None
    if given.keys() - {"ca", "cert", "key"} or ("cert" in given) != ("key" in given):
        fail("invalid_request", "tls has ca, cert and key; cert and key only together")
    if any(len(pem) > _PEM_MAX for pem in given.values()):
        fail("invalid_request", f"tls holds a text of more than {_PEM_MAX:,} characters")
    return Tls(**given)


def _own_headers(task: Task, *, has_trace: bool) -> dict[str, str]:
    """What every request says of itself, wherever a redirect leads it; a header that the definition gives wins."""
    trace = {"traceparent": task.traceparent, "tracestate": task.tracestate} if not has_trace else {}
    own = {"Idempotency-Key": task.idempotency_key, "X-Correlation-ID": task.correlation_id, **trace}
    return {name: value for name, value in own.items() if value}


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
            fail("invalid_request", f"the header {name[:80]!r} cannot be sent")
        text = value.strip(" \t")
        if _CONTROL.search(text):
            fail("invalid_request", f"the value of the header {name} holds a control character")
        yield name, text


def _pairs(value: Json, where: str, *, with_lists: bool = False) -> Iterator[tuple[str, str]]:
    """The fields of an object as texts; null leaves a field out, a list repeats it where that is possible."""
    if value is None:
        return
    if not isinstance(value, dict):
        fail("invalid_request", f"{where} must be an object")
    for name, found in value.items():
        for item in found if with_lists and isinstance(found, list) else [found]:
            if isinstance(item, (dict, list)):
                fail("invalid_request", f"{where}: {name[:80]!r} must be a text, a number or a boolean")
            if item is not None:
                yield name, item if isinstance(item, str) else to_text(item)


def _encoded(config: Mapping[str, Json]) -> tuple[str | None, bytes | None, str]:
    """The body: the key that holds it, its bytes, their type."""
    kinds = [
        kind for kind in ("json", "form", "text") if kind in config and (kind == "json" or config[kind] is not None)
    ]
    if len(kinds) > 1:
        fail("invalid_request", f"only one of {' and '.join(kinds)} can be sent")
    match kinds:
        case ["json"]:
            return "json", canonical(config["json"]), "application/json"
        case ["form"]:
            form = urlencode(list(_pairs(config["form"], "form", with_lists=True)))
            return "form", form.encode(), "application/x-www-form-urlencoded"
        case ["text"]:
            if not isinstance(config["text"], str):
                fail("invalid_request", "text must be a text")
            return "text", config["text"].encode(), "text/plain; charset=utf-8"
    return None, None, ""


def _url(text: Json, query: Json) -> URL:
    if not isinstance(text, str):
        fail("invalid_request", "the URL is missing")
    added = "" if query in (None, {}) else urlencode(list(_pairs(query, "query", with_lists=True)), safe="/:")
    return _absolute(text, added)


@lru_cache(maxsize=512)
def _absolute(text: str, added: str) -> URL:
    """The URL that a text means, with what is added to its query. Cached: most steps call the same ones."""
    if _CONTROL.search(text):
        fail("invalid_request", "the URL holds a control character")
    base = urldefrag(text.strip()).url
    if added:
        base += ("&" if "?" in base else "?") + added
    try:
        url = _parsed(base)
        is_http = _is_http(url)
    except ValueError:
        fail("invalid_request", "the URL cannot be understood")
    if not is_http:
        fail("invalid_request", "the URL must be absolute, with http or https")
    return url


def _parsed(text: str) -> URL:
    # A URL that is in order goes out byte for byte as it was written: a signed one may not be normalised.
    return URL(text, encoded=_PLAIN_URL.fullmatch(text) is not None)


def _is_http(url: URL) -> bool:
    host = url.raw_host or ""
    # A name that no resolver can look up is refused here, since Python's raises UnicodeError for it.
    is_host = ":" in host or (len(host) <= 253 and _HOST.fullmatch(host) is not None)
    return url.scheme in {"http", "https"} and is_host


# Redirects


def redirected(request: Request, status: int, location: str) -> Request | None:
    """The request that a redirect asks for, by the rules of the Fetch standard; None when it is no redirect."""
    if status not in {301, 302, 303, 307, 308}:
        return None
    target = _target(request.url, location)
    is_read = (status == 303 and request.method != "HEAD") or (status in {301, 302} and request.method == "POST")
    following = replace(request, url=target)
    if is_read and request.method != "GET":
        following = replace(_without_body(following), method="GET")
    following = replace(following, place=place_text(following.method, target, is_cut=False))
    return following if _origin(target) == _origin(request.url) else _at_other_origin(following)


def _target(base: URL, location: str) -> URL:
    try:
        target = base.join(_parsed(location)).with_fragment(None).with_user(None)
    except ValueError:
        fail("unsafe_redirect", "the redirect leads to something that is no URL", is_unknown=True)
    if not _is_http(target):
        fail("unsafe_redirect", f"the redirect leads to the scheme {target.scheme[:20]!r}", is_unknown=True)
    return target


def _without_body(request: Request) -> Request:
    headers, fallback = request.headers.copy(), request.fallback.copy()
    for kept in (headers, fallback):
        for name in [name for name in kept if name.lower().startswith("content-")]:
            kept.popall(name, None)
    return replace(request, headers=headers, fallback=fallback, body=None, is_secret=False)


def _at_other_origin(request: Request) -> Request:
    if request.is_secret:
        fail(
            "unsafe_redirect",
            f"the redirect would hand the body's secrets to {origin_text(request.url)}",
            is_unknown=True,
        )
    return replace(request, headers=request.fallback, tls=None)


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port
