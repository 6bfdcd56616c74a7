"""Threats: an expression that leaves its sandbox (CVE-2025-68613, CVE-2026-1470, CVE-2025-68668), one that never ends,
a definition that explodes.

Memory bombs: `tests/rpc/test_bombs.py`. YAML: every shape is in `tests/language/test_loader.py`; here it goes through
the API. Values of expressions: `tests/language/test_expressions.py`.
"""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from switchboard import state

ESCAPES = [
    "input.__class__",
    "input.__class__.__mro__",
    "input.t.__class__.__base__.__subclasses__()",
    "input['__class__']",
    "input.t.constructor",
    "input.t.constructor.constructor('return process')()",
    "'{0.__class__}'.format([input])",
    "'{0.__init__.__globals__}'.format([input])",
    "'%(x)s'.format([input])",
    "'%c'.format([input])",
    "'%999999999d'.format([1])",
    "input.t.format([input])",
    "f'{input}'",
    "`${input}`",
    "`${process.mainModule.require('child_process').execSync('id')}`",
    "globals()",
    "__import__('os').system('id')",
    "eval('1')",
    "type(input)('x')",
    "dyn(input).__dict__",
    "input.?__class__.orValue('none')",
    "int(input.t)",
    "input.e.__traceback__",
    "input.t.matches('(?P<x>')",
    "secrets.KEY",
    "secrets['KEY']",
    "'$' + '{{ secrets.KEY }}'",
    "this.constructor.constructor('return this')()",
    "env.HOME",
    "run.__proto__",
]
TRACES = (
    "<class",
    "Traceback",
    "object at 0x",
    "site-packages",
    "taskforged/",
    "/root",
    "uid=",
    "root:",
)


@pytest.mark.parametrize("source", ESCAPES)
async def test_what_leads_out_of_other_languages_is_refused_or_plain_text(board, source):
    """Refused when it is applied, a failed step, or a plain value; whatever is said names nothing of the inside."""
    await board.secret("KEY", "value-of-the-key")
    definition = {
        "name": "escape",
        "steps": [{"id": "try", "transform": {"x": "${{ " + source + " }}"}}],
        "output": "${{ steps.try.output }}",
    }
    try:
        await board.apply(json.dumps(definition))
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
        said = str(error.details())
    else:
        answer = await board("StartRun", workflow="escape", input_json='{"t": "%s{0.__class__}", "e": "x"}')
        run = await board.ended(answer.run.id)
        said = run.output_json + str(run.error)
    assert not [trace for trace in TRACES if trace in said], said
    assert "value-of-the-key" not in said


CUBE = "input.l.map(a, input.l.map(b, input.l.map(c, a + b + c))).size()"
ENDLESS = {
    "a loop of 20 * 20 * 20": (CUBE, {"l": list(range(20))}, "SUCCEEDED"),
    "a loop of 30 * 30 * 30": (CUBE, {"l": list(range(30))}, "FAILED"),
    "a loop of 200 * 200 * 200": (CUBE, {"l": list(range(200))}, "FAILED"),
    "a pattern that backtracks": ("input.s.matches('(a+)+$')", {"s": "a" * 200_000 + "!"}, "SUCCEEDED"),
    "another one": ("input.s.matches('^(([a-z])+.)+[A-Z]([a-z])+$')", {"s": "a" * 200_000}, "SUCCEEDED"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_elsewhere_ends_here_and_others_are_served_meanwhile(board, name):
    """Five inputs that stop evaluators of other products: two loops, two patterns, and below recursion and nesting."""
    source, value, wanted = ENDLESS[name]
    definition = {"name": "endless", "steps": [{"id": "try", "transform": {"x": "${{ " + source + " }}"}}]}
    await board.apply(json.dumps(definition))
    await board.apply("name: other\nsteps:\n  - {id: say, transform: 1}\n")
    async with asyncio.timeout(30):
        started = [await board("StartRun", workflow="endless", input_json=json.dumps(value)) for _ in range(3)]
        other = await board.ended((await board("StartRun", workflow="other")).run.id)
        ended = [await board.ended(one.run.id) for one in started]
    assert state(other) == "SUCCEEDED"
    assert {state(one) for one in ended} == {wanted}, ended[0].error
    if wanted == "FAILED":
        assert ended[0].error.code == "expression"
        assert "loops too often" in ended[0].error.message


async def test_a_workflow_that_calls_itself_for_ever_ends(board):
    await board.apply("name: recursive\nsteps:\n  - {id: again, transform: 1}\n")
    await board.apply("name: recursive\nsteps:\n  - {id: again, workflow: recursive}\n")
    async with asyncio.timeout(60):
        run = await board.ended((await board("StartRun", workflow="recursive")).run.id)
    assert state(run) == "FAILED"
    runs = await board.runs(workflow="recursive")
    assert len(runs) <= 20
    assert all(one.HasField("end_time") for one in runs)


@pytest.mark.parametrize(
    "source",
    [
        "!" * 20_000 + "true",
        "!" * 4_000 + "true",
        "(" * 4_000 + "1" + ")" * 4_000,
        "(" * 1_900 + "1" + ")" * 1_900,
        "[" * 1_900 + "]" * 1_900,
        "input" + ".a" * 2_000,
        "1" + "+1" * 2_000,
        "'a'" + ".contains('a')" * 250,
        "true ? " * 500 + "1" + " : 1" * 500,
        "[1].map(a, " * 9 + "1" + ")" * 9,
        "'" + "\\u0041" * 600 + "'" + ".size()" * 40,
    ],
    ids=lambda source: f"{source[:12]}-{len(source)}",
)
async def test_what_is_nested_or_long_is_judged_when_it_is_applied(board, source):
    """Refused, or good: never a crash, and never first when a run meets it."""
    definition = {"name": "deep", "steps": [{"id": "try", "transform": {"x": "${{ " + source + " }}"}}]}
    async with asyncio.timeout(30):
        try:
            await board.apply(json.dumps(definition))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
        else:
            answer = await board("StartRun", workflow="deep", input_json="{}")
            await board.ended(answer.run.id)
        await board("GetInfo")


BOMBS = {
    "200,000 brackets": "[" * 200_000,
    "200,000 braces": "name: x\nsteps: " + "{a: " * 60_000,
    "aliases of aliases": "a0: &a0 [" + "x," * 2000 + "]\n"
    + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 10)),
    "an object of Python": "name: !!python/object/apply:os.system [id]\n",
    "a merge": "base: &b {name: x}\n<<: *b\n",
    "more than fits": "name: x\n#" + "x" * 300_000,
    "many keys": "\n".join(f"k{i}: 1" for i in range(19_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_a_definition_that_explodes_is_refused_and_the_daemon_goes_on(board, name):
    for method in ("ApplyWorkflow", "ValidateWorkflow"):
        async with asyncio.timeout(60):
            try:
                answer = await board(method, source=BOMBS[name])
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
            else:
                assert method == "ValidateWorkflow" and len(answer.problems)
    await board("GetInfo")


async def test_words_that_yaml_1_1_turns_into_something_else_arrive_as_they_are(board):
    words = ["no", "off", "012", "1:30", "2026-11-21", "1_000", "0x1F", "~x", "NO", "y", ".5e", "1e3x"]
    listed = ", ".join(words)
    await board.apply(
        f"name: words\nsteps:\n  - id: say\n    transform: [{listed}]\noutput: ${{{{ steps.say.output }}}}\n"
    )
    seen = await board.output((await board("StartRun", workflow="words")).run.id)
    assert [one for one in seen if isinstance(one, bool) or one is None] == []
    assert [seen[words.index(word)] for word in ("no", "off", "012", "1:30", "2026-11-21", "NO", "y")] == [
        *("no", "off", "012", "1:30", "2026-11-21", "NO", "y")
    ]
