"""A world for the examples: a service that does as it is told, and a client that reads like a story."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from harness import ROOT, Call, Daemon, EffectServer, _State
from taskforge.v1 import dead_letter_service_pb2_grpc, run_pb2, run_service_pb2

EXAMPLES = ROOT / "examples"
TERMINAL = {"SUCCEEDED", "FAILED", "DEAD", "CANCELLED"}


Scripted = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Service(EffectServer):
    """Answers what a test has scripted for a path, else `{"ok": true}`; a gate holds a path's answers back."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[Scripted]] = defaultdict(list)
        self.closed: set[str] = set()

    def script(self, path: str, *answers: Scripted) -> None:
        """Answer these, status and body and perhaps headers, one after the other; the last one for ever."""
        self.answers[path] = list(answers)

    def hold(self, path: str) -> None:
        """Answer nothing on a path until `let_go`."""
        self.closed.add(path)

    def let_go(self, path: str) -> None:
        """Answer again."""
        self.closed.discard(path)

    async def _answer(self, request: web.Request, call: Call, state: _State) -> web.Response:
        while request.path in self.closed:
            await asyncio.sleep(0.01)
        scripted = self.answers.get(request.path)
        if scripted:
            status, body, *headers = scripted.pop(0) if len(scripted) > 1 else scripted[0]
            return web.json_response(body, status=status, headers=headers[0] if headers else None)
        return await super()._answer(request, call, state)

    def paths(self) -> list[str]:
        """The paths that were called, in order."""
        calls = [call for calls in self.calls().values() for call in calls]
        return [call.path for call in sorted(calls, key=lambda call: call.began)]

    def bodies(self, path: str) -> list[Any]:
        """What was sent to a path, in order."""
        calls = [call for calls in self.calls().values() for call in calls if call.path == path]
        return [json.loads(call.body or b"null") for call in sorted(calls, key=lambda call: call.began)]

    async def called(self, path: str, times: int = 1) -> None:
        """Wait until a path was called so often."""
        async with asyncio.timeout(20):
            while self.paths().count(path) < times:
                await asyncio.sleep(0.01)


class World:
    """A daemon and its service."""

    def __init__(self, daemon: Daemon, service: Service) -> None:
        self.daemon = daemon
        self.service = service

    async def apply(self, *names: str) -> None:
        """Apply examples by name, or definitions as they are."""
        for name in names:
            source = name if "\n" in name else (EXAMPLES / f"{name}.yaml").read_text()
            await self.daemon.apply(source)

    async def start(self, workflow: str, payload: Any = None, **more: Any) -> str:
        """Start a run; the service's address is in its input."""
        value = {"service": self.service.url, **(payload or {})}
        request = run_service_pb2.StartRunRequest(workflow=workflow, input_json=json.dumps(value), **more)
        return str((await self.daemon.runs.StartRun(request, timeout=20)).run.id)

    async def get(self, run_id: str) -> Run:
        """Answer a run as it is."""
        request = run_service_pb2.GetRunRequest(run_id=run_id)
        return Run((await self.daemon.runs.GetRun(request, timeout=20)).run)

    async def until(self, run_id: str, **wanted: str) -> Run:
        """Wait until steps are in the given states."""
        return await self._wait(run_id, lambda run: all(run.states.get(k) == v for k, v in wanted.items()))

    async def until_state(self, run_id: str, state: str) -> Run:
        """Wait until the run is in a state."""
        return await self._wait(run_id, lambda run: run.state == state)

    async def ended(self, run_id: str) -> Run:
        """Wait for the end of a run."""
        return await self._wait(run_id, lambda run: run.state in TERMINAL)

    async def _wait(self, run_id: str, condition: Any, within_s: float = 30.0) -> Run:
        deadline = time.monotonic() + within_s
        while True:
            run = await self.get(run_id)
            if condition(run):
                return run
            if time.monotonic() > deadline:
                raise AssertionError(f"{run_id} is {run.state}: {run.states}\n{self.daemon.tail(10)}")
            await asyncio.sleep(0.02)

    async def call(self, method: str, **fields: Any) -> Any:
        """Call a method of RunService."""
        request = getattr(run_service_pb2, f"{method}Request")(**fields)
        return await getattr(self.daemon.runs, method)(request, timeout=20)

    async def intact(self, run_id: str) -> None:
        """The history proves itself."""
        verdict = await self.call("VerifyRun", run_id=run_id)
        assert verdict.intact, list(verdict.faults)

    async def crash(self) -> None:
        """SIGKILL, and up again."""
        await asyncio.to_thread(self.daemon.restart)

    @property
    def dead(self) -> Any:
        """DeadLetterService."""
        return self.daemon.stub(dead_letter_service_pb2_grpc.DeadLetterServiceStub)

    async def kinds(self, run_id: str) -> list[str]:
        """The kinds of a run's history, with their steps."""
        return [f"{event.kind} {event.step}".strip() for event in await self.daemon.history(run_id)]


class Run:
    """A run, with names for its states and values instead of JSON."""

    def __init__(self, message: run_pb2.Run) -> None:
        self.message = message
        self.id = message.id
        self.state = run_pb2.Run.State.Name(message.state).removeprefix("STATE_")
        self.states = {
            step.key: run_pb2.StepRun.State.Name(step.state).removeprefix("STATE_") for step in message.steps
        }
        self.steps = {step.key: step for step in message.steps}
        self.output = json.loads(message.output_json) if message.output_json else None
        self.error = message.error

    def output_of(self, step: str) -> Any:
        """The output of a step."""
        return json.loads(self.steps[step].output_json)


def definition(name: str, *steps: str, top: Sequence[str] = ()) -> str:
    """A definition out of lines."""
    return "\n".join([f"name: {name}", *top, "steps:", *steps, ""])


def example(name: str) -> Path:
    """The file of an example."""
    return EXAMPLES / f"{name}.yaml"
