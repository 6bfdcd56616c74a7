"""The contract of a run's input, or of a payload that a step waits for: a JSON Schema (draft 2020-12), compiled.

Defaults are filled in. Nothing is ever fetched: references stay inside the schema. Patterns run in linear time (no
look-around, no back references), so no input can make a regular expression explode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError, ValidationErrorKind

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, Violation
from taskforged.language.paths import did_you_mean, join

__all__ = ["Contract", "SchemaFault", "compile_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_VIOLATIONS_MAX = 50
_VALUES = ("const", "enum", "default", "examples")
_REFERENCES = ("$ref", "$dynamicRef")


class SchemaFault(Exception):  # noqa: N818 - it is reported as a violation, not handled as an error
    """The schema cannot be used. `path` leads to the place in it."""

    def __init__(self, message: str, path: list[str | int]) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Contract:
    """A compiled contract of the input of a run, or of a payload.

    Attributes:
        schema: None when the definition has no `input:`; then any object is fine.
        validator: the same, compiled.
        what: `input` or `payload`.
    """

    schema: Json
    validator: Draft202012Validator
    what: str = "input"

    def accept(self, value: Json) -> Json:
        """Answer the input with defaults filled in; the argument is not changed.

        Raises:
            InvalidArgumentError: it does not fit; one violation per fault, `path` is the JSON path (`$.tag`).
        """
        filled = _fill(self.schema, value)
        if self.validator.is_valid(filled):
            return filled
        found = sorted(_violations(self.validator, self.schema, filled), key=lambda item: (item.path, item.message))
        if found:
            first = f"{found[0].path}: {found[0].message}"
            raise InvalidArgumentError(
                f"the {self.what} does not fit: {first}",
                reason=f"INVALID_{self.what.upper()}",
                violations=found[:_VIOLATIONS_MAX],
            )
        return filled


def compile_schema(schema: Json, what: str = "input") -> Contract:
    """Compile a contract; `None` is the contract of a definition that declares none.

    Raises:
        SchemaFault: it is no usable JSON Schema; that of an `input` must be one of an object.
    """
    if schema is None:
        return Contract(None, _validator({"type": "object"}))
    if not isinstance(schema, dict):
        raise SchemaFault("must be a JSON Schema, a map", [])
    if what == "input" and schema.get("type") != "object":
        raise SchemaFault("the input is always an object; write `type: object`", ["type"] if "type" in schema else [])
    if schema.get("$schema", _DRAFT).rstrip("#") != _DRAFT if isinstance(schema.get("$schema", ""), str) else True:
        raise SchemaFault(f"only draft 2020-12 is supported; leave out $schema or write {_DRAFT}", ["$schema"])
    _check_references(schema, [])
    contract = Contract(schema, _validator(schema), what)
    _check_defaults(schema, schema, [])
    return contract


def _validator(schema: Json) -> Draft202012Validator:
    try:
        return Draft202012Validator(
            schema, validate_formats=True, offline=True, pattern_options=RegexOptions(size_limit=1 << 20)
        )
    except ValidationError as error:
        raise SchemaFault(f"no valid JSON Schema: {error.message}", list(error.instance_path)) from None


def _check_references(schema: Json, path: list[str | int]) -> None:
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            _check_references(item, [*path, index])
        return
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
            raise SchemaFault(f"{key} may only point into this schema (#/…); nothing is fetched", [*path, key])
        if key not in _VALUES:
            _check_references(value, [*path, key])


def _properties(schema: Json) -> dict[str, Any]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def _check_defaults(root: Json, schema: Json, path: list[str | int]) -> None:
    for name, part in _properties(schema).items():
        here = [*path, "properties", name]
        if isinstance(part, dict) and "default" in part:
            # A reference inside the part is resolved from the root, so the definitions come along.
            alone = {**part, **{key: root[key] for key in ("$defs", "definitions") if key in root}}
            error = next(iter(_errors(alone, part["default"])), None)
            if error:
                raise SchemaFault(f"the default does not fit its own schema: {error.message}", [*here, "default"])
        _check_defaults(root, part, here)


def _errors(schema: Json, value: Json) -> Iterator[ValidationError]:
    try:
        validator = Draft202012Validator(schema, validate_formats=True, offline=True, pattern_options=RegexOptions())
    except ValidationError:
        return  # it refers to something outside itself, so it can be judged only with a whole input
    yield from validator.iter_errors(value)


def _fill(schema: Json, value: Json) -> Json:
    """Answer a copy with the defaults of absent properties, in nested objects, too."""
    properties = _properties(schema)
    if not isinstance(value, dict) or not properties:
        return value
    filled = {key: _fill(properties[key], part) if key in properties else part for key, part in value.items()}
    for name, part in properties.items():
        if name not in filled and isinstance(part, dict) and "default" in part:
            filled[name] = _fill(part, copy.deepcopy(part["default"]))
    return filled


def _violations(validator: Draft202012Validator, schema: Json, value: Json) -> Iterator[Violation]:
    for error in validator.iter_errors(value):
        path = _json_path(error.instance_path)
        kind = error.kind
        if isinstance(kind, ValidationErrorKind.Required):
            yield Violation(join(path, str(kind.property)), "is required")
        elif isinstance(kind, ValidationErrorKind.AdditionalProperties):
            known = _properties(_part(schema, error.instance_path))
            for name in kind.unexpected:
                yield Violation(join(path, name), f"is not known{did_you_mean(name, known)}")
        else:
            yield Violation(path, error.message)


def _part(schema: Json, path: list[str | int]) -> Json:
    for key in path:
        schema = _properties(schema).get(str(key))
    return schema


def _json_path(parts: list[str | int]) -> str:
    path = "$"
    for part in parts:
        path = join(path, part)
    return path
