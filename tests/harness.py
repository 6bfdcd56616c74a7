"""What the tests around a real daemon share: the daemon as a process, a server that counts effects, signed webhooks.

Everything here cleans up after itself by process id, also when a test fails. `Daemon` is blocking and may be called
from a thread (`await asyncio.to_thread(daemon.start)`); `stub` answers a grpc.aio stub for the running loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import grpc
import grpc.aio
from aiohttp import web
from nursery import Child, Nursery
from taskforge.v1 import (
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
TERMINAL = frozenset(
    {
        run_pb2.Run.STATE_SUCCEEDED,
        run_pb2.Run.STATE_FAILED,
        run_pb2.Run.STATE_DEAD,
        run_pb2.Run.STATE_CANCELLED,
    }
)
RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})
"""What a client sees of a daemon that is killed, gone or starting. The same request_id makes a repeat safe."""

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)

_BEFORE_MAIN = {"LD_PRELOAD", "PYTHONPATH"}
"""What has to be there when an interpreter starts."""

T = TypeVar("T")


class DaemonError(AssertionError):
    """The daemon did not do what the test needs; carries the end of its log."""


class Kill(NamedTuple):
    """When a daemon was killed: just before the signal, and when it was surely dead; monotonic and wall clock."""

    before: float
    after: float
    wall_before: float
    wall_after: float


def _with_token(details: Any, token: str) -> Any:
    """Put the token into a call, and let it wait for a connection: after a restart the channel is still backing off."""
    pairs = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]
    return details._replace(metadata=grpc.aio.Metadata(*pairs), wait_for_ready=True)


def _inside(request: Any, namespace: str) -> Any:
    """Put a request that names no namespace into one."""
    fields = request.DESCRIPTOR.fields_by_name
    if not namespace or not {"namespace", "requests"}.intersection(fields.keys()):
        return request
    moved = type(request)()
    moved.CopyFrom(request)
    for one in [moved, *getattr(moved, "requests", ())]:
        if "namespace" in one.DESCRIPTOR.fields_by_name and not one.namespace:
            one.namespace = namespace
    return moved


class _UnaryToken(grpc.aio.UnaryUnaryClientInterceptor):
    """Puts token and namespace into calls. grpc.aio files an interceptor under the first base that fits: hence two."""

    def __init__(self, token: str, namespace: str = "") -> None:
        self._token = token
        self._namespace = namespace

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_token(details, self._token), _inside(request, self._namespace))


class _StreamToken(grpc.aio.UnaryStreamClientInterceptor):
    """Puts token and namespace into streams."""

    def __init__(self, token: str, namespace: str = "") -> None:
        self._token = token
        self._namespace = namespace

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_token(details, self._token), _inside(request, self._namespace))


class Caller:
    """Calls a daemon over its unix socket; what names no namespace is meant for `namespace`."""

    namespace = ""

    def __init__(self) -> None:
        self._channels: dict[asyncio.AbstractEventLoop, grpc.aio.Channel] = {}

    def stub(self, service: Callable[[grpc.aio.Channel], T]) -> T:
        """A stub over the unix socket, which survives restarts. `service` is a generated `…Stub` class."""
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            interceptors = [kind(self.token, self.namespace) for kind in (_UnaryToken, _StreamToken)]
            self._channels[loop] = grpc.aio.insecure_channel(
                self.uds, options=_CHANNEL_OPTIONS, interceptors=interceptors
            )
        return service(self._channels[loop])

    async def disconnect(self) -> None:
        """Close the running loop's channel. Idempotent."""
        channel = self._channels.pop(asyncio.get_running_loop(), None)
        if channel is not None:
            await channel.close()

    @property
    def runs(self) -> Any:
        """RunService."""
        return self.stub(run_service_pb2_grpc.RunServiceStub)

    async def apply(self, source: str) -> Any:
        """Apply a definition."""
        stub = self.stub(workflow_service_pb2_grpc.WorkflowServiceStub)
        return await stub.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(source=source), timeout=20)

    async def history(self, run_id: str) -> list[Any]:
        """The whole history of a run."""
        events: list[Any] = []
        token = ""
        while True:
            page = await self.runs.GetRunHistory(
                run_service_pb2.GetRunHistoryRequest(run_id=run_id, page_size=1000, page_token=token), timeout=20
            )
            events += page.events
            token = page.next_page_token
            if not token:
                return events

    async def list_runs(self, **filters: Any) -> list[Any]:
        """All runs that fit."""
        found: list[Any] = []
        token = ""
        while True:
            request = run_service_pb2.ListRunsRequest(page_size=1000, page_token=token, **filters)
            page = await self.runs.ListRuns(request, timeout=20)
            found += page.runs
            token = page.next_page_token
            if not token:
                return found


class Daemon(Caller):
    """A real `taskforged` on a home of its own and free ports.

    Args:
        home: data folder; by default a short scratch folder that `close` removes (socket paths have a limit of 107).
        env: further environment variables.
        wrapper: what to put before the command, for example `["strace", "-f", …]`.
        fds: descriptors of ours that the process gets under the same numbers.
        nursery: where it is forked from; by default `shared`.
        executed: start an interpreter of its own, as users do; `wrapper`, `fds` and the loader's variables do so, too.
    """

    READY_S = 30.0
    STOP_S = 30.0

    shared: ClassVar[Callable[[], Nursery] | None] = None
    """Where daemons come from that name no nursery; without it they are executed."""

    def __init__(
        self,
        home: Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        fds: Sequence[int] = (),
        nursery: Nursery | None = None,
        executed: bool = False,
    ) -> None:
        super().__init__()
        self._scratch = None if home is not None else Path(tempfile.mkdtemp(prefix="tf-"))
        self.home = home if home is not None else self._scratch / "home"  # type: ignore[operator]
        self.log = self.home.with_name(self.home.name + ".log")
        self.env = dict(env or {})
        self.wrapper = list(wrapper)
        self.fds = tuple(fds)
        self.nursery = nursery
        self.executed = executed or bool(wrapper or fds)
        self.process: subprocess.Popen[bytes] | Child | None = None
        self.info: dict[str, Any] = {}
        self.kills: list[Kill] = []
        self.starts: list[float] = []
        self.ready_s: list[float] = []
        """How long each start took until GetInfo was answered."""

    # -- the process

    def spawn(self) -> subprocess.Popen[bytes] | Child:
        """Start the process without waiting for anything."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}
        environment |= {
            "TASKFORGE_GRPC_LISTEN": "127.0.0.1:0",
            "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0",
            "TASKFORGE_LOG_FORMAT": "json",
            "PYTHONWARNINGS": "default",
            "PYTHONFAULTHANDLER": "1",
            **self.env,
        }
        arguments = ["--home", str(self.home)]
        self.starts.append(time.monotonic())
        nursery = self.nursery
        if nursery is None and Daemon.shared is not None and not self.executed and not _BEFORE_MAIN & self.env.keys():
            nursery = Daemon.shared()
        if nursery is not None:
            return nursery.spawn(arguments, environment, self.log, self.home.parent)
        command = [*self.wrapper, sys.executable, "-m", "taskforged", *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home.parent,
                pass_fds=self.fds,
            )

    def start(self) -> Daemon:
        """Start and wait until it answers GetInfo.

        Raises:
            DaemonError: it ended or is not ready in time.
        """
        if self.process is not None:
            raise DaemonError("the daemon runs already")
        began = time.monotonic()
        before = self._read_run_file()
        self.process = self.spawn()
        try:
            self.info = self._wait_for_run_file(before, began + self.READY_S)
            self._wait_for_answer(began + self.READY_S)
        except BaseException:
            self.close_process()
            raise
        self.ready_s.append(time.monotonic() - began)
        return self

    def appear(self) -> bool:
        """Start, and wait until it says that it is ready or has ended before; answers whether it is."""
        self.info = {}
        self.process = self.spawn()
        while self.process.poll() is None:
            found = self._read_run_file()
            if found.get("pid") == self.process.pid:
                self.info = found
                return True
            time.sleep(0.005)
        return False

    def _read_run_file(self) -> dict[str, Any]:
        try:
            return json.loads((self.home / "taskforged.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _wait_for_run_file(self, before: dict[str, Any], deadline: float) -> dict[str, Any]:
        assert self.process is not None
        while True:
            found = self._read_run_file()
            ours = bool(self.wrapper) or found.get("pid") == self.process.pid
            if found and found != before and ours:
                return found
            if self.process.poll() is not None:
                raise DaemonError(
                    f"the daemon ended with {self.process.returncode} before it was ready:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise DaemonError(f"the daemon is not ready after {self.READY_S:.0f} s:\n{self.tail()}")
            time.sleep(0.005)

    def _wait_for_answer(self, deadline: float) -> None:
        with grpc.insecure_channel(self.info["grpc"][0]) as channel:  # the unix socket: TCP may speak TLS
            stub = system_service_pb2_grpc.SystemServiceStub(channel)
            try:
                stub.GetInfo(
                    system_service_pb2.GetInfoRequest(),
                    metadata=self.metadata,
                    timeout=max(0.1, deadline - time.monotonic()),
                    wait_for_ready=True,
                )
            except grpc.RpcError as error:
                raise DaemonError(f"GetInfo failed: {error}\n{self.tail()}") from error

    @property
    def pid(self) -> int:
        """The daemon's own process id, also under a wrapper."""
        return int(self.info["pid"])

    def kill(self) -> None:
        """SIGKILL, also while it is still starting; answers when the process is gone."""
        monotonic, wall = time.monotonic(), time.time()
        self._signal(signal.SIGKILL)
        self._reap(5.0)
        self.kills.append(Kill(monotonic, time.monotonic(), wall, time.time()))

    def start_and_kill(self, after_s: float) -> None:
        """Start and kill `after_s` later, ready or not."""
        self.info = {}
        self.process = self.spawn()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(after_s)
            raise DaemonError(f"the daemon ended by itself:\n{self.tail()}")
        self.kill()

    def terminate(self, *, wait: bool = True) -> int | None:
        """SIGTERM; answers the exit code.

        Raises:
            DaemonError: it does not stop in time.
        """
        self._signal(signal.SIGTERM)
        return self._reap(self.STOP_S) if wait else None

    def wait(self) -> int:
        """Wait for the end of the process, for example after `terminate(wait=False)`."""
        return self._reap(self.STOP_S)

    def restart(self) -> Daemon:
        """Start again after a kill or an end; kill first when it still runs."""
        if self.process is not None:
            self.kill()
        return self.start()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid if self.info else self._popen.pid, number)

    @property
    def _popen(self) -> subprocess.Popen[bytes] | Child:
        if self.process is None:
            raise DaemonError("the daemon does not run")
        return self.process

    def _reap(self, timeout_s: float) -> int:
        process = self._popen
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.close_process()
            raise DaemonError(f"the daemon did not end within {timeout_s:.0f} s:\n{self.tail()}") from error
        self.process = None
        return code

    def close_process(self) -> None:
        """Leave no process behind. Idempotent."""
        process, self.process = self.process, None
        if process is None:
            return
        for pid in {process.pid, self.info.get("pid", process.pid) if self.wrapper else process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        """Leave nothing behind: no process, no scratch folder."""
        self.close_process()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    async def aclose(self) -> None:
        """Close the running loop's channel, then all the rest."""
        await self.disconnect()
        await asyncio.to_thread(self.close)

    # -- talking to it

    @property
    def token(self) -> str:
        """The admin token that the first start made."""
        return (self.home / "token").read_text().strip()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata that authenticates a call."""
        return (("authorization", f"Bearer {self.token}"),)

    @property
    def tcp(self) -> str:
        """The loopback address of the control plane, `127.0.0.1:PORT`; another one after each start."""
        return next(address for address in self.info["grpc"] if not address.startswith("unix:"))

    @property
    def uds(self) -> str:
        """The unix socket of the control plane, the same after each start."""
        return f"unix:{self.home / 'taskforged.sock'}"

    @property
    def http(self) -> str:
        """Base URL of the webhook listener."""
        return str(self.info["http"])

    # -- looking at it

    @property
    def resident(self) -> int:
        """What of it is in memory, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def log_text(self) -> str:
        """Everything that the daemon has written, over all starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log_text().splitlines()[-lines:])


class Tenant(Caller):
    """A namespace of a daemon that others use, too. Whatever is not a call is the daemon's."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        super().__init__()
        self.daemon = daemon
        self.namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.daemon, name)


async def start_run(
    daemon: Daemon, workflow: str, payload: Any = None, *, request_id: str = "", give_up_s: float = 60.0
) -> str:
    """StartRun as a careful client does it: the same request_id until there is an answer. Answers the run's id."""
    request = run_service_pb2.StartRunRequest(
        workflow=workflow, input_json=json.dumps(payload or {}), request_id=request_id or f"req-{uuid.uuid4()}"
    )
    deadline = time.monotonic() + give_up_s
    while True:
        try:
            answer = await daemon.runs.StartRun(request, timeout=10)
            return str(answer.run.id)
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRYABLE or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def wait_until_idle(daemon: Daemon, run_ids: Iterable[str], *, within_s: float) -> dict[str, Any]:
    """Wait until every one of these runs has ended; answers them by id.

    Raises:
        DaemonError: some are still open. Names them with their steps: the stuck-run detector.
    """
    deadline = time.monotonic() + within_s
    wanted = set(run_ids)
    ended: dict[str, Any] = {}
    while True:
        ended |= {run.id: run for run in await daemon.list_runs() if run.id in wanted and run.state in TERMINAL}
        missing = wanted - ended.keys()
        if not missing:
            return ended
        if time.monotonic() > deadline:
            raise DaemonError(await _describe_stuck(daemon, missing, within_s))
        await asyncio.sleep(0.05)


async def _describe_stuck(daemon: Daemon, missing: set[str], within_s: float) -> str:
    lines = [f"{len(missing)} runs have not ended after {within_s:.0f} s:"]
    for run_id in sorted(missing)[:5]:
        try:
            run = (await daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=10)).run
        except grpc.aio.AioRpcError as error:
            lines.append(f"{run_id}: {error.code().name} {error.details()}")
            continue
        steps = ", ".join(f"{step.key}={run_pb2.StepRun.State.Name(step.state)}#{step.attempt}" for step in run.steps)
        lines.append(f"{run_id}: {run_pb2.Run.State.Name(run.state)}, sequence {run.sequence}: {steps}")
        lines += [f"    {event.sequence} {event.kind} {event.step}" for event in (await daemon.history(run_id))[-6:]]
    return "\n".join([*lines, daemon.tail(15)])


# -- the outside world


@dataclass(slots=True)
class Call:
    """One request that the effect server has seen. Times are monotonic."""

    key: str
    path: str
    body: bytes
    began: float
    ended: float = 0.0
    """When the answer was given; 0 while it is under way or when the caller went away."""
    status: int = 0


@dataclass(slots=True)
class _State:
    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class EffectServer:
    """An HTTP server on loopback, in a thread of its own, that records every call by its Idempotency-Key.

    `/echo` answers what it got. `/slow?ms=` waits first. `/fail?n=` answers 503 to the first n calls of each key.
    `/status/NNN` answers that, `/broken` 503 until somebody sets `mended`. `/build` answers `{"version": ref}`. Anything else (`/production`, `/staging`, `/ops`,
    `/deploy/…`, `/alert`) answers `{"ok": true}`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.mended = False
        self._state = _State()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="effects", daemon=True)

    def start(self) -> Self:
        """Serve."""
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the effect server did not start")
        return self

    def close(self) -> None:
        """Stop serving; calls under way are cut."""
        if self._over is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def calls(self) -> dict[str, list[Call]]:
        """Calls by key, in order of arrival. A copy."""
        return {key: list(calls) for key, calls in list(self._state.calls.items())}

    def clear(self) -> None:
        """Forget all calls."""
        self._state = _State()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels handlers that still wait
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        state = self._state
        call = Call(key, request.path, await request.read(), time.monotonic())
        state.calls[key].append(call)
        response = await self._answer(request, call, state)
        call.status = response.status
        call.ended = time.monotonic()
        return response

    async def _answer(self, request: web.Request, call: Call, state: _State) -> web.Response:
        path = request.path
        if path == "/slow":
            await asyncio.sleep(float(request.query.get("ms", "100")) / 1000)
        elif path == "/fail" and state.failures[call.key] < int(request.query.get("n", "1")):
            state.failures[call.key] += 1
            return web.json_response({"error": "not yet"}, status=503)
        elif path == "/broken" and not self.mended:
            return web.json_response({"error": "out of order"}, status=503)
        elif path.startswith("/status/"):
            return web.json_response({"status": int(path[8:])}, status=int(path[8:]))
        elif path == "/build":
            return web.json_response({"version": json.loads(call.body or b"{}").get("ref", "?")})
        elif path == "/echo":
            text = call.body.decode(errors="replace")
            return web.json_response({"method": request.method, "body": text, "query": dict(request.query)})
        return web.json_response({"ok": True})


def github_headers(secret: str, body: bytes, event: str = "release", delivery: str = "") -> dict[str, str]:
    """The headers that GitHub would send with this body."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/0aa1b2c",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or str(uuid.uuid4()),
        "X-GitHub-Hook-ID": "292430182",
        "X-Hub-Signature-256": f"sha256={signature}",
    }


def github_payload(name: str = "release.published") -> bytes:
    """A recorded payload."""
    return (FIXTURES / "github" / f"{name}.json").read_bytes()


def seeded(name: str) -> random.Random:
    """Random numbers whose seed is printed; `TASKFORGE_TEST_SEED` repeats a run."""
    seed = int(os.environ.get("TASKFORGE_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"\n{name}: TASKFORGE_TEST_SEED={seed}", flush=True)
    return random.Random(seed)


@contextlib.asynccontextmanager
async def running(task: asyncio.Task[Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Cancel a background task at the end, and raise what it raised."""
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
