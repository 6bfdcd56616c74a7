"""What is known of the senders of webhooks: their test messages, and how they number their deliveries. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from taskforged.engine.model import Json
from taskforged.language.definition import Verify

__all__ = ["DeliveryId", "credentials", "delivery_id", "delivery_key", "handshake"]

_SIGNED_BODIES = frozenset({"github", "standard-webhooks", "stripe", "slack", "hmac"})
_TOKENS = frozenset({"gitlab", "token", "basic"})
_IDS_IN_BODIES = {"stripe": "id", "slack": "event_id"}
_ID_MAX = 256
_CHALLENGE_MAX = 200
"""Slack's challenges have 52 characters; there is no reason to send longer texts of others back to them."""


class DeliveryId(NamedTuple):
    """The sender's id of a delivery, empty when there is none, and whether the signature covers it."""

    text: str
    is_covered: bool


def handshake(scheme: str, headers: Mapping[str, str], value: Json) -> Mapping[str, Json] | None:
    """Answer with what a test message is to be answered, None when it is none.

    Args:
        scheme: by which the sender was proved.
        headers: of the delivery, names in lower case.
        value: what the body means.
    """
    if scheme == "github" and headers.get("x-github-event") == "ping":
        return {}
    if scheme == "slack" and isinstance(value, dict) and value.get("type") == "url_verification":
        challenge = value.get("challenge")
        if isinstance(challenge, str) and 0 < len(challenge) <= _CHALLENGE_MAX:
            return {"challenge": challenge}
    return None


def delivery_id(demand: Verify, headers: Mapping[str, str], header_name: str, value: Json) -> DeliveryId:
    """Answer the sender's id of a delivery.

    An id that the signature covers is preferred, since nobody can change it to have the delivery taken twice.

    Args:
        demand: by which the sender was proved.
        headers: of the delivery, names in lower case.
        header_name: the header that the trigger names; empty for none.
        value: what the body means.
    """
    covered = _covered_id(demand, headers, value)
    if covered:
        return DeliveryId(covered, True)
    return DeliveryId(headers.get(header_name, "") if header_name else "", False)


def _covered_id(demand: Verify, headers: Mapping[str, str], value: Json) -> str:
    if demand.scheme == "standard-webhooks":
        return headers.get("webhook-id", "")
    if demand.scheme == "hmac" and demand.id_header and "{id}" in demand.signed:
        return headers.get(demand.id_header, "")
    key = _IDS_IN_BODIES.get(demand.scheme)
    found = value.get(key) if key is not None and isinstance(value, dict) else None
    return found if isinstance(found, str) and len(found) <= _ID_MAX else ""


def delivery_key(demand: Verify, sent: DeliveryId, body: bytes) -> bytes | None:
    """Answer what a repetition of a delivery is recognised by; None when nothing is safe to go by.

    Args:
        demand: by which the sender was proved.
        sent: the answer of `delivery_id`.
        body: the raw bytes.
    """
    if sent.text and sent.is_covered:
        return hashlib.sha256(demand.scheme.encode() + b"\0" + sent.text.encode()).digest()
    digest = hashlib.sha256(body).digest()
    if sent.text:
        # Anybody who saw the delivery could send its body under another id, or another body under its id. The first
        # has to be borne; the second must not make the real one look like a repetition.
        return hashlib.sha256(sent.text.encode() + b"\0" + digest).digest()
    return digest if body and demand.scheme in _SIGNED_BODIES else None


def credentials(demand: Verify) -> tuple[str, str]:
    """Answer the header and the parameter of the URL that hold the secret itself, which must not be kept; or empty."""
    return (demand.header, demand.query) if demand.scheme in _TOKENS else ("", "")
