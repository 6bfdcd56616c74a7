"""A run's input, and other JSON, from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.files import read_text

__all__ = ["check_json", "given_json", "input_json", "json_value", "pairs_of"]


def input_json(pairs: Sequence[str], text: str | None, file: str | None) -> str:
    """Answer the input as JSON text; empty when none was given.

    Text that nothing is added to is passed on as it stands, so that no digit of a number gets lost.

    Args:
        pairs: `key=value`, on top of the rest; a value that is JSON is taken as JSON, else as text.
        text: a JSON object.
        file: a file with a JSON object, or `-` for stdin.

    Raises:
        CliError: the input is not what it must be.
    """
    if text is not None and file is not None:
        raise CliError("--input-json and --input-file exclude each other", code=EXIT_USAGE)
    source = "--input-json"
    if file is not None:
        text, source = read_text(file), file
    if text is None and not pairs:
        return ""
    base = {} if text is None else _parse_object(text, source)
    if text is not None and not pairs:
        return text
    return json.dumps(base | dict(_pair(one) for one in pairs), ensure_ascii=False)


def json_value(text: str | None, option: str) -> str:
    """Answer any JSON value as it was typed, so that no digit of a number gets lost; empty when none was given.

    Args:
        text: JSON, or `@FILE`, or `-` for stdin; no JSON begins or looks like these.
        option: where it was given, for the message.

    Raises:
        CliError: it is no JSON, or the file cannot be read.
    """
    if text is None:
        return ""
    if text == "-":
        text = read_text("-")
    elif text.startswith("@"):
        text = read_text(text[1:])
    check_json(text, option, hint="a text needs quotes of its own: '\"yes\"'; @FILE reads a file, - reads stdin")
    return text


def given_json(text: str | None, file: str | None, option: str) -> str:
    """Answer a JSON value that is given by itself or in a file, as it was typed; empty when none was given.

    Args:
        text: of the option, as in `json_value`.
        file: of the option that ends with `-file`: a name, or `-` for stdin.
        option: the first of both.

    Raises:
        CliError: both are given, it is no JSON, or the file cannot be read.
    """
    if text is not None and file is not None:
        raise CliError(f"{option} and {option}-file exclude each other", code=EXIT_USAGE)
    if file is None:
        return json_value(text, option)
    found = read_text(file)
    check_json(found, "stdin" if file == "-" else file)
    return found


def check_json(text: str, source: str, *, hint: str = "") -> Any:
    """Answer the value of a JSON text.

    Args:
        text: the text.
        source: where it comes from, for the message.
        hint: what else is to be done about it.

    Raises:
        CliError: it is no JSON; the message says where.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{source} is not JSON: {error}", hint=hint, code=EXIT_USAGE) from None


def pairs_of(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Answer `KEY=VALUE` arguments as a map, with the keys in lower case, as the names of headers are.

    Raises:
        CliError: one has no `=`, or nothing before it.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise CliError(f"{option} {pair!r} is not KEY=VALUE", code=EXIT_USAGE)
        found[key.strip().lower()] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _parse_object(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{source} is not JSON: {error}", code=EXIT_USAGE) from None
    if not isinstance(value, dict):
        raise CliError(f"{source} must be a JSON object, like {{}}", code=EXIT_USAGE)
    return value


def _pair(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        hint = "for example --input name=Ada, --input count=3, --input 'tags=[\"a\"]'"
        raise CliError(f"--input {pair!r} is not KEY=VALUE", hint=hint, code=EXIT_USAGE)
    return key, _value(text)


def _value(text: str) -> Any:
    """Answer JSON as its value and anything else as text; `NaN` and `1e999`, which JSON cannot carry, are text."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value
