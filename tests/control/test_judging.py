"""What a trigger makes of an event, without a daemon: verdicts, false clauses with their values, items, patterns."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.control.judging import NamespaceFacts, Start, judge, type_matches
from taskforged.language import compile_definition
from taskforged.language.clauses import CLAUSES_MAX, split_clauses

ANY = "{type: object}"


def verdict(rules, event=None, *, contract=ANY, namespaces=(), head=""):
    """Judge an event by a trigger with these lines."""
    lines = "".join(f"    {line}\n" for line in rules.splitlines())
    source = f"name: x\n{head}on:\n  t:\n    event: {{type: a}}\n{lines}input: {contract}\nsteps: [{{id: a, transform: 1}}]\n"
    definition = compile_definition(source)
    facts = None if namespaces is None else [NamespaceFacts(name, labels) for name, labels in dict(namespaces).items()]
    return judge(definition, definition.triggers["t"], event or {"body": None}, facts)


def body(value):
    return {"body": value, "type": "a", "headers": {"x-a": "b"}, "due_time": None}


# --- if --------------------------------------------------------------------------------------------------------------


def test_without_rules_everything_matches():
    found = verdict("")
    assert found.starts == [Start(0, "", {})]
    assert (found.reason, found.clause, found.is_fault, found.has_items) == ("", "", False, False)


@pytest.mark.parametrize(
    ("condition", "value", "clause", "values"),
    [
        ("event.body.a == 1", {"a": 2}, "event.body.a == 1", {"event.body.a": 2}),
        ("event.body.a == 1 && event.body.b == 2", {"a": 1, "b": 3}, "event.body.b == 2", {"event.body.b": 3}),
        ("event.body.a == 1 && event.body.b == 2", {"a": 0, "b": 3}, "event.body.a == 1", {"event.body.a": 0}),
        ("event.body.a && (event.body.b || event.body.c)", {"a": True, "b": False, "c": False}, "(event.body.b || event.body.c)", {"event.body.b": False, "event.body.c": False}),
        ("event.body.a || event.body.b && event.body.c", {"a": False, "b": True, "c": False}, "event.body.a || event.body.b && event.body.c", {"event.body.a": False, "event.body.b": True, "event.body.c": False}),
        ('event.headers["x-a"] == "c"', {}, 'event.headers["x-a"] == "c"', {'event.headers["x-a"]': "b"}),
        ("!(event.body.a in [1, 2])", {"a": 2}, "!(event.body.a in [1, 2])", {"event.body.a": 2}),
        ("has(event.body.a) && event.body.a > 1", {}, "has(event.body.a)", {}),
        ("event.body.all(x, x > 1)", [2, 1], "event.body.all(x, x > 1)", {"event.body": [2, 1]}),
        ("event.body.a > vars.limit", {"a": 3}, "event.body.a > vars.limit", {"event.body.a": 3, "vars.limit": 5}),
        ("${{ event.body.a && event.body.b }}", {"a": True, "b": False}, "event.body.b", {"event.body.b": False}),
        ("'a && b' == event.body.a && event.body.a == 'x'", {"a": "x"}, "'a && b' == event.body.a", {"event.body.a": "x"}),
    ],
)  # fmt: skip
def test_the_clause_that_was_false_and_what_it_saw(condition, value, clause, values):
    quoted = condition.replace('"', '\\"')
    found = verdict(f'if: "{quoted}"', body(value), head="vars: {limit: 5}\n")
    assert found.reason == f"`if` is false: {clause}"
    assert found.clause == clause
    shown = dict(found.values)
    if clause != "has(event.body.a)":
        assert {key: shown.get(key) for key in values if not key.startswith("vars")} == {
            key: one for key, one in values.items() if not key.startswith("vars")
        }
    assert (found.starts, found.is_fault) == ((), False)


def test_values_are_abridged():
    found = verdict("if: event.body.a == 'x'", body({"a": "y" * 5000}))
    (shown,) = found.values.values()
    assert len(shown) < 250
    assert shown.endswith("…")


def test_what_fails_in_one_clause_while_another_is_false():
    """CEL's `&&` lets a false decide over an error, from either side."""
    found = verdict("if: event.body.missing == 1 && event.body.a == 1", body({"a": 2}))
    assert (found.clause, found.is_fault) == ("event.body.a == 1", False)
    found = verdict("if: event.body.missing == 1 && event.body.a == 1", body({"a": 1}))
    assert found.reason.startswith("an expression failed: ")
    assert "event.body.missing" in found.reason
    assert found.is_fault


@pytest.mark.parametrize("value", [1, "true", None, [], {"a": 1}])
def test_only_true_is_true(value):
    found = verdict("if: event.body", body(value))
    assert (found.is_fault, found.starts) == (True, ())


def test_more_clauses_than_are_looked_at():
    for count in (CLAUSES_MAX, CLAUSES_MAX + 1):
        condition = " && ".join(f"event.body.a != {n}" for n in range(count))
        found = verdict(f"if: {condition}", body({"a": 3}))
        assert found.clause == ("event.body.a != 3" if count == CLAUSES_MAX else condition)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a && b", ["a", "b"]),
        (" a&&b ", ["a", "b"]),
        ("a && (b && c)", ["a", "(b && c)"]),
        ("[a && b][0] && {'x': a && b}.x", ["[a && b][0]", "{'x': a && b}.x"]),
        ("a && b || c", ["a && b || c"]),
        ("(a || b) && c", ["(a || b)", "c"]),
        ("a ? b && c : d", ["a ? b && c : d"]),
        ("'&&' == a && b", ["'&&' == a", "b"]),
        ('"""a && b""" == c && d', ['"""a && b""" == c', "d"]),
        ("r'\\' == a && b", ["r'\\' == a", "b"]),
        ("'it\\'s && x' == a && b", ["'it\\'s && x' == a", "b"]),
        ("a && f(b, c && d) && e", ["a", "f(b, c && d)", "e"]),
        ("a.?b && c", ["a.?b && c"]),
    ],
)
def test_clauses(text, parts):
    if text == "a.?b && c":  # an optional field may be told from a choice; both answers are right, if coarse
        assert split_clauses(text) in (parts, ["a.?b", "c"])
    else:
        assert split_clauses(text) == parts


@given(st.text(alphabet="ab&|?()[]{}'\"\\ /\n.", max_size=40))
def test_clauses_of_whatever_is_written_lose_nothing(text):
    parts = split_clauses(text)
    assert parts == [text.strip()] or re.sub(r"\s", "", "&&".join(parts)) == re.sub(r"\s", "", text)


# --- input -----------------------------------------------------------------------------------------------------------

CONTRACT = "{type: object, required: [n], properties: {n: {type: integer}, with: {type: string, default: d}}}"


def test_the_input_is_held_against_the_contract():
    rules = "input: {n: '${{ event.body.n }}'}"
    assert verdict(rules, body({"n": 1}), contract=CONTRACT).starts == [Start(0, "", {"n": 1, "with": "d"})]
    found = verdict(rules, body({"n": "x"}), contract=CONTRACT)
    assert found.reason.startswith("the input does not fit: ")
    assert "n" in found.reason
    assert (found.is_fault, found.starts) == (True, ())
    missing = verdict("", contract=CONTRACT)
    assert missing.reason.startswith("the input does not fit: ")
    failed = verdict(rules, body({}), contract=CONTRACT)
    assert failed.reason.startswith("an expression failed: ")


def test_the_condition_comes_first():
    rules = "if: event.body.ok\ninput: {n: '${{ event.body.n }}'}"
    assert verdict(rules, body({"ok": False}), contract=CONTRACT).reason == "`if` is false: event.body.ok"


# --- for each --------------------------------------------------------------------------------------------------------


def test_items_with_their_index():
    found = verdict("for_each: event.body\ninput: {n: '${{ item.n }}', i: '${{ index }}'}", body([{"n": 5}, {"n": 7}]))
    assert [(s.index, s.namespace, s.input, s.reason, s.item) for s in found.starts] == [
        (0, "", {"n": 5, "i": 0}, "", {"n": 5}),
        (1, "", {"n": 7, "i": 1}, "", {"n": 7}),
    ]
    assert found.has_items


def test_each_item_is_judged_for_itself():
    rules = "for_each: event.body\ninput: {n: '${{ item.n }}'}"
    found = verdict(rules, body([{"n": 1}, {}, {"n": "x"}, {"n": 2}]), contract=CONTRACT)
    assert [bool(one.reason) for one in found.starts] == [False, True, True, False]
    assert found.starts[1].reason.startswith("an expression failed: ")
    assert found.starts[2].reason.startswith("the input does not fit: ")
    assert (found.reason, found.is_fault) == ("", False)


@pytest.mark.parametrize(
    ("value", "reason", "is_fault"),
    [
        ([], "`for_each` has no items", False),
        (None, "`for_each` is no list", True),
        ({"a": 1}, "`for_each` is no list", True),
        ("abc", "`for_each` is no list", True),
        (list(range(1001)), "`for_each` has 1,001 items; the limit is 1,000", True),
    ],
)
def test_what_is_no_list(value, reason, is_fault):
    found = verdict("for_each: event.body", body(value))
    assert (found.reason, found.is_fault, found.starts) == (reason, is_fault, ())


def test_a_thousand_is_not_too_many():
    assert len(verdict("for_each: event.body", body([1] * 1000)).starts) == 1000


TENANTS = {"acme": {"plan": "pro"}, "beta": {"plan": "free"}, "default": {}, "zeta": {"plan": "pro", "x": "y"}}


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ('namespaces.filter(n, n.labels.plan == "pro")', ["acme", "zeta"]),
        ('namespaces.filter(n, n.labels["plan"] == "pro")', ["acme", "zeta"]),
        ('namespaces.filter(n, n.labels.plan == "pro").map(n, n.name)', ["acme", "zeta"]),
        ('namespaces.filter(n, n.labels.plan != "" && n.labels.x != "y")', ["acme", "beta"]),
        ("namespaces", ["acme", "beta", "default", "zeta"]),
        ("namespaces.filter(n, n.name in event.body)", ["beta"]),
    ],
)
def test_namespaces(items, wanted):
    found = verdict(
        f"for_each: '{items}'\ninput: {{i: '${{{{ index }}}}'}}", body(["beta", "gone"]), namespaces=TENANTS
    )
    assert [(one.namespace, one.input) for one in found.starts] == [(name, {"i": n}) for n, name in enumerate(wanted)]


def test_items_that_are_no_namespaces():
    found = verdict("for_each: 'namespaces.map(n, n.name) + event.body'", body(["nope", 7, None]), namespaces={"a": {}})
    assert [(one.namespace, one.reason) for one in found.starts] == [
        ("a", ""),
        ("", "item 1 is no namespace that this trigger may use"),
        ("", "item 2 is no namespace that this trigger may use"),
        ("", "item 3 is no namespace that this trigger may use"),
    ]


def test_a_payload_that_names_namespaces_chooses_none():
    found = verdict("for_each: event.body.namespaces", body({"namespaces": ["acme"]}), namespaces=TENANTS)
    assert [(one.namespace, one.item) for one in found.starts] == [("", "acme")]


def test_nobody_can_tell_whose_namespaces():
    found = verdict("for_each: namespaces", namespaces=None)
    assert "revoked or expired" in found.reason
    assert (found.is_fault, found.starts) == (True, ())
    assert verdict("for_each: '[1]'", namespaces=None).starts, "a plain list needs nobody"


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.bc", False),
        ("a.b", "axb", False),
        ("a.*", "a.", True),
        ("a.*", "a", False),
        ("*", "", True),
        ("*", "x", True),
        ("**", "x", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*ab*ab", "ab", False),
        ("*ab*ab", "abab", True),
        ("a*b*b", "ab", False),
        ("a*b*b", "abb", True),
        ("*.paid", "order.paid", True),
        ("a[b]", "a[b]", True),
        ("a?", "ab", False),
    ],
)
def test_patterns(pattern, name, wanted):
    assert type_matches(pattern, name) is wanted


@given(st.text(alphabet="ab.*", max_size=8), st.text(alphabet="ab.", max_size=10))
def test_patterns_are_what_a_regular_expression_says(pattern, name):
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert type_matches(pattern, name) is (re.fullmatch(expression, name) is not None)


def test_a_hostile_pattern_takes_no_time():
    assert type_matches("*a" * 100, "a" * 200) is True
    assert type_matches("*a" * 100 + "b", "a" * 200) is False
