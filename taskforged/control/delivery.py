"""The seam between the doors that receive webhooks and the inbox that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Delivery", "Gateway", "Inbox", "Page", "Probes", "Receipt"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook as it arrived; nothing of it is proved yet. All texts are valid Unicode.

    Attributes:
        namespace: as the URL says; it may not exist.
        path: of the URL below the namespace, decoded, without a leading `/`.
        headers: names in lower case; a header that came several times is joined by `, `.
        query: parameters of the URL, decoded; of a repeated one the last.
        body: the raw bytes. Empty for a delivery that was refused before it was complete.
        content_type: the media type in lower case, without parameters; empty when there is none.
        remote: address of the peer, from the socket; headers such as `X-Forwarded-For` are never believed.
        arrived_s: when the last byte was here, by `time.monotonic`.
    """

    namespace: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    content_type: str
    remote: str
    arrived_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the sender is told.

    Attributes:
        status: the HTTP status; 2xx only after the delivery is durable.
        body: JSON.
        headers: further headers of the answer.
    """

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


class Inbox(Protocol):
    """Keeps deliveries."""

    async def receive(self, delivery: Delivery) -> Receipt:
        """Verify, deduplicate, match and commit a delivery, then answer.

        Raises:
            errors.ResourceExhaustedError: too many deliveries; the sender gets 429 and should come back.
            errors.UnavailableError: it cannot be kept right now; the sender gets 503 and should come back.
        """

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Record a delivery that the door refused, for example as too large. It may have no body; may do nothing."""


class Gateway(Protocol):
    """Takes and gives events of other systems; callers show a token."""

    async def publish(self, delivery: Delivery) -> Receipt:
        """Publish the events of a request.

        Raises:
            errors.ResourceExhaustedError: too many requests; the sender gets 429 and should come back.
        """

    async def show(self, delivery: Delivery) -> Receipt:
        """Answer the event that `delivery.path` names, or without one the newest events."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a probe or a scraper is answered."""

    status: int
    content: bytes
    content_type: str = "application/json"


class Probes(Protocol):
    """Answers what machines ask about the daemon itself."""

    def serves(self, path: str) -> bool:
        """Whether there is something at a path."""

    async def show(self, path: str, headers: Mapping[str, str], remote: str) -> Page:
        """Answer a GET. `headers` has lower-case names."""
