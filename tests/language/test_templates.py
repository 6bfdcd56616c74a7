"""`${{ … }}` in text and trees; secrets stay references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.engine.model import ExpressionError
from taskforged.language.templates import _Inserted, _split, as_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'${{ input.n }}'", 3),
        ("'${{input.n}}'", 3),
        ("'${{ input.nothing }}'", None),
        ("'${{ input.list }}'", [1]),
        ("'${{ input.yes }}'", True),
        ("' ${{ input.n }}'", " 3"),
        ("'${{ input.n }} '", "3 "),
        ("'n=${{ input.n }}, f=${{ input.f }}, t=${{ input.yes }}, s=${{ input.s }}'", 'n=3, f=1.5, t=true, s=x"y'),
        ("'${{ input.n }}${{ input.n }}'", "33"),
        ("'$${{ input.n }}'", "${{ input.n }}"),
        ("'a $${{ b }} ${{ input.n }}'", "a ${{ b }} 3"),
        ("'$ {{ x }} }} {{ $'", "$ {{ x }} }} {{ $"),
        ('\'${{ {"a": {"b": 1}} }}\'', {"a": {"b": 1}}),
        ('\'${{ {"a":{"b":1}}}}\'', {"a": {"b": 1}}),
        ("'${{ \"}}\" }}'", "}}"),
        ('\'${{ "a\\"}}" }}\'', 'a"}}'),
        ("'${{ r\"\\d}}\" }}'", "\\d}}"),
        ('\'${{ """}}""" }}\'', "}}"),
        ("|\n      ${{ input.n }}", 3),
        ("|\n      ${{ input.n }}\n      x", "3\nx\n"),
        (">-\n      ${{ input.n\n          + 1 }}", 4),
        (
            "{a: ['${{ input.n }}', {b: 'x${{ input.n }}'}], c: 012, d: null}",
            {"a": [3, {"b": "x3"}], "c": "012", "d": None},
        ),
        ("[]", []),
        ("{}", {}),
        ("''", ""),
        ("null", None),
    ],
)
def test_values(transform, scope, text, value):
    result = transform(text).evaluate(
        scope(input={"n": 3, "f": 1.5, "yes": True, "s": 'x"y', "list": [1], "nothing": None})
    )
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(("name", "what"), [("nothing", "null"), ("list", "a list"), ("map", "a map")])
def test_only_scalars_are_inserted_into_text(transform, scope, name, what):
    value = transform(f"'x ${{{{ input.{name} }}}}'")
    with pytest.raises(ExpressionError, match=f"{what} cannot be inserted into text") as caught:
        value.evaluate(scope(input={"nothing": None, "list": [], "map": {}}))
    assert caught.value.position == "steps[1].transform (line 6, column 23)"


def test_a_tree_is_fresh_each_time(transform, scope):
    value = transform("{a: [1, {b: 2}], c: '${{ input.n }}'}")
    first = value.evaluate(scope(input={"n": 1}))
    first["a"][1]["b"] = 99
    first["a"].append(3)
    assert value.evaluate(scope(input={"n": 1})) == {"a": [1, {"b": 2}], "c": 1}


@pytest.mark.parametrize(("value", "text"), [("x", "x"), (True, "true"), (2, "2"), (2.0, "2.0"), (1e21, "1e+21")])
def test_scalars_as_text(value, text):
    assert as_text(value) == text


@given(
    st.lists(
        st.sampled_from(["${{", "$${{", "}}", "{", "}", '"', "'", '"""', "\\", "a", " ", "\n", "//", "r", "$"]),
        max_size=25,
    )
)
def test_splitting_loses_nothing(pieces):
    text = "".join(pieces)
    try:
        parts = list(_split(text))
    except Exception as error:
        assert type(error).__name__ == "_UnclosedError"
        return
    again = "".join(
        f"${{{{{part.source}}}}}" if isinstance(part, _Inserted) else part.replace("${{", "$${{") for part in parts
    )
    assert again == text or again + "\n" == text
    for part in parts:
        if isinstance(part, _Inserted):
            assert text[part.offset :].startswith(part.source)


# --- secrets ---------------------------------------------------------------------------------------------------------


def http(fields):
    indented = "".join(f"      {line}\n" for line in fields)
    return f"name: x\nsteps:\n  - id: a\n    http:\n      url: http://x\n{indented}"


@pytest.fixture
def config(scope):
    from taskforged.language import compile_definition

    def evaluate(*fields, **values):
        definition = compile_definition(http(fields))
        return definition.model.steps["a"].spec.config.evaluate(scope(**values)), definition.secrets

    return evaluate


def test_secrets_stay_references(config):
    value, names = config(
        'headers: {A: "${{ secrets.CI_TOKEN }}", B: "Bearer ${{secrets.CI_TOKEN}}"}',
        'query: {k: "${{ input.k }}${{ secrets.K }}:${{ input.k }}!"}',
        'json: {deep: ["${{ secrets.J }}"]}',
        input={"k": "v"},
    )
    assert value["headers"] == {"A": {"$secret": "CI_TOKEN"}, "B": {"$concat": ["Bearer ", {"$secret": "CI_TOKEN"}]}}
    assert value["query"] == {"k": {"$concat": ["v", {"$secret": "K"}, ":v!"]}}
    assert value["json"] == {"deep": [{"$secret": "J"}]}
    assert names == {"CI_TOKEN", "K", "J"}


def test_secrets_in_form_and_text(config):
    assert config('form: {a: "${{ secrets.A }}"}')[0]["form"] == {"a": {"$secret": "A"}}
    assert config('text: "x${{ secrets.A }}"')[0]["text"] == {"$concat": ["x", {"$secret": "A"}]}


@pytest.mark.parametrize("key", ["$secret", "$concat"])
@pytest.mark.parametrize(
    "field",
    ["json: ${{ input }}", "json: {a: ['${{ input }}']}", "json: ${{ input.wrap }}", "json: '${{ [input.wrap] }}'"],
)
def test_data_cannot_pose_as_a_secret(config, key, field):
    forged = {key: "ADMIN_TOKEN", "wrap": [{"deep": {key: ["x"]}}]}
    with pytest.raises(ExpressionError, match=r"contains a key \$secret or \$concat"):
        config(field, input=forged)


def test_an_expression_cannot_make_a_secret_either(config):
    with pytest.raises(ExpressionError, match=r"contains a key \$secret"):
        config("json: '${{ {input.k: \"ADMIN\"} }}'", input={"k": "$secret"})


@pytest.mark.parametrize(
    ("source", "where", "part"),
    [
        (http(["json: {$secret: X}"]), (6, 14), "reserved"),
        (http(["json: {a: [{$concat: []}]}"]), (6, 19), "reserved"),
        (http(['headers: {A: "${{ secrets.lower }}"}']), (6, 33), "written like CI_TOKEN"),
        (http(['headers: {A: "${{ secrets.A + \'x\' }}"}']), (6, 25), "may only be written"),
        (http(['headers: {A: "${{ \'x\' + secrets.A }}"}']), (6, 31), "may only be written"),
        (http(['headers: {A: "${{ secrets }}"}']), (6, 25), "may only be written"),
        ("name: x\nsteps:\n  - id: a\n    http:\n      url: http://x/${{ secrets.A }}\n", (5, 25), "may only be written"),
        ("name: x\nsteps:\n  - id: a\n    transform: ${{ secrets.A }}\n", (4, 20), "may only be written"),
        ("name: x\nsteps:\n  - id: a\n    fail: ${{ secrets.A }}\n", (4, 15), "may only be written"),
        ("name: x\nsteps:\n  - id: a\n    if: secrets.A == 'x'\n    fail: x\n", (4, 9), "may only be written"),
        ("name: x\nsteps:\n  - id: a\n    fail: x\noutput: ${{ secrets.A }}\n", (5, 13), "may only be written"),
    ],
)  # fmt: skip
def test_secrets_in_wrong_places(faults, source, where, part):
    ((line, column, _, message),) = faults(source)
    assert part in message
    assert (line, column) == where
