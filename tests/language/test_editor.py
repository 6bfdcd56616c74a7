"""The JSON Schema for editors: generated, current, and never stricter than the compiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema_rs import Draft202012Validator

from taskforged.language import compile_definition, json_schema
from taskforged.language.kinds import CHILD, EVENT, HTTP, SHELL, SLEEP, WAIT
from taskforged.language.loader import load, to_json
from taskforged.language.spec import CONCURRENCY, WORKFLOW
from taskforged.language.steps import COMPENSATE, DEFAULTS, KINDS, RETRY, STEP
from taskforged.language.triggers import TRIGGER

SHAPES = (WORKFLOW, STEP, HTTP, SHELL, SLEEP, WAIT, CHILD, EVENT, COMPENSATE, CONCURRENCY, DEFAULTS, RETRY, TRIGGER)
ROOT = Path(__file__).parents[2]
# The meta schema that `input` refers to is known to the validator; nothing is fetched.
VALIDATOR = Draft202012Validator(json_schema(), offline=True)


def document(source):
    problems = []
    root = load(source, problems)
    assert problems == []
    return to_json(root)


def test_the_checked_in_schema_is_current():
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "taskforged.language.schema"], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert (ROOT / "docs/taskforge.schema.json").read_text() == printed.stdout
    assert json.loads(printed.stdout) == json_schema()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_fit(path):
    assert [error.message for error in VALIDATOR.iter_errors(document(path.read_text()))] == []


ACCEPTED = [
    "name: x\nsteps: [{id: a, transform: null}]",
    "name: x\nsteps: [{id: a, sleep: 1h30m}, {id: b, sleep: '${{ input.x }}'}, {id: c, sleep: PT5M}, {id: d, fail: x}]",
    "name: x\nsteps: [{id: a, fail: {message: m, code: c}, if: true, name: N, continue_on_error: true}]",
    "name: x\non: {a: {manual: }, b: {manual: {}}}\nsteps: [{id: a, transform: 1}]",
    "name: x\non: {a: {webhook: {path: p, verify: {scheme: none}}, if: 'true', input: '${{ event.body }}'}}\nsteps: [{id: a, transform: 1}]",
    "name: x\nsteps: [{id: a, http: {url: 'http://x', accept: [200, 2xx, 200-204], headers: {A: 1, B: true, C: x}, form: {a: 1.5}}}]",
    "name: x\nqueue: q\npriority: 0\ncancel_grace: 5s\nconcurrency: {group: g, limit: 2, on_limit: skip}\ndefaults: {timeout: 5s}\nsteps: [{id: a, needs: [], sleep: {until: '2026-12-24T18:00:00.5+01:00'}}]\non_cancel: [{id: b, fail: x}]",
    "name: x\nsteps: [{id: a, for_each: [1], max_parallel: 1, max_failures: 1, steps: [{id: b, sleep: {for: '${{ item }}'}}], output: 1}, {id: c, needs: a, for_each: {a: 1}, transform: 1}]",
    "name: x\nsteps: [{id: a, wait: {signal: s, schema: {type: string}, timeout: 5s, on_timeout: continue}}, {id: b, wait: {approval: x}}, {id: c, workflow: c}, {id: d, workflow: {name: c, version: 1, input: '${{ input }}'}}]",
    "name: x\nsteps: [{id: a, event: {type: a.b, data: 1}, compensate: {shell: {command: [ls]}, effect: once}}, {id: b, shell: {command: [/bin/ls, 5], env: {A: 1}, cwd: /x, stdin: x, output: none, exit_codes: [0, 1], max_output: 5}}]",
    "name: x\nsteps: [{id: a, switch: [{if: 'true', steps: [{id: b, fail: x}]}, {steps: [{id: c, fail: x}]}]}]\non_failure: [{id: d, fail: x}]",
]


@pytest.mark.parametrize("source", ACCEPTED)
def test_what_the_compiler_accepts_fits(source):
    compile_definition(source)
    assert [error.message for error in VALIDATOR.iter_errors(document(source))] == []


@pytest.mark.parametrize(
    "source",
    [
        "name: X\nsteps: [{id: a, transform: 1}]",
        "name: x",
        "name: x\nsteps: []",
        "name: x\nsteps: [{id: a}]",
        "name: x\nsteps: [{id: a, transform: 1, sleep: 5s}]",
        "name: x\nsteps: [{id: a, sleep: 5}]",
        "name: x\nsteps: [{id: a, http: {url: x, json: 1, text: x}}]",
        "name: x\nsteps: [{id: a, transform: 1}]\nqueue: Q",
        "name: x\nsteps: [{id: a, transform: 1}]\ninput: {type: array}",
        "name: x\non: {a: {webhook: {path: p}}}\nsteps: [{id: a, transform: 1}]",
        "name: x\nsteps: [{id: a, http: {url: x}, retry: {max_attempts: 0}}]",
        "name: x\nsteps: [{id: a, sleep: {for: 5m, until: '2026-12-24T18:00:00Z'}}]",
        "name: x\nsteps: [{id: a, wait: {}}]",
        "name: x\nsteps: [{id: a, shell: {command: ls}}]",
        "name: x\nsteps: [{id: a, shell: {command: ['${{ input.p }}']}}]",
        "name: x\nsteps: [{id: a, transform: 1, compensate: {transform: 1}}]",
        "name: x\nsteps: [{id: a, for_each: 5, transform: 1}]",
        "name: x\nsteps: [{id: a, needs: [A], transform: 1}]",
    ],
)
def test_what_is_wrong_is_seen_by_an_editor(source):
    assert not VALIDATOR.is_valid(document(source))


def test_every_key_is_described():
    for shape in SHAPES:
        assert all(field.about.endswith(".") for field in shape.fields.values())
        assert not shape.later & shape.fields.keys()


def test_the_reference_names_every_key():
    reference = (ROOT / "docs/language.md").read_text()
    for shape in SHAPES[:-1]:
        for key in (*shape.fields, *shape.later):
            assert f"`{key}`" in reference or f"**`{key}`**" in reference, key
    assert all(f"**`{kind}`**" in reference for kind in KINDS)
