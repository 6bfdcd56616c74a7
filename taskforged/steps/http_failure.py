"""How an attempt of the step `http` fails: what aiohttp's errors mean, and what messages call a request."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import NoReturn

import aiohttp
from yarl import URL

from taskforged.steps.failure import fail

__all__ = ["origin_text", "place_text", "raise_network"]


_PATH_MAX = 200
"""Characters of a path in a message."""


def origin_text(url: URL) -> str:
    """Scheme, host and port, as messages show them: never the user."""
    return f"{url.scheme}://{url.raw_authority.rpartition('@')[2]}"


@lru_cache(maxsize=512)
def place_text(method: str, url: URL, *, is_cut: bool = True) -> str:
    """What was asked of whom, as messages show it: never the user nor the query, which may hold secrets.

    Args:
        method: of the request.
        url: of the request.
        is_cut: a long path is cut, else it is left out: at the edge there may be a part of a secret.
    """
    path = url.raw_path
    if len(path) > _PATH_MAX:
        path = f"{path[:_PATH_MAX]}..." if is_cut else "/..."
    return f"{method} {origin_text(url)}{path}"


_NETWORK: tuple[tuple[type[Exception], str, str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "tls", "the server's certificate is not valid"),
    (aiohttp.ClientConnectorSSLError, "tls", "there is no common TLS"),
    (aiohttp.ClientProxyConnectionError, "proxy", "no connection to the proxy"),
    (aiohttp.ClientConnectorDNSError, "network", "the name cannot be resolved"),
    (aiohttp.ClientConnectorError, "network", "no connection"),
    (aiohttp.ClientHttpProxyError, "proxy", "the proxy refuses the connection"),
    (aiohttp.ServerDisconnectedError, "network", "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "network", "the answer broke off, or is not encoded as it says"),
    (aiohttp.ClientResponseError, "network", "the answer is no HTTP, or its head is too long"),
    (aiohttp.InvalidURL, "invalid_request", "the URL cannot be understood"),
    (aiohttp.ClientError, "network", "the connection broke"),
    (OSError, "network", "the connection broke"),
)
"""The first that fits. The errors' own texts are not used: they hold URLs, and so what was put into the query."""
_UNKNOWN_AUTHORITY = frozenset({"self-signed certificate", "self-signed certificate in certificate chain"}) | {
    "unable to get local issuer certificate",
    "unable to get issuer certificate",
}
"""What OpenSSL says of a certificate whose authority it does not trust."""


_WANTS_ANOTHER = frozenset({"HANDSHAKE_FAILURE", "UNKNOWN_CA"})
"""Alerts of a server that may want a client's certificate, besides those that have CERTIFICATE in their name."""


def raise_network(error: Exception, place: str, *, is_redirected: bool) -> NoReturn:
    """End the attempt that `error` broke; `place` is the request's."""
    code, message = next((code, message) for kind, code, message in _NETWORK if isinstance(error, kind))
    reason, alert = _reason(error), _alert(error)
    if alert:
        code, message, reason = "tls", "the server ended TLS", _alert_text(alert)
    text = f"{place}: {message}" + (f" ({reason})" if reason else "")
    is_connected = not isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError))
    is_sent = code == "network" and is_connected
    retryable = code == "network" or (code == "proxy" and _is_passing(error))
    # With a redirect somebody has answered already; after a POST a 303 means that it was done.
    fail(code, text, retryable=retryable, is_unknown=is_sent or is_redirected)


def _alert(error: BaseException) -> str:
    """The alert with which the server ended TLS. In TLS 1.3 a missing certificate is told in place of the answer."""
    found: BaseException | None = error
    # Errors of aiohttp are such errors, too, but do not know the reason.
    while found is not None and not (isinstance(found, ssl.SSLError) and hasattr(found, "reason")):
        found = found.__cause__ or found.__context__
    _, alert, name = (getattr(found, "reason", None) or "").partition("_ALERT_")
    return name if alert else ""


def _alert_text(alert: str) -> str:
    words = alert.lower().replace("_", " ")
    hint = "; it may want another certificate of the client: tls.cert and tls.key"
    return words + hint if "CERTIFICATE" in alert or alert in _WANTS_ANOTHER else words


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = str(getattr(error.certificate_error, "verify_message", ""))
        hint = "; trust its authority with tls.ca, or for all steps with [egress] ca_file"
        return reason + hint if reason in _UNKNOWN_AUTHORITY else reason
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"it answered {error.status}"
    return error.strerror if isinstance(error, OSError) and error.strerror else ""


def _is_passing(error: Exception) -> bool:
    return not isinstance(error, aiohttp.ClientHttpProxyError) or error.status in {408, 429} or error.status >= 500
