"""The examples compile, and the triggers among them understand what GitHub really sends."""

import json
from pathlib import Path

import pytest

from taskforged.engine.graph import graph_of
from taskforged.language import compile_definition

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAYLOADS = sorted((ROOT / "tests/fixtures/github").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_compile(path):
    assert compile_definition(path.read_text()).name == path.stem


def test_the_fixtures_are_there():
    assert len(PAYLOADS) >= 7
    assert len(EXAMPLES) >= 3


def github(path):
    return {"headers": {"x-github-event": path.name.split(".")[0]}, "body": json.loads(path.read_text())}


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.name)
def test_deploy_api_takes_only_published_releases(path, scope):
    definition = compile_definition((ROOT / "examples/deploy-api.yaml").read_text())
    condition = definition.triggers["release"].condition
    assert condition.evaluate(scope(event=github(path))) is (path.name == "release.published.json")


def test_deploy_api_from_the_delivery_to_the_output(scope):
    definition = compile_definition((ROOT / "examples/deploy-api.yaml").read_text())
    event = github(ROOT / "tests/fixtures/github/release.published.json")
    run_input = definition.input.accept(definition.triggers["release"].input.evaluate(scope(event=event)))
    assert run_input == {"tag": "0.0.1", "repository": "Codertocat/Hello-World", "target": "http://127.0.0.1:7499"}
    steps = definition.model.steps
    values = {"input": run_input, "steps__build__output": {"status": 200, "body": {"version": "1.2.3"}}}
    assert steps["build"].spec.config.evaluate(scope(**values)) == {
        "method": "POST", "url": "http://127.0.0.1:7499/build", "query": {}, "headers": {},
        "json": {"repository": "Codertocat/Hello-World", "ref": "0.0.1"},
        "accept": [[200, 299]], "max_redirects": 0, "max_response_bytes": 1_048_576,
    }  # fmt: skip
    values["steps__release__output"] = steps["release"].spec.value.evaluate(scope(**values))
    assert values["steps__release__output"] == {"version": "1.2.3", "stable": True}
    route = steps["route"].spec
    assert route.cases[0].condition.evaluate(scope(**values)) is True
    assert steps["production"].spec.config.evaluate(scope(**values))["json"] == {"version": "1.2.3"}
    assert definition.model.output.evaluate(scope(**values)) == {"version": "1.2.3", "stable": True}
    values |= {"run": {"id": "run_1"}, "error": {"step": "build", "message": "it broke"}}
    assert steps["alert"].spec.config.evaluate(scope(**values))["json"] == {
        "run": "run_1",
        "step": "build",
        "error": "it broke",
    }


def test_hello(scope):
    definition = compile_definition((ROOT / "examples/hello.yaml").read_text())
    value = definition.model.steps["greet"].spec.value
    assert value.evaluate(scope(input=definition.input.accept({}))) == {"text": "Hello, world!", "letters": 5}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_a_graph(path):
    model = compile_definition(path.read_text()).model
    graph = graph_of(model)
    ids = [node.id for node in graph.nodes]
    assert len(set(ids)) == len(ids)
    assert {one for edge in graph.edges for one in edge[:2]} <= set(ids)
    assert sum(node.phase == "compensate" for node in graph.nodes) == path.read_text().count("compensate:")
