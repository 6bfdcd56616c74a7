"""What the tests of crashes share: clients of all kinds that remember what they were told, and what must be on disk.

The clients ask one thing at a time and go on until the daemon is gone. Then `Crowd.check` holds a copy of the database
against their memory: what was acknowledged is stored, and what is stored was at least asked for. `settle` lets all that
is open end, and looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
from harness import RETRYABLE, Daemon, EffectServer, github_headers, github_payload
from switchboard import Board

from taskforged.failpoints import FAILPOINTS

SECRET = "It's a Secret to Everybody"
CHILD_S = 30.0
KINDS = ("runs", "deliveries", "published", "secrets", "workflows")
PAUSE_S = {"runs": 0.03}
"""Between two requests of a client; 0.01 where nothing is said. Two cores have other work, too."""
UPGRADE_POINTS = tuple(name for name in FAILPOINTS if name.startswith(("migration.", "upgrade.")))

DEFINITIONS = (
    """
name: mixed
input: {type: object, required: [base], properties: {base: {type: string}}}
steps:
  - id: call
    http: {method: POST, url: "${{ input.base }}/slow?ms=30", json: {run: "${{ run.id }}"}}
    retry: {max_attempts: 5, strategy: fixed, delay: 30ms, jitter: none}
  - id: nap
    sleep: 30ms
  - id: below
    workflow: {name: sub, input: {n: 1}}
  - id: tell
    event: {type: test.chain, data: {n: 2}}
output: ${{ steps.below.output }}
""",
    """
name: sub
input: {type: object, properties: {n: {type: integer}}}
steps:
  - id: double
    transform: {n: "${{ 2 * input.n }}"}
output: ${{ steps.double.output }}
""",
    """
name: heard
on:
  told: {event: {type: test.*}}
steps:
  - id: note
    transform: {heard: true}
""",
    """
name: hooked
on:
  release:
    webhook: {path: github, verify: {scheme: github, secret: HOOK}}
steps:
  - id: look
    transform: {seen: true}
""",
    """
name: tick
on:
  tick:
    cron: {schedule: "* * * * * *", seconds: true, misfire: all, overlap: allow}
steps:
  - id: tock
    transform: {tick: true}
""",
)

_STORED = {
    "runs": "SELECT r.id FROM runs r JOIN workflows w ON w.no = r.workflow_no WHERE w.name = 'mixed'",
    "deliveries": "SELECT id FROM events WHERE source = 'webhook' AND outcome = 'ACCEPTED'",
    "published": "SELECT id FROM events WHERE type = 'test.told'",
    "secrets": "SELECT name FROM secrets WHERE name LIKE 'S\\_%' ESCAPE '\\'",
    "workflows": "SELECT name FROM workflows WHERE name LIKE 'made-%'",
}


def compiled(name: str, folder: Path) -> Path:
    """Compile a library of this folder that can be preloaded."""
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@contextlib.contextmanager
def opened(home: Path) -> Iterator[sqlite3.Connection]:
    """The database as the next daemon will find it: a copy, since a look at the file itself would recover it."""
    with tempfile.TemporaryDirectory(prefix="tf-look-") as folder:
        for name in ("taskforge.db", "taskforge.db-wal"):
            if (home / name).exists():
                shutil.copyfile(home / name, Path(folder, name))
        with contextlib.closing(sqlite3.connect(Path(folder, "taskforge.db"))) as connection:
            yield connection


class Crowd:
    """Clients of one daemon. They outlive it, and remember."""

    def __init__(self, daemon: Daemon, effects: EffectServer, chance: random.Random) -> None:
        self.daemon = daemon
        self.chance = chance
        self.effects = effects
        self.acked: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._over = False
        self._body = github_payload()
        self._jobs: dict[str, Callable[[Board], Awaitable[str]]] = {
            "runs": self._start_run,
            "deliveries": self._deliver,
            "published": self._publish,
            "secrets": self._set_secret,
            "workflows": self._apply,
        }

    async def prepare(self) -> None:
        """Apply the definitions; the schedule is not active."""
        async with self.board() as board:
            await board.secret("HOOK", SECRET)
            for source in DEFINITIONS:
                await board.apply(source)
            await board("SetWorkflowActive", name="tick", active=False)

    @contextlib.asynccontextmanager
    async def board(self) -> Any:
        """A connection that ends with the block."""
        board = Board(self.daemon)
        try:
            yield board
        finally:
            await board.close()

    async def appear(self) -> bool:
        """Start; answers whether the daemon became ready, or ended before."""
        return await asyncio.to_thread(self.daemon.appear)

    async def load_until_gone(self, *, clients: int = 2) -> int:
        """Ask for things of all kinds until the process has ended; answers its exit code.

        Raises:
            AssertionError: it goes on.
        """
        process = self.daemon.process
        assert process is not None
        self._over = False
        async with self.board() as board:
            loading = [asyncio.create_task(self._client(kind, board)) for kind in KINDS for _ in range(clients)]
            try:
                return await asyncio.to_thread(process.wait, CHILD_S)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the daemon has not died\n{self.daemon.tail(20)}") from None
            finally:
                self._over = True
                await board.close()  # calls would wait for the next daemon
                await asyncio.gather(*loading)
                self.daemon.close_process()

    @property
    def count(self) -> int:
        """How many requests of all kinds were answered."""
        return self.answered.total()

    async def more(self, count: int) -> None:
        """Wait until so many more were answered, or the daemon is gone."""
        wanted = self.count + count
        async with asyncio.timeout(CHILD_S):
            await asyncio.sleep(0.01)
            while self.count < wanted and not self._over:
                await asyncio.sleep(0.01)

    async def _client(self, kind: str, board: Board) -> None:
        while not self._over:
            self.asked[kind] += 1
            try:
                self.acked[kind].add(await self._jobs[kind](board))
            except grpc.aio.AioRpcError as error:
                assert error.code() in RETRYABLE, error
                continue
            except (grpc.aio.UsageError, aiohttp.ClientError, OSError, TimeoutError, _RefusedError):
                continue
            except asyncio.CancelledError:  # of the call, with its channel
                continue
            self.answered[kind] += 1
            await asyncio.sleep(PAUSE_S.get(kind, 0.01))

    async def _start_run(self, board: Board) -> str:
        answer = await board("StartRun", workflow="mixed", input_json=json.dumps({"base": self.effects.url}))
        return str(answer.run.id)

    async def _deliver(self, board: Board) -> str:
        headers = github_headers(SECRET, self._body, delivery=str(uuid.uuid4()))
        answer = await board.post("github", self._body, headers)
        if answer.status != 202:
            raise _RefusedError(answer.status)
        return answer.event_id

    async def _publish(self, board: Board) -> str:
        return str((await board("PublishEvent", type="test.told", data_json="{}")).event.id)

    async def _set_secret(self, board: Board) -> str:
        name = f"S_{self.asked['secrets']}"
        await board("SetSecret", name=name, value=f"value of {name}")
        return name

    async def _apply(self, board: Board) -> str:
        name = f"made-{self.asked['workflows']}"
        await board.apply(f"name: {name}\nsteps: [{{id: one, transform: {{x: 1}}}}]")
        return name

    # --- what must be true -------------------------------------------------------------------------------------------

    def check(self, where: str) -> None:
        """Hold what is stored against what was answered and what was asked."""
        with opened(self.daemon.home) as connection:
            for kind, sql in _STORED.items():
                stored = {row[0] for row in connection.execute(sql)}
                lost = self.acked[kind] - stored
                assert not lost, f"{where}: {len(lost)} acknowledged {kind} are lost: {sorted(lost)[:3]}"
                extra, in_flight = len(stored - self.acked[kind]), self.asked[kind] - self.answered[kind]
                assert extra <= in_flight, f"{where}: {extra} {kind} are stored and were not answered, of {in_flight}"

    async def settle(self, *, within_s: float = 60.0) -> None:
        """Wait until nothing is open, and verify some runs."""
        async with self.board() as board:
            deadline = time.monotonic() + within_s
            while not await self._is_quiet(board):
                assert time.monotonic() < deadline, f"runs are open still\n{self.daemon.tail(20)}"
                await asyncio.sleep(0.05)
            runs = await board.runs()
            for run in self.chance.sample(runs, min(5, len(runs))):
                verdict = await board("VerifyRun", run_id=run.id)
                assert verdict.intact, f"{run.id}: {list(verdict.faults)}"

    async def _is_quiet(self, board: Board) -> bool:
        if (await board("GetStats")).open_runs:
            return False
        return not await board.listed(outcomes=["PENDING"], sources=["internal", "engine"])

    def check_database(self, where: str, *, kills: int) -> None:
        """Look at a database in which nothing is open."""
        with opened(self.daemon.home) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], where
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == [], where
            for table in ("commands", "timers", "children"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), f"{where}: {table}"
            states = Counter(row[0] for row in connection.execute("SELECT state FROM runs"))
            assert states.keys() <= {"SUCCEEDED"}, f"{where}: {states}"
            mixed = {row[0] for row in connection.execute(_STORED["runs"])}
        calls = {key: len(made) for key, made in self.effects.calls().items() if key.split("/")[0] in mixed}
        assert calls.keys() == {f"{run_id}/call" for run_id in mixed}, f"{where}: effects of other runs, or none"
        repeats = sum(calls.values()) - len(calls)
        assert repeats <= kills * POOL, f"{where}: {repeats} effects were repeated in {kills} kills"


POOL = 2
ENVIRONMENT = {"TASKFORGE_EXECUTOR_POOL_SIZE": str(POOL)}


class _RefusedError(Exception):
    """A delivery was not accepted; its sender would send it again."""
