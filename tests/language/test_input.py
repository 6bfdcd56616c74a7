"""The input contract: JSON Schema with defaults, faults by JSON path, nothing fetched, nothing explodes."""

import pytest

from taskforged.errors import InvalidArgumentError
from taskforged.language.input import SchemaFault, compile_schema


def refused(contract, value):
    with pytest.raises(InvalidArgumentError) as caught:
        contract.accept(value)
    assert caught.value.reason == "INVALID_INPUT"
    return [(one.path, one.message) for one in caught.value.violations]


SCHEMA = {
    "type": "object",
    "required": ["tag"],
    "additionalProperties": False,
    "properties": {
        "tag": {"type": "string", "pattern": "^v"},
        "count": {"type": "integer", "default": 3},
        "mail": {"type": "string", "format": "email"},
        "options": {
            "type": "object",
            "properties": {"dry": {"type": "boolean", "default": False}, "deep": {"default": {}, "properties": {"x": {"default": 1}}}},
        },
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    },
}  # fmt: skip


def test_defaults_are_filled_in_nested_objects_that_are_present():
    contract = compile_schema(SCHEMA)
    assert contract.accept({"tag": "v1"}) == {"tag": "v1", "count": 3}
    given = {"tag": "v1", "count": 0, "options": {}}
    assert contract.accept(given) == {"tag": "v1", "count": 0, "options": {"dry": False, "deep": {"x": 1}}}
    assert given == {"tag": "v1", "count": 0, "options": {}}


def test_defaults_are_not_shared_between_inputs():
    contract = compile_schema({"type": "object", "properties": {"a": {"default": {"b": [1]}}}})
    first = contract.accept({})
    first["a"]["b"].append(2)
    assert contract.accept({}) == {"a": {"b": [1]}}


def test_a_required_property_with_a_default_is_satisfied():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "default": "x"}}}
    assert compile_schema(schema).accept({}) == {"a": "x"}


def test_faults_have_json_paths_in_a_stable_order():
    faults = refused(compile_schema(SCHEMA), {"cuont": 1, "mail": "x", "list": [{"n": 1}, {"n": "y"}]})
    assert faults == [
        ("$.cuont", "is not known; did you mean 'count'?"),
        ("$.list[1].n", '"y" is not of type "integer"'),
        ("$.mail", '"x" is not a "email"'),
        ("$.tag", "is required"),
    ]


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_the_input_is_an_object(value):
    assert refused(compile_schema(None), value)[0][0] == "$"
    assert refused(compile_schema(SCHEMA), value)[0][0] == "$"


def test_without_a_schema_any_object_is_fine():
    assert compile_schema(None).accept({"a": [1]}) == {"a": [1]}


@pytest.mark.parametrize(
    ("schema", "path", "part"),
    [
        (False, [], "a map"),
        ({}, [], "type: object"),
        ({"type": "array"}, ["type"], "type: object"),
        ({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}, ["$schema"], "2020-12"),
        ({"type": "object", "$schema": 7}, ["$schema"], "2020-12"),
        ({"type": "object", "properties": {"a": {"type": "strng"}}}, ["properties", "a", "type"], "no valid JSON Schema"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, ["properties", "a", "pattern"], "regex"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=x)y"}}}, ["properties", "a", "pattern"], "regex"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}, ["properties", "a", "$ref"], "nothing is fetched"),
        ({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}, ["properties", "a", "$ref"], "nothing is fetched"),
        ({"type": "object", "allOf": [{"$ref": "#/$defs/x"}]}, [], "does not exist"),
        ({"type": "object", "properties": {"a": {"type": "string", "default": 1}}}, ["properties", "a", "default"], "does not fit"),
    ],
)  # fmt: skip
def test_unusable_schemas(schema, path, part):
    with pytest.raises(SchemaFault) as caught:
        compile_schema(schema)
    assert part in str(caught.value)
    assert caught.value.path == path


def test_a_reference_inside_data_is_data():
    contract = compile_schema({"type": "object", "properties": {"a": {"const": {"$ref": "https://example.com"}}}})
    assert contract.accept({"a": {"$ref": "https://example.com"}})


def test_local_references_work_recursive_ones_too():
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}}  # fmt: skip
    contract = compile_schema(schema)
    assert contract.accept({"a": {"n": {"n": {}}}})
    assert refused(contract, {"a": {"n": {"n": 1}}})[0][0] == "$.a.n.n"


def test_a_reference_that_loops_does_not_hang():
    assert compile_schema({"type": "object", "allOf": [{"$ref": "#"}]}).accept({}) == {}


def test_patterns_run_in_linear_time():
    contract = compile_schema({"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}})
    assert refused(contract, {"a": "a" * 50_000 + "b"})[0][0] == "$.a"


def test_many_faults_are_cut():
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    assert len(refused(compile_schema(schema), {f"k{i}": i for i in range(200)})) == 50
