"""CEL at run time: values become JSON, failures become ExpressionError, the fast path cannot be told apart."""

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskforged.engine.model import ExpressionError
from taskforged.language import compile_definition
from taskforged.language.expressions import Compiler, Names, _Cel, _Path
from taskforged.language.loader import load
from taskforged.language.origin import Origin

NAMES = Names(frozenset({"input", "event", "run", "vars", "workflow"}), frozenset({"a"}))


class Scope:
    def __init__(self, **values):
        self.values = values

    def resolve(self, name):
        return self.values[name]


def compiled(source, *, want_bool=False, static=None, schema=None):
    problems = []
    document = json.dumps(source)
    compiler = Compiler(frozenset({"a", "later"}), static or {}, schema, problems)
    expression = compiler.compile(source, Origin("x", load(document, []), document), NAMES, want_bool=want_bool)
    assert problems == [], problems
    return expression


def evaluate(source, given=None, **more):
    return compiled(source).evaluate(Scope(input=given, **more))


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("input.t + '!'", "v1!"),
        ("input.i + 1", 4),
        ("input.f * 2.0", 3.0),
        ("input.t.startsWith('v') && !input.t.contains('-rc')", True),
        ("input.t.split('').size()", 2),
        ("math.greatest(input.i, 2)", 3),
        ("input.?nope.orValue('none')", "none"),
        ("input.?t.orValue('none')", "v1"),
        ("base64.encode(bytes(input.t))", "djE="),
        ("has(input.nope)", False),
        ("has(input.n)", True),
        ("input.n == null", True),
        ("[input.n, null]", [None, None]),
        ("{'z': input.n, 'a': {'c': 1, 'b': 2}}", {"a": {"b": 2, "c": 1}, "z": None}),
        ("input.l.map(x, x * 2)", [2, 4]),
        ("input.l.exists(x, x == 2) ? 'y' : 'n'", "y"),
        ("input.m.map(k, k).size()", 2),
        ("timestamp(input.at)", "2024-02-29T10:00:00Z"),
        ("timestamp(input.at) + duration('36h')", "2024-03-01T22:00:00Z"),
        ("timestamp('2024-01-01T00:00:00.25Z')", "2024-01-01T00:00:00.250000Z"),
        ("duration('1h30m')", "5400s"),
        ("duration('1500ms')", "1.5s"),
        ("duration('-1.5s')", "-1.5s"),
        ("uint(input.i)", 3),
        ("input.i == 3.0", True),
        ("string(input.f)", "1.5"),
        ("type(input.i) == int", True),
        ("false && input.nope", False),
        ("input.nope || true", True),
        ("9223372036854775807", 2**63 - 1),
        ("input.t.matches('^v[0-9]+$')", True),
        ("'é🚀'.size()", 2),
    ],
)
def test_values(source, value):
    given = {"t": "v1", "i": 3, "f": 1.5, "n": None, "l": [1, 2], "m": {"x": 1, "y": 2}, "at": "2024-02-29T10:00:00Z"}
    result = evaluate(source, given)
    assert result == value
    assert type(result) is type(value)


def test_keys_are_sorted():
    assert list(evaluate("{'c': 1, 'a': 2, 'b': 3}")) == ["a", "b", "c"]
    assert list(evaluate("[input][0]", {"c": 1, "a": 2, "b": 3})) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("input.nope", 'there is no key "nope"'),
        ("input['nope']", 'there is no key "nope"'),
        ("input.n.x", "a field is selected from a value that is no map"),
        ("input.l[2]", "Index error"),
        ("input.l.x", "no map"),
        ("input.i / 0", "divide by zero"),
        ("input.i + input.f", "No matching overloads"),
        ("input.i + 9223372036854775807", "overflow"),
        ("uint(input.i) + 18446744073709551612u", "does not fit into 64 bits"),
        ("input.f / 0.0", "inf is no JSON number"),
        ("double(input.zero) / 0.0", "nan is no JSON number"),
        ("[input.f / 0.0]", "inf is no JSON number"),
        ("[bytes(input.t)]", "base64.encode"),
        ("{input.i: 1}", "the key 3 of a map is no text"),
        ("[optional.of(input.i)]", "no JSON"),
        ("[type(input.i)]", "wrap it in string"),
        ("!input.n", "No matching overloads"),
        ("input.l.all(a, input.big.all(b, input.big.all(c, a + b + c >= 0)))", "it loops too often"),
        ("input.t.matches('(' + input.t)", "invalid regular expression"),
        ("run.id", "run is not known here"),
        ("'x' + run.id", "run is not known here"),
        ("input.l.map(x, input.t)[5]", "Index error"),
    ],
)
def test_failures_are_expression_errors(source, reason):
    given = {"t": "v1", "i": 3, "f": 1.5, "n": None, "l": [1, 2], "zero": 0, "big": list(range(300))}
    with pytest.raises(ExpressionError) as caught:
        evaluate(source, given)
    assert reason in caught.value.reason
    assert caught.value.source == source


def test_python_is_out_of_reach():
    for source in ("input.__class__", "input['__class__']", "input.t.__class__", "'{0.__class__}'.format([input])"):
        try:
            value = evaluate(source, {"t": "x"})
        except ExpressionError:
            continue
        assert "dict" not in str(value)


def test_result_size_is_bounded():
    with pytest.raises(ExpressionError, match="larger than"):
        evaluate("input.l.map(x, input.t)", {"l": list(range(100)), "t": "z" * 100_000})


def test_nulls_do_not_wear_out_the_interpreter():
    """cel_expr_python 0.1.3 loses a reference to None for each null that it converts, and then Python aborts."""
    by_cel = compiled("[input.a, null, {'x': input.a}]")
    path = compiled("input.a")
    scope = Scope(input={"a": None})
    before = sys.getrefcount(None)
    for _ in range(20_000):
        by_cel.evaluate(scope)
        path.evaluate(scope)
    assert sys.getrefcount(None) > before - 2_000


def test_only_used_parts_are_bound():
    class Watched(dict):
        """Not a plain dict, so a copy of it would fail to bind."""

    by_cel = compiled("event.headers['x'] == 'y' && event.body.action.size() > 0")
    huge = {"action": "z", "rest": object()}
    assert by_cel.evaluate(Scope(event={"headers": {"x": "y"}, "body": huge, "other": object()})) is True


def test_results_of_constants_are_fresh():
    expression = compiled("vars.headers", static={"headers": {"a": ["b"]}})
    first = expression.evaluate(Scope())
    first["a"].append("c")
    assert expression.evaluate(Scope()) == {"a": ["b"]}


def test_constant_expressions_are_folded():
    assert compiled("1 + 1").evaluate(None) == 2
    assert compiled("vars.a.b[1] + vars.c", static={"a": {"b": [1, 2]}, "c": 3}).evaluate(None) == 5


@pytest.mark.parametrize("value", [1, "true", None, [], {}, 0.0])
def test_conditions_take_nothing_but_bools(value):
    condition = compiled("input.x", want_bool=True)
    with pytest.raises(ExpressionError, match="must be true or false, is"):
        condition.evaluate(Scope(input={"x": value}))
    assert condition.evaluate(Scope(input={"x": False})) is False


@pytest.mark.parametrize(
    "source",
    ["input", "input.a", "input.a.b", "input['a-b'].c", "steps.a.output.x[0].y", "(input.a).b", "input . a", "event.body"],
)  # fmt: skip
def test_plain_chains_take_the_fast_path(source):
    assert isinstance(compiled(source), _Path)


@pytest.mark.parametrize(
    "source", ["has(input.a)", "input.?a.orValue(1)", "input.l[-1]", "input[input.k]", "input.a + 1", "[input.a]"]
)
def test_everything_else_does_not(source):
    assert isinstance(compiled(source), _Cel)


KEYS = st.sampled_from(["a", "b", "a-b", "é", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def outcome(expression, scope):
    try:
        return "value", json.dumps(expression.evaluate(scope), sort_keys=True)
    except ExpressionError as error:
        return "error", error.reason, error.position, error.source


@given(JSON, st.lists(KEYS | st.integers(0, 3), max_size=4))
@example({"a": [1]}, ["a", 0])
@example({"a": None}, ["a", "b"])
@example([1, 2], ["a"])
@example("text", [0])
def test_the_fast_path_equals_cel(value, keys):
    source = "input" + "".join(f"[{json.dumps(key, ensure_ascii=False)}]" for key in keys)
    source = source.replace('["a"]', ".a")
    path = compiled(source)
    assert isinstance(path, _Path)
    assert outcome(path, Scope(input=value)) == outcome(path.why, Scope(input=value))


@given(JSON, st.sampled_from([
    "has(input.a) ? [input.a] : []", "input.?a.?b.orValue(0)", "[input.a, input.b]", "input.a == input.b", "'a' in input",
    "input.a.b == null || has(input.a.b)", "size(input)", "[input.a.size(), input.b[0]]", "input.a.map(x, x)",
]))  # fmt: skip
def test_binding_only_what_is_used_changes_nothing(value, source):
    by_cel = compiled(source)
    whole = _Cel(by_cel.source, by_cel.position, by_cel.program, dict.fromkeys(by_cel.uses), {})
    assert outcome(by_cel, Scope(input=value)) == outcome(whole, Scope(input=value))


def test_position_of_a_failure_points_into_the_document():
    source = "name: x\nsteps:\n  - id: a\n    transform:\n      version: v ${{ input.tag }}\n"
    value = compile_definition(source).model.steps["a"].spec.value
    with pytest.raises(ExpressionError) as caught:
        value.evaluate(Scope(input={}))
    assert caught.value.position == "steps[0].transform.version (line 5, column 22)"
    assert caught.value.source == "input.tag"
    assert str(caught.value) == f'{caught.value.position}: `input.tag`: there is no key "tag"'
