"""Shared by the tests of the language: a scope made of a dict, and the faults of a definition as tuples."""

import pytest

from taskforged.errors import InvalidArgumentError
from taskforged.language import compile_definition

HEAD = "name: x\n"


class DictScope:
    def __init__(self, values):
        self.values = values

    def resolve(self, name):
        return self.values[name]


@pytest.fixture
def scope():
    return lambda **values: DictScope({name.replace("__", "."): value for name, value in values.items()})


@pytest.fixture
def faults():
    """Answers (line, column, path, message) of each fault; none for a good definition."""

    def find(source):
        try:
            compile_definition(source)
        except InvalidArgumentError as error:
            assert error.reason == "INVALID_DEFINITION"
            return [(one.line, one.column, one.path, one.message) for one in error.violations]
        return []

    return find


@pytest.fixture
def transform():
    """Answers the compiled value of a transform step, after an earlier step `a`, of text as it stands in YAML."""

    def compile_value(yaml_text, head=""):
        source = f"name: x\n{head}steps:\n  - id: a\n    transform: 1\n  - id: b\n    transform: {yaml_text}\n"
        return compile_definition(source).model.steps["b"].spec.value

    return compile_value
