"""YAML is read by the rules of 1.2, with positions, and nothing in it can hurt the process."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taskforged.language import loader
from taskforged.language.loader import load, to_json


def read(source):
    problems = []
    root = load(source, problems)
    return (None if root is None else to_json(root)), problems


def only(source):
    _, problems = read(source)
    assert len(problems) == 1, problems
    return problems[0].line, problems[0].column, problems[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("NO", "NO"),
        ("012", "012"), ("-012", "-012"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("1_000", "1_000"),
        ("0b11", "0b11"), ("=", "="), ("null", None), ("~", None), ("", None), ("NULL", None),
        ("true", True), ("False", False), ("TRUE", True), ("0", 0), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0o17", 15),
        ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-2", -0.015), ("1.", 1.0), ("1e", "1e"), ("٣", "٣"),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)), ("'1'", "1"), ('"true"', "true"),
        ("nULL", "nULL"), ("1.2.3", "1.2.3"), ("1 2", "1 2"), ("v1", "v1"), ("<<", "<<"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text, value):
    document, problems = read(f"a: {text}\n")
    assert problems == []
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


@pytest.mark.parametrize(
    ("source", "where", "part"),
    [
        ("a: .inf", (1, 4), "no JSON number"),
        ("a: .NaN", (1, 4), "no JSON number"),
        ("a: -.Inf", (1, 4), "no JSON number"),
        ("a: 1e999", (1, 4), "too large"),
        ("b: 1\na: 9223372036854775808", (2, 4), "64 bits"),
        ("a: -9223372036854775809", (1, 4), "64 bits"),
        ("a: " + "9" * 5000, (1, 4), "64 bits"),
        ("a: 1\nb: 2\na: 3", (3, 1), "duplicate key 'a'; the first one is at line 1, column 1"),
        ("x:\n  - {k: 1, k: 2}", (2, 12), "duplicate key 'k'"),
        ("1: a", (1, 1), "in quotes"),
        ("true: a", (1, 1), "in quotes"),
        ("~: a", (1, 1), "in quotes"),
        ("? [a]\n: 1", (1, 3), "not a list or a map"),
        ("a: &x {b: 1}\nc:\n  <<: *x", (3, 3), "merge keys"),
        ("a: !!str 1", (1, 4), "tags are not supported: tag:yaml.org,2002:str"),
        ("a: !!python/object/apply:os.system [x]", (1, 4), "tags are not supported"),
        ("a: !input.x", (1, 4), "written in quotes"),
        ("a: !x {}", (1, 4), "tags"),
        ("a: *b", (1, 4), "names no anchor"),
        ("a: &b [*b]", (1, 8), "contains itself"),
        ("a: &b {c: {d: *b}}", (1, 15), "contains itself"),
        ("---\na: 1\n---\nb: 1", (3, 1), "more than one document"),
        ("%YAML 1.1\n---\na: 1", (1, 1), "directives"),
        ("%TAG ! tag:x,2000:\n---\na: 1", (1, 1), "directives"),
        ("", (1, 1), "empty"),
        ("# only a comment\n", (1, 1), "empty"),
        ("a: [1, 2", (1, 9), "not YAML"),
        ("a:\n\t- b", (2, 1), "not YAML"),
        ("a: b: c", (1, 5), "not YAML"),
        ("a: 'x", (1, 6), "not YAML"),
        ("a: @x", (1, 4), "not YAML"),
        ('a: "\\q"', (1, 6), "not YAML"),
        ('a: "\\U00110000"', (1, 7), "names no character"),
        ('a: "\\ud800"', (1, 4), "surrogate"),
        ('a: "\\0"', (1, 4), "NUL"),
        ("a: \x01", (1, 4), "U+0001"),
        ("a: 1\nb: x\u202ey", (2, 5), "U+202E"),
        ("a: \u2066", (1, 4), "U+2066"),
        ("a: b\u2028c", (1, 5), "U+2028"),
        ("a: b\x85c", (1, 5), "U+0085"),
        ("a: \ufeff", (1, 4), "U+FEFF"),
        ("a: \ud800", (1, 4), "U+D800"),
    ],
)  # fmt: skip
def test_refused_with_line_and_column(source, where, part):
    line, column, message = only(source)
    assert (line, column) == where
    assert part in message


def test_several_faults_at_once_and_the_rest_is_kept():
    document, problems = read("a: 1\na: 2\n3: c\nb: .inf\nd: ok\n")
    assert [(one.line, one.column) for one in problems] == [(2, 1), (3, 1), (4, 4)]
    assert document["a"] == 1
    assert document["d"] == "ok"


def test_a_byte_order_mark_comes_only_first():
    assert read("\ufeffa: 1") == ({"a": 1}, [])


def test_crlf_and_yaml_1_2_directive():
    assert read("%YAML 1.2\r\n---\r\na: 1\r\nb: |\r\n  x\r\n  y\r\n") == ({"a": 1, "b": "x\ny\n"}, [])


def test_emoji_and_astral_characters_are_fine():
    assert read("a: 🚀 é 𐀀") == ({"a": "🚀 é 𐀀"}, [])


@pytest.mark.parametrize(
    "source",
    ["[" * 200_000, "{a: " * 60_000, "- " * 100_000, "? " * 100_000, "[{a: " * 40_000, "\n".join(" " * i + "a:" for i in range(600))],
)  # fmt: skip
def test_deep_nesting_is_refused_before_anything_recurses(source):
    line, _, message = only(source)
    assert message == "nested deeper than 32 levels"
    assert line >= 1


def test_depth_limit_is_exact():
    assert read("[" * 32 + "]" * 32)[1] == []
    assert only("[" * 33 + "]" * 33) == (1, 33, "nested deeper than 32 levels")


def test_size_limit_is_exact():
    head = "a: "
    fits = head + "é" * ((loader.SIZE_MAX - len(head)) // 2)
    assert read(fits)[1] == []
    assert only(fits + "éé")[2].startswith("the definition has 262,1")


def test_number_of_values_is_bounded():
    assert "more than 20,000 values" in only("[" + "a," * 100_000 + "]")[2]


def test_twenty_aliases_are_fine_and_one_more_is_not():
    def source(count):
        return "a: &x 1\nb: [" + ", ".join(["*x"] * count) + "]"

    assert read(source(20)) == ({"a": 1, "b": [1] * 20}, [])
    assert only(source(21))[2] == "more than 20 aliases"


def test_alias_bomb_is_refused_by_what_it_expands_to():
    levels = ["a0: &a0 [" + "x," * 2000 + "]"]
    levels += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 10)]
    assert "expand to more than 1 MiB" in only("\n".join(levels))[2]


def test_alias_bomb_of_text():
    source = "a: &a " + "z" * 100_000 + "\nb: &b [*a, *a, *a]\nc: [*b, *b, *b, *b]"
    assert "expand to more than 1 MiB" in only(source)[2]


def test_an_anchor_on_a_key_and_redefined_anchors():
    assert read("&k a: *k\nb: &k 2\nc: *k") == ({"a": "a", "b": 2, "c": 2}, [])


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(source):
    _, problems = read(source)
    for one in problems:
        assert one.line >= 1
        assert one.column >= 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc~1: #\n'\"", max_size=5), inner, max_size=4),
        max_leaves=15,
    )
)  # fmt: skip
def test_json_is_yaml(value):
    """Every JSON document means the same here, whatever characters and line breaks its texts have."""
    assert read(json.dumps(value)) == (value, [])


def test_the_pure_parser_is_used():
    """The C parser crashes the process on deep nesting; nothing here may reach it."""
    assert loader.SafeLoader is yaml.SafeLoader
    assert yaml.parser.Parser in loader.SafeLoader.__mro__
