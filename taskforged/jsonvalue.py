"""The one gate for JSON from outside, and the one canonical form inside.

What Python's parsers let through and SQLite, protobuf or CEL then choke on is refused here, with a clear message:
duplicate keys, NaN and infinities, numbers beyond 64 bits, lone surrogates, excessive depth, excessive size.

Nearly all that comes is in order, and a parser of C says so four times as fast: what it reads is written again, and
where that is the same text but for white space, nothing was dropped or changed. Then no key was there twice, and no
number too long. Anything else goes to the strict parser, which is the law and knows the reasons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import orjson

from taskforged.errors import InvalidArgumentError, ResourceExhaustedError, Violation

__all__ = ["DEPTH_MAX", "canonical", "load_stored", "parse_json", "to_text"]

_SPACE = b" \t\r\n"

DEPTH_MAX = 64
"""Nesting allowed in JSON from outside. GitHub's deepest recorded payload has 9 levels; CEL walks recursively."""

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


class _RefusedError(ValueError):
    """Why a document is refused; turned into InvalidArgumentError by `parse_json`."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"duplicate key {twice!r}")
    return found


def _constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise _RefusedError(f"the number {text[:20]}… does not fit into 64 bits")
    value = int(text)
    if not _INT_MIN <= value <= _INT_MAX:
        raise _RefusedError(f"the number {text} does not fit into 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {text[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer, parse_float=_number, strict=True
)


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise _RefusedError(f"nested deeper than {DEPTH_MAX} levels")
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]


_UNSURE: Any = object()


def _parse_plain(raw: bytes) -> Any:
    """Answer what a document says when it is surely in order, else `_UNSURE`."""
    try:
        value = orjson.loads(raw)
        again = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)  # refuses what has more than 53 bits
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return _UNSURE
    if again != raw and again.translate(None, _SPACE) != raw.translate(None, _SPACE):
        return _UNSURE
    if raw.count(b"{") + raw.count(b"[") > DEPTH_MAX:
        _check_depth(value)
    return value


def parse_json(text: str | bytes, *, where: str, size_max: int) -> Any:
    """Parse JSON that comes from outside.

    Args:
        text: the document; bytes must be UTF-8.
        where: what the document is, for messages, for example `input_json`.
        size_max: limit in bytes (for a `str`: of its UTF-8 form).

    Raises:
        ResourceExhaustedError: it is larger than `size_max`.
        InvalidArgumentError: it is no JSON, or JSON that this gate refuses.
    """
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > size_max:
            raise ResourceExhaustedError(
                f"{where} has {len(raw):,} bytes; the limit is {size_max:,}",
                reason="TOO_LARGE",
                metadata={"field": where, "limit": str(size_max)},
            )
        value = _parse_plain(raw)
        if value is not _UNSURE:
            return value
        value = _DECODER.decode(raw.decode())
        _check_depth(value)
        if b"\\u" in raw:
            orjson.dumps(value)  # refuses lone surrogates, which only escapes can smuggle in
    except json.JSONDecodeError as error:
        raise _invalid(where, f"not JSON: {error.msg}", error.lineno, error.colno) from None
    except RecursionError:
        raise _invalid(where, f"nested deeper than {DEPTH_MAX} levels") from None
    except UnicodeError:
        raise _invalid(where, "not UTF-8") from None
    except orjson.JSONEncodeError:
        raise _invalid(where, "contains a lone surrogate, which is not a character") from None
    except _RefusedError as error:
        raise _invalid(where, str(error)) from None
    return value


def _invalid(where: str, message: str, line: int = 0, column: int = 0) -> InvalidArgumentError:
    at = f" (line {line}, column {column})" if line else ""
    return InvalidArgumentError(
        f"{where}: {message}{at}",
        reason="INVALID_JSON",
        violations=[Violation(path=where, message=message, line=line, column=column)],
    )


def canonical(value: Any) -> bytes:
    """Answer the one byte form of a JSON value: UTF-8, keys sorted, no spaces. Equal values give equal bytes.

    Raises:
        TypeError: it is no JSON value.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def to_text(value: Any) -> str:
    """Answer `canonical` as text."""
    return canonical(value).decode()


def load_stored(raw: bytes | str) -> Any:
    """Parse JSON that this program wrote itself."""
    return orjson.loads(raw)
