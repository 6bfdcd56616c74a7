"""How a webhook's sender is proved. Pure: bytes in, a verdict out.

The verdict is a reason for the people who look into the inbox; a caller must never learn it, since it would tell an
attacker how far he came. It holds no secret, no token and no signature, neither the expected nor the given one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from taskforged.language.definition import Verify
from taskforged.language.webhooks import PLACEHOLDER, PRESETS

__all__ = ["Refusal", "verify"]

SIGNATURES_MAX = 16
"""Signatures in one header that are looked at; senders use two or three while they change a secret."""

_ALGORITHMS = frozenset({"sha256", "sha1", "sha512"})
_ENCODINGS = frozenset({"hex", "base64"})
_WHSEC = "whsec_"
# int() takes much more than a time: signs, blanks, underscores and the digits of every script.
_SECONDS = re.compile(r"[0-9]{1,12}\Z", re.ASCII)
_ID = re.compile(r"[!-~]{1,256}\Z", re.ASCII)


class Refusal(NamedTuple):
    """Why a sender is not proved.

    Attributes:
        code: `missing`, `mismatch`, `expired`, `no_secret` or `malformed`.
        reason: for the people who look into the inbox.
    """

    code: str
    reason: str


class _Delivery(NamedTuple):
    """What there is to prove the sender by."""

    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    now_s: float


class _Claim(NamedTuple):
    """Signatures that were given, as text, and what they claim to sign beside the body."""

    signatures: Sequence[str]
    timestamp: str = ""
    id: str = ""


def verify(
    demand: Verify,
    secrets: Sequence[str | None],
    headers: Mapping[str, str],
    query: Mapping[str, str],
    body: bytes,
    now_s: float,
) -> Refusal | None:
    """Answer None when the sender is proved, else why not.

    Args:
        demand: what the trigger demands.
        secrets: values of the secrets it names, in that order; None for one that does not exist.
        headers: of the delivery, names in lower case; a header that came several times is joined by `, `.
        query: parameters of the URL.
        body: the raw bytes as received.
        now_s: seconds since 1970.
    """
    if demand.scheme in _UNPROVED:
        return None
    demand = _settled(demand)
    prove = _PROOFS.get(demand.scheme)
    if prove is None or not _is_supported(demand):
        what = f"{demand.scheme}/{demand.algorithm}/{demand.encoding}"
        return Refusal("malformed", f"the scheme {what} is not supported as it is configured")
    keys, faults = _keys(demand, secrets)
    if not keys:
        return Refusal("no_secret", "; ".join(faults) or "no secret is named")
    refusal = prove(demand, keys, _Delivery(headers, query, body, now_s))
    if refusal is None or not faults:
        return refusal
    return Refusal(refusal.code, "; ".join([refusal.reason, *faults]))


def _settled(demand: Verify) -> Verify:
    """Answer a demand with what the provider fixes, whatever else it says, and names of headers in lower case."""
    preset = PRESETS.get(demand.scheme)
    if preset is not None:
        return replace(preset, secrets=demand.secrets, tolerance_s=demand.tolerance_s, username=demand.username)
    return replace(
        demand,
        header=demand.header.lower(),
        timestamp_header=demand.timestamp_header.lower(),
        id_header=demand.id_header.lower(),
    )


def _is_supported(demand: Verify) -> bool:
    if not (demand.header or demand.query):
        return False
    return demand.algorithm in _ALGORITHMS and demand.encoding in _ENCODINGS and "{body}" in demand.signed


# --- secrets ---------------------------------------------------------------------------------------------------------


def _keys(demand: Verify, secrets: Sequence[str | None]) -> tuple[list[bytes], list[str]]:
    """Answer the secrets that can prove something, as bytes, and what is wrong with the others."""
    keys, faults = [], []
    for name, secret in zip(demand.secrets, secrets, strict=True):
        if not secret:
            faults.append(f"the secret {name} is {'not set' if secret is None else 'empty'}")
            continue
        key = _webhook_key(secret) if demand.scheme in _BASE64_SECRETS else _bytes(secret)
        if key:
            keys.append(key)
        else:
            faults.append(f"the secret {name} is not {_WHSEC} and base64, as this scheme wants it")
    return keys, faults


def _webhook_key(secret: str) -> bytes:
    """Answer the key of Standard Webhooks, empty when it is none: `whsec_` alone must not become an empty key."""
    text = secret.removeprefix(_WHSEC).rstrip("=")
    try:
        # Some issue secrets without padding, and the reference library takes them.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""


def _bytes(text: str) -> bytes:
    # "replace" would make a question mark of half a character, which a secret may well contain.
    return text.encode("utf-8", "surrogatepass")


# --- signatures ------------------------------------------------------------------------------------------------------


def _prove_signature(demand: Verify, keys: Sequence[bytes], delivery: _Delivery) -> Refusal | None:
    claim = _CLAIMS[demand.scheme](demand, delivery.headers)
    if isinstance(claim, Refusal):
        return claim
    payload = _payload(demand.signed, claim, delivery.body)
    digests = [hmac.digest(key, payload, demand.algorithm) for key in keys]
    # Texts are compared, not decoded digests: base64 has several spellings of the same bytes, and a lenient decoder
    # is a way to change a delivery without its signature noticing. Every spelling of every digest is compared with
    # every signature, whatever the first ones said, so that the time does not depend on the signatures.
    spellings = [_bytes(demand.prefix) + text for digest in digests for text in _spellings(demand, digest)]
    given = [_bytes(signature) for signature in claim.signatures]
    matches = [hmac.compare_digest(one, spelling) for one in given for spelling in spellings]
    if not any(matches):
        return Refusal("mismatch", f"the signature in {demand.header} does not match")
    return _check_time(demand, claim.timestamp, delivery.now_s)


def _spellings(demand: Verify, digest: bytes) -> list[bytes]:
    if demand.encoding in _BASE64:
        return [base64.b64encode(digest)]
    text = digest.hex()
    return [text.encode(), text.upper().encode()]


def _payload(signed: str, claim: _Claim, body: bytes) -> bytes:
    # In one pass: an id that says `{timestamp}` is that text, and no placeholder.
    values = {"{body}": body, "{timestamp}": _bytes(claim.timestamp), "{id}": _bytes(claim.id)}
    return b"".join(values.get(part, _bytes(part)) for part in PLACEHOLDER.split(signed))


def _check_time(demand: Verify, timestamp: str, now_s: float) -> Refusal | None:
    """Look at a time only when it is proved: before, anybody may have written it."""
    # Not `>`: no comparison with NaN is true, and then this one refuses.
    if not timestamp or abs(now_s - int(timestamp)) <= demand.tolerance_s:
        return None
    away = f"{abs(now_s - int(timestamp)):.0f} s {'old' if int(timestamp) < now_s else 'ahead of our clock'}"
    return Refusal("expired", f"the signature is right, but its time is {away}; the limit is {demand.tolerance_s:g} s")


# --- where the signatures are ----------------------------------------------------------------------------------------


def _claim_plain(demand: Verify, headers: Mapping[str, str]) -> _Claim | Refusal:
    """One signature in a header; what else is signed has headers of its own."""
    signature = headers.get(demand.header)
    if signature is None:
        return _missing(demand.header)
    return _with_headers(demand, headers, [signature])


def _claim_versioned(demand: Verify, headers: Mapping[str, str]) -> _Claim | Refusal:
    """Signatures between blanks, each with its version: `v1,… v1,… v1a,…`."""
    value = headers.get(demand.header)
    if value is None:
        return _missing(demand.header)
    entries = value.split(" ")
    # An entry that ends with a comma is the border of a header that came twice. No such sender exists, so what stands
    # behind the border is somebody else's.
    if len(entries) > SIGNATURES_MAX or any(entry.endswith(",") for entry in entries):
        return Refusal("malformed", f"{demand.header} came twice, or has more than {SIGNATURES_MAX} signatures")
    signatures = [entry for entry in entries if entry.startswith(demand.prefix)]
    if not signatures:
        return Refusal("missing", f"there is no v1 signature in {demand.header}")
    return _with_headers(demand, headers, signatures)


def _claim_stripe(demand: Verify, headers: Mapping[str, str]) -> _Claim | Refusal:
    """`t=…,v1=…,v1=…,v0=…`: a time and its signatures in one header."""
    value = headers.get(demand.header)
    if value is None:
        return _missing(demand.header)
    pairs = [entry.partition("=") for entry in value.split(",")]
    times = [text for name, _, text in pairs if name in _STRIPE_TIME]
    # Two times are two headers joined, one of which somebody else may have written; so is a blank after a comma.
    if len(pairs) > SIGNATURES_MAX + 1 or len(times) > 1 or any(" " in entry for entry in value.split(",")):
        return Refusal("malformed", f"{demand.header} came twice, or has more than {SIGNATURES_MAX} signatures")
    if not times or not _SECONDS.match(times[0]):
        return Refusal("malformed", f"the time `t` in {demand.header} is not in seconds since 1970")
    signatures = [text for name, _, text in pairs if name in _STRIPE_SIGNATURE]
    if not signatures:
        return Refusal("missing", f"there is no v1 signature in {demand.header}")
    return _Claim(signatures, times[0])


def _with_headers(demand: Verify, headers: Mapping[str, str], signatures: Sequence[str]) -> _Claim | Refusal:
    """Add time and id, where they are signed. Both must be such that nothing of one could belong to its neighbour."""
    timestamp = headers.get(demand.timestamp_header) if "{timestamp}" in demand.signed else ""
    message_id = headers.get(demand.id_header) if "{id}" in demand.signed else ""
    if timestamp is None or message_id is None:
        return _missing(demand.timestamp_header if timestamp is None else demand.id_header)
    if "{timestamp}" in demand.signed and not _SECONDS.match(timestamp):
        return Refusal("malformed", f"{demand.timestamp_header} is not in seconds since 1970")
    if "{id}" in demand.signed and not _is_message_id(demand.signed, message_id):
        rule = "one word of at most 256 characters, without the separators of what is signed"
        return Refusal("malformed", f"the id in {demand.id_header} is not {rule}")
    return _Claim(signatures, timestamp, message_id)


def _is_message_id(signed: str, message_id: str) -> bool:
    """Whether an id ends where it seems to: `a` and `b.c` must not sign the same bytes as `a.b` and `c`."""
    parts = PLACEHOLDER.split(signed)
    at = parts.index("{id}")
    # The text at either end has no neighbour behind it that could give bytes away or take them.
    between = "".join(parts[index] for index in (at - 1, at + 1) if 0 < index < len(parts) - 1)
    borders = {char for char in between if not char.isalnum()}
    return _ID.match(message_id) is not None and borders.isdisjoint(message_id)


def _missing(header: str) -> Refusal:
    return Refusal("missing", f"the header {header} is missing")


# --- tokens and passwords --------------------------------------------------------------------------------------------


def _prove_token(demand: Verify, keys: Sequence[bytes], delivery: _Delivery) -> Refusal | None:
    given = delivery.query.get(demand.query) if demand.query else delivery.headers.get(demand.header)
    where = f"the parameter {demand.query}" if demand.query else f"the header {demand.header}"
    if given is None:
        return Refusal("missing", f"{where} is missing")
    prefix = b"" if demand.query else _bytes(demand.prefix)
    if _is_one_of(_bytes(given), [prefix + key for key in keys]):
        return None
    return Refusal("mismatch", f"the token in {where} does not match")


def _prove_password(demand: Verify, keys: Sequence[bytes], delivery: _Delivery) -> Refusal | None:
    given = delivery.headers.get(demand.header)
    if given is None:
        return _missing(demand.header)
    if not _is_basic(demand.prefix, given):
        return Refusal("malformed", f"the header {demand.header} is not {demand.prefix}and a name with a password")
    # As with signatures texts are compared, since base64 has several spellings of the same bytes.
    user = _bytes(demand.username) + b":"
    if _is_one_of(_bytes(given), [_bytes(demand.prefix) + base64.b64encode(user + key) for key in keys]):
        return None
    return Refusal("mismatch", f"the name or the password in the header {demand.header} does not match")


def _is_basic(prefix: str, given: str) -> bool:
    try:
        return given.startswith(prefix) and ":" in base64.b64decode(given.removeprefix(prefix), validate=True).decode()
    except ValueError:
        return False


def _is_one_of(given: bytes, expected: Sequence[bytes]) -> bool:
    # Digests are compared, since compare_digest tells the length of what it compares, and that of a token is a secret.
    digest = hashlib.sha256(given).digest()
    matches = [hmac.compare_digest(digest, hashlib.sha256(one).digest()) for one in expected]
    return any(matches)


_UNPROVED = frozenset({"none"})
_BASE64_SECRETS = frozenset({"standard-webhooks"})
_BASE64 = frozenset({"base64"})
_STRIPE_TIME = frozenset({"t"})
_STRIPE_SIGNATURE = frozenset({"v1"})
_CLAIMS: Mapping[str, Callable[[Verify, Mapping[str, str]], _Claim | Refusal]] = {
    "github": _claim_plain,
    "standard-webhooks": _claim_versioned,
    "stripe": _claim_stripe,
    "slack": _claim_plain,
    "hmac": _claim_plain,
}
_PROOFS: Mapping[str, Callable[[Verify, Sequence[bytes], _Delivery], Refusal | None]] = {
    **dict.fromkeys(_CLAIMS, _prove_signature),
    "gitlab": _prove_token,
    "token": _prove_token,
    "basic": _prove_password,
}
