"""What machines ask over HTTP about the daemon itself: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import orjson

from taskforged.control.access import GRANTS, Access, Role
from taskforged.control.delivery import Page
from taskforged.control.doorman import Doorman
from taskforged.control.health import Health
from taskforged.errors import ResourceExhaustedError, UnauthenticatedError
from taskforged.telemetry.metrics import Metrics

__all__ = ["ROUTES", "ProbePages"]

ROUTES: Mapping[str, Role | None] = {"/healthz": None, "/readyz": None, "/metrics": Role.VIEWER}
"""The role that each route needs; None: it is open, and tells nothing that a stranger may not know."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""Headers of reverse proxies. Behind one every peer is on loopback."""


class ProbePages:
    """Answers probes and scrapers. See `control.delivery.Probes`."""

    def __init__(self, *, health: Health, metrics: Metrics, access: Access, doorman: Doorman, is_open: bool) -> None:
        """Create pages; `is_open` lets scrapers on this machine read metrics without a token."""
        self._health = health
        self._metrics = metrics
        self._access = access
        self._doorman = doorman
        self._is_open = is_open

    def serves(self, path: str) -> bool:
        """Whether there is something at a path."""
        return path in ROUTES

    async def show(self, path: str, headers: Mapping[str, str], remote: str) -> Page:
        """Answer a GET."""
        if path == "/healthz":
            return _verdict(self._health.ailments(), "not healthy")
        if path == "/readyz":
            return _verdict(self._health.unready(), "not ready")
        refusal = None if self._is_open and _is_local(headers, remote) else self._refusal(headers, remote)
        if refusal is not None:
            return refusal
        content_type, text = await self._metrics.render(headers.get("accept", ""))
        return Page(200, text, content_type)

    def _refusal(self, headers: Mapping[str, str], remote: str) -> Page | None:
        """Answer why a caller may not read metrics: they tell of all namespaces, so a confined token is not enough."""
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        try:
            principal = self._access.authenticate(credential.strip() if scheme.lower() == "bearer" else "")
        except UnauthenticatedError:
            try:
                self._doorman.failed(remote)
            except ResourceExhaustedError as error:
                return _error(429, "resource_exhausted", error.message)
            return _error(401, "unauthenticated", "metrics need `Authorization: Bearer` with a token of role viewer")
        need = ROUTES["/metrics"]
        if need not in GRANTS[principal.role] or principal.namespace_no is not None:
            return _error(403, "permission_denied", "metrics need the role viewer in all namespaces")
        return None


def _is_local(headers: Mapping[str, str], remote: str) -> bool:
    if any(name in headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(remote).is_loopback
    except ValueError:
        return False


def _verdict(reasons: list[str], bad: str) -> Page:
    if not reasons:
        return Page(200, orjson.dumps({"status": "ok"}))
    return Page(503, orjson.dumps({"status": bad, "reasons": reasons}))


def _error(status: int, code: str, message: str) -> Page:
    return Page(status, orjson.dumps({"error": {"code": code, "message": message}}))
