"""The JSON gate: what it refuses, what it lets through unchanged, and the canonical form."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged import jsonvalue
from taskforged.errors import InvalidArgumentError, ResourceExhaustedError
from taskforged.jsonvalue import DEPTH_MAX, canonical, load_stored, parse_json, to_text

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


KEYS = st.sampled_from(['"a"', '"b"', '"a b"', '" a"', '"\\u0061"', '"\\n"'])
NUMBERS = st.sampled_from(
    ["0", "-0", "1.0", "1e2", "1.50", "9007199254740993", str(2**63), str(-(2**63) - 1), "1" * 25]
)
SPACES = st.sampled_from(["", "", " ", "\n\t "])
TEXTS = st.recursive(
    KEYS | NUMBERS | st.sampled_from(["null", "true", '""', '"\\ud800"']),
    lambda inner: (
        st.tuples(SPACES, st.lists(inner, max_size=3)).map(lambda it: f"[{it[0]}{f',{it[0]}'.join(it[1])}{it[0]}]")
        | st.tuples(SPACES, st.lists(st.tuples(KEYS, inner), max_size=3)).map(
            lambda it: f"{{{it[0]}" + f",{it[0]}".join(f"{key}{it[0]}:{it[0]}{one}" for key, one in it[1]) + "}"
        )
    ),
    max_leaves=8,
)
"""Documents in which keys repeat and numbers are long, with and without white space."""


def parse(text, size_max=1 << 20):
    return parse_json(text, where="body", size_max=size_max)


@given(VALUES)
def test_what_is_json_comes_through_and_back(value):
    assert parse(json.dumps(value)) == value
    assert parse(canonical(value)) == value
    assert load_stored(canonical(value)) == value


@given(VALUES)
def test_the_canonical_form_does_not_depend_on_the_order_of_keys(value):
    def turned(item):
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(one) for one in item] if isinstance(item, list) else item

    assert canonical(turned(value)) == canonical(value) == to_text(value).encode()


@given(TEXTS)
def test_the_fast_parser_lets_nothing_through_that_the_strict_one_does_not(text):
    quick = jsonvalue._parse_plain(text.encode())
    if quick is not jsonvalue._UNSURE:
        strict = jsonvalue._DECODER.decode(text)
        assert repr(quick) == repr(strict)


def test_what_is_plain_does_not_wait_for_the_strict_parser():
    plain = '{ "a b": [1, -2.5, "x\\n", null],\n "b": {"c": true} }'
    assert jsonvalue._parse_plain(plain.encode()) == json.loads(plain)
    assert jsonvalue._parse_plain(b'{"a":1,"a":1}') is jsonvalue._UNSURE
    assert jsonvalue._parse_plain(b"9223372036854775808") is jsonvalue._UNSURE


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1,]", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("[1] [2]", "not JSON"),
        ("NaN", "NaN"),
        ("[Infinity]", "Infinity"),
        ("-Infinity", "Infinity"),
        ('{"a": 1, "a": 1}', "duplicate key 'a'"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "duplicate key 'c'"),
        (str(2**63), "64 bits"),
        (str(-(2**63) - 1), "64 bits"),
        ("1" * 5000, "64 bits"),
        ("1e999", "too large"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), "nested deeper"),
        ("[" * 1_000_000, "nested deeper"),
        ('{"a":' * 100_000, "nested deeper"),
        (b"\xff\xfe[1]", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ('"a\nb"', "not JSON"),
        ('"\\x"', "not JSON"),
    ],
)
def test_what_is_refused_says_where_and_why(text, why):
    with pytest.raises(InvalidArgumentError, match="body: ") as caught:
        parse(text, size_max=1 << 24)
    assert why in caught.value.message
    assert caught.value.violations[0].path == "body"


def test_limits_are_exact():
    assert parse("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    assert parse(str(2**63 - 1)) == 2**63 - 1
    assert parse('"12345678"', size_max=10) == "12345678"
    with pytest.raises(ResourceExhaustedError, match="11 bytes; the limit is 10"):
        parse('"123456789"', size_max=10)
    with pytest.raises(ResourceExhaustedError):
        parse('"ééééé"', size_max=10)


def test_a_position_is_given_where_there_is_one():
    with pytest.raises(InvalidArgumentError) as caught:
        parse('{\n  "a": 1,\n  "b" 2\n}')
    violation = caught.value.violations[0]
    assert (violation.line, violation.column) == (3, 7)


def test_escaped_pairs_are_one_character():
    assert parse('"\\ud83d\\ude00"') == "\U0001f600"
    assert orjson.loads(canonical("\U0001f600")) == "\U0001f600"
