"""Page sizes and page tokens, the same for every list (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Any

from taskforged.errors import InvalidArgumentError, Violation
from taskforged.jsonvalue import canonical, load_stored

__all__ = ["PAGE_DEFAULT", "PAGE_MAX", "decode_token", "encode_token", "page_size"]

PAGE_DEFAULT = 50
PAGE_MAX = 1000


def page_size(wanted: int) -> int:
    """Answer how many rows to give: 0 means the default, too many means the most there are.

    Raises:
        InvalidArgumentError: it is negative.
    """
    if wanted < 0:
        raise _invalid("page_size", "must not be negative")
    return min(wanted or PAGE_DEFAULT, PAGE_MAX)


def encode_token(key: int | str, filters: Sequence[Any]) -> str:
    """Answer the token for the page that begins behind `key`, bound to the filters of the list."""
    return base64.urlsafe_b64encode(canonical([key, _digest(filters)])).decode().rstrip("=")


def decode_token(token: str, filters: Sequence[Any], default: int | str) -> Any:
    """Answer the key in a token, of the type of `default`, which is the answer for the empty token.

    Raises:
        InvalidArgumentError: it is not a token of this list with these filters.
    """
    if not token:
        return default
    try:
        found = load_stored(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        key, digest = found
    except (ValueError, TypeError, binascii.Error):
        raise _invalid("page_token", "is not a page token") from None
    if digest != _digest(filters) or type(key) is not type(default):
        raise _invalid("page_token", "belongs to a list with other filters; ask for the first page again")
    if isinstance(key, int) and not 0 <= key < 1 << 63:  # more than SQLite's integers hold
        raise _invalid("page_token", "is not a page token")
    return key


def _digest(filters: Sequence[Any]) -> str:
    return hashlib.sha256(canonical(list(filters))).hexdigest()[:16]


def _invalid(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {message}", violations=[Violation(field, message)])
