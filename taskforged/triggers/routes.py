"""Who may use which HTTP route: one table, which the doors ask and a test walks."""

from __future__ import annotations

from typing import NamedTuple

from taskforged.control.access import Role

__all__ = ["ROUTES", "Route"]


class Route(NamedTuple):
    """A method and a path, `{...}` for one part of it that varies."""

    method: str
    path: str


HOOK = Route("POST", "/hooks/{namespace}/{path}")
PUBLISH = Route("POST", "/events/{namespace}")
LIST_EVENTS = Route("GET", "/events/{namespace}")
SHOW_EVENT = Route("GET", "/events/{namespace}/{id}")

ROUTES: dict[Route, Role | None] = {
    HOOK: None,  # whoever signs as its trigger demands
    PUBLISH: Role.TRIGGER,
    LIST_EVENTS: Role.VIEWER,
    SHOW_EVENT: Role.VIEWER,
}
"""The role that each route needs; None: no token. Those of probes and scrapers are in `telemetry.probes`."""
