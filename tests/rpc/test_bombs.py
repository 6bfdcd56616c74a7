"""Expressions that would need more than there is fail their step, and the daemon goes on."""

import asyncio
import json

import pytest
from harness import Daemon
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as runs

BOMBS = {
    "join": ("input.l.join(input.s)", {"l": ["x"] * 9000, "s": "y" * 900_000}),
    "replace": ("input.s.replace('y', input.s)", {"s": "y" * 200_000}),
    "map": ("input.l.map(x, input.s + string(x))", {"l": list(range(9000)), "s": "y" * 900_000}),
    "nested": ("input.l.map(a, input.l.map(b, input.l.map(c, a + b + c)))", {"l": list(range(500))}),
}


@pytest.fixture
async def small():
    daemon = Daemon(env={"TASKFORGE_LIMITS_MEMORY_MIB": "2560"})
    try:
        yield await asyncio.to_thread(daemon.start)
    finally:
        await daemon.aclose()


@pytest.mark.parametrize("name", sorted(BOMBS))
async def test_a_bomb_fails_its_step_and_not_the_daemon(small, name):
    expression, value = BOMBS[name]
    await small.apply(
        f"name: bomb\nsteps:\n  - id: boom\n    transform: {{x: '${{{{ size({expression}) }}}}'}}\n".replace(
            "'y'", '"y"'
        )
    )
    await small.apply("name: fine\nsteps:\n  - {id: ok, transform: {x: 1}}\n")
    request = runs.StartRunRequest(workflow="bomb", input_json=json.dumps(value))
    request.wait.FromSeconds(30)
    done = (await small.runs.StartRun(request, timeout=60)).run
    assert (done.state, done.error.code) == (run_pb2.Run.STATE_FAILED, "expression"), done
    request = runs.StartRunRequest(workflow="fine")
    request.wait.FromSeconds(10)
    assert (await small.runs.StartRun(request)).run.state == run_pb2.Run.STATE_SUCCEEDED
    assert small.terminate() == 0
