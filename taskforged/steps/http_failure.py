"""How an attempt of the step `http` fails: one exception that carries the outcome, and what aiohttp's errors mean."""

from __future__ import annotations

from typing import NoReturn

import aiohttp
from yarl import URL

from taskforged.engine.model import Json
from taskforged.steps.base import Failed

__all__ = ["FailedError", "fail", "origin_text", "place_text", "raise_network"]


_PATH_MAX = 200
"""Characters of a path in a message."""


class FailedError(Exception):
    """Ends an attempt from wherever it is."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


def fail(
    code: str, message: str, *, retryable: bool = False, details: Json = None, is_unknown: bool = False
) -> NoReturn:
    """End the attempt."""
    raise FailedError(Failed(code, message, retryable, details=details, is_unknown=is_unknown)) from None


def origin_text(url: URL) -> str:
    """Scheme, host and port, as messages show them: never the user."""
    return f"{url.scheme}://{url.raw_authority.rpartition('@')[2]}"


def place_text(method: str, url: URL) -> str:
    """What was asked of whom, as messages show it: never the user nor the query, which may hold secrets."""
    path = url.raw_path if len(url.raw_path) <= _PATH_MAX else f"{url.raw_path[:_PATH_MAX]}..."
    return f"{method} {origin_text(url)}{path}"


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


def raise_network(error: Exception, method: str, url: URL, *, is_redirected: bool) -> NoReturn:
    """End the attempt that `error` broke."""
    code, message = next((code, message) for kind, code, message in _NETWORK if isinstance(error, kind))
    reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
    text = f"{place_text(method, url)}: {message}" + (f" ({reason})" if reason else "")
    is_sent = code == "network" and not isinstance(error, aiohttp.ClientConnectorError)
    # With a redirect somebody has answered already; after a POST a 303 means that it was done.
    fail(code, text, retryable=code == "network", is_unknown=is_sent or is_redirected)
