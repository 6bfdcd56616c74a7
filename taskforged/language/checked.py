"""What a checked CEL expression refers to, read from its serialised form.

`cel_expr_python` shows its syntax tree only as bytes of a `cel.expr.CheckedExpr` message, whose Python classes are in
no package that we depend on. The few fields needed are read here by number; the numbers are those of
github.com/google/cel-spec, proto/cel/expr/checked.proto and syntax.proto, and a wire format never renumbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Checked", "Key", "Reference", "read_checked"]

Key: TypeAlias = str | int
_Field: TypeAlias = "tuple[int, int | bytes]"

_FIXED_SIZES = {1: 8, 5: 4}
_SELECT, _CALL, _INDEX = 5, 6, "_[_]"
_STRUCTURES = {7: "list", 8: "struct"}


@dataclass(frozen=True, slots=True)
class Reference:
    """One use of a variable.

    Attributes:
        name: of the variable, as declared; may contain dots.
        keys: constant selections and indexes applied to it, for example `("body", "release")`.
        offset: where the reference was recorded in the source; for a dotted name this is its last dot.
    """

    name: str
    keys: tuple[Key, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Checked:
    """All uses of variables, whether the whole expression is but one of them, and how many macros loop in it."""

    references: tuple[Reference, ...]
    is_path: bool
    loops: int


def read_checked(serialised: bytes, declared: Container[str]) -> Checked:
    """Read the bytes that `Expression.serialize()` answers.

    `declared` tells variables from the other names that are recorded with them, such as the type `int`.
    """
    message = _last(serialised, 2)
    names: dict[int, str] = {}
    for entry in _all(message, 2):
        name = _last(_last(entry, 2), 1).decode()
        if name in declared:
            names[_number(entry, 1)] = name
    positions = {_number(entry, 1): _number(entry, 2) for entry in _all(_last(message, 5), 4)}
    walker = _Walker(names, positions)
    is_path = walker.walk(_last(message, 4))
    return Checked(tuple(walker.found), is_path, walker.loops)


class _Walker:
    def __init__(self, names: Mapping[int, str], positions: Mapping[int, int]) -> None:
        self._names = names
        self._positions = positions
        self._hidden: list[str] = []
        self.found: list[Reference] = []
        self.loops = 0

    def walk(self, expr: bytes) -> bool:
        """Collect the uses in `expr`; answer whether it is nothing but one variable with constant keys."""
        chain = self._chain(expr)
        if chain is not None:
            reference, test_only = chain
            if reference.name not in self._hidden:
                self.found.append(reference)
            return not test_only
        for number, body in _fields(expr):
            if number == _SELECT:
                self.walk(_last(_bytes(body), 1))
            elif number == _CALL:
                self._walk_parts(_bytes(body), (1, 3))
            elif number in _STRUCTURES:
                self._walk_structure(number, _bytes(body))
            elif number == 9:
                self._walk_comprehension(_bytes(body))
        return False

    def _walk_parts(self, message: bytes, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            for part in _all(message, number):
                self.walk(part)

    def _walk_structure(self, number: int, body: bytes) -> None:
        if number == 7:
            self._walk_parts(body, (1,))
            return
        for entry in _all(body, 2):
            self._walk_parts(entry, (3, 4))

    def _walk_comprehension(self, body: bytes) -> None:
        self.loops += 1
        self._walk_parts(body, (2, 4))
        hidden = [name.decode() for number in (1, 3, 8) for name in _all(body, number)]
        self._hidden.extend(hidden)
        self._walk_parts(body, (5, 6, 7))
        del self._hidden[len(self._hidden) - len(hidden) :]

    def _chain(self, expr: bytes) -> tuple[Reference, bool] | None:
        """Answer `variable.key["key"][0]…` as one reference, and whether it stands in `has()`."""
        keys: list[Key] = []
        outermost_test = False
        while True:
            ident = _number(expr, 2)
            if ident in self._names and (_has(expr, 4) or _has(expr, _SELECT)):
                at = self._positions.get(ident, 0)
                return Reference(self._names[ident], tuple(reversed(keys)), at), outermost_test
            step = _selection(expr)
            if step is None:
                return None
            expr, key, test_only = step
            outermost_test = outermost_test or test_only
            keys.append(key)


def _selection(expr: bytes) -> tuple[bytes, Key, bool] | None:
    """Answer operand, key and whether it is a `has()` test, for a selection by a constant key."""
    if _has(expr, _SELECT):
        select = _last(expr, _SELECT)
        return _last(select, 1), _last(select, 2).decode(), bool(_number(select, 3))
    if not _has(expr, _CALL):
        return None
    call = _last(expr, _CALL)
    arguments = _all(call, 3)
    if _last(call, 2).decode() != _INDEX or len(arguments) != 2 or not _has(arguments[1], 3):
        return None
    key = _constant(_last(arguments[1], 3))
    return None if key is None else (arguments[0], key, False)


def _constant(message: bytes) -> Key | None:
    for number, value in _fields(message):
        if number == 6:
            return _bytes(value).decode()
        if number == 3 and isinstance(value, int) and value < 2**63:
            return value
    return None


def _fields(message: bytes) -> Iterator[_Field]:
    """Yield number and value of each field of a message in the protobuf wire format."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            size, at = _varint(message, at)
        else:
            size = _FIXED_SIZES[kind]
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _all(message: bytes, number: int) -> list[bytes]:
    return [_bytes(value) for found, value in _fields(message) if found == number]


def _last(message: bytes, number: int) -> bytes:
    found = _all(message, number)
    return found[-1] if found else b""


def _number(message: bytes, number: int) -> int:
    for found, value in _fields(message):
        if found == number and isinstance(value, int):
            return value
    return 0


def _has(message: bytes, number: int) -> bool:
    return any(found == number for found, _ in _fields(message))


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value
