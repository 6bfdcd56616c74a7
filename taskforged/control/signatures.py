"""How a webhook's sender is proved. Pure: bytes in, a verdict out.

The verdict is a reason for the people who look into the inbox; a caller must never learn it, since it would tell an
attacker how far he came.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import replace

from taskforged.language.definition import Verify

__all__ = ["verify"]

_ALGORITHMS = frozenset({"sha256", "sha1", "sha512"})
_GITHUB = Verify(scheme="hmac", header="x-hub-signature-256", algorithm="sha256", encoding="hex", prefix="sha256=")


def verify(verify: Verify, secret: str | None, headers: Mapping[str, str], body: bytes) -> str | None:
    """Answer None when the sender is proved, else why not.

    Args:
        verify: what the trigger demands.
        secret: the value of the secret it names; None when that secret does not exist.
        headers: of the delivery, names in lower case.
        body: the raw bytes as received.
    """
    if verify.scheme == "none":
        return None
    if verify.scheme == "github":
        verify = replace(_GITHUB, secret=verify.secret)
    if verify.scheme != "hmac" or verify.algorithm not in _ALGORITHMS or verify.encoding not in {"hex", "base64"}:
        return f"the scheme {verify.scheme}/{verify.algorithm}/{verify.encoding} is not supported"
    if not secret:
        return f"the secret {verify.secret} is {'not set' if secret is None else 'empty'}"
    return _compare(verify, secret, headers.get(verify.header.lower()), body)


def _compare(verify: Verify, secret: str, signature: str | None, body: bytes) -> str | None:
    if signature is None:
        return f"the header {verify.header} is missing"
    digest = hmac.digest(secret.encode(), body, verify.algorithm)
    given = signature.encode("utf-8", "replace")
    # Texts are compared, not decoded digests: base64 has several spellings of the same bytes, and a lenient decoder
    # is a way to change a delivery without its signature noticing. Every spelling is tried, whatever the first one
    # said, so that the time does not depend on the signature.
    matches = [hmac.compare_digest(given, verify.prefix.encode() + text) for text in _spellings(verify, digest)]
    return None if any(matches) else f"the signature in {verify.header} does not match"


def _spellings(verify: Verify, digest: bytes) -> list[bytes]:
    if verify.encoding == "base64":
        return [base64.b64encode(digest)]
    text = digest.hex()
    return [text.encode(), text.upper().encode()]
